"""Which byte ranges are equal: hashes in numpy, then an exact comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, U64
from icechunk_engine.errors import InternalError

_SLAB_ROWS = 2**14
_SEED = np.uint64(0x9E3779B97F4A7C15)
_RESEEDS = 4
_RNG = np.random.default_rng()
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_WORD = 8


def sorted_distinct[T: np.generic](values: NDArray[T]) -> NDArray[T]:
    """Distinct values in ascending order; by sorting, which beats a hash table when most are distinct."""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def distinct_ranges(data: U8, starts: I64, lengths: I64) -> tuple[I64, NDArray[np.int32]]:
    """Find equal byte ranges of a buffer.

    Parameters
    ----------
    data
        The buffer.
    starts, lengths
        ``int64 (n,)`` ranges, which must lie inside of the buffer.

    Returns
    -------
    tuple
        Rows of the distinct ranges' first appearances, ``int64 (k,)`` ascending, and the code (row of that) of each
        range, ``int32 (n,)``.
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
        # Two different ranges had one hash, which only happens by intent: nobody can intend it for a random seed.
    raise InternalError("equal strings of a file could not be told from others, whatever the seed of their hashes")


def _slabs(n: int) -> list[slice]:
    """Some ranges at a time, so that what is gathered on the way stays in cache."""
    return [slice(first, min(first + _SLAB_ROWS, n)) for first in range(0, n, _SLAB_ROWS)]


def _first_rows(keys: U64) -> tuple[I64, NDArray[np.int32]]:
    """Rows where each key appears first, ascending, and the code of every key."""
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
    """Reads ranges of a buffer as 8-byte words, the last one filled up with zeros."""

    def __init__(self, data: U8) -> None:
        if len(data) < _WORD:
            data = np.concatenate([data, np.zeros(_WORD - len(data), np.uint8)])
        self._last = len(data) - _WORD
        self._view: U64 = np.ndarray((self._last + 1,), "<u8", np.ascontiguousarray(data), strides=(1,))

    def word(self, starts: I64, lengths: I64, at: int) -> U64:
        """Word at byte ``at`` of ranges that are longer than ``at``."""
        wanted = starts + at
        found = np.minimum(wanted, self._last)
        words = self._view[found] >> ((wanted - found) * 8).astype(np.uint64)
        missing = np.maximum(_WORD - (lengths - at), 0).astype(np.uint64) * np.uint64(8)
        kept: U64 = words & (np.uint64(2**64 - 1) >> missing)
        return kept

    def hashes(self, starts: I64, lengths: I64, seed: np.uint64) -> U64:
        """One ``uint64`` a range."""
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
        """True when all pairs of ranges hold the same bytes."""
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
