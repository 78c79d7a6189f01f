"""The workloads with many independent writers: processes that commit to one branch at the same time.

Each writer has a row of one array and sets one chunk in each commit, so all commits can be rebased. Reported are also
the commits that were lost or failed, the snapshots that were written for each commit, and how much longer the slowest
commit took than the median. The official library loses commits to a local folder, so only ours must not.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
import urllib.request
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr

from . import engines, network
from .building import create_array
from .engines import Engine
from .measure import Phases

COMMITS = 10
FAR_COMMITS = 4
_PATIENCE_S = 200


def writers(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    _measure(engine, str(path), count, COMMITS, phases, lambda: len(os.listdir(path / "snapshots")), phases.phase)


def far_writers(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    with network.served(path) as place:

        def num_snapshots() -> int:
            url = f"{place.endpoint}/{network.BUCKET}?list-type=2&prefix={path.name}/snapshots/"
            with urllib.request.urlopen(url) as answer:
                return len(re.findall(b"<Key>", answer.read()))

        _measure(engine, place, count, FAR_COMMITS, phases, num_snapshots, lambda name: place.phase(phases, name))


def _measure(
    engine: Engine,
    place: str | network.Place,
    num_writers: int,
    num_commits: int,
    phases: Phases,
    num_snapshots: Callable[[], int],
    phase: Callable[[str], Any],
) -> None:
    repository = engine.ic.Repository.create(_storage(engine, place))
    session = repository.writable_session("main")
    create_array(session.store, "a", (num_writers, num_commits), (1, 1), "i8")
    session.commit("empty array")
    before = num_snapshots()

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # not the official library, which does not survive a fork
    start, results = context.Barrier(num_writers + 1), context.Queue()
    processes = [
        context.Process(target=_write, args=(engine.name, place, number, num_commits, start, results))
        for number in range(num_writers)
    ]
    for process in processes:
        process.start()
    start.wait(_PATIENCE_S)
    with phase("commits"):
        seconds = [results.get(timeout=_PATIENCE_S) for _ in range(num_writers * num_commits)]
    for process in processes:
        process.join()

    done = [number for number in seconds if number is not None]
    found = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[:]
    lost = int((found != _values(num_writers, num_commits)).sum())
    phases.figures["commits failed"] = len(seconds) - len(done)
    phases.figures["commits lost"] = lost - (len(seconds) - len(done))
    phases.figures["snapshots per commit"] = (num_snapshots() - before) / len(done)
    phases.figures["slowest / median"] = max(done) / median(done)
    assert lost == 0 or engine.name == "official"


def _values(num_writers: int, num_commits: int) -> np.ndarray[Any, Any]:
    return np.arange(1, num_writers * num_commits + 1).reshape(num_writers, num_commits)


def _storage(engine: Engine, place: str | network.Place) -> Any:
    return engine.ic.local_filesystem_storage(place) if isinstance(place, str) else place.storage(engine)


def _write(
    engine_name: str,
    place: str | network.Place,
    row: int,
    num_commits: int,
    start: Any,
    results: Queue[float | None],
) -> None:
    """Commit often, and report how long each commit took, or None for one that failed."""
    engine = engines.load(engine_name)
    repository = engine.ic.Repository.open(_storage(engine, place))
    start.wait()
    for number in range(num_commits):
        session = repository.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+")[row, number] = row * num_commits + number + 1
        started = time.perf_counter()
        try:
            session.commit("one chunk", rebase_with=engine.ic.ConflictDetector())
        except Exception:
            results.put(None)
        else:
            results.put(time.perf_counter() - started)
    results.close()
    results.join_thread()
    os._exit(0)  # the official library's threads can abort an interpreter that exits while they still run
