"""Measure the seconds of each phase of a workload, and the peak memory of the process."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROC = Path("/proc/self")


class Phases:
    """Collects the seconds of the named phases of one run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.requests: dict[str, int] = {}
        """Number of requests, for phases that talk to a server."""
        self.sizes: dict[str, int] = {}
        """Bytes of what a phase made or read, if that is of interest."""
        self.figures: dict[str, float] = {}
        """Other numbers by name. The smaller, the better."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block. Preparation and checks stay outside such blocks, so they do not count."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class PeakMemory:
    """The process's resident memory at the start of a run, and its peak since then.

    Linux can reset the peak, so an earlier one (during imports, for example) does not count. On other systems the peak
    is that of the whole process, from ``resource.getrusage``.
    """

    def __init__(self) -> None:
        self._can_reset = _can_reset_peak()
        self.start_bytes = _current_bytes()

    def peak_bytes(self) -> int:
        """Return the peak since this object was created."""
        if self._can_reset:
            return _status_bytes("VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _can_reset_peak() -> bool:
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _current_bytes() -> int:
    try:
        return int((_PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _status_bytes(field: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
