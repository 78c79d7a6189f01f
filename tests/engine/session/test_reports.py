"""Copies of a session's store: what they write comes back by the journal, whatever process they are in."""

from __future__ import annotations

import gc
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import ErrorKind, ForkSession, IcechunkStore, Repository
from icechunk_engine._runtime.task_names import task_name
from icechunk_engine.session import home_reports, workspace_of
from icechunk_engine.session.worker_reports import WorkerReports
from icechunk_engine.testing.counting import CountingStorage


def sent[T](thing: T) -> T:
    """Return the copy that another process would get."""
    copied: T = pickle.loads(pickle.dumps(thing))
    return copied


@pytest.fixture
def session(repo: Repository) -> ic.Session:
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(2,), dtype="int64", fill_value=0)
    return repo.writable_session("main")


def opened(store: IcechunkStore, path: str = "a") -> zarr.Array[Any]:
    return zarr.open_array(store, path=path, mode="r+")


def values(store: IcechunkStore, path: str = "a") -> list[int]:
    found: list[int] = np.asarray(zarr.open_array(store, path=path, mode="r")[:]).tolist()
    return found


def keys(repo: Repository, prefix: str = "journals/") -> list[str]:
    return [found.key for found in repo.storage.list(prefix)]


def test_what_copies_write_is_in_the_commit(repo: Repository, session: ic.Session) -> None:
    zarr.create_array(session.store, name="new", shape=(4,), chunks=(2,), dtype="int64")
    copies = [sent(session.store) for _ in range(4)]
    for i, copy in enumerate(copies):
        opened(copy)[2 * i : 2 * i + 2] = i + 1
        if i < 2:
            opened(copy, "new")[2 * i : 2 * i + 2] = i + 5
    assert values(session.store) == [1, 1, 2, 2, 3, 3, 4, 4]
    session.commit("all")
    reader = repo.readonly_session("main").store
    assert values(reader) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert values(reader, "new") == [5, 5, 6, 6]
    assert keys(repo) == []


@pytest.mark.parametrize(
    "look",
    [
        lambda s: s.has_uncommitted_changes,
        lambda s: not s.status().is_empty(),
        lambda s: s.chunk_type("/a", [0]) is ic.ChunkType.inline,
        lambda s: s.store.get_sync("a/c/0") is not None,
        lambda s: s.store._sync(s.store.exists("a/c/0")) if hasattr(s.store, "_sync") else bool(values(s.store)[0]),
        lambda s: values(s.fork().store)[0] == 1,
        lambda s: bool(s.merge() or s.store.get_sync("a/c/0")),
    ],
)
def test_the_session_collects_when_it_looks(session: ic.Session, look: Any) -> None:
    copy = sent(session.store)
    opened(copy)[:2] = 1
    assert look(session)


def test_large_edits_of_the_session_are_stored_once(session: ic.Session) -> None:
    big = zarr.create_array(session.store, name="big", shape=(2000,), chunks=(1,), dtype="int64", compressors=None)
    big[:] = 7
    dumped = pickle.dumps(session.store)
    assert len(dumped) < 4000
    assert pickle.dumps(session.store) == dumped
    copy = pickle.loads(dumped)
    assert values(copy, "big")[:2] == [7, 7]
    opened(copy, "big")[0] = 8
    assert values(session.store, "big")[:2] == [8, 7]


def test_a_copy_sees_what_others_made(session: ic.Session) -> None:
    """Cubed makes arrays in one task and opens them in another."""
    maker, writer, reader = (sent(session.store) for _ in range(3))
    assert values(writer) == [0] * 8  # has looked before anything was there
    zarr.create_group(maker, path="g").create_array("b", shape=(4,), chunks=(2,), dtype="int64")
    opened(writer, "g/b")[:2] = 3
    assert values(reader, "g/b") == [3, 3, 0, 0]
    opened(maker).resize((10,))
    writer.set_sync("a/c/4", zarr.buffer.default_buffer_prototype().buffer.from_bytes(b"x"))
    assert values(session.store, "g/b") == [3, 3, 0, 0]
    assert opened(session.store).shape == (10,)


def test_one_task_after_the_other_changes_a_chunk(session: ic.Session) -> None:
    for step in range(5):
        copy = sent(session.store)
        array = opened(copy)
        array[0] = int(np.asarray(array[0])) + 1 if step else 1
        array[1] = step
    assert values(session.store)[:2] == [5, 4]


@pytest.mark.parametrize("reads_again", [True, False])
def test_a_look_between_the_read_and_the_write_of_a_chunk(session: ic.Session, reads_again: bool) -> None:
    """The copy has got the other half of the chunk, but its values were computed without it."""
    opened(session.store)[:2] = 9
    one, two = opened(sent(session.store)), opened(sent(session.store))
    read = np.asarray(one[:2])
    two[0] = 1
    one[4:6]  # nothing is stored there, so this looks at the journal
    if reads_again:
        read = np.asarray(one[:2])
    one[:2] = [read[0], 2]
    if reads_again:
        assert values(session.store)[:2] == [1, 2]
        one[:2] = 3  # it has seen its own values
        session.merge()
    else:
        with pytest.raises(ic.SessionStateError, match=r"'/a'.*\(0,\)"):
            session.merge()


@pytest.mark.parametrize("opens_again", [True, False])
def test_a_look_after_an_array_was_opened(session: ic.Session, opens_again: bool) -> None:
    copies = sent(session.store), sent(session.store)
    one, two = (opened(copy) for copy in copies)
    two.attrs["two"] = 2
    one[4:6]
    if opens_again:
        one = opened(copies[0])
    one.attrs["one"] = 1
    if opens_again:
        assert dict(opened(session.store).attrs) == {"one": 1, "two": 2}
    else:
        with pytest.raises(ic.SessionStateError, match="changed to different values"):
            session.merge()


def test_two_tasks_write_halves_of_a_chunk(repo: Repository, session: ic.Session) -> None:
    opened(session.store)[:2] = 9
    left, right = sent(session.store), sent(session.store)
    for copy in (left, right):
        assert values(copy)[:2] == [9, 9]  # both have read the chunk before it is written
    with task_name("left"):
        opened(left)[0] = 1
    with task_name("right"):
        opened(right)[1] = 2
    for act in (session.status, lambda: values(session.store), lambda: session.commit("x"), session.merge):
        with pytest.raises(
            ic.SessionStateError, match=r"task (left|right) and task (left|right).*'/a'.*\(0,\)"
        ) as caught:
            act()
        assert caught.value.kind == ErrorKind.MERGE_FAILED
    assert len(list(repo.ancestry(branch="main"))) == 2
    opened(sent(session.store))[2:4] = 3  # the session still takes reports
    session.merge(on_overlap="last")
    assert sorted(values(session.store)[:2]) in ([1, 9], [2, 9])
    session.commit("settled")
    assert values(repo.readonly_session("main").store)[2:4] == [3, 3]


def test_discarding_drops_the_reports_and_ends_the_copies(repo: Repository, session: ic.Session) -> None:
    one, two = sent(session.store), sent(session.store)
    fork = sent(session.fork())
    opened(one)[:2] = 1
    opened(fork.store)[4:6] = 1
    session.discard_changes()
    assert not session.has_uncommitted_changes
    with pytest.raises(ic.SessionStateError, match="too late"):
        opened(two)[2:4] = 2
    opened(sent(session.store))[2:4] = 3
    assert values(session.store) == [0, 0, 3, 3, 0, 0, 0, 0]
    session.commit("later")


def test_copies_write_fill_values_over_each_other(repo: Repository, session: ic.Session) -> None:
    """zarr deletes such a chunk. In an array that is new and that others have, the deletion must be an edit."""
    zarr.create_array(session.store, name="new", shape=(4,), chunks=(2,), dtype="int64", fill_value=0)
    early, later = sent(session.store), sent(session.store)
    opened(early, "new")[:2] = 1
    with pytest.raises(ic.SessionStateError, match="'/new'"):
        opened(later, "new")[:2] = 0
        session.status()
    session.merge(on_overlap="last")
    assert values(session.store, "new")[:2] == [0, 0]
    fork = session.fork()
    opened(fork.store, "new")[2:] = 1
    opened(session.store, "new")[2:] = 0
    with pytest.raises(ic.SessionStateError, match="'/new'"):
        session.merge(fork)


def test_a_task_replaces_what_an_earlier_task_wrote(repo: Repository, session: ic.Session) -> None:
    """The second one is sent after the first one has ended."""
    for value in (1, 2):
        with task_name(f"write-{value}"):
            opened(sent(session.store))[:2] = value
    session.commit("twice")
    assert values(repo.readonly_session("main").store)[:2] == [2, 2]


def test_a_block_that_fails_undoes_what_copies_wrote_in_it(session: ic.Session) -> None:
    before, during = sent(session.store), sent(session.store)
    opened(before)[:2] = 1
    with pytest.raises(ZeroDivisionError), session.all_or_nothing():
        opened(session.store)[2:4] = 2
        opened(during)[4:6] = 3
        assert values(session.store) == [1, 1, 2, 2, 3, 3, 0, 0]
        opened(during)[6:8] = 4
        raise ZeroDivisionError
    assert values(session.store) == [1, 1] + [0] * 6
    opened(sent(session.store))[6:8] = 5
    assert values(session.store) == [1, 1, 0, 0, 0, 0, 5, 5]


def test_a_write_after_the_commit_is_refused(repo: Repository, session: ic.Session) -> None:
    early, late = sent(session.store), sent(session.store)
    opened(early)[:2] = 1
    session.commit("early")
    with pytest.raises(ic.SessionStateError, match="too late") as caught:
        opened(late)[2:4] = 2
    assert caught.value.kind == ErrorKind.SESSION_ENDED
    assert keys(repo) == []
    assert values(repo.readonly_session("main").store) == [1, 1] + [0] * 6


def test_a_commit_that_fails_takes_reports_again(repo: Repository, session: ic.Session) -> None:
    copy = sent(session.store)
    opened(copy)[:2] = 1
    with repo.transaction("main", message="other") as store:
        opened(store)[:2] = 9
    with pytest.raises(ic.ConflictError):
        session.commit("lost")
    opened(copy)[2:4] = 2
    session.commit("again", rebase_with=ic.BasicConflictSolver(on_chunk_conflict=ic.VersionSelection.UseOurs))
    assert values(repo.readonly_session("main").store)[:4] == [1, 1, 2, 2]


def test_a_rebase_ends_the_copies(repo: Repository, session: ic.Session) -> None:
    copy = sent(session.store)
    opened(copy)[:2] = 1
    with repo.transaction("main", message="other") as store:
        opened(store)[6:] = 9
    session.rebase(ic.ConflictDetector())
    with pytest.raises(ic.SessionStateError, match="too late"):
        opened(copy)[2:4] = 2
    opened(sent(session.store))[4:6] = 3
    session.commit("rebased")
    assert values(repo.readonly_session("main").store) == [1, 1, 0, 0, 3, 3, 9, 9]


# --- forks -----------------------------------------------------------------------------------------------------------


def test_a_store_of_a_fork_reports_to_the_fork(repo: Repository, session: ic.Session) -> None:
    fork = session.fork()
    opened(sent(fork.store))[:2] = 1
    assert values(session.store)[:2] == [0, 0]
    with pytest.raises(ic.SessionStateError, match="not merged") as caught:
        session.commit("too early")
    assert caught.value.kind == ErrorKind.COMMIT_NOT_ALLOWED
    session.merge(fork)
    assert values(session.store)[:2] == [1, 1]
    session.commit("merged")
    assert keys(repo) == []


def test_a_fork_whose_copies_wrote_and_did_not_come_back(repo: Repository, session: ic.Session) -> None:
    fork = session.fork()
    reading, writing = sent(fork), sent(fork)
    assert values(reading.store)[:2] == [0, 0]
    session.merge(fork)  # nobody wrote
    with task_name("store-7"):
        opened(writing.store)[:2] = 1
    with pytest.raises(ic.SessionStateError, match=r"task store-7.*returned") as caught:
        session.merge(fork)
    assert caught.value.kind == ErrorKind.MERGE_FAILED
    opened(session.store)[2:4] = 2
    with pytest.raises(ic.SessionStateError, match=r"task store-7.*allow_unmerged=True"):
        session.commit("incomplete")
    session.merge(fork, sent(writing))
    session.commit("complete")
    assert values(repo.readonly_session("main").store)[:4] == [1, 1, 2, 2]


def test_another_run_of_the_task_came_back(repo: Repository, session: ic.Session) -> None:
    fork = session.fork()
    killed, again = sent(fork), sent(fork)
    for copy in (killed, again):
        with task_name("store-7"):
            opened(copy.store)[:2] = 1
    session.merge(sent(again))
    session.commit("complete")


def test_edits_can_be_left_out_on_purpose(repo: Repository, session: ic.Session) -> None:
    opened(sent(session.fork()).store)[:2] = 1
    opened(session.store)[2:4] = 2
    session.commit("without", allow_unmerged=True)
    assert values(repo.readonly_session("main").store)[:4] == [0, 0, 2, 2]
    assert keys(repo) == []


def test_nested_copies(repo: Repository, session: ic.Session) -> None:
    """A worker sends stores and forks to workers of its own."""
    worker = sent(session.store)
    opened(sent(worker))[:2] = 1
    inner: ForkSession = worker.session.fork()
    opened(sent(inner.store))[2:4] = 2
    worker.session.merge(inner)
    returned = sent(worker.session.fork())
    opened(returned.store)[4:6] = 3
    with pytest.raises(ic.SessionStateError, match="not merged"):
        session.commit("incomplete")
    worker.session.merge(sent(returned))
    session.commit("complete")
    assert values(repo.readonly_session("main").store) == [1, 1, 2, 2, 3, 3, 0, 0]


def test_the_store_of_a_fork_is_not_sent_on(repo: Repository, session: ic.Session) -> None:
    """Nobody would collect what is written through it. It is refused before anything is written."""
    worker = sent(session.fork())
    for fork in (worker, worker.fork()):
        with pytest.raises(ic.SessionStateError, match=r"cannot be sent on.*fork\.fork\(\)"):
            pickle.dumps(fork.store)
    inner = sent(worker.fork())
    opened(inner.store)[:2] = 1
    worker.merge(sent(inner))
    session.merge(sent(worker))
    session.commit("nested")
    assert values(repo.readonly_session("main").store)[:2] == [1, 1]


def test_reports_and_returned_copies_are_the_same_edits(session: ic.Session) -> None:
    copy = sent(session.store)
    opened(copy)[:2] = 1
    returned = copy.session
    assert isinstance(returned, ForkSession)
    session.merge(sent(returned), returned)
    assert values(session.store)[:2] == [1, 1]
    opened(session.store)[:2] = 2
    session.merge(returned)
    assert values(session.store)[:2] == [2, 2]


# --- many reports ----------------------------------------------------------------------------------------------------


def test_collected_reports_are_combined(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal stays short, the values are right, and copies see everything that was combined."""
    monkeypatch.setattr(home_reports, "MAX_SEPARATE", 10)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(100,), chunks=(1,), dtype="int64", compressors=None)
    early = sent(session.store)
    zarr.create_group(early, path="g")
    for i in range(100):
        with task_name(f"task-{i}"):
            opened(sent(session.store))[i] = i + 1
        if i % 12 == 0:
            session.status()
            assert len(keys(repo)) < 30
    assert values(early) == list(range(1, 101))
    with task_name("other"):
        opened(sent(session.store))[99] = 0
    session.status()
    assert values(session.store) == [*range(1, 100), 0]
    late = early  # has not seen the last change
    with task_name("late"):
        late.set_sync("a/c/99", zarr.buffer.default_buffer_prototype().buffer.from_bytes(b"x" * 8))
    with pytest.raises(ic.SessionStateError, match=r"task other and task late.*\(99,\)"):
        session.commit("conflict")
    session.merge(on_overlap="last")
    session.commit("all")
    assert values(repo.readonly_session("main").store)[:99] == list(range(1, 100))
    assert keys(repo) == []


def test_a_copy_that_lists_while_the_home_combines(session: ic.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_reports, "MAX_SEPARATE", 3)
    reader = sent(session.store)
    for i in range(3):
        opened(sent(session.store))[2 * i : 2 * i + 2] = i + 1
    reports = workspace_of(reader.session).exchange
    assert isinstance(reports, WorkerReports)
    journal = reports.journal
    fetch = journal.fetch_entries

    def combine_first(names: list[str]) -> Any:
        session.status()
        return fetch(names)

    monkeypatch.setattr(journal, "fetch_entries", combine_first)
    assert values(reader) == [1, 1, 2, 2, 3, 3, 0, 0]


# --- requests and warnings -------------------------------------------------------------------------------------------


def test_requests() -> None:
    storage = CountingStorage(ic.in_memory_storage())
    repo = Repository.create(storage)
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(2,), dtype="int64", fill_value=0)
    session = repo.writable_session("main")
    assert values(session.store) == [0] * 8
    storage.reset()
    fork = session.fork()
    pickle.loads(pickle.dumps(fork))
    assert storage.n_requests == 0
    dumped = pickle.dumps(session.store)
    assert storage.requests == {"put": 1, "list": 1}  # the record, and a look at reports
    pickle.dumps(session.store)
    copy = pickle.loads(dumped)
    assert storage.requests == {"put": 1, "list": 2}
    array = opened(copy)
    of_copy = workspace_of(copy.session).context.assets.given_storage
    assert isinstance(of_copy, CountingStorage)
    of_copy.reset()
    array[:2] = 1
    assert of_copy.requests == {"create": 1, "info": 1}  # an entry, and a look at the record
    storage.reset()
    assert session.has_uncommitted_changes
    assert storage.requests == {"list": 1, "get": 1}
    session.status()
    assert storage.requests == {"list": 2, "get": 1}
    storage.reset()
    session.commit("x")
    journal = [call.method for call in storage.calls if "journals/" in str(call.keys)]
    assert journal == ["delete", "list", "delete", "list", "delete"]


@pytest.mark.parametrize("kind", ["session", "fork", "committed", "merged", "discarded", "copy", "unused"])
def test_edits_that_nobody_committed_warn(repo: Repository, session: ic.Session, kind: str) -> None:
    lost: ic.Session = session.fork() if kind in ("fork", "merged") else repo.writable_session("main")
    if kind != "unused":
        opened(lost.store)[:2] = 1
    if kind == "committed":
        lost.commit("x")
    elif kind == "merged":
        assert isinstance(lost, ForkSession)
        session.merge(lost)
    elif kind == "discarded":
        lost.discard_changes()
    elif kind == "copy":
        copy = sent(lost.store)
        opened(copy)[2:4] = 1
        lost.commit("x")
        lost = copy.session
    del session
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del lost
        if kind == "copy":
            del copy
        gc.collect()
    found = [one for one in caught if "uncommitted edits" in str(one) and repo.storage.identity in str(one)]
    assert len(found) == (kind in ("session", "fork"))


def test_workspaces_of_ordinary_sessions_exchange_nothing(session: ic.Session) -> None:
    assert workspace_of(session).exchange is None
    session.fork()
    assert workspace_of(session).exchange is None
