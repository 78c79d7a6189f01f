"""Each library reads, lists, diffs and extends what the other one wrote. The official wheel is the judge."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine as ours

LIBRARIES = [pytest.param(official, ours, id="official-to-ours"), pytest.param(ours, official, id="ours-to-official")]


def everything(store: Any) -> dict[str, Any]:
    """Return the metadata document of every node and the values of every array, by path."""
    found: dict[str, Any] = {}
    root = zarr.open_group(store, mode="r")
    found["/"] = dict(root.attrs)
    for path, node in sorted(root.members(max_depth=None)):
        values = node[...] if isinstance(node, zarr.Array) else None
        found[path] = (node.metadata.to_dict(), values)
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for path, value in one.items():
        if path == "/":
            assert value == other[path]
            continue
        metadata, values = value
        other_metadata, other_values = other[path]
        assert json.dumps(metadata, default=str) == json.dumps(other_metadata, default=str)
        np.testing.assert_array_equal(values, other_values)


def history(repo: Any, branch: str = "main") -> list[tuple[Any, ...]]:
    return [(i.id, i.parent_id, i.message, i.metadata, i.written_at) for i in repo.ancestry(branch=branch)]


def ops(repo: Any) -> list[tuple[str, Any]]:
    return [(type(update.kind).__name__, update.updated_at) for update in repo.ops_log()]


def diff_of(repo: Any, start: str, stop: str) -> dict[str, Any]:
    diff = repo.diff(from_snapshot_id=start, to_snapshot_id=stop)
    sets = ("new_groups", "new_arrays", "deleted_groups", "deleted_arrays", "updated_groups", "updated_arrays")
    return {name: set(getattr(diff, name)) for name in sets} | {
        "chunks": {path: sorted(map(tuple, chunks)) for path, chunks in diff.updated_chunks.items()}
    }


def build(lib: ModuleType, path: Path) -> Any:
    """A history with groups, arrays of all ranks, deletions, resizes, refs, metadata."""
    repo = lib.Repository.create(lib.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    root = zarr.create_group(session.store, attributes={"title": "test", "unicode": "ü✓"})
    scalar = root.create_array("scalar", shape=(), dtype="float64")
    scalar[...] = 3.5
    grid = root.create_array(
        "group/grid", shape=(7, 5, 4), chunks=(2, 2, 4), dtype="int32", dimension_names=["x", None, "z"]
    )
    grid[:] = np.arange(140).reshape(7, 5, 4)
    big = root.create_array("big", shape=(4, 1000), chunks=(1, 1000), dtype="float64", compressors=None)
    big[1:3] = np.linspace(0, 1, 2000).reshape(2, 1000)
    root.create_array("empty", shape=(0, 3), chunks=(1, 3), dtype="int8")
    session.commit("first", {"n": 1, "list": [1, -2, 2.5, None, True, {"deep": "x"}]})
    repo.create_tag("v1", repo.lookup_branch("main"))

    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    root["group/grid"][0:2] = -1
    root["big"].resize((6, 1000))
    root["big"][5] = 5.0
    root["group/grid"].attrs["units"] = "K"
    del root["empty"]
    session.commit("second")
    repo.create_branch("dev", repo.lookup_branch("main"))

    session = repo.writable_session("dev")
    root = zarr.open_group(session.store, mode="a")
    root["big"].resize((2, 1000))
    del root["group"]
    root.create_group("group").create_array("grid", shape=(2,), dtype="int8")[:] = 9
    session.commit("third")
    repo.create_tag("gone", repo.lookup_branch("dev"))
    repo.delete_tag("gone")
    repo.set_metadata({"owner": "somebody", "n": 7})
    return repo


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_a_whole_history(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    wrote = build(writer, tmp_path)
    read = reader.Repository.open(reader.local_filesystem_storage(str(tmp_path)))
    assert read.list_branches() == wrote.list_branches() == {"main", "dev"}
    assert read.list_tags() == wrote.list_tags() == {"v1"}
    for branch in ("main", "dev"):
        assert history(read, branch) == history(wrote, branch)
        assert_same(everything(read.readonly_session(branch).store), everything(wrote.readonly_session(branch).store))
    assert_same(everything(read.readonly_session(tag="v1").store), everything(wrote.readonly_session(tag="v1").store))
    assert ops(read) == ops(wrote)
    assert read.get_metadata() == wrote.get_metadata()
    third, second, first, root = (info.id for info in wrote.ancestry(branch="dev"))
    for start, stop in ((root, first), (first, second), (second, third), (root, third)):
        assert diff_of(read, start, stop) == diff_of(wrote, start, stop)
    for snapshot_id in (first, second, third):
        assert {(f.id, f.size_bytes, f.num_chunk_refs) for f in read.list_manifest_files(snapshot_id)} == {
            (f.id, f.size_bytes, f.num_chunk_refs) for f in wrote.list_manifest_files(snapshot_id)
        }


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_the_other_commits_on_top(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    first = build(writer, tmp_path)
    second = reader.Repository.open(reader.local_filesystem_storage(str(tmp_path)))
    for turn, repo in enumerate([second, first, second, first]):
        session = repo.writable_session("main")
        root = zarr.open_group(session.store, mode="a")
        root["group/grid"][turn] = 100 + turn
        root[f"group/by-{turn}"] = np.arange(3)
        session.commit(f"turn {turn}")
        assert history(first) == history(second)
        assert_same(
            everything(first.readonly_session("main").store), everything(second.readonly_session("main").store)
        )
    assert [message for _, _, message, _, _ in history(first)][:4] == [f"turn {i}" for i in (3, 2, 1, 0)]


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_each_rebases_on_the_other(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    one = build(writer, tmp_path)
    other = reader.Repository.open(reader.local_filesystem_storage(str(tmp_path)))
    late, early = one.writable_session("main"), other.writable_session("main")
    zarr.open_array(early.store, path="group/grid", mode="r+")[0:2, 0:2] = 11
    zarr.open_array(late.store, path="group/grid", mode="r+")[4:6, 0:2] = 22
    early.commit("early")
    late.commit("late", rebase_with=writer.ConflictDetector())
    grid = np.asarray(zarr.open_array(other.readonly_session("main").store, path="group/grid", mode="r")[:])
    assert (grid[0:2, 0:2] == 11).all()
    assert (grid[4:6, 0:2] == 22).all()


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
def test_virtual_references(writer: ModuleType, reader: ModuleType, tmp_path: Path) -> None:
    data = np.arange(4000, dtype="<i4")
    source = tmp_path / "source file.bin"
    data.tofile(source)
    prefix = f"file://{tmp_path}/"
    location = f"file://{str(source).replace(' ', '%20')}"

    def options(lib: ModuleType) -> dict[str, Any]:
        config = lib.RepositoryConfig()
        store = lib.ObjectStoreConfig.LocalFileSystem(str(tmp_path))
        config.set_virtual_chunk_container(lib.VirtualChunkContainer(prefix, store))
        return {"config": config, "authorize_virtual_chunk_access": {prefix: lib.credentials.LocalFileSystemAccess}}

    repo = writer.Repository.create(writer.local_filesystem_storage(str(tmp_path / "repo")), **options(writer))
    session = repo.writable_session("main")
    array = zarr.create_array(
        session.store, name="v", shape=(2000, 2), chunks=(1, 2), dtype="int32", compressors=None, filters=None
    )
    n = 1500  # above the threshold for compressing locations in official
    failed = session.store.set_virtual_refs_arr(
        "v", (n, 1), [location] * n, np.arange(n, dtype="u8") * 8, np.full(n, 8, "u8")
    )
    assert failed is None
    session.store.set_virtual_ref("v/c/1999/0", location, offset=15992, length=8)
    array[1998] = [1, 2]
    repo_id = session.commit("virtual")
    read = reader.Repository.open(
        reader.local_filesystem_storage(str(tmp_path / "repo")),
        authorize_virtual_chunk_access={prefix: reader.credentials.LocalFileSystemAccess},
    )
    session = read.readonly_session(snapshot_id=repo_id)
    values = zarr.open_array(session.store, path="v", mode="r")[:]
    expected = np.zeros((2000, 2), "i4")
    expected[:n] = data[: 2 * n].reshape(n, 2)
    expected[1999] = data[3998:4000]
    expected[1998] = [1, 2]
    np.testing.assert_array_equal(values, expected)
    assert set(session.all_virtual_chunk_locations()) == {location}

    def kind(session: Any, index: list[int]) -> str:
        return str(session.chunk_type("/v", index)).rpartition(".")[2]  # official's is not a Python enum

    assert kind(session, [0, 0]) == "virtual"
    assert kind(session, [1998, 0]) == "inline"
    assert kind(session, [1700, 0]) == "uninitialized"

    async def coordinates(session: Any) -> list[tuple[int, ...]]:
        return [tuple(index) async for index in session.chunk_coordinates("/v")]

    theirs = asyncio.run(coordinates(session))
    assert sorted(theirs) == [(i, 0) for i in range(n)] + [(1998, 0), (1999, 0)]
    # without authorisation, neither library reads a byte of the user's files
    closed = reader.Repository.open(reader.local_filesystem_storage(str(tmp_path / "repo")))
    with pytest.raises(reader.IcechunkError) as caught:
        zarr.open_array(closed.readonly_session("main").store, path="v", mode="r")[0]
    assert caught.value.kind == "unauthorized-virtual-chunk-container"


# --- random hierarchies ----------------------------------------------------------------------------------------------

names = st.text("abz-_.0é", min_size=1, max_size=3).filter(lambda name: name not in (".", "..") and name != "c")
dtypes = st.sampled_from(["bool", "int8", "uint16", "int32", "float32", "float64", "complex64"])


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(0, 3))
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=ndim, max_size=ndim)))
    chunks = tuple(draw(st.integers(1, max(1, n))) for n in shape)
    return {
        "shape": shape,
        "chunks": chunks or "auto",
        "dtype": draw(dtypes),
        "dimension_names": draw(
            st.none()
            | st.lists(st.none() | names, min_size=ndim, max_size=ndim, unique_by=lambda name: name or object())
        ),
        "attributes": draw(st.dictionaries(names, st.integers() | st.text(max_size=3) | st.booleans(), max_size=2)),
    }


@st.composite
def scripts(draw: st.DrawFn) -> list[list[tuple[Any, ...]]]:
    """Commits. Each is a list of steps on random paths."""
    step = st.one_of(
        st.tuples(st.just("group"), st.lists(names, min_size=1, max_size=2)),
        st.tuples(st.just("array"), st.lists(names, min_size=1, max_size=3), arrays()),
        st.tuples(st.just("write"), st.integers(0, 20), st.integers(0, 2**31)),
        st.tuples(st.just("resize"), st.integers(0, 20), st.integers(0, 8)),
        st.tuples(st.just("delete"), st.integers(0, 20)),
        st.tuples(st.just("attr"), st.integers(0, 20), st.integers()),
    )
    return draw(st.lists(st.lists(step, min_size=1, max_size=6), min_size=1, max_size=4))


def play(repo: Any, script: list[list[tuple[Any, ...]]]) -> None:
    for number, steps in enumerate(script):
        session = repo.writable_session("main")
        root = zarr.open_group(session.store, mode="a")
        for step in steps:
            _play_step(root, step)
        if session.has_uncommitted_changes:
            session.commit(f"commit {number}")


def _play_step(root: zarr.Group, step: tuple[Any, ...]) -> None:
    members = dict(sorted(root.members(max_depth=None)))
    if step[0] in ("group", "array"):
        path = "/".join(step[1])
        above = ["/".join(step[1][:i]) for i in range(1, len(step[1]))]
        if path in members or any(isinstance(members.get(p), zarr.Array) for p in above):
            return
        if step[0] == "group":
            root.create_group(path)
        else:
            root.create_array(path, **step[2])
        return
    if not members:
        return
    path = list(members)[step[1] % len(members)]
    node = members[path]
    if step[0] == "delete":
        del root[path]
    elif step[0] == "attr":
        node.attrs["changed"] = step[2]
    elif isinstance(node, zarr.Array):
        if step[0] == "resize" and node.ndim:
            node.resize((step[2], *node.shape[1:]))
        elif step[0] == "write" and 0 not in node.shape:
            rng = np.random.default_rng(step[2])
            values = rng.integers(0, 2 if node.dtype == bool else 100, node.shape).astype(node.dtype)
            cut = tuple(slice(int(rng.integers(0, n)), None) for n in node.shape)
            node[cut or ...] = values[cut] if cut else values


@pytest.mark.parametrize(("writer", "reader"), LIBRARIES)
@given(script=scripts())
def test_random_histories(
    writer: ModuleType,
    reader: ModuleType,
    script: list[list[tuple[Any, ...]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("repo")
    wrote = writer.Repository.create(writer.local_filesystem_storage(str(path)))
    play(wrote, script)
    model = zarr.storage.MemoryStore()
    root = zarr.open_group(model, mode="a")
    for steps in script:
        for step in steps:
            _play_step(root, step)
    read = reader.Repository.open(reader.local_filesystem_storage(str(path)))
    assert history(read) == history(wrote)
    assert_same(everything(read.readonly_session("main").store), everything(model))
    snapshots = [info.id for info in read.ancestry(branch="main")]
    for newer, older in zip(snapshots, snapshots[1:], strict=False):
        assert diff_of(read, older, newer) == diff_of(wrote, older, newer)


def test_official_is_the_version_we_know() -> None:
    assert official.__version__.startswith("2.")
