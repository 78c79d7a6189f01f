"""Hostile histories: circles, impossible dates, damaged ops logs. They raise typed errors, and everything else stays
readable.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository
from icechunk_engine.catalog.ancestry_graph import children_first
from icechunk_engine.flatbuf.reader import Buffer
from icechunk_engine.format import layout, ref_files, schema
from icechunk_engine.format.header import FileType, pack
from icechunk_engine.format.repo_info import RepoInfo, SnapshotRecord, decode_repo_info, encode_repo_info
from icechunk_engine.format.snapshot import decode_snapshot, encode_snapshot
from icechunk_engine.ids import SnapshotId
from icechunk_engine.ops.migrate import upgrade_icechunk_repository
from tests.bounded import run_bounded
from tests.engine.format.damage import body_of

OUT_OF_RANGE = [2**64 - 1, 2**63, 2**62, 253_402_300_800_000_000]


def commit(repo: Repository, value: int) -> str:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(2,), chunks=(1,), dtype="i4", overwrite=True)[:] = value
    return session.commit(f"value {value}")


def read(repo: Repository) -> list[int]:
    values: list[int] = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:].tolist()
    return values


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a repository with two commits."""
    repo = Repository.create(ic.local_filesystem_storage(tmp_path / "repo"))
    commit(repo, 1)
    commit(repo, 2)
    return tmp_path / "repo"


@pytest.fixture
def place_v1(tmp_path: Path) -> Path:
    """Make the same in spec version 1."""
    repo = Repository.create(ic.local_filesystem_storage(tmp_path / "repo"), spec_version=1)
    commit(repo, 1)
    commit(repo, 2)
    return tmp_path / "repo"


def opened(place: Path) -> Repository:
    return Repository.open(ic.local_filesystem_storage(place))


def change(place: Path, edit: Callable[[RepoInfo], RepoInfo]) -> None:
    data = encode_repo_info(edit(decode_repo_info((place / "repo").read_bytes())))
    write_repo(place, body_of(data, FileType.REPO_INFO))


def write_repo(place: Path, body: bytes) -> None:
    (place / "repo").unlink()  # an inode of its own for every version
    (place / "repo").write_bytes(pack(FileType.REPO_INFO, 2, body))


def change_snapshot(place: Path, snapshot_id: str, **fields: Any) -> None:
    file = place / layout.snapshot_key(SnapshotId.from_str(snapshot_id))
    file.write_bytes(encode_snapshot(dataclasses.replace(decode_snapshot(file.read_bytes()), **fields)))


# --- the ops log -------------------------------------------------------------------------------------------------


def list_ops_log(place: Path) -> int:
    return len(list(opened(place).ops_log()))


def continue_in(place: Path, name: str) -> None:
    change(place, lambda info: dataclasses.replace(info, repo_before_updates=name))


def test_an_ops_log_that_names_itself(place: Path) -> None:
    continue_in(place, "repo.1.X")
    shutil.copy(place / "repo", place / "overwritten/repo.1.X")
    with pytest.raises(ic.FormatError, match="listed already"):
        run_bounded(list_ops_log, place)
    assert read(opened(place)) == [2, 2]


@pytest.mark.parametrize("name", ["../repo", "..", "", "a/b", "/etc/passwd", "nul\0", "ümlaut", "x" * 300, "a\nb"])
def test_an_ops_log_that_continues_elsewhere(place: Path, name: str) -> None:
    continue_in(place, name)
    with pytest.raises(ic.FormatError, match="is not a backup name"):
        list_ops_log(place)


def test_an_ops_log_that_continues_nowhere(place: Path) -> None:
    continue_in(place, "repo.1.X")
    with pytest.raises(ic.FormatError, match="missing"):
        list_ops_log(place)


def test_an_empty_ops_log_is_read_and_continued(place: Path) -> None:
    """No writer leaves an empty log. The official library opens such a repository, too, but cannot write to it."""
    body = body_of((place / "repo").read_bytes(), FileType.REPO_INFO)
    entries = Buffer(np.frombuffer(body, np.uint8)).root().vectors(schema.Repo.LATEST_UPDATES, 4)
    assert entries.lengths.tolist() == [3]
    at = int(entries.starts[0])
    write_repo(place, body[: at - 4] + bytes(4) + body[at:])

    theirs = official.Repository.open(official.local_filesystem_storage(str(place)))
    assert list(theirs.ops_log()) == []
    repo = opened(place)
    assert read(repo) == [2, 2]
    assert list(repo.ops_log()) == []
    assert "damage" not in repo.inspect_repo_info()["latest_updates"]

    commit(repo, 3)
    for again in (opened(place), official.Repository.open(official.local_filesystem_storage(str(place)))):
        assert [type(update.kind).__name__ for update in again.ops_log()] == ["NewCommit"]
    commit(repo, 4)
    assert read(opened(place)) == [4, 4]


def damage_ops_log(place: Path) -> None:
    """Make the first entry of the ops log point outside of the file."""
    info = decode_repo_info((place / "repo").read_bytes())
    time = int(info.updates.rows["updated_at"][0]).to_bytes(8, "little")
    body = bytearray(body_of((place / "repo").read_bytes(), FileType.REPO_INFO))
    assert body.count(time) == 1
    at = body.index(time)
    body[at - 16 : at] = b"\xff" * 16  # the rest of the table, and where its vtable is
    write_repo(place, bytes(body))


def test_a_damaged_ops_log_does_not_hide_the_data(place: Path) -> None:
    damage_ops_log(place)
    repo = opened(place)
    assert read(repo) == [2, 2]
    assert len(list(repo.ancestry(branch="main"))) == 3
    with pytest.raises(ic.FormatError, match="ops log cannot be read"):
        list(repo.ops_log())
    assert "corrupt" in repo.inspect_repo_info()["latest_updates"][0]["damage"]
    before = (place / "repo").read_bytes()
    for write in (lambda: commit(repo, 3), lambda: repo.create_tag("t", repo.lookup_branch("main"))):
        with pytest.raises(ic.FormatError, match="newest copy under overwritten"):
            write()
    assert (place / "repo").read_bytes() == before


# --- parents -----------------------------------------------------------------------------------------------------


def follow_parents(place: Path) -> dict[str, str]:
    """Return the outcome of each operation that follows parents."""
    repo = opened(place)
    tip = repo.lookup_branch("main")
    operations: dict[str, Callable[[], object]] = {
        "ancestry": lambda: list(repo.ancestry(branch="main")),
        "graph": lambda: str(repo.ancestry_graph()),
        "as_of": lambda: repo.readonly_session("main", as_of=datetime(2000, 1, 1, tzinfo=UTC)),
        "rebase": lambda: rebase(repo),
        "read": lambda: read(repo),
        "open": lambda: repo.readonly_session(snapshot_id=tip),
        "upgrade": lambda: upgrade_icechunk_repository(repo, dry_run=True),
    }
    ends = {}
    for name, operation in operations.items():
        try:
            operation()
            ends[name] = "done"
        except ic.IcechunkError as error:
            ends[name] = "circle" if "form a circle" in str(error) else str(error)
    return ends


def rebase(repo: Repository) -> None:
    """Rebase onto a branch that was reset, which may have to read its whole history."""
    session = repo.writable_session("main")
    zarr.create_group(session.store, path="g")
    repo.reset_branch("main", str(next(iter(repo.ancestry(branch="main"))).parent_id))
    session.rebase(ic.ConflictDetector())


def test_parents_in_a_circle(place: Path) -> None:
    change(
        place,
        lambda info: dataclasses.replace(
            info, snapshots=info.snapshots.replace_parents(np.arange(3), np.array([1, 2, 0]))
        ),
    )
    ends = run_bounded(follow_parents, place)
    assert ends.pop("read") == ends.pop("open") == "done"
    assert "nothing to upgrade" in ends.pop("upgrade")
    assert set(ends.values()) == {"circle"}


def test_a_snapshot_that_is_its_own_parent(place: Path) -> None:
    change(
        place,
        lambda info: dataclasses.replace(info, snapshots=info.snapshots.replace_parents(np.arange(3), np.arange(3))),
    )
    ends = run_bounded(follow_parents, place)
    assert {ends[name] for name in ("ancestry", "graph", "as_of")} == {"circle"}
    assert ends["read"] == "done"


def test_parents_in_a_circle_in_spec_1(place_v1: Path) -> None:
    line = list(opened(place_v1).ancestry(branch="main"))
    change_snapshot(place_v1, line[2].id, parent_id=SnapshotId.from_str(line[0].id))
    ends = run_bounded(follow_parents, place_v1)
    assert ends.pop("read") == ends.pop("open") == ends.pop("rebase") == "done"  # the base is in the circle
    assert set(ends.values()) == {"circle"}


def test_children_come_before_their_parents_whatever_their_times(place: Path) -> None:
    """If the graph listed a parent first, it would keep a lane open for it."""
    ids = [SnapshotId.random() for _ in range(2000)]
    records = {
        own: SnapshotRecord(id=own, parent_id=parent, flushed_at_us=-i, message="", metadata={})
        for i, (own, parent) in enumerate(zip(ids, [None, *ids], strict=False))
    }
    assert [record.id for record in children_first(records)] == ids[::-1]
    assert str(opened(place).ancestry_graph(plain=True)).count("●") == 3


# --- dates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_us", OUT_OF_RANGE)
def test_a_snapshot_without_a_date(place: Path, time_us: int) -> None:
    """The date of the newest snapshot is impossible. Older ones can still be listed."""
    tip, below = (info.id for info, _ in zip(opened(place).ancestry(branch="main"), range(2), strict=False))

    def edit(info: RepoInfo) -> RepoInfo:
        info.snapshots.flushed_at[info.snapshots.find(SnapshotId.from_str(tip))] = time_us
        return info

    change(place, edit)
    change_snapshot(place, tip, flushed_at_us=time_us)
    repo = opened(place)
    assert read(repo) == [2, 2]
    assert len(list(repo.ancestry(snapshot_id=below))) == 2
    assert repo.inspect_repo_info()["snapshots"]
    for act in (
        lambda: list(repo.ancestry(branch="main")),
        lambda: repo.lookup_snapshot(tip),
        lambda: commit(repo, 3),
    ):
        with pytest.raises(ic.FormatError, match=f"{time_us} µs") as caught:
            act()
        assert caught.value.kind == ErrorKind.SNAPSHOT_TIMESTAMP
    repo.ancestry_graph()
    repo.readonly_session("main", as_of=datetime(2200, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("time_us", OUT_OF_RANGE)
def test_a_snapshot_without_a_date_in_spec_1(place_v1: Path, time_us: int) -> None:
    change_snapshot(place_v1, opened(place_v1).lookup_branch("main"), flushed_at_us=time_us)
    repo = opened(place_v1)
    assert read(repo) == [2, 2]
    for act in (
        lambda: list(repo.ancestry(branch="main")),
        lambda: commit(repo, 3),
        lambda: upgrade_icechunk_repository(repo, dry_run=True),
    ):
        with pytest.raises(ic.FormatError) as caught:
            act()
        assert caught.value.kind == ErrorKind.SNAPSHOT_TIMESTAMP


@pytest.mark.parametrize("time_us", OUT_OF_RANGE)
def test_an_update_and_a_status_without_a_date(place: Path, time_us: int) -> None:
    def edit(info: RepoInfo) -> RepoInfo:
        info.updates.rows["updated_at"][0] = time_us
        return dataclasses.replace(info, status=dataclasses.replace(info.status, set_at_us=time_us))

    change(place, edit)
    repo = opened(place)
    assert read(repo) == [2, 2]
    assert repo.inspect_repo_info()["latest_updates"]
    for act in (lambda: list(repo.ops_log()), lambda: repo.status, lambda: commit(repo, 3)):
        with pytest.raises(ic.FormatError) as caught:
            act()
        assert caught.value.kind == ErrorKind.SNAPSHOT_TIMESTAMP


# --- ref files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"[" * 4000, b"[" * 10**6, b'{"snapshot":' * 300, b'{"snapshot":' + b"9" * 4000 + b"}", b"\xff", b"", b"{}"],
)
def test_a_hostile_ref_file(data: bytes) -> None:
    with pytest.raises(ic.FormatError, match="damaged"):
        ref_files.decode_ref(data, "refs/branch.main/ref.json")
