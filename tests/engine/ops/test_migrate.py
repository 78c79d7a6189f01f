"""Upgrading from spec version 1 to 2: complete, restartable, or not begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository, UpdateType, upgrade_icechunk_repository
from icechunk_engine.format import layout
from icechunk_engine.format.snapshot_table import SnapshotRecord
from icechunk_engine.ids import SnapshotId
from icechunk_engine.ops.migrate import Refs, upgraded_repo_info
from icechunk_engine.storage import Version
from icechunk_engine.storage.wrappers import StorageCall, WrapperStorage
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.faults import FailOnce, FaultStorage

ROOT_ID = "1CECHNKREP0F1RSTCMT0"


def write(repo: Repository, value: int, branch: str = "main") -> str:
    session = repo.writable_session(branch)
    root = zarr.open_group(session.store, mode="a")
    root.require_array("a", shape=(10,), chunks=(5,), dtype="int64")[:] = value
    return session.commit(f"{value}")


def build(storage: ic.Storage) -> Repository:
    repo = Repository.create(storage, ic.RepositoryConfig(inline_chunk_threshold_bytes=8), spec_version=1)
    first = write(repo, 1)
    repo.create_branch("dev", first)
    repo.create_tag("t", write(repo, 2, "dev"))
    repo.create_tag("gone", first)
    repo.delete_tag("gone")
    write(repo, 3)
    return repo


def state(repo: Repository) -> dict[str, Any]:
    """Everything that one can see of a repository of either version."""
    found: dict[str, Any] = {"config": repo.config, "tags": {name: repo.lookup_tag(name) for name in repo.list_tags()}}
    for branch in repo.list_branches():
        found[branch] = [
            (
                info,
                np.asarray(zarr.open_array(repo.readonly_session(snapshot_id=info.id).store, path="a", mode="r")[:]),
            )
            for info in repo.ancestry(branch=branch)
            if info.id != ROOT_ID
        ]
    return found


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name in ("config", "tags"):
            assert value == other[name]
            continue
        assert [info for info, _ in value] == [info for info, _ in other[name]]
        for (_, mine), (_, theirs) in zip(value, other[name], strict=True):
            assert np.array_equal(mine, theirs)


def objects(storage: ic.Storage) -> dict[str, bytes]:
    return {found.key: storage.get(found.key) for found in storage.list()}


def v1_files(storage: ic.Storage) -> set[str]:
    return {key for key in objects(storage) if key.startswith(layout.REFS) or key == layout.CONFIG_YAML}


def test_upgrade(storage: ic.Storage) -> None:
    repo = build(storage)
    repo.set_default_commit_metadata({"by": "me"})
    before, files = state(repo), objects(storage)
    upgraded = upgrade_icechunk_repository(repo, dry_run=False)
    assert upgraded.spec_version == Repository.fetch_spec_version(storage) == 2
    assert_same_state(state(upgraded), before)
    assert_same_state(state(Repository.open(storage)), before)
    assert v1_files(storage) == set()
    immutable = {key: data for key, data in files.items() if not key.startswith((layout.REFS, layout.CONFIG_YAML))}
    assert {key: data for key, data in objects(storage).items() if key != layout.REPO} == immutable
    with pytest.raises(ic.AlreadyExistsError) as caught:
        upgraded.create_tag("gone", ROOT_ID)
    assert caught.value.kind == ErrorKind.TAG_PREVIOUSLY_DELETED
    assert upgrade_icechunk_repository(repo, dry_run=False).spec_version == 2  # the old handle, once more: no harm
    upgraded.set_status(ic.RepoStatus(ic.RepoAvailability.read_only))
    upgraded.set_status(ic.RepoStatus(ic.RepoAvailability.online))
    upgraded.set_metadata({"now": "possible"})
    tip = write(upgraded, 4)
    assert upgraded.lookup_snapshot(tip).metadata == {"by": "me"}
    assert upgraded.diff(from_tag="t", to_tag="t").is_empty()
    assert set(upgraded.diff(from_snapshot_id=ROOT_ID, to_branch="main").new_arrays) == {"/a"}


def test_dry_run_writes_nothing(storage: ic.Storage) -> None:
    repo = build(storage)
    before = objects(storage)
    assert upgrade_icechunk_repository(repo, dry_run=True).spec_version == 1
    assert objects(storage) == before
    write(repo, 5)


def test_keeping_the_old_files(storage: ic.Storage) -> None:
    repo = build(storage)
    old = v1_files(storage)
    upgraded = upgrade_icechunk_repository(repo, dry_run=False, delete_unused_v1_files=False)
    assert v1_files(storage) == old
    write(upgraded, 4)
    assert v1_files(storage) == old
    again = upgrade_icechunk_repository(upgraded, dry_run=True)
    assert v1_files(storage) == old
    again = upgrade_icechunk_repository(upgraded, dry_run=False)
    assert v1_files(storage) == set()
    assert again.lookup_branch("main") == upgraded.lookup_branch("main")


def test_ops_log(storage: ic.Storage) -> None:
    repo = build(storage)
    upgraded = upgrade_icechunk_repository(repo, dry_run=False)
    log = list(upgraded.ops_log())
    assert type(log[0].kind) is UpdateType.RepoMigrated
    assert type(log[-1].kind) is UpdateType.RepoInitialized
    counts = [
        sum(type(update.kind) is kind for update in log) for kind in (UpdateType.NewCommit, UpdateType.TagDeleted)
    ]
    assert counts == [3, 1]
    times = [update.updated_at for update in log]
    assert all(newer > older for newer, older in zip(times, times[1:], strict=False))
    for i in range(5):
        write(Repository.open(storage, ic.RepositoryConfig(num_updates_per_repo_info_file=3)), 10 + i)
    assert len(list(upgraded.ops_log())) == len(log) + 5


def test_who_opened_it_before_cannot_write_any_more(storage: ic.Storage) -> None:
    repo = build(storage)
    for delete in (False, True):
        stale = Repository.open(storage)
        session = stale.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+")[:] = 9
        upgraded = upgrade_icechunk_repository(repo, dry_run=False, delete_unused_v1_files=delete)
        before = objects(storage)
        tip = upgraded.lookup_branch("main")
        attempts: list[Callable[[], Any]] = [
            lambda session=session: session.commit("late"),  # type: ignore[misc]
            lambda session=session: session.rebase(ic.ConflictDetector()) or session.commit("late"),  # type: ignore[misc]
            lambda stale=stale: stale.create_branch("late", ROOT_ID),  # type: ignore[misc]
            lambda stale=stale: stale.reset_branch("dev", ROOT_ID),  # type: ignore[misc]
            lambda stale=stale: stale.delete_branch("dev"),  # type: ignore[misc]
            lambda stale=stale: stale.create_tag("late", ROOT_ID),  # type: ignore[misc]
            lambda stale=stale: stale.delete_tag("t"),  # type: ignore[misc]
            lambda stale=stale: stale.save_config(),  # type: ignore[misc]
        ]
        if delete:
            attempts += [stale.list_branches, stale.list_tags]
        for attempt in attempts:
            with pytest.raises(ic.SessionStateError, match=r"Repository\.open") as caught:
                attempt()
            assert caught.value.kind == ErrorKind.INVALID_REPOSITORY_MIGRATION
        assert session.has_uncommitted_changes
        assert {key: data for key, data in objects(storage).items() if key in before and not key.startswith("s")} == {
            key: data for key, data in before.items() if not key.startswith("s")
        }
        assert upgraded.lookup_branch("main") == tip
        if not delete:
            storage.delete([layout.REPO])  # back to spec 1, as the documentation says
            assert Repository.open(storage).spec_version == 1


def test_nothing_to_upgrade(storage: ic.Storage) -> None:
    repo = Repository.create(storage)
    before = objects(storage)
    with pytest.raises(ic.SessionStateError, match="already has spec version 2") as caught:
        upgrade_icechunk_repository(repo, dry_run=False)
    assert caught.value.kind == ErrorKind.INVALID_REPOSITORY_MIGRATION
    assert objects(storage) == before


@pytest.mark.parametrize("what", ["branch", "tag"])
def test_refs_that_lead_nowhere(storage: ic.Storage, what: str) -> None:
    repo = build(storage)
    key = (layout.branch_ref_key if what == "branch" else layout.tag_ref_key)("bad")
    storage.put(key, b'{"snapshot":"%s"}' % str(SnapshotId.random()).encode())
    before = objects(storage)
    with pytest.raises(ic.SessionStateError, match=f"{what} 'bad' leads to snapshot") as caught:
        upgrade_icechunk_repository(repo, dry_run=False)
    assert caught.value.kind == ErrorKind.INVALID_REPOSITORY_MIGRATION
    assert objects(storage) == before
    (repo.delete_branch if what == "branch" else repo.delete_tag)("bad")
    upgrade_icechunk_repository(repo, dry_run=False)


def test_damaged_snapshots_matter_only_where_a_ref_leads(storage: ic.Storage) -> None:
    repo = build(storage)
    storage.put(layout.snapshot_key(SnapshotId.random()), b"half a file")
    storage.put(f"{layout.SNAPSHOTS}README", b"no snapshot")
    upgrade_icechunk_repository(repo, dry_run=False)


class MeddlingStorage(WrapperStorage):
    """Somebody else commits just before ``repo`` is created, or just after."""

    def __init__(self, inner: ic.Storage, meddle: Callable[[], object], *, after: bool) -> None:
        super().__init__(inner)
        self.meddle, self.after = meddle, after

    def create(self, key: str, data: bytes) -> Version:
        if key == layout.REPO and not self.after:
            self.meddle()
        version = super().create(key, data)
        if key == layout.REPO and self.after:
            self.meddle()
        return version


@pytest.mark.parametrize("after", [False, True])
def test_somebody_commits_meanwhile(storage: ic.Storage, after: bool) -> None:
    repo = build(storage)
    new = write(repo, 6)
    repo.reset_branch("main", repo.lookup_snapshot(new).parent_id or "")
    ref = layout.branch_ref_key("main")

    def commit_by_a_program_that_knows_no_spec_2() -> None:
        storage.put(ref, b'{"snapshot":"%s"}' % new.encode())

    meddled = Repository.open(MeddlingStorage(storage, commit_by_a_program_that_knows_no_spec_2, after=after))
    with pytest.raises(ic.ConflictError, match="Stop all writers"):
        upgrade_icechunk_repository(meddled, dry_run=False)
    again = Repository.open(storage)
    assert again.spec_version == 1
    assert again.lookup_branch("main") == new
    assert upgrade_icechunk_repository(again, dry_run=False).lookup_branch("main") == new


def test_somebody_upgrades_meanwhile(storage: ic.Storage) -> None:
    repo = build(storage)
    other = Repository.open(storage)

    def upgrade() -> None:
        upgrade_icechunk_repository(other, dry_run=False, delete_unused_v1_files=False)

    meddled = Repository.open(MeddlingStorage(storage, upgrade, after=False))
    with pytest.raises(ic.SessionStateError, match="another program has just upgraded") as caught:
        upgrade_icechunk_repository(meddled, dry_run=False)
    assert caught.value.kind == ErrorKind.INVALID_REPOSITORY_MIGRATION
    assert_same_state(state(upgrade_icechunk_repository(repo, dry_run=False)), state(Repository.open(storage)))


def test_somebody_wrote_to_the_old_files_afterwards(storage: ic.Storage) -> None:
    repo = build(storage)
    upgrade_icechunk_repository(repo, dry_run=False, delete_unused_v1_files=False)
    repo_file = storage.get(layout.REPO)
    storage.delete([layout.REPO])  # a program that knows no spec 2 does not see it
    late = write(Repository.open(storage), 8)
    storage.put(layout.REPO, repo_file)
    before = objects(storage)
    for handle in (repo, Repository.open(storage)):
        with pytest.raises(ic.SessionStateError, match=f"branch 'main' leads to snapshot {late}"):
            upgrade_icechunk_repository(handle, dry_run=False)
    assert objects(storage) == before
    storage.delete([layout.branch_ref_key("main")])
    upgrade_icechunk_repository(repo, dry_run=False)
    assert v1_files(storage) == set()


def test_a_fault_at_each_request_then_again() -> None:
    """Whatever fails: the repository can be read as it was, and a second call completes the upgrade."""
    plain = ic.in_memory_storage()
    expected = state(build(plain))

    def copy() -> ic.Storage:
        target = ic.in_memory_storage()
        for key, data in objects(plain).items():
            target.put(key, data)
        return target

    def attempt(inner: ic.Storage, hook: Any) -> tuple[FaultStorage, Exception | None]:
        storage = FaultStorage(inner)
        repo = Repository.open(storage)
        storage.n_calls, storage.hook = 0, hook
        try:
            upgrade_icechunk_repository(repo, dry_run=False)
        except ic.IcechunkError as error:
            return storage, error
        return storage, None

    calls: list[tuple[StorageCall, str]] = []
    n_calls = attempt(copy(), lambda n, call, moment: calls.append((call, moment)))[0].n_calls
    begun = [call for call, moment in calls if moment == "before"]
    created = next(n for n, call in enumerate(begun) if call.method == "create")
    assert n_calls > 20
    n_failed = 0
    for n in range(n_calls):
        for moment in ("before", "after"):
            inner = copy()
            hook = FailOnce(n, moment)
            _, error = attempt(inner, hook)
            n_failed += error is not None
            if hook.failed is None:  # the call raises anyway: it looks for something that is not there
                assert moment == "after"
                assert begun[n].keys == (layout.REPO,)
            there = Repository.open(inner)
            # A snapshot that cannot be read at first is read once more if a ref leads to it.
            assert error is not None or hook.failed is None or begun[n].keys[0].startswith(layout.SNAPSHOTS)
            took_effect = error is None or n > created or (n == created and moment == "after")
            assert there.spec_version == (2 if took_effect else 1)
            assert_same_state(state(there), expected)
            complete = error is None or not v1_files(inner)
            _, error = attempt(inner, None)
            assert (error is not None) == complete  # "there is nothing to upgrade"
            done = Repository.open(inner)
            assert done.spec_version == 2
            assert v1_files(inner) == set()
            assert_same_state(state(done), expected)
            write(done, 5)
    assert n_failed > n_calls


def test_requests(storage: ic.Storage) -> None:
    build(storage)
    counted = CountingStorage(ic.in_memory_storage())
    for key, data in objects(storage).items():
        counted.put(key, data)
    repo = Repository.open(counted)
    counted.reset()
    upgrade_icechunk_repository(repo, dry_run=False, prefetch_concurrency=2)
    snapshots = [key for key in counted.keys("get") if key.startswith(layout.SNAPSHOTS)]
    assert len(snapshots) == len(set(snapshots)) == 4
    assert counted.keys("create") == (layout.REPO,)
    assert counted.keys("put") == counted.keys("replace") == ()
    assert counted.keys("delete")[0] == layout.branch_ref_key("main")
    with pytest.raises(ic.InvalidInputError):
        upgrade_icechunk_repository(repo, dry_run=False, prefetch_concurrency=0)


# --- the pure part -------------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[Refs, dict[SnapshotId, SnapshotRecord]]:
    """A tree of snapshots, whose clocks may stand still or run back, and refs into it."""
    n = draw(st.integers(1, 12))
    ids = [SnapshotId(bytes([0] * 11 + [i + 1])) for i in range(n)]
    infos = {}
    for i, snapshot_id in enumerate(ids):
        parent = None if i == 0 else ids[draw(st.integers(0, i - 1))]
        infos[snapshot_id] = SnapshotRecord(
            id=snapshot_id, parent_id=parent, flushed_at_us=draw(st.integers(0, 9)), message=f"{i}", metadata={}
        )
    target = st.sampled_from(ids)
    names = st.text(max_size=2)
    branches = {**draw(st.dictionaries(names, target, max_size=3)), "main": draw(target)}
    tags = draw(st.dictionaries(names, target, max_size=3))
    deleted = draw(st.dictionaries(names.filter(lambda name: name not in tags), st.none() | target, max_size=3))
    return Refs(branches, tags, deleted), infos


@given(histories(), st.integers(0, 20))
def test_what_the_repo_info_says(history: tuple[Refs, dict[SnapshotId, SnapshotRecord]], at_us: int) -> None:
    refs, infos = history
    info = upgraded_repo_info(refs, infos, None, at_us)
    assert (info.branches, info.tags, info.deleted_tags) == (refs.branches, refs.tags, frozenset(refs.deleted_tags))
    assert {one.id: one for one in map(info.snapshots.record, range(len(info.snapshots)))} == infos
    records = [info.updates.record(row) for row in range(len(info.updates))]
    times = [record.updated_at_us for record in records]
    assert all(newer > older for newer, older in zip(times, times[1:], strict=False))
    assert times[0] >= at_us
    commits = [record.new_id for record in records if record.new_id is not None]
    on_branches = set()
    for tip in refs.branches.values():
        following: SnapshotId | None = tip
        while following is not None:
            on_branches.add(following)
            following = infos[following].parent_id
    root = next(one.id for one in infos.values() if one.parent_id is None)
    assert sorted(commits) == sorted(on_branches - {root})  # each once
    named = [(record.kind.name, record.name) for record in records if record.kind.name.startswith(("TAG", "BRANCH"))]
    expected = [("BRANCH_CREATED", name) for name in refs.branches if name != "main"]
    expected += [("TAG_CREATED", name) for name in refs.tags]
    for name, known in refs.deleted_tags.items():
        expected += [("TAG_CREATED", name), ("TAG_DELETED", name)] if known is not None else []
    assert sorted(named) == sorted(expected)
