"""Transaction log files: the changes of one commit, by node id (spec, *Transaction log*).

Diffs and rebases read logs instead of comparing snapshots and manifests. So a log must list every node and chunk that
its commit changed: a chunk that it lacks would be overwritten by a rebase without a conflict.
"""

from __future__ import annotations

from collections.abc import Buffer as BytesLike
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from icechunk_engine.columns.tables import U8, U32, BytesTable
from icechunk_engine.flatbuf.blocks import BlockTables
from icechunk_engine.flatbuf.reader import Buffer, Tables
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout, TableWriter
from icechunk_engine.format import header, schema
from icechunk_engine.format.header import FileType
from icechunk_engine.format.schema import MAX_NDIM
from icechunk_engine.format.schema import ArrayUpdatedChunks as ChunksSlot
from icechunk_engine.format.schema import ChunkIndices as CoordsSlot
from icechunk_engine.format.schema import MoveOperation as MoveSlot
from icechunk_engine.format.schema import TransactionLog as Slot
from icechunk_engine.ids import NodeId, SnapshotId

_MIN_INDEX_BYTES = 12
"""The fewest bytes that a chunk index takes in a file: an offset and a table."""
_SLAB_ROWS = 2**14
"""Chunk indices that are read at once. The arrays gathered on the way then stay in the cache."""


@dataclass(frozen=True, slots=True)
class Move:
    """A node with a new path. A moved subtree has one entry for each of its nodes."""

    source: str
    target: str
    node_id: NodeId
    is_array: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TransactionLog:
    """The changes of one commit.

    Attributes
    ----------
    snapshot_id
        The commit's snapshot, which also names the file.
    new_groups, new_arrays, deleted_groups, deleted_arrays, updated_arrays, updated_groups
        ``uint8 (k, 8)``: node ids, sorted. A node is updated if its metadata document changed.
    updated_chunks
        Array → ``uint32 (n, ndim)``: chunks that were set or deleted, sorted.
    moved_nodes
        Moves, sorted by target path.
    """

    snapshot_id: SnapshotId
    new_groups: U8
    new_arrays: U8
    deleted_groups: U8
    deleted_arrays: U8
    updated_arrays: U8
    updated_groups: U8
    updated_chunks: dict[NodeId, U32]
    moved_nodes: tuple[Move, ...] = ()

    @property
    def num_chunks(self) -> int:
        """Number of chunks that the commit set or deleted."""
        return sum(len(indices) for indices in self.updated_chunks.values())

    @classmethod
    def empty(cls, snapshot_id: SnapshotId) -> Self:
        """Make the log of a commit that changed nothing."""
        none = np.empty((0, NodeId.SIZE), np.uint8)
        return cls(
            snapshot_id=snapshot_id,
            new_groups=none,
            new_arrays=none,
            deleted_groups=none,
            deleted_arrays=none,
            updated_arrays=none,
            updated_groups=none,
            updated_chunks={},
        )


_ID_LISTS = {
    Slot.NEW_GROUPS: "new_groups",
    Slot.NEW_ARRAYS: "new_arrays",
    Slot.DELETED_GROUPS: "deleted_groups",
    Slot.DELETED_ARRAYS: "deleted_arrays",
    Slot.UPDATED_ARRAYS: "updated_arrays",
    Slot.UPDATED_GROUPS: "updated_groups",
}
_ROOT = TableLayout.of(
    {Slot.ID: "V12", **dict.fromkeys(_ID_LISTS, OFFSET), Slot.UPDATED_CHUNKS: OFFSET, Slot.MOVED_NODES: OFFSET}
)
_CHUNKS = TableLayout.of({ChunksSlot.NODE_ID: "V8", ChunksSlot.CHUNKS: OFFSET})
_MOVE = TableLayout.of({MoveSlot.FROM: OFFSET, MoveSlot.TO: OFFSET, MoveSlot.NODE_ID: "V8", MoveSlot.NODE_TYPE: "u1"})


def encode_transaction_log(log: TransactionLog, *, level: int = 3, spec_version: int = 2) -> bytes:
    """Encode a transaction log. All vectors are written, even empty ones, as the official library does."""
    arena = Arena(schema.IDENTIFIER)
    root = arena.tables(_ROOT, 1)
    arena.set_root(root)
    root.set(Slot.ID, log.snapshot_id.raw)
    for slot, name in _ID_LISTS.items():
        rows: U8 = getattr(log, name)
        root.point(slot, arena.vector(rows))
    arrays = sorted(log.updated_chunks.items())
    items = arena.offset_vectors([len(arrays)])
    root.point(Slot.UPDATED_CHUNKS, items.positions)
    tables = arena.tables(_CHUNKS, len(arrays))
    items.point(tables.positions)
    tables.set(ChunksSlot.NODE_ID, _id_rows(node_id for node_id, _ in arrays))
    vectors = []
    for _, indices in arrays:
        vector = arena.offset_vectors([len(indices)])
        vectors.append(int(vector.positions[0]))
        blocks = BlockTables(len(indices))
        blocks.row_vectors(CoordsSlot.COORDS, indices)
        vector.point(blocks.place(arena))
    tables.point(ChunksSlot.CHUNKS, np.array(vectors, np.int64))
    _write_moves(arena, root, sorted(log.moved_nodes, key=lambda move: move.target.split("/")))
    size = arena.seal()
    return header.pack_blocks(FileType.TRANSACTION_LOG, spec_version, arena.blocks(), size, level)


def _write_moves(arena: Arena, root: TableWriter, moves: Sequence[Move]) -> None:
    items = arena.offset_vectors([len(moves)])
    root.point(Slot.MOVED_NODES, items.positions)
    tables = arena.tables(_MOVE, len(moves))
    items.point(tables.positions)
    tables.point(MoveSlot.FROM, arena.strings(BytesTable.of(move.source for move in moves)))
    tables.point(MoveSlot.TO, arena.strings(BytesTable.of(move.target for move in moves)))
    tables.set(MoveSlot.NODE_ID, _id_rows(move.node_id for move in moves))
    tables.set(MoveSlot.NODE_TYPE, np.array([move.is_array for move in moves], np.uint8))


def _id_rows(ids: Iterable[NodeId]) -> U8:
    return np.frombuffer(b"".join([node_id.raw for node_id in ids]), np.uint8).reshape(-1, NodeId.SIZE)


def decode_transaction_log(data: BytesLike, name: str = "") -> TransactionLog:
    """Decode a transaction log file. Raises FormatError if the bytes are not an intact log."""
    body = header.unpack(data, FileType.TRANSACTION_LOG, name).body
    buffer = Buffer(body, name or "this transaction log")
    root = buffer.root()
    lists = {
        field: root.vectors(slot, NodeId.SIZE, f"the list {field}").structs() for slot, field in _ID_LISTS.items()
    }
    chunks = root.vectors(Slot.UPDATED_CHUNKS, 4, "the list of changed chunks").tables(24)
    return TransactionLog(
        snapshot_id=SnapshotId.from_row(root.required_struct(Slot.ID, SnapshotId.SIZE, "the log's id")[0]),
        updated_chunks=_read_updated_chunks(chunks),
        moved_nodes=_read_moves(root.vectors(Slot.MOVED_NODES, 4).tables(24)),
        **lists,
    )


def _read_updated_chunks(tables: Tables) -> dict[NodeId, U32]:
    buffer = tables.buffer
    ids = tables.required_struct(ChunksSlot.NODE_ID, NodeId.SIZE, "a node id")
    chunks = tables.vectors(ChunksSlot.CHUNKS, 4, "the list of an array's changed chunks")
    buffer.require_room(int(chunks.lengths.sum()), _MIN_INDEX_BYTES)
    updated: dict[NodeId, U32] = {}
    for row, start, length in zip(ids, chunks.starts.tolist(), chunks.lengths.tolist(), strict=True):
        updated[NodeId.from_row(row)] = _read_indices(buffer, start, length)
    if len(updated) != len(tables):
        raise buffer.error("it lists an array twice")
    return updated


def _read_indices(buffer: Buffer, vector: int, n: int) -> U32:
    """Read the chunk indices ``(n, ndim)`` to which the ``n`` offsets at ``vector`` point; ``(0, 0)`` if n is 0."""
    slabs: list[U32] = []
    for first in range(0, n, _SLAB_ROWS):
        items = vector + 4 * np.arange(first, min(first + _SLAB_ROWS, n), dtype=np.int64)
        coords = buffer.tables(buffer.follow(items)).vectors(CoordsSlot.COORDS, 4, "a chunk index")
        ndim = slabs[0].shape[1] if slabs else int(coords.lengths[0])
        if ndim > MAX_NDIM:
            raise buffer.error(f"a chunk index has {ndim} dimensions")
        slabs.append(coords.matrix(np.uint32, ndim, "a chunk index"))
    return np.concatenate(slabs) if slabs else np.empty((0, 0), np.uint32)


def _read_moves(tables: Tables) -> tuple[Move, ...]:
    sources, targets = tables.strings(MoveSlot.FROM, "a path"), tables.strings(MoveSlot.TO, "a path")
    ids = tables.required_struct(MoveSlot.NODE_ID, NodeId.SIZE, "a node id")
    kinds = tables.scalar(MoveSlot.NODE_TYPE, np.uint8)
    return tuple(
        Move(source, target, NodeId.from_row(row), bool(kind))
        for source, target, row, kind in zip(sources.texts(), targets.texts(), ids, kinds, strict=True)
    )
