"""A failure at every storage call of every operation: all is old or new afterwards, and a repetition works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository, Session
from icechunk_engine.session import workspace_of
from icechunk_engine.storage.wrappers import StorageCall, WrapperStorage
from icechunk_engine.testing.faults import FailOnce, FaultStorage, Moment

MOMENTS: tuple[Moment, ...] = ("before", "after")


def copied(storage: ic.Storage) -> ic.Storage:
    """The same objects at a place that no cache knows."""
    copy = ic.in_memory_storage()
    for info in storage.list():
        copy.put(info.key, storage.get(info.key))
    return copy


def tree(session: Session) -> dict[str, Any]:
    """Every node with its metadata document and values."""
    found: dict[str, Any] = {}
    for node in workspace_of(session).list_nodes():
        values = zarr.open_array(session.store, path=node.path, mode="r")[...] if node.is_array else None
        found[node.path] = node.user_data, None if values is None else np.asarray(values).tolist()
    return found


def state(storage: ic.Storage) -> Any:
    """Everything that can be seen of the repository but ids and times; None if there is none."""
    if not Repository.exists(storage):
        return None
    repo = Repository.open(copied(storage))
    branches = {}
    for name in sorted(repo.list_branches()):
        history = [(info.message, info.metadata) for info in repo.ancestry(branch=name)]
        branches[name] = history, tree(repo.readonly_session(name))
    kinds = [type(update.kind).__name__ for update in repo.ops_log()]
    status = repo.status.availability, repo.status.limited_availability_reason
    config = Repository.fetch_config(storage)
    return branches, sorted(repo.list_tags()), kinds, status, repo.metadata, config and config.to_dict()


@dataclass(frozen=True)
class Operation:
    """Something to be interrupted: ``begin`` prepares, and what it returns is run with faults."""

    begin: Callable[[Repository], tuple[Callable[[], Any], Session | None]]


def start(storage: ic.Storage) -> None:
    """A repository with two commits, a branch and a tag."""
    repo = Repository.create(storage)
    with repo.transaction("main", message="start") as store:
        root = zarr.create_group(store)
        for name in ("a", "b"):
            root.create_array(name, shape=(4, 200), chunks=(1, 200), dtype="int64", compressors=None)[:] = 1
    repo.create_branch("dev", repo.lookup_branch("main"))
    repo.create_tag("v1", repo.lookup_branch("main"))
    with repo.transaction("main", message="second") as store:
        zarr.open_array(store, path="a", mode="r+")[1] = 2


def edited(repo: Repository) -> Session:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[0] = 3
    zarr.create_array(session.store, name="new", shape=(3,), chunks=(1,), dtype="int8")[:] = 4
    return session


def committing(repo: Repository) -> tuple[Callable[[], Any], Session]:
    session = edited(repo)
    return lambda: session.commit("interrupted"), session


def amending(repo: Repository) -> tuple[Callable[[], Any], Session]:
    session = edited(repo)
    return lambda: session.amend("interrupted"), session


def flushing(repo: Repository) -> tuple[Callable[[], Any], Session]:
    session = edited(repo)
    return lambda: session.flush("interrupted"), session


def moving(repo: Repository) -> tuple[Callable[[], Any], Session]:
    session = repo.rearrange_session("main")
    session.move("/a", "/c")
    return lambda: session.commit("interrupted"), session


def _overtaken(repo: Repository) -> Session:
    session = edited(repo)
    with repo.transaction("main", message="faster") as store:
        zarr.open_array(store, path="a", mode="r+")[3] = 9
        zarr.open_array(store, path="b", mode="r+")[3] = 9
    return session


def rebasing(repo: Repository) -> tuple[Callable[[], Any], Session]:
    session = _overtaken(repo)
    return lambda: session.rebase(ic.ConflictDetector()), session


def rebasing_and_committing(repo: Repository) -> tuple[Callable[[], Any], Session]:
    session = _overtaken(repo)
    return lambda: session.commit("interrupted", rebase_with=ic.ConflictDetector()), session


def merging(repo: Repository) -> tuple[Callable[[], Any], Session]:
    session = edited(repo)

    def run() -> None:
        fork = session.fork()
        zarr.open_array(fork.store, path="a", mode="r+")[2] = 8
        session.merge(fork)

    return run, session


def simple(call: Callable[[Repository], Any]) -> Operation:
    return Operation(lambda repo: (lambda: call(repo), None))


def read_only(repo: Repository) -> None:
    repo.set_status(ic.RepoStatus(ic.RepoAvailability.read_only, limited_availability_reason="move"))


OPERATIONS = {
    "open": simple(lambda repo: workspace_of(Repository.open(repo.storage).readonly_session("main")).get_node("/a")),
    "read": simple(lambda repo: tree(repo.readonly_session("dev"))),
    "commit": Operation(committing),
    "amend": Operation(amending),
    "flush": Operation(flushing),
    "move": Operation(moving),
    "rebase": Operation(rebasing),
    "rebase and commit": Operation(rebasing_and_committing),
    "fork and merge": Operation(merging),
    "create tag": simple(lambda repo: repo.create_tag("v2", repo.lookup_branch("main"))),
    "delete tag": simple(lambda repo: repo.delete_tag("v1")),
    "create branch": simple(lambda repo: repo.create_branch("new", repo.lookup_branch("dev"))),
    "delete branch": simple(lambda repo: repo.delete_branch("dev")),
    "reset branch": simple(
        lambda repo: repo.reset_branch("main", repo.lookup_tag("v1"), from_snapshot_id=repo.lookup_branch("main"))
    ),
    "set status": simple(read_only),
    "set metadata": simple(lambda repo: repo.set_metadata({"owner": "me"})),
    "update metadata": simple(lambda repo: repo.update_metadata({"owner": "me"})),
    "set flag": simple(lambda repo: repo.set_feature_flag("create_tag", False)),
    "save config": simple(lambda repo: repo.reopen(ic.RepositoryConfig(inline_chunk_threshold_bytes=7)).save_config()),
}


def prepared(operation: Operation, source: ic.Storage) -> tuple[FaultStorage, Callable[[], Any], Session | None]:
    storage = FaultStorage(copied(source))
    run, session = operation.begin(Repository.open(storage))
    storage.n_calls = 0
    return storage, run, session


@pytest.mark.parametrize("name", OPERATIONS)
def test_old_or_new_and_can_be_repeated(name: str) -> None:
    operation, source = OPERATIONS[name], ic.in_memory_storage()
    start(source)
    storage, run, session = prepared(operation, source)
    old = state(storage.inner)
    before = tree(session) if session is not None else None
    storage.n_calls = 0
    run()
    n_calls = storage.n_calls
    new = state(storage.inner)
    assert n_calls > 0
    after = tree(session) if session is not None else None
    for n in range(n_calls):
        for moment in MOMENTS:
            storage, run, session = prepared(operation, source)
            storage.hook = hook = FailOnce(n, moment)
            raised = False
            try:
                run()
            except ic.IcechunkError:
                raised = True
            assert hook.failed is not None or not raised
            storage.hook = None
            found = state(storage.inner)
            where = f"{moment} call {n}: {hook.failed}"
            assert found == (old if raised else new), where
            if raised:
                if session is not None:
                    assert not session.read_only, where
                    assert session.has_uncommitted_changes, where
                    assert tree(session) == before, where
                run()
                assert state(storage.inner) == new, where
            if session is not None:
                assert tree(session) == after, where
                assert session.read_only == (new != old), where


def test_creation_can_be_repeated() -> None:
    counted = FaultStorage(ic.in_memory_storage())
    Repository.create(counted)
    for n in range(counted.n_calls):
        for moment in MOMENTS:
            storage = FaultStorage(ic.in_memory_storage(), FailOnce(n, moment))
            raised = False
            try:
                Repository.create(storage)
            except ic.IcechunkError:
                raised = True
            storage.hook = None
            assert Repository.exists(storage.inner) != raised
            if raised:
                Repository.create(storage)
            start_message = [info.message for info in Repository.open(copied(storage.inner)).ancestry(branch="main")]
            assert start_message == ["Repository initialized"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupt_leaves_the_session_as_it_was(moment: Moment) -> None:
    """Not only errors of the storage: the user's own interrupt, anywhere."""
    source = ic.in_memory_storage()
    start(source)
    storage, run, _ = prepared(OPERATIONS["rebase and commit"], source)
    run()
    new = state(storage.inner)
    for n in range(storage.n_calls):
        storage, run, session = prepared(OPERATIONS["rebase and commit"], source)
        assert session is not None
        before = tree(session)
        storage.n_calls = 0

        def interrupt(i: int, call: Any, when: Moment, n: int = n) -> None:
            if (i, when) == (n, moment):
                raise KeyboardInterrupt

        storage.hook = interrupt
        with pytest.raises(KeyboardInterrupt):
            run()
        storage.hook = None
        if state(storage.inner) != new:
            assert tree(session) == before
        run()  # also where the swap had taken place: nothing is committed twice
        assert state(storage.inner) == new
        assert session.read_only


class Silence:
    """A hook: the ``n``-th swap takes place, and from then on nothing is heard of the storage."""

    def __init__(self) -> None:
        self.began = False

    def __call__(self, n: int, call: StorageCall, moment: Moment) -> None:
        self.began = self.began or (call.method == "replace" and moment == "after")
        if self.began:
            raise ic.StorageError("no answer: try again", ic.ErrorKind.OBJECT_STORE)


ENDINGS = ["commit", "amend", "move", "rebase and commit"]


def gone_silent(name: str) -> tuple[FaultStorage, Callable[[], Any], Session, Any]:
    """An operation whose swap took place without an answer, ready to be repeated, and the state that it left."""
    source = ic.in_memory_storage()
    start(source)
    storage, run, session = prepared(OPERATIONS[name], source)
    assert session is not None
    old = state(storage.inner)
    storage.hook = Silence()
    with pytest.raises(ic.StorageError, match="no answer"):
        run()
    storage.hook = None
    assert state(storage.inner) != old
    return storage, run, session, state(storage.inner)


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with others"])
@pytest.mark.parametrize("name", ENDINGS)
def test_a_commit_that_nobody_can_tell_of_is_not_made_twice(name: str, others: bool) -> None:
    storage, run, session, new = gone_silent(name)
    tip = Repository.open(storage.inner).lookup_branch("main")
    if others:
        with Repository.open(storage.inner).transaction("main", message="later") as store:
            zarr.create_group(store, path="later")
        new = state(storage.inner)
    run()
    assert state(storage.inner) == new
    assert session.snapshot_id == tip
    assert session.read_only
    assert not session.has_uncommitted_changes


@pytest.mark.parametrize("name", ["commit", "amend", "rebase and commit"])
def test_edits_after_a_commit_that_nobody_can_tell_of_are_not_passed_over(name: str) -> None:
    storage, run, session, new = gone_silent(name)
    zarr.create_group(session.store, path="late")
    with pytest.raises(ic.ConflictError, match="an earlier commit of this session succeeded"):
        run()
    assert session.has_uncommitted_changes
    assert state(storage.inner) == new


def test_a_commit_that_nobody_can_tell_of_is_not_rebased() -> None:
    storage, run, session, new = gone_silent("commit")
    with pytest.raises(ic.ConflictError, match="Call commit again"):
        session.rebase(ic.ConflictDetector())
    run()
    assert session.read_only
    assert state(storage.inner) == new


class Impatient(WrapperStorage):
    """Its user gives up at the end of a commit's turn, when the swap has taken place."""

    gives_up = False

    @contextmanager
    def commit_queue(self) -> Iterator[None]:
        with super().commit_queue():
            yield
        if self.gives_up:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["commit", "amend", "move"])
def test_an_interrupt_right_after_the_swap(name: str) -> None:
    source = ic.in_memory_storage()
    start(source)
    storage = Impatient(source)
    run, session = OPERATIONS[name].begin(Repository.open(storage))
    assert session is not None
    storage.gives_up = True
    with pytest.raises(KeyboardInterrupt):
        run()
    storage.gives_up = False
    new = state(source)
    run()
    assert state(source) == new
    assert session.read_only
