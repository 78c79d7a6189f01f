"""Virtual chunks that are read together: the same bytes and errors as one by one, with fewer requests."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRef
from icechunk_engine.errors import ErrorKind, IcechunkError, StorageError
from icechunk_engine.zarr_store.joint_reads import MAX_GAP_BYTES, MAX_JOINT_BYTES, JointReads

SIZE = 10_000_000
OBJECT = np.arange(SIZE, dtype=np.uint8).tobytes()


class Objects:
    """Objects of one content under all names; counts the reads."""

    def __init__(self) -> None:
        self.reads: list[tuple[str | None, int, int]] = []

    def fetch(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        first, last = ref.offset + start, ref.offset + stop
        self.reads.append((ref.location, first, last))
        if last > SIZE:
            raise StorageError(f"{ref.location} ends before {last}", ErrorKind.INVALID_OBJECT_SIZE)
        return OBJECT[first:last]


def virtual(location: str, offset: int, length: int, **checksum: object) -> ChunkRef:
    return ChunkRef(kind=VIRTUAL, location=location, offset=offset, length=length, **checksum)  # type: ignore[arg-type]


def read_all(objects: Objects, wanted: list[tuple[ChunkRef, int, int]]) -> list[bytes | BaseException]:
    async def run() -> list[bytes | BaseException]:
        joint = JointReads(objects.fetch)
        return await asyncio.gather(*(joint.read(*one) for one in wanted), return_exceptions=True)

    return asyncio.run(run())


LOCATIONS = st.sampled_from(["s3://b/one", "s3://b/two"])
OFFSETS = st.integers(0, 200).map(lambda n: n * 60_000)  # some are past the end, gaps are within and beyond the limit


@given(st.lists(st.tuples(LOCATIONS, OFFSETS, st.integers(2, 70_000), st.booleans()), max_size=15))
def test_the_same_as_one_by_one(chunks: list[tuple[str, int, int, bool]]) -> None:
    wanted = []
    for location, offset, length, part in chunks:
        wanted.append((virtual(location, offset, length), 1 if part else 0, length - 1 if part else length))
    wanted = [one for one in wanted if one[1] < one[2]]
    objects = Objects()
    found = read_all(objects, wanted)
    for (ref, start, stop), data in zip(wanted, found, strict=True):
        if ref.offset + stop > SIZE:
            assert isinstance(data, IcechunkError)
            assert data.kind is ErrorKind.INVALID_OBJECT_SIZE
        else:
            assert data == OBJECT[ref.offset + start : ref.offset + stop]
    assert all(stop - start <= MAX_JOINT_BYTES for _, start, stop in objects.reads)


def test_neighbours_take_one_request() -> None:
    objects = Objects()
    wanted = [(virtual("s3://b/x", 100 * n, 100), 0, 100) for n in range(10)]
    read_all(objects, wanted)
    assert objects.reads == [("s3://b/x", 0, 1000)]


@pytest.mark.parametrize(
    ("second", "n_reads"),
    [
        (virtual("s3://b/x", 100 + MAX_GAP_BYTES, 100), 1),
        (virtual("s3://b/x", 101 + MAX_GAP_BYTES, 100), 2),
        (virtual("s3://b/y", 100, 100), 2),
        (virtual("s3://b/x", 100, 100, etag="other"), 2),
        (virtual("s3://b/x", 100, 100, last_modified=7), 2),
        (virtual("s3://b/x", 100, MAX_JOINT_BYTES), 2),
    ],
)
def test_what_is_read_together(second: ChunkRef, n_reads: int) -> None:
    objects = Objects()
    read_all(objects, [(virtual("s3://b/x", 0, 100), 0, 100), (second, 0, second.length)])
    assert len(objects.reads) == n_reads


def test_a_bad_chunk_leaves_the_others_alone() -> None:
    objects = Objects()
    good, bad = virtual("s3://b/x", SIZE - 20, 10), virtual("s3://b/x", SIZE - 5, 10)
    first, second = read_all(objects, [(good, 0, 10), (bad, 0, 10)])
    assert first == OBJECT[-20:-10]
    assert isinstance(second, StorageError)


def test_several_event_loops_at_a_time() -> None:
    objects = Objects()
    joint = JointReads(objects.fetch)

    async def read_some(place: int) -> list[bytes]:
        found = []
        for n in range(20):
            refs = [virtual("s3://b/x", 1000 * n + 10 * m, 10) for m in range(5)]
            found += await asyncio.gather(*(joint.read(ref, 0, 10) for ref in refs))
        return found

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda place: asyncio.run(read_some(place)), range(4)))
    expected = [OBJECT[1000 * n + 10 * m :][:10] for n in range(20) for m in range(5)]
    assert results == [expected] * 4


def test_a_reader_that_gives_up_leaves_the_others_alone() -> None:
    objects = Objects()

    async def run() -> bytes:
        joint = JointReads(objects.fetch)
        impatient = asyncio.create_task(joint.read(virtual("s3://b/x", 0, 10), 0, 10))
        patient = asyncio.create_task(joint.read(virtual("s3://b/x", 10, 10), 0, 10))
        await asyncio.sleep(0)
        impatient.cancel()
        return await patient

    assert asyncio.run(run()) == OBJECT[10:20]
