"""Writers on one host leave the flush of their chunks to the commit of the process that forked."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from icechunk_engine import (
    ConflictDetector,
    ErrorKind,
    ForkSession,
    IcechunkStore,
    Repository,
    Session,
    StorageError,
)
from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.local import disk_sync, durability, flush_domain

pytestmark = pytest.mark.skipif(
    not disk_sync.SYNCFS_REPORTS_ERRORS, reason="before Linux 5.8, syncfs reports no errors"
)

WORKER = """
import os, pickle, sys, zarr
from icechunk_engine.storage.local import disk_sync, flush_domain
flush_domain._REPORT_ERRORS |= {disk_sync.kind_of_file_system(os.getcwd())}
if os.environ.get("BOOT"):
    flush_domain._boot_id = lambda: os.environ["BOOT"]
synced = []
fsync, syncfs = os.fsync, disk_sync.syncfs
os.fsync = lambda fd: synced.append("fsync") or fsync(fd)
disk_sync.syncfs = lambda fd: synced.append("syncfs") or syncfs(fd)
for line in sys.stdin:
    sent, start, value = line.split()
    target = pickle.loads(bytes.fromhex(sent))
    is_store = hasattr(target, "session")
    store = target if is_store else target.store
    zarr.open_array(store, path="a", mode="r+")[int(start):int(start) + 200] = int(value)
    print("00" if is_store else pickle.dumps(target).hex(), len(synced), flush=True)
"""


class Worker:
    """Another process, which writes 2 chunks through each fork or store that it gets."""

    def __init__(self, cwd: Path, boot_id: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "BOOT": boot_id},
        )

    def write(self, fork: ForkSession, start: int, value: int) -> tuple[ForkSession, int]:
        """Return the fork that the worker sends back, and how often it has called fsync and syncfs so far."""
        sent, n_synced = self._send(fork, start, value)
        back: ForkSession = pickle.loads(sent)
        return back, n_synced

    def write_to_store(self, store: IcechunkStore, start: int, value: int) -> int:
        """Return how often the worker has called fsync and syncfs so far."""
        return self._send(store, start, value)[1]

    def _send(self, target: ForkSession | IcechunkStore, start: int, value: int) -> tuple[bytes, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{pickle.dumps(target).hex()} {start} {value}\n")
        self._process.stdin.flush()
        sent, n_synced = self._process.stdout.readline().split()
        return bytes.fromhex(sent), int(n_synced)

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.getbasetemp())
    yield worker
    worker.close()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    kinds = {*flush_domain._REPORT_ERRORS, disk_sync.kind_of_file_system(str(tmp_path))}
    monkeypatch.setattr(flush_domain, "_REPORT_ERRORS", frozenset(kinds))  # the tests also run on an overlay
    repo = Repository.create(LocalStorage(tmp_path / "repo"))
    with repo.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=(1000,), chunks=(100,), dtype="i8", compressors=None)
    return repo


@pytest.fixture
def synced(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of fsync and syncfs in this process: for fsync the folder of the file."""
    events: list[str] = []
    fsync, syncfs = os.fsync, disk_sync.syncfs

    def recorded_fsync(fd: int) -> None:
        events.append(os.path.basename(os.path.dirname(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def recorded_syncfs(fd: int) -> bool:
        events.append("*")
        return syncfs(fd)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(disk_sync, "syncfs", recorded_syncfs)
    return events


def values(repo: Repository) -> list[int]:
    assert isinstance(repo.storage, LocalStorage)
    again = Repository.open(LocalStorage(repo.storage.root))
    return np.asarray(zarr.open_array(again.readonly_session("main").store, path="a", mode="r")[::100]).tolist()


def refused(session: Session) -> str:
    with pytest.raises(StorageError) as caught:
        session.commit("edits", rebase_with=ConflictDetector())
    assert caught.value.kind is ErrorKind.NOT_DURABLE
    return str(caught.value)


def failing_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system reports one error, to each descriptor that was open."""
    syncfs, told = disk_sync.syncfs, list[int]()

    def fail(fd: int) -> bool:
        if not told:
            told.append(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return syncfs(fd)

    monkeypatch.setattr(disk_sync, "syncfs", fail)


def test_tasks_do_not_wait_for_the_disk_and_the_commit_waits_once(
    repo: Repository, worker: Worker, synced: list[str]
) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    synced.clear()
    before = worker.write(fork, 0, 1)[1]
    for start in (0, 200, 400, 600, 800):
        back, n_synced = worker.write(fork, start, start + 1)
        session.merge(back)
    assert n_synced == before == 0
    assert synced == []
    session.commit("edits", allow_unmerged=True)  # the first copy was not merged
    assert synced.count("*") == 1
    assert "chunks" not in synced
    assert values(repo) == [value + 1 for value in (0, 0, 200, 200, 400, 400, 600, 600, 800, 800)]


def test_an_error_in_between_fails_the_commit(
    repo: Repository, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repo.writable_session("main")
    before, fork = repo.lookup_branch("main"), session.fork()
    session.merge(worker.write(fork, 0, 1)[0])
    zarr.open_array(session.store, path="a", mode="r+")[500:600] = 7
    failing_once(monkeypatch)
    for _ in range(2):
        message = refused(session)
        assert "/a (0,)" in message
        assert "/a (1,)" in message
        assert repo.lookup_branch("main") == before
    zarr.open_array(session.store, path="a", mode="r+")[:200] = 2
    if "/a (5,)" in message:  # it may have been lost, too
        zarr.open_array(session.store, path="a", mode="r+")[500:600] = 7
    session.commit("edits")
    assert values(repo) == [2, 2, 0, 0, 0, 7, 0, 0, 0, 0]


def test_after_an_error_new_forks_are_fine(repo: Repository, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    first = repo.writable_session("main")
    first.merge(worker.write(first.fork(), 0, 1)[0])
    failing_once(monkeypatch)
    refused(first)
    second = repo.writable_session("main")
    second.merge(worker.write(second.fork(), 0, 3)[0])
    second.commit("again")
    assert values(repo)[:2] == [3, 3]


def test_another_session_that_hears_of_the_error_does_not_hide_it(
    repo: Repository, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, other = repo.writable_session("main"), repo.writable_session("main")
    session.merge(worker.write(session.fork(), 0, 1)[0])
    other.merge(worker.write(other.fork(), 400, 2)[0])
    failing_once(monkeypatch)
    refused(other)
    assert "/a (0,)" in refused(session)
    session.discard_changes()
    session.merge(worker.write(session.fork(), 0, 3)[0])
    session.commit("again")
    assert values(repo)[:2] == [3, 3]


def test_a_rebase_keeps_what_was_left(repo: Repository, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    session = repo.writable_session("main")
    session.merge(worker.write(session.fork(), 0, 1)[0])
    with repo.transaction("main", message="other") as store:
        zarr.create_group(store, path="other")
    session.rebase(ConflictDetector())
    failing_once(monkeypatch)
    assert "/a (0,)" in refused(session)


def test_what_was_left_passes_through_forks_of_forks(
    repo: Repository, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    inner = fork.fork()
    fork.merge(worker.write(inner, 0, 1)[0])
    session.merge(pickle.loads(pickle.dumps(fork)))
    failing_once(monkeypatch)
    assert "/a (0,)" in refused(session)


def test_a_writer_in_another_domain_flushes_before_it_reports(
    repo: Repository, synced: list[str], tmp_path: Path
) -> None:
    session = repo.writable_session("main")
    elsewhere = Worker(tmp_path, boot_id="another machine")
    try:
        back, n_synced = elsewhere.write(session.fork(), 0, 1)
    finally:
        elsewhere.close()
    assert n_synced >= 3  # two chunks and their folder
    session.merge(back)
    synced.clear()
    session.commit("edits")
    assert "*" not in synced
    assert values(repo)[:2] == [1, 1]


def test_the_process_that_forked_flushes_when_it_pickles(repo: Repository, synced: list[str]) -> None:
    """Another process may commit, and it never promised anything."""
    fork = repo.writable_session("main").fork()
    zarr.open_array(fork.store, path="a", mode="r+")[:200] = 1
    synced.clear()
    pickle.dumps(fork)
    assert synced.count("chunks") == 2


def test_another_process_commits_what_was_left(repo: Repository, worker: Worker, synced: list[str]) -> None:
    """The process that promised may be gone, so each chunk is asked for its error."""
    session = repo.writable_session("main")
    back, _ = worker.write(session.fork(), 0, 1)
    assert isinstance(repo.storage, LocalStorage)
    durability.unsynced_files(repo.storage.root).forget()  # as in a process that never promised
    session.merge(back)
    synced.clear()
    session.commit("edits")
    assert synced.count("chunks") == 2
    assert values(repo)[:2] == [1, 1]


def test_writers_to_a_store_leave_the_flush_too(repo: Repository, worker: Worker, synced: list[str]) -> None:
    session = repo.writable_session("main")
    before = worker.write_to_store(session.store, 0, 1)
    assert worker.write_to_store(session.store, 200, 2) == before == 0
    synced.clear()
    session.commit("edits")
    assert synced.count("*") == 1
    assert values(repo)[:4] == [1, 1, 2, 2]


def test_an_error_fails_the_commit_of_reported_chunks(
    repo: Repository, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repo.writable_session("main")
    worker.write_to_store(session.store, 0, 1)
    failing_once(monkeypatch)
    for _ in range(2):
        assert "/a (0,)" in refused(session)
    zarr.open_array(session.store, path="a", mode="r+")[:200] = 2
    session.commit("edits")
    assert values(repo)[:3] == [2, 2, 0]


def test_a_writer_to_a_store_in_another_domain_flushes_before_it_reports(repo: Repository, tmp_path: Path) -> None:
    session = repo.writable_session("main")
    elsewhere = Worker(tmp_path, boot_id="another machine")
    try:
        assert elsewhere.write_to_store(session.store, 0, 1) >= 4  # two chunks, their folder, and the report
    finally:
        elsewhere.close()
    session.commit("edits")
    assert values(repo)[:2] == [1, 1]


def test_a_chunk_that_is_known_to_be_lost_is_not_reported(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush in the background may have received the error."""
    session = repo.writable_session("main")
    copy: IcechunkStore = pickle.loads(pickle.dumps(session.store))
    put = LocalStorage.put

    def lost(storage: LocalStorage, key: str, data: bytes, *, atomic: bool = True) -> None:
        put(storage, key, data, atomic=atomic)
        if key.startswith("chunks/"):
            storage._unsynced.lost[f"{storage.root}/{key}"] = OSError(errno.EIO, "bad disk")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", lost)
        with pytest.raises(StorageError, match=r"/a \(0,\).*bad disk|bad disk.*/a \(0,\)"):
            zarr.open_array(copy, path="a", mode="r+")[:100] = 1
    assert not session.has_uncommitted_changes
    zarr.open_array(copy, path="a", mode="r+")[:100] = 2
    session.commit("edits")
    assert values(repo)[:2] == [2, 0]
