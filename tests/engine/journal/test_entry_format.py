"""Journal entries survive the way through bytes, and hostile bytes do no harm."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given

from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, VIRTUAL, ChunkRef, ChunkRefs
from icechunk_engine.columns.tables import BytesTable, broadcast_column
from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.ids import ChunkId, NodeId
from icechunk_engine.journal import entry_format
from icechunk_engine.journal.entries import JournalEntry, NodeDeleted, NodeSet
from icechunk_engine.journal.entry_format import decode_entry, encode_entry
from icechunk_engine.transaction.edit_sources import EditSource
from tests.engine.format.damage import damaged_bodies
from tests.engine.format.strategies import many_refs
from tests.engine.journal.entries import ARRAY, GROUP, WRITER, assert_equal, entries, entry, inline_refs, node
from tests.profiles import by_profile

HEAD_SIZE = 16


def signed(data: bytes) -> bytes:
    """The same bytes with the checksum that belongs to them."""
    return data[:12] + struct.pack("<I", zlib.crc32(data[HEAD_SIZE:])) + data[HEAD_SIZE:]


@functools.cache
def rich_entry() -> JournalEntry:
    """An entry of every kind of edit."""
    refs = ChunkRefs.of(
        2,
        [
            ((0, 0), ChunkRef(kind=NATIVE, length=5, chunk_id=ChunkId.random())),
            ((0, 1), ChunkRef(kind=VIRTUAL, location="s3://bucket/a.nc", etag="tag", offset=7, length=9)),
            ((1, 0), ChunkRef(kind=INLINE, inline=b"payload", length=7)),
            ((1, 1), ChunkRef(kind=DELETED)),
            ((2, 2), ChunkRef(kind=INLINE, inline=b"other", length=5)),
        ],
    )
    return dataclasses.replace(
        entry(refs=refs),
        sources=(EditSource(WRITER, 0, "('store', 0)"), EditSource("ab" * 16, 3)),
        seen=(EditSource(WRITER, 7, "t"),),
        overwrites=(("ab" * 16, 3),),
        fork="f" * 32,
        nodes_set=[NodeSet(node("/g", GROUP), False, False, 0), NodeSet(node("/a", ARRAY), True, True, 1)],
        nodes_deleted=[NodeDeleted("/old", NodeId.random(), 1)],
    )


@given(entries())
def test_an_entry_survives(before: JournalEntry) -> None:
    data = encode_entry(before)
    after = decode_entry(data)
    assert_equal(after, before)
    assert encode_entry(after) == data


def test_columns_of_one_value_take_no_room_and_no_memory() -> None:
    n = 20_000
    indices = np.stack(np.unravel_index(np.arange(n), (200, 100)), 1).astype(np.uint32)
    refs = ChunkRefs.build(indices, INLINE, lengths=1, offsets=np.arange(n), inline_data=np.zeros(n, np.uint8))
    data = encode_entry(entry(refs=refs))
    assert len(data) < n * 4
    found = decode_entry(data).arrays[0]
    assert found.refs.chunk_ids.strides[0] == found.refs.kinds.strides[0] == found.source_numbers.strides[0] == 0
    assert found.refs.nbytes < n * (8 + 8 + 1) + 500


def large_entry(n: int = 5000) -> JournalEntry:
    """An entry that is stored compressed."""
    refs = many_refs(n)
    return entry(refs=refs.take(refs.lengths > 0))


@pytest.mark.parametrize("make", [rich_entry, large_entry])
def test_columns_are_aligned_and_read_only(make: Callable[[], JournalEntry]) -> None:
    before = make()
    found = decode_entry(encode_entry(before))
    assert_equal(found, before)
    for field in ("indices", "offsets", "lengths", "location_codes", "last_modified", "chunk_ids", "inline_data"):
        column = getattr(found.arrays[0].refs, field)
        assert column.flags.aligned
        assert not column.flags.writeable


def test_what_no_row_uses_is_not_stored() -> None:
    refs = inline_refs(1000, size=100)
    few = encode_entry(entry(refs=refs.take(slice(5, 7))))
    assert len(few) < 1000
    assert decode_entry(few).arrays[0].refs.row(1).inline == bytes([6]) * 100


def test_payloads_that_overlap_are_taken_apart() -> None:
    refs = dataclasses.replace(inline_refs(3, size=4), offsets=np.array([0, 0, 2], np.uint64))
    refs = dataclasses.replace(refs, lengths=np.array([6, 4, 2], np.uint64))  # as many bytes as there are
    found = decode_entry(encode_entry(entry(refs=refs))).arrays[0].refs
    assert [found.row(row).inline for row in range(3)] == [refs.row(row).inline for row in range(3)]


def test_an_array_of_rank_0_keeps_its_last_chunk() -> None:
    refs = ChunkRefs.of(0, [((), ChunkRef(kind=NATIVE, length=i, chunk_id=ChunkId(bytes([i] * 12)))) for i in (1, 2)])
    found = decode_entry(encode_entry(entry(refs=refs))).arrays[0].refs
    assert len(found) == 1
    assert found.row(0).length == 2


def test_too_many_sources_are_refused_before_they_are_stored() -> None:
    many = dataclasses.replace(entry(), sources=(EditSource(WRITER, 0, "x" * 1000),) * 5000)
    with pytest.raises(InvalidInputError, match="Merge fewer forks") as caught:
        encode_entry(many)
    assert caught.value.kind == ErrorKind.SERIALIZATION


# --- hostile bytes ---------------------------------------------------------------------------------------------------


def test_every_truncation_is_refused() -> None:
    data = encode_entry(rich_entry())
    for cut in range(len(data)):
        for damaged in (data[:cut], signed(data[:cut].ljust(HEAD_SIZE))):
            with pytest.raises(FormatError):
                decode_entry(damaged)
    (size,) = struct.unpack_from("<Q", data, HEAD_SIZE)
    longer = data[:HEAD_SIZE] + struct.pack("<Q", size + 8) + data[HEAD_SIZE + 8 :] + bytes(8)
    with pytest.raises(FormatError, match="follow its edits"):
        decode_entry(signed(longer))


def test_flipped_bits_are_noticed() -> None:
    data = encode_entry(rich_entry())
    for position in range(HEAD_SIZE, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 4
        with pytest.raises(FormatError, match=r"journals/x/y.*checksum.*repeat the work"):
            decode_entry(bytes(damaged), "journals/x/y")


@pytest.mark.parametrize("make", [rich_entry, large_entry])
def test_damage_with_a_matching_checksum_is_survived(make: Callable[[], JournalEntry]) -> None:
    n_refused = n_read = 0
    for damaged in damaged_bodies(encode_entry(make()), seed=1, n_flips=by_profile(quick=600, thorough=20_000)):
        try:
            use(decode_entry(signed(damaged.ljust(HEAD_SIZE))))
            n_read += 1
        except FormatError:
            n_refused += 1
    assert n_refused > 100
    if make is rich_entry:
        assert n_read > 10


def use(found: JournalEntry) -> None:
    """Do with the edits what a session does with them."""
    for array in found.arrays:
        refs = array.refs.latest().compact()
        for row in range(min(len(refs), 20)):
            refs.row(row)
        assert array.source_numbers.max(initial=0) < len(found.sources)


def with_header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A valid entry whose JSON header was changed."""
    data = encode_entry(rich_entry())
    body_size, size = struct.unpack_from("<QI", data, HEAD_SIZE)
    header = json.loads(data[32 : 32 + size])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    return signed(data[:HEAD_SIZE] + struct.pack("<QI4x", body_size, len(text)) + text + data[32 + size :])


HOSTILE_HEADERS: list[Callable[[dict[str, Any]], Any]] = [
    lambda header: [],
    lambda header: header.update(writer="../../etc/passwd"),
    lambda header: header.update(writer=7),
    lambda header: header.update(seq=-1),
    lambda header: header.update(seq=2**63),
    lambda header: header.update(seq=True),
    lambda header: header.update(lamport=1.5),
    lambda header: header.update(lamport=None),
    lambda header: header.update(origin="x"),
    lambda header: header.update(origin=None),
    lambda header: header.update(fork="a/b"),
    lambda header: header.update(sources=[["ab" * 16, 0]]),
    lambda header: header.update(sources=[["ab" * 16, -1, None]]),
    lambda header: header.update(sources=[["ab" * 16, 0, 3]]),
    lambda header: header.update(sources=[["ab" * 16, 0, "\udc80"]]),
    lambda header: header.update(sources=[["ab" * 16, 0, "x" * 70_000]]),
    lambda header: header.update(sources=[]),
    lambda header: header.update(sources={}),
    lambda header: header.update(overwrites=[[]]),
    lambda header: header.update(seen=[[]]),
    lambda header: header.pop("seen"),
    lambda header: header.update(counts=[1, 2]),
    lambda header: header.update(counts=[2**62, 0, 0]),
    lambda header: header.update(counts=[0, 2, 1]),
    lambda header: header.update(counts=[1, 2, 2]),
    lambda header: header.pop("counts"),
]


def test_a_header_can_be_replaced_by_an_equal_one() -> None:
    assert_equal(decode_entry(with_header(lambda header: None)), decode_entry(with_header(lambda header: header)))


@pytest.mark.parametrize("change", HOSTILE_HEADERS)
def test_hostile_headers(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(FormatError):
        decode_entry(with_header(change))


def test_other_objects_are_named() -> None:
    for data in (b"", b"XIJOURN", b'{"a": 1}' * 20):
        with pytest.raises(FormatError, match=r"journals/t/w\.0") as caught:
            decode_entry(data, "journals/t/w.0")
        assert caught.value.kind == ErrorKind.INVALID_FILE_FORMAT
    data = encode_entry(entry())
    with pytest.raises(FormatError, match="version 9") as caught:
        decode_entry(data[:8] + b"\x09" + data[9:])
    assert caught.value.kind == ErrorKind.UNSUPPORTED_SPEC_VERSION


def columns(**changed: Any) -> ChunkRefs:
    """Two inline chunks of three bytes, with some columns replaced."""
    refs = inline_refs(2)
    return dataclasses.replace(refs, **changed)


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


VIRTUAL_KINDS = np.array([VIRTUAL, VIRTUAL], np.uint8)

HOSTILE_COLUMNS: list[tuple[str, dict[str, Any]]] = [
    ("unknown kind", {"kinds": np.array([1, 4], np.uint8)}),
    ("unknown kind", {"kinds": broadcast_column(200, 2, np.uint8)}),
    ("length 0", {"lengths": u64(3, 0)}),
    ("beyond its data", {"offsets": u64(0, 4)}),
    ("overlap", {"offsets": u64(0, 2)}),
    ("overlap", {"offsets": broadcast_column(0, 2, np.uint64), "lengths": broadcast_column(3, 2, np.uint64)}),
    (re.escape("2**64"), {"offsets": u64(0, 2**64 - 1)}),
    (re.escape("2**64"), {"kinds": np.array([NATIVE] * 2, np.uint8), "lengths": u64(1, 2**64 - 1)}),
    ("no location", {"kinds": VIRTUAL_KINDS}),
    ("a string that does not exist", {"kinds": VIRTUAL_KINDS, "location_codes": np.array([0, 0], np.int32)}),
    ("a string that does not exist", {"etag_codes": np.array([-1, 0], np.int32)}),
    ("a string that does not exist", {"etag_codes": np.array([-1, -2], np.int32)}),
    ("a string that does not exist", {"location_codes": np.array([-(2**31), -1], np.int32)}),
    (
        "not UTF-8",
        {
            "kinds": VIRTUAL_KINDS,
            "location_codes": np.array([0, 1], np.int32),
            "locations": BytesTable.of([b"s3://b/\xc3", b"\xa9"]),
        },
    ),
]


@pytest.mark.parametrize(("what", "changed"), HOSTILE_COLUMNS)
def test_hostile_columns(monkeypatch: pytest.MonkeyPatch, what: str, changed: dict[str, Any]) -> None:
    monkeypatch.setattr(ChunkRefs, "compact", lambda self: self)  # it would repair or refuse some of them
    monkeypatch.setattr(entry_format, "_apart", lambda refs: refs)
    with pytest.raises(FormatError, match=what):
        decode_entry(encode_entry(entry(refs=columns(**changed))))


@pytest.mark.parametrize(
    "starts", [[0, 7], [1, 16], [0, 2**62], [0, 20, 16], [0, -1, 16], [-8, 16]], ids=lambda starts: str(starts)
)
def test_hostile_strings(monkeypatch: pytest.MonkeyPatch, starts: list[int]) -> None:
    table = BytesTable(np.frombuffer(b"s3://bucket/a.nc", np.uint8), np.array(starts, np.int64))
    monkeypatch.setattr(ChunkRefs, "compact", lambda self: self)
    monkeypatch.setattr(entry_format, "_rebased", lambda table: table)
    refs = columns(locations=table)
    with pytest.raises(FormatError, match="do not follow"):
        decode_entry(encode_entry(entry(refs=refs)))


@pytest.mark.parametrize("number", [-1, 1, 2**31 - 1])
def test_hostile_source_numbers(number: int) -> None:
    good = entry(refs=inline_refs(3))
    array = good.arrays[0]._replace(source_numbers=np.array([0, number, 0], np.int32))
    constant = array._replace(source_numbers=broadcast_column(number, 3, np.int32))
    for edits in (array, constant):
        with pytest.raises(FormatError, match="a source that does not exist"):
            decode_entry(encode_entry(dataclasses.replace(good, arrays=[edits])))
    for nodes in (
        {"nodes_set": [NodeSet(node("/g", GROUP), False, False, number)]},
        {"nodes_deleted": [NodeDeleted("/g", NodeId.random(), number)]},
    ):
        with pytest.raises(FormatError, match="a source that does not exist"):
            decode_entry(encode_entry(dataclasses.replace(good, **nodes)))


@pytest.mark.parametrize("path", ["", "a", "/a/", "/a//b", "/../b", "/a/./b", "/a\0"])
def test_hostile_paths(path: str) -> None:
    good = entry()
    found = [
        {"arrays": [good.arrays[0]._replace(path=path)]},
        {"nodes_set": [NodeSet(dataclasses.replace(node("/g", GROUP), path=path), False, False, 0)]},
        {"nodes_deleted": [NodeDeleted(path, NodeId.random(), 0)]},
    ]
    for changed in found:
        with pytest.raises(FormatError, match="damaged"):
            decode_entry(encode_entry(dataclasses.replace(good, **changed)))  # type: ignore[arg-type]


@pytest.mark.parametrize("document", [b"", b"{}", b"[" * 100_000, ARRAY.replace(b"40", b"-4"), GROUP[:-1]])
def test_hostile_documents(document: bytes) -> None:
    bad = dataclasses.replace(node("/g", GROUP), user_data=document)
    with pytest.raises(FormatError, match="bad metadata"):
        decode_entry(encode_entry(dataclasses.replace(entry(), nodes_set=[NodeSet(bad, False, False, 0)])))


def test_small_entries_cannot_claim_much_memory() -> None:
    plain = encode_entry(dataclasses.replace(entry(), arrays=[]))
    header_size = struct.unpack_from("<QI", plain, HEAD_SIZE)[1]
    header = plain[32 : 32 + header_size].replace(b'"counts":[0,0,0]', b'"counts":[1,0,0]')
    array = struct.Struct("<8sIIQQQQQQQ")
    bombs = [
        (0, 255, 10**9, 0, 0, 0, 0, 0),  # a chunk of rank 0, a thousand million times
        (1, 255, 2**61, 0, 0, 0, 0, 0),
        (1, 0, 2**62, 0, 0, 0, 0, 0),
        (2**32 - 1, 255, 1, 0, 0, 0, 0, 0),
        (1, 0, 0, 2**60, 0, 0, 0, 0),
        (1, 0, 0, 0, 2**60, 0, 0, 0),
        (1, 0, 0, 0, 0, 0, 0, 2**63),
    ]
    tracemalloc.start()
    try:
        for ndim, mask, n, n_locations, locations_size, n_etags, etags_size, inline_size in bombs:
            sizes = (n, n_locations, locations_size, n_etags, etags_size, inline_size, 2)
            descriptor = array.pack(b"an-array", ndim, mask, *sizes)
            body = bytes(100) + b"/a" + bytes(2)
            head = plain[:HEAD_SIZE] + struct.pack("<QI4x", len(body), header_size)
            with pytest.raises(FormatError):
                decode_entry(signed(head + header + descriptor + body))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_body_that_expands_too_much_is_refused() -> None:
    plain = encode_entry(entry())
    start = 32 + struct.unpack_from("<QI", plain, HEAD_SIZE)[1] + 72
    for size in (2**26, 2**62):
        bomb = zstandard.ZstdCompressor().compress(bytes(min(size, 2**26)))
        head = plain[:9] + b"\x01" + plain[10:HEAD_SIZE] + struct.pack("<Q", size) + plain[24:start]
        tracemalloc.start()
        with pytest.raises(FormatError, match="stand for"):
            decode_entry(signed(head + bomb))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
