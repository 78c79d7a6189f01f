"""The flatbuffer reader and writer, compared with a plain reader and writer that handle one table at a time."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.columns.tables import BytesTable, ragged_positions
from icechunk_engine.errors import ErrorKind, FormatError, InternalError
from icechunk_engine.flatbuf import blocks, distinct, writer
from icechunk_engine.flatbuf.blocks import BlockTables
from icechunk_engine.flatbuf.distinct import distinct_ranges
from icechunk_engine.flatbuf.reader import Buffer, Tables
from icechunk_engine.flatbuf.writer import MAX_BUFFER_SIZE, OFFSET, Arena, TableLayout

# --- by the definition -------------------------------------------------------------------------------------------


class PlainTable:
    """One table, read with ``struct`` as the documentation of the format describes."""

    def __init__(self, data: bytes, position: int) -> None:
        assert position % 4 == 0
        self.data, self.position = data, position
        self.vtable = position - struct.unpack_from("<i", data, position)[0]
        assert self.vtable % 2 == 0

    @classmethod
    def root(cls, data: bytes) -> PlainTable:
        return cls(data, struct.unpack_from("<I", data)[0])

    def field(self, slot: int) -> int | None:
        size, inline_size = struct.unpack_from("<HH", self.data, self.vtable)
        entry = 4 + 2 * slot
        offset = struct.unpack_from("<H", self.data, self.vtable + entry)[0] if entry + 2 <= size else 0
        assert offset < inline_size
        return self.position + offset if offset else None

    def number(self, slot: int, code: str) -> int | None:
        place = self.field(slot)
        if place is None:
            return None
        assert place % struct.calcsize(code) == 0, "a number is not aligned"
        value: int = struct.unpack_from("<" + code, self.data, place)[0]
        return value

    def raw(self, slot: int, size: int) -> bytes | None:
        place = self.field(slot)
        return None if place is None else self.data[place : place + size]

    def child(self, slot: int) -> int | None:
        offset = self.number(slot, "I")
        place = self.field(slot)
        return None if offset is None or place is None else place + offset

    def string(self, slot: int, *, terminated: bool = True) -> bytes | None:
        place = self.child(slot)
        if place is None:
            return None
        assert place % 4 == 0
        length = struct.unpack_from("<I", self.data, place)[0]
        if terminated:
            assert self.data[place + 4 + length] == 0
        return self.data[place + 4 : place + 4 + length]

    def numbers(self, slot: int, code: str) -> list[int] | None:
        place = self.child(slot)
        if place is None:
            return None
        length = struct.unpack_from("<I", self.data, place)[0]
        assert (place + 4) % struct.calcsize(code) == 0, "items are not aligned"
        return list(struct.unpack_from(f"<{length}{code}", self.data, place + 4))

    def tables(self, slot: int) -> list[PlainTable]:
        place = self.child(slot)
        assert place is not None
        n = struct.unpack_from("<I", self.data, place)[0]
        items = [place + 4 + 4 * i for i in range(n)]
        return [PlainTable(self.data, item + struct.unpack_from("<I", self.data, item)[0]) for item in items]


class PlainWriter:
    """Appends objects in any order and with any gaps. Each table has its own vtable, before or after it."""

    def __init__(self) -> None:
        self.data = bytearray(4)

    def pad(self, align: int, gap: int = 0) -> int:
        self.data += bytes(gap)
        self.data += bytes(-len(self.data) % align)
        return len(self.data)

    def blob(self, content: bytes) -> int:
        place = self.pad(4)
        self.data += struct.pack("<I", len(content)) + content
        return place

    def table(self, fields: dict[int, tuple[int, bytes]], inline_size: int, *, vtable_first: bool) -> int:
        n_slots = max(fields, default=-1) + 1
        entries = [fields[slot][0] if slot in fields else 0 for slot in range(n_slots)]
        vtable = struct.pack(f"<{2 + n_slots}H", 4 + 2 * n_slots, inline_size, *entries)
        if vtable_first:
            vtable_place = self.pad(2)
            self.data += vtable
        place = self.pad(4)
        self.data += bytes(inline_size)
        if not vtable_first:
            vtable_place = self.pad(2)
            self.data += vtable
        struct.pack_into("<i", self.data, place, place - vtable_place)
        for offset, content in fields.values():
            self.data[place + offset : place + offset + len(content)] = content
        return place

    def point(self, field: int, child: int) -> None:
        struct.pack_into("<I", self.data, field, child - field)

    def finish(self, root: int) -> bytes:
        struct.pack_into("<I", self.data, 0, root)
        return bytes(self.data)


# --- strategies --------------------------------------------------------------------------------------------------

U64 = st.integers(0, 2**64 - 1)
maybe = st.none


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    row = st.fixed_dictionaries(
        {
            "big": maybe() | U64,
            "small": maybe() | st.integers(-(2**15), 2**15 - 1),
            "byte": maybe() | st.integers(0, 255),
            "id": maybe() | st.binary(min_size=12, max_size=12),
            "text": maybe() | st.text(max_size=6),
            "list": maybe() | st.lists(st.integers(0, 2**32 - 1), max_size=4),
        }
    )
    return draw(st.lists(row, max_size=12))


BIG, SMALL, BYTE, ID, TEXT, LIST = 0, 3, 1, 5, 2, 6
SLOTS = {"big": BIG, "small": SMALL, "byte": BYTE, "id": ID, "text": TEXT, "list": LIST}
ROW = TableLayout.of({BIG: "<u8", SMALL: "<i2", BYTE: "u1", ID: "V12", TEXT: OFFSET, LIST: OFFSET})


def write(items: list[dict[str, Any]]) -> bytes:
    arena = Arena(b"Test")
    root = arena.tables(TableLayout.of({0: OFFSET}), 1)
    arena.set_root(root)
    vector = arena.offset_vectors([len(items)])
    root.point(0, vector.positions)
    tables = arena.tables(ROW, len(items))
    vector.point(tables.positions)

    def column(name: str, default: Any) -> tuple[list[Any], np.ndarray[Any, Any]]:
        present = np.array([item[name] is not None for item in items], np.bool_)
        return [default if item[name] is None else item[name] for item in items], present

    for slot, name, dtype in ((BIG, "big", "u8"), (SMALL, "small", "i2"), (BYTE, "byte", "u1")):
        values, present = column(name, 0)
        tables.set(slot, np.array(values, dtype), present)
    ids, present = column("id", bytes(12))
    tables.set(ID, np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 12), present)
    texts, present = column("text", "")
    tables.point(TEXT, arena.strings(BytesTable.of(texts)), present)
    lists, present = column("list", [])
    flat = np.array([value for values in lists for value in values], np.uint32)
    tables.point(LIST, arena.vectors(flat, [len(values) for values in lists]), present)
    return arena.tobytes()


def read(data: bytes) -> list[dict[str, Any]]:
    """Return the rows as our reader sees them."""
    tables = Buffer(np.frombuffer(data, np.uint8)).root().vectors(0, 4, "rows").tables()
    columns: dict[str, list[Any]] = {
        "big": tables.scalar(BIG, np.uint64).tolist(),
        "small": tables.scalar(SMALL, np.int16).tolist(),
        "byte": tables.scalar(BYTE, np.uint8).tolist(),
        "id": [row.tobytes() for row in tables.struct(ID, 12)[0]],
        "text": tables.strings(TEXT).texts(),
    }
    lists = tables.vectors(LIST, 4)
    stops = np.cumsum(lists.lengths)
    flat = lists.scalars(np.uint32).tolist()
    columns["list"] = [flat[stop - length : stop] for stop, length in zip(stops, lists.lengths, strict=True)]
    present = {name: tables.present(slot).tolist() for name, slot in SLOTS.items()}
    return [{name: columns[name][row] if present[name][row] else None for name in SLOTS} for row in range(len(tables))]


# --- tests -------------------------------------------------------------------------------------------------------


@given(rows())
def test_columns_round_trip(items: list[dict[str, Any]]) -> None:
    assert read(write(items)) == items


@given(rows())
def test_few_tables_are_written_as_many_are(items: list[dict[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_FEW", 0)
        by_numpy = write(items)
        patch.setattr(writer, "_FEW", 100)
        assert write(items) == by_numpy


@given(rows())
def test_written_tables_follow_the_definition(items: list[dict[str, Any]]) -> None:
    data = write(items)
    assert data[4:8] == b"Test"
    tables = PlainTable.root(data).tables(0)
    found = [
        {
            "big": table.number(BIG, "Q"),
            "small": table.number(SMALL, "h"),
            "byte": table.number(BYTE, "B"),
            "id": table.raw(ID, 12),
            "text": None if (text := table.string(TEXT)) is None else text.decode(),
            "list": table.numbers(LIST, "I"),
        }
        for table in tables
    ]
    assert found == items


@given(rows(), st.randoms(use_true_random=False))
def test_any_layout_is_read(items: list[dict[str, Any]], random: Any) -> None:
    """Vtables before and after tables, fields in any order and unaligned, gaps, vtables of many lengths."""
    writer = PlainWriter()
    root = writer.table({0: (4, bytes(4))}, 8, vtable_first=random.random() < 0.5)
    vector = writer.blob(bytes(4 * len(items)))
    writer.point(root + 4, vector)
    struct.pack_into("<I", writer.data, vector, len(items))
    sizes = {"big": 8, "small": 2, "byte": 1, "id": 12, "text": 4, "list": 4}
    for row, item in enumerate(items):
        names = [name for name in sizes if item[name] is not None]
        random.shuffle(names)
        end, offsets = 4, {}
        for name in names:
            offsets[name] = end + random.randrange(4)
            end = offsets[name] + sizes[name]
        fields = {SLOTS[name]: (offset, bytes(sizes[name])) for name, offset in offsets.items()}
        if random.random() < 0.3:
            fields[random.randrange(7, 12)] = (4, b"")  # a slot that nobody knows
        place = writer.table(fields, end, vtable_first=random.random() < 0.5)
        writer.point(vector + 4 + 4 * row, place)
        for name, offset in offsets.items():
            value = item[name]
            if name == "text":
                writer.point(place + offset, writer.blob(value.encode()))
            elif name == "list":
                child = writer.blob(struct.pack(f"<{len(value)}I", *value))
                struct.pack_into("<I", writer.data, child, len(value))
                writer.point(place + offset, child)
            else:
                struct.pack_into(
                    {"big": "<Q", "small": "<h", "byte": "<B", "id": "12s"}[name], writer.data, place + offset, value
                )
        writer.pad(1, random.randrange(9))
    assert read(writer.finish(root)) == items


def test_zero_tables_and_vectors() -> None:
    assert read(write([])) == []


def columns_of(n: int, seed: int) -> dict[str, Any]:
    """Make columns of ``n`` rows with runs, repetitions and gaps."""
    random = np.random.default_rng(seed)
    names = BytesTable.of([f"file-{i}" * (i % 4) for i in range(40)])
    return {
        "offsets": random.integers(0, 2**63, n).astype(np.uint64),
        "seconds": random.integers(0, 2**32, n).astype(np.uint32),
        "ids": random.integers(0, 256, (n, 12)).astype(np.uint8),
        "index": random.integers(0, 2**32, (n, seed % 4)).astype(np.uint32),
        "names": names,
        "runs": np.sort(random.integers(0, 40, n)).astype(np.int32),
        "scattered": random.integers(-1, 40, n).astype(np.int32),
        "sometimes": random.random(n) < 0.7,
    }


def placed(n: int, columns: dict[str, Any], *, wide: bool) -> bytes:
    arena = Arena(b"Test")
    root = arena.tables(TableLayout.of({0: OFFSET}), 1)
    arena.set_root(root)
    vector = arena.offset_vectors([n])
    root.point(0, vector.positions)
    arena.reserve(4, 4)
    arena.put(arena.size - 4, bytes(4))  # so that nothing is aligned by luck
    tables = BlockTables(n)
    tables.row_vectors(0, columns["index"])
    tables.shared(1, columns["names"], columns["runs"], terminated=True)
    tables.shared(2, columns["names"], columns["scattered"], terminated=False)
    tables.numbers(3, columns["seconds"], columns["sometimes"])
    if wide:
        tables.numbers(4, columns["offsets"])
        tables.structs(5, columns["ids"], ~columns["sometimes"])
    vector.point(tables.place(arena))
    return arena.tobytes()


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 255, 1024, 1025, 5000])
def test_blocks_follow_the_definition(n: int, wide: bool) -> None:
    columns = columns_of(n, seed=n)
    names = columns["names"].raws()
    tables = PlainTable.root(placed(n, columns, wide=wide)).tables(0)
    assert len(tables) == n
    for row, table in enumerate(tables):
        assert table.numbers(0, "I") == columns["index"][row].tolist()
        assert table.string(1) == names[columns["runs"][row]]
        scattered = columns["scattered"][row]
        assert table.string(2, terminated=False) == (names[scattered] if scattered >= 0 else None)
        assert table.number(3, "I") == (columns["seconds"][row] if columns["sometimes"][row] else None)
        if wide:
            assert table.number(4, "Q") == columns["offsets"][row]
            assert table.raw(5, 12) == (None if columns["sometimes"][row] else columns["ids"][row].tobytes())


@pytest.mark.parametrize("n", [1, 1025, 5000])
def test_blocks_are_read_back(n: int) -> None:
    columns = columns_of(n, seed=n)
    data = placed(n, columns, wide=True)
    tables = Buffer(np.frombuffer(data, np.uint8)).root().vectors(0, 4).tables()
    np.testing.assert_array_equal(tables.scalar(4, np.uint64), columns["offsets"])
    np.testing.assert_array_equal(tables.vectors(0, 4).matrix(np.uint32, n % 4, "index"), columns["index"])
    assert tables.strings(1) == columns["names"].take(columns["runs"])
    seconds = np.where(columns["sometimes"], columns["seconds"], 9)
    np.testing.assert_array_equal(tables.scalar(3, np.uint32, 9), seconds)
    np.testing.assert_array_equal(tables.present(5), ~columns["sometimes"])
    taken = tables.take(np.arange(n)[::-1])
    np.testing.assert_array_equal(taken.scalar(4, np.uint64), columns["offsets"][::-1])


def test_equal_work_vanishes_in_the_items_of_a_block() -> None:
    """The purpose of the block layout: within a block, all items of the vector of offsets are equal."""
    n = 3 * blocks.MAX_BLOCK_ROWS
    data = placed(n, columns_of(n, seed=1), wide=False)
    vector = Buffer(np.frombuffer(data, np.uint8)).root().vectors(0, 4)
    assert len(np.unique(vector.scalars(np.uint32))) <= n // blocks.MIN_BLOCK_ROWS


def test_strings_used_by_few_blocks_are_copied_and_others_are_not() -> None:
    n = 4 * blocks.MAX_BLOCK_ROWS
    table = BytesTable.of([f"{i:0100d}" for i in range(1000)])

    def size(codes: np.ndarray[Any, Any]) -> int:
        arena = Arena(b"Test")
        tables = BlockTables(n)
        tables.shared(0, table, codes.astype(np.int32), terminated=True)
        tables.place(arena)
        return arena.size

    assert size(np.arange(n) // 1000) < 20 * n  # long runs: a copy or two in each block
    assert size(np.arange(n) % 1000) < 1000 * 110 + 20 * n  # all in every block: one copy for all


def test_a_place_that_is_never_filled_is_an_error() -> None:
    arena = Arena(b"Test")
    arena.set_root(arena.tables(TableLayout.of({}), 1))
    arena.reserve(8)
    with pytest.raises(InternalError):
        arena.tobytes()


def test_children_must_follow_their_parents() -> None:
    arena = Arena(b"Test")
    text = arena.string("too early")
    root = arena.tables(TableLayout.of({0: OFFSET}), 1)
    arena.set_root(root)
    root.point(0, text)
    with pytest.raises(InternalError):
        arena.tobytes()


def test_what_no_reader_takes_is_refused() -> None:
    with pytest.raises(FormatError) as caught:
        Arena(b"Test").reserve(MAX_BUFFER_SIZE)
    assert caught.value.kind == ErrorKind.SERIALIZATION


def refused(action: Callable[[], Any]) -> None:
    with pytest.raises(FormatError) as caught:
        action()
    assert caught.value.kind == ErrorKind.DESERIALIZATION
    assert "a-file" in str(caught.value)


def buffer(data: bytes) -> Buffer:
    return Buffer(np.frombuffer(data, np.uint8), "a-file")


def test_every_way_out_of_the_buffer_is_refused() -> None:
    good = bytearray(write([{"big": 7, "small": 1, "byte": 2, "id": bytes(12), "text": "abc", "list": [1, 2]}]))
    root = struct.unpack_from("<I", good)[0]

    def changed(place: int, code: str, value: int) -> Buffer:
        data = bytearray(good)
        struct.pack_into(code, data, place, value)
        return buffer(bytes(data))

    refused(buffer(b"").root)
    refused(buffer(b"\x04\0\0").root)
    refused(changed(0, "<I", len(good) - 3).root)
    refused(changed(0, "<I", 2**32 - 1).root)
    refused(changed(root, "<i", root + 1).root)  # the vtable would lie before the file
    refused(changed(root, "<i", -len(good)).root)
    vtable = root - struct.unpack_from("<i", good, root)[0]
    for size in (0, 2, 5, 0xFFFE):
        refused(changed(vtable, "<H", size).root)
    refused(lambda: changed(vtable + 4, "<H", 0xFFFF).root().vectors(0, 4))
    vector = root + 4 + struct.unpack_from("<I", good, root + 4)[0]
    refused(lambda: changed(root + 4, "<I", len(good)).root().vectors(0, 4))
    refused(lambda: changed(vector, "<I", 2**32 - 1).root().vectors(0, 4))
    refused(lambda: changed(vector + 4, "<I", len(good)).root().vectors(0, 4).tables())


def test_missing_fields_and_wrong_widths_are_refused() -> None:
    nothing = dict.fromkeys(SLOTS)
    tables = buffer(write([nothing, nothing | {"list": [1]}])).root().vectors(0, 4).tables()
    refused(lambda: tables.required_struct(ID, 12, "id"))
    refused(lambda: tables.vectors(LIST, 4, "list"))
    refused(lambda: tables.children(TEXT, "text"))
    refused(lambda: tables.vectors(LIST, 4).matrix(np.uint32, 1, "list"))
    assert tables.strings(TEXT).texts() == ["", ""]


@pytest.mark.parametrize("texts", [[b"\xff"], [b"\xc3", b"\xa9"], [b"ok", b"\xe2\x82"]])
def test_text_that_is_not_utf8_is_refused(texts: list[bytes]) -> None:
    """Two strings can be UTF-8 together and not alone. That is refused, too."""
    arena = Arena(b"Test")
    root = arena.tables(TableLayout.of({0: OFFSET}), 1)
    arena.set_root(root)
    vector = arena.offset_vectors([len(texts)])
    root.point(0, vector.positions)
    vector.point(arena.strings(BytesTable.of(texts)))
    data = arena.tobytes()
    refused(lambda: buffer(data).root().vectors(0, 4).vectors(1).text())


def test_a_small_file_cannot_ask_for_much_memory() -> None:
    """Ten thousand tables share one large vector."""
    n = 10_000
    arena = Arena(b"Test")
    root = arena.tables(TableLayout.of({0: OFFSET}), 1)
    arena.set_root(root)
    vector = arena.offset_vectors([n])
    root.point(0, vector.positions)
    tables = arena.tables(TableLayout.of({0: OFFSET}), n)
    vector.point(tables.positions)
    tables.point(0, arena.vector(np.zeros(100_000, np.uint32)))
    data = arena.tobytes()
    found = buffer(data).root().vectors(0, 4).tables().vectors(0, 4)
    gathers: list[Callable[[], object]] = [
        lambda: found.scalars(np.uint32),
        lambda: found.matrix(np.uint32, 100_000, "x"),
        found.bytes_table,
    ]
    for gather in gathers:
        refused(gather)


def test_distinct_vectors_by_place() -> None:
    arena = Arena(b"Test")
    root = arena.tables(TableLayout.of({0: OFFSET}), 1)
    arena.set_root(root)
    vector = arena.offset_vectors([6])
    root.point(0, vector.positions)
    tables = arena.tables(TableLayout.of({0: OFFSET}), 6)
    vector.point(tables.positions)
    words = arena.strings(BytesTable.of(["a", "b"]))
    tables.point(0, words[[1, 1, 0, 0, 1, 0]], np.array([True, True, False, True, True, True]))
    found = buffer(arena.tobytes()).root().vectors(0, 4).tables().vectors(0, 1)
    places, codes = found.distinct()
    assert places.text().texts() == ["b", "a"]
    assert codes.tolist() == [0, 0, -1, 1, 0, 1]
    assert found.present.tolist() == [True, True, False, True, True, True]


@given(st.lists(st.binary(max_size=20).map(lambda raw: raw[: len(raw) // 3] * 3), max_size=30), st.booleans())
def test_distinct_ranges(items: list[bytes], collide: bool) -> None:
    table = BytesTable.of(items)
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # then only the comparison tells ranges apart, and other seeds are taken until it is content
            hashes, seeds = distinct._Words.hashes, itertools.count()

            def colliding(words: Any, starts: Any, lengths: Any, seed: np.uint64) -> Any:
                found = hashes(words, starts, lengths, seed)
                return found if next(seeds) > 1 else np.zeros_like(found)

            patch.setattr(distinct._Words, "hashes", colliding)
        found, codes = distinct_ranges(table.data, table.starts[:-1], table.lengths)
    order = list(dict.fromkeys(items))
    assert [items[row] for row in found] == order
    assert codes.tolist() == [order.index(item) for item in items]


def test_hashes_that_always_collide_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        distinct._Words, "hashes", lambda self, starts, lengths, seed: np.zeros(len(starts), np.uint64)
    )
    table = BytesTable.of([b"a", b"b"])
    with pytest.raises(InternalError):
        distinct_ranges(table.data, table.starts[:-1], table.lengths)


def test_distinct_ranges_may_overlap() -> None:
    data = np.frombuffer(b"abababab" * 5000, np.uint8)
    starts = np.arange(0, 39_000, 3)
    lengths = np.full(len(starts), 17)
    rows_found, codes = distinct_ranges(data, starts, lengths)
    assert rows_found.tolist() == [0, 1]
    np.testing.assert_array_equal(data[ragged_positions(starts, lengths)][::17], data[codes])


def test_tables_without_vtables_in_common_or_with_few() -> None:
    """The ways to group vtables: one for all, runs, a few in turn, one each."""
    n = 400
    for patterns in (np.zeros(n), np.arange(n) // 100, np.arange(n) % 5, np.random.default_rng(0).integers(0, 60, n)):
        writer = PlainWriter()
        vtables = [writer.pad(2)]
        for pattern in range(60):
            vtables.append(writer.pad(2, 6))
            writer.data += struct.pack("<HHH", 6, 4 + 64, 4 + pattern % 60)
        first = writer.pad(4)
        writer.data += bytes(n * 72)
        positions = first + 72 * np.arange(n)
        for row, pattern in enumerate(patterns.astype(int).tolist()):
            place = first + 72 * row
            struct.pack_into("<i", writer.data, place, place - vtables[1 + pattern])
            struct.pack_into("<I", writer.data, place + 4 + pattern, row)
        tables = Tables(buffer(bytes(writer.data)), positions.astype(np.int64))
        assert tables.scalar(0, np.uint32).tolist() == list(range(n))
        assert tables.present(0).all()
        assert not tables.present(1).any()
