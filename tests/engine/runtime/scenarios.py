"""What once hung, or could: run by test_scenarios.py in child processes under a watchdog.

By hand, for longer: ``python -m tests.engine.runtime.scenarios threads 1800``.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import zarr
from zarr.buffer import cpu, default_buffer_prototype

import icechunk_engine as ic
from icechunk_engine._runtime import locks
from icechunk_engine.session import workspace_of
from icechunk_engine.storage import Storage
from icechunk_engine.testing.latency import LatencyStorage
from tests.zarr_internals import sync

PROTOTYPE = default_buffer_prototype()


def many_requests() -> ic.RepositoryConfig:
    """Small chunks make requests too, and each array has several manifests, which are fetched by the pool."""
    splitting = ic.ManifestSplittingConfig.from_dict(
        {ic.ManifestSplitCondition.AnyArray(): {ic.ManifestSplitDimCondition.Any(): 20}}
    )
    return ic.RepositoryConfig(inline_chunk_threshold_bytes=0, manifest=ic.ManifestConfig(splitting=splitting))


def number(n: int) -> cpu.Buffer:
    return cpu.Buffer.from_bytes(n.to_bytes(8, "little"))


def create(storage: Storage, arrays: dict[str, tuple[int, ...]]) -> ic.Repository:
    """A repository of arrays with one number a chunk."""
    repo = ic.Repository.create(storage, many_requests())
    with repo.transaction("main", message="start") as store:
        root = zarr.create_group(store)
        for name, shape in arrays.items():
            root.create_array(name, shape=shape, chunks=(1,) * len(shape), dtype="<i8", compressors=None, filters=None)
    return repo


# --- a pool full of tasks beside an operation that needs it --------------------------------------------------------


def writes_beside_whole_operations(n_rounds: int, n_writes: int) -> None:
    """More writes in flight than the pool has threads, while another thread lists, shifts and commits."""
    repo = create(LatencyStorage(ic.in_memory_storage(), write_latency_ms=1, read_latency_ms=1), {"a": (n_writes,)})
    for n in range(1, n_rounds + 1):
        _forget_everything()
        session = repo.writable_session("main")

        async def write(session: ic.Session = session, n: int = n) -> None:
            await asyncio.gather(*(session.store.set(f"a/c/{i}", number(n * (i + 1))) for i in range(n_writes)))

        writer = threading.Thread(target=sync, args=(write(),))
        writer.start()
        while writer.is_alive():
            workspace_of(session).chunk_refs("/a")
            session.shift_array("/a", (0,))
        writer.join()
        session.commit("round", rebase_with=ic.ConflictDetector())
    found = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    assert np.array_equal(found, n_rounds * np.arange(1, n_writes + 1)), found


def reads_of_a_fresh_session(n_rounds: int, n_reads: int) -> None:
    """More first reads than the pool has threads: all want the snapshot and the manifest."""
    storage = ic.in_memory_storage()
    repo = create(storage, {"a": (n_reads,)})
    with repo.transaction("main", message="values") as store:
        zarr.open_array(store, path="a")[:] = np.arange(1, n_reads + 1)
    for _ in range(n_rounds):
        _forget_everything()
        session = ic.Repository.open(LatencyStorage(storage, read_latency_ms=1)).readonly_session("main")

        async def read(session: ic.Session = session) -> list[Any]:
            return await asyncio.gather(*(session.store.get(f"a/c/{i}", PROTOTYPE) for i in range(n_reads)))

        lister = threading.Thread(target=workspace_of(session).chunk_refs, args=("/a",))
        lister.start()
        values = [int.from_bytes(buffer.to_bytes(), "little") for buffer in sync(read())]
        lister.join()
        assert values == list(range(1, n_reads + 1))


def _forget_everything() -> None:
    from icechunk_engine import assets

    for caches in list(assets._CACHES.values()):
        for name in ("snapshots", "manifests", "logs", "chunks"):
            getattr(caches, name).clear()
        caches.preloaded.clear()


# --- a thread that works on when the main thread has ended ---------------------------------------------------------


def work_that_outlives_the_main_thread(path: str) -> None:
    """The commit is there when the process has ended."""
    create(ic.local_filesystem_storage(path), {"a": (60,), "b": (60,)})
    storage = LatencyStorage(ic.local_filesystem_storage(path), read_latency_ms=1, write_latency_ms=1)
    session = ic.Repository.open(storage).writable_session("main")

    def work() -> None:
        while _can_start_threads():
            time.sleep(0.001)
        for name in ("a", "b"):
            for i in range(60):
                workspace_of(session).set_chunk(f"/{name}", (i,), number(i).to_bytes())
        session.commit("late")

    threading.Thread(target=work).start()


def _can_start_threads() -> bool:
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int)
    except RuntimeError:
        return False
    return True


# --- forks in the middle of what other threads do ------------------------------------------------------------------


def forks_at_random_moments(path: str, n_rounds: int, seed: int) -> None:
    """Each child reads through what it inherited, and through a repository of its own, and ends."""
    dice = random.Random(seed)
    create(ic.local_filesystem_storage(path), {"a": (60,), "b": (60,)})
    slow = LatencyStorage(ic.local_filesystem_storage(path), read_latency_ms=1, write_latency_ms=1)
    preload = ic.ManifestPreloadConfig(preload_if=ic.ManifestPreloadCondition.true())
    repo = ic.Repository.open(slow, ic.RepositoryConfig(manifest=ic.ManifestConfig(preload=preload)))
    with repo.transaction("main", message="values") as store:
        zarr.open_array(store, path="a")[:] = np.arange(1, 61)
    tip = repo.lookup_branch("main")
    stop = threading.Event()

    def preloading() -> None:
        _forget_everything()
        repo.readonly_session(snapshot_id=tip)
        time.sleep(0.001)

    def reading() -> None:
        refs = workspace_of(repo.readonly_session(snapshot_id=tip)).chunk_refs("/a")
        assert len(refs) == 60

    def committing() -> None:
        session = repo.writable_session("main")
        for i in range(5):
            workspace_of(session).set_chunk("/b", (i,), number(i).to_bytes())
        session.commit("b", rebase_with=ic.BasicConflictSolver())

    def flushing() -> None:
        storage = ic.local_filesystem_storage(path)
        storage.put("chunks/GARBAGE", b"x", atomic=False)
        storage.flush()

    def forever(work: Callable[[], None]) -> None:
        while not stop.is_set():
            work()

    threads = [threading.Thread(target=forever, args=(work,)) for work in (preloading, reading, committing, flushing)]
    for thread in threads:
        thread.start()
    shared = repo.readonly_session(snapshot_id=tip)
    try:
        for _ in range(n_rounds):
            time.sleep(dice.uniform(0, 0.02))
            _require_child_ends(lambda: _read_in_child(shared, repo, path, tip))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def forks_of_several_threads(n_forks: int) -> None:
    """Threads that fork at the same time, beside one that makes locks and drops them."""
    kept = [locks.memory_lock() for _ in range(100)]
    failures: list[object] = []
    sys.unraisablehook = failures.append
    sys.setswitchinterval(1e-5)
    stop = threading.Event()

    def make() -> None:
        while not stop.is_set():
            with locks.memory_lock():
                pass

    def fork() -> None:
        for _ in range(n_forks):
            _require_child_ends(lambda: _require_free(locks.memory_locks()))

    maker = threading.Thread(target=make)
    maker.start()
    with ThreadPoolExecutor(4) as pool:
        forking = [pool.submit(fork) for _ in range(4)]
    stop.set()
    maker.join()
    for done in forking:
        done.result()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_require_free, kept).result()
    assert not failures, failures


def a_fork_in_the_middle_of_an_edit() -> None:
    """The fork waits until the edit is complete, so the child sees all of it."""
    lock, both, is_half_done, may_go_on = locks.memory_lock(), [0, 0], threading.Event(), threading.Event()

    def edit() -> None:
        with lock:
            both[0] = 1
            is_half_done.set()
            may_go_on.wait(30)
            both[1] = 1

    editing = threading.Thread(target=edit)
    editing.start()
    is_half_done.wait(30)
    threading.Timer(0.3, may_go_on.set).start()

    def look() -> None:
        with lock:
            assert both == [1, 1], f"the child was forked in the middle of an edit: {both}"

    _require_child_ends(look)
    editing.join()


def _require_free(found: list[locks.MemoryLock]) -> None:
    for lock in found:
        assert lock.acquire(timeout=5), "a lock is held that nobody will release"
        lock.release()


def _read_in_child(shared: ic.Session, repo: ic.Repository, path: str, tip: str) -> None:
    again = ic.Repository.open(ic.local_filesystem_storage(path)).readonly_session(snapshot_id=tip)
    for session in (shared, repo.readonly_session(snapshot_id=tip), again):
        for i in (0, 7, 59):
            ref = workspace_of(session).locate_chunk("/a", (i,))
            assert ref is not None
            assert workspace_of(session).fetch_chunk(ref, 0, 8) == (i + 1).to_bytes(8, "little")
    session = ic.Repository.open(ic.local_filesystem_storage(path)).writable_session("main")
    workspace_of(session).set_chunk("/b", (59,), number(1).to_bytes())
    session.commit("of a child", rebase_with=ic.BasicConflictSolver())


def _require_child_ends(work: Callable[[], None], seconds: float = 60) -> None:
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(seconds - 5, exit=True)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, f"a forked child ended with {status}"
            return
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a forked child did not end within {seconds} s")


# --- random programs of many threads -------------------------------------------------------------------------------

ROWS = 12


class _Team:
    """Threads that share one session after another, and what each of them knows to be true.

    Each row of the team's array has one owner, who writes growing numbers. ``written`` are those whose write returned,
    ``tried`` those that were begun, ``committed`` those known to be in a commit.
    """

    def __init__(self, repo: ic.Repository, name: str) -> None:
        self.repo, self.name = repo, name
        self.session = repo.writable_session("main")
        self.written, self.tried, self.committed = [0] * ROWS, [0] * ROWS, [0] * ROWS

    def write(self, row: int) -> None:
        session = self.session
        self.tried[row] += 1
        try:
            sync(session.store.set(f"{self.name}/c/{row}", number(self.tried[row])))
        except (ic.SessionStateError, ic.ReadOnlyError):
            return  # another thread commits, or did: the number is in no session
        if session is self.session:
            self.written[row] = self.tried[row]

    def read(self, row: int) -> None:
        lowest = self.committed[row]
        buffer = sync(self.session.store.get(f"{self.name}/c/{row}", PROTOTYPE))
        self.require(row, 0 if buffer is None else int.from_bytes(buffer.to_bytes(), "little"), lowest)

    def look(self, row: int) -> None:
        session = self.session
        refs = workspace_of(session).chunk_refs(f"/{self.name}")
        assert len(refs) <= ROWS
        assert sync(_all(session.store.list_dir("")))[-1] == "zarr.json"
        assert len(session.status().updated_chunks.get(f"/{self.name}", [])) <= ROWS
        workspace_of(session).child_names("/")

    def rebase(self, row: int) -> None:
        with suppress(ic.SessionStateError, ic.ReadOnlyError):
            self.session.rebase(ic.BasicConflictSolver())

    def commit(self, row: int) -> None:
        session, lowest = self.session, self.written.copy()
        try:
            session.commit("numbers", rebase_with=ic.BasicConflictSolver())
        except (ic.SessionStateError, ic.ReadOnlyError):
            return  # another thread does, or nothing was written
        self.check(lowest)
        self.committed = lowest
        self.session = self.repo.writable_session("main")

    def check(self, lowest: list[int]) -> None:
        """What was committed before is there for somebody who comes now."""
        array = zarr.open_array(self.repo.readonly_session("main").store, path=self.name, mode="r")
        for row, value in enumerate(array[:].tolist()):
            self.require(row, value, lowest[row])

    def require(self, row: int, value: int, lowest: int) -> None:
        assert lowest <= value <= self.tried[row], f"{self.name}[{row}] is {value}, not in {lowest}…{self.tried[row]}"


async def _all(found: Any) -> list[Any]:
    return [name async for name in found]


def random_threads(path: str, seconds: float, seed: int) -> int:
    """Two teams of threads on one slow repository, with readers and forks between them; returns the operations."""
    storage = LatencyStorage(ic.local_filesystem_storage(path), read_latency_ms=2, write_latency_ms=2)
    repo = create(storage, {"x": (ROWS,), "y": (ROWS,)})
    teams = [_Team(repo, "x"), _Team(repo, "y")]
    deadline = time.monotonic() + seconds
    failures: list[BaseException] = []
    done = [0]

    def run(team: _Team, row: int, dice: random.Random) -> None:
        works = [team.write] * 8 + [team.read] * 4 + [team.look, team.rebase, team.commit]
        try:
            while time.monotonic() < deadline and not failures:
                dice.choice(works)(row)
                done[0] += 1
        except BaseException as error:
            failures.append(error)

    def come_and_go(dice: random.Random) -> None:
        try:
            while time.monotonic() < deadline and not failures:
                team = dice.choice(teams)
                if dice.random() < 0.3:
                    _forget_everything()
                team.check(team.committed.copy())
                time.sleep(dice.uniform(0, 0.02))
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(team, row, random.Random(f"{seed} {team.name} {row}")))
        for team in teams
        for row in range(4)
    ]
    threads += [threading.Thread(target=come_and_go, args=(random.Random(f"{seed} {n}"),)) for n in range(2)]
    for thread in threads:
        thread.start()
    dice = random.Random(seed)
    while time.monotonic() < deadline and not failures:
        time.sleep(dice.uniform(0.05, 0.3))
        _require_child_ends(lambda: _look_in_child(path))
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    for team in teams:
        team.commit(0)
        team.check(team.written if team.session.read_only else team.committed)
    return done[0]


def _look_in_child(path: str) -> None:
    """A reader of its own, in a process that was forked in the middle of everything."""
    session = ic.Repository.open(ic.local_filesystem_storage(path)).readonly_session("main")
    for name in ("x", "y"):
        for i in workspace_of(session).chunk_refs(f"/{name}").indices[:, 0].tolist():
            ref = workspace_of(session).locate_chunk(f"/{name}", (i,))
            assert ref is not None
            assert len(workspace_of(session).fetch_chunk(ref, 0, 8)) == 8


if __name__ == "__main__":
    import tempfile

    name, amount, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        where, seed = f"{folder}/repository", int(rest[0]) if rest else random.randrange(10**6)
        print("seed", seed, flush=True)
        match name:
            case "writes":
                writes_beside_whole_operations(int(amount), 2000)
            case "reads":
                reads_of_a_fresh_session(int(amount), 400)
            case "forks":
                forks_at_random_moments(where, int(amount), seed)
            case "threads":
                print(random_threads(where, float(amount), seed), "operations")
