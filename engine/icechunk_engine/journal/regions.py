"""Regions of an array: as users write them, as names in storage, and what remains without them. Pure.

A *box* is a region in its canonical form: for each axis, a half-open range of elements. An array of rank 0 has one
box, the empty tuple.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.format.zarr_metadata import MAX_ARRAY_LENGTH, ArrayShape

type Box = tuple[tuple[int, int], ...]
"""For each axis, start and stop."""

type Region = dict[str, slice] | tuple[slice, ...]
"""A region as users get it: by names of dimensions, as xarray takes it; for an array without them, by axes."""

type RegionLike = Mapping[str, slice | SupportsIndex] | Sequence[slice | SupportsIndex] | slice | SupportsIndex
"""A region as users write it. It contains all of any axis that it does not mention."""

_BOX_TEXT = re.compile(r"(?:[0-9]{1,20}-[0-9]{1,20}(?:_[0-9]{1,20}-[0-9]{1,20})*)?")


def box_of(region: RegionLike, shape: ArrayShape) -> Box:
    """Return the box of a region.

    Raises
    ------
    InvalidInputError
        The region is empty, has gaps, reaches beyond the array, or names a dimension that the array does not have.
    """
    if isinstance(region, Mapping):
        parts = _by_axis(region, shape)
    else:
        found = _parts(region)
        if len(found) > shape.ndim:
            raise _invalid(region, f"it has {len(found)} axes, and the array {shape.ndim}")
        parts = [*found, *[slice(None)] * (shape.ndim - len(found))]
    return tuple([_range(part, length, region) for part, length in zip(parts, shape.lengths, strict=True)])


def _parts(region: object) -> list[Any]:
    return list(region) if isinstance(region, Sequence) and not isinstance(region, str) else [region]


def _by_axis(region: Mapping[str, Any], shape: ArrayShape) -> list[Any]:
    names = shape.dimension_names or ()
    for name in region:
        if names.count(name) != 1:
            known = ", ".join(repr(one) for one in names if one is not None) or "none with a name"
            raise _invalid(region, f"the array has no dimension {name!r}; it has {known}")
    return [region.get(name, slice(None)) if name is not None else slice(None) for name in names]


def _range(part: object, length: int, region: object) -> tuple[int, int]:
    try:
        if isinstance(part, slice):
            step = 1 if part.step is None else operator.index(part.step)
            start = 0 if part.start is None else operator.index(part.start)
            stop = length if part.stop is None else operator.index(part.stop)
        else:
            step, start = 1, operator.index(part)  # type: ignore[arg-type]
            stop = start + 1 if start != -1 else length
    except TypeError:
        raise TypeError(f"a region consists of slices and integers, not of {describe(part)}") from None
    if step != 1:
        raise _invalid(region, "it has a step other than 1")
    start, stop = (value + length if value < 0 else value for value in (start, stop))
    if not 0 <= start < stop <= length:
        raise _invalid(region, f"{start}:{stop} is empty or reaches beyond the {length} elements of its axis")
    return start, stop


def _invalid(region: object, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{region!r} is not a region of this array: {reason}. Write it like {{'time': slice(0, 100)}} or "
        f"(slice(0, 100), slice(None))",
        ErrorKind.INVALID_CHUNK_INDEX,
    )


def region_of(box: Box, shape: ArrayShape) -> Region:
    """Return a box as users get it."""
    names = shape.dimension_names or ()
    slices = tuple([slice(start, stop) for start, stop in box])
    if box and None not in names and len(set(names)) == len(box):
        return {str(name): part for name, part in zip(names, slices, strict=True)}
    return slices


def box_text(box: Box) -> str:
    """Return a text that names a box."""
    return "_".join([f"{start}-{stop}" for start, stop in box])


def box_from_text(text: str) -> Box | None:
    """Return the box that a text names; None if it names none."""
    if not _BOX_TEXT.fullmatch(text):
        return None
    bounds = [pair.split("-") for pair in text.split("_")] if text else []
    box = tuple([(int(start), int(stop)) for start, stop in bounds])
    return box if all(start < stop <= MAX_ARRAY_LENGTH for start, stop in box) else None


def within(boxes: Iterable[Box], lengths: Sequence[int]) -> list[Box]:
    """Return the parts of boxes that are inside an array, sorted and without repetition.

    Boxes of another rank are left out. The array may have had another shape when the boxes were made.
    """
    found = {
        tuple([(start, min(stop, length)) for (start, stop), length in zip(box, lengths, strict=True)])
        for box in boxes
        if len(box) == len(lengths)
    }
    return sorted(box for box in found if all(start < stop for start, stop in box))


def without(whole: Box, done: Sequence[Box]) -> list[Box]:
    """Return boxes that together are a box without some others. They do not overlap.

    Each box of ``done`` is cut out of what is left, axis by axis. The time grows with their number, times the number
    of boxes that are left meanwhile.
    """
    if any(start >= stop for start, stop in whole):
        return []
    if not whole:
        return [] if done else [whole]
    left: NDArray[np.uint64] = np.array([whole], np.uint64)  # (n, ndim, 2)
    for box in done:
        cut = np.array(box, np.uint64)
        hit = ((left[:, :, 0] < cut[:, 1]) & (left[:, :, 1] > cut[:, 0])).all(axis=1)
        if bool(hit.any()):
            left = np.concatenate([left[~hit], *_cut_out(left[hit], cut)])
    return sorted(_joined([tuple(map(tuple, box)) for box in left.tolist()]))


def _cut_out(boxes: NDArray[np.uint64], cut: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
    """Return what is left of boxes that all meet ``cut``."""
    parts = []
    for axis in range(len(cut)):
        start, stop = cut[axis]
        below = boxes[boxes[:, axis, 0] < start]
        below[:, axis, 1] = start
        above = boxes[boxes[:, axis, 1] > stop]
        above[:, axis, 0] = stop
        parts += [below, above]
        # What is left to look at is inside the cut along this axis.
        boxes = boxes.copy()
        boxes[:, axis, 0] = np.maximum(boxes[:, axis, 0], start)
        boxes[:, axis, 1] = np.minimum(boxes[:, axis, 1], stop)
    return parts


def _joined(boxes: list[Box]) -> list[Box]:
    """Join boxes that follow each other along one axis and are equal along the others."""
    ndim = len(boxes[0]) if boxes else 0
    for axis in range(ndim):
        result: list[Box] = []
        boxes.sort(key=lambda box: (box[:axis], box[axis + 1 :], box[axis]))
        for box in boxes:
            last = result[-1] if result else None
            if last and last[axis][1] == box[axis][0] and _others(last, axis) == _others(box, axis):
                result[-1] = (*box[:axis], (last[axis][0], box[axis][1]), *box[axis + 1 :])
            else:
                result.append(box)
        boxes = result
    return boxes


def _others(box: Box, axis: int) -> tuple[Box, Box]:
    return box[:axis], box[axis + 1 :]
