"""Hypothesis strategies for chunk references, and helpers to read them one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from icechunk_engine.columns.chunk_refs import INLINE, NATIVE, VIRTUAL, ChunkRef, ChunkRefs
from icechunk_engine.ids import ChunkId

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
LOCATIONS = st.sampled_from(["s3://bucket/a.nc", "s3://bucket/b.nc", "file:///é/" + "x" * 300]) | st.text(min_size=1)
CHUNK_IDS = st.binary(min_size=12, max_size=12).map(ChunkId)

NATIVE_REFS = st.builds(ChunkRef, kind=st.just(NATIVE), chunk_id=CHUNK_IDS, offset=st.just(0) | U64, length=U64)
VIRTUAL_REFS = st.builds(
    ChunkRef,
    kind=st.just(VIRTUAL),
    location=LOCATIONS,
    offset=U64,
    length=U64,
    etag=st.none() | st.sampled_from(["etag", '"quoted"']) | st.text(),
    last_modified=st.just(0) | U32,
)
INLINE_REFS = st.builds(lambda data: ChunkRef(kind=INLINE, inline=data, length=len(data)), st.binary(max_size=40))
REFS = NATIVE_REFS | VIRTUAL_REFS | INLINE_REFS


@st.composite
def chunk_refs(draw: st.DrawFn, max_size: int = 12) -> ChunkRefs:
    """Draw sorted references of one array, of one kind or of several."""
    ndim = draw(st.integers(0, 4))
    refs = draw(st.sampled_from([NATIVE_REFS, VIRTUAL_REFS, INLINE_REFS, REFS, REFS]))
    coordinate = st.integers(0, 3) | U32
    items = draw(st.dictionaries(st.tuples(*[coordinate] * ndim), refs, min_size=1, max_size=max_size))
    return ChunkRefs.of(ndim, sorted(items.items()))


def as_dict(refs: ChunkRefs) -> dict[tuple[int, ...], ChunkRef]:
    """Return all references as objects. Also check that they are sorted."""
    indices = [tuple(index) for index in refs.indices.tolist()]
    assert indices == sorted(set(indices))
    return {index: refs.row(row) for row, index in enumerate(indices)}


def many_refs(n: int, seed: int = 0, ndim: int = 3) -> ChunkRefs:
    """Make thousands of references of all kinds, with runs of equal locations and etags."""
    random = np.random.default_rng(seed)
    kinds = random.integers(1, 4, n).astype(np.uint8)
    edge = int(np.ceil(n ** (1 / ndim))) + 1
    cells = np.sort(random.choice(edge**ndim, n, replace=False))
    payload_lengths = random.integers(0, 60, n).astype(np.uint64)
    starts = np.cumsum(payload_lengths) - payload_lengths
    files = np.sort(random.integers(0, n // 50 + 1, n)).astype(np.int32)
    locations = [f"s3://bucket/data/file-{number:05d}.nc" for number in range(n // 50 + 1)]
    inline = kinds == INLINE
    virtual = kinds == VIRTUAL
    from icechunk_engine.columns.tables import BytesTable

    return ChunkRefs.build(
        np.stack(np.unravel_index(cells, (edge,) * ndim), 1),
        kinds,
        chunk_ids=np.where((kinds == NATIVE)[:, None], random.integers(0, 256, (n, 12)), 0).astype(np.uint8),
        offsets=np.where(inline, starts, random.integers(0, 2**40, n).astype(np.uint64)),
        lengths=np.where(inline, payload_lengths, random.integers(1, 2**20, n).astype(np.uint64)),
        location_codes=np.where(virtual, files, -1),
        etag_codes=np.where(virtual & (files % 3 == 0), files, -1),
        last_modified=np.where(virtual & (files % 3 == 1), 1_700_000_000 + files, 0),
        locations=BytesTable.of(locations),
        etags=BytesTable.of([f"etag{number}" for number in range(n // 50 + 1)]),
        inline_data=random.integers(0, 256, int(payload_lengths.sum())).astype(np.uint8),
    )
