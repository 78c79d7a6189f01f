"""Numpy columns that the whole engine uses: tables of byte strings, ragged columns, lexicographic order.

A *ragged column* holds one list for each row: all items in one array, and ``n + 1`` starts. List ``i`` is
``items[starts[i]:starts[i + 1]]``. A :class:`BytesTable` is a ragged column of bytes.

This module knows nothing about Icechunk. No function loops over rows in Python, because columns may hold millions.
"""

from __future__ import annotations

from collections.abc import Buffer, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]
Integers = NDArray[np.integer]
"""Numbers of any integer type: positions, lengths, codes."""
Rows = NDArray[np.integer] | NDArray[np.bool_]
"""A choice of rows: their positions, or a mask."""

_MIN_SLICE = 64
"""If ranges are at least this long on average, copying slices is faster than gathering items (measured)."""

_FEW_SLICES = 8
"""Up to this many ranges are copied slice by slice at once: planning would cost more than it saves."""


def as_u8(data: Buffer) -> U8:
    """View any contiguous buffer as ``uint8``, without a copy."""
    return data if isinstance(data, np.ndarray) and data.dtype == np.uint8 else np.frombuffer(data, np.uint8)


def ragged_positions(starts: Integers, lengths: Integers) -> I64:
    """Return the positions of all items in the ranges ``starts[i] : starts[i] + lengths[i]``, range after range."""
    lengths = lengths.astype(np.int64, copy=False)
    total = int(lengths.sum())
    if total == 0:
        return np.empty(0, np.int64)
    if len(lengths) == 1:
        return np.arange(starts[0], starts[0] + total, dtype=np.int64)
    ends = lengths.cumsum()
    shifts = starts.astype(np.int64, copy=False) - (ends - lengths)
    return np.repeat(shifts, lengths) + np.arange(total, dtype=np.int64)


def column_bounds[T: np.integer](matrix: NDArray[T]) -> tuple[NDArray[T], NDArray[T]]:
    """Return the least and the greatest value of each column. The matrix must have rows."""
    columns = range(matrix.shape[1])  # numpy's own min(axis=0) is far slower than one call a column
    lowest = np.array([matrix[:, column].min() for column in columns], matrix.dtype)
    return lowest, np.array([matrix[:, column].max() for column in columns], matrix.dtype)


def starts_of(lengths: Integers | Mask) -> I64:
    """Return the prefix sums of some lengths with the total at the end: ``int64 (n + 1,)``."""
    if len(lengths) < 2:  # numpy's fixed cost a call dominates the encoding of small files
        return np.array([0, *lengths.tolist()], np.int64)
    starts = np.zeros(len(lengths) + 1, np.int64)
    lengths.cumsum(out=starts[1:])
    return starts


def gather_ranges[T: np.generic](items: NDArray[T], starts: Integers, lengths: Integers) -> NDArray[T]:
    """Copy the ranges ``starts[i] : starts[i] + lengths[i]``, range after range.

    Adjacent ranges are copied as one. Few or long ranges are copied as slices, which is faster than one index an item.
    """
    if len(starts) == 0:
        return items[:0]
    if len(starts) <= _FEW_SLICES:
        ranges = zip(starts.tolist(), lengths.tolist(), strict=True)
        return np.concatenate([items[start : start + length] for start, length in ranges])
    starts, lengths = starts.astype(np.int64, copy=False), lengths.astype(np.int64, copy=False)
    stops = starts + lengths
    heads = np.flatnonzero(np.concatenate([[True], starts[1:] != stops[:-1]]))
    if int(lengths.sum()) < _MIN_SLICE * len(heads):
        return items[ragged_positions(starts, lengths)]
    tails = np.append(heads[1:] - 1, len(starts) - 1)
    bounds = zip(starts[heads].tolist(), stops[tails].tolist(), strict=True)
    return np.concatenate([items[start:stop] for start, stop in bounds])


def scatter_ranges[T: np.generic](out: NDArray[T], starts: Integers, lengths: Integers, items: NDArray[T]) -> None:
    """Write consecutive items into the ranges of ``out``: the inverse of :func:`gather_ranges`."""
    if len(starts) == 1:
        out[int(starts[0]) : int(starts[0]) + len(items)] = items
        return
    width = int(lengths[0]) if len(starts) else 0
    if width and out.itemsize == 1 and bool((lengths == width).all()):
        # numpy scatters strings of one length as one item each.
        windows = np.ndarray((len(out) - width + 1,), f"V{width}", out, strides=(1,))
        windows[starts] = np.ascontiguousarray(items).view(f"V{width}")
        return
    if len(items) < _MIN_SLICE * len(starts):
        out[ragged_positions(starts, lengths)] = items
        return
    stops = np.cumsum(lengths)
    bounds = zip(starts.tolist(), (stops - lengths).tolist(), stops.tolist(), strict=True)
    for place, start, stop in bounds:
        out[place : place + stop - start] = items[start:stop]


def take_ragged[T: np.generic](items: NDArray[T], starts: I64, rows: Rows) -> tuple[NDArray[T], I64]:
    """Return the lists at ``rows`` of a ragged column: their items and their starts."""
    lengths = (starts[1:] - starts[:-1])[rows]
    return gather_ranges(items, starts[:-1][rows], lengths), starts_of(lengths)


def insert_ragged[T: np.generic](
    items: NDArray[T], starts: I64, place: int, added: NDArray[T], added_starts: I64
) -> tuple[NDArray[T], I64]:
    """Insert lists before list ``place`` of a ragged column. The new starts begin with 0."""
    first, middle, last = int(starts[0]), int(starts[place]), int(starts[-1])
    joined = np.concatenate([items[first:middle], added, items[middle:last]])
    return joined, np.concatenate(
        [starts[:place] - first, added_starts + (middle - first), starts[place + 1 :] + (len(added) - first)]
    )


class BytesTable:
    """Column of ``n`` byte strings: one data buffer and ``n + 1`` starts. Text is UTF-8.

    Attributes
    ----------
    data
        ``uint8``, all strings one after another.
    starts
        ``int64`` of shape ``(n + 1,)``; string ``i`` is ``data[starts[i]:starts[i + 1]]``.
    """

    __slots__ = ("data", "starts")

    def __init__(self, data: U8, starts: I64) -> None:
        self.data = data
        self.starts = starts

    @classmethod
    def empty(cls) -> Self:
        """Make a table without strings."""
        return cls(np.empty(0, np.uint8), np.zeros(1, np.int64))

    @classmethod
    def of(cls, items: Iterable[bytes | str]) -> Self:
        """Make a table of Python strings or bytes."""
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        starts = accumulate(map(len, encoded), initial=0)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), np.fromiter(starts, np.int64, len(encoded) + 1))

    @classmethod
    def gather(cls, buffer: U8, starts: Integers, lengths: Integers) -> Self:
        """Copy ``n`` ranges out of ``buffer``."""
        if len(starts) > 1 and bool((lengths == lengths[0]).all()) and int(lengths[0]) > 0:
            # Strings of one length: numpy gathers them as one item each instead of byte by byte.
            width = int(lengths[0])
            windows = np.ndarray((len(buffer) - width + 1,), f"V{width}", np.ascontiguousarray(buffer), strides=(1,))
            data = windows[starts.astype(np.int64, copy=False)].view(np.uint8)
            return cls(data, np.arange(0, len(data) + 1, width, dtype=np.int64))
        return cls(gather_ranges(buffer, starts, lengths), starts_of(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> I64:
        """Length of each string in bytes, ``int64 (n,)``."""
        return self.starts[1:] - self.starts[:-1]

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.data.nbytes + self.starts.nbytes)

    def raw(self, i: int) -> bytes:
        """Return string ``i`` as bytes."""
        return self.data[self.starts[i] : self.starts[i + 1]].tobytes()

    def text(self, i: int) -> str:
        """Return string ``i`` as text."""
        return self.raw(i).decode()

    def texts(self) -> list[str]:
        """Return all strings as text. This makes one Python object each: use it for small tables only."""
        data, starts = self.data.tobytes(), self.starts.tolist()
        return [data[start:stop].decode() for start, stop in pairwise(starts)]

    def raws(self) -> list[bytes]:
        """Return all strings as bytes. This makes one Python object each: use it for small tables only."""
        data, starts = self.data.tobytes(), self.starts.tolist()
        return [data[start:stop] for start, stop in pairwise(starts)]

    def insert(self, place: int, other: BytesTable) -> BytesTable:
        """Insert all strings of another table before string ``place``."""
        added = other.data[other.starts[0] : other.starts[-1]]
        return BytesTable(*insert_ragged(self.data, self.starts, place, added, other.starts - other.starts[0]))

    def take(self, rows: Rows) -> BytesTable:
        """Return the strings at ``rows``, in that order."""
        return BytesTable.gather(self.data, self.starts[:-1][rows], self.lengths[rows])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BytesTable)
            and np.array_equal(self.lengths, other.lengths)
            and np.array_equal(
                self.data[self.starts[0] : self.starts[-1]], other.data[other.starts[0] : other.starts[-1]]
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[BytesTable], tuple[U8, I64]]:
        return type(self), (np.ascontiguousarray(self.data), self.starts)


def concat_tables(tables: Sequence[BytesTable]) -> BytesTable:
    """Join several tables, table after table."""
    if len(tables) == 1:
        return tables[0]
    if not tables:
        return BytesTable.empty()
    data = [table.data[table.starts[0] : table.starts[-1]] for table in tables]
    lengths = np.concatenate([table.lengths for table in tables])
    return BytesTable(np.concatenate(data), starts_of(lengths))


def is_sorted(table: BytesTable) -> bool:
    """Return True if no string is greater than the next one, bytewise."""
    # Eight bytes of all pairs are compared at a time; pairs that are still equal go on to the next eight.
    if len(table) < 2:
        return True
    starts, lengths = table.starts[:-1], table.lengths
    padded = np.concatenate([table.data, np.zeros(8, np.uint8)])
    words = np.ndarray((len(padded) - 7,), ">u8", padded, strides=(1,))

    def word(rows: I64, offset: int) -> U64:
        # Bytes after the end of a string count as zero: "a" < "a\0" is then a tie, which the lengths decide below.
        missing = np.clip(offset + 8 - lengths[rows], 0, 8)
        values = words[np.where(missing < 8, starts[rows] + offset, 0)].astype(np.uint64)
        shifts = np.minimum(missing * 8, 63).astype(np.uint64)
        return np.where(missing < 8, values >> shifts << shifts, np.uint64(0))

    rows, offset = np.arange(len(table) - 1, dtype=np.int64), 0
    while len(rows):
        left, right = word(rows, offset), word(rows + 1, offset)
        if bool((left > right).any()):
            return False
        offset += 8
        rows = rows[left == right]
        ended = np.maximum(lengths[rows], lengths[rows + 1]) <= offset
        if bool((lengths[rows] > lengths[rows + 1])[ended].any()):
            return False
        rows = rows[~ended]
    return True


def row_keys(rows: U8) -> NDArray[np.bytes_]:
    """View ``uint8 (n, width)`` rows as keys that compare and sort bytewise."""
    width = rows.shape[1]
    return np.ascontiguousarray(rows).view(f"S{width}").reshape(len(rows))


def factorize(strings: Sequence[str]) -> tuple[BytesTable, NDArray[np.int32]]:
    """Return the distinct strings in order of first appearance, and the code of each input string."""
    codes: dict[str, int] = dict.fromkeys(strings, 0)  # dict.fromkeys and map hash in C: about 0.1 µs a string
    distinct = list(codes)
    codes.update(zip(distinct, range(len(distinct)), strict=True))
    return BytesTable.of(distinct), np.fromiter(map(codes.__getitem__, strings), np.int32, len(strings))


def broadcast_column(value: ArrayLike, n: int, dtype: DTypeLike) -> NDArray[Any]:
    """Make a read-only column that holds one value ``n`` times and takes no memory."""
    scalar = np.asarray(value, dtype)
    if n == 1:
        return scalar[np.newaxis]
    return np.broadcast_to(scalar, (n, *scalar.shape))


def lex_order(rows: Integers) -> I64:
    """Return the stable order that sorts the rows of a matrix lexicographically."""
    if rows.shape[1] == 0 or len(rows) < 2:
        return np.arange(len(rows), dtype=np.int64)
    keys = linear_keys(rows)
    if keys is not None:
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    return np.lexsort(rows.T[::-1]).astype(np.int64, copy=False)


def linear_keys(rows: Integers) -> U64 | None:
    """Return one ``uint64`` a row that compares as the row does; None if the rows' box has 2**63 cells or more."""
    if rows.shape[1] == 0 or len(rows) == 0:
        return np.zeros(len(rows), np.uint64)
    spans = [int(top) + 1 for top in column_bounds(rows)[1]]
    strides = row_strides(spans)
    if strides is None:
        return None
    keys = np.zeros(len(rows), np.uint64)
    for axis, stride in enumerate(strides):
        keys += rows[:, axis].astype(np.uint64) * np.uint64(stride)
    return keys


def row_strides(spans: Sequence[int]) -> list[int] | None:
    """Return the C-order strides of a box with these edge lengths; None if it has 2**63 cells or more."""
    strides, total = [], 1
    for span in reversed(spans):
        strides.append(total)
        total *= span
    return strides[::-1] if total < 2**63 else None


def distinct_rows(rows: U32) -> U32:
    """Return the distinct rows, sorted lexicographically."""
    if len(rows) < 2:
        return rows
    ordered = rows[lex_order(rows)]
    distinct: U32 = ordered[np.append(rows_differ(ordered), True)]
    return distinct


def rows_differ(rows: Integers) -> Mask:
    """Return a mask ``(n - 1,)``: True where row ``i`` differs from row ``i + 1``."""
    differ: Mask = (rows[1:] != rows[:-1]).any(axis=1)
    return differ
