"""Creating, opening, refs, ancestry, sessions: what a repository promises."""

from __future__ import annotations

import asyncio
import pickle
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository
from icechunk_engine.catalog import clock_check
from icechunk_engine.session import workspace_of


def write(repo: Repository, value: int, *, branch: str = "main", message: str = "change") -> str:
    session = repo.writable_session(branch)
    root = zarr.open_group(session.store, mode="a")
    array = root.require_array("a", shape=(10,), chunks=(5,), dtype="int64")
    array[:] = value
    return session.commit(message)


def read(session: ic.Session) -> list[int]:
    return np.asarray(zarr.open_array(session.store, path="a", mode="r")[:]).tolist()


def test_create_open_exists(storage: ic.Storage) -> None:
    assert not Repository.exists(storage)
    with pytest.raises(ic.RepositoryNotFoundError, match=r"Repository\.create"):
        Repository.open(storage)
    repo = Repository.create(storage)
    assert Repository.exists(storage)
    assert Repository.open(storage).list_branches() == repo.list_branches() == {"main"}
    with pytest.raises(ic.InvalidInputError, match=r"Repository\.open"):
        Repository.create(storage)
    assert Repository.open_or_create(storage).lookup_branch("main") == repo.lookup_branch("main")
    assert repo.spec_version == 2


def test_open_or_create_creates(storage: ic.Storage) -> None:
    repo = Repository.open_or_create(storage)
    assert repo.lookup_branch("main") == "1CECHNKREP0F1RSTCMT0"
    (initial,) = repo.ancestry(branch="main")
    assert initial.message == "Repository initialized"
    assert initial.parent_id is None


def test_a_place_with_other_objects_is_refused(storage: ic.Storage) -> None:
    storage.put("somebody-elses", b"data")
    with pytest.raises(ic.InvalidInputError, match="check_clean_root=False") as caught:
        Repository.create(storage)
    assert caught.value.kind == ErrorKind.PARENT_DIRECTORY_NOT_CLEAN
    assert not Repository.exists(storage)
    with pytest.raises(ic.InvalidInputError):
        Repository.open_or_create(storage)
    Repository.create(storage, check_clean_root=False)
    assert Repository.exists(storage)


def test_commit_and_time_travel(repo: Repository) -> None:
    first = write(repo, 1, message="one")
    between = datetime.now(UTC)
    second = write(repo, 2, message="two")
    assert [info.message for info in repo.ancestry(branch="main")] == ["two", "one", "Repository initialized"]
    assert [info.id for info in repo.ancestry(snapshot_id=first)][0] == first
    assert read(repo.readonly_session("main")) == [2] * 10
    assert read(repo.readonly_session(snapshot_id=first)) == [1] * 10
    assert read(repo.readonly_session("main", as_of=between)) == [1] * 10
    assert repo.readonly_session("main", as_of=datetime.now(UTC)).snapshot_id == second
    with pytest.raises(ic.SnapshotNotFoundError) as caught:
        repo.readonly_session("main", as_of=between - timedelta(days=1))
    assert caught.value.kind == ErrorKind.NO_SNAPSHOT_AT_TIME
    assert repo.lookup_snapshot(first).message == "one"
    history: list[Any] = asyncio.run(_collect(repo.async_ancestry(branch="main")))
    assert history[0].id == second


async def _collect[T](items) -> list[T]:  # type: ignore[no-untyped-def]
    return [item async for item in items]


def test_branches(repo: Repository) -> None:
    first = write(repo, 1)
    second = write(repo, 2)
    repo.create_branch("dev", first)
    assert repo.list_branches() == {"main", "dev"}
    assert repo.lookup_branch("dev") == first
    write(repo, 3, branch="dev")
    assert read(repo.readonly_session("main")) == [2] * 10
    assert read(repo.readonly_session("dev")) == [3] * 10
    with pytest.raises(ic.ConflictError) as conflict:
        repo.reset_branch("dev", second, from_snapshot_id=first)
    assert conflict.value.kind == ErrorKind.BRANCH_UPDATE_CONFLICT
    repo.reset_branch("dev", second)
    assert repo.lookup_branch("dev") == second
    with pytest.raises(ic.AlreadyExistsError):
        repo.create_branch("dev", first)
    repo.delete_branch("dev")
    with pytest.raises(ic.RefNotFoundError, match="'main'"):
        repo.lookup_branch("dev")
    with pytest.raises(ic.SessionStateError):
        repo.delete_branch("main")
    with pytest.raises(ic.SnapshotNotFoundError):
        repo.create_branch("other", "0" * 20)
    with pytest.raises(ic.InvalidInputError):
        repo.create_branch("other", "not an id")


def test_no_rebase_onto_another_line(repo: Repository) -> None:
    write(repo, 1)
    base = write(repo, 2)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[:] = 3
    repo.reset_branch("main", "1CECHNKREP0F1RSTCMT0")
    for attempt in (
        lambda: session.rebase(ic.ConflictDetector()),
        lambda: session.commit("rebased", rebase_with=ic.BasicConflictSolver()),
    ):
        with pytest.raises(ic.RebaseFailedError, match="was reset"):
            attempt()
    assert session.has_uncommitted_changes
    repo.reset_branch("main", base)
    session.commit("as if nothing had happened")
    assert read(repo.readonly_session("main")) == [3] * 10


def test_tags(repo: Repository) -> None:
    first = write(repo, 1)
    repo.create_tag("v1", first)
    write(repo, 2)
    assert repo.list_tags() == {"v1"}
    assert repo.lookup_tag("v1") == first
    assert read(repo.readonly_session(tag="v1")) == [1] * 10
    with pytest.raises(ic.AlreadyExistsError) as exists:
        repo.create_tag("v1", first)
    assert exists.value.kind == ErrorKind.TAG_ALREADY_EXISTS
    repo.delete_tag("v1")
    with pytest.raises(ic.RefNotFoundError, match="deleted"):
        repo.lookup_tag("v1")
    with pytest.raises(ic.AlreadyExistsError) as deleted:
        repo.create_tag("v1", first)
    assert deleted.value.kind == ErrorKind.TAG_PREVIOUSLY_DELETED


def test_exactly_one_ref(repo: Repository) -> None:
    with pytest.raises(ic.InvalidInputError, match="only one"):
        repo.readonly_session()
    with pytest.raises(ic.InvalidInputError, match="branch and tag"):
        repo.readonly_session("main", tag="v1")


def test_ops_log(repo: Repository) -> None:
    first = write(repo, 1)
    repo.create_tag("t", first)
    repo.create_branch("b", first)
    repo.set_metadata({"owner": "me"})
    kinds = [type(update.kind).__name__ for update in repo.ops_log()]
    assert kinds == ["MetadataChanged", "BranchCreated", "TagCreated", "NewCommit", "RepoInitialized"]
    log = list(repo.ops_log())
    assert log[0].backup_path is None
    assert all(update.backup_path for update in log[1:])
    assert log[3].kind.new_snap_id == first  # type: ignore[attr-defined]
    assert [update.updated_at for update in log] == sorted((update.updated_at for update in log), reverse=True)


def test_ops_log_continues_in_backups(storage: ic.Storage) -> None:
    repo = Repository.create(storage, ic.RepositoryConfig(num_updates_per_repo_info_file=3))
    tip = repo.lookup_branch("main")
    for i in range(10):
        repo.create_tag(f"t{i}", tip)
    names = [update.kind.name for update in repo.ops_log() if isinstance(update.kind, ic.UpdateType.TagCreated)]  # type: ignore[attr-defined]
    assert names == [f"t{i}" for i in reversed(range(10))]


def test_metadata_and_status(repo: Repository) -> None:
    repo.set_metadata({"a": 1})
    assert repo.update_metadata({"b": [1, None, "x"]}) == {"a": 1, "b": [1, None, "x"]}
    assert repo.metadata == {"a": 1, "b": [1, None, "x"]}
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    repo.set_status(ic.RepoStatus(ic.RepoAvailability.read_only, limited_availability_reason="moving house"))
    assert repo.status.availability == ic.RepoAvailability.read_only
    for attempt in (
        lambda: repo.writable_session("main"),
        lambda: session.commit("no"),
        lambda: repo.create_tag("t", repo.lookup_branch("main")),
        lambda: repo.set_metadata({}),
    ):
        with pytest.raises(ic.ReadOnlyError, match="moving house") as caught:
            attempt()
        assert caught.value.kind == ErrorKind.READ_ONLY_REPOSITORY
    repo.set_status(ic.RepoStatus(ic.RepoAvailability.online))
    session.commit("yes")


def test_commit_metadata(repo: Repository) -> None:
    repo.set_default_commit_metadata({"author": "me", "n": 1})
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    session.commit("m", {"n": 2, "nested": {"list": [1, 2.5, None, True, "ü"]}})
    (latest, _) = repo.ancestry(branch="main")
    assert latest.metadata == {"author": "me", "n": 2, "nested": {"list": [1, 2.5, None, True, "ü"]}}


def test_transaction_commits_on_success_only(repo: Repository) -> None:
    with repo.transaction("main", message="yes") as store:
        zarr.create_group(store)
    with pytest.raises(RuntimeError), repo.transaction("main", message="no") as store:
        zarr.create_group(store, path="lost")
        raise RuntimeError
    assert [info.message for info in repo.ancestry(branch="main")] == ["yes", "Repository initialized"]


def test_session_after_commit_is_read_only(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    snapshot_id = session.commit("done")
    assert session.read_only
    assert session.snapshot_id == snapshot_id
    assert session.branch is None
    with pytest.raises(ic.SessionStateError, match="commits are not allowed"):
        session.commit("again")


def test_nothing_to_commit(repo: Repository) -> None:
    session = repo.writable_session("main")
    with pytest.raises(ic.SessionStateError, match="allow_empty") as caught:
        session.commit("empty")
    assert caught.value.kind == ErrorKind.NO_CHANGES_TO_COMMIT
    session.commit("empty", allow_empty=True)


def test_create_and_delete_is_no_change(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_group(session.store, path="g")
    session.discard_changes()
    assert not session.has_uncommitted_changes
    zarr.create_array(session.store, name="a", shape=(2,), dtype="i4")
    workspace_of(session).delete_node("/")
    assert not session.has_uncommitted_changes


def test_two_writers_one_wins(repo: Repository) -> None:
    write(repo, 0)
    one, two = repo.writable_session("main"), repo.writable_session("main")
    for session, value in ((one, 1), (two, 2)):
        zarr.open_array(session.store, path="a", mode="r+")[:5] = value
    winner = one.commit("one")
    with pytest.raises(ic.ConflictError) as caught:
        two.commit("two")
    assert caught.value.actual_parent == winner
    assert caught.value.expected_parent == two.snapshot_id
    assert two.has_uncommitted_changes
    assert read(two)[:5] == [2] * 5
    assert read(repo.readonly_session("main"))[:5] == [1] * 5


def test_pickles(repo: Repository) -> None:
    write(repo, 7)
    reader = repo.readonly_session("main")
    assert read(pickle.loads(pickle.dumps(reader))) == [7] * 10
    assert pickle.loads(pickle.dumps(reader)) == reader
    assert pickle.loads(pickle.dumps(repo)).lookup_branch("main") == repo.lookup_branch("main")
    with pytest.raises(ValueError, match=r"session\.fork\(\)") as caught:
        pickle.dumps(repo.writable_session("main"))
    assert isinstance(caught.value, ic.IcechunkError)


def test_async_twins(storage: ic.Storage) -> None:
    async def scenario() -> str:
        repo = await Repository.create_async(storage)
        session = await repo.writable_session_async("main")
        workspace_of(session).set_metadata("/", b'{"zarr_format":3,"node_type":"group"}')
        snapshot_id = await session.commit_async("async")
        assert (await Repository.open_async(storage)).lookup_branch("main") == snapshot_id
        assert await repo.list_branches_async() == {"main"}
        return snapshot_id

    assert asyncio.run(scenario()) == Repository.open(storage).lookup_branch("main")


def test_reprs_are_readable(repo: Repository) -> None:
    write(repo, 1)
    session = repo.writable_session("main")
    assert "branch='main'" in repr(session)
    assert "main" in repo._repr_html_()
    assert "writable" in session._repr_html_()
    zarr.open_array(session.store, path="a", mode="r+")[0] = 5
    assert "/a: 1 chunk: (0,)" in repr(session.status())
    assert "/a" in session.status()._repr_html_()


def test_a_fast_clock_elsewhere_does_not_block_us(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3_600 * 10**9)
    monkeypatch.setattr(clock_check, "TOLERANCE_US", 7_200 * 10**6)  # its storage's clock is ahead, too
    ahead = write(repo, 1, message="from the future")
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="dated .* in the future"):
        later = write(repo, 2, message="now")
    times = [info.written_at for info in repo.ancestry(branch="main")]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == len(times)
    assert [info.id for info in repo.ancestry(branch="main")][:2] == [later, ahead]
