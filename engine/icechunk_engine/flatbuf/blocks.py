"""Write millions of tables of one type so that they compress well.

The problem: a manifest holds one flatbuffer table for each chunk reference. Written the usual way, the fields of a
table lie beside each other, mixed with offsets that differ from table to table. A general compressor finds little to
gain in that.

The idea: the format does not fix where the fields of a table lie. A table is just 4 bytes, the *soffset*, which points
to its vtable. The vtable may place each field anywhere in the 64 KiB after the start of the table. So this module
writes tables in blocks of 32 to 1024 rows, and each block is a small column store::

    soffsets       4 bytes a table; consecutive tables are 4 bytes apart
    lanes          one contiguous column for each number, struct or offset field
    row vectors    one vector a table, all of one length
    vtables        one a table, or one for each set of fields that occurs
    copies         the strings that the tables of this block point to

Invariants, and why they hold:

- *All blocks but the last have one layout.* Field ``f`` of row ``i`` has the same distance from the block's start in
  every block. Then soffsets, vtables and offsets to row vectors have the same bytes in every block, and the compressor
  finds them one block back. This is why a block holds row vectors of one length only, and why copies come last: they
  are the only part whose size differs from block to block.
- *Tables are 4 bytes apart.* A vector of offsets to tables also advances 4 bytes an item. So the distance from item to
  table is constant within a block, and the items compress to almost nothing. Any other stride costs 3 bytes an item.
- *Lanes of 4-byte fields move with the tables; others do not.* A 4-byte field of row ``i`` is always equally far from
  table ``i``, so one vtable serves all. A field of 8 bytes (or a struct of 12) gets 4 (or 8) bytes further away with
  each row, so every row needs its own vtable. That costs little: the vtables are the same in all blocks.
- *A field lies less than 64 KiB after its table*, because a vtable entry has 16 bits. The distance is largest for the
  last lane, which is why the width of all lanes limits the rows of a block.
- *Offsets point forwards*, as the format demands. Lanes precede row vectors and copies in a block; strings without
  copies are reserved after all blocks.
- *Blocks start at multiples of 8 and lanes of 8-byte numbers come first*, so numbers are aligned without padding.

The official library reads such files because it looks up every field through the vtable. A reader that assumed a
fixed distance between fields would break, and so would one that refused tables that interleave.
"""

from __future__ import annotations

from collections.abc import Buffer, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, BytesTable, Integers, Mask, scatter_ranges, starts_of
from icechunk_engine.errors import InternalError
from icechunk_engine.flatbuf.distinct import sorted_distinct
from icechunk_engine.flatbuf.writer import Arena, TableLayout, forward

MIN_BLOCK_ROWS = 32
MAX_BLOCK_ROWS = 1024
_SLAB_BYTES = 2**21
"""Bytes of blocks that are made at once: enough to be worth numpy's calls, few enough to stay in the cache."""
_MAX_REACH = 2**16 - 1
"""The largest value of a vtable entry, which has 16 bits."""
_MAX_OPTIONAL_FIELDS = 8
"""The fields that a table lacks are the bits of one byte."""
_COPIED_BYTES_PER_ROW = 8
"""Most bytes a table that copies of shared strings may take. Above, the file has one copy of each string instead."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """One field of all tables."""

    slot: int
    width: int
    values: NDArray[Any] | None  # (n,) numbers or (n, width) bytes; None for offsets, which follow from the layout
    present: Mask | None

    @property
    def kind(self) -> str:
        """Kind of the dtype, as numpy names it: ``V`` for structs of bytes."""
        return "u" if self.values is None else "V" if self.values.ndim == 2 else self.values.dtype.kind


@dataclass(frozen=True, slots=True)
class _RowVectors:
    """A field that points to a vector of numbers; all vectors have one length."""

    slot: int
    matrix: Integers


@dataclass(frozen=True, slots=True)
class _Shared:
    """A field that points to a string or byte vector, which many tables may share."""

    slot: int
    table: BytesTable
    lengths: I64
    codes: NDArray[np.int32]
    terminated: bool

    def sizes(self, codes: Integers | slice) -> I64:
        """Return the bytes that strings take with length prefix, terminator and padding."""
        return (self.lengths[codes] + (8 if self.terminated else 7)) // 4 * 4


@dataclass(frozen=True, slots=True)
class _Copies:
    """The strings that each block has a copy of.

    ``of_block[b] : of_block[b + 1]`` are the copies of block ``b``, sorted by code. ``starts`` count from the start of
    their block.
    """

    of_block: I64
    codes: I64
    starts: I64


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the parts of a block of ``rows`` tables begin, in bytes from its start."""

    rows: int
    lanes: Mapping[int, int]
    vectors: Mapping[int, int]
    vtables: int
    end: int
    own_vtables: bool
    templates: NDArray[np.uint16]  # (patterns, rows if own_vtables else 1, entries)


class BlockTables:
    """A plan of ``n`` tables. Describe the fields, then :meth:`place` the tables in an arena.

    Parameters
    ----------
    n
        Number of tables.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._lanes: list[_Lane] = []
        self._vectors: list[_RowVectors] = []
        self._shared: list[_Shared] = []

    def numbers(self, slot: int, values: Integers, present: Mask | None = None) -> None:
        """Add a field of 4 or 8 byte numbers, ``(n,)``. ``present`` says which tables have it (default: all)."""
        self._lanes.append(_Lane(slot, values.itemsize, values, _partial(present)))

    def structs(self, slot: int, rows: U8, present: Mask | None = None) -> None:
        """Add a field of structs, ``uint8 (n, width)``."""
        self._lanes.append(_Lane(slot, int(rows.shape[1]), rows, _partial(present)))

    def row_vectors(self, slot: int, matrix: Integers) -> None:
        """Add a field of vectors of 4-byte numbers: row ``i`` of ``matrix (n, width)`` belongs to table ``i``."""
        self._lanes.append(_Lane(slot, 4, None, None))
        self._vectors.append(_RowVectors(slot, matrix))

    def shared(self, slot: int, table: BytesTable, codes: NDArray[np.int32], *, terminated: bool) -> None:
        """Add a field of strings (``terminated``) or byte vectors.

        Parameters
        ----------
        table
            The strings.
        codes
            ``int32 (n,)``: row of ``table`` for each flatbuffer table, -1 if the field is absent.
        """
        self._lanes.append(_Lane(slot, 4, None, _partial(codes >= 0)))
        self._shared.append(_Shared(slot, table, table.lengths, codes, terminated))

    def place(self, arena: Arena) -> I64 | BlockPositions:
        """Reserve the tables and everything that they point to.

        Returns
        -------
        The positions of the tables.
        """
        if self._n == 0:
            return np.empty(0, np.int64)
        if self._n <= MIN_BLOCK_ROWS:
            return self._place_singly(arena)
        # 8-byte numbers first: then they are aligned without padding.
        lanes = sorted(self._lanes, key=lambda lane: (lane.width != 8, lane.slot))
        return _Blocks(self._n, lanes, self._vectors, self._shared).place(arena)

    def _place_singly(self, arena: Arena) -> I64:
        """Reserve ordinary tables: a single block, which repeats nothing, would not be smaller."""
        tables = arena.tables(_layout_of(tuple((lane.slot, lane.width, lane.kind) for lane in self._lanes)), self._n)
        for lane in self._lanes:
            if lane.values is not None:
                tables.set(lane.slot, lane.values, lane.present)
        for vector in self._vectors:
            n, width = vector.matrix.shape
            tables.point(vector.slot, arena.vectors(vector.matrix.reshape(-1), [width] * n))
        for shared in self._shared:
            place = arena.strings if shared.terminated else arena.byte_vectors
            positions = np.append(place(shared.table), 0)  # code -1 reads the last entry; the mask drops it
            tables.point(shared.slot, positions[shared.codes], shared.codes >= 0)
        return tables.positions


@lru_cache
def _layout_of(lanes: tuple[tuple[int, int, str], ...]) -> TableLayout:
    return TableLayout.of({slot: f"{kind}{width}" for slot, width, kind in lanes})


def _partial(present: Mask | None) -> Mask | None:
    return None if present is None or bool(present.all()) else present


class BlockPositions:
    """The positions of tables in blocks, computed when they are needed. Those of millions would take much memory."""

    __slots__ = ("_bases", "_n", "_rows")

    def __init__(self, n: int, rows: int, bases: I64) -> None:
        self._n = n
        self._rows = rows
        self._bases = bases

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, part: slice) -> I64:
        """Return the positions of consecutive tables, ``int64``."""
        blocks, rows = np.divmod(np.arange(*part.indices(self._n), dtype=np.int64), self._rows)
        positions: I64 = self._bases[blocks] + 4 * rows
        return positions


class _Blocks:
    """The blocks of one :class:`BlockTables`: first their layout, later their bytes."""

    def __init__(self, n: int, lanes: list[_Lane], vectors: list[_RowVectors], shared: list[_Shared]) -> None:
        self.n = n
        self.lanes = lanes
        self.vectors = vectors
        self.shared = shared
        reach_per_row = 4 + sum(lane.width for lane in lanes)
        # The compressor stores the repeated parts once, at the cost of one block, and then pays a little for each
        # further block. Both costs together are least when the rows of a block are about the square root of n.
        rows = min(max(1 << n.bit_length() // 2, MIN_BLOCK_ROWS), MAX_BLOCK_ROWS)
        self.rows = min(rows, (_MAX_REACH - 8) // reach_per_row, n)
        self.row_starts = np.append(np.arange(0, n, self.rows, dtype=np.int64), n)
        self.n_blocks = len(self.row_starts) - 1
        self.slots_of_pattern, self.patterns = _patterns(lanes, n)
        self.full = self._layout(self.rows)
        self.last = self._layout(n - int(self.row_starts[-2]))
        self.copies: dict[int, _Copies] = {}
        self.targets: dict[int, I64] = {}
        self.bases = np.empty(0, np.int64)

    def _layout(self, rows: int) -> _Layout:
        end = -(-4 * rows // 8) * 8  # the soffsets, rounded up: an 8-byte lane may follow
        lanes, vectors = {}, {}
        for lane in self.lanes:
            lanes[lane.slot] = end
            end += lane.width * rows
        reach = end
        for vector in self.vectors:
            vectors[vector.slot] = end
            end += 4 * (1 + vector.matrix.shape[1]) * rows
        # Fields of 4 bytes keep their distance from the tables; others need a vtable for each table.
        own = any(lane.width != 4 for lane in self.lanes)
        table = np.arange(rows if own else 1)
        n_slots = max((lane.slot for lane in self.lanes), default=-1) + 1
        templates = np.zeros((len(self.slots_of_pattern), len(table), 2 + n_slots), "<u2")
        # A vtable holds its own size, the size of its table, and the distance of each field from the table. The "size"
        # of a table here reaches to the end of the last lane: readers check that fields lie within it.
        templates[:, :, 0] = 4 + 2 * n_slots
        templates[:, :, 1] = reach - 4 * table
        for pattern, slots in enumerate(self.slots_of_pattern):
            for lane in self.lanes:
                if lane.slot in slots:  # the field of row i is at lane + width * i, its table at 4 * i
                    templates[pattern, :, 2 + lane.slot] = lanes[lane.slot] + (lane.width - 4) * table
        n_vtables = rows if own else len(self.slots_of_pattern)
        vtables, end = end, end + n_vtables * (4 + 2 * n_slots)
        return _Layout(rows, lanes, vectors, vtables, -(-end // 8) * 8, own, templates)

    def place(self, arena: Arena) -> BlockPositions:
        """Reserve all blocks as one place, and strings without copies after them; return the tables' positions."""
        # The copies of one field follow those of another, so each plan begins where the one before ended.
        ends = np.full(self.n_blocks, self.full.end, np.int64)
        ends[-1] = self.last.end
        for shared in self.shared:
            ends += self._plan_copies(shared, ends)
        starts = starts_of(-(-ends // 8) * 8)
        base = arena.reserve(int(starts[-1]), 8)
        arena.put(base, self.pieces)
        self.bases = base + starts
        for shared in self.shared:
            if shared.slot not in self.copies:
                place = arena.strings if shared.terminated else arena.byte_vectors
                self.targets[shared.slot] = place(shared.table)
        return BlockPositions(self.n, self.rows, self.bases[:-1])

    def _plan_copies(self, shared: _Shared, ends: I64) -> I64:
        """Give each block its own copies of the strings it uses, unless that would take too much space.

        Returns
        -------
        The bytes that the copies take in each block, ``int64 (n_blocks,)``.
        """
        # References to one object mostly follow each other, so looking at the first row of each run of equal codes
        # leaves little to sort.
        is_head = np.ones(self.n, np.bool_)
        np.not_equal(shared.codes[1:], shared.codes[:-1], out=is_head[1:])
        is_head[self.row_starts[:-1]] = True
        is_head &= shared.codes >= 0
        heads = np.flatnonzero(is_head)
        n_codes = max(len(shared.table), 1)
        used = sorted_distinct(heads // self.rows * n_codes + shared.codes[heads])
        blocks, codes = used // n_codes, used % n_codes
        sizes = shared.sizes(codes)
        once = int(shared.sizes(slice(None)).sum())
        if int(sizes.sum()) > max(_COPIED_BYTES_PER_ROW * self.n, 2 * once):
            # Few rows share a string. The copies would outweigh what equal offsets save.
            return np.zeros(self.n_blocks, np.int64)
        of_block = np.searchsorted(blocks, np.arange(self.n_blocks + 1)).astype(np.int64)
        starts = starts_of(sizes)
        before = starts[of_block]
        self.copies[shared.slot] = _Copies(of_block, codes, starts[:-1] - before[blocks] + ends[blocks])
        return np.diff(before)

    def pieces(self) -> Iterator[Buffer]:
        """Yield the bytes of all blocks. The arena calls this when it writes the file."""
        first, n_full = 0, self.n_blocks - 1
        while first < n_full:
            within = int(np.searchsorted(self.bases, self.bases[first] + _SLAB_BYTES, "right")) - 1
            stop = min(max(within, first + 1), n_full)
            yield from self._slab(self.full, first, stop)
            first = stop
        yield from self._slab(self.last, n_full, self.n_blocks)

    def _slab(self, layout: _Layout, first: int, stop: int) -> Iterator[Buffer]:
        """Yield blocks ``first`` to ``stop``, which share a layout. Their common parts are made as one array."""
        n_blocks, rows = stop - first, layout.rows
        # One row of `out` is a block. A lane is a range of columns, so each field is written once for all blocks.
        out = np.zeros((n_blocks, layout.end), np.uint8)
        part = slice(int(self.row_starts[first]), int(self.row_starts[stop]))
        table = np.arange(rows, dtype=np.int64)
        self._write_vtables(out, layout, part)
        for lane in self.lanes:
            if lane.values is not None:
                start = layout.lanes[lane.slot]
                values = lane.values[part]
                stored = values.astype(values.dtype.newbyteorder("<"), copy=False).reshape(n_blocks, -1)
                out[:, start : start + lane.width * rows].view(stored.dtype)[:] = stored
        for vector in self.vectors:
            width = vector.matrix.shape[1]
            at = layout.vectors[vector.slot]
            stride = 4 * (1 + width)
            words = np.ndarray((n_blocks, rows, 1 + width), "<u4", out, at, (layout.end, stride, 4))
            words[:, :, 0] = width
            words[:, :, 1:] = vector.matrix[part].reshape(n_blocks, rows, width)
            lane_start = layout.lanes[vector.slot]
            _words(out, lane_start, rows)[:] = forward(lane_start + 4 * table, at + stride * table)
        for shared in self.shared:
            self._write_offsets(out, layout, shared, first, stop)
        copies = self._copied_bytes(layout, first, stop)
        if copies is None:
            yield out.reshape(-1)
            return
        copied, starts = copies
        for block in range(n_blocks):
            yield out[block]
            yield copied[starts[block] : starts[block + 1]]

    def _write_vtables(self, out: U8, layout: _Layout, part: slice) -> None:
        n_blocks, rows = len(out), layout.rows
        vtable_size = 2 * layout.templates.shape[2]
        patterns = None if self.patterns is None else self.patterns[part].reshape(n_blocks, rows)
        # vtables: (blocks or 1, vtables, entries); chosen: which vtable of its block each table has.
        if layout.own_vtables:
            own = np.arange(rows)
            vtables = layout.templates[:1] if patterns is None else layout.templates[patterns, own]
            chosen = own.reshape(1, rows)
        else:
            vtables = layout.templates[:, 0].reshape(1, -1, vtable_size // 2)
            chosen = np.zeros((1, rows), np.int64) if patterns is None else patterns.astype(np.int64)
        raw = np.ascontiguousarray(vtables).view(np.uint8).reshape(len(vtables), -1)
        out[:, layout.vtables : layout.vtables + raw.shape[1]] = raw
        soffsets = 4 * np.arange(rows, dtype=np.int64) - (layout.vtables + vtable_size * chosen)
        _words(out, 0, rows)[:] = soffsets.astype(np.int32).view(np.uint32)

    def _write_offsets(self, out: U8, layout: _Layout, shared: _Shared, first: int, stop: int) -> None:
        codes = shared.codes[self.row_starts[first] : self.row_starts[stop]]
        block, table = np.divmod(np.arange(len(codes), dtype=np.int64), layout.rows)
        lane_start = layout.lanes[shared.slot]
        fields = self.bases[first:stop][block] + lane_start + 4 * table
        copies = self.copies.get(shared.slot)
        if copies is None:
            targets = self.targets[shared.slot][codes]
        else:
            n_codes = len(shared.table)
            own = slice(int(copies.of_block[first]), int(copies.of_block[stop]))
            blocks = np.repeat(np.arange(stop - first), np.diff(copies.of_block[first : stop + 1]))
            # Copies are sorted by block and code, so one search finds the copy of each row.
            row = np.searchsorted(blocks * n_codes + copies.codes[own], block * n_codes + codes)
            targets = self.bases[first:stop][block] + np.append(copies.starts[own], 0)[row]
        present = codes >= 0
        distances = np.zeros(len(codes), np.int64)
        distances[present] = forward(fields[present], targets[present])
        _words(out, lane_start, layout.rows)[:] = distances.reshape(out.shape[0], -1)

    def _copied_bytes(self, layout: _Layout, first: int, stop: int) -> tuple[U8, list[int]] | None:
        """Return the copies of these blocks, block after block, and where those of each block begin; None if none."""
        starts = self.bases[first : stop + 1] - self.bases[first] - layout.end * np.arange(stop - first + 1)
        if int(starts[-1]) == 0:
            return None
        copied = np.zeros(int(starts[-1]), np.uint8)
        for shared in self.shared:
            copies = self.copies.get(shared.slot)
            if copies is None:
                continue
            own = slice(int(copies.of_block[first]), int(copies.of_block[stop]))
            counts = np.diff(copies.of_block[first : stop + 1])
            at = np.repeat(starts[:-1], counts) + copies.starts[own] - layout.end
            codes = copies.codes[own]
            lengths = shared.lengths[codes]
            copied.view("<u4")[at // 4] = lengths
            scatter_ranges(copied, at + 4, lengths, shared.table.take(codes).data)
        return copied, starts.tolist()


def _patterns(lanes: list[_Lane], n: int) -> tuple[list[list[int]], U8 | None]:
    """Find the sets of fields that occur, and which of them each table has (None if all tables have the same)."""
    always = [lane.slot for lane in lanes if lane.present is None]
    sometimes = [(lane.slot, lane.present) for lane in lanes if lane.present is not None]
    if not sometimes:
        return [always], None
    if len(sometimes) > _MAX_OPTIONAL_FIELDS:
        raise InternalError(f"tables in blocks have at most {_MAX_OPTIONAL_FIELDS} optional fields")
    bits = np.zeros(n, np.uint8)
    for bit, (_, present) in enumerate(sometimes):
        bits |= present.astype(np.uint8) << np.uint8(bit)
    occurring = np.flatnonzero(np.bincount(bits, minlength=256))
    renumber = np.zeros(256, np.uint8)
    renumber[occurring] = np.arange(len(occurring))
    slots = [
        always + [slot for bit, (slot, _) in enumerate(sometimes) if pattern >> bit & 1]
        for pattern in occurring.tolist()
    ]
    return slots, renumber[bits]


def _words(out: U8, start: int, n: int) -> NDArray[np.uint32]:
    """View ``n`` 4-byte words of each block, to write them."""
    return out[:, start : start + 4 * n].view("<u4")
