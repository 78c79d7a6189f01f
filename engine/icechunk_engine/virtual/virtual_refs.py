"""Build virtual chunk references from the arguments of callers: flat arrays, or a list of specs. Pure.

This module checks the form of the arguments. The session checks that locations are in a container and that indices are
in the grid of the array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icechunk_engine.columns.chunk_refs import INLINE, NATIVE, NO_CODE, VIRTUAL, ChunkRef, ChunkRefs
from icechunk_engine.columns.tables import U8, U32, U64, BytesTable, factorize
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.ids import base32_of_rows
from icechunk_engine.keys import MAX_CHUNK_INDEX

Checksum = str | datetime | None
"""An etag, or the time of last modification."""

ReferenceBatch = tuple[U32, U8, list[str], U64, U64, dict[int, bytes]]
"""Indices ``(n, ndim)``, kinds, paths (URL, chunk id or ``""``), offsets, lengths, and inline bytes by row."""

type Strings = NDArray[np.object_] | NDArray[np.str_]
"""A numpy array of Python or fixed-width strings."""

_LAST_SECOND = 2**32 - 1
_LAST_BYTE = 2**64 - 1


class ChunkSpec(Protocol):
    """One virtual chunk (:class:`icechunk_engine.config.VirtualChunkSpec`)."""

    @property
    def index(self) -> Sequence[int]: ...
    @property
    def location(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def etag_checksum(self) -> str | None: ...
    @property
    def last_updated_at_checksum(self) -> datetime | None: ...


def whole_seconds(time: datetime) -> int:
    """Return a time in Unix seconds, rounded up. If it were rounded down, an unchanged object would look modified.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: the time has no time zone, or is outside 1970-01-01T00:00:01Z … 2106-02-07T06:28:15Z.
    """
    if time.tzinfo is None:
        raise InvalidInputError(
            f"the checksum time {time} has no time zone. Give one, e.g. time.replace(tzinfo=datetime.UTC)",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    seconds = math.ceil(time.timestamp())
    if not 1 <= seconds <= _LAST_SECOND:
        raise InvalidInputError(
            f"the checksum time {time} cannot be stored: the format has 32-bit Unix seconds. Use an etag instead",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return seconds


def split_checksum(checksum: Checksum) -> tuple[str | None, int]:
    """Split a checksum argument into an etag, or None, and a time in Unix seconds, or 0."""
    if checksum is None:
        return None, 0
    if isinstance(checksum, str):
        return checksum, 0
    if isinstance(checksum, datetime):
        return None, whole_seconds(checksum)
    raise TypeError(f"a checksum must be an etag (str) or a modification time (datetime), not {checksum!r}")


def single_reference(location: str, offset: int, length: int, etag: str | None, last_modified: int) -> ChunkRef:
    """Return one virtual chunk reference. Raises InvalidInputError (``invalid-virtual-ref``) for an invalid range."""
    if not isinstance(location, str):
        raise TypeError(f"a location must be a URL string, not {location!r}")
    if offset < 0 or length < 0 or offset + length > _LAST_BYTE:
        raise InvalidInputError(
            f"offset {offset} and length {length} are not a valid byte range of {location!r}. They must not be "
            f"negative, and their sum must fit into 64 bits",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return ChunkRef(
        kind=VIRTUAL,
        location=location,
        offset=int(offset),
        length=int(length),
        etag=etag,
        last_modified=0 if etag is not None else last_modified,
    )


def refs_of_specs(array_path: str, ndim: int, specs: Iterable[ChunkSpec]) -> ChunkRefs:
    """Return the chunk references of some specs, in their order.

    Raises
    ------
    InvalidInputError
        ``invalid-chunk-index``: an index does not have ``ndim`` coordinates.
    """
    items: list[tuple[tuple[int, ...], ChunkRef]] = []
    for spec in specs:
        index = tuple(spec.index)
        if len(index) != ndim:
            raise _bad_index(f"chunk index {index} has {len(index)} coordinates, array {array_path!r} has {ndim}")
        if not all(0 <= position <= MAX_CHUNK_INDEX for position in index):
            raise _bad_index(f"chunk index {index} is not in the chunk grid of array {array_path!r}")
        time = spec.last_updated_at_checksum
        last_modified = 0 if time is None else whole_seconds(time)
        items.append(
            (index, single_reference(spec.location, spec.offset, spec.length, spec.etag_checksum, last_modified))
        )
    return ChunkRefs.of(ndim, items)


def refs_of_grid(
    array_path: str,
    grid: Sequence[int],
    chunk_grid_shape: Sequence[int],
    locations: Sequence[str] | Strings,
    offsets: ArrayLike,
    lengths: ArrayLike,
    *,
    arr_offset: Sequence[int] | None = None,
    checksum: Checksum = None,
) -> ChunkRefs:
    """Return the chunk references of a box of chunks, whose cells are given flat in C order.

    Parameters
    ----------
    array_path
        Path of the array, for error messages.
    grid
        Number of chunks of the array along each axis.
    chunk_grid_shape
        Shape of the box.
    locations, offsets, lengths
        One entry for each cell. Numbers are unsigned. A cell with the location ``""`` gets no chunk reference.
    arr_offset
        Index of the box's first cell, zeros by default.
    checksum
        Checksum of all chunks.

    Raises
    ------
    InvalidInputError
        ``invalid-chunk-index``: shapes or lengths do not match. ``invalid-virtual-ref``: a byte range is invalid.
    """
    shape = tuple(int(length) for length in chunk_grid_shape)
    start = (0,) * len(shape) if arr_offset is None else tuple(int(position) for position in arr_offset)
    table, codes = _location_column(locations)
    starts, sizes = _byte_column("offsets", offsets), _byte_column("lengths", lengths)
    _require_fit(array_path, len(grid), shape, start, (len(codes), len(starts), len(sizes)))
    kept, table, codes = _without_empty(table, codes)
    if kept is not None:
        starts, sizes = starts[kept], sizes[kept]
    indices = _box_indices(array_path, grid, shape, start, kept)
    if bool((sizes > np.uint64(_LAST_BYTE) - starts).any()):
        raise InvalidInputError("offsets + lengths exceed 64 bits", ErrorKind.INVALID_VIRTUAL_REF)
    etag, last_modified = split_checksum(checksum)
    return ChunkRefs.build(
        indices,
        VIRTUAL,
        offsets=starts,
        lengths=sizes,
        location_codes=codes,
        locations=table,
        etag_codes=NO_CODE if etag is None else 0,
        etags=None if etag is None else BytesTable.of([etag]),
        last_modified=last_modified,
    )


def _location_column(locations: Sequence[str] | Strings) -> tuple[BytesTable, NDArray[np.int32]]:
    if isinstance(locations, np.ndarray) and locations.ndim != 1:
        raise _bad_index(f"locations must be flat (C order), not of shape {locations.shape}; use locations.ravel()")
    strings: Sequence[str] = locations.tolist() if isinstance(locations, np.ndarray) else locations
    try:
        return factorize(strings)
    except (AttributeError, TypeError):
        raise TypeError("locations must be URL strings, or '' for a cell without a chunk") from None


def _byte_column(name: str, values: ArrayLike) -> U64:
    """Return an unsigned 64-bit column. Nothing is wrapped or rounded."""
    column = np.asarray(values)
    if column.size == 0:
        return np.empty(0, np.uint64)
    if column.dtype.kind not in "ui":
        raise TypeError(f"{name} must be unsigned integers (numpy uint64), not {column.dtype}")
    if column.ndim != 1:
        raise _bad_index(f"{name} must be flat (C order), not of shape {column.shape}; use {name}.ravel()")
    if column.dtype.kind == "i" and bool((column < 0).any()):
        raise InvalidInputError(f"{name} must not be negative", ErrorKind.INVALID_VIRTUAL_REF)
    return column.astype(np.uint64, copy=False)


def _require_fit(
    array_path: str, ndim: int, shape: tuple[int, ...], start: tuple[int, ...], counts: tuple[int, int, int]
) -> None:
    if len(set(counts)) != 1:
        raise _bad_index(f"locations, offsets and lengths must have the same length, not {counts}")
    if len(shape) != ndim:
        raise _bad_index(f"chunk_grid_shape {shape} has {len(shape)} axes, array {array_path!r} has {ndim}")
    if len(start) != ndim:
        raise _bad_index(f"arr_offset {start} has {len(start)} axes, array {array_path!r} has {ndim}")
    if min(shape, default=0) < 0 or min(start, default=0) < 0:
        raise _bad_index(f"chunk_grid_shape {shape} and arr_offset {start} must not be negative")
    if math.prod(shape) != counts[0]:
        raise _bad_index(
            f"chunk_grid_shape {shape} has {math.prod(shape)} cells, but {counts[0]} locations were given. Pass one "
            f"location for each cell in C order, and '' for a cell without a chunk"
        )


def _without_empty(
    table: BytesTable, codes: NDArray[np.int32]
) -> tuple[NDArray[np.int64] | None, BytesTable, NDArray[np.int32]]:
    """Return the positions of the cells that have a location (None if all have one), and the reduced columns."""
    empty = np.flatnonzero(table.lengths == 0)
    if len(empty) == 0:
        return None, table, codes
    code = int(empty[0])  # equal strings share one code
    kept = np.flatnonzero(codes != code)
    codes = codes[kept]
    return kept, table.take(np.flatnonzero(table.lengths != 0)), codes - (codes > code).astype(np.int32)


def _box_indices(
    array_path: str,
    grid: Sequence[int],
    shape: tuple[int, ...],
    start: tuple[int, ...],
    kept: NDArray[np.int64] | None,
) -> U32:
    """Return the chunk indices of the cells that have a location. They must be inside the grid of the array."""
    num_cells = math.prod(shape) if kept is None else len(kept)
    indices = np.empty((num_cells, len(shape)), np.uint32)
    if num_cells == 0 or not shape:
        return indices
    if kept is None:
        # Each column repeats a few values, so broadcasting is much cheaper than unravelling cell numbers.
        box, columns = indices.reshape(*shape, len(shape)), np.ogrid[tuple(map(slice, shape))]
    else:
        box, columns = indices, np.unravel_index(kept, shape)
    for axis, column in enumerate(columns):
        last = int(column.max()) + start[axis]
        if last >= grid[axis]:
            raise _bad_index(
                f"the box {shape} at {start} reaches chunk {last} along axis {axis}, outside the chunk grid "
                f"{tuple(grid)} of array {array_path!r}. Resize the array first, or correct chunk_grid_shape and "
                f"arr_offset"
            )
        box[..., axis] = column + start[axis]
    return indices


def _bad_index(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.INVALID_CHUNK_INDEX)


def reference_batches(refs: ChunkRefs, batch_size: int, expand: Callable[[str], str]) -> Iterator[ReferenceBatch]:
    """Yield chunk references in the public columnar form, in the order of the rows.

    Parameters
    ----------
    batch_size
        Maximum number of rows in a batch.
    expand
        Returns the absolute URL of a location.
    """
    for start in range(0, len(refs), batch_size):
        yield _public_columns(refs.take(slice(start, start + batch_size)), expand)


def _public_columns(refs: ChunkRefs, expand: Callable[[str], str]) -> ReferenceBatch:
    paths = np.full(len(refs), "", object)
    native = np.flatnonzero(refs.kinds == NATIVE)
    paths[native] = base32_of_rows(refs.chunk_ids[native])
    virtual = np.flatnonzero(refs.kinds == VIRTUAL)
    codes, positions = np.unique(refs.location_codes[virtual], return_inverse=True)
    urls = [expand(location) for location in refs.locations.take(codes).texts()]
    paths[virtual] = np.array(urls, object)[positions]
    inline = np.flatnonzero(refs.kinds == INLINE)
    starts = refs.offsets[inline].tolist()
    stops = (refs.offsets[inline] + refs.lengths[inline]).tolist()
    inlined = {
        row: refs.inline_data[start:stop].tobytes()
        for row, start, stop in zip(inline.tolist(), starts, stops, strict=True)
    }
    offsets = np.where(refs.kinds == INLINE, np.uint64(0), refs.offsets)
    return refs.indices.copy(), refs.kinds.copy(), paths.tolist(), offsets, refs.lengths.copy(), inlined
