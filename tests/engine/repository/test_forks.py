"""Forks: pickled to workers, changed there, merged at home."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine as ic
from icechunk_engine import ErrorKind, ForkSession, Repository
from icechunk_engine.ids import SnapshotId
from icechunk_engine.session import SessionMode, workspace_of
from icechunk_engine.session.carried import CarriedSession
from icechunk_engine.session.ledger import ForkOrigin, ForkPoint, Reporting
from icechunk_engine.storage.base import FlushPromise
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.transaction.edit_sources import EditSource


@pytest.fixture
def session(repo: Repository) -> ic.Session:
    """A writable session on a repository with an array of 8 chunks."""
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(16,), chunks=(2,), dtype="int64", fill_value=0)
    return repo.writable_session("main")


def copy(fork: ForkSession) -> ForkSession:
    return pickle.loads(pickle.dumps(fork))


def write(session: ic.Session, start: int, stop: int, value: int) -> None:
    zarr.open_array(session.store, path="a", mode="r+")[start:stop] = value


def values(session: ic.Session) -> list[int]:
    return np.asarray(zarr.open_array(session.store, path="a", mode="r")[:]).tolist()


def test_fork_merge_commit(repo: Repository, session: ic.Session) -> None:
    forks = [copy(session.fork()) for _ in range(8)]
    for i, fork in enumerate(forks):
        write(fork, 2 * i, 2 * i + 2, i + 1)
    session.merge(*map(copy, forks))
    session.commit("parallel")
    assert values(repo.readonly_session("main")) == [i // 2 + 1 for i in range(16)]


def test_fork_of_a_changed_session_sees_the_changes(repo: Repository, session: ic.Session) -> None:
    write(session, 0, 4, 5)
    zarr.create_array(session.store, name="new", shape=(4,), chunks=(2,), dtype="int64", fill_value=0)[:2] = 8
    fork = copy(session.fork())
    assert values(fork)[:4] == [5] * 4
    zarr.open_array(fork.store, path="new", mode="r+")[2:] = 9
    write(fork, 2, 4, 6)
    session.merge(fork)
    assert values(session)[:6] == [5, 5, 6, 6, 0, 0]
    session.commit("both")
    reader = repo.readonly_session("main")
    assert values(reader)[:6] == [5, 5, 6, 6, 0, 0]
    assert np.asarray(zarr.open_array(reader.store, path="new", mode="r")[:]).tolist() == [8, 8, 9, 9]


def test_fork_resizes_an_uncommitted_array(repo: Repository, session: ic.Session) -> None:
    """The official library loses the resize and the chunks beyond the old shape."""
    zarr.create_array(session.store, name="new", shape=(2,), chunks=(2,), dtype="int64", fill_value=0)[:] = 1
    fork = copy(session.fork())
    array = zarr.open_array(fork.store, path="new", mode="r+")
    array.resize((6,))
    array[2:] = 2
    session.merge(fork)
    session.commit("grown")
    new = zarr.open_array(repo.readonly_session("main").store, path="new", mode="r")
    assert np.asarray(new[:]).tolist() == [1, 1, 2, 2, 2, 2]


def test_forking_a_clean_session_and_pickling_make_no_request() -> None:
    storage = CountingStorage(ic.in_memory_storage())
    repo = Repository.create(storage)
    session = repo.writable_session("main")
    storage.reset()
    fork = session.fork()
    state = pickle.dumps(fork)
    pickle.loads(state)
    assert storage.n_requests == 0
    assert len(state) < 6000


def test_forks_of_forks(repo: Repository, session: ic.Session) -> None:
    child = copy(session.fork())
    write(child, 0, 2, 1)
    grandchild = copy(child.fork())
    assert values(grandchild)[:2] == [1, 1]
    write(grandchild, 2, 4, 2)
    child.merge(grandchild)
    session.merge(child)
    session.commit("family")
    assert values(repo.readonly_session("main"))[:6] == [1, 1, 2, 2, 0, 0]


def test_deletions_travel(repo: Repository, session: ic.Session) -> None:
    write(session, 0, 16, 3)
    session.commit("filled")
    session = repo.writable_session("main")
    zarr.create_group(session.store, path="g/h")
    fork = copy(session.fork())
    workspace_of(fork).delete_chunk("/a", (0,))
    workspace_of(fork).delete_node("/g/h")
    session.merge(fork)
    session.commit("less")
    reader = repo.readonly_session("main")
    assert values(reader)[:4] == [0, 0, 3, 3]
    assert workspace_of(reader).get_node("/g") is not None
    assert workspace_of(reader).get_node("/g/h") is None


def test_a_fork_deletes_an_array_that_the_parent_wrote_before(repo: Repository, session: ic.Session) -> None:
    zarr.create_array(session.store, name="t", shape=(2,), chunks=(2,), dtype="int64")[:] = 1
    fork = copy(session.fork())
    workspace_of(fork).delete_node("/t")
    session.merge(fork)
    assert workspace_of(session).get_node("/t") is None
    write(session, 0, 2, 1)
    session.commit("gone")


def test_two_forks_create_the_same_group(repo: Repository, session: ic.Session) -> None:
    one, two = copy(session.fork()), copy(session.fork())
    for fork, name in ((one, "x"), (two, "y")):
        group = zarr.open_group(fork.store, path="shared", mode="a")
        group.create_array(name, shape=(1,), dtype="int8")[:] = 1
    session.merge(one, two)
    session.commit("met")
    members = {
        path for path, _ in zarr.open_group(repo.readonly_session("main").store, mode="r", path="shared").members()
    }
    assert members == {"x", "y"}


def test_last_merged_wins(session: ic.Session) -> None:
    one, two = copy(session.fork()), copy(session.fork())
    write(one, 0, 2, 1)
    write(two, 0, 2, 2)
    with pytest.raises(ic.SessionStateError, match=r"wrote the same chunks of array '/a'.*\(0,\)"):
        session.merge(one, two)
    assert not session.has_uncommitted_changes
    session.merge(one, two, on_overlap="last")
    assert values(session)[:2] == [2, 2]


def resize(fork: ForkSession, n: int) -> None:
    zarr.open_array(fork.store, path="a", mode="r+").resize((n,))


def create(fork: ForkSession, dtype: str) -> None:
    zarr.create_array(fork.store, name="new", shape=(1,), dtype=dtype)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param(lambda f: resize(f, 20), lambda f: resize(f, 30), id="two sizes"),
        pytest.param(lambda f: create(f, "i4"), lambda f: create(f, "f8"), id="two arrays at one path"),
        pytest.param(
            lambda f: workspace_of(f).delete_node("/a"), lambda f: write(f, 0, 2, 1), id="deleted and written"
        ),
        pytest.param(
            lambda f: write(f, 0, 2, 1), lambda f: workspace_of(f).delete_node("/a"), id="written and deleted"
        ),
        pytest.param(lambda f: resize(f, 20), lambda f: workspace_of(f).delete_node("/a"), id="resized and deleted"),
        pytest.param(lambda f: workspace_of(f).delete_node("/a"), lambda f: resize(f, 20), id="deleted and resized"),
    ],
)
def test_a_failed_merge_changes_nothing(
    session: ic.Session, one: Callable[[ForkSession], None], two: Callable[[ForkSession], None]
) -> None:
    write(session, 14, 16, 7)
    first, second = copy(session.fork()), copy(session.fork())
    one(first)
    two(second)
    before = repr(session.status())
    with pytest.raises(ic.SessionStateError) as caught:
        session.merge(first, second)
    assert caught.value.kind == ErrorKind.MERGE_FAILED
    assert "/a" in str(caught.value) or "/new" in str(caught.value)
    assert repr(session.status()) == before
    session.merge(first)


def test_only_own_forks_merge(repo: Repository, session: ic.Session) -> None:
    fork = session.fork()
    write(fork, 0, 2, 1)
    write(session, 2, 4, 1)
    session.commit("moved on")
    later = repo.writable_session("main")
    for stranger in (fork, repo.writable_session("main"), repo.readonly_session("main")):
        with pytest.raises(ic.SessionStateError) as caught:
            later.merge(stranger)  # type: ignore[arg-type]
        assert caught.value.kind == ErrorKind.MERGE_NOT_ALLOWED
    assert not later.has_uncommitted_changes
    with pytest.raises(ic.ReadOnlyError):
        repo.readonly_session("main").merge(fork)


@pytest.mark.parametrize(
    "end", [lambda f: f.commit("x"), lambda f: f.flush("x"), lambda f: f.rebase(ic.ConflictDetector())]
)
def test_a_fork_cannot_end(session: ic.Session, end: Callable[[ForkSession], None]) -> None:
    fork = session.fork()
    write(fork, 0, 2, 1)
    with pytest.raises(ic.SessionStateError, match="merge") as caught:
        end(fork)
    assert caught.value.kind == ErrorKind.COMMIT_NOT_ALLOWED


def test_a_read_only_session_cannot_fork(repo: Repository) -> None:
    with pytest.raises(ic.SessionStateError) as caught:
        repo.readonly_session("main").fork()
    assert caught.value.kind == ErrorKind.CANNOT_FORK_READ_ONLY_SESSION


@given(
    writes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), st.integers(1, 99)), max_size=30),
    through_pickle=st.booleans(),
)
def test_forks_equal_a_serial_run(writes: list[tuple[int, int, int]], through_pickle: bool) -> None:
    """Whatever chunks several forks write, merging them in order equals writing fork after fork in one session."""
    repo = Repository.create(ic.in_memory_storage())
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(16,), chunks=(2,), dtype="int64", fill_value=0)
    parallel, serial = repo.writable_session("main"), repo.writable_session("main")
    forks = [parallel.fork() for _ in range(4)]
    for worker, chunk, value in writes:
        write(forks[worker], 2 * chunk, 2 * chunk + 2, value)
    for worker in range(4):
        for other, chunk, value in writes:
            if other == worker:
                write(serial, 2 * chunk, 2 * chunk + 2, value)
    parallel.merge(*(map(copy, forks) if through_pickle else forks), on_overlap="last")
    assert values(parallel) == values(serial)
    assert repr(parallel.status()) == repr(serial.status())


def test_attributes_of_users_travel(session: ic.Session) -> None:
    fork = session.fork()
    vars(fork)["label"] = "tile 7"
    assert vars(copy(fork))["label"] == "tile 7"
    assert vars(copy(copy(fork)))["label"] == "tile 7"


def test_copies_with_other_edits_are_told_apart(session: ic.Session) -> None:
    """dask and xarray take equal tokens for equal content."""
    fork = session.fork()
    write(fork, 0, 2, 1)
    one, other = copy(fork), copy(fork)
    assert one == other == fork
    assert one.__dask_tokenize__() == other.__dask_tokenize__() == fork.__dask_tokenize__()
    for value, edited in enumerate((one, other, fork)):
        write(edited, 2, 4, value)
    assert len({edited.__dask_tokenize__() for edited in (one, other, fork)}) == 3
    assert one != other
    assert one != fork
    assert copy(one) == one


@pytest.mark.parametrize("deleted_first", [True, False])
@pytest.mark.parametrize("change", ["chunks", "metadata"])
def test_a_deletion_and_a_change_disagree(session: ic.Session, deleted_first: bool, change: str) -> None:
    deleting, changing = session.fork(), session.fork()
    workspace_of(deleting).delete_node("/a")
    if change == "chunks":
        write(changing, 0, 2, 1)
    else:
        zarr.open_array(changing.store, path="a", mode="r+").attrs["units"] = "K"
    forks = [deleting, changing] if deleted_first else [changing, deleting]
    with pytest.raises(ic.SessionStateError, match="/a") as caught:
        session.merge(*forks)
    assert caught.value.kind == ErrorKind.MERGE_FAILED
    assert not session.has_uncommitted_changes
    assert workspace_of(session).get_node("/a") is not None


def test_a_session_merged_into_itself_is_as_it_was(session: ic.Session) -> None:
    write(session, 0, 2, 1)
    fork = session.fork()
    write(fork, 2, 4, 2)
    for itself in (session, fork):
        before, token = values(itself), itself.__dask_tokenize__()
        itself.merge(itself)  # type: ignore[arg-type]
        assert values(itself) == before
        assert itself.__dask_tokenize__() == token
    session.merge(fork, session, fork)  # type: ignore[arg-type]
    assert values(session)[:4] == [1, 1, 2, 2]


def test_a_fork_may_be_merged_again(repo: Repository, session: ic.Session) -> None:
    fork = session.fork()
    write(fork, 0, 2, 1)
    create(fork, "i4")
    session.merge(fork)
    before = values(session)
    session.merge(fork, copy(fork))
    assert values(session) == before
    write(fork, 2, 4, 2)
    session.merge(fork)
    session.commit("again")
    assert values(repo.readonly_session("main"))[:4] == [1, 1, 2, 2]


@pytest.mark.parametrize("wrong", [None, [], "fork", object()])
def test_merge_takes_sessions(session: ic.Session, wrong: object) -> None:
    fork = session.fork()
    write(fork, 0, 2, 1)
    for others in ((wrong,), (fork, wrong), (fork.store,)):
        with pytest.raises(TypeError, match=r"merge takes forks, as in session\.merge"):
            session.merge(*others)
    assert not session.has_uncommitted_changes


# --- what travels ----------------------------------------------------------------------------------------------------


def test_pickles_are_small(tmp_path: Path) -> None:
    storage = ic.local_filesystem_storage(tmp_path)
    repo = Repository.create(storage)
    base = len(pickle.dumps(storage))
    session = repo.writable_session("main")
    fork = session.fork()
    assert len(pickle.dumps(fork)) <= base + 500
    assert len(pickle.dumps(fork.store)) <= base + 500
    assert len(pickle.dumps(session.store)) <= base + 500
    assert len(pickle.dumps(repo.readonly_session("main"))) <= base + 300


def test_pickles_of_one_snapshot_are_equal(tmp_path: Path) -> None:
    """dask derives the names of its tasks from them."""
    repo = Repository.create(ic.local_filesystem_storage(tmp_path))
    with repo.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=(4,), dtype="i4")
    first, second = (Repository.open(ic.local_filesystem_storage(tmp_path)).readonly_session("main") for _ in range(2))
    again = pickle.loads(pickle.dumps(second))
    for one, other in ((first, second), (first, again)):
        assert pickle.dumps(one) == pickle.dumps(other)
        assert pickle.dumps(one.store) == pickle.dumps(other.store)
        arrays = [zarr.open_array(session.store, path="a", mode="r") for session in (one, other)]
        assert pickle.dumps(arrays[0]) == pickle.dumps(arrays[1])


def test_every_field_travels(repo: Repository) -> None:
    """A field that is added later must not be left behind."""
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    point = ForkPoint(
        origin_id=SnapshotId(bytes(range(12))),
        origin=ForkOrigin(token="token", fork_id="fork"),
        seen=(EditSource("writer", 3, "task"), EditSource("other", 4)),
        flush_promise=FlushPromise("promise"),
        is_for_graph=True,
        lamport=6,
        seen_up_to={"writer": 7},
    )
    workspace = workspace_of(session)
    carried = CarriedSession(
        context=workspace.context,
        mode=SessionMode.writable,
        state=workspace.state,
        edits_token=("lineage", 5),
        unchanged_writes=("/a",),
        fork_point=point,
        reporting=Reporting.edits,
    )
    again = pickle.loads(pickle.dumps(carried))
    assert again.state.snapshot_id == workspace.state.snapshot_id
    assert again.state.changes.new_nodes == workspace.state.changes.new_nodes
    assert again.state.changes.sources.entries == workspace.state.changes.sources.entries
    for field in dataclasses.fields(carried):
        assert field.name == "state" or getattr(again, field.name) == getattr(carried, field.name)
    for field in dataclasses.fields(point):
        assert getattr(point, field.name) not in (field.default, {}, 0), "give it a value in this test"
