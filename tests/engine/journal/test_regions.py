"""Regions: what users may write, their names, and what is left of an array without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.errors import InvalidInputError
from icechunk_engine.format.zarr_metadata import ArrayShape
from icechunk_engine.journal.regions import Box, box_from_text, box_of, box_text, region_of, within, without

NAMED = ArrayShape(lengths=(10, 4), num_chunks=(10, 4), dimension_names=("time", "x"))
UNNAMED = ArrayShape(lengths=(10, 4), num_chunks=(10, 4))
PARTLY = ArrayShape(lengths=(10, 4), num_chunks=(10, 4), dimension_names=("time", None))
TWICE = ArrayShape(lengths=(4, 4), num_chunks=(4, 4), dimension_names=("x", "x"))
SCALAR = ArrayShape(lengths=(), num_chunks=())


@pytest.mark.parametrize(
    ("region", "shape", "box"),
    [
        ({"time": slice(0, 5)}, NAMED, ((0, 5), (0, 4))),
        ({"x": slice(-2, None), "time": 3}, NAMED, ((3, 4), (2, 4))),
        ({"time": -1}, NAMED, ((9, 10), (0, 4))),
        ({}, NAMED, ((0, 10), (0, 4))),
        ({"time": slice(2, 4)}, PARTLY, ((2, 4), (0, 4))),
        ((slice(1, 2), slice(None)), UNNAMED, ((1, 2), (0, 4))),
        ((slice(1, 2),), NAMED, ((1, 2), (0, 4))),
        ([slice(np.int64(1), np.int64(2)), np.int8(3)], UNNAMED, ((1, 2), (3, 4))),
        (slice(8, 10, 1), UNNAMED, ((8, 10), (0, 4))),
        (7, UNNAMED, ((7, 8), (0, 4))),
        ((), UNNAMED, ((0, 10), (0, 4))),
        ((), SCALAR, ()),
        ({}, SCALAR, ()),
    ],
)
def test_what_users_may_write(region: Any, shape: ArrayShape, box: Box) -> None:
    assert box_of(region, shape) == box
    assert box_of(region_of(box, shape), shape) == box


def test_what_users_get() -> None:
    assert region_of(((0, 5), (0, 4)), NAMED) == {"time": slice(0, 5), "x": slice(0, 4)}
    for shape in (UNNAMED, PARTLY, TWICE):
        assert region_of(((0, 2), (0, 4)), shape) == (slice(0, 2), slice(0, 4))
    assert region_of((), SCALAR) == ()


@pytest.mark.parametrize(
    ("region", "shape", "why"),
    [
        ({"y": slice(0, 5)}, NAMED, "no dimension 'y'; it has 'time', 'x'"),
        ({"time": slice(0, 5)}, UNNAMED, "none with a name"),
        ({"x": slice(0, 2)}, TWICE, "no dimension 'x'"),
        ({"time": slice(0, 11)}, NAMED, "beyond the 10 elements"),
        ({"time": slice(-11, 3)}, NAMED, "beyond"),
        ({"time": slice(5, 5)}, NAMED, "empty"),
        ({"time": slice(6, 5)}, NAMED, "empty"),
        ({"time": slice(0, 5, 2)}, NAMED, "step"),
        ({"time": slice(5, 0, -1)}, NAMED, "step"),
        (10, NAMED, "beyond"),
        ((0, 0, 0), NAMED, "3 axes, and the array 2"),
        (0, SCALAR, "1 axes, and the array 0"),
    ],
)
def test_what_is_no_region(region: Any, shape: ArrayShape, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        box_of(region, shape)
    assert "Write it like" in str(caught.value)


@pytest.mark.parametrize("region", [{"time": "a"}, ["ab"], [1.5], None, {"time": slice("a", "b")}, "time"])
def test_what_is_of_a_wrong_type(region: Any) -> None:
    with pytest.raises(TypeError, match="slices and integers"):
        box_of(region, NAMED)


BOUNDS = st.tuples(st.integers(0, 2**64 - 2), st.integers(1, 2**64 - 1)).filter(lambda pair: pair[0] < pair[1])


@given(st.lists(BOUNDS, max_size=5).map(tuple))
def test_names_of_boxes(box: Box) -> None:
    assert box_from_text(box_text(box)) == box


@pytest.mark.parametrize(
    "text", ["x", "1", "2-1", "1-1", "0-1_", "_0-1", "-1-2", "0-1 ", "0-18446744073709551616", "٣-٤"]
)
def test_texts_that_name_no_box(text: str) -> None:
    assert box_from_text(text) is None


def boxes(lengths: tuple[int, ...]) -> st.SearchStrategy[Box]:
    axes = [
        st.tuples(st.integers(0, length - 1), st.integers(1, length)).filter(lambda pair: pair[0] < pair[1])
        for length in lengths
    ]
    return st.tuples(*axes)


@given(st.data())
def test_what_is_left(data: st.DataObject) -> None:
    lengths = tuple(data.draw(st.lists(st.integers(1, 9), max_size=3)))
    done = data.draw(st.lists(boxes(lengths), max_size=6))
    mask = np.zeros(lengths, np.int64)
    for box in done:
        mask[tuple([slice(*pair) for pair in box])] = 1
    left = without(tuple([(0, length) for length in lengths]), done)
    for box in left:
        assert all(start < stop for start, stop in box)
        mask[tuple([slice(*pair) for pair in box])] += 1
    assert (mask == 1).all()  # each element is done, or in one box that is left
    assert left == sorted(left)


def test_what_is_left_is_joined() -> None:
    done = [((i, i + 1), (0, 4)) for i in range(0, 1000, 2)]
    assert len(without(((0, 1000), (0, 4)), done)) == 500
    assert without(((0, 10), (0, 4)), [((0, 4), (0, 4)), ((8, 10), (0, 4))]) == [((4, 8), (0, 4))]
    assert without(((0, 10), (0, 4)), [((i, i + 1), (0, 4)) for i in range(10)]) == []
    assert without(((0, 0), (0, 4)), []) == []
    assert without(((0, 10), (0, 4)), []) == [((0, 10), (0, 4))]


def test_boxes_of_another_shape() -> None:
    assert within([((0, 5),), ((0, 5), (0, 5)), ((8, 20),), ((0, 5),), ((12, 20),)], (10,)) == [((0, 5),), ((8, 10),)]
    assert within([()], ()) == [()]
