"""Run the workloads on both engines and print medians and ratios: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import building, workloads
from .engines import ENGINES
from .report import summary_lines, workload_lines
from .workloads import Workload

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.list:
        for workload in workloads.WORKLOADS:
            print(f"{workload.name:22}{workload.size:>10,} {workload.title}")
        return 0
    chosen = list(workloads.WORKLOADS)
    if options.only:
        chosen = [workload for name in options.only for workload in workloads.named(name)]
    machine = _machine()
    print(f"{machine['python']} on {machine['system']}, {machine['cpus']} CPUs; medians of {options.repeats} runs")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()), flush=True)

    results: dict[str, Any] = {}
    for workload in chosen:
        size = _scaled(workload, options.scale)
        names = [name for name in options.engines if name in workload.engines]
        runs = _run_workload(workload, size, names, options.repeats, options.dir)
        if not runs:
            continue
        results[workload.name] = {"title": workload.title, "size": size, "runs": runs}
        print("\n" + "\n".join(workload_lines(f"{size:,} {workload.title}", runs)), flush=True)
        if options.json:
            # After each workload, so that a stopped run keeps what it has.
            document = {"machine": machine, "workloads": results}
            options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if len(options.engines) == 2:
        print("\n" + "\n".join(summary_lines(results)))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the workloads and stop")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[workload.name for workload in workloads.WORKLOADS] + [workloads.NETWORK],
        help=f"run this workload, or all of the group {workloads.NETWORK!r}; may be repeated",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each workload on each engine (default: 3)")
    parser.add_argument("--engine", dest="engines", action="append", choices=ENGINES, help="run only this engine")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the sizes, e.g. 0.1 for a quick look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run to this file")
    parser.add_argument(
        "--dir", type=Path, help="folder for the repositories (default: the system's temporary folder)"
    )
    options = parser.parse_args(arguments)
    options.engines = options.engines or list(ENGINES)
    if options.repeats < 1 or options.scale <= 0:
        parser.error("--repeats and --scale must be positive")
    return options


def _scaled(workload: Workload, scale: float) -> int:
    size = max(int(workload.size * scale), 1)
    return size if size < building.REFS_PER_FILE else size - size % building.REFS_PER_FILE


def _run_workload(
    workload: Workload, size: int, engine_names: Sequence[str], repeats: int, directory: Path | None
) -> dict[str, list[dict[str, Any]]]:
    """Run both engines in turn. Each repeat swaps their order, so neither always runs on the warmer machine."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engine_names}
    for repeat in range(repeats):
        for name in engine_names if repeat % 2 == 0 else reversed(engine_names):
            folder = Path(tempfile.mkdtemp(prefix=f"benchmark-{workload.name}-{name}-", dir=directory))
            try:
                job = {"engine_name": name, "workload_name": workload.name, "path": str(folder / "repo"), "size": size}
                if workload.prepare is not None:
                    _run_child({**job, "stage": "prepare"})
                runs[name].append(_run_child({**job, "stage": "run"}))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    return runs


def _run_child(job: dict[str, Any]) -> dict[str, Any]:
    paths = [str(ROOT), str(ROOT / "engine"), os.environ.get("PYTHONPATH", "")]
    environment = {
        "ICECHUNK_LOG": "error",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", json.dumps(job)],
        env=environment,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"{job['workload_name']} ({job['stage']}) failed on {job['engine_name']} "
            f"with exit code {done.returncode}; its messages are above"
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _machine() -> dict[str, Any]:
    versions = {}
    for name in ("icechunk", "xarray-icechunk", "zarr", "xarray", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": f"Python {platform.python_version()}",
        "system": platform.platform(terse=True),
        "cpus": os.cpu_count(),
        "versions": versions,
    }


if __name__ == "__main__":
    sys.exit(main())
