"""Find equal byte ranges: numpy hashes all of them, then an exact comparison confirms the result.

The result is exact, whatever the hash does: ranges with one hash are compared byte by byte. Two different ranges with
one hash only cost another round with another seed. The first seed is fixed, so that results and timings repeat; the
others are random, because the author of a hostile file can find collisions for a known seed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, U64
from icechunk_engine.errors import InternalError

_SLAB_ROWS = 2**14
_SEED = np.uint64(0x9E3779B97F4A7C15)
_RESEEDS = 4
_RNG = np.random.default_rng()  # seeded by the operating system
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_WORD = 8


def sorted_distinct[T: np.generic](values: NDArray[T]) -> NDArray[T]:
    """Return the distinct values in ascending order."""
    # Sorting is faster than a hash table if most values are distinct.
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def distinct_ranges(data: U8, starts: I64, lengths: I64) -> tuple[I64, NDArray[np.int32]]:
    """Find equal byte ranges of a buffer.

    Parameters
    ----------
    data
        The buffer.
    starts, lengths
        ``int64 (n,)``: the ranges. They must lie inside the buffer.

    Returns
    -------
    tuple
        The rows where distinct ranges appear first, ``int64 (k,)`` ascending; and the code of each range,
        ``int32 (n,)``: the position among those rows of the first range that is equal.
    """
    n = len(starts)
    if n == 0:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    words = _Words(data)
    for seed in (_SEED, *_RNG.integers(2**64, size=_RESEEDS, dtype=np.uint64)):
        hashes = [words.hashes(starts[part], lengths[part], seed) for part in _slabs(n)]
        rows, codes = _first_rows(np.concatenate(hashes))
        twins = rows[codes]
        if all(
            words.equal(starts[part], lengths[part], starts[twins[part]], lengths[twins[part]]) for part in _slabs(n)
        ):
            return rows, codes
    # 64-bit hashes do not collide by accident, and nobody can prepare a file for a random seed.
    raise InternalError("the hashes of different strings in a file collide for every seed")


def _slabs(n: int) -> list[slice]:
    """Divide the work into slabs whose intermediate arrays stay in the cache."""
    return [slice(first, min(first + _SLAB_ROWS, n)) for first in range(0, n, _SLAB_ROWS)]


def _first_rows(keys: U64) -> tuple[I64, NDArray[np.int32]]:
    """Return the rows where keys appear first, ascending, and the code of every key."""
    n = len(keys)
    distinct = sorted_distinct(keys)
    if len(distinct) == n:
        return np.arange(n, dtype=np.int64), np.arange(n, dtype=np.int32)
    of_key = np.searchsorted(distinct, keys)
    first = np.empty(len(distinct), np.int64)
    first[of_key[::-1]] = np.arange(n - 1, -1, -1, dtype=np.int64)  # the last assignment wins
    order = np.argsort(first)
    rank = np.empty(len(distinct), np.int32)
    rank[order] = np.arange(len(distinct), dtype=np.int32)
    return first[order], rank[of_key]


class _Words:
    """Ranges of a buffer as 8-byte words, the last word of a range padded with zeros."""

    def __init__(self, data: U8) -> None:
        if len(data) < _WORD:
            data = np.concatenate([data, np.zeros(_WORD - len(data), np.uint8)])
        self._last = len(data) - _WORD
        self._view: U64 = np.ndarray((self._last + 1,), "<u8", np.ascontiguousarray(data), strides=(1,))

    def word(self, starts: I64, lengths: I64, at: int) -> U64:
        """Return the word at byte ``at`` of each range. All ranges must be longer than ``at``."""
        wanted = starts + at
        found = np.minimum(wanted, self._last)  # near the end of the buffer, read earlier and shift
        words = self._view[found] >> ((wanted - found) * 8).astype(np.uint64)
        missing = np.maximum(_WORD - (lengths - at), 0).astype(np.uint64) * np.uint64(8)
        kept: U64 = words & (np.uint64(2**64 - 1) >> missing)
        return kept

    def hashes(self, starts: I64, lengths: I64, seed: np.uint64) -> U64:
        """Hash each range to a ``uint64``."""
        hashes = (lengths.astype(np.uint64) + np.uint64(1)) * (seed | np.uint64(1))
        rows, at = np.arange(len(starts)), 0
        while True:
            rows = rows[lengths[rows] > at]
            if len(rows) == 0:
                return hashes
            mixed = (hashes[rows] ^ self.word(starts[rows], lengths[rows], at)) * _MULTIPLIER
            hashes[rows] = mixed ^ (mixed >> np.uint64(32))
            at += _WORD

    def equal(self, starts: I64, lengths: I64, other_starts: I64, other_lengths: I64) -> bool:
        """Return True if each range holds the same bytes as its partner."""
        if not np.array_equal(lengths, other_lengths):
            return False
        rows = np.flatnonzero(starts != other_starts)
        at = 0
        while True:
            rows = rows[lengths[rows] > at]
            if len(rows) == 0:
                return True
            one = self.word(starts[rows], lengths[rows], at)
            other = self.word(other_starts[rows], lengths[rows], at)
            if not np.array_equal(one, other):
                return False
            at += _WORD
