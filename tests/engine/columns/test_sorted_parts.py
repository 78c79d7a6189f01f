"""Sorted parts, read range by range, give what joining and sorting them all would give."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, VIRTUAL, ChunkRef, ChunkRefs, concat
from icechunk_engine.columns.sorted_parts import SortedParts
from icechunk_engine.ids import ChunkId
from icechunk_engine.transaction import splitting
from icechunk_engine.transaction.splitting import SplitRule, independent_borders, split

WIDTH = 12


class Case(NamedTuple):
    ndim: int
    parts: list[ChunkRefs]

    @property
    def joined(self) -> ChunkRefs:
        return concat([ChunkRefs.empty(self.ndim), *self.parts]).latest()


@st.composite
def cases(draw: st.DrawFn, *, min_ndim: int = 0, min_rows: int = 0) -> Case:
    """Several sets of references of all kinds; many indices are in several of them."""
    ndim = draw(st.integers(min_ndim, 3))
    index = st.tuples(*[st.integers(0, WIDTH - 1)] * ndim)
    number = st.integers(0, 5)
    ref = st.one_of(
        st.just(ChunkRef(kind=DELETED)),
        st.builds(
            lambda a, b: ChunkRef(kind=NATIVE, offset=a, length=b, chunk_id=ChunkId(bytes([a, b] * 6))), number, number
        ),
        st.builds(
            lambda text: ChunkRef(kind=INLINE, length=len(text), inline=text), st.binary(min_size=1, max_size=4)
        ),
        st.builds(
            lambda a, b: ChunkRef(kind=VIRTUAL, length=1, location=f"s3://bucket/{a}", etag=str(b) if b else None),
            number,
            number,
        ),
    )
    parts = draw(st.lists(st.lists(st.tuples(index, ref), min_size=min_rows, max_size=30), max_size=6))
    return Case(ndim, [ChunkRefs.of(ndim, part) for part in parts])


def rows_of(refs: ChunkRefs) -> list[tuple[tuple[int, ...], ChunkRef]]:
    return [(tuple(index), refs.row(i)) for i, index in enumerate(refs.indices.tolist())]


@given(case=cases(), max_rows=st.integers(1, 40))
def test_blocks_hold_each_chunk_once_in_order(case: Case, max_rows: int) -> None:
    parts = SortedParts(case.ndim, case.parts)
    borders = parts.borders(max_rows)
    blocks = list(parts.blocks(borders))
    assert [row for block in blocks for row in rows_of(block)] == rows_of(case.joined)
    assert int(parts.counts(borders).sum()) == len(parts)
    assert parts.indices().tolist() == case.joined.indices.tolist()


@given(case=cases(), max_rows=st.integers(1, 40))
def test_ranges_are_joined_up_to_a_size(case: Case, max_rows: int) -> None:
    parts = SortedParts(case.ndim, case.parts)
    fine = parts.borders(1)
    borders = parts.thinned(fine, max_rows)
    assert set(borders.tolist()) <= set(fine.tolist())
    largest = int(parts.counts(fine).max())
    assert all(count <= max(max_rows, largest) for count in parts.counts(borders).tolist())


@given(refs=cases().map(lambda case: case.joined), data=st.data())
def test_narrow_references_are_the_same(refs: ChunkRefs, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(refs)))
    stop = data.draw(st.integers(start, len(refs)))
    narrowed = refs.narrow(slice(start, stop))
    assert rows_of(narrowed) == rows_of(refs)[start:stop]
    assert len(narrowed.inline_data) <= len(refs.inline_data)


@given(
    case=cases(min_ndim=1, min_rows=15),
    edges=st.none() | st.lists(st.integers(1, WIDTH + 2) | st.just(2**32 - 1), min_size=3, max_size=3),
    limit=st.integers(1, 20),
    max_rows=st.integers(1, 20),
)
def test_ranges_are_split_into_the_same_manifests(
    case: Case, edges: list[int] | None, limit: int, max_rows: int
) -> None:
    grid = (WIDTH,) * case.ndim
    rule = SplitRule(None if edges is None else tuple(edges[: case.ndim]))

    def live(refs: ChunkRefs) -> ChunkRefs:
        return refs.take(refs.kinds != DELETED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "AUTO_TARGET_REFS", limit)
        patch.setattr(splitting, "MAX_MANIFEST_REFS", limit)
        patch.setattr(SortedParts.borders, "__defaults__", (max_rows,))
        expected = split(live(case.joined), rule, grid)
        parts = SortedParts(case.ndim, case.parts)
        borders = parts.thinned(independent_borders(parts, rule, live), max_rows)
        pieces = [piece for block in parts.blocks(borders) for piece in split(live(block), rule, grid)]
    assert [rows_of(piece.compact()) for piece in pieces] == [rows_of(piece) for piece in expected]


@given(refs=cases().map(lambda case: case.joined))
def test_pickled_references_are_the_same(refs: ChunkRefs) -> None:
    assert rows_of(pickle.loads(pickle.dumps(refs))) == rows_of(refs)


def test_columns_of_one_value_and_regular_offsets_are_small_in_pickles() -> None:
    n = 10_000
    indices = np.arange(n)[:, None]
    lengths, payloads = np.full(n, 8), np.arange(n, dtype=np.uint64).view(np.uint8)
    refs = ChunkRefs.build(indices, INLINE, offsets=8 * np.arange(n), lengths=lengths, inline_data=payloads)
    data = pickle.dumps(refs)
    assert len(data) < 12 * n + 2000, "4 bytes an index, 8 bytes a payload"
    one, other = pickle.loads(data), pickle.loads(data)
    assert one.offsets.tolist() == refs.offsets.tolist()
    assert one.offsets is other.offsets
    assert not one.offsets.flags.writeable
    for uneven in (np.append(8 * np.arange(n - 1), 1), np.zeros(n), 3 + np.arange(n)[::-1]):
        again = pickle.loads(pickle.dumps(ChunkRefs.build(indices, NATIVE, offsets=uneven.astype(np.uint64))))
        assert again.offsets.tolist() == uneven.tolist()


def test_large_sets_are_read_in_blocks() -> None:
    n_parts, n_rows = 20, 5000
    indices = np.arange(n_parts * n_rows).reshape(n_rows, n_parts).T
    parts = SortedParts(1, [ChunkRefs.build(rows[:, None].astype("u4"), NATIVE) for rows in indices])
    sizes = [len(block) for block in parts.blocks(parts.borders(10_000))]
    assert sum(sizes) == n_parts * n_rows
    assert max(sizes) < 20_000
    assert np.array_equal(parts.indices()[:, 0], np.arange(n_parts * n_rows))
