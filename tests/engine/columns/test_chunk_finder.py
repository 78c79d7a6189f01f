"""Every form of the chunk finder, compared with a dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.columns.chunk_finder import ChunkFinder
from icechunk_engine.columns.chunk_refs import NATIVE, ChunkRefs

Index = tuple[int, ...]


@st.composite
def index_sets(draw: st.DrawFn) -> tuple[int, list[Index]]:
    """Draw sets of chunk indices that fill their bounding box completely, well, sparsely, or barely."""
    ndim = draw(st.integers(0, 4))
    edge = draw(st.sampled_from([1, 2, 3, 40, 2**32 - 1]))
    low = draw(st.integers(0, 2**32 - 1 - edge))
    coordinate = st.integers(low, low + edge)
    return ndim, sorted(draw(st.sets(st.tuples(*[coordinate] * ndim), max_size=30)))


def finder_of(ndim: int, indices: list[Index]) -> ChunkFinder:
    return ChunkFinder(ChunkRefs.build(np.array(indices, np.uint32).reshape(len(indices), ndim), NATIVE))


@given(index_sets(), st.data())
def test_against_a_dictionary(case: tuple[int, list[Index]], data: st.DataObject) -> None:
    ndim, indices = case
    finder = finder_of(ndim, indices)
    rows = {index: row for row, index in enumerate(indices)}
    near = st.sampled_from(indices or [(0,) * ndim]).flatmap(
        lambda index: st.tuples(*(st.integers(max(0, c - 1), min(c + 1, 2**32 - 1)) for c in index))
    )
    anywhere = st.tuples(*[st.integers(0, 2**32 - 1)] * ndim)
    wanted = indices + data.draw(st.lists(near | anywhere, max_size=20))
    expected = [rows.get(index, -1) for index in wanted]
    assert [finder.find(index) for index in wanted] == expected
    table = np.array(wanted, np.uint32).reshape(len(wanted), ndim)
    found = finder.find_many(table)
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_scalar_arrays() -> None:
    assert finder_of(0, [()]).find(()) == 0
    assert finder_of(0, []).find(()) == -1
    assert finder_of(0, [()]).find_many(np.empty((2, 0), np.uint32)).tolist() == [0, 0]


def test_another_rank_is_an_error() -> None:
    with pytest.raises(ValueError):
        finder_of(2, [(0, 0)]).find((0,))


@pytest.mark.parametrize(
    "indices",
    [
        np.stack(np.unravel_index(np.arange(60_000), (30, 40, 50)), 1),  # full
        np.stack(np.unravel_index(np.arange(0, 60_000, 2), (30, 40, 50)), 1),  # well filled
        np.stack(np.unravel_index(np.arange(0, 60_000, 97), (30, 40, 50)), 1),  # thin
        np.arange(4000)[:, None] * np.array([2**20 + 1, 2**19 + 1, 2**18 + 1, 3]),  # no linear keys
    ],
    ids=["full", "filled", "thin", "huge"],
)
def test_many(indices: np.ndarray[Any, Any]) -> None:
    indices = indices.astype(np.uint32)
    finder = ChunkFinder(ChunkRefs.build(indices, NATIVE))
    rows = np.arange(len(indices))
    np.testing.assert_array_equal(finder.find_many(indices), rows)
    moved = indices.copy()
    moved[:, -1] += 1
    known = {tuple(index): row for row, index in enumerate(indices.tolist())}
    expected = [known.get(tuple(index), -1) for index in moved.tolist()]
    np.testing.assert_array_equal(finder.find_many(moved), expected)
    for row in range(0, len(indices), 501):
        assert finder.find(tuple(indices[row].tolist())) == row
        assert finder.find(tuple(moved[row].tolist())) == expected[row]
