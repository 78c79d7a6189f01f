"""Reads flatbuffer tables as numpy columns: one gather a field, however many tables there are.

Start with :class:`Buffer` and its :meth:`~Buffer.root`; a :class:`Tables` gives columns of fields and
:class:`Vectors` of children, which give tables, scalars, structs or strings again. Everything that a flatbuffer writer
may choose is read: any order of tables, vtables, vectors and strings, shared ones too, aligned or not.

Nothing in the bytes is trusted. Every position, length and vtable is checked before it is used, in one comparison a
column; what does not fit raises :class:`~icechunk_engine.errors.FormatError` (``deserialization``). Data that many
places share is bounded in all, so that a small file cannot ask for much memory.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from icechunk_engine.columns.tables import I64, U8, BytesTable, broadcast_column, starts_of
from icechunk_engine.errors import ErrorKind, FormatError

Mask = NDArray[np.bool_]

_MAX_SHARED = 2**32
_FEW_VTABLES = 8


class Buffer:
    """The bytes of one flatbuffer.

    Parameters
    ----------
    data
        ``uint8``, one-dimensional and contiguous.
    name
        Object name for messages.
    """

    __slots__ = ("_views", "budget", "data", "name", "size")

    def __init__(self, data: U8, name: str = "this file") -> None:
        self.data = np.ascontiguousarray(data)
        self.name = name
        self.size = len(data)
        self.budget = min(_MAX_SHARED, 2**24 + 4 * self.size)
        self._views: dict[str, NDArray[Any]] = {}

    def error(self, reason: str) -> FormatError:
        """The error of a corrupt file."""
        return FormatError(
            f"{self.name} is corrupt: {reason}. Fetch the object again; if it stays so, restore it from a backup or "
            f"go back to a snapshot that does not need it",
            ErrorKind.DESERIALIZATION,
        )

    def require_same(self, anchors: I64, places: I64, shift: int = 0) -> None:
        """Raise unless each place, moved by ``shift``, is in the file of its anchor: see :class:`JoinedBuffer`."""

    def gather(self, positions: I64, dtype: DTypeLike) -> NDArray[Any]:
        """Values of ``dtype``, stored little-endian, at any byte positions; every position is checked."""
        native, stored = _dtypes(cast(Hashable, dtype))
        self.require_same(positions, positions, native.itemsize - 1)
        if len(positions) == 0:
            return np.empty(0, native)
        if len(positions) == 1:  # most tables of small files stand alone
            position = int(positions[0])
            if not 0 <= position <= self.size - native.itemsize:
                raise self.error("an offset points outside of the file")
            return np.ndarray((1,), stored, self.data, position).astype(native)
        if int(positions.min()) < 0 or int(positions.max()) > self.size - native.itemsize:
            raise self.error("an offset points outside of the file")
        view = self._views.get(stored.str)
        if view is None:
            # One element begins at every byte, so that positions index it as they are.
            shape = (self.size - native.itemsize + 1,)
            view = np.ndarray(shape, stored, self.data, strides=(1,))
            self._views[stored.str] = view
        return view[positions].astype(native, copy=False)

    def gather_bytes(self, positions: I64, width: int) -> U8:
        """``uint8 (n, width)``: the ``width`` bytes at each position."""
        if width == 0:
            return np.empty((len(positions), 0), np.uint8)
        return self.gather(positions, f"V{width}").view(np.uint8).reshape(len(positions), width)

    def follow(self, positions: I64) -> I64:
        """Where the unsigned offsets stored at ``positions`` point to."""
        targets: I64 = positions + self.gather(positions, np.uint32)
        self.require_same(positions, targets)
        return targets

    def tables(self, positions: I64) -> Tables:
        """The tables at ``positions``."""
        return Tables(self, positions)

    def root(self) -> Tables:
        """The root table, as a :class:`Tables` of one."""
        return Tables(self, self.follow(np.zeros(1, np.int64)))

    def vectors(self, positions: I64, item_size: int) -> Vectors:
        """The vectors (or strings, with ``item_size`` 1) whose length prefixes are at ``positions``."""
        lengths = self.gather(positions, np.uint32).astype(np.int64)
        starts = positions + 4
        ends = starts + lengths * item_size
        if len(starts) and int(ends.max()) > self.size:
            raise self.error("a vector reaches beyond the end of the file")
        self.require_same(positions, ends, -1)
        return Vectors(self, starts, lengths, item_size)

    def spend(self, n_bytes: int) -> None:
        """Account for gathered bytes; refuse more than a file of this size can sensibly share."""
        self.budget -= n_bytes
        if self.budget < 0:
            raise self.error("its vectors overlap too much")

    def require_room(self, n: int, least: int) -> None:
        """Raise unless ``n`` items of at least so many bytes fit into the file."""
        if n * least > self.size:
            raise self.error(f"it lists {n} items, which do not fit into its {self.size} bytes")


class JoinedBuffer(Buffer):
    """Several flatbuffers one after another, whose tables are read together; nothing may point from one to another.

    Parameters
    ----------
    bodies
        The flatbuffers, each ``uint8`` and not empty.

    Attributes
    ----------
    starts
        ``int64 (m + 1,)``: where each begins, and the end.
    """

    __slots__ = ("starts",)

    def __init__(self, bodies: Sequence[U8], name: str = "one of some files") -> None:
        super().__init__(np.concatenate(bodies), name)
        self.starts = starts_of(np.array([len(body) for body in bodies], np.int64))

    def require_same(self, anchors: I64, places: I64, shift: int = 0) -> None:
        if not np.array_equal(self._files(anchors), self._files(places + shift)):
            raise self.error("an offset points outside of the file")

    def _files(self, positions: I64) -> I64:
        return np.searchsorted(self.starts, positions, "right")

    def roots(self) -> Tables:
        """The root tables."""
        return Tables(self, self.follow(self.starts[:-1]))


@lru_cache
def _dtypes(dtype: Hashable) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """A data type of this machine, and as it is stored."""
    native: np.dtype[Any] = np.dtype(dtype)  # type: ignore[call-overload]
    return native, native.newbyteorder("<")


class Tables:
    """``n`` tables of one type.

    Parameters
    ----------
    buffer
        The flatbuffer.
    positions
        ``int64 (n,)``: where the tables are.
    """

    __slots__ = ("_codes", "_only_vtable", "_vtable_sizes", "_vtables", "buffer", "positions")

    def __init__(self, buffer: Buffer, positions: I64) -> None:
        self.buffer = buffer
        self.positions = positions
        vtables = positions - buffer.gather(positions, np.int32)
        buffer.require_same(positions, vtables)
        self._vtables, self._codes = _group(vtables)
        self._vtable_sizes = buffer.gather(self._vtables, np.uint16).astype(np.int64)
        if len(positions):
            if int(self._vtable_sizes.min()) < 4 or bool((self._vtable_sizes & 1).any()):
                raise buffer.error("a vtable is malformed")
            ends = self._vtables + self._vtable_sizes
            if int(ends.max()) > buffer.size:
                raise buffer.error("a vtable reaches beyond the end of the file")
            buffer.require_same(self._vtables, ends, -1)
        self._only_vtable: list[int] | None = None
        if len(self._vtables) == 1:
            n_entries, start = int(self._vtable_sizes[0]) // 2, int(self._vtables[0])
            self._only_vtable = np.ndarray((n_entries,), "<u2", buffer.data, start).tolist()

    def __len__(self) -> int:
        return len(self.positions)

    def present(self, slot: int) -> Mask:
        """``bool (n,)``: which tables have the field."""
        if self._only_vtable is not None:
            return self._all_or_none(self._only_offset(self._only_vtable, slot))
        return self._present(self._field_offsets(slot))

    def scalar(self, slot: int, dtype: DTypeLike, default: int = 0) -> NDArray[Any]:
        """``(n,)`` values of a number field; ``default`` where it is absent."""
        positions, present = self._fields(slot)
        if len(positions) == len(self):
            return self.buffer.gather(positions, dtype)
        if len(positions) == 0:
            return broadcast_column(default, len(self), dtype)
        values = np.full(len(self), default, dtype)
        values[present] = self.buffer.gather(positions, dtype)
        return values

    def struct(self, slot: int, size: int) -> tuple[U8, Mask]:
        """``uint8 (n, size)`` of a struct field, zeros where it is absent, and the mask of presence."""
        positions, present = self._fields(slot)
        if len(positions) == len(self):
            return self.buffer.gather_bytes(positions, size), present
        if len(positions) == 0:
            return broadcast_column(np.zeros(size), len(self), np.uint8), present
        values = np.zeros((len(self), size), np.uint8)
        values[present] = self.buffer.gather_bytes(positions, size)
        return values, present

    def required_struct(self, slot: int, size: int, field: str) -> U8:
        """Like :meth:`struct` for a field that every table must have; ``field`` names it in the error."""
        values, present = self.struct(slot, size)
        self._require(present, field)
        return values

    def offset(self, slot: int) -> I64:
        """``int64 (n,)``: absolute positions of child objects, -1 where absent."""
        positions, present = self._fields(slot)
        if len(positions) == len(self):
            return self.buffer.follow(positions)
        children = np.full(len(self), -1, np.int64)
        if len(positions):
            children[present] = self.buffer.follow(positions)
        return children

    def children(self, slot: int, field: str) -> Tables:
        """Child tables of a field that every table must have (one each)."""
        children = self.offset(slot)
        self._require(children >= 0, field)
        return Tables(self.buffer, children)

    def vectors(self, slot: int, item_size: int, required: str = "") -> Vectors:
        """Child vectors, one a table; strings are vectors with ``item_size`` 1.

        Parameters
        ----------
        required
            Name of the field when absence is an error; else absent vectors have start -1 and length 0.
        """
        positions = self.offset(slot)
        present = positions >= 0
        if bool(present.all()):
            return self.buffer.vectors(positions, item_size)
        if required:
            self._require(present, required)
        found = self.buffer.vectors(positions[present], item_size)
        starts, lengths = positions, np.zeros(len(self), np.int64)
        starts[present] = found.starts
        lengths[present] = found.lengths
        return Vectors(self.buffer, starts, lengths, item_size)

    def strings(self, slot: int, required: str = "") -> BytesTable:
        """Text field as a column; absent strings are empty (see :meth:`present`)."""
        return self.vectors(slot, 1, required).text()

    def take(self, rows: NDArray[Any]) -> Tables:
        """The tables at ``rows`` (positions or a mask)."""
        return Tables(self.buffer, self.positions[rows])

    def _require(self, present: Mask, field: str) -> None:
        if not bool(present.all()):
            raise self.buffer.error(f"{field} is missing")

    @staticmethod
    def _only_offset(vtable: list[int], slot: int) -> int:
        """Inline offset of a field in the one vtable that all tables have, 0 where absent."""
        return vtable[2 + slot] if 2 + slot < len(vtable) else 0

    def _all_or_none(self, offset: int) -> Mask:
        return broadcast_column(offset != 0, len(self), np.bool_)

    def _field_offsets(self, slot: int) -> I64:
        """Inline offset of a field in each vtable, 0 where absent."""
        entry = 4 + 2 * slot
        has_entry = self._vtable_sizes >= entry + 2
        if bool(has_entry.all()):
            return self.buffer.gather(self._vtables + entry, np.uint16).astype(np.int64)
        offsets = np.zeros(len(self._vtables), np.int64)
        if bool(has_entry.any()):
            offsets[has_entry] = self.buffer.gather(self._vtables[has_entry] + entry, np.uint16)
        return offsets

    def _present(self, offsets: I64) -> Mask:
        has_field = offsets != 0
        if len(offsets) and bool((has_field == has_field[0]).all()):
            return broadcast_column(bool(has_field[0]), len(self), np.bool_)
        present: Mask = has_field if self._codes is None else has_field[self._codes]
        return present

    def _fields(self, slot: int) -> tuple[I64, Mask]:
        """Positions of the field in the tables that have it, and which do."""
        if self._only_vtable is not None:
            offset = self._only_offset(self._only_vtable, slot)
            fields = self.positions + offset if offset else np.empty(0, np.int64)
            self.buffer.require_same(self.positions[: len(fields)], fields)
            return fields, self._all_or_none(offset)
        offsets = self._field_offsets(slot)
        present = self._present(offsets)
        of_table = offsets if self._codes is None else offsets[self._codes]
        owners = self.positions
        if not bool(present.all()):
            owners, of_table = owners[present], of_table[present]
        fields = owners + of_table
        self.buffer.require_same(owners, fields)
        return fields, present


def _group(vtables: I64) -> tuple[I64, NDArray[np.int64] | None]:
    """Vtables to read, and which of them each table has; None when there is one for all, or one for each.

    Writers share vtables among like tables, so usually there are few, or long runs of one.
    """
    n = len(vtables)
    if n < 2:
        return vtables, None
    changes = vtables[1:] != vtables[:-1]
    n_runs = int(np.count_nonzero(changes)) + 1
    if n_runs == 1:
        return vtables[:1], None
    if n_runs <= n // 4:
        heads = np.concatenate([[0], np.flatnonzero(changes) + 1])
        codes = np.zeros(n, np.int64)
        np.cumsum(changes, out=codes[1:])
        return vtables[heads], codes
    codes = np.zeros(n, np.int64)
    distinct = [int(vtables[0])]
    rest = vtables != vtables[0]
    while bool(rest.any()):
        if len(distinct) == _FEW_VTABLES:
            return vtables, None
        value = int(vtables[np.argmax(rest)])
        same = vtables == value
        codes[same] = len(distinct)
        distinct.append(value)
        rest &= ~same
    return np.array(distinct, np.int64), codes


@dataclass(frozen=True, slots=True)
class Vectors:
    """``n`` vectors or strings.

    Attributes
    ----------
    starts
        ``int64 (n,)``: position of the first item; -1 for an absent vector.
    lengths
        ``int64 (n,)``: number of items; 0 for an absent vector.
    item_size
        Bytes an item.
    """

    buffer: Buffer
    starts: I64
    lengths: I64
    item_size: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def present(self) -> Mask:
        """``bool (n,)``."""
        present: Mask = self.starts >= 0
        return present

    def item_positions(self) -> I64:
        """Positions of all items, vector after vector."""
        total = int(self.lengths.sum())
        self.buffer.spend(total * self.item_size)
        steps = np.arange(total, dtype=np.int64) * self.item_size
        if len(self) == 1:
            steps += self.starts[0]
        else:
            ends = np.cumsum(self.lengths)
            steps += np.repeat(self.starts - (ends - self.lengths) * self.item_size, self.lengths)
        return steps

    def scalars(self, dtype: DTypeLike) -> NDArray[Any]:
        """All numbers, vector after vector, in one flat array."""
        if len(self) == 1 and self.item_size == np.dtype(dtype).itemsize:
            start = max(int(self.starts[0]), 0)
            data = self.buffer.data[start : start + int(self.lengths[0]) * self.item_size]
            return data.copy().view(np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False)
        return self.buffer.gather(self.item_positions(), dtype)

    def structs(self) -> U8:
        """All structs, vector after vector: ``uint8 (total, item_size)``."""
        return self.buffer.gather_bytes(self.item_positions(), self.item_size)

    def matrix(self, dtype: DTypeLike, width: int, field: str) -> NDArray[Any]:
        """``(n, width)`` numbers of vectors that must all have ``width`` items; ``field`` names them in the error."""
        if bool((self.lengths != width).any()):
            raise self.buffer.error(f"{field} has not always {width} items")
        native = np.dtype(dtype)
        self.buffer.spend(len(self) * width * native.itemsize)
        rows = self.buffer.gather_bytes(self.starts, width * native.itemsize)
        return rows.view(native.newbyteorder("<")).astype(native, copy=False) if width else rows.astype(native)

    def tables(self, least: int = 4) -> Tables:
        """The tables that vectors of offsets point to, vector after vector.

        Parameters
        ----------
        least
            Bytes that one takes at least, with its offset and what nothing else can share. Where more are listed than
            fit into the file, they overlap, and their columns would take far more memory than the file.
        """
        self.buffer.require_room(int(self.lengths.sum()), least)
        return Tables(self.buffer, self.buffer.follow(self.item_positions()))

    def vectors(self, item_size: int, least: int = 4) -> Vectors:
        """The vectors or strings that vectors of offsets point to, vector after vector; ``least`` as above."""
        self.buffer.require_room(int(self.lengths.sum()), least)
        return self.buffer.vectors(self.buffer.follow(self.item_positions()), item_size)

    def bytes_table(self) -> BytesTable:
        """Copy of each vector's bytes; absent ones are empty."""
        lengths = self.lengths * self.item_size
        self.buffer.spend(int(lengths.sum()))
        return BytesTable.gather(self.buffer.data, self.starts, lengths)

    def text(self) -> BytesTable:
        """Like :meth:`bytes_table` for strings, which must be UTF-8."""
        table = self.bytes_table()
        if not is_utf8(table):
            raise self.buffer.error("a string is not UTF-8")
        return table

    def distinct(self) -> tuple[Vectors, NDArray[np.int32]]:
        """Vectors without repetitions of one position, and the code of each row; -1 for absent ones.

        Vectors at different positions stay apart, even when they are equal.
        """
        starts = self.starts
        codes = np.full(len(self), -1, np.int32)
        heads = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1]])) if len(self) else np.empty(0, int)
        head_codes = np.full(len(heads), -1, np.int32)
        present = np.flatnonzero(starts[heads] >= 0)
        rows = heads[present]
        _, first, inverse = np.unique(starts[rows], return_index=True, return_inverse=True)
        # Codes in order of first appearance.
        order = np.argsort(first, kind="stable")
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        head_codes[present] = rank[inverse]
        if len(heads):
            codes = np.repeat(head_codes, np.diff(np.append(heads, len(self))))
        chosen = rows[first[order]]
        return Vectors(self.buffer, starts[chosen], self.lengths[chosen], self.item_size), codes


def is_utf8(table: BytesTable) -> bool:
    """True when every string of the table is UTF-8."""
    data = table.data
    if len(data) == 0 or int(data.max()) < 0x80:
        return True
    heads = table.starts[:-1][table.lengths > 0]
    if bool(((data[heads] & 0xC0) == 0x80).any()):
        return False  # a string that begins inside of a character
    try:
        data.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True
