"""The repo info file: snapshot list, ops log, round trips, exchange with the official library, damage."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.catalog.inspection import official_time
from icechunk_engine.errors import (
    ErrorKind,
    FormatError,
    InternalError,
    InvalidInputError,
    SnapshotNotFoundError,
)
from icechunk_engine.format import layout
from icechunk_engine.format.header import FileType
from icechunk_engine.format.repo_info import (
    Availability,
    RepoInfo,
    SnapshotRecord,
    SnapshotTable,
    Status,
    UpdateKind,
    UpdateRecord,
    UpdateTable,
    decode_repo_info,
    encode_repo_info,
    initial_repo_info,
)
from icechunk_engine.format.snapshot import encode_snapshot, initial_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, encode_transaction_log
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, SnapshotId
from tests.engine.format.damage import assert_survives, body_of

NOW_US = 1_700_000_000_000_000


def info_of(parent: SnapshotId | None, message: str = "m", **more: Any) -> SnapshotRecord:
    fields: dict[str, Any] = {
        "id": SnapshotId.random(),
        "parent_id": parent,
        "flushed_at_us": NOW_US,
        "message": message,
        "metadata": {},
    }
    return SnapshotRecord(**(fields | more))


def all_infos(table: SnapshotTable) -> dict[SnapshotId, SnapshotRecord]:
    return {table.id(row): table.record(row) for row in range(len(table))}


def all_records(table: UpdateTable) -> list[UpdateRecord]:
    return [table.record(i) for i in range(len(table))]


# --- the list of snapshots -----------------------------------------------------------------------------------------


@given(parents=st.lists(st.integers(0, 10**6), max_size=20))
def test_insert_agrees_with_a_dictionary(parents: list[int]) -> None:
    root = info_of(None, "root", metadata={"a": [1, None]})
    table, known = SnapshotTable.of_root(root), [root]
    for i, parent in enumerate(parents):
        added = info_of(known[parent % len(known)].id, f"é{i}", metadata={"step": i} if i % 2 else {})
        table = table.insert(added)
        known.append(added)
    assert all_infos(table) == {info.id: info for info in known}
    assert [table.id(row).raw for row in range(len(table))] == sorted(info.id.raw for info in known)
    by_id = {info.id: info for info in known}
    for info in known:
        chain = [info]
        while chain[-1].parent_id is not None:
            chain.append(by_id[chain[-1].parent_id])
        assert [table.id(row) for row in table.ancestry_rows(table.find(info.id)).tolist()] == [
            one.id for one in chain
        ]
    assert table.find(SnapshotId.random()) == -1


def test_insert_refuses() -> None:
    root = info_of(None)
    table = SnapshotTable.of_root(root)
    with pytest.raises(FormatError) as duplicate:
        table.insert(root)
    assert duplicate.value.kind == ErrorKind.DUPLICATE_SNAPSHOT_ID
    with pytest.raises(SnapshotNotFoundError):
        table.insert(info_of(SnapshotId.random()))


def test_expiration_moves_children_and_prunes() -> None:
    """Of a line root, a, b, c, the snapshots a and b expire, and c keeps the names of their logs."""
    root = info_of(None)
    a = info_of(root.id)
    b = info_of(a.id, pruned=(SnapshotId.random(),))
    c = info_of(b.id)
    table = SnapshotTable.of_root(root).insert(a).insert(b).insert(c)
    rows = np.array([table.find(one.id) for one in (a, b)])
    with pytest.raises(InternalError):
        table.remove(rows)
    pruned = (a.id, *b.pruned, b.id)
    changed = table.replace_parents(np.array([table.find(c.id)]), np.array([table.find(root.id)]), [pruned])
    assert changed.record(changed.find(b.id)) == b
    left = changed.remove(rows)
    assert all_infos(left) == {root.id: root, c.id: dataclasses.replace(c, parent_id=root.id, pruned=pruned)}
    kept = changed.replace_parents(np.array([changed.find(c.id)]), np.array([-1]))
    assert kept.record(kept.find(c.id)) == dataclasses.replace(c, parent_id=None, pruned=pruned)


def test_circle_of_parents() -> None:
    root = info_of(None)
    table = SnapshotTable.of_root(root).insert(info_of(root.id))
    circle = table.replace_parents(np.array([0, 1]), np.array([1, 0]))
    with pytest.raises(FormatError, match="circle"):
        circle.ancestry_rows(0)


# --- the ops log -----------------------------------------------------------------------------------------------------

ONE, TWO = SnapshotId(b"1" * 12), SnapshotId(b"2" * 11 + b"\0")
RECORDS = [
    UpdateRecord(kind=UpdateKind.REPO_INITIALIZED, updated_at_us=1),
    UpdateRecord(kind=UpdateKind.REPO_MIGRATED, updated_at_us=2, from_version=1, to_version=2),
    UpdateRecord(kind=UpdateKind.CONFIG_CHANGED, updated_at_us=3),
    UpdateRecord(kind=UpdateKind.METADATA_CHANGED, updated_at_us=4),
    UpdateRecord(kind=UpdateKind.TAG_CREATED, updated_at_us=5, name="t/é"),
    UpdateRecord(kind=UpdateKind.TAG_DELETED, updated_at_us=6, name="t", previous_id=ONE),
    UpdateRecord(kind=UpdateKind.BRANCH_CREATED, updated_at_us=7, name=""),
    UpdateRecord(kind=UpdateKind.BRANCH_DELETED, updated_at_us=8, name="b", previous_id=TWO),
    UpdateRecord(kind=UpdateKind.BRANCH_RESET, updated_at_us=9, name="b", previous_id=ONE),
    UpdateRecord(kind=UpdateKind.NEW_COMMIT, updated_at_us=10, name="main", new_id=ONE),
    UpdateRecord(kind=UpdateKind.COMMIT_AMENDED, updated_at_us=11, name="main", previous_id=ONE, new_id=TWO),
    UpdateRecord(kind=UpdateKind.NEW_DETACHED_SNAPSHOT, updated_at_us=12, new_id=TWO),
    UpdateRecord(kind=UpdateKind.GC_RAN, updated_at_us=13),
    UpdateRecord(kind=UpdateKind.EXPIRATION_RAN, updated_at_us=14),
    UpdateRecord(kind=UpdateKind.FEATURE_FLAG_CHANGED, updated_at_us=15, flag_id=3, flag_value=False),
    UpdateRecord(kind=UpdateKind.FEATURE_FLAG_CHANGED, updated_at_us=16, flag_id=4, flag_value=True),
    UpdateRecord(kind=UpdateKind.FEATURE_FLAG_CHANGED, updated_at_us=17, flag_id=65_535),
    UpdateRecord(
        kind=UpdateKind.REPO_STATUS_CHANGED,
        updated_at_us=18,
        status=Status(availability=Availability.READ_ONLY, set_at_us=17, reason=""),
    ),
    UpdateRecord(
        kind=UpdateKind.REPO_STATUS_CHANGED,
        updated_at_us=2**63,
        status=Status(availability=Availability.ONLINE, set_at_us=0),
    ),
]


def test_every_kind_is_covered() -> None:
    assert {record.kind for record in RECORDS} == set(UpdateKind)


def fresh() -> RepoInfo:
    return initial_repo_info(NOW_US, None)


@given(chosen=st.lists(st.tuples(st.sampled_from(RECORDS), st.none() | st.text("ré", max_size=5)), max_size=12))
def test_records_round_trip(chosen: list[tuple[UpdateRecord, str | None]]) -> None:
    top = UpdateRecord(kind=UpdateKind.GC_RAN, updated_at_us=2**64 - 1)
    records = [top, *(dataclasses.replace(record, backup_path=backup) for record, backup in chosen)]
    table = UpdateTable.of(records)
    assert all_records(table) == records
    decoded = decode_repo_info(encode_repo_info(dataclasses.replace(fresh(), updates=table)))
    assert all_records(decoded.updates) == records


def test_push_gives_the_previous_top_its_backup() -> None:
    table = UpdateTable.of(RECORDS[:1]).push(RECORDS[4], "backup-0").push(RECORDS[9], "backup-1")
    expected = [(RECORDS[9], None), (RECORDS[4], "backup-1"), (RECORDS[0], "backup-0")]
    assert all_records(table) == [dataclasses.replace(record, backup_path=backup) for record, backup in expected]


@given(st.lists(st.booleans(), max_size=10), st.integers(1, 12))
def test_trimming_follows_the_rule(have_backup: list[bool], n: int) -> None:
    backups = [None, *(f"b{i}" if has else None for i, has in enumerate(have_backup))]
    records = [
        dataclasses.replace(RECORDS[0], updated_at_us=i, backup_path=backup) for i, backup in enumerate(backups)
    ]
    kept: list[UpdateRecord] = []
    cut_at = None
    for record in records:
        if len(kept) >= n and record.backup_path is not None:
            cut_at = record.backup_path
            break
        kept.append(record)
    table, pointer = UpdateTable.of(records).trimmed(n)
    assert (all_records(table), pointer) == (kept, cut_at)
    assert all_records(table.push(RECORDS[9], "x"))[1:] == [dataclasses.replace(kept[0], backup_path="x"), *kept[1:]]


def test_unknown_kinds_can_be_read_but_not_written() -> None:
    info = fresh()
    updates = UpdateTable.of([*RECORDS[4:6], RECORDS[0]])
    data = encode_repo_info(dataclasses.replace(info, updates=updates))
    body = body_of(data, FileType.REPO_INFO)
    updates.rows["kind"][1] = 99
    with pytest.raises(FormatError) as refused:
        encode_repo_info(dataclasses.replace(info, updates=updates))
    assert refused.value.kind == ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION
    with pytest.raises(FormatError, match="upgrade"):
        updates.record(1)
    assert updates.record(0).name == "t/é"
    assert len(body) > 0


# --- round trips -----------------------------------------------------------------------------------------------------


def rich_repo_info() -> RepoInfo:
    root = info_of(None, "root", id=INITIAL_SNAPSHOT_ID, metadata={"__icechunk": {"is_root": True}})
    child = info_of(root.id, "é", metadata={"a": 1}, pruned=(ONE, TWO))
    table = SnapshotTable.of_root(root).insert(child).insert(info_of(child.id))
    return RepoInfo(
        spec_version=2,
        tags={"v1": root.id, "a/b": child.id},
        branches={"main": child.id, "": root.id, "é": root.id},
        deleted_tags=frozenset({"gone", "é"}),
        snapshots=table,
        status=Status(availability=Availability.OFFLINE, set_at_us=5, reason="moved"),
        metadata={"owner": "x", "list": [1, None]},
        updates=UpdateTable.of([*reversed(RECORDS)]),
        repo_before_updates="repo.00000000000001.X",
        config={"compression": {"level": 5}, "unknown": [None, True]},
        enabled_flags=(3, 9),
        disabled_flags=(4,),
    )


def assert_same(one: RepoInfo, other: RepoInfo) -> None:
    plain = [field.name for field in dataclasses.fields(RepoInfo) if field.name not in ("snapshots", "updates")]
    for name in plain:
        assert getattr(one, name) == getattr(other, name), name
    assert all_infos(one.snapshots) == all_infos(other.snapshots)
    assert all_records(one.updates) == all_records(other.updates)


@pytest.mark.parametrize("make", [fresh, rich_repo_info])
def test_round_trip(make: Any) -> None:
    info = make()
    assert_same(decode_repo_info(encode_repo_info(info)), info)


def test_refuses_what_readers_would_not_understand() -> None:
    with pytest.raises(InternalError, match="dangling"):
        encode_repo_info(dataclasses.replace(fresh(), branches={"dangling": ONE}))
    with_backup = dataclasses.replace(RECORDS[0], backup_path="x")
    for updates in (UpdateTable.of([]), UpdateTable.of([with_backup])):
        with pytest.raises(InternalError, match="ops log"):
            encode_repo_info(dataclasses.replace(fresh(), updates=updates))
    for broken in ({"tags": {"\ud800": INITIAL_SNAPSHOT_ID}}, {"config": {"a": {1}}}, {"metadata": {"a": {1}}}):
        with pytest.raises(InvalidInputError):
            encode_repo_info(dataclasses.replace(fresh(), **broken))


# --- both ways with the official library -----------------------------------------------------------------------------


def edit(repo: official.Repository, value: int, branch: str = "main") -> official.Session:
    session = repo.writable_session(branch)
    zarr.open_group(session.store, mode="a").attrs.update({"value": value})
    return session


def busy_official_repo(path: Path) -> official.Repository:
    """Make a repository with updates of all kinds: commits, refs, amend, flush, metadata, flags, status, and more."""
    config = official.RepositoryConfig(inline_chunk_threshold_bytes=10)
    repo = official.Repository.create(official.local_filesystem_storage(str(path)), config=config)
    for i in range(4):
        tip = edit(repo, i).commit(f"commit {i} é", metadata={"i": i, "list": [None, {"x": 0.5}]})
    repo.create_tag("gone", tip)
    repo.delete_tag("gone")
    repo.create_tag("kept/é", tip)
    repo.create_branch("dev", tip)
    repo.reset_branch("dev", str(INITIAL_SNAPSHOT_ID))
    repo.create_branch("short-lived", tip)
    repo.delete_branch("short-lived")
    edit(repo, 10).amend("amended")
    edit(repo, 11).flush("detached")
    repo.set_metadata({"owner": "me", "nested": {"a": [1]}})
    repo.set_feature_flag("create_tag", False)
    repo.set_feature_flag("create_tag", None)
    repo.set_feature_flag("delete_tag", True)
    repo.set_status(
        official.RepoStatus(official.RepoAvailability.read_only, limited_availability_reason="maintenance")
    )
    repo.set_status(official.RepoStatus(official.RepoAvailability.online))
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a").create_group("g")
    session.commit("group")
    moving = repo.rearrange_session("main")
    moving.move("/g", "/h")
    moving.commit("moved")
    newest = next(repo.ancestry(branch="main"))
    repo.expire_snapshots(newest.written_at)
    edit(repo, 12).commit("last")
    return repo


def history(repo: official.Repository) -> list[Any]:
    refs = {"branches": sorted(repo.list_branches()), "tags": sorted(repo.list_tags())}
    ancestries = [
        [(i.id, i.parent_id, i.message, dict(i.metadata), i.written_at) for i in repo.ancestry(branch=branch)]
        for branch in refs["branches"]
    ]
    return [refs, ancestries, [(str(u.kind), u.updated_at, u.backup_path) for u in repo.ops_log()]]


def by_official(repo: official.Repository) -> dict[str, Any]:
    found = dict(repo.inspect_repo_info())
    del found["header"]
    return found


def inspected_snapshots(info: RepoInfo) -> list[dict[str, Any]]:
    return [
        {"id": str(one.id)}
        | ({} if one.parent_id is None else {"parent_id": str(one.parent_id)})
        | {"flushed_at": official_time(one.flushed_at_us), "message": one.message, "metadata": one.metadata}
        for one in all_infos(info.snapshots).values()
    ]


def assert_agrees(info: RepoInfo, repo: official.Repository) -> None:
    found = by_official(repo)
    assert {name: str(target) for name, target in info.branches.items()} == found["branches"]
    assert {name: str(target) for name, target in info.tags.items()} == found["tags"]
    assert sorted(info.deleted_tags) == found["deleted_tags"]
    assert inspected_snapshots(info) == found["snapshots"]
    assert info.metadata == found["metadata"]
    assert info.repo_before_updates == found.get("repo_before_updates")
    records = all_records(info.updates)
    assert [(official_time(r.updated_at_us), r.backup_path) for r in records] == [
        (update["updated_at"], update.get("backup_path")) for update in found["latest_updates"]
    ]
    for record, update in zip(records, found["latest_updates"], strict=True):
        shown = update["update_type"]
        assert shown["type"].removesuffix("Update").lower() == record.kind.name.replace("_", "").lower()
        if "branch" in shown or "name" in shown:
            assert record.name == shown.get("branch", shown.get("name"))
        for field, name in (("previous_id", "previous_snap_id"), ("new_id", "new_snap_id")):
            if name in shown:
                assert str(getattr(record, field)) == shown[name]


def test_official_repo_info_there_and_back(tmp_path: Path) -> None:
    repo = busy_official_repo(tmp_path)
    before = history(repo)
    file = tmp_path / layout.REPO
    info = decode_repo_info(file.read_bytes())
    assert_agrees(info, repo)
    assert info.config is not None
    assert info.config["inline_chunk_threshold_bytes"] == 10
    assert info.enabled_flags == (5,)
    assert info.disabled_flags == ()
    assert any(one.pruned for one in all_infos(info.snapshots).values())

    data = encode_repo_info(info)
    assert_same(decode_repo_info(data), info)
    file.unlink()  # a new inode, as backups are links
    file.write_bytes(data)
    reopened = official.Repository.open(official.local_filesystem_storage(str(tmp_path)))
    assert history(reopened) == before
    assert reopened.config.inline_chunk_threshold_bytes == 10

    newest = edit(reopened, 99).commit("on top")
    after = decode_repo_info(file.read_bytes())
    assert str(after.branches["main"]) == newest
    assert_agrees(after, reopened)
    kept = {one.id: one for one in all_infos(after.snapshots).values()}
    assert all(kept[one.id] == one for one in all_infos(info.snapshots).values())


def test_from_scratch(tmp_path: Path) -> None:
    """The official library opens a repository that consists of our three files."""
    for directory in ("snapshots", "transactions"):
        (tmp_path / directory).mkdir()
    now_us = int(datetime.now(UTC).timestamp() * 1_000_000)
    (tmp_path / layout.snapshot_key(INITIAL_SNAPSHOT_ID)).write_bytes(encode_snapshot(initial_snapshot(now_us)))
    log = encode_transaction_log(TransactionLog.empty(INITIAL_SNAPSHOT_ID))
    (tmp_path / layout.transaction_log_key(INITIAL_SNAPSHOT_ID)).write_bytes(log)
    (tmp_path / layout.REPO).write_bytes(encode_repo_info(initial_repo_info(now_us, None)))
    repo = official.Repository.open(official.local_filesystem_storage(str(tmp_path)))
    assert [info.id for info in repo.ancestry(branch="main")] == [str(INITIAL_SNAPSHOT_ID)]
    tip = edit(repo, 1).commit("first")
    assert [info.id for info in repo.ancestry(branch="main")] == [tip, str(INITIAL_SNAPSHOT_ID)]
    assert_agrees(decode_repo_info((tmp_path / layout.REPO).read_bytes()), repo)


# --- damage ----------------------------------------------------------------------------------------------------------


def use(info: RepoInfo) -> None:
    """Do everything that an update does with a repo info."""
    for row in range(len(info.snapshots)):
        try:
            info.snapshots.record(row)
            info.snapshots.ancestry_rows(row)
        except FormatError:
            continue
    for i in range(len(info.updates)):
        try:
            info.updates.record(i)
        except FormatError:
            continue
    info.updates.push(RECORDS[0], "b").trimmed(3)


def test_damaged_bodies() -> None:
    body = body_of(encode_repo_info(rich_repo_info()), FileType.REPO_INFO)
    assert_survives(decode_repo_info, use, body, FileType.REPO_INFO, seed=3)
