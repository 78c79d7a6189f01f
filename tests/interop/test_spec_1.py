"""Spec version 1: both libraries read and write in turn, and each upgrades."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import given

import icechunk_engine as ours
from icechunk_engine.format import layout
from icechunk_engine.format.repo_info import RepoInfo, decode_repo_info
from tests.interop.test_both_ways import (
    LIBRARIES,
    assert_same,
    diff_of,
    everything,
    history,
    ops,
    play,
    scripts,
)

ROOT_ID = "1CECHNKREP0F1RSTCMT0"


def create(lib: ModuleType, path: Path, config: Any = None) -> Any:
    return lib.Repository.create(lib.local_filesystem_storage(str(path)), config, spec_version=1)


def open_repository(lib: ModuleType, path: Path) -> Any:
    return lib.Repository.open(lib.local_filesystem_storage(str(path)))


def settings(lib: ModuleType) -> Any:
    config = lib.RepositoryConfig(inline_chunk_threshold_bytes=16)
    config.set_virtual_chunk_container(lib.VirtualChunkContainer("s3://bucket/", lib.s3_store(region="us-east-1")))
    axis, condition = lib.ManifestSplitDimCondition, lib.ManifestSplitCondition
    config.manifest = lib.ManifestConfig(
        splitting=lib.ManifestSplittingConfig.from_dict({condition.name_matches("split"): {axis.Axis(0): 2}})
    )
    return config


def build(lib: ModuleType, path: Path) -> Any:
    """A history with all features of spec 1: groups, arrays of all ranks, refs, tombstones, split manifests."""
    repo = create(lib, path, settings(lib))
    session = repo.writable_session("main")
    root = zarr.create_group(session.store, attributes={"title": "test", "unicode": "ü✓"})
    root.create_array("scalar", shape=(), dtype="float64")[...] = 3.5
    grid = root.create_array(
        "group/grid", shape=(7, 5, 4), chunks=(2, 2, 4), dtype="int32", dimension_names=["x", None, "z"]
    )
    grid[:] = np.arange(140).reshape(7, 5, 4)
    split = root.create_array("split", shape=(9, 3), chunks=(1, 3), dtype="int64", compressors=None)
    split[:8] = np.arange(24).reshape(8, 3)
    root.create_array("empty", shape=(0, 3), chunks=(1, 3), dtype="int8")
    first = session.commit("first", {"n": 1, "list": [1, -2, 2.5, None, True, {"deep": "x"}], "big": 2**40})
    repo.create_tag("v1", first)

    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    root["group/grid"][0:2] = -1
    root["split"].resize((12, 3))
    root["split"][11] = 5
    root["group/grid"].attrs["units"] = "K"
    del root["empty"]
    second = session.commit("second")
    repo.create_branch("dev", second)

    session = repo.writable_session("dev")
    root = zarr.open_group(session.store, mode="a")
    root["split"].resize((2, 3))
    del root["group"]
    root.create_group("group").create_array("grid", shape=(2,), dtype="int8")[:] = 9
    third = session.commit("third")
    repo.create_tag("gone", third)
    repo.delete_tag("gone")
    repo.create_tag("kept", third)
    repo.create_branch("old", first)
    repo.reset_branch("old", ROOT_ID)
    repo.create_branch("short", first)
    repo.delete_branch("short")
    return repo


def refs(repo: Any) -> dict[str, str]:
    return {f"branch {name}": repo.lookup_branch(name) for name in repo.list_branches()} | {
        f"tag {name}": repo.lookup_tag(name) for name in repo.list_tags()
    }


def assert_equal(one: Any, other: Any) -> None:
    """Require that two repositories, or two views of one, have the same refs, histories and data."""
    assert refs(one) == refs(other)
    for branch in one.list_branches():
        assert history(one, branch) == history(other, branch)
        if one.lookup_branch(branch) != ROOT_ID:
            assert_same(
                everything(one.readonly_session(branch).store), everything(other.readonly_session(branch).store)
            )
    for tag in one.list_tags():
        assert_same(everything(one.readonly_session(tag=tag).store), everything(other.readonly_session(tag=tag).store))
    for branch in ("main", "dev"):
        snapshots = [info.id for info in one.ancestry(branch=branch)]
        for newer, older in [*zip(snapshots, snapshots[1:], strict=False), (snapshots[0], snapshots[-1])]:
            assert diff_of(one, older, newer) == diff_of(other, older, newer)


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_a_whole_history(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    wrote = build(writer, tmp_path)
    read = open_repository(reader, tmp_path)
    assert int(read.spec_version) == int(wrote.spec_version) == 1
    assert read.list_tags() == {"v1", "kept"}
    assert read.list_branches() == {"main", "dev", "old"}
    assert_equal(read, wrote)
    third, second, first, _ = (info.id for info in wrote.ancestry(branch="dev"))
    for snapshot_id in (first, second, third):
        assert {(f.id, f.size_bytes, f.num_chunk_refs) for f in read.list_manifest_files(snapshot_id)} == {
            (f.id, f.size_bytes, f.num_chunk_refs) for f in wrote.list_manifest_files(snapshot_id)
        }
    for lib, repo in ((reader, read), (writer, wrote)):
        with pytest.raises(lib.AlreadyExistsError):
            repo.create_tag("gone", first)
        with pytest.raises(lib.RefNotFoundError):
            repo.lookup_tag("gone")


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_config(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    create(writer, tmp_path, settings(writer))
    config = reader.Repository.fetch_config(reader.local_filesystem_storage(str(tmp_path)))
    expected = settings(reader)
    config.storage = expected.storage  # official adds its defaults for local disks
    assert config == expected
    storage = reader.local_filesystem_storage(str(tmp_path))
    reader.Repository.open(storage, reader.RepositoryConfig(get_partial_values_concurrency=3)).save_config()
    changed = writer.Repository.fetch_config(writer.local_filesystem_storage(str(tmp_path)))
    assert changed.get_partial_values_concurrency == 3
    assert changed.inline_chunk_threshold_bytes == 16
    assert len(list((tmp_path / "overwritten").iterdir())) == 1


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_commits_and_refs_in_turn(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    first, second = build(writer, tmp_path), open_repository(reader, tmp_path)
    for turn, repo in enumerate([second, first, second, first]):
        session = repo.writable_session("main")
        root = zarr.open_group(session.store, mode="a")
        root["group/grid"][turn] = 100 + turn
        root["split"][turn] = turn
        root[f"group/by-{turn}"] = np.arange(3)
        tip = session.commit(f"turn {turn}")
        repo.create_tag(f"turn {turn}", tip)
        repo.reset_branch("old", tip)
        assert_equal(first, second)
    assert [message for _, _, message, _, _ in history(first)][:4] == [f"turn {i}" for i in (3, 2, 1, 0)]
    second.delete_tag("turn 0")
    first.delete_tag("turn 1")
    second.delete_branch("old")
    assert_equal(first, second)


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_each_rebases_on_the_other(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    one, other = build(writer, tmp_path), open_repository(reader, tmp_path)
    late, early = one.writable_session("main"), other.writable_session("main")
    zarr.open_array(early.store, path="group/grid", mode="r+")[0:2, 0:2] = 11
    zarr.open_array(late.store, path="group/grid", mode="r+")[4:6, 0:2] = 22
    tip = early.commit("early")
    with pytest.raises(writer.ConflictError) as caught:
        late.commit("late")
    assert caught.value.actual_parent == tip
    late.commit("late", rebase_with=writer.ConflictDetector())
    grid = np.asarray(zarr.open_array(other.readonly_session("main").store, path="group/grid", mode="r")[:])
    assert (grid[0:2, 0:2] == 11).all()
    assert (grid[4:6, 0:2] == 22).all()
    late, early = one.writable_session("main"), other.writable_session("main")
    for session in (late, early):
        zarr.open_array(session.store, path="group/grid", mode="r+")[0:2, 0:2] = 33
    early.commit("early")
    with pytest.raises(writer.RebaseFailedError) as failed:
        late.rebase(writer.ConflictDetector())
    assert len(failed.value.conflicts) == 1
    assert_equal(one, other)


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_names_of_refs(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    wrote, read = create(writer, tmp_path), open_repository(reader, tmp_path)
    names = ["a b", "é✓", "x.y", "..", "%41", "a\\b", "a:b;c", "#?*", "~", "{}^`[]\"<>|&$@=+,'()!"]
    if writer is official:  # official reads empty and invisible names, but does not create them
        names += ["\n", ""]
    for name in names:
        wrote.create_branch(name, ROOT_ID)
        wrote.create_tag(name, ROOT_ID)
        assert read.lookup_branch(name) == read.lookup_tag(name) == ROOT_ID
    ours_again = open_repository(ours, tmp_path)
    assert ours_again.list_branches() == {"main", *names}  # official lists percent-encoded names as they are stored
    assert ours_again.list_tags() == set(names)


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
@given(script=scripts())
def test_random_histories(
    writer: ModuleType, reader: ModuleType, script: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("repo")
    wrote = create(writer, path)
    play(wrote, script)
    read = open_repository(reader, path)
    assert history(read) == history(wrote)
    assert_same(everything(read.readonly_session("main").store), everything(wrote.readonly_session("main").store))
    snapshots = [info.id for info in read.ancestry(branch="main")]
    for newer, older in zip(snapshots, snapshots[1:], strict=False):
        assert diff_of(read, older, newer) == diff_of(wrote, older, newer)
    upgraded = reader.upgrade_icechunk_repository(read, dry_run=False)
    assert history(open_repository(writer, path)) == history(upgraded)


# --- upgrading -------------------------------------------------------------------------------------------------------


def told(info: RepoInfo) -> dict[str, Any]:
    """Return the contents of a repo info, except for the time of the upgrade."""
    return {
        "refs": (info.branches, info.tags, info.deleted_tags),
        "snapshots": [info.snapshots.record(row) for row in range(len(info.snapshots))],
        "updates": [info.updates.record(row) for row in range(1, len(info.updates))],
        "top": (info.updates.record(0).kind, info.updates.record(0).from_version, info.updates.record(0).to_version),
        "rest": (info.spec_version, info.status, info.metadata, info.config, info.repo_before_updates),
        "flags": (info.enabled_flags, info.disabled_flags),
    }


@pytest.mark.parametrize("builder", [official, ours], ids=["by official", "by us"])
def test_upgrades_as_official_does(builder: ModuleType, tmp_path: Path) -> None:
    built = build(builder, tmp_path / "ours")
    built.create_branch("lost", built.lookup_tag("v1"))
    session = built.writable_session("lost")
    zarr.open_group(session.store, mode="a").attrs["lost"] = True
    built.create_tag("lost", session.commit("lost"))
    built.delete_branch("lost")
    built.delete_tag("lost")  # its snapshot is no longer reachable
    built.create_tag("deleted", built.lookup_tag("v1"))
    built.delete_tag("deleted")
    shutil.copytree(tmp_path / "ours", tmp_path / "official")
    infos = []
    for lib in (ours, official):
        path = tmp_path / ("ours" if lib is ours else "official")
        upgraded = lib.upgrade_icechunk_repository(open_repository(lib, path), dry_run=False)
        assert int(upgraded.spec_version) == 2
        infos.append(decode_repo_info((path / layout.REPO).read_bytes()))
        assert not [found for found in path.rglob("*") if found.is_file() and found.name.startswith("ref.json")]
        assert not (path / layout.CONFIG_YAML).exists()
    assert told(infos[0]) == told(infos[1])


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
@pytest.mark.parametrize("upgrader", [official, ours], ids=["upgraded by official", "upgraded by us"])
def test_mixed_repositories(writer: ModuleType, reader: ModuleType, upgrader: ModuleType, tmp_path: Path) -> None:
    """Read, diff, rebase and extend spec 1 snapshots, manifests and logs under a repo info of spec 2."""
    build(writer, tmp_path)
    before = {name: open_repository(ours, tmp_path).lookup_branch(name) for name in ("main", "dev", "old")}
    stale = open_repository(reader, tmp_path).writable_session("main")
    upgrader.upgrade_icechunk_repository(open_repository(upgrader, tmp_path), dry_run=False)
    one, other = open_repository(writer, tmp_path), open_repository(reader, tmp_path)
    assert {name: one.lookup_branch(name) for name in before} == before
    assert one.list_tags() == {"v1", "kept"}
    assert_equal(one, other)
    assert ops(one) == ops(other)

    for turn, repo in enumerate([other, one]):
        base = repo.writable_session("main")
        rebased = (one, other)[turn].writable_session("main")
        zarr.open_group(base.store, mode="a")["split"][turn] = 7
        zarr.open_group(rebased.store, mode="a")["split"][turn + 4] = 8
        zarr.open_group(rebased.store, mode="a")["group/grid"][0] = turn
        base.commit("base")
        rebased.commit("rebased", rebase_with=(writer, reader)[turn].ConflictDetector())
        assert_equal(one, other)
    split = zarr.open_array(one.readonly_session("main").store, path="split", mode="r")[:, 0].tolist()
    assert split == [7, 7, 6, 9, 8, 8, 18, 21, 0, 0, 0, 5]

    zarr.open_group(stale.store, mode="a").attrs["late"] = True
    with pytest.raises(reader.IcechunkError):
        stale.commit("of spec 1")
    one.set_metadata({"upgraded": True})
    assert other.get_metadata() == {"upgraded": True}
    for lib, repo in ((writer, one), (reader, other)):
        with pytest.raises(lib.AlreadyExistsError):
            repo.create_tag("gone", before["main"])


def test_neither_upgrades_twice(tmp_path: Path) -> None:
    build(ours, tmp_path)
    upgraded = official.upgrade_icechunk_repository(open_repository(official, tmp_path), dry_run=False)
    for lib, repo in ((official, upgraded), (ours, open_repository(ours, tmp_path))):
        with pytest.raises(lib.SessionStateError) as caught:
            lib.upgrade_icechunk_repository(repo, dry_run=False)
        assert caught.value.kind == "invalid-repository-migration"
