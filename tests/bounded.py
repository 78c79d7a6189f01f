"""Runs what may hang or exhaust memory in a child process: under a watchdog, and with little memory to grow into."""

from __future__ import annotations

import base64
import importlib
import pickle
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 30
MEGABYTES = 300


def run_bounded[T](work: Callable[..., T], *arguments: Any, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> T:
    """The result of a module-level function; fails when it takes too long or allocates too much.

    Parameters
    ----------
    work
        Is imported by the child. Whatever the child raises is raised here.
    megabytes
        Address space beyond what the imports take.
    """
    task = base64.b64encode(pickle.dumps((work.__module__, work.__qualname__, arguments, megabytes))).decode()
    code = "import sys; from tests.bounded import _main; _main(sys.argv[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, task],
            capture_output=True,
            timeout=seconds,
            check=False,
            env={"PYTHONPATH": ":".join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
            cwd=Path(__file__).parent.parent,
        )
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{work.__qualname__} took more than {seconds} s") from None
    if done.returncode:
        raise AssertionError(f"{work.__qualname__} ended with {done.returncode}: {done.stderr.decode()[-3000:]}")
    outcome, value = pickle.loads(base64.b64decode(done.stdout.splitlines()[-1]))
    if outcome == "raised":
        raise value
    result: T = value
    return result


def _main(task: str) -> None:
    module, name, arguments, megabytes = pickle.loads(base64.b64decode(task))
    work = getattr(importlib.import_module(module), name)
    statm = Path("/proc/self/statm")
    threading.stack_size(2**19)  # the usual 8 MiB of each thread count, used or not
    if statm.exists():  # on Linux; elsewhere only the time is limited
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        outcome = "returned", work(*arguments)
    except Exception as error:
        outcome = "raised", error
    print(base64.b64encode(pickle.dumps(outcome)).decode())


def peak_mb() -> float:
    """The most memory that this process has had since it began, in MB.

    Not ``ru_maxrss`` on Linux: it counts what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+([0-9]+) kB", status.read_text())
        assert found is not None
        return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
