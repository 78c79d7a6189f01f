"""What copies report when a request fails, and while the session ends in another thread."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.buffer import default_buffer_prototype

import icechunk_engine as ic
from icechunk_engine import ErrorKind, ForkSession, Repository, Storage
from icechunk_engine._runtime.task_names import task_name
from icechunk_engine.session import workspace_of
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.faults import FailOnce, FaultHook, FaultStorage, Moment


def sent[T](thing: T) -> T:
    """Return the copy that another process would get."""
    copied: T = pickle.loads(pickle.dumps(thing))
    return copied


def opened(store: ic.IcechunkStore) -> zarr.Array[Any]:
    return zarr.open_array(store, path="a", mode="r+")


def values(store: ic.IcechunkStore) -> list[int]:
    found: list[int] = np.asarray(zarr.open_array(store, path="a", mode="r")[:]).tolist()
    return found


def write(session: ic.Session, chunk: int, value: int) -> None:
    """Write a chunk in this thread: an interrupt must not end zarr's event loop."""
    data = np.full(2, value, np.int64).tobytes()
    session.store.set_sync(f"a/c/{chunk}", default_buffer_prototype().buffer.from_bytes(data))


def new_session(storage: Storage) -> tuple[Repository, ic.Session]:
    repo = Repository.create(storage)
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(2,), dtype="int64", fill_value=0, compressors=None)
    return repo, repo.writable_session("main")


def fail(session: ic.Session, hook: FaultHook | None) -> FaultStorage:
    """Let requests of a session fail from now on."""
    storage = workspace_of(session).context.assets.given_storage
    assert isinstance(storage, FaultStorage)
    storage.hook, storage.n_calls = hook, 0
    return storage


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
@pytest.mark.parametrize("is_fork", [True, False])
def test_each_request_of_a_write_fails_once(moment: Moment, error: Any, is_fork: bool) -> None:
    """A write that failed is repeated. Then the session knows of it, and takes it once."""
    n_failed = 0
    for n in range(20):
        repo, session = new_session(FaultStorage(ic.in_memory_storage()))
        copy = sent(session.fork()) if is_fork else sent(session.store).session
        assert isinstance(copy, ForkSession)
        hook = FailOnce(n, moment, error or None)
        fail(copy, hook)
        try:
            write(copy, 0, 1)
        except (ic.StorageError, KeyboardInterrupt):
            write(copy, 0, 1)
        n_failed += hook.failed is not None
        opened(session.store)[2:4] = 2
        if is_fork:
            with pytest.raises(ic.SessionStateError, match="not merged"):
                session.commit("without the copy")
            session.merge(sent(copy), copy)
        session.commit("complete")
        assert values(repo.readonly_session("main").store)[:4] == [1, 1, 2, 2]
        assert [found.key for found in repo.storage.list("journals/")] == []
        if hook.failed is None:
            break
    assert n_failed


@pytest.mark.parametrize(("moment", "error"), [("before", None), ("after", None), ("after", KeyboardInterrupt())])
def test_each_request_of_the_session_fails_once(moment: Moment, error: Any) -> None:
    """Whatever step fails can be repeated."""
    n = 0
    while work_with_a_fault(FailOnce(n, moment, error)):
        n += 1
    assert n > 10


def work_with_a_fault(hook: FailOnce) -> bool:
    """Write through two copies and commit; repeat the step that fails. Returns True if one did."""
    repo, session = new_session(FaultStorage(ic.in_memory_storage()))
    fail(session, hook)

    def repeated[T](step: Callable[[], T]) -> T | str:
        try:
            return step()
        except (ic.StorageError, KeyboardInterrupt):
            assert hook.failed is not None
            return session.snapshot_id if session.read_only else step()  # or the commit has ended

    for chunk in range(2):
        copy = repeated(lambda: sent(session.store))
        assert isinstance(copy, ic.IcechunkStore)
        fail(copy.session, None)
        write(copy.session, chunk, chunk + 1)
        assert repeated(lambda: session.has_uncommitted_changes)
    snapshot_id = repeated(lambda: session.commit("x"))
    fail(session, None)
    assert repo.lookup_branch("main") == snapshot_id
    assert len(list(repo.ancestry(branch="main"))) == 3
    assert values(repo.readonly_session("main").store)[:4] == [1, 1, 2, 2]
    return hook.failed is not None


def test_a_copy_of_a_fork_reports_each_task() -> None:
    """One of two tasks came back, because it ran again elsewhere."""
    _, session = new_session(ic.in_memory_storage())
    fork = session.fork()
    copy, again = sent(fork), sent(fork)
    for name, store in (("one", copy.store), ("two", copy.store), ("one", again.store)):
        with task_name(name):
            opened(store)[slice(0, 2) if name == "one" else slice(2, 4)] = 1
    session.merge(sent(again))
    with pytest.raises(ic.SessionStateError, match="task two"):
        session.commit("incomplete")
    session.merge(copy)
    session.commit("complete")


@pytest.mark.parametrize("was_sent", [True, False])
def test_a_session_that_is_being_committed_sends_no_copies(was_sent: bool) -> None:
    """What such a copy wrote would be in no commit."""
    storage = FaultStorage(ic.in_memory_storage())
    repo, session = new_session(storage)
    opened(session.store)[:2] = 1
    if was_sent:
        opened(sent(session.store))[2:4] = 2
    refused: list[ErrorKind] = []

    def try_to_send() -> None:
        for act in (lambda: pickle.dumps(session.store), lambda: session.commit("y"), lambda: session.flush("y")):
            with pytest.raises(ic.SessionStateError) as caught:
                act()
            refused.append(caught.value.kind)

    def hook(n: int, call: StorageCall, moment: Moment) -> None:
        if moment == "after" and not refused and call.method in ("delete", "create", "put"):
            refused.append(ErrorKind.CONCURRENCY)
            thread = Thread(target=try_to_send)
            thread.start()
            thread.join()

    fail(session, hook)
    session.commit("x")
    assert refused == [ErrorKind.CONCURRENCY] * 4
    assert values(repo.readonly_session("main").store)[:4] == [1, 1, 2 * was_sent, 2 * was_sent]
    assert [found.key for found in repo.storage.list("journals/")] == []
