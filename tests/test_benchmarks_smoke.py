"""Every benchmark runs at a tiny size on this library, so none can rot. The workloads check their own results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import building, child, report, workloads

if TYPE_CHECKING:
    from distributed import Client

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("workload", workloads.WORKLOADS, ids=lambda workload: workload.name)
def test_workload_runs(workload: workloads.Workload, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if workload.name == "dask_tasks":
        client: Client = request.getfixturevalue("cluster_of_processes")
        with client.as_current():
            run_tiny(workload, tmp_path)
    else:
        run_tiny(workload, tmp_path)


def run_tiny(workload: workloads.Workload, tmp_path: Path) -> None:
    job: dict[str, Any] = {"workload_name": workload.name, "path": str(tmp_path / "repo"), "size": workload.tiny}
    if workload.prepare is not None:
        child.run_stage("ours", stage="prepare", **job)
    result = child.run_stage("ours", stage="run", **job)
    assert result["seconds"]
    assert result["peak_bytes"] > 0
    # Reading writes nothing to the disk, and neither do servers in memory. All other workloads do.
    is_far = workload.name.startswith("network_")
    assert (result["disk_bytes"] == 0) is (is_far or workload.name == "coordinates_listed")
    assert bool(result["requests"]) is is_far


def test_command_compares_both_libraries(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--only", "small_commits", "--scale", "0.01", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--json", str(output), "--dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "3 small commits" in done.stdout
    runs = json.loads(output.read_text())["workloads"]["small_commits"]["runs"]
    assert {name: len(results) for name, results in runs.items()} == {"official": 1, "ours": 1}
    assert list(tmp_path.iterdir()) == [output], "the repositories are removed"


def test_ratio_says_how_many_times_less_ours_takes() -> None:
    def run(seconds: float) -> dict[str, object]:
        return {"seconds": {"set": seconds}, "peak_bytes": 3e8, "added_bytes": 2e8, "disk_bytes": 0}

    runs = {"official": [run(2.0), run(9.0), run(4.0)], "ours": [run(0.5)]}
    assert report.medians(runs)["set, s"] == {"official": 4.0, "ours": 0.5}
    lines = report.workload_lines("title", runs)
    assert lines[2].split() == ["set,", "s", "4.000", "0.500", "8.00", "x"]
    assert lines[-1].split() == ["on", "disk,", "MB", "0.000", "0.000", "-"]


def test_reference_grids_hold_every_reference() -> None:
    for workload in workloads.WORKLOADS:
        if workload.size >= building.REFS_PER_FILE and "references" in workload.title:
            files, per_file = building.grid(workload.size)
            assert files * per_file == workload.size
    with pytest.raises(ValueError, match="multiple of 1000"):
        building.grid(1500)
