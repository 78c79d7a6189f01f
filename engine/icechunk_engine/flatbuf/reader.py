"""Read flatbuffer tables as numpy columns: one gather a field, for any number of tables.

Start with :meth:`Buffer.root`. A :class:`Tables` gives columns of fields, and :class:`Vectors` of children, which give
tables, numbers, structs or strings in turn. The reader accepts everything that a flatbuffer writer may choose: any
order of tables, vtables, vectors and strings, shared or not, aligned or not.

Two rules keep hostile files harmless:

- *Nothing is used before it is checked.* A position from the file is data until :meth:`Buffer.gather` or
  :meth:`Buffer.vectors` has compared it with the size of the file, in one comparison a column. Damage raises
  :class:`~icechunk_engine.errors.FormatError` (``deserialization``). Every read therefore goes through these methods;
  code that indexes ``Buffer.data`` itself must take its ranges from a :class:`Vectors`, which has checked them.
- *Memory is proportional to the file.* Many offsets may point to one place, so a file of a few KiB could describe
  gigabytes. Copies of shared data are paid from ``Buffer.budget`` (:meth:`Buffer.spend`), and a list of tables
  must fit into the file as if nothing were shared (:meth:`Buffer.require_room`).

Small files are read together (:class:`JoinedBuffer`), because one numpy call costs the same for one table as for a
thousand. There, each offset must also stay inside its own file (:meth:`Buffer.require_same`); without that check, a
damaged file could show data of its neighbour.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast, overload

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, BytesTable, Mask, Rows, broadcast_column, starts_of
from icechunk_engine.errors import ErrorKind, FormatError

_MAX_BUDGET = 2**32
"""Bytes that may be gathered from one file at most."""
_FEW_VTABLES = 8
"""Up to here, one comparison of all tables with each distinct vtable is faster than sorting."""


class Buffer:
    """The bytes of one flatbuffer.

    Parameters
    ----------
    data
        ``uint8``, one-dimensional and contiguous.
    name
        Object name for messages.

    Attributes
    ----------
    budget
        Bytes that may still be gathered. Starts at 16 MiB plus four times the size of the file.
    """

    __slots__ = ("_views", "budget", "data", "name", "size")

    def __init__(self, data: U8, name: str = "this file") -> None:
        self.data = np.ascontiguousarray(data)
        self.name = name
        self.size = len(data)
        self.budget = min(_MAX_BUDGET, 2**24 + 4 * self.size)
        self._views: dict[str, NDArray[np.generic]] = {}

    def error(self, reason: str) -> FormatError:
        """Make the error of a corrupt file."""
        return FormatError(
            f"{self.name} is corrupt: {reason}. Fetch the object again. If the error stays, restore the object from a "
            f"backup, or go back to a snapshot that does not need it",
            ErrorKind.DESERIALIZATION,
        )

    def require_same(self, anchors: I64, places: I64, shift: int = 0) -> None:
        """Raise if a place, moved by ``shift``, is in another file than its anchor. Only joined buffers check this."""

    @overload
    def gather[T: np.generic](self, positions: I64, dtype: type[T]) -> NDArray[T]: ...
    @overload
    def gather(self, positions: I64, dtype: str) -> NDArray[np.void]: ...
    def gather(self, positions: I64, dtype: type[np.generic] | str) -> NDArray[np.generic]:
        """Return the values of ``dtype``, stored little-endian, at any byte positions. Checks every position."""
        native, stored = _dtypes(cast(Hashable, dtype))  # mypy takes classes of scalars for unhashable
        self.require_same(positions, positions, native.itemsize - 1)
        if len(positions) == 0:
            return np.empty(0, native)
        if len(positions) == 1:  # usual in small files, where numpy's fixed costs dominate
            position = int(positions[0])
            if not 0 <= position <= self.size - native.itemsize:
                raise self.error("an offset points outside of the file")
            return np.ndarray((1,), stored, self.data, position).astype(native)
        if int(positions.min()) < 0 or int(positions.max()) > self.size - native.itemsize:
            raise self.error("an offset points outside of the file")
        view = self._views.get(stored.str)
        if view is None:
            # A view with a stride of one byte: an element begins at every byte, so positions index it directly.
            shape = (self.size - native.itemsize + 1,)
            view = np.ndarray(shape, stored, self.data, strides=(1,))
            self._views[stored.str] = view
        return view[positions].astype(native, copy=False)

    def gather_bytes(self, positions: I64, width: int) -> U8:
        """Return the ``width`` bytes at each position, ``uint8 (n, width)``."""
        if width == 0:
            return np.empty((len(positions), 0), np.uint8)
        return self.gather(positions, f"V{width}").view(np.uint8).reshape(len(positions), width)

    def follow(self, positions: I64) -> I64:
        """Return where the unsigned offsets stored at ``positions`` point to. The targets are not checked yet."""
        targets: I64 = positions + self.gather(positions, np.uint32)
        self.require_same(positions, targets)
        return targets

    def tables(self, positions: I64) -> Tables:
        """Return the tables at ``positions``."""
        return Tables(self, positions)

    def root(self) -> Tables:
        """Return the root table, as a :class:`Tables` of one."""
        return Tables(self, self.follow(np.zeros(1, np.int64)))

    def vectors(self, positions: I64, item_size: int) -> Vectors:
        """Return the vectors (or strings, with ``item_size`` 1) whose length prefixes are at ``positions``."""
        lengths = self.gather(positions, np.uint32).astype(np.int64)
        starts = positions + 4
        ends = starts + lengths * item_size
        if len(starts) and int(ends.max()) > self.size:
            raise self.error("a vector extends beyond the end of the file")
        self.require_same(positions, ends, -1)
        return Vectors(self, starts, lengths, item_size)

    def spend(self, n_bytes: int) -> None:
        """Pay for bytes to be gathered. Raises FormatError if the file shares its data too often."""
        self.budget -= n_bytes
        if self.budget < 0:
            raise self.error("its vectors overlap too much")

    def require_room(self, n: int, least: int) -> None:
        """Raise if ``n`` items of at least ``least`` bytes do not fit into the file."""
        if n * least > self.size:
            raise self.error(f"it lists {n} items, which do not fit into its {self.size} bytes")


class JoinedBuffer(Buffer):
    """Several flatbuffers, one after another, whose tables are read together. No offset may leave its flatbuffer.

    Parameters
    ----------
    bodies
        The flatbuffers: ``uint8``, none of them empty.

    Attributes
    ----------
    starts
        ``int64 (m + 1,)``: the start of each flatbuffer, and the end.
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
        """Return the root tables."""
        return Tables(self, self.follow(self.starts[:-1]))


@lru_cache
def _dtypes(dtype: Hashable) -> tuple[np.dtype[np.generic], np.dtype[np.generic]]:
    """Return a dtype in the byte order of this machine, and as files store it."""
    native: np.dtype[np.generic] = np.dtype(dtype)  # type: ignore[call-overload]
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
        vtables = positions - buffer.gather(positions, np.int32)  # signed, so a vtable may come before or after
        buffer.require_same(positions, vtables)
        self._vtables, self._codes = _group(vtables)
        self._vtable_sizes = buffer.gather(self._vtables, np.uint16).astype(np.int64)
        if len(positions):
            # A vtable has 16-bit words: its own size, the size of the table, then the fields.
            if int(self._vtable_sizes.min()) < 4 or bool((self._vtable_sizes & 1).any()):
                raise buffer.error("a vtable is malformed")
            ends = self._vtables + self._vtable_sizes
            if int(ends.max()) > buffer.size:
                raise buffer.error("a vtable extends beyond the end of the file")
            buffer.require_same(self._vtables, ends, -1)
        self._only_vtable: list[int] | None = None
        if len(self._vtables) == 1:
            n_entries, start = int(self._vtable_sizes[0]) // 2, int(self._vtables[0])
            self._only_vtable = np.ndarray((n_entries,), "<u2", buffer.data, start).tolist()

    def __len__(self) -> int:
        return len(self.positions)

    def present(self, slot: int) -> Mask:
        """Return which tables have the field, ``bool (n,)``."""
        if self._only_vtable is not None:
            return self._all_or_none(self._only_offset(self._only_vtable, slot))
        return self._present(self._field_offsets(slot))

    def scalar[T: np.generic](self, slot: int, dtype: type[T], default: int = 0) -> NDArray[T]:
        """Return the values of a number field, ``(n,)``; ``default`` where it is absent."""
        positions, present = self._fields(slot)
        # Mostly all tables have a field, or none has it. Neither case needs a scatter.
        if len(positions) == len(self):
            return self.buffer.gather(positions, dtype)
        if len(positions) == 0:
            return broadcast_column(default, len(self), dtype)
        values = np.full(len(self), default, dtype)
        values[present] = self.buffer.gather(positions, dtype)
        return values

    def struct(self, slot: int, size: int) -> tuple[U8, Mask]:
        """Return a struct field, ``uint8 (n, size)`` with zeros where it is absent, and the mask of presence."""
        positions, present = self._fields(slot)
        if len(positions) == len(self):
            return self.buffer.gather_bytes(positions, size), present
        if len(positions) == 0:
            return broadcast_column(np.zeros(size), len(self), np.uint8), present
        values = np.zeros((len(self), size), np.uint8)
        values[present] = self.buffer.gather_bytes(positions, size)
        return values, present

    def required_struct(self, slot: int, size: int, field: str) -> U8:
        """Return a struct field that every table must have. ``field`` names it in the error."""
        values, present = self.struct(slot, size)
        self._require(present, field)
        return values

    def offset(self, slot: int) -> I64:
        """Return the absolute positions of child objects, ``int64 (n,)``; -1 where the field is absent."""
        positions, present = self._fields(slot)
        if len(positions) == len(self):
            return self.buffer.follow(positions)
        children = np.full(len(self), -1, np.int64)
        if len(positions):
            children[present] = self.buffer.follow(positions)
        return children

    def children(self, slot: int, field: str) -> Tables:
        """Return the child tables of a field that every table must have."""
        children = self.offset(slot)
        self._require(children >= 0, field)
        return Tables(self.buffer, children)

    def vectors(self, slot: int, item_size: int, required: str = "") -> Vectors:
        """Return the child vectors, one a table. Strings are vectors with ``item_size`` 1.

        Parameters
        ----------
        required
            Name of the field if every table must have it. Otherwise absent vectors have start -1 and length 0.
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
        """Return a text field as a column. Absent strings are empty; :meth:`present` tells them apart."""
        return self.vectors(slot, 1, required).text()

    def take(self, rows: Rows) -> Tables:
        """Return the tables at ``rows``."""
        return Tables(self.buffer, self.positions[rows])

    def _require(self, present: Mask, field: str) -> None:
        if not bool(present.all()):
            raise self.buffer.error(f"{field} is missing")

    @staticmethod
    def _only_offset(vtable: list[int], slot: int) -> int:
        """Return where a field lies in all tables, if they have one vtable; 0 if it is absent."""
        return vtable[2 + slot] if 2 + slot < len(vtable) else 0

    def _all_or_none(self, offset: int) -> Mask:
        return broadcast_column(offset != 0, len(self), np.bool_)

    def _field_offsets(self, slot: int) -> I64:
        """Return where a field lies according to each vtable; 0 where it is absent."""
        entry = 4 + 2 * slot  # a vtable that is too short for it lacks the field
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
        """Return the positions of a field in the tables that have it, and the mask of those tables."""
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
    """Return the vtables to read, and which of them each table has; None if there is one for all, or one for each.

    Writers share vtables among tables that have the same fields. So usually there are few, or they come in long runs.
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
    # No long runs: the tables may take a few vtables in turn. Otherwise reading a vtable for each table is cheapest.
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
        Bytes of one item.
    """

    buffer: Buffer
    starts: I64
    lengths: I64
    item_size: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def present(self) -> Mask:
        """Which vectors are present, ``bool (n,)``."""
        present: Mask = self.starts >= 0
        return present

    def item_positions(self) -> I64:
        """Return the positions of all items, vector after vector."""
        total = int(self.lengths.sum())
        self.buffer.spend(total * self.item_size)
        steps = np.arange(total, dtype=np.int64) * self.item_size
        if len(self) == 1:
            steps += self.starts[0]
        else:
            ends = np.cumsum(self.lengths)
            steps += np.repeat(self.starts - (ends - self.lengths) * self.item_size, self.lengths)
        return steps

    def scalars[T: np.generic](self, dtype: type[T]) -> NDArray[T]:
        """Return all numbers, vector after vector, in one flat array."""
        if len(self) == 1 and self.item_size == np.dtype(dtype).itemsize:
            start = max(int(self.starts[0]), 0)  # an absent vector starts at -1 and has no items
            data = self.buffer.data[start : start + int(self.lengths[0]) * self.item_size]
            return data.copy().view(np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False)
        return self.buffer.gather(self.item_positions(), dtype)

    def structs(self) -> U8:
        """Return all structs, vector after vector: ``uint8 (total, item_size)``."""
        return self.buffer.gather_bytes(self.item_positions(), self.item_size)

    def matrix[T: np.generic](self, dtype: type[T], width: int, field: str) -> NDArray[T]:
        """Return vectors that must all have ``width`` items as ``(n, width)``. ``field`` names them in the error."""
        if bool((self.lengths != width).any()):
            raise self.buffer.error(f"{field} does not always have {width} items")
        native = np.dtype(dtype)
        self.buffer.spend(len(self) * width * native.itemsize)
        rows = self.buffer.gather_bytes(self.starts, width * native.itemsize)
        return rows.view(native.newbyteorder("<")).astype(native, copy=False) if width else rows.astype(native)

    def tables(self, least: int = 4) -> Tables:
        """Return the tables that vectors of offsets point to, vector after vector.

        Parameters
        ----------
        least
            The fewest bytes that one table takes: its offset, and the parts that tables cannot share. If the file
            lists more tables than fit into it, they overlap, and their columns would take far more memory than it.
        """
        self.buffer.require_room(int(self.lengths.sum()), least)
        return Tables(self.buffer, self.buffer.follow(self.item_positions()))

    def vectors(self, item_size: int, least: int = 4) -> Vectors:
        """Return the vectors or strings that vectors of offsets point to; for ``least`` see :meth:`tables`."""
        self.buffer.require_room(int(self.lengths.sum()), least)
        return self.buffer.vectors(self.buffer.follow(self.item_positions()), item_size)

    def bytes_table(self) -> BytesTable:
        """Copy the bytes of each vector. Absent vectors are empty."""
        lengths = self.lengths * self.item_size
        self.buffer.spend(int(lengths.sum()))
        return BytesTable.gather(self.buffer.data, self.starts, lengths)

    def text(self) -> BytesTable:
        """Copy strings, which must be UTF-8. Absent ones are empty."""
        table = self.bytes_table()
        if not is_utf8(table):
            raise self.buffer.error("a string is not UTF-8")
        return table

    def distinct(self) -> tuple[Vectors, NDArray[np.int32]]:
        """Return the vectors without repeated positions, and the code of each row; -1 for absent vectors.

        Vectors at different positions stay apart, even if they are equal.
        """
        # Rows that share a vector mostly follow each other: only the first row of each run is sorted.
        starts = self.starts
        codes = np.full(len(self), -1, np.int32)
        heads = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1]])) if len(self) else np.empty(0, int)
        head_codes = np.full(len(heads), -1, np.int32)
        present = np.flatnonzero(starts[heads] >= 0)
        rows = heads[present]
        _, first, inverse = np.unique(starts[rows], return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")  # number the codes in order of first appearance
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        head_codes[present] = rank[inverse]
        if len(heads):
            codes = np.repeat(head_codes, np.diff(np.append(heads, len(self))))
        chosen = rows[first[order]]
        return Vectors(self.buffer, starts[chosen], self.lengths[chosen], self.item_size), codes


def is_utf8(table: BytesTable) -> bool:
    """Return True if every string of the table is UTF-8."""
    data = table.data
    if len(data) == 0 or int(data.max()) < 0x80:
        return True
    heads = table.starts[:-1][table.lengths > 0]
    if bool(((data[heads] & 0xC0) == 0x80).any()):
        return False  # a string begins inside a character; decoding all strings as one would not notice
    try:
        data.tobytes().decode()
    except UnicodeDecodeError:
        return False
    return True
