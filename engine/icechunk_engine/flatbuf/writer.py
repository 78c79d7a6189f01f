"""Write flatbuffers from numpy columns: plan the layout from the root outwards, then fill in the columns.

An :class:`Arena` reserves places, one after another, and nothing moves after that. Three rules follow:

- *Reserve parents before their children.* Stored offsets are unsigned, so they point forwards. The usual flatbuffer
  builders fill the buffer from its end for this reason; planning first gives the same with whole columns at a time.
  :func:`forward` raises if the order is wrong.
- *Reserve everything before you write.* Offsets need the positions of children, so :meth:`Arena.seal` fixes the last
  places, those of the vtables, and with them the size. Vtables may come last because offsets to them are signed.
- *Fill each place with exactly the bytes that it reserved.* Contents may be functions, which :meth:`Arena.blocks`
  calls when it reaches their place. So large tables are made slab by slab while the compressor consumes them, and a
  large file never exists as a whole in memory. Content of another size would shift all that follows, so it raises.

>>> import numpy as np
>>> from icechunk_engine.columns.tables import BytesTable
>>> PERSON = TableLayout.of({0: OFFSET, 1: "<u8"})
>>> arena = Arena(b"Test")
>>> root = arena.tables(TableLayout.of({0: OFFSET}), 1)
>>> arena.set_root(root)
>>> people = arena.offset_vectors([2])
>>> root.point(0, people.positions)
>>> persons = arena.tables(PERSON, 2)
>>> people.point(persons.positions)
>>> persons.point(0, arena.strings(BytesTable.of(["Ann", "Bob"])))
>>> persons.set(1, np.array([41, 0]), present=np.array([True, False]))
>>> data = arena.tobytes()
"""

from __future__ import annotations

import math
import struct
from collections.abc import Buffer, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from icechunk_engine.columns.tables import (
    I64,
    U8,
    BytesTable,
    Integers,
    Mask,
    as_u8,
    ragged_positions,
    scatter_ranges,
    starts_of,
)
from icechunk_engine.errors import ErrorKind, FormatError, InternalError

MAX_BUFFER_SIZE = 2**31 - 1
"""The official library neither writes nor verifies larger flatbuffers."""

OFFSET = "<u4"
"""Field type of a child table, vector or string."""

_SLAB_ROWS = 2**16
_FEW = 8
"""Up to this many tables or vectors, Python is faster than numpy."""
_FEW_BYTES = 2**16

type Content = Buffer | Callable[[], Iterator[Buffer]]
"""What fills a place: a contiguous buffer, or a function that yields the pieces when they are needed."""


class Arena:
    """A plan of one flatbuffer.

    Parameters
    ----------
    identifier
        The four bytes of the file identifier.
    """

    __slots__ = ("_contents", "_identifier", "_open_tables", "_reserved", "_root", "size")

    def __init__(self, identifier: bytes) -> None:
        self.size = 8
        self._identifier = identifier
        self._root: int | None = None
        self._reserved: list[tuple[int, int]] = []
        self._contents: dict[int, Content] = {}
        self._open_tables: list[TableWriter] = []

    def reserve(self, n_bytes: int, align: int = 4, lead: int = 0) -> int:
        """Reserve ``n_bytes`` at a position that is ``lead`` modulo ``align``. :meth:`put` the content later.

        Raises
        ------
        FormatError
            ``serialization``: the buffer would exceed MAX_BUFFER_SIZE.
        """
        position = self.size + (lead - self.size) % align
        if position + n_bytes > MAX_BUFFER_SIZE:
            raise FormatError(
                f"a file's flatbuffer would exceed {MAX_BUFFER_SIZE} bytes, and readers do not accept that. Commit "
                f"less at once, or configure manifest splitting",
                ErrorKind.SERIALIZATION,
            )
        self.size = position + n_bytes
        if n_bytes:
            self._reserved.append((position, n_bytes))
        return position

    def put(self, position: int, content: Content) -> None:
        """Set the content of a reserved place."""
        self._contents[position] = content

    def add(self, data: Buffer, align: int = 1) -> int:
        """Reserve a place and set its content; return its position."""
        raw = as_u8(data)
        position = self.reserve(len(raw), align)
        if len(raw):
            self.put(position, raw)
        return position

    def set_root(self, root: TableWriter) -> None:
        """Declare the root table."""
        self._root = int(root.positions[0])

    def tables(self, layout: TableLayout, n: int) -> TableWriter:
        """Reserve ``n`` tables. Set their fields before you write the buffer."""
        position = self.reserve(n * layout.stride, layout.align, layout.lead)
        writer = TableWriter(layout, position, n)
        self._open_tables.append(writer)
        if n:
            self.put(position, writer.slabs)
        return writer

    def vectors(self, values: Integers, lengths: Integers | Sequence[int], align: int | None = None) -> I64:
        """Add vectors of numbers or structs; return their positions.

        Parameters
        ----------
        values
            All items, vector after vector: numbers ``(total,)``, or structs as ``uint8 (total, size)``.
        lengths
            Number of items of each vector, ``(n,)``.
        align
            Alignment of the items. By default, numbers are aligned to their size and structs not at all.
        """
        item_size = values.itemsize if values.ndim == 1 else int(values.shape[1])
        stored = values.astype(values.dtype.newbyteorder("<"), copy=False)
        raw = np.ascontiguousarray(stored).view(np.uint8).reshape(-1)
        if align is None:
            align = item_size if values.ndim == 1 else 1
        return self._ragged(raw, np.asarray(lengths, np.int64), item_size, align, terminated=False)

    def vector(self, values: Integers, align: int | None = None) -> I64:
        """Add one vector; return its position as an array of one."""
        return self.vectors(values, [len(values)], align)

    def byte_vectors(self, table: BytesTable) -> I64:
        """Add one ``[u8]`` vector for each entry of the table; return their positions."""
        raw = table.data[table.starts[0] : table.starts[-1]]
        return self._ragged(raw, table.lengths, 1, 1, terminated=False)

    def strings(self, table: BytesTable) -> I64:
        """Add one string for each entry of the table; return their positions. Many fields may share a string."""
        raw = table.data[table.starts[0] : table.starts[-1]]
        return self._ragged(raw, table.lengths, 1, 1, terminated=True)

    def string(self, text: str | bytes) -> I64:
        """Add one string; return its position as an array of one."""
        return self.strings(BytesTable.of([text]))

    def offset_vectors(self, lengths: Integers | Sequence[int]) -> OffsetVectors:
        """Reserve vectors of offsets to tables or strings. Point them at their targets before you write the buffer."""
        counts = np.asarray(lengths, np.int64)
        if len(counts) == 1:
            base = self.reserve(4 + 4 * int(counts[0]))
            writer = OffsetVectors(np.array([base], np.int64), counts)
            self.put(base, writer.content)
            return writer
        sizes = 4 + 4 * counts
        base = self.reserve(int(sizes.sum()))
        writer = OffsetVectors(base + starts_of(sizes)[:-1], counts)
        if len(counts):
            self.put(base, writer.content)
        return writer

    def _ragged(self, raw: U8, lengths: I64, item_size: int, align: int, *, terminated: bool) -> I64:
        if len(lengths) == 0:
            return np.empty(0, np.int64)
        align = max(4, align)
        if len(lengths) <= _FEW and len(raw) <= _FEW_BYTES:
            return self._few_ragged(raw.tobytes(), lengths.tolist(), item_size, align, terminated=terminated)
        used = 4 + lengths * item_size + (1 if terminated else 0)
        # Every vector takes a multiple of the alignment. If the items of the first are aligned, so are all.
        sizes = -(-used // align) * align
        starts = starts_of(sizes)
        total = int(starts[-1])
        base = self.reserve(total, align, align - 4)
        filled = np.zeros(total, np.uint8)
        filled.view("<u4")[starts[:-1] // 4] = lengths
        scatter_ranges(filled, starts[:-1] + 4, lengths * item_size, raw)
        self.put(base, filled)
        return base + starts[:-1]

    def _few_ragged(self, raw: bytes, lengths: list[int], item_size: int, align: int, *, terminated: bool) -> I64:
        """Do the same as :meth:`_ragged` in plain Python, which is faster for the few small vectors of small files."""
        pieces, starts, at, end = [], [], 0, 0
        for length in lengths:
            stop = at + length * item_size
            size = -(-(4 + stop - at + terminated) // align) * align
            pieces.append((length.to_bytes(4, "little") + raw[at:stop]).ljust(size, b"\0"))
            starts.append(end)
            at, end = stop, end + size
        base = self.reserve(end, align, align - 4)
        self.put(base, b"".join(pieces))
        return np.array(starts, np.int64) + base

    def blocks(self) -> Iterator[Buffer]:
        """Yield the finished buffer in pieces, ``self.size`` bytes in all. :meth:`seal` fixes the size.

        Raises
        ------
        InternalError
            A reserved place has no content, or content of another size.
        """
        self.seal()
        if self._root is None:
            raise InternalError("a flatbuffer has no root table")
        yield np.uint32(self._root).astype("<u4").tobytes() + self._identifier
        position = 8
        for place, n_bytes in self._reserved:
            if place > position:
                yield bytes(place - position)  # padding for alignment
            content = self._contents.get(place)
            if content is None:
                raise InternalError("a reserved place in a flatbuffer has no content")
            written = 0
            for piece in content() if callable(content) else (content,):
                written += piece.nbytes if isinstance(piece, np.ndarray) else memoryview(piece).nbytes
                yield piece
            if written != n_bytes:
                raise InternalError(f"a place in a flatbuffer has {n_bytes} bytes, but its content has {written}")
            position = place + n_bytes

    def seal(self) -> int:
        """Place the vtables of all tables; return the final size. Nothing may be reserved after this."""
        vtables: dict[bytes, int] = {}  # a position is never 0, which is in the file header
        for writer in self._open_tables:
            writer.place_vtables(lambda vtable: vtables.get(vtable) or vtables.setdefault(vtable, self.add(vtable, 2)))
        self._open_tables.clear()
        return self.size

    def tobytes(self) -> bytes:
        """Return the finished buffer."""
        self.seal()
        return b"".join(self.blocks())


@dataclass(frozen=True, slots=True)
class TableLayout:
    """Where the fields of a table type lie. All tables of one writer have the same layout, present fields or not.

    Attributes
    ----------
    fields
        Slot → (offset from the table's start, dtype).
    n_slots
        Number of entries of the vtable.
    size
        Bytes of one table, without padding.
    stride
        Bytes from one table to the next.
    align, lead
        Tables begin at positions that are ``lead`` modulo ``align``.
    record
        One table: the offset to its vtable, then ``fields`` in their order.
    """

    fields: Mapping[int, tuple[int, np.dtype[np.generic]]]
    n_slots: int
    size: int
    stride: int
    align: int
    lead: int
    record: struct.Struct
    _vtables: dict[tuple[int, ...], bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, slots: Mapping[int, str]) -> Self:
        """Make the layout of a table type.

        Parameters
        ----------
        slots
            Slot → numpy dtype: ``"<u8"``, ``"u1"``, …; :data:`OFFSET` for children; ``"V12"`` for structs of bytes.
        """
        dtypes = {slot: np.dtype(code) for slot, code in slots.items()}
        # Fields with the largest alignment first: then no field needs padding. Structs of bytes fit anywhere.
        order = sorted(dtypes, key=lambda slot: (-_alignment(dtypes[slot]), slot))
        align = max([4, *(_alignment(dtype) for dtype in dtypes.values())])
        fields: dict[int, tuple[int, np.dtype[np.generic]]] = {}
        end = 4
        for slot in order:
            fields[slot] = (end, dtypes[slot])
            end += dtypes[slot].itemsize
        stride = -(-end // align) * align
        codes = [_STRUCT_CODES.get(dtype.str[1:]) or f"{dtype.itemsize}s" for _, dtype in fields.values()]
        return cls(
            fields=fields,
            n_slots=max(dtypes, default=-1) + 1,
            size=end,
            stride=stride,
            align=align,
            lead=align - 4,  # the 4 bytes of the soffset come first; the first field after them must be aligned
            record=struct.Struct(f"<i{''.join(codes)}{stride - end}x"),
        )

    def vtable(self, slots: Sequence[int]) -> bytes:
        """Return the vtable of tables that have exactly these slots."""
        known = self._vtables.get(tuple(slots))
        if known is not None:
            return known
        n_slots = max(slots, default=-1) + 1
        entries = [0] * n_slots
        for slot in slots:
            entries[slot] = self.fields[slot][0]
        vtable = struct.pack(f"<{2 + n_slots}H", 4 + 2 * n_slots, self.size, *entries)
        return self._vtables.setdefault(tuple(slots), vtable)


_STRUCT_CODES = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}


def _alignment(dtype: np.dtype[np.generic]) -> int:
    return 1 if dtype.kind == "V" else dtype.itemsize


class TableWriter:
    """``n`` tables of one layout. Set their fields column by column.

    Attributes
    ----------
    positions
        ``int64 (n,)``: where the tables are.
    """

    __slots__ = ("_columns", "_layout", "_masks", "_soffsets", "positions")

    def __init__(self, layout: TableLayout, position: int, n: int) -> None:
        self._layout = layout
        self.positions: I64 = np.arange(position, position + n * layout.stride, layout.stride, dtype=np.int64)
        self._columns: dict[int, tuple[NDArray[Any], bool]] = {}  # values, and whether they are positions of children
        self._masks: dict[int, Mask] = {}
        self._soffsets: I64 | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def set(self, slot: int, values: ArrayLike, present: Mask | None = None) -> None:
        """Set the values of a number or struct field.

        Parameters
        ----------
        values
            Numbers ``(n,)`` or one number for all; structs as ``uint8 (n, size)``, or ``bytes`` for all.
        present
            ``bool (n,)``: the tables that have the field (default: all). Values of other tables are ignored.
        """
        _, dtype = self._layout.fields[slot]
        if dtype.kind == "V":
            rows = as_u8(values) if isinstance(values, bytes) else np.asarray(values, np.uint8)
            column = _spread(rows, (len(self), dtype.itemsize))
        else:
            column = _spread(np.asarray(values), (len(self),))
        self._columns[slot] = (column, False)
        self._set_mask(slot, present)

    def point(self, slot: int, children: Integers, present: Mask | None = None) -> None:
        """Point an offset field at children: positions ``(n,)``, or one for all. For ``present`` see :meth:`set`."""
        self._columns[slot] = (_spread(np.asarray(children, np.int64), (len(self),)), True)
        self._set_mask(slot, present)

    def _set_mask(self, slot: int, present: Mask | None) -> None:
        self._masks.pop(slot, None)
        if present is not None and not bool(present.all()):
            self._masks[slot] = present

    def place_vtables(self, place: Callable[[bytes], int]) -> None:
        """Choose a vtable for each table. Tables with the same fields share one; ``place`` returns its position."""
        always = [slot for slot in self._columns if slot not in self._masks]
        sometimes = list(self._masks)
        if not sometimes or len(self) == 1:  # a mask with one row, if it is kept at all, says that the field is absent
            if len(self):
                self._soffsets = self.positions - place(self._layout.vtable(always))
            else:
                self._soffsets = self.positions
            return
        patterns = np.zeros(len(self), np.int64)
        for bit, slot in enumerate(sometimes):
            patterns |= self._masks[slot].astype(np.int64) << bit
        occurring = np.unique(patterns)
        vtables = np.array(
            [
                place(self._layout.vtable(always + [slot for bit, slot in enumerate(sometimes) if pattern >> bit & 1]))
                for pattern in occurring.tolist()
            ],
            np.int64,
        )
        codes = np.searchsorted(occurring, patterns)
        self._soffsets = self.positions - vtables[codes]

    def slabs(self) -> Iterator[Buffer]:
        """Yield the bytes of the tables, some thousands of tables at once."""
        if self._soffsets is None:
            raise InternalError("tables were written before their vtables were placed")
        if len(self) <= _FEW:
            yield self._few_rows(self._soffsets.tolist())
            return
        for start in range(0, len(self), _SLAB_ROWS):
            yield self._rows(slice(start, min(start + _SLAB_ROWS, len(self))), self._soffsets)

    def _few_rows(self, soffsets: list[int]) -> bytes:
        """Do the same as :meth:`_rows` in plain Python, which is faster for the few tables of small files."""
        positions = self.positions.tolist()
        columns: list[Sequence[int | bytes]] = []
        for slot, (offset, dtype) in self._layout.fields.items():
            size = dtype.itemsize if dtype.kind == "V" else 0
            absent = b"" if size else 0
            if slot not in self._columns:
                columns.append([absent] * len(positions))
                continue
            column, is_offset = self._columns[slot]
            values = _pieces(column.tobytes(), size) if size else column.tolist()
            mask = self._masks.get(slot)
            present = mask.tolist() if mask is not None else [True] * len(positions)
            if is_offset:
                rows = zip(positions, values, present, strict=True)
                values = [_distance(position + offset, value) if has else 0 for position, value, has in rows]
            elif mask is not None:
                values = [value if has else absent for value, has in zip(values, present, strict=True)]
            columns.append(values)
        return b"".join(map(self._layout.record.pack, soffsets, *columns))

    def _rows(self, rows: slice, soffsets: I64) -> U8:
        n = rows.stop - rows.start
        out = np.zeros((n, self._layout.stride), np.uint8)
        _column(out, 0, "<i4")[:] = soffsets[rows]
        for slot, (column, is_offset) in self._columns.items():
            offset, dtype = self._layout.fields[slot]
            values = column[rows]
            mask = self._masks.get(slot)
            present = slice(None) if mask is None else mask[rows]
            if is_offset:
                values = forward(self.positions[rows][present] + offset, values[present])
            elif mask is not None:
                values = values[present]
            if dtype.kind == "V":
                out[present, offset : offset + dtype.itemsize] = values
            else:
                _column(out, offset, dtype)[present] = values
        return out.reshape(-1)


def _pieces(raw: bytes, size: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def _spread[T: np.generic](values: NDArray[T], shape: tuple[int, ...]) -> NDArray[T]:
    """Broadcast values to a shape."""
    if values.shape == shape:  # np.broadcast_to is slow to call, and mostly not needed
        return values
    is_one = shape[0] == 1 and values.size == math.prod(shape)
    return values.reshape(shape) if is_one else np.broadcast_to(values, shape)


def _column(out: U8, offset: int, dtype: DTypeLike) -> NDArray[Any]:
    """View one field of rows of bytes, to write it."""
    return np.ndarray((len(out),), dtype, out, offset, (out.strides[0],))


def forward(fields: I64, targets: I64) -> I64:
    """Return the values to store in the offset fields at ``fields``, so that they point to ``targets``."""
    values = targets - fields
    if len(values):
        _require_forward(int(values.min()), int(values.max()))
    return values


def _distance(field: int, target: int) -> int:
    """Return the value to store in one offset field: see :func:`forward`."""
    _require_forward(target - field, target - field)
    return target - field


def _require_forward(least: int, greatest: int) -> None:
    if least <= 0 or greatest >= 2**32:
        raise InternalError("an offset in a flatbuffer does not point forwards. Reserve parents before children")


class Positions(Protocol):
    """Positions in a buffer: an ``int64`` array, or something that computes them."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> I64: ...


class OffsetVectors:
    """Reserved vectors of offsets. Point them at their targets before you write the buffer.

    Attributes
    ----------
    positions
        ``int64 (n,)``: where the vectors are.
    """

    __slots__ = ("_lengths", "_targets", "positions")

    def __init__(self, positions: I64, lengths: I64) -> None:
        self.positions = positions
        self._lengths = lengths
        self._targets: Positions | None = None

    def point(self, targets: Positions) -> None:
        """Set the positions of all targets, vector after vector."""
        self._targets = targets

    def content(self) -> Iterator[Buffer]:
        """Yield the bytes of the vectors."""
        total = int(self._lengths.sum())
        targets = self._targets if self._targets is not None else np.empty(0, np.int64)
        if len(targets) != total:
            raise InternalError(f"vectors of offsets have {total} items, but {len(targets)} targets")
        if len(self._lengths) == 1:
            first = int(self.positions[0]) + 4
            if total <= _FEW:
                fields = range(first, first + 4 * total, 4)
                yield struct.pack(f"<{1 + total}I", total, *map(_distance, fields, targets[:].tolist()))
                return
            yield total.to_bytes(4, "little")
            for start in range(0, total, _SLAB_ROWS):
                part = targets[start : start + _SLAB_ROWS]
                places = first + 4 * np.arange(start, start + len(part), dtype=np.int64)
                yield forward(places, part).astype("<u4")
            return
        base = int(self.positions[0])
        words = np.zeros((total + len(self._lengths)), "<u4")
        prefixes = (self.positions - base) // 4
        items = ragged_positions(prefixes + 1, self._lengths)
        words[prefixes] = self._lengths
        words[items] = forward(base + 4 * items, targets[:])
        yield words
