"""Test many strings at once with numpy: prefixes and pairs of bytes.

A table of strings is processed in blocks, so that temporary arrays stay small. This module knows nothing about URLs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, BytesTable

BLOCK_ROWS = 1 << 12  # small enough for temporary arrays to stay in the processor cache

_WORD = 8


class StringBlock:
    """Consecutive strings of a table.

    Attributes
    ----------
    data
        ``uint8 (m,)``: the bytes of all strings, then eight zeros.
    starts, lengths
        ``int64 (n,)``: position and length of each string in ``data``.
    """

    __slots__ = ("_words", "data", "lengths", "starts")

    def __init__(self, data: U8, bounds: I64) -> None:
        self.data = np.concatenate([data[bounds[0] : bounds[-1]], np.zeros(_WORD, np.uint8)])
        self.starts = bounds[:-1] - bounds[0]
        self.lengths = np.diff(bounds)
        # The eight bytes from each position, as one number.
        self._words: NDArray[np.uint64] = np.ndarray(len(self.data) - _WORD + 1, "<u8", self.data, strides=(1,))

    def __len__(self) -> int:
        return len(self.starts)

    def starts_with(self, prefix: bytes) -> NDArray[np.bool_]:
        """Return a mask ``(n,)`` of the strings that begin with ``prefix``."""
        mask: NDArray[np.bool_] = self.lengths >= len(prefix)
        for position in range(0, len(prefix), _WORD):
            rows = np.flatnonzero(mask)
            if len(rows) == 0:
                break
            part = prefix[position : position + _WORD]
            words = self._words[self.starts[rows] + position]
            mask[rows] = (words & np.uint64(256 ** len(part) - 1)) == np.uint64(int.from_bytes(part, "little"))
        return mask

    def byte_at(self, position: int) -> U8:
        """Return the byte ``(n,)`` at a position of each string, 0 if the string is shorter."""
        within = self.lengths > position
        found: U8 = np.where(within, self.data[np.where(within, self.starts + position, 0)], np.uint8(0))
        return found

    def pairs(self, pair: bytes) -> NDArray[np.bool_]:
        """Return a mask ``(m,)`` of the positions in ``data`` where this pair of bytes begins."""
        found = np.zeros(len(self.data), np.bool_)
        found[:-1] = (self.data[:-1] == pair[0]) & (self.data[1:] == pair[1])
        return found

    def third(self, choices: bytes) -> NDArray[np.bool_]:
        """Return a mask ``(m,)`` of the positions in ``data`` where the byte two places later is in ``choices``."""
        found = np.zeros(len(self.data), np.bool_)
        for choice in choices:
            found[:-2] |= self.data[2:] == choice
        return found

    def count(self, at_byte: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Count, for each string ``(n,)``, the positions that are True in the mask ``(m,)``.

        A pair that begins with the last byte of a string counts, even though it ends in the next string.
        """
        positions = np.flatnonzero(at_byte[:-_WORD])
        rows = np.searchsorted(self.starts, positions, "right") - 1
        return np.bincount(rows, minlength=len(self))


def string_blocks(table: BytesTable) -> Iterator[StringBlock]:
    """Yield the strings of a table in blocks."""
    for first in range(0, len(table), BLOCK_ROWS):
        yield StringBlock(table.data, table.starts[first : first + BLOCK_ROWS + 1])
