"""References compared as columns say the same as references compared one by one."""

from __future__ import annotations

from itertools import product

import pytest

from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, VIRTUAL, ChunkRef, ChunkRefs
from icechunk_engine.columns.equal_refs import equal_rows
from icechunk_engine.ids import ChunkId

_TEXTS = ("s3://b/x", "s3://b/y", "s3://b/longer")
_REFS = [
    ChunkRef(kind=DELETED),
    *(
        ChunkRef(kind=NATIVE, length=length, offset=offset, chunk_id=ChunkId(raw))
        for length, offset, raw in product((1, 2), (0, 1), (b"a" * 12, b"b" * 12))
    ),
    *(ChunkRef(kind=INLINE, length=len(data), inline=data) for data in (b"a", b"b", b"ab", b"bb", b"ba")),
    *(
        ChunkRef(kind=VIRTUAL, length=length, offset=offset, location=text, etag=etag, last_modified=time)
        for length, offset, text, etag, time in product((1, 2), (0, 1), _TEXTS, (None, *_TEXTS), (0, 1))
    ),
]


def columns(refs: list[ChunkRef]) -> ChunkRefs:
    return ChunkRefs.of(1, [((i,), ref) for i, ref in enumerate(refs)])


def test_columns_say_what_rows_say() -> None:
    """Every pair of references, all in one comparison."""
    pairs = list(product(_REFS, reversed(_REFS)))
    one, other = columns([first for first, _ in pairs]), columns([second for _, second in pairs])
    assert equal_rows(one, other).tolist() == [first == second for first, second in pairs]


@pytest.mark.parametrize("first", _REFS[:12])
def test_one_row(first: ChunkRef) -> None:
    for second in _REFS[:12]:
        assert equal_rows(columns([first]), columns([second])).tolist() == [first == second]


def test_no_rows() -> None:
    assert equal_rows(columns([]), columns([])).tolist() == []
