"""Many processes, one local repository; and processes killed in the middle of a commit."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine.catalog import compare_and_swap
from icechunk_engine.storage.local import commit_queue
from tests.profiles import by_profile

PROCESSES, COMMITS = 8, by_profile(quick=12, thorough=50)


def _fork_server() -> Any:
    """Processes forked from a clean one that has imported everything, or most of the time would go into imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["icechunk_engine", "zarr"])
    return context


def _commit_many(path: str, worker: int) -> None:
    repo = ic.Repository.open(ic.local_filesystem_storage(path))
    for i in range(COMMITS):
        while True:
            session = repo.writable_session("main")
            array = zarr.open_array(session.store, path="count", mode="r+")
            array[worker] = i + 1
            try:
                session.commit(f"{worker}:{i}")
                break
            except ic.ConflictError:
                continue


@pytest.mark.long
def test_no_commit_is_lost_and_history_is_linear(tmp_path: Path) -> None:
    path = str(tmp_path / "repo")
    repo = ic.Repository.create(ic.local_filesystem_storage(path))
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="count", shape=(PROCESSES,), chunks=(1,), dtype="int64", fill_value=0)
    context = _fork_server()
    workers = [context.Process(target=_commit_many, args=(path, worker)) for worker in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    history = list(repo.ancestry(branch="main"))
    assert len(history) == PROCESSES * COMMITS + 2
    assert len({info.id for info in history}) == len(history)
    assert [info.parent_id for info in history[:-1]] == [info.id for info in history[1:]]
    messages = [info.message for info in reversed(history)]
    for worker in range(PROCESSES):
        mine = [message for message in messages if message.startswith(f"{worker}:")]
        assert mine == [f"{worker}:{i}" for i in range(COMMITS)]
    final = zarr.open_array(repo.readonly_session("main").store, path="count", mode="r")[:]
    assert np.asarray(final).tolist() == [COMMITS] * PROCESSES


WRITERS, WRITES = by_profile(quick=(16, 6), thorough=(50, 10))


def _commit_with_rebasing(path: str, writers: list[int]) -> None:
    commit_queue._PATIENCE_S = 600.0  # on a slow machine writers would stop queueing, and write more
    repo = ic.Repository.open(ic.local_filesystem_storage(path))
    for i in range(WRITES):
        for writer in writers:
            session = repo.writable_session("main")
            zarr.open_array(session.store, path="a", mode="r+")[writer, i] = writer * 1000 + i
            session.commit(f"{writer}:{i}", rebase_with=ic.ConflictDetector())


def _empty_array(path: str) -> ic.Repository:
    repo = ic.Repository.create(ic.local_filesystem_storage(path))
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(WRITERS, WRITES), chunks=(1, 1), dtype="int64", fill_value=-1)
    return repo


def _manifest_bytes(path: str) -> int:
    return sum(file.stat().st_size for file in (Path(path) / "manifests").iterdir())


@pytest.mark.long
def test_disjoint_writers_rebase(tmp_path: Path) -> None:
    """Nothing is lost, and little is written for nothing."""
    path = str(tmp_path / "parallel")
    repo = _empty_array(path)
    context = _fork_server()
    workers = [context.Process(target=_commit_with_rebasing, args=(path, [writer])) for writer in range(WRITERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * WRITERS
    final = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    assert np.array_equal(final, np.arange(WRITERS)[:, None] * 1000 + np.arange(WRITES))
    assert len(list(repo.ancestry(branch="main"))) == WRITERS * WRITES + 2
    assert len(os.listdir(f"{path}/snapshots")) <= 1.2 * WRITERS * WRITES + 2
    alone = str(tmp_path / "serial")
    _empty_array(alone)
    _commit_with_rebasing(alone, list(range(WRITERS)))
    assert _manifest_bytes(path) <= 1.2 * _manifest_bytes(alone)


KILLS = by_profile(quick=50, thorough=200)

# One parent forks the victims: starting an interpreter for each of the kills would take minutes.
_FORKING_PARENT = """
import os, random, signal, sys, time
import numpy
import icechunk_engine as ic
from icechunk_engine.session import workspace_of
from tests.profiles import by_profile
path, kills = sys.argv[1], int(sys.argv[2])
rng = random.Random(20)
longest = 0.0
for kill in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        repo = ic.Repository.open(ic.local_filesystem_storage(path))
        n = int(next(repo.ancestry(branch="main")).message)
        os.write(write, b"r")
        while True:
            session = repo.writable_session("main")
            n += 1
            for i in range(4):
                workspace_of(session).set_chunk("/a", (i,), numpy.full(200, n, "<i8").tobytes())
            session.commit(str(n))
            os.write(write, b"%d ")
    os.close(write)
    assert os.read(read, 1) == b"r"
    begun, done = time.monotonic(), b""
    if kill < 5:  # see how long this machine takes for one commit
        done = os.read(read, 65536)
        longest = max(longest, time.monotonic() - begun)
    else:
        time.sleep(rng.uniform(0, 2 * longest))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(read, 65536):
        done += piece
    os.close(read)
    print("killed", *done.decode().split()[-1:], flush=True)
    assert sys.stdin.readline() == "next\\n"
""".replace('b"%d "', 'b"%d " % n')


@pytest.mark.long
def test_killed_in_the_middle_of_commits(tmp_path: Path) -> None:
    """After each kill the repository opens at the last acknowledged commit or the one in flight, whole."""
    path = str(tmp_path / "repo")
    repo = ic.Repository.create(ic.local_filesystem_storage(path))
    with repo.transaction("main", message="0") as store:
        zarr.create_array(store, name="a", shape=(800,), chunks=(200,), dtype="int64", compressors=None)[:] = 0
    parent = subprocess.Popen(
        [sys.executable, "-c", _FORKING_PARENT, path, str(KILLS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        newest, kills = 0, 0
        for line in parent.stdout:
            word, *acknowledged = line.split()
            assert word == "killed"
            kills += 1
            newest = _newest_whole(path, at_least=int(acknowledged[0]) if acknowledged else newest)
            parent.stdin.write("next\n")
            parent.stdin.flush()
    assert parent.returncode == 0
    assert kills == KILLS
    assert newest > KILLS / 10  # the victims did commit
    history = list(ic.Repository.open(ic.local_filesystem_storage(path)).ancestry(branch="main"))
    assert [int(info.message) for info in history[:-1]] == list(range(newest, -1, -1))


def _newest_whole(path: str, at_least: int) -> int:
    repo = ic.Repository.open(ic.local_filesystem_storage(path))
    newest = int(next(repo.ancestry(branch="main")).message)
    assert newest >= at_least
    values = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    assert np.array_equal(values, np.full(800, newest))
    return newest


def test_who_prepared_for_long_does_not_wait_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    monkeypatch.setattr(time, "sleep", waits.append)
    for attempts, took_s in ((1, 0.25), (3, 0.25), (1, 300), (100, 300)):
        compare_and_swap.wait_after_lost_commit(attempts, took_s)
    assert waits == [0.25, 0.75, 1, 8]
