"""The workloads with many workers: tasks on a dask cluster, the cost of sending a fork, and the merge of many forks.

Another process makes the forks to merge (:mod:`.fork_maker`), as workers would. So the measured process holds only
what it loads, merges and commits.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr

from .building import REFS_PER_FILE, create, create_array, open_
from .engines import Engine
from .fork_maker import FILES_PER_FORK, INLINE_BYTES
from .measure import Phases

TASK_ELEMENTS = 1024
WARM_UP_TASKS = 50


# ---- a cluster ----------------------------------------------------------------------------------------------------


def dask_tasks(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    with _cluster():
        # The first tasks make the workers import both xarray and the library, which would dominate the result.
        warm_up = create(engine, path.with_name("warm-up")).writable_session("main")
        engine.to_icechunk(_steps(min(count, WARM_UP_TASKS)), warm_up)
        warm_up.commit("warm up")

        dataset = _steps(count)
        session = create(engine, path).writable_session("main")
        with phases.phase("write"):
            engine.to_icechunk(dataset, session)
        with phases.phase("commit"):
            session.commit("tasks")
    with engine.open_dataset(str(path), open_(engine, path)) as opened:
        np.testing.assert_array_equal(opened["t2m"].values, np.arange(count * TASK_ELEMENTS, dtype="f4"))


@contextmanager
def _cluster() -> Iterator[None]:
    """Use the current client of dask, or else start two worker processes."""
    from distributed import Client, LocalCluster, get_client

    try:
        get_client()
    except ValueError:
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
            Client(cluster),
        ):
            yield
    else:
        yield


def _steps(count: int) -> xr.Dataset:
    """Return a lazy variable of ``count`` chunks of 4 KiB. Each is computed and written by one task."""
    values = da.arange(count * TASK_ELEMENTS, chunks=TASK_ELEMENTS, dtype="f4")
    dataset = xr.Dataset({"t2m": ("x", values)})
    dataset["t2m"].encoding["compressors"] = None
    return dataset


# ---- sending a fork -----------------------------------------------------------------------------------------------


def fork_pickle(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    create(engine, path)
    session = open_(engine, path).writable_session("main")
    create_array(session.store, "t2m", (10,), (10,))
    session.commit("array")
    fork = open_(engine, path).writable_session("main").fork()
    data = pickle.dumps(fork)
    with phases.phase("dump"):
        for _ in range(count):
            pickle.dumps(fork)
    with phases.phase("load"):
        for _ in range(count):
            pickle.loads(data)
    phases.sizes["dump"] = len(data)


# ---- merging many forks -------------------------------------------------------------------------------------------


def merge_virtual(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    _merge(engine, path, count, phases, "virtual")


def merge_native(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    _merge(engine, path, count, phases, "native")


def merge_inline(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    _merge(engine, path, count, phases, "inline")


def _merge(engine: Engine, path: Path, count: int, phases: Phases, kind: str) -> None:
    repository = create(engine, path, virtual=True)
    session = repository.writable_session("main")
    shape = (count * FILES_PER_FORK, REFS_PER_FILE * INLINE_BYTES)
    create_array(session.store, "t2m", shape, (1, INLINE_BYTES), "u1")
    session.commit("empty array")
    session = repository.writable_session("main")
    pickles = path.with_name("forks")
    pickles.mkdir()
    (pickles / "sent").write_bytes(pickle.dumps(session.fork()))
    job = json.dumps({"engine_name": engine.name, "folder": str(pickles), "count": count, "kind": kind})
    subprocess.run([sys.executable, "-m", "benchmarks.fork_maker", job], check=True, stdin=subprocess.DEVNULL)

    with phases.phase("load"):
        forks = [pickle.loads((pickles / str(number)).read_bytes()) for number in range(count)]
    phases.sizes["load"] = sum((pickles / str(number)).stat().st_size for number in range(count))
    with phases.phase("merge"):
        session.merge(*forks)
    with phases.phase("commit"):
        session.commit("merged forks")
    last = repository.readonly_session("main").chunk_type("/t2m", (count * FILES_PER_FORK - 1, REFS_PER_FILE - 1))
    assert last == getattr(engine.ic.ChunkType, kind)
