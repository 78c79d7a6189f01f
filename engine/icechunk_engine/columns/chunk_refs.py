"""Chunk references as columns: the only form that they have between the file and the public API.

A row of :class:`ChunkRefs` says where the bytes of one chunk are. Three rules hold:

- Columns are never changed in place. A copy of a change set, a cached manifest and a pickled fork may share them, so
  every method returns a new object or ``self``.
- ``offsets`` of inline chunks count in ``inline_data``, those of other chunks in the object that holds the chunk. Code
  that joins or reduces ``inline_data`` must therefore shift the offsets of inline rows, and of no others
  (:func:`concat`, :meth:`ChunkRefs.compact`).
- A code is a row of ``locations`` or ``etags``. Joining two sets shifts the codes; equal strings then appear twice
  until the manifest writer merges them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from icechunk_engine.columns.tables import (
    I64,
    U8,
    U32,
    U64,
    BytesTable,
    Integers,
    Mask,
    Rows,
    broadcast_column,
    column_bounds,
    concat_tables,
    gather_ranges,
    lex_order,
    rows_differ,
)
from icechunk_engine.ids import ChunkId
from icechunk_engine.types import IntegerEnum


class ChunkType(IntegerEnum):
    """Where a chunk's bytes are; the values are those of the ``kinds`` column."""

    uninitialized = 0
    native = 1
    virtual = 2
    inline = 3


DELETED = ChunkType.uninitialized.value
"""The chunk was removed. Only change sets hold such rows; a manifest never does."""
NATIVE = ChunkType.native.value
VIRTUAL = ChunkType.virtual.value
INLINE = ChunkType.inline.value

NO_CODE = -1
"""The row has no string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRef:
    """One chunk reference, to read or set a single chunk."""

    kind: int
    offset: int = 0
    length: int = 0
    chunk_id: ChunkId | None = None
    location: str | None = None
    etag: str | None = None
    last_modified: int = 0
    inline: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkRefs:
    """Columns of ``n`` chunk references of one array.

    Attributes
    ----------
    indices
        ``uint32 (n, ndim)``: chunk grid coordinates.
    kinds
        ``uint8 (n,)``: values of :class:`ChunkType`; ``DELETED`` only in a change set.
    chunk_ids
        ``uint8 (n, 12)``: the object under ``chunks/`` that holds a native chunk, zeros for other kinds.
    offsets, lengths
        ``uint64 (n,)``: byte range in the native object, in the virtual object, or in ``inline_data``.
    location_codes
        ``int32 (n,)``: row of ``locations`` for virtual chunks, else -1.
    etag_codes
        ``int32 (n,)``: row of ``etags``, -1 if the chunk has none.
    last_modified
        ``uint32 (n,)``: Unix seconds, 0 if unknown.
    locations, etags
        Strings that the codes name.
    inline_data
        ``uint8 (k,)``: payloads of all inline chunks.

    A column that holds one value may be a broadcast view, which takes no memory. Rows may be in any order; in
    manifests, and after :meth:`latest`, they are sorted by index.
    """

    indices: U32
    kinds: U8
    chunk_ids: U8
    offsets: U64
    lengths: U64
    location_codes: NDArray[np.int32]
    etag_codes: NDArray[np.int32]
    last_modified: U32
    locations: BytesTable
    etags: BytesTable
    inline_data: U8

    @classmethod
    def build(
        cls,
        indices: Integers,
        kinds: Integers | int,
        *,
        chunk_ids: U8 | None = None,
        offsets: Integers | int = 0,
        lengths: Integers | int = 0,
        location_codes: Integers | int = NO_CODE,
        etag_codes: Integers | int = NO_CODE,
        last_modified: Integers | int = 0,
        locations: BytesTable | None = None,
        etags: BytesTable | None = None,
        inline_data: U8 | None = None,
    ) -> Self:
        """Make columns. Scalars become broadcast columns."""
        n = len(indices)

        def column(values: ArrayLike, dtype: DTypeLike) -> NDArray[Any]:
            if isinstance(values, np.ndarray) and values.ndim:
                return values.astype(dtype, copy=False)
            return broadcast_column(values, n, dtype)

        return cls(
            indices=indices.astype(np.uint32, copy=False),
            kinds=column(kinds, np.uint8),
            chunk_ids=chunk_ids if chunk_ids is not None else broadcast_column(np.zeros(12), n, np.uint8),
            offsets=column(offsets, np.uint64),
            lengths=column(lengths, np.uint64),
            location_codes=column(location_codes, np.int32),
            etag_codes=column(etag_codes, np.int32),
            last_modified=column(last_modified, np.uint32),
            locations=locations if locations is not None else BytesTable.empty(),
            etags=etags if etags is not None else BytesTable.empty(),
            inline_data=inline_data if inline_data is not None else np.empty(0, np.uint8),
        )

    @classmethod
    def empty(cls, ndim: int) -> Self:
        """Make columns without rows, for an array of rank ``ndim``."""
        return cls.build(np.empty((0, ndim), np.uint32), NATIVE)

    @classmethod
    def of(cls, ndim: int, items: Sequence[tuple[tuple[int, ...], ChunkRef]]) -> Self:
        """Make columns of references that were set one by one."""
        refs = [ref for _, ref in items]
        inline = [ref.inline or b"" for ref in refs]
        inline_lengths = np.fromiter(map(len, inline), np.int64, len(inline))
        inline_starts = (np.cumsum(inline_lengths) - inline_lengths).astype(np.uint64)
        kinds = np.array([ref.kind for ref in refs], np.uint8)
        is_inline = kinds == INLINE
        locations = list(dict.fromkeys(ref.location for ref in refs if ref.location is not None))
        etags = list(dict.fromkeys(ref.etag for ref in refs if ref.etag is not None))
        location_code: dict[str | None, int] = {text: code for code, text in enumerate(locations)}
        etag_code: dict[str | None, int] = {text: code for code, text in enumerate(etags)}
        ids = b"".join([ref.chunk_id.raw if ref.chunk_id is not None else bytes(12) for ref in refs])
        return cls.build(
            np.array([index for index, _ in items], np.uint32).reshape(len(items), ndim),
            kinds,
            chunk_ids=np.frombuffer(ids, np.uint8).reshape(len(items), 12),
            offsets=np.where(is_inline, inline_starts, np.array([ref.offset for ref in refs], np.uint64)),
            lengths=np.where(
                is_inline, inline_lengths.astype(np.uint64), np.array([ref.length for ref in refs], np.uint64)
            ),
            location_codes=np.array([location_code.get(ref.location, NO_CODE) for ref in refs], np.int32),
            etag_codes=np.array([etag_code.get(ref.etag, NO_CODE) for ref in refs], np.int32),
            last_modified=np.array([ref.last_modified for ref in refs], np.uint32),
            locations=BytesTable.of(locations),
            etags=BytesTable.of(etags),
            inline_data=np.frombuffer(b"".join(inline), np.uint8),
        )

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def ndim(self) -> int:
        """Rank of the chunk grid."""
        return int(self.indices.shape[1])

    @property
    def is_sorted(self) -> bool:
        """True if the rows are sorted by index, and no two have the same."""
        return len(self) < 2 or _strictly_increasing(self.indices)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the columns hold; a broadcast column counts as its one value."""
        total = self.locations.nbytes + self.etags.nbytes + self.inline_data.nbytes
        for field in _ROW_COLUMNS:
            column = getattr(self, field)
            # A stride of 0 marks a broadcast column. Its one row has at most 12 items, those of a chunk id.
            total += column.itemsize * 12 if column.strides[:1] == (0,) else column.nbytes
        return int(total)

    def take(self, rows: Rows | slice) -> ChunkRefs:
        """Return the references at ``rows``. String tables and inline data are shared, not copied."""
        if not isinstance(rows, slice) and rows.dtype == np.bool_ and bool(rows.all()):
            return self
        columns: dict[str, Any] = {field: _take(getattr(self, field), rows) for field in _ROW_COLUMNS}
        return dataclasses.replace(self, **columns)

    def copy(self, rows: slice, inline_data: U8) -> ChunkRefs:
        """Copy some rows, so that they do not keep the memory of the others alive. String tables are shared.

        Parameters
        ----------
        inline_data
            The payloads that the offsets of the copied inline chunks count in.
        """
        indices, kinds, ids, offsets, lengths, location_codes, etag_codes, last_modified = [
            _copy(getattr(self, field)[rows]) for field in _ROW_COLUMNS
        ]
        return ChunkRefs(
            indices=indices,
            kinds=kinds,
            chunk_ids=ids,
            offsets=offsets,
            lengths=lengths,
            location_codes=location_codes,
            etag_codes=etag_codes,
            last_modified=last_modified,
            locations=self.locations,
            etags=self.etags,
            inline_data=inline_data,
        )

    def narrow(self, rows: slice) -> ChunkRefs:
        """Return consecutive references, with little more than the strings and payloads that they use.

        Nothing but a few codes and offsets is copied. :meth:`compact` also drops what lies between, and copies.
        """
        start, stop, _ = rows.indices(len(self))
        if stop - start == len(self):
            return self
        part = self.take(slice(start, stop))
        locations, location_codes = _narrow_table(part.locations, part.location_codes)
        etags, etag_codes = _narrow_table(part.etags, part.etag_codes)
        offsets, data = part.offsets, part.inline_data
        if len(data):
            offsets, data = _narrow_payloads(part.kinds == INLINE, offsets, part.lengths, data)
        return dataclasses.replace(
            part,
            locations=locations,
            location_codes=location_codes,
            etags=etags,
            etag_codes=etag_codes,
            offsets=offsets,
            inline_data=data,
        )

    def latest(self) -> ChunkRefs:
        """Return the references sorted by index. If several rows have one index, only the last one stays."""
        rows = self.latest_rows()
        return self if rows is None else self.take(rows)

    def latest_rows(self) -> I64 | slice | None:
        """Return the rows that :meth:`latest` takes, in their order; None if it takes all rows as they are."""
        if len(self) < 2:
            return None
        if self.ndim == 0:
            return slice(len(self) - 1, len(self))
        if self.is_sorted:
            return None
        order = lex_order(self.indices)  # stable, so the last of several equal rows is the latest edit
        rows: I64 = order[np.append(rows_differ(self.indices[order]), True)]
        return rows

    def within(self, start: Sequence[int], stop: Sequence[int]) -> Mask:
        """Return the mask of the references inside a half-open box; all True for rank 0."""
        mask = np.ones(len(self), np.bool_)
        for axis in range(self.ndim):
            column = self.indices[:, axis]
            mask &= (column >= start[axis]) & (column < stop[axis])
        return mask

    def extents(self) -> U32:
        """Return the bounding box, ``uint32 (ndim, 2)``: inclusive start, exclusive stop. Needs at least one row."""
        lowest, highest = column_bounds(self.indices)
        return np.stack([lowest, highest + np.uint32(1)], axis=1)

    def compact(self) -> ChunkRefs:
        """Drop the strings and inline payloads that no row uses."""
        locations, location_codes = _compact_table(self.locations, self.location_codes)
        etags, etag_codes = _compact_table(self.etags, self.etag_codes)
        inline = np.flatnonzero(self.kinds == INLINE)
        offsets, data = self.offsets, self.inline_data
        if len(inline) == 0:
            data = np.empty(0, np.uint8)
        elif int(self.lengths[inline].sum()) != len(data):
            lengths = self.lengths[inline].astype(np.int64)
            data = gather_ranges(data, offsets[inline], lengths)
            offsets = offsets.copy()
            offsets[inline] = (np.cumsum(lengths) - lengths).astype(np.uint64)
        return dataclasses.replace(
            self,
            locations=locations,
            location_codes=location_codes,
            etags=etags,
            etag_codes=etag_codes,
            offsets=offsets,
            inline_data=data,
        )

    def row(self, i: int) -> ChunkRef:
        """Return reference ``i`` as an object."""
        kind, offset, length = int(self.kinds[i]), int(self.offsets[i]), int(self.lengths[i])
        if kind == NATIVE:
            return ChunkRef(kind=kind, offset=offset, length=length, chunk_id=ChunkId(self.chunk_ids[i].tobytes()))
        if kind == INLINE:
            return ChunkRef(kind=kind, length=length, inline=self.inline_data[offset : offset + length].tobytes())
        if kind == VIRTUAL:
            etag_code = int(self.etag_codes[i])
            return ChunkRef(
                kind=kind,
                offset=offset,
                length=length,
                location=self.locations.text(int(self.location_codes[i])),
                etag=None if etag_code == NO_CODE else self.etags.text(etag_code),
                last_modified=int(self.last_modified[i]),
            )
        return ChunkRef(kind=DELETED)

    def __reduce__(self) -> tuple[object, ...]:
        # numpy would pickle a column of one value in full. As this value, forks and the memory they take stay small.
        values: dict[str, _Picklable] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = _shortened(value) if field.name in _ROW_COLUMNS and len(value) > 1 else value
        return _unpickle, (len(self), values)


_ROW_COLUMNS = (
    "indices",
    "kinds",
    "chunk_ids",
    "offsets",
    "lengths",
    "location_codes",
    "etag_codes",
    "last_modified",
)


class _Constant(NamedTuple):
    """A column of one value in a pickle."""

    value: np.generic | NDArray[Any]


class _Steps(NamedTuple):
    """A column of numbers at equal distances in a pickle, such as the offsets of payloads of one length."""

    first: int
    step: int


type _Picklable = NDArray[Any] | BytesTable | _Constant | _Steps


def _shortened(column: NDArray[Any]) -> _Picklable:
    """Return what a pickle holds of a column with several rows."""
    if column.strides[0] == 0 or (np.array_equal(column[0], column[-1]) and bool((column == column[0]).all())):
        return _Constant(column[0])
    if column.dtype == np.uint64:
        first, second, last = (int(column[i]) for i in (0, 1, -1))
        step = second - first
        if step > 0 and last - first == step * (len(column) - 1) and bool((np.diff(column) == step).all()):
            return _Steps(first, step)
    return column


def _unpickle(n: int, values: dict[str, Any]) -> ChunkRefs:
    for name, value in values.items():
        if isinstance(value, _Constant):
            constant = np.asarray(value.value)
            values[name] = broadcast_column(constant, n, constant.dtype)
        elif isinstance(value, _Steps):
            values[name] = _shared_steps(n, *value) if n <= _MAX_SHARED_ROWS else _steps(n, *value)
    return ChunkRefs(**values)


_MAX_SHARED_ROWS = 1 << 16


def _steps(n: int, first: int, step: int) -> U64:
    column = np.arange(n, dtype=np.uint64) * np.uint64(step) + np.uint64(first)
    column.setflags(write=False)
    return column


_shared_steps = lru_cache(maxsize=16)(_steps)  # the forks of many equal tasks share one column


def _take[T: np.generic](column: NDArray[T], rows: Rows | slice) -> NDArray[T]:
    if len(column) > 1 and column.strides[0] == 0:
        n = len(range(*rows.indices(len(column)))) if isinstance(rows, slice) else _count(rows)
        return broadcast_column(column[0], n, column.dtype)
    return column[rows]


def _copy[T: np.generic](column: NDArray[T]) -> NDArray[T]:
    return column if column.strides[0] == 0 else column.copy()


def _count(rows: Rows) -> int:
    return int(np.count_nonzero(rows)) if rows.dtype == np.bool_ else len(rows)


def _strictly_increasing(indices: U32) -> bool:
    """Return True if rows are sorted and distinct. Comparing columns is cheaper than building keys to sort by."""
    tied = np.ones(len(indices) - 1, np.bool_)
    for axis in range(indices.shape[1]):
        before, after = indices[:-1, axis], indices[1:, axis]
        if bool((tied & (after < before)).any()):
            return False
        tied &= after == before
    return not bool(tied.any())


def _compact_table(table: BytesTable, codes: NDArray[np.int32]) -> tuple[BytesTable, NDArray[np.int32]]:
    if len(table) == 0 or len(codes) == 0:
        return BytesTable.empty(), codes
    used = np.zeros(len(table), np.bool_)  # marking is cheaper than sorting the codes
    used[codes[codes >= 0]] = True
    if bool(used.all()):
        return table, codes
    renumber = np.cumsum(used, dtype=np.int32) - 1
    return table.take(np.flatnonzero(used)), np.where(codes >= 0, renumber[codes], np.int32(NO_CODE))


def _narrow_table(table: BytesTable, codes: NDArray[np.int32]) -> tuple[BytesTable, NDArray[np.int32]]:
    """Return the strings between the first and the last one that is used. Their bytes are shared."""
    if len(table) == 0 or len(codes) == 0:
        return BytesTable.empty(), codes
    lowest, highest = int(codes.min()), int(codes.max())
    if highest < 0:
        return BytesTable.empty(), codes
    if lowest < 0:
        lowest = int(codes[codes >= 0].min())
    if highest - lowest + 1 == len(table):
        return table, codes
    starts = table.starts[lowest : highest + 2]
    narrowed = BytesTable(table.data[starts[0] : starts[-1]], starts - starts[0])
    return narrowed, np.maximum(codes - np.int32(lowest), np.int32(NO_CODE))


def _narrow_payloads(inline: NDArray[np.bool_], offsets: U64, lengths: U64, data: U8) -> tuple[U64, U8]:
    """Return the payloads between the first and the last one that is used, and the offsets in them."""
    first = int(offsets.min(where=inline, initial=len(data)))
    stop = int((offsets + lengths).max(where=inline, initial=0))
    return np.where(inline, offsets - np.uint64(first), offsets), data[first:stop]


def concat(parts: Sequence[ChunkRefs]) -> ChunkRefs:
    """Join several sets of references, in that order. String tables are put one after another."""
    if len(parts) == 1:
        return parts[0]
    locations, location_codes = _concat_coded([(part.locations, part.location_codes) for part in parts])
    etags, etag_codes = _concat_coded([(part.etags, part.etag_codes) for part in parts])
    # Inline payloads are joined too, so offsets of inline rows move by the payloads of the parts before.
    inline_shifts = np.cumsum([0, *(len(part.inline_data) for part in parts[:-1])])
    offsets = [
        np.where(part.kinds == INLINE, part.offsets + np.uint64(shift), part.offsets) if shift else part.offsets
        for part, shift in zip(parts, inline_shifts, strict=True)
    ]

    def stack(field: str) -> NDArray[Any]:
        # Parts that hold the same constant stay one broadcast column.
        columns = [getattr(part, field) for part in parts]
        first = next((column for column in columns if len(column)), columns[0])
        constant = len(first) and all(
            not len(column) or ((len(column) == 1 or column.strides[0] == 0) and np.array_equal(column[0], first[0]))
            for column in columns
        )
        if constant:
            return broadcast_column(first[0], sum(map(len, columns)), first.dtype)
        return np.concatenate(columns)

    return ChunkRefs(
        indices=np.concatenate([part.indices for part in parts]),
        kinds=stack("kinds"),
        chunk_ids=stack("chunk_ids"),
        offsets=np.concatenate(offsets),
        lengths=stack("lengths"),
        location_codes=location_codes,
        etag_codes=etag_codes,
        last_modified=stack("last_modified"),
        locations=locations,
        etags=etags,
        inline_data=np.concatenate([part.inline_data for part in parts]),
    )


def _concat_coded(
    parts: Sequence[tuple[BytesTable, NDArray[np.int32]]],
) -> tuple[BytesTable, NDArray[np.int32]]:
    """Join tables and shift the codes. Equal strings of different parts are not merged here."""
    if all(len(table) == 0 for table, _ in parts):
        return BytesTable.empty(), broadcast_column(NO_CODE, sum(len(codes) for _, codes in parts), np.int32)
    first = parts[0][0]
    if all(table is first for table, _ in parts):
        return first, np.concatenate([codes for _, codes in parts])
    shifts = np.cumsum([0, *(len(table) for table, _ in parts[:-1])])
    shifted = [
        np.where(codes >= 0, codes + np.int32(shift), np.int32(NO_CODE)) if shift else codes
        for (_, codes), shift in zip(parts, shifts, strict=True)
    ]
    return concat_tables([table for table, _ in parts]), np.concatenate(shifted)
