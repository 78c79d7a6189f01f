"""Settle the doubts of a merge: two chunks at one index do not conflict if their bytes are equal.

A task that ran twice has stored each of its chunks twice. If its name is unknown, only the bytes can tell a retry from
a conflict. Doubts are rare, so this reads both chunks of each pair, a few pairs at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import batched

from icechunk_engine._runtime.pools import map_requests
from icechunk_engine.errors import ObjectNotFoundError
from icechunk_engine.format import layout
from icechunk_engine.ids import ChunkId
from icechunk_engine.storage.base import Storage
from icechunk_engine.transaction.merge import Doubts

_PAIRS_AT_A_TIME = 8


def require_equal_chunks(storage: Storage, doubts: Iterable[Doubts]) -> None:
    """Raise the conflict of the first pair of chunks with different bytes. Makes two requests a pair."""
    for doubt in doubts:
        for batch in batched(range(len(doubt.first_ids)), _PAIRS_AT_A_TIME):
            ids = [column[pair] for pair in batch for column in (doubt.first_ids, doubt.second_ids)]
            keys = [layout.chunk_key(ChunkId(one.tobytes())) for one in ids]
            contents = map_requests(storage, partial(_read, storage), keys)
            for pair, first, second in zip(batch, contents[::2], contents[1::2], strict=True):
                if first is None or first != second:
                    raise doubt.conflict(pair)


def _read(storage: Storage, key: str) -> bytes | None:
    try:
        return storage.get(key)
    except ObjectNotFoundError:
        return None
