"""Snapshot files: all nodes of a hierarchy at one moment (spec, *Snapshot file*).

Files are read into columns and written from columns, without a loop over nodes. The exception is spec version 1, which
stores chunk lengths instead of numbers of chunks. These are only in the metadata documents, so each is parsed.

Invariant of a written snapshot: *the list of manifest files names exactly the manifests that its nodes refer to*, with
exact sizes. The official library requires the first, and fetches ``size`` bytes of a manifest: with a size that is too
small, it reads a truncated file. :func:`encode_snapshot` compares both sets and raises.
"""

from __future__ import annotations

import copy
from collections.abc import Buffer as BytesLike
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from icechunk_engine.columns.tables import I64, U8, U32, U64, Rows, gather_ranges, row_keys, starts_of
from icechunk_engine.errors import ErrorKind, FormatError, InternalError
from icechunk_engine.flatbuf.reader import Buffer, Tables
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout, TableWriter
from icechunk_engine.format import header, schema
from icechunk_engine.format.header import FileType
from icechunk_engine.format.metadata import MetadataColumns, encode_text
from icechunk_engine.format.nodes import UNNAMED, ManifestRef, Node, NodeTable, without_empty
from icechunk_engine.format.zarr_metadata import MAX_NUM_CHUNKS, regular_chunk_lengths
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ManifestId, NodeId, SnapshotId
from icechunk_engine.types import JsonObject

__all__ = [
    "INITIAL_MESSAGE",
    "INITIAL_METADATA",
    "ManifestFiles",
    "ManifestRef",
    "Node",
    "NodeTable",
    "Snapshot",
    "decode_snapshot",
    "encode_snapshot",
    "initial_snapshot",
]

INITIAL_MESSAGE = "Repository initialized"
INITIAL_METADATA: JsonObject = {"__icechunk": {"is_root": True}}


@dataclass(frozen=True, slots=True, eq=False)
class ManifestFiles:
    """Columns of the ``m`` manifests that a snapshot uses, sorted by id.

    Attributes
    ----------
    ids
        ``uint8 (m, 12)``.
    sizes
        ``uint64 (m,)``: bytes of the whole object, 0 if unknown.
    num_refs
        ``uint32 (m,)``: number of chunk references in it.
    """

    ids: U8
    sizes: U64
    num_refs: U32

    @classmethod
    def of(cls, files: Sequence[tuple[ManifestId, int, int]]) -> Self:
        """Make columns of ``(id, size in bytes, number of references)``. The last one of equal ids stays."""
        by_id = sorted({manifest_id.raw: (size, count) for manifest_id, size, count in files}.items())
        return cls(
            np.frombuffer(b"".join([raw for raw, _ in by_id]), np.uint8).reshape(-1, ManifestId.SIZE),
            np.array([size for _, (size, _) in by_id], np.uint64),
            np.array([count for _, (_, count) in by_id], np.uint32),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.ids.nbytes + self.sizes.nbytes + self.num_refs.nbytes)

    def counts(self) -> dict[bytes, int]:
        """Return the number of references of each manifest, by id."""
        raw, size = self.ids.tobytes(), ManifestId.SIZE
        ids = [raw[start : start + size] for start in range(0, len(raw), size)]
        return dict(zip(ids, self.num_refs.tolist(), strict=True))

    def take(self, rows: Rows) -> ManifestFiles:
        """Return the files at ``rows``."""
        return ManifestFiles(self.ids[rows], self.sizes[rows], self.num_refs[rows])

    def sorted(self) -> ManifestFiles:
        """Return the files sorted by id. If an id appears twice, one stays."""
        keys = row_keys(self.ids)
        if bool((keys[1:] > keys[:-1]).all()):
            return self
        return self.take(np.unique(keys, return_index=True)[1])

    def union(self, other: ManifestFiles) -> ManifestFiles:
        """Return the files of both."""
        return ManifestFiles(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.num_refs, other.num_refs]),
        ).sorted()

    def restrict(self, used: U8) -> ManifestFiles:
        """Return the files whose ids are among ``used``, ``uint8 (k, 12)``."""
        return self.take(np.isin(row_keys(self.ids), row_keys(used)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One snapshot file.

    Attributes
    ----------
    snapshot_id
        The id, which is also the name of the file.
    parent_id
        The parent, in spec 1 only. In spec 2, the repo info knows the parents.
    flushed_at_us
        When it was written, Unix microseconds.
    message, metadata
        Message and metadata of the commit.
    manifest_files
        Exactly the manifests that the nodes refer to.
    nodes
        The hierarchy.
    spec_version
        Spec version of the file.
    """

    snapshot_id: SnapshotId
    parent_id: SnapshotId | None
    flushed_at_us: int
    message: str
    metadata: JsonObject
    manifest_files: ManifestFiles
    nodes: NodeTable
    spec_version: int

    @property
    def nbytes(self) -> int:
        """Approximate bytes of memory held."""
        return 1024 + self.manifest_files.nbytes + self.nodes.nbytes


def initial_snapshot(flushed_at_us: int, spec_version: int = 2) -> Snapshot:
    """Make the first snapshot of a repository: no nodes, and a fixed id, message and metadata."""
    return Snapshot(
        snapshot_id=INITIAL_SNAPSHOT_ID,
        parent_id=None,
        flushed_at_us=flushed_at_us,
        message=INITIAL_MESSAGE,
        metadata=copy.deepcopy(INITIAL_METADATA),
        manifest_files=ManifestFiles.of([]),
        nodes=NodeTable.of([]),
        spec_version=spec_version,
    )


# --- reading -------------------------------------------------------------------------------------------------------


def decode_snapshot(data: BytesLike, name: str = "") -> Snapshot:
    """Decode a snapshot file of either spec version.

    Parameters
    ----------
    data
        The whole object.
    name
        Object name for messages.

    Raises
    ------
    FormatError
        The file is damaged, or another kind of file.
    """
    unpacked = header.unpack(data, FileType.SNAPSHOT, name)
    root = Buffer(unpacked.body, name or "this snapshot file").root()
    fields = schema.Snapshot
    parent, has_parent = root.struct(fields.PARENT_ID, SnapshotId.SIZE)
    metadata = MetadataColumns.read(root.vectors(fields.METADATA, 4))
    return Snapshot(
        snapshot_id=SnapshotId.from_row(root.required_struct(fields.ID, SnapshotId.SIZE, "the snapshot's id")[0]),
        parent_id=SnapshotId.from_row(parent[0]) if has_parent[0] else None,
        flushed_at_us=int(root.scalar(fields.FLUSHED_AT, np.uint64)[0]),
        message=root.strings(fields.MESSAGE, "the message").text(0),
        metadata=metadata.decode(0, unpacked.spec_version),
        manifest_files=_read_manifest_files(root),
        nodes=_read_nodes(root.vectors(fields.NODES, 4, "the list of nodes").tables(32)),
        spec_version=unpacked.spec_version,
    )


def _read_manifest_files(root: Tables) -> ManifestFiles:
    if bool(root.present(schema.Snapshot.MANIFEST_FILES_V2)[0]):
        files = root.vectors(schema.Snapshot.MANIFEST_FILES_V2, 4).tables(20)
        info = schema.ManifestFileInfoV2
        return ManifestFiles(
            files.required_struct(info.ID, ManifestId.SIZE, "a manifest's id"),
            files.scalar(info.SIZE_BYTES, np.uint64),
            files.scalar(info.NUM_CHUNK_REFS, np.uint32),
        ).sorted()
    structs = root.vectors(schema.Snapshot.MANIFEST_FILES, schema.MANIFEST_FILE_INFO_SIZE).structs()
    records = np.ascontiguousarray(structs).view(_MANIFEST_FILE_INFO).reshape(-1)
    ids = np.ascontiguousarray(records["id"]).view(np.uint8).reshape(-1, ManifestId.SIZE)
    return ManifestFiles(
        ids, records["size_bytes"].astype(np.uint64), records["num_chunk_refs"].astype(np.uint32)
    ).sorted()


_MANIFEST_FILE_INFO = np.dtype(
    {
        "names": ["id", "size_bytes", "num_chunk_refs"],
        "formats": ["V12", "<u8", "<u4"],
        "offsets": [0, 16, 24],
        "itemsize": schema.MANIFEST_FILE_INFO_SIZE,
    }
)


def _read_nodes(tables: Tables) -> NodeTable:
    fields = schema.NodeSnapshot
    tags = tables.scalar(fields.NODE_DATA_TYPE, np.uint8)
    is_array = tags == schema.NodeDataType.ARRAY
    if not bool((is_array | (tags == schema.NodeDataType.GROUP)).all()):
        raise FormatError(
            f"{tables.buffer.name} holds a node that is neither group nor array. A newer version of Icechunk "
            f"wrote it. Upgrade this library",
            ErrorKind.DESERIALIZATION,
        )
    arrays = tables.take(is_array).children(fields.NODE_DATA, "an array's data")
    lengths, num_chunks, ndims = _read_shapes(arrays)
    name_vectors = arrays.vectors(schema.ArrayNodeData.DIMENSION_NAMES, 4)
    name_texts, name_codes = name_vectors.tables(8).vectors(schema.DimensionName.NAME, 1).distinct()
    names = name_texts.text()
    ref_vectors = arrays.vectors(schema.ArrayNodeData.MANIFESTS, 4, "an array's list of manifests")
    refs = ref_vectors.tables(24)
    extents = refs.vectors(schema.ManifestRef.EXTENTS, schema.CHUNK_INDEX_RANGE_SIZE, "a manifest's extents")

    def starts(lengths: I64) -> I64:
        """Turn the lengths of arrays into the starts of all nodes. Groups have length 0."""
        of_nodes = np.zeros(len(tables), np.int64)
        of_nodes[is_array] = lengths
        return starts_of(of_nodes)

    has_names = np.zeros(len(tables), np.bool_)
    has_names[is_array] = name_vectors.present
    return NodeTable(
        node_ids=tables.required_struct(fields.ID, NodeId.SIZE, "a node's id"),
        paths=tables.strings(fields.PATH, "a node's path"),
        user_data=tables.vectors(fields.USER_DATA, 1, "a node's metadata").bytes_table(),
        is_array=is_array,
        dim_starts=starts(ndims),
        lengths=lengths,
        num_chunks=num_chunks,
        has_names=has_names,
        name_starts=starts(name_vectors.lengths),
        name_codes=without_empty(names, name_codes),
        names=names,
        manifest_starts=starts(ref_vectors.lengths),
        manifest_ids=refs.required_struct(schema.ManifestRef.OBJECT_ID, ManifestId.SIZE, "a manifest's id"),
        extent_starts=starts_of(extents.lengths),
        extents=np.ascontiguousarray(extents.structs()).view("<u4").astype(np.uint32, copy=False).reshape(-1, 2),
    ).sorted()


def _read_shapes(arrays: Tables) -> tuple[U64, U32, I64]:
    """Read lengths, numbers of chunks, and the rank of each array: from the newer field if present, else the older."""
    newer = arrays.vectors(schema.ArrayNodeData.SHAPE_V2, 4)
    dims = newer.tables(8)
    lengths = dims.scalar(schema.DimensionShapeV2.ARRAY_LENGTH, np.uint64)
    num_chunks = dims.scalar(schema.DimensionShapeV2.NUM_CHUNKS, np.uint32)
    if bool(newer.present.all()):
        return lengths, num_chunks, newer.lengths
    older = arrays.vectors(schema.ArrayNodeData.SHAPE, schema.DIMENSION_SHAPE_SIZE, "an array's shape")
    structs = np.ascontiguousarray(older.structs()).view("<u8").astype(np.uint64, copy=False).reshape(-1, 2)
    array_lengths, chunk_lengths = structs[:, 0], structs[:, 1]
    edges = np.maximum(chunk_lengths, np.uint64(1))
    counts = array_lengths // edges + (array_lengths % edges > 0)
    counts = np.where(chunk_lengths > 0, np.minimum(counts, np.uint64(MAX_NUM_CHUNKS)), np.uint64(0))
    starts = np.where(newer.present, starts_of(newer.lengths)[:-1], len(lengths) + starts_of(older.lengths)[:-1])
    ndims = np.where(newer.present, newer.lengths, older.lengths)
    return (
        gather_ranges(np.concatenate([lengths, array_lengths]), starts, ndims),
        gather_ranges(np.concatenate([num_chunks, counts.astype(np.uint32)]), starts, ndims),
        ndims,
    )


# --- writing -------------------------------------------------------------------------------------------------------

_ID = f"V{SnapshotId.SIZE}"
_ROOT = TableLayout.of(
    {
        schema.Snapshot.ID: _ID,
        schema.Snapshot.PARENT_ID: _ID,
        schema.Snapshot.NODES: OFFSET,
        schema.Snapshot.FLUSHED_AT: "<u8",
        schema.Snapshot.MESSAGE: OFFSET,
        schema.Snapshot.METADATA: OFFSET,
        schema.Snapshot.MANIFEST_FILES: OFFSET,
        schema.Snapshot.MANIFEST_FILES_V2: OFFSET,
    }
)
_NODE = TableLayout.of(
    {
        schema.NodeSnapshot.ID: f"V{NodeId.SIZE}",
        schema.NodeSnapshot.PATH: OFFSET,
        schema.NodeSnapshot.USER_DATA: OFFSET,
        schema.NodeSnapshot.NODE_DATA_TYPE: "u1",
        schema.NodeSnapshot.NODE_DATA: OFFSET,
    }
)
_GROUP_DATA = TableLayout.of({})
_ARRAY_DATA = TableLayout.of(
    {
        schema.ArrayNodeData.SHAPE: OFFSET,
        schema.ArrayNodeData.DIMENSION_NAMES: OFFSET,
        schema.ArrayNodeData.MANIFESTS: OFFSET,
        schema.ArrayNodeData.SHAPE_V2: OFFSET,
    }
)
_DIMENSION = TableLayout.of({schema.DimensionShapeV2.ARRAY_LENGTH: "<u8", schema.DimensionShapeV2.NUM_CHUNKS: "<u4"})
_DIMENSION_NAME = TableLayout.of({schema.DimensionName.NAME: OFFSET})
_MANIFEST_REF = TableLayout.of({schema.ManifestRef.OBJECT_ID: _ID, schema.ManifestRef.EXTENTS: OFFSET})
_MANIFEST_FILE = TableLayout.of(
    {
        schema.ManifestFileInfoV2.ID: _ID,
        schema.ManifestFileInfoV2.SIZE_BYTES: "<u8",
        schema.ManifestFileInfoV2.NUM_CHUNK_REFS: "<u4",
    }
)


def encode_snapshot(snapshot: Snapshot, *, level: int = 3) -> bytes:
    """Encode a snapshot, in the spec version that it names.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``: the message or the metadata cannot be stored.
    FormatError
        ``unsupported-operation-for-version``: a rectilinear grid in spec version 1.
    InternalError
        ``inconsistent-manifests``: the list of manifests does not match the nodes.
    """
    _require_consistent(snapshot)
    is_v1 = snapshot.spec_version == 1
    arena = Arena(schema.IDENTIFIER)
    root = arena.tables(_ROOT, 1)
    arena.set_root(root)
    fields = schema.Snapshot
    root.set(fields.ID, snapshot.snapshot_id.raw)
    if is_v1 and snapshot.parent_id is not None:
        root.set(fields.PARENT_ID, snapshot.parent_id.raw)
    root.set(fields.FLUSHED_AT, snapshot.flushed_at_us)
    nodes = arena.offset_vectors([len(snapshot.nodes)])
    root.point(fields.NODES, nodes.positions)
    _write_manifest_files(arena, root, snapshot.manifest_files, is_v1=is_v1)
    MetadataColumns.of([snapshot.metadata], snapshot.spec_version).write(arena, root, fields.METADATA)
    root.point(fields.MESSAGE, arena.string(encode_text(snapshot.message, "the message")))
    nodes.point(_write_nodes(arena, snapshot.nodes, is_v1=is_v1))
    size = arena.seal()
    return header.pack_blocks(FileType.SNAPSHOT, snapshot.spec_version, arena.blocks(), size, level)


def _require_consistent(snapshot: Snapshot) -> None:
    if not np.array_equal(snapshot.nodes.used_manifest_ids(), snapshot.manifest_files.ids):
        raise InternalError(
            "the manifests that a snapshot lists are not those that its nodes refer to. Nothing was written. Please "
            "report this",
            ErrorKind.INCONSISTENT_MANIFESTS,
        )


def _write_manifest_files(arena: Arena, root: TableWriter, files: ManifestFiles, *, is_v1: bool) -> None:
    records = np.zeros(len(files) if is_v1 else 0, _MANIFEST_FILE_INFO)
    if is_v1:
        records["id"] = np.ascontiguousarray(files.ids).view("V12").reshape(-1)
        records["size_bytes"], records["num_chunk_refs"] = files.sizes, files.num_refs
    structs = records.view(np.uint8).reshape(-1, schema.MANIFEST_FILE_INFO_SIZE)
    root.point(schema.Snapshot.MANIFEST_FILES, arena.vector(structs, align=8))
    if is_v1:
        return
    vector = arena.offset_vectors([len(files)])
    root.point(schema.Snapshot.MANIFEST_FILES_V2, vector.positions)
    tables = arena.tables(_MANIFEST_FILE, len(files))
    vector.point(tables.positions)
    tables.set(schema.ManifestFileInfoV2.ID, files.ids)
    tables.set(schema.ManifestFileInfoV2.SIZE_BYTES, files.sizes)
    tables.set(schema.ManifestFileInfoV2.NUM_CHUNK_REFS, files.num_refs)


def _write_nodes(arena: Arena, nodes: NodeTable, *, is_v1: bool) -> I64:
    """Write all nodes; return the positions of their tables."""
    fields = schema.NodeSnapshot
    tables = arena.tables(_NODE, len(nodes))
    tables.set(fields.ID, nodes.node_ids)
    tables.set(fields.NODE_DATA_TYPE, np.where(nodes.is_array, schema.NodeDataType.ARRAY, schema.NodeDataType.GROUP))
    n_arrays = int(np.count_nonzero(nodes.is_array))
    groups = arena.tables(_GROUP_DATA, len(nodes) - n_arrays)
    arrays = arena.tables(_ARRAY_DATA, n_arrays)
    node_data = np.empty(len(nodes), np.int64)
    node_data[nodes.is_array] = arrays.positions
    node_data[~nodes.is_array] = groups.positions
    tables.point(fields.NODE_DATA, node_data)
    _write_shapes(arena, arrays, nodes, is_v1=is_v1)
    _write_dimension_names(arena, arrays, nodes)
    _write_manifest_refs(arena, arrays, nodes)
    tables.point(fields.PATH, arena.strings(nodes.paths))
    tables.point(fields.USER_DATA, arena.byte_vectors(nodes.user_data))
    return tables.positions


def _write_shapes(arena: Arena, arrays: TableWriter, nodes: NodeTable, *, is_v1: bool) -> None:
    ndims = np.diff(nodes.dim_starts)[nodes.is_array]
    if is_v1:
        structs = np.stack([nodes.lengths, _chunk_lengths(nodes)], axis=1).astype("<u8", copy=False)
        raw = structs.view(np.uint8).reshape(-1, schema.DIMENSION_SHAPE_SIZE)
        arrays.point(schema.ArrayNodeData.SHAPE, arena.vectors(raw, ndims, align=8))
        return
    empty = np.empty((0, schema.DIMENSION_SHAPE_SIZE), np.uint8)
    no_dims = np.zeros(len(ndims), np.int64)
    arrays.point(schema.ArrayNodeData.SHAPE, arena.vectors(empty, no_dims, align=8))
    vectors = arena.offset_vectors(ndims)
    arrays.point(schema.ArrayNodeData.SHAPE_V2, vectors.positions)
    dims = arena.tables(_DIMENSION, len(nodes.lengths))
    vectors.point(dims.positions)
    dims.set(schema.DimensionShapeV2.ARRAY_LENGTH, nodes.lengths)
    dims.set(schema.DimensionShapeV2.NUM_CHUNKS, nodes.num_chunks)


def _chunk_lengths(nodes: NodeTable) -> U64:
    """Return the chunk lengths of all arrays, from their metadata documents. Spec 1 stores these."""
    found: list[int] = []
    for row in np.flatnonzero(nodes.is_array).tolist():
        edges = regular_chunk_lengths(nodes.user_data.raw(row))
        if edges is None:
            raise FormatError(
                f"array {nodes.path(row)} has an irregular chunk grid, which spec version 1 cannot store. Upgrade the "
                f"repository to spec version 2, or use a regular grid",
                ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION,
            )
        found.extend(edges)
    return np.array(found, np.uint64)


def _write_dimension_names(arena: Arena, arrays: TableWriter, nodes: NodeTable) -> None:
    has_names = nodes.has_names[nodes.is_array]
    vectors = arena.offset_vectors(np.diff(nodes.name_starts)[nodes.has_names])
    positions = np.zeros(len(has_names), np.int64)
    positions[has_names] = vectors.positions
    arrays.point(schema.ArrayNodeData.DIMENSION_NAMES, positions, present=has_names)
    tables = arena.tables(_DIMENSION_NAME, len(nodes.name_codes))
    vectors.point(tables.positions)
    named = nodes.name_codes != UNNAMED
    used, codes = np.unique(nodes.name_codes[named], return_inverse=True)
    texts = arena.strings(nodes.names.take(used))
    names = np.zeros(len(tables), np.int64)
    names[named] = texts[codes]
    tables.point(schema.DimensionName.NAME, names, present=named)


def _write_manifest_refs(arena: Arena, arrays: TableWriter, nodes: NodeTable) -> None:
    vectors = arena.offset_vectors(np.diff(nodes.manifest_starts)[nodes.is_array])
    arrays.point(schema.ArrayNodeData.MANIFESTS, vectors.positions)
    refs = arena.tables(_MANIFEST_REF, len(nodes.manifest_ids))
    vectors.point(refs.positions)
    refs.set(schema.ManifestRef.OBJECT_ID, nodes.manifest_ids)
    raw = nodes.extents.astype("<u4", copy=False).view(np.uint8).reshape(-1, schema.CHUNK_INDEX_RANGE_SIZE)
    refs.point(schema.ManifestRef.EXTENTS, arena.vectors(raw, np.diff(nodes.extent_starts), align=4))
