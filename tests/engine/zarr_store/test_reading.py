"""What `get` and its relatives answer for every kind of key and byte range."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.buffer import Buffer
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer import cpu, default_buffer_prototype

from icechunk_engine.columns.chunk_refs import NATIVE, ChunkRefs
from icechunk_engine.errors import ErrorKind, InvalidInputError, SessionStateError, StorageError
from icechunk_engine.format import layout
from icechunk_engine.ids import ChunkId
from icechunk_engine.repository import Repository
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.storage import MemoryStorage
from icechunk_engine.store import IcechunkStore
from icechunk_engine.zarr_store.byte_ranges import Piece, coalesce
from tests.engine.zarr_store.support import GROUP, array_document, put

PROTOTYPE = default_buffer_prototype()
INVALID_KEYS = ["foo", "a/c0", "a/c/0/", "a/c/-1", "a/c/x", "a/c/0//1", "a/c/+1", "a/c/1_0", "a.0", "", "../zarr.json"]
INVALID_KEYS += ["a/c/4294967296", "a/c/99999999999999999999", "a/./c/0", "a/c/ 1", "a/c/\u0661"]
V2_KEYS = [".zgroup", ".zarray", ".zattrs", ".zmetadata", "a/.zarray", "a/b/.zattrs"]

byte_requests = st.one_of(
    st.none(),
    st.builds(RangeByteRequest, st.integers(0, 2000), st.integers(0, 2000)),
    st.builds(OffsetByteRequest, st.integers(0, 2000)),
    st.builds(SuffixByteRequest, st.integers(0, 2000)),
)


def text(found: Buffer | None) -> bytes | None:
    return None if found is None else found.to_bytes()


def sliced(data: bytes, byte_range: ByteRequest | None) -> bytes:
    """What zarr means by a byte request, said with Python's slices."""
    match byte_range:
        case RangeByteRequest(start, stop):
            return data[start:stop]
        case OffsetByteRequest(offset):
            return data[offset:]
        case SuffixByteRequest(suffix):
            return data[max(0, len(data) - suffix) :]
    return data


async def collect(groups: AsyncIterator[Sequence[tuple[int, Buffer | None]]]) -> dict[int, bytes | None]:
    return {position: text(found) for group in [part async for part in groups] for position, found in group}


@pytest.mark.parametrize("key", INVALID_KEYS)
async def test_invalid_keys_are_errors_everywhere(store: IcechunkStore, key: str) -> None:
    value = cpu.Buffer.from_bytes(b"1")
    for call in (
        lambda: store.get(key, PROTOTYPE),
        lambda: store.exists(key),
        lambda: store.getsize(key),
        lambda: store.set(key, value),
        lambda: store.set_if_not_exists(key, value),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidInputError) as caught:
            await call()
        assert caught.value.kind is ErrorKind.INVALID_KEY
    for sync_call in (
        lambda: store.get_sync(key),
        lambda: store.set_sync(key, value),
        lambda: store.delete_sync(key),
    ):
        with pytest.raises(InvalidInputError):
            sync_call()


@pytest.mark.parametrize("key", V2_KEYS)
async def test_zarr_v2_names_are_never_there(store: IcechunkStore, key: str) -> None:
    assert await store.get(key, PROTOTYPE) is None
    assert store.get_sync(key) is None
    assert not await store.exists(key)
    await store.delete(key)
    with pytest.raises(FileNotFoundError):
        await store.getsize(key)
    with pytest.raises(SessionStateError) as caught:
        await store.set(key, cpu.Buffer.from_bytes(b"{}"))
    assert caught.value.kind is ErrorKind.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("written", "read"),
    [("a/c/0/1", "/a/c/0/1"), ("/a/c/0/1", "a/c/0/1"), ("a/c/0/1", "a/c/00/01"), ("s/c", "/s/c")],
)
async def test_spellings_of_one_key(store: IcechunkStore, written: str, read: str) -> None:
    await store.set(written, cpu.Buffer.from_bytes(b"x"))
    for _ in range(2):  # the second time the path comes from the cache
        assert text(await store.get(read, PROTOTYPE)) == b"x"


@pytest.mark.parametrize("key", ["c/c/0", "c/c/c/1/2", "x/c/c/0", "c/0", "1/c/2"])
async def test_arrays_named_like_parts_of_chunk_keys(repo: Repository, key: str) -> None:
    session = repo.writable_session("main")
    put(session, key, b"data")
    for _ in range(2):
        assert text(await session.store.get(key, PROTOTYPE)) == b"data"
        assert text(session.store.get_sync(key)) == b"data"


@pytest.mark.parametrize(
    "key", ["a/c/4/0", "a/c/0", "a/c/0/0/0", "a/c", "s/c/0", "b/c/0", "b/zarr.json", "a/b/zarr.json"]
)
async def test_what_is_not_there_is_none(store: IcechunkStore, key: str) -> None:
    assert await store.get(key, PROTOTYPE) is None
    assert store.get_sync(key) is None
    assert not await store.exists(key)


@given(size=st.sampled_from([1, 500, 512, 513, 1500]), byte_range=byte_requests, committed=st.booleans())
def test_ranges_are_cut_at_the_end(size: int, byte_range: ByteRequest | None, committed: bool) -> None:
    """Inline and native chunks and documents, uncommitted and committed, alike."""
    repo = Repository.create(MemoryStorage())
    session = repo.writable_session("main")
    data = bytes(i % 251 for i in range(size))
    document = array_document((1,), attributes={"x": "y" * size})
    workspace_of(session).set_metadata("/a", document)
    workspace_of(session).set_chunk("/a", (0,), data)
    if committed:
        session.commit("x")
    store = session.store
    for key, value in (("a/c/0", data), ("a/zarr.json", document)):
        expected = sliced(value, byte_range)
        assert text(asyncio.run(store.get(key, PROTOTYPE, byte_range))) == expected
        assert text(store.get_sync(key, byte_range=byte_range)) == expected
        assert [text(b) for b in asyncio.run(store.get_partial_values(PROTOTYPE, [(key, byte_range)]))] == [expected]


@pytest.mark.parametrize(
    "request_", [(0, 2), 3, RangeByteRequest(-1, 2), OffsetByteRequest(-1), SuffixByteRequest(-1)]
)
@pytest.mark.parametrize("key", ["a/c/0/0", "zarr.json"])
async def test_requests_that_are_none(store: IcechunkStore, key: str, request_: ByteRequest) -> None:
    put(store.session, "a/c/0/0", b"1234")
    with pytest.raises(InvalidInputError, match="Unexpected byte_range, got") as caught:
        await store.get(key, PROTOTYPE, request_)
    assert caught.value.kind is ErrorKind.INVALID_BYTE_RANGE
    with pytest.raises(InvalidInputError):
        store.get_sync(key, byte_range=request_)


async def test_partial_values_of_missing_keys_are_none(store: IcechunkStore) -> None:
    put(store.session, "a/c/0/0", b"1234")
    wanted = [("a/c/0/0", SuffixByteRequest(1)), ("a/c/0/1", None), ("b/zarr.json", None), ("a/c/0/0", None)]
    found = await store.get_partial_values(PROTOTYPE, (item for item in wanted))
    assert [text(b) for b in found] == [b"4", None, None, b"1234"]


@given(
    size=st.sampled_from([1, 300, 1500]),
    ranges=st.lists(byte_requests, max_size=8),
    gap=st.sampled_from([0, 10, 1 << 20]),
    limit=st.sampled_from([1, 100, 1 << 24]),
)
def test_many_ranges_of_one_value(size: int, ranges: list[ByteRequest | None], gap: int, limit: int) -> None:
    session = Repository.create(MemoryStorage()).writable_session("main")
    data = bytes(i % 251 for i in range(size))
    workspace_of(session).set_metadata("/a", array_document((1,)))
    workspace_of(session).set_chunk("/a", (0,), data)
    knobs: dict[str, Any] = {"prototype": PROTOTYPE, "max_gap_bytes": gap, "max_coalesced_bytes": limit}
    for key, value in (("a/c/0", data), ("a/zarr.json", workspace_of(session).read_metadata("/a") or b"")):
        expected = {position: sliced(value, byte_range) for position, byte_range in enumerate(ranges)}
        assert asyncio.run(collect(session.store.get_ranges(key, ranges, **knobs))) == expected
        assert {i: text(b) for i, b in session.store.get_ranges_sync(key, ranges, **knobs)} == expected


@pytest.mark.parametrize("key", ["a/c/0/0", "b/zarr.json", ".zarray"])
async def test_many_ranges_of_a_missing_value(store: IcechunkStore, key: str) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await collect(store.get_ranges(key, [RangeByteRequest(0, 1)], prototype=PROTOTYPE))
    assert caught.value.split(FileNotFoundError)[1] is None
    with pytest.raises(ExceptionGroup) as caught:
        store.get_ranges_sync(key, [RangeByteRequest(0, 1)], prototype=PROTOTYPE)
    assert caught.value.split(FileNotFoundError)[1] is None
    assert await collect(store.get_ranges(key, [], prototype=PROTOTYPE)) == {}


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100)), max_size=12),
    st.integers(0, 60),
    st.integers(1, 300),
)
def test_coalesced_groups(bounds: list[tuple[int, int]], gap: int, limit: int) -> None:
    pieces = [Piece(start, start + length, position) for position, (start, length) in enumerate(bounds)]
    groups = coalesce(pieces, gap, limit)
    assert sorted(piece for group in groups for piece in group) == sorted(pieces)
    spans = [(group[0].start, max(piece.stop for piece in group)) for group in groups]
    for group, (start, stop) in zip(groups, spans, strict=True):
        assert len(group) == 1 or stop - start <= limit
        covered = group[0].stop
        for piece in group[1:]:
            assert piece.start - covered <= gap
            covered = max(covered, piece.stop)
    for (start, stop), (following, *_) in zip(spans, groups[1:], strict=False):
        # Neighbours stay apart only for a reason.
        assert following.start - stop > gap or max(stop, following.stop) - start > limit


async def test_a_lost_chunk_object_is_no_fill_value(repo: Repository) -> None:
    session = repo.writable_session("main")
    workspace_of(session).set_metadata("/a", array_document((1,)))
    workspace_of(session).set_chunk("/a", (0,), b"x" * 1000)
    storage = repo.storage
    storage.delete([info.key for info in storage.list("chunks/")])
    with pytest.raises(StorageError):
        await session.store.get("a/c/0", PROTOTYPE)
    with pytest.raises(ExceptionGroup) as caught:
        await collect(session.store.get_ranges("a/c/0", [RangeByteRequest(0, 1)], prototype=PROTOTYPE))
    assert caught.value.split(FileNotFoundError)[0] is None


class CountingStorage(MemoryStorage):
    """Says that it waits, and remembers which threads it was called on."""

    is_remote = True

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        self.threads.add(threading.current_thread().name)
        return super().get_range(key, start, stop)

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        self.threads.add(threading.current_thread().name)
        super().put(key, data)


async def test_the_event_loop_never_waits_for_a_network() -> None:
    storage = CountingStorage()
    session = Repository.create(storage).writable_session("main")
    storage.threads.clear()
    store = session.store
    assert not store._supports_sync_io
    workspace_of(session).set_metadata("/a", array_document((8,)))
    values = {f"a/c/{i}": bytes([i]) * 1000 for i in range(8)}
    await asyncio.gather(*(store.set(key, cpu.Buffer.from_bytes(value)) for key, value in values.items()))
    found = await asyncio.gather(*(store.get(key, PROTOTYPE) for key in values))
    assert [text(b) for b in found] == list(values.values())
    partial = await store.get_partial_values(PROTOTYPE, [(key, SuffixByteRequest(2)) for key in values])
    assert [text(b) for b in partial] == [value[-2:] for value in values.values()]
    ranges = [RangeByteRequest(i * 100, i * 100 + 5) for i in range(5)]
    assert await collect(
        store.get_ranges("a/c/1", ranges, prototype=PROTOTYPE, max_gap_bytes=10, max_concurrency=2)
    ) == dict.fromkeys(range(5), b"\x01" * 5)
    assert text(await store.get("a/zarr.json", PROTOTYPE)) == workspace_of(session).read_metadata("/a")
    assert threading.current_thread().name not in storage.threads


def test_local_and_memory_storages_offer_synchronous_reads(store: IcechunkStore) -> None:
    assert store._supports_sync_io


async def test_large_local_chunks_are_read_whole(store: IcechunkStore) -> None:
    data = bytes(range(256)) * 4096
    await store.set("a/c/1/1", cpu.Buffer.from_bytes(data))
    assert text(await store.get("a/c/1/1", PROTOTYPE)) == data
    assert text(await store.get("a/c/1/1", PROTOTYPE, RangeByteRequest(1, 600_000))) == data[1:600_000]


def test_documents_come_back_byte_for_byte(session: Session) -> None:
    document = GROUP.replace(b",", b" ,\n")
    workspace_of(session).set_metadata("/g", document)
    assert text(session.store.get_sync("g/zarr.json")) == document


@pytest.mark.parametrize("is_committed", [False, True])
async def test_several_chunks_in_one_object(repo: Repository, is_committed: bool) -> None:
    """The format allows references into a part of an object."""
    session = repo.writable_session("main")
    workspace_of(session).set_metadata("/a", array_document((4,)))
    chunk_id = ChunkId.random()
    content = bytes(range(60))
    repo.storage.put(layout.chunk_key(chunk_id), content)
    refs = ChunkRefs.build(
        np.arange(4)[:, None],
        NATIVE,
        chunk_ids=np.tile(chunk_id.to_row(), (4, 1)),
        offsets=np.arange(4) * 10 + 5,
        lengths=10,
    )
    workspace_of(session).set_chunk_refs("/a", refs)
    if is_committed:
        session.commit("packed")
    for row in range(4):
        expected = content[10 * row + 5 : 10 * row + 15]
        found = await session.store.get(f"a/c/{row}", PROTOTYPE)
        assert found is not None
        assert found.to_bytes() == expected
        part = session.store.get_sync(f"a/c/{row}", byte_range=RangeByteRequest(2, 5))
        assert part is not None
        assert part.to_bytes() == expected[2:5]
