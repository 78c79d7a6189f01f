"""Journal entries to test with."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from hypothesis import strategies as st

from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, ChunkRef, ChunkRefs
from icechunk_engine.columns.tables import broadcast_column
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.zarr_metadata import parse_node_metadata
from icechunk_engine.ids import ChunkId, NodeId, SnapshotId
from icechunk_engine.journal.entries import ArrayEdits, JournalEntry, NodeDeleted, NodeSet
from icechunk_engine.journal.journal import SessionRecord
from icechunk_engine.transaction.edit_sources import EditSource
from tests.engine.format.strategies import INLINE_REFS, NATIVE_REFS, REFS, VIRTUAL_REFS

RECORD = SessionRecord(
    origin_id=SnapshotId.random(), branch="main", created_at=datetime(2026, 5, 4, 3, 2, 1, 500, UTC), host="här"
)

WRITER = "0123456789abcdef" * 2
GROUP = b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
ARRAY = (
    b'{"zarr_format": 3, "node_type": "array", "shape": [40, 40], "data_type": "int8", "chunk_grid": {"name": '
    b'"regular", "configuration": {"chunk_shape": [1, 1]}}, "chunk_key_encoding": {"name": "default"}, '
    b'"fill_value": 0, "codecs": [{"name": "bytes"}]}'
)


def node(path: str, document: bytes, node_id: NodeId | None = None) -> Node:
    """A node as a writer makes it."""
    _, shape = parse_node_metadata(document, for_write=True)
    return Node(node_id=node_id or NodeId.random(), path=path, user_data=document, shape=shape)


def entry(seq: int = 0, *, writer: str = WRITER, lamport: int = 0, refs: ChunkRefs | None = None) -> JournalEntry:
    """An entry with one array; by default one native chunk was written."""
    if refs is None:
        refs = ChunkRefs.of(2, [((seq, 0), ChunkRef(kind=NATIVE, length=5, chunk_id=ChunkId.random()))])
    sources = broadcast_column(0, len(refs), np.int32)
    return JournalEntry(
        writer=writer,
        seq=seq,
        lamport=lamport,
        origin_id=SnapshotId(b"origin-of-it"),
        fork=None,
        sources=(EditSource(writer, 0),),
        seen=(),
        overwrites=(),
        nodes_set=[],
        nodes_deleted=[],
        arrays=[ArrayEdits(NodeId(b"an-array"), "/a", refs, sources)],
    )


_NUMBERS = st.integers(0, 2**63 - 1) | st.integers(0, 3)
_WRITERS = st.sampled_from([WRITER, "ab" * 16, "0" * 8])
_PATHS = st.sampled_from(["/", "/a", "/g/é", "/" + "x" * 300]) | st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
        lambda name: name not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map(lambda names: "/" + "/".join(names))
_NODE_IDS = st.binary(min_size=8, max_size=8).map(NodeId)
_DELETIONS = st.just(ChunkRef(kind=DELETED))


def _has_bytes(ref: ChunkRef) -> bool:
    """Whether a workspace takes the reference: it has a length, and ends within 64 bits."""
    return ref.kind == DELETED or (ref.length > 0 and ref.offset + ref.length < 2**64)


@st.composite
def _array_edits(draw: st.DrawFn, n_sources: int) -> ArrayEdits:
    ndim = draw(st.integers(0, 4))
    kinds = draw(st.sampled_from([NATIVE_REFS, VIRTUAL_REFS, INLINE_REFS, _DELETIONS, REFS | _DELETIONS]))
    coordinate = st.integers(0, 3) | st.integers(0, 2**32 - 1)
    pairs = st.tuples(st.tuples(*[coordinate] * ndim), kinds.filter(_has_bytes))
    items = draw(st.lists(pairs, max_size=1 if ndim == 0 else 12))
    refs = ChunkRefs.of(ndim, items)
    n = len(refs)
    if draw(st.booleans()):  # some columns are constant
        refs = ChunkRefs.build(
            refs.indices,
            NATIVE,
            lengths=draw(st.integers(1, 9)),
            chunk_ids=draw(st.sampled_from([None, refs.chunk_ids])),
        )
    if draw(st.booleans()):
        sources = broadcast_column(draw(st.integers(0, n_sources - 1)), n, np.int32)
    else:
        sources = np.array(draw(st.lists(st.integers(0, n_sources - 1), min_size=n, max_size=n)), np.int32)
    return ArrayEdits(draw(_NODE_IDS), draw(_PATHS), refs, sources)


@st.composite
def entries(draw: st.DrawFn) -> JournalEntry:
    """Draw any entry that a writer can make."""
    tasks = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    sources = draw(st.lists(st.builds(EditSource, _WRITERS, _NUMBERS, tasks), min_size=1, max_size=4))
    number = st.integers(0, len(sources) - 1)
    nodes = st.builds(node, _PATHS, st.sampled_from([GROUP, ARRAY]), _NODE_IDS)
    return JournalEntry(
        writer=draw(_WRITERS),
        seq=draw(_NUMBERS),
        lamport=draw(_NUMBERS),
        origin_id=SnapshotId(draw(st.binary(min_size=12, max_size=12))),
        fork=draw(st.none() | st.sampled_from(["f" * 32, "3f-_"])),
        sources=tuple(sources),
        flush_promise=draw(tasks),
        seen=tuple(draw(st.lists(st.builds(EditSource, _WRITERS, _NUMBERS, tasks), max_size=2))),
        overwrites=tuple(draw(st.lists(st.tuples(_WRITERS, _NUMBERS), max_size=3))),
        nodes_set=draw(st.lists(st.builds(NodeSet, nodes, st.booleans(), st.booleans(), number), max_size=3)),
        nodes_deleted=draw(st.lists(st.builds(NodeDeleted, _PATHS, _NODE_IDS, number), max_size=3)),
        arrays=draw(st.lists(_array_edits(len(sources)), max_size=3)),
    )


def assert_equal(left: JournalEntry, right: JournalEntry) -> None:
    """Assert that two entries say the same, and hold the same columns as one value."""
    assert facts(left) == facts(right)


def facts(found: JournalEntry) -> object:
    """All that an entry says, to compare."""
    arrays = [
        (
            array.node_id,
            array.path,
            array.refs.ndim,
            array.refs.indices.tolist(),
            [array.refs.row(row) for row in range(len(array.refs))],
            array.source_numbers.tolist(),
            [_is_constant(column) for column in (array.refs.kinds, array.refs.lengths, array.source_numbers)],
        )
        for array in found.arrays
    ]
    head = (
        found.writer,
        found.seq,
        found.lamport,
        found.origin_id,
        found.fork,
        found.sources,
        found.seen,
        found.overwrites,
    )
    return head, found.nodes_set, found.nodes_deleted, arrays


def _is_constant(column: np.ndarray) -> bool:
    return len(column) > 1 and column.strides[0] == 0


def inline_refs(n: int, size: int = 3) -> ChunkRefs:
    """Inline chunks of ``size`` bytes each."""
    return ChunkRefs.of(
        1, [((i,), ChunkRef(kind=INLINE, length=size, inline=bytes([i % 256]) * size)) for i in range(n)]
    )
