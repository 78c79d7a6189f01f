"""Snapshot files: node tables, round trips, exchange with the official library, damage."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import assume, given
from hypothesis import strategies as st

from icechunk_engine.catalog.inspection import official_time
from icechunk_engine.errors import ErrorKind, FormatError, InternalError, InvalidInputError
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout
from icechunk_engine.format import header, schema
from icechunk_engine.format.header import FileType
from icechunk_engine.format.snapshot import (
    ManifestFiles,
    ManifestRef,
    Node,
    NodeTable,
    Snapshot,
    decode_snapshot,
    encode_snapshot,
    initial_snapshot,
)
from icechunk_engine.format.zarr_metadata import ArrayShape, parse_node_metadata
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ManifestId, NodeId, SnapshotId
from tests.engine.format.damage import assert_survives, body_of

# --- strategies --------------------------------------------------------------------------------------------------

components = st.text(st.sampled_from("ab-.0é😀 \0"), min_size=1, max_size=4)
node_paths = st.lists(components, max_size=4).map(lambda parts: "/" + "/".join(parts))
manifest_ids = st.binary(min_size=12, max_size=12).map(ManifestId)


@st.composite
def shapes(draw: st.DrawFn) -> ArrayShape:
    ndim = draw(st.integers(0, 4))
    names = st.none() | st.text(st.sampled_from("xyté"), min_size=1, max_size=3)
    return ArrayShape(
        lengths=tuple(draw(st.lists(st.integers(0, 2**64 - 1), min_size=ndim, max_size=ndim))),
        num_chunks=tuple(draw(st.lists(st.integers(0, 2**32 - 1), min_size=ndim, max_size=ndim))),
        dimension_names=draw(st.none() | st.lists(names, min_size=ndim, max_size=ndim).map(tuple)),
    )


@st.composite
def nodes(draw: st.DrawFn, path: str) -> Node:
    node_id = NodeId(draw(st.binary(min_size=8, max_size=8)))
    user_data = draw(st.binary(max_size=100))
    if draw(st.booleans()):
        return Node(node_id, path, user_data, None)
    shape = draw(shapes())
    extent = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
    extents = st.lists(extent, min_size=shape.ndim, max_size=shape.ndim).map(tuple)
    refs = draw(st.lists(st.builds(ManifestRef, manifest_ids, extents), max_size=3))
    return Node(node_id, path, user_data, shape, tuple(refs))


@st.composite
def trees(draw: st.DrawFn, max_size: int = 12) -> list[Node]:
    """Draw nodes with distinct paths and ids, in any order."""
    found = [draw(nodes(path)) for path in draw(st.lists(node_paths, max_size=max_size, unique=True))]
    assume(len({node.node_id for node in found}) == len(found))
    return found


def in_file_order(tree: list[Node]) -> list[Node]:
    return sorted(tree, key=lambda node: node.path.encode())


def all_nodes(table: NodeTable) -> list[Node]:
    return [table.node(row) for row in range(len(table))]


def snapshot_of(tree: list[Node], **more: Any) -> Snapshot:
    ids = {ref.manifest_id for node in tree for ref in node.manifests}
    fields: dict[str, Any] = {
        "snapshot_id": SnapshotId.random(),
        "parent_id": None,
        "flushed_at_us": 1_700_000_000_000_000,
        "message": "a message",
        "metadata": {},
        "manifest_files": ManifestFiles.of([(one, 100 + i, i) for i, one in enumerate(ids)]),
        "nodes": NodeTable.of(tree),
        "spec_version": 2,
    }
    return Snapshot(**(fields | more))


def assert_same(one: Snapshot, other: Snapshot) -> None:
    for name in ("snapshot_id", "parent_id", "flushed_at_us", "message", "metadata", "spec_version"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("ids", "sizes", "num_refs"):
        np.testing.assert_array_equal(getattr(one.manifest_files, name), getattr(other.manifest_files, name))
    assert all_nodes(one.nodes) == all_nodes(other.nodes)


# --- node tables ---------------------------------------------------------------------------------------------------


@given(trees(), node_paths)
def test_lookups_agree_with_a_plain_list(tree: list[Node], other: str) -> None:
    table = NodeTable.of(tree)
    expected = in_file_order(tree)
    assert all_nodes(table) == expected
    paths = [node.path for node in expected]
    # Often enough that both ways of searching are used.
    for _ in range(60):
        assert table.find(other) == (paths.index(other) if other in paths else -1)
    for row, node in enumerate(expected):
        assert table.find(node.path) == row
        assert table.path(row) == node.path
        assert table.row_of_id(node.node_id) == row
        assert table.is_array[row] == node.is_array
    unused = NodeId.random()
    assert table.row_of_id(unused) == -1
    for top in {*paths, other, "/"}:
        prefix = top if top != "/" else ""
        below = [row for row, path in enumerate(paths) if path.startswith(prefix + "/") and path != "/"]
        own = [paths.index(top)] if top in paths else []
        assert list(table.subtree(top)) == sorted(own + below)
        assert list(table.children(top)) == [row for row in below if "/" not in paths[row][len(prefix) + 1 :]]


@given(trees(), trees(6), st.data())
def test_replace_agrees_with_a_plain_list(tree: list[Node], added: list[Node], data: st.DataObject) -> None:
    expected = in_file_order(tree)
    table = NodeTable.of(tree)
    dropped = data.draw(st.lists(st.integers(0, len(tree) - 1), unique=True)) if tree else []
    kept = [node for row, node in enumerate(expected) if row not in dropped]
    taken = {node.path for node in kept}
    added = [node for node in added if node.path not in taken]
    replaced = table.replace(dropped, added)
    assert all_nodes(replaced) == in_file_order(kept + added)
    assert all_nodes(table) == expected  # tables never change
    again = replaced.replace([], in_file_order(kept)[:0])
    assert all_nodes(again) == all_nodes(replaced)


def test_replacing_many_nodes_at_once() -> None:
    tree = [group(f"/{i:04}") for i in range(0, 1000, 2)]
    table = NodeTable.of(tree).replace(range(0, 500, 5), [group(f"/{i:04}") for i in range(1, 1000, 2)])
    expected = [f"/{i:04}" for i in range(1000) if i % 2 or i // 2 % 5]
    assert [table.path(row) for row in range(len(table))] == expected


def group(path: str) -> Node:
    return Node(NodeId.random(), path, b"{}", None)


def array(path: str, shape: ArrayShape, *refs: ManifestRef) -> Node:
    return Node(NodeId.random(), path, b"{}", shape, refs)


def test_dimension_names_do_not_pile_up() -> None:
    def named(*names: str | None) -> Node:
        return array("/a", ArrayShape((1,) * len(names), (1,) * len(names), names))

    table = NodeTable.of([named("x", "y")])
    for i in range(10):
        table = table.replace([0], [named("y", None, f"z{i % 2}")])
    assert table.node(0).shape == ArrayShape((1,) * 3, (1,) * 3, ("y", None, "z1"))
    assert len(table.names) == 4
    assert table.node(0).shape.dimension_names == ("y", None, "z1")


def test_paths_sort_by_bytes_not_by_components() -> None:
    table = NodeTable.of([group("/a/b"), group("/a-b"), group("/a"), group("/")])
    assert [table.path(row) for row in range(4)] == ["/", "/a", "/a-b", "/a/b"]
    assert list(table.subtree("/a")) == [1, 3]
    assert list(table.children("/")) == [1, 2]


@given(trees())
def test_pickle(tree: list[Node]) -> None:
    table = NodeTable.of(tree)
    table.find("/a")
    assert all_nodes(pickle.loads(pickle.dumps(table))) == all_nodes(table)


def test_manifest_files() -> None:
    one, two, three = sorted(ManifestId.random() for _ in range(3))
    files = ManifestFiles.of([(three, 30, 3), (one, 10, 1)])
    both = files.union(ManifestFiles.of([(two, 20, 2), (one, 10, 1)]))
    assert [ManifestId.from_row(row) for row in both.ids] == [one, two, three]
    assert both.sizes.tolist() == [10, 20, 30]
    assert both.counts() == {one.raw: 1, two.raw: 2, three.raw: 3}
    used = NodeTable.of([array("/a", ArrayShape((), ()), ManifestRef(three, ()), ManifestRef(one, ()))])
    kept = both.restrict(used.used_manifest_ids())
    assert [ManifestId.from_row(row) for row in kept.ids] == [one, three]
    assert kept.num_refs.tolist() == [1, 3]


def test_ids_that_end_in_zeros_stay_apart() -> None:
    short, shorter = ManifestId(b"a" * 11 + b"\0"), ManifestId(b"a" * 10 + b"\0\0")
    files = ManifestFiles.of([(short, 1, 1), (shorter, 2, 2)])
    table = NodeTable.of([array("/a", ArrayShape((), ()), ManifestRef(short, ()))])
    assert files.restrict(table.used_manifest_ids()).sizes.tolist() == [1]


# --- round trips ---------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text("aé", max_size=4),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text("abé", max_size=3), children, max_size=3)
    ),
    max_leaves=8,
)


@given(
    tree=trees(),
    message=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    metadata=st.dictionaries(st.text("abé", max_size=3), json_values, max_size=4),
    flushed_at_us=st.integers(0, 2**64 - 1),
)
def test_round_trip(tree: list[Node], message: str, metadata: dict[str, Any], flushed_at_us: int) -> None:
    snapshot = snapshot_of(tree, message=message, metadata=metadata, flushed_at_us=flushed_at_us)
    decoded = decode_snapshot(encode_snapshot(snapshot))
    assert_same(decoded, snapshot)
    assert_same(decode_snapshot(encode_snapshot(decoded)), snapshot)


def test_initial_snapshot() -> None:
    snapshot = initial_snapshot(5)
    assert (snapshot.snapshot_id, snapshot.flushed_at_us, len(snapshot.nodes)) == (INITIAL_SNAPSHOT_ID, 5, 0)
    assert_same(decode_snapshot(encode_snapshot(snapshot)), snapshot)


def test_refuses_what_readers_would_not_understand() -> None:
    orphan = snapshot_of([group("/")], manifest_files=ManifestFiles.of([(ManifestId.random(), 1, 1)]))
    with pytest.raises(InternalError) as inconsistent:
        encode_snapshot(orphan)
    assert inconsistent.value.kind == ErrorKind.INCONSISTENT_MANIFESTS
    for broken in ({"message": "\ud800"}, {"metadata": {"a": {1, 2}}}, {"metadata": {"\ud800": 1}}):
        with pytest.raises(InvalidInputError) as invalid:
            encode_snapshot(snapshot_of([], **broken))
        assert invalid.value.kind == ErrorKind.BAD_METADATA
    with pytest.raises(InvalidInputError):
        NodeTable.of([group("/\ud800")])


def test_extents_of_another_rank_are_refused_for_that_array_only() -> None:
    bad = array("/bad", ArrayShape((4, 4), (2, 2)), ManifestRef(ManifestId.random(), ((0, 1),)))
    decoded = decode_snapshot(encode_snapshot(snapshot_of([bad, group("/good")])))
    assert decoded.nodes.node(1).path == "/good"
    with pytest.raises(FormatError, match="/bad"):
        decoded.nodes.node(0)


def test_unsorted_nodes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are found even if a file lists them out of order."""
    paths = ["/b", "/a", "/", "/c/d", "/a/x"]
    with monkeypatch.context() as patched:
        patched.setattr(NodeTable, "sorted", lambda self: self)
        data = encode_snapshot(snapshot_of([group(path) for path in paths]))
    table = decode_snapshot(data).nodes
    assert [table.path(row) for row in range(5)] == sorted(paths)
    assert all(table.path(table.find(path)) == path for path in paths)


def test_unknown_node_type() -> None:
    arena = Arena(schema.IDENTIFIER)
    fields = dict.fromkeys((2, 4, 5, 6), OFFSET)
    root = arena.tables(TableLayout.of({0: "V12", **fields}), 1)
    arena.set_root(root)
    root.set(0, bytes(12))
    listed = arena.offset_vectors([1])
    root.point(2, listed.positions)
    node = arena.tables(TableLayout.of({0: "V8", 1: OFFSET, 2: OFFSET, 3: "u1", 4: OFFSET}), 1)
    listed.point(node.positions)
    node.set(0, bytes(8))
    node.set(3, 3)
    empty = arena.vector(np.empty(0, np.uint8))
    for slot in (1, 2):
        node.point(slot, empty)
    node.point(4, arena.tables(TableLayout.of({}), 1).positions)
    for slot in (4, 5, 6):
        root.point(slot, arena.vector(np.empty(0, np.uint32)))
    with pytest.raises(FormatError, match="neither group nor array"):
        decode_snapshot(header.pack(FileType.SNAPSHOT, 2, arena.tobytes()))


# --- both ways with the official library -----------------------------------------------------------------------------

METADATA = {
    "none": None,
    "yes": True,
    "count": 3,
    "negative": -70_000,
    "big": 2**63,
    "ratio": 0.1,
    "short": 2.5,
    "text": "é😀",
    "list": [1, "a", None, [True, 2.0]],
    "map": {"b": {"deep": [{}]}, "a": 1},
    "empty": {},
}


def fill(store: Any) -> None:
    """Create groups, arrays of rank 0 to 4, dimension names of all kinds, attributes, several manifests."""
    root = zarr.open_group(store, mode="a", attributes={"title": "root"})
    root.create_group("a-group/nested", attributes={"n": [1, 2]})
    for ndim in range(5):
        shape = (5, 3, 4, 2)[:ndim]
        made = root.create_array(
            f"r{ndim}", shape=shape, chunks=(2, 1, 4, 1)[:ndim], dtype="i4", attributes={"d": ndim}
        )
        made[...] = np.arange(int(np.prod(shape))).reshape(shape)
    root.create_array("named", shape=(4, 4), chunks=(2, 2), dtype="f8", dimension_names=["time", None])[:] = 1.5
    root.create_array("nameless", shape=(4,), chunks=(2,), dtype="f8", dimension_names=[None])
    root.create_array("a-group/empty", shape=(0, 3), chunks=(1, 3), dtype="u1")


def create_official(path: Path, **options: Any) -> official.Repository:
    splitting = official.ManifestSplittingConfig.from_dict(
        {official.ManifestSplitCondition.AnyArray(): {official.ManifestSplitDimCondition.Axis(0): 2}}
    )
    config = official.RepositoryConfig(manifest=official.ManifestConfig(splitting=splitting))
    return official.Repository.create(official.local_filesystem_storage(str(path)), config=config, **options)


def values_of(store: Any) -> dict[str, Any]:
    root = zarr.open_group(store, mode="r")
    return {path: node[...].tolist() for path, node in root.members(max_depth=None) if isinstance(node, zarr.Array)}


def inspected(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot in the form of the official ``inspect_snapshot``."""

    def dimensions(shape: ArrayShape) -> list[dict[str, Any]]:
        names = shape.dimension_names or (None,) * shape.ndim
        return [
            ({"name": name} if name is not None else {}) | {"array_length": length, "num_chunks": count}
            for name, length, count in zip(names, shape.lengths, shape.num_chunks, strict=True)
        ]

    def node_dict(node: Node) -> dict[str, Any]:
        common = {"id": str(node.node_id), "path": node.path, "node_type": "array" if node.is_array else "group"}
        if node.shape is None:
            return common
        refs = [{"id": str(ref.manifest_id), "extents": [list(e) for e in ref.extents]} for ref in node.manifests]
        return common | {"shape": dimensions(node.shape), "manifest_refs": refs}

    files = snapshot.manifest_files
    return {
        "id": str(snapshot.snapshot_id),
        "flushed_at": official_time(snapshot.flushed_at_us),
        "commit_message": snapshot.message,
        "metadata": snapshot.metadata,
        "manifests": [
            {"id": str(ManifestId.from_row(row)), "size_bytes": int(size), "num_chunk_refs": int(count)}
            for row, size, count in zip(files.ids, files.sizes, files.num_refs, strict=True)
        ],
        "nodes": [node_dict(node) for node in all_nodes(snapshot.nodes)],
    }


def by_official(repo: official.Repository, snapshot_id: str) -> dict[str, Any]:
    found = dict(repo.inspect_snapshot(snapshot_id))
    del found["header"]
    return found


@pytest.mark.parametrize("spec_version", [1, 2])
def test_official_snapshots_there_and_back(tmp_path: Path, spec_version: int) -> None:
    repo = create_official(tmp_path, spec_version=spec_version)
    session = repo.writable_session("main")
    fill(session.store)
    snapshot_id = session.commit("filled ✓", metadata=METADATA)
    expected = values_of(repo.readonly_session("main").store)

    file = tmp_path / "snapshots" / snapshot_id
    snapshot = decode_snapshot(file.read_bytes())
    assert inspected(snapshot) == by_official(repo, snapshot_id)
    assert snapshot.spec_version == spec_version
    assert snapshot.parent_id == (INITIAL_SNAPSHOT_ID if spec_version == 1 else None)
    for node in all_nodes(snapshot.nodes):
        kind, shape = parse_node_metadata(node.user_data)
        assert (kind == "array", shape) == (node.is_array, node.shape), node.path
        assert json.loads(node.user_data)["zarr_format"] == 3

    file.unlink()  # a new inode, as backups may be links
    file.write_bytes(encode_snapshot(snapshot))
    reopened = official.Repository.open(official.local_filesystem_storage(str(tmp_path)))
    assert by_official(reopened, snapshot_id) == inspected(snapshot)
    assert values_of(reopened.readonly_session("main").store) == expected

    session = reopened.writable_session("main")
    zarr.open_group(session.store)["r2"][0, 0] = -1
    newest = session.commit("on top")
    expected["r2"][0][0] = -1
    assert values_of(reopened.readonly_session("main").store) == expected
    after = decode_snapshot((tmp_path / "snapshots" / newest).read_bytes())
    changed = [a.path for a, b in zip(all_nodes(snapshot.nodes), all_nodes(after.nodes), strict=True) if a != b]
    assert changed == ["/r2"]


def test_official_reads_a_table_that_we_changed(tmp_path: Path) -> None:
    """Delete, add and change nodes in a file of the official library."""
    repo = create_official(tmp_path)
    session = repo.writable_session("main")
    fill(session.store)
    snapshot_id = session.commit("filled")
    file = tmp_path / "snapshots" / snapshot_id
    snapshot = decode_snapshot(file.read_bytes())
    table = snapshot.nodes
    copied = table.node(table.find("/r3"))
    new = [
        dataclasses.replace(copied, node_id=NodeId.random(), path=path, manifests=()) for path in ("/0", "/zz", "/r22")
    ]
    changed = table.replace([table.find("/r1"), table.find("/r4")], new)
    files = snapshot.manifest_files.restrict(changed.used_manifest_ids())
    assert len(files) < len(snapshot.manifest_files)
    file.unlink()
    file.write_bytes(encode_snapshot(dataclasses.replace(snapshot, nodes=changed, manifest_files=files)))
    reopened = official.Repository.open(official.local_filesystem_storage(str(tmp_path)))
    values = values_of(reopened.readonly_session("main").store)
    assert {"0", "zz", "r22"} <= values.keys()
    assert not {"r1", "r4"} & values.keys()
    assert values["zz"] == np.zeros((5, 3, 4)).tolist()
    assert values["r3"] == np.arange(60).reshape(5, 3, 4).tolist()


def test_spec_1_has_no_rectilinear_grids(tmp_path: Path) -> None:
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [3],
        "chunk_grid": {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[1, 2]]}},
    }
    node = Node(NodeId.random(), "/a", json.dumps(document).encode(), ArrayShape((3,), (2,)))
    with pytest.raises(FormatError) as caught:
        encode_snapshot(snapshot_of([node], spec_version=1))
    assert caught.value.kind == ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION


# --- damage ----------------------------------------------------------------------------------------------------------


def use(snapshot: Snapshot) -> None:
    """Do everything that a session does with a snapshot."""
    table = snapshot.nodes
    assert snapshot.nbytes > 0
    for row in range(len(table)):
        try:
            node = table.node(row)
        except FormatError:
            continue
        table.find(node.path)
        table.row_of_id(node.node_id)
        table.children(node.path)
        table.subtree(node.path)
    table.used_manifest_ids()
    table.replace([0] if len(table) else [], [group("/new")])


def test_damaged_bodies() -> None:
    ref = ManifestRef(ManifestId.random(), ((0, 2), (0, 1)))
    tree = [
        group("/"),
        array("/a", ArrayShape((4, 2), (2, 1), ("x", None)), ref),
        array("/b", ArrayShape((4, 2), (2, 1)), dataclasses.replace(ref, manifest_id=ManifestId.random())),
        array("/s", ArrayShape((), ())),
    ]
    body = body_of(encode_snapshot(snapshot_of(tree, metadata={"a": 1, "b": [None, "x"]})), FileType.SNAPSHOT)
    assert_survives(decode_snapshot, use, body, FileType.SNAPSHOT, seed=1)


def test_damaged_spec_1_bodies(tmp_path: Path) -> None:
    repo = create_official(tmp_path, spec_version=1)
    session = repo.writable_session("main")
    zarr.open_group(session.store).create_array("a", shape=(4, 2), chunks=(2, 2), dtype="i4")[:] = 1
    snapshot_id = session.commit("one", metadata={"a": [1, {"b": None}]})
    body = body_of((tmp_path / "snapshots" / snapshot_id).read_bytes(), FileType.SNAPSHOT)

    def decode(data: bytes) -> Snapshot:
        return decode_snapshot(data[:36] + b"\x01" + data[37:])

    assert_survives(decode, use, body, FileType.SNAPSHOT, seed=2)
