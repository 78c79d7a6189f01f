"""Splitting references into manifests: none is lost or doubled, and boxes do not overlap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.columns.chunk_refs import INLINE, ChunkRef, ChunkRefs
from icechunk_engine.format.manifest import apparent_size
from icechunk_engine.transaction import splitting
from icechunk_engine.transaction.splitting import SplitRule, manifests_to_rewrite, overlapping_manifests, split


@st.composite
def cases(draw: st.DrawFn) -> tuple[ChunkRefs, SplitRule, tuple[int, ...]]:
    ndim = draw(st.integers(1, 3))
    grid = tuple(draw(st.lists(st.integers(1, 12), min_size=ndim, max_size=ndim)))
    cells = int(np.prod(grid))
    chosen = draw(st.lists(st.integers(0, cells - 1), unique=True, max_size=60).map(sorted))
    indices = np.stack(np.unravel_index(np.array(chosen, np.int64), grid), axis=1).astype("u4")
    edges = draw(st.none() | st.tuples(*[st.integers(1, 14) | st.just(2**32 - 1)] * ndim))
    return ChunkRefs.build(indices, INLINE, lengths=np.array(chosen, "u8")), SplitRule(edges), grid


@given(case=cases(), limit=st.integers(1, 20))
def test_pieces_are_a_partition_into_boxes(case: tuple[ChunkRefs, SplitRule, tuple[int, ...]], limit: int) -> None:
    refs, rule, grid = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "AUTO_TARGET_REFS", limit)
        patch.setattr(splitting, "MAX_MANIFEST_REFS", limit)
        pieces = split(refs, rule, grid)
    assert all(0 < len(piece) <= limit for piece in pieces)
    everything = np.concatenate([piece.indices for piece in pieces]) if pieces else refs.indices[:0]
    assert sorted(map(tuple, everything.tolist())) == list(map(tuple, refs.indices.tolist()))
    for piece in pieces:
        assert list(map(tuple, piece.indices.tolist())) == sorted(map(tuple, piece.indices.tolist()))
        if rule.edges is not None:
            boxes = piece.indices // np.array(rule.edges, np.int64)
            assert (boxes == boxes[0]).all()
    for i, piece in enumerate(pieces):
        others = np.stack([other.extents() for j, other in enumerate(pieces) if j != i]) if len(pieces) > 1 else None
        if others is not None:
            assert not overlapping_manifests(others, [piece]).any()


def test_stale_manifests_of_configured_boxes() -> None:
    extents = np.array([[[0, 3]], [[3, 6]], [[6, 8]]], "u4")
    changed = np.array([[4]], "u4")
    rule = SplitRule((3,))
    assert manifests_to_rewrite(extents, [3, 3, 2], changed, rule, (8,)).tolist() == [False, True, False]
    assert manifests_to_rewrite(extents, [3, 3, 2], changed, SplitRule((6,)), (8,)).tolist() == [True, True, False]
    assert manifests_to_rewrite(extents, [3, 3, 2], changed[:0], rule, (7,)).tolist() == [False, False, True]


def test_an_append_touches_only_the_last_manifest_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "AUTO_TARGET_REFS", 10)
    extents = np.array([[[0, 10]], [[10, 20]], [[20, 23]]], "u4")
    appended = np.array([[23], [24]], "u4")
    auto = SplitRule(None)
    assert manifests_to_rewrite(extents, [10, 10, 3], appended, auto, (25,)).tolist() == [False, False, True]
    assert manifests_to_rewrite(extents, [10, 10, 9], appended, auto, (25,)).tolist() == [False, False, False]
    assert manifests_to_rewrite(extents, [10, 10, 3], np.array([[12]], "u4"), auto, (25,)).tolist() == [
        False,
        True,
        False,
    ]


def test_long_inline_chunks_are_spread_over_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of references alone does not limit the size that official readers must accept."""
    monkeypatch.setattr(splitting, "MAX_APPARENT_SIZE", 20_000)
    items = [((row, column), ChunkRef(kind=INLINE, inline=bytes(900))) for row in range(10) for column in range(8)]
    refs = ChunkRefs.of(2, items)
    for rule in (SplitRule(None), SplitRule((10, 8))):
        pieces = split(refs, rule, (10, 8))
        assert sum(map(len, pieces)) == 80
        assert all(apparent_size(piece) <= 20_000 for piece in pieces)
        assert len(pieces) <= 16  # not one each
        for piece, other in itertools.combinations(pieces, 2):
            boxes = piece.extents(), other.extents()
            assert not ((boxes[0][:, 0] < boxes[1][:, 1]) & (boxes[0][:, 1] > boxes[1][:, 0])).all()
    alone = ChunkRefs.of(1, [((0,), ChunkRef(kind=INLINE, inline=bytes(30_000)))])
    assert len(split(alone, SplitRule(None), (1,))) == 1
