"""Many sets of chunk references as one set that is sorted by index, but never in memory as a whole.

A session that merged a thousand forks has a thousand sets of references. To join and sort them would take several
times their memory. But each set is sorted already. So the rows in a range of axis 0 are one slice of each set. Only
these slices are joined and sorted, one range after another.

Invariant: *a range never ends between two rows with the same coordinate on axis 0.* All rows of one chunk are
therefore in one range, and the last one wins there, as it would among all rows. A cut at a row number would break
this: the older row of a chunk could come back in the next range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from icechunk_engine.columns.chunk_refs import ChunkRefs, concat
from icechunk_engine.columns.tables import I64, U32

BLOCK_ROWS = 1 << 18
"""Rows that are joined at once, if nothing else is asked for."""

_SAMPLES_PER_BLOCK = 256

_NO_BORDERS: U32 = np.empty(0, np.uint32)


class SortedParts:
    """The union of several sets of references. If two have the same index, the one in the later set counts.

    *Borders* divide axis 0 into ranges: ``uint32 (k,)``, ascending; each is the first coordinate of a range.

    Parameters
    ----------
    parts
        The sets, all of rank ``ndim``, in the order in which they were made.

    Attributes
    ----------
    parts
        Those with rows, each sorted by index and without duplicates.
    """

    __slots__ = ("ndim", "parts")

    def __init__(self, ndim: int, parts: Sequence[ChunkRefs]) -> None:
        self.ndim = ndim
        self.parts = [part.latest() for part in parts if len(part)]

    def __len__(self) -> int:
        """Return the number of rows. Rows with the same index in several parts count each time."""
        return sum(map(len, self.parts))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the columns hold."""
        return sum(part.nbytes for part in self.parts)

    def without_places(self) -> SortedParts:
        """Return the same rows with only their indices and kinds. Takes no memory."""
        other = SortedParts(self.ndim, ())
        other.parts = [ChunkRefs.build(part.indices, part.kinds) for part in self.parts]
        return other

    def borders(self, max_rows: int = BLOCK_ROWS) -> U32:
        """Return borders of ranges that hold about ``max_rows`` rows each; more where one coordinate holds more."""
        if self.ndim == 0 or len(self) <= max_rows:
            return _NO_BORDERS
        step = max(max_rows // _SAMPLES_PER_BLOCK, 1)
        samples = np.sort(np.concatenate([part.indices[::step, 0] for part in self.parts]))
        per_range = max(max_rows // step, 1)
        candidates = samples[per_range::per_range]
        borders: U32 = np.unique(candidates[candidates > samples[0]])
        return borders

    def counts(self, borders: U32) -> I64:
        """Return the number of rows in each range, ``int64 (k + 1,)``. Rows with the same index count each time."""
        return np.diff(self._bounds(borders), axis=1).sum(axis=0)

    def thinned(self, borders: U32, max_rows: int) -> U32:
        """Leave out borders, so that ranges are joined as long as they hold at most ``max_rows`` rows."""
        first, *others = self.counts(borders).tolist()
        kept, n_rows = [], first
        for border, n_next in zip(borders.tolist(), others, strict=True):
            if n_rows + n_next > max_rows:
                kept.append(border)
                n_rows = 0
            n_rows += n_next
        return np.array(kept, np.uint32)

    def slices(self, borders: U32) -> Iterator[list[tuple[int, slice]]]:
        """Yield for each range the parts that have rows in it, and these rows."""
        bounds = self._bounds(borders)
        for starts, stops in zip(bounds[:, :-1].T, bounds[:, 1:].T, strict=True):
            filled = np.flatnonzero(stops > starts)
            rows = zip(filled.tolist(), starts[filled].tolist(), stops[filled].tolist(), strict=True)
            yield [(part, slice(start, stop)) for part, start, stop in rows]

    def blocks(self, borders: U32) -> Iterator[ChunkRefs]:
        """Yield the references of each range that has some, sorted by index and without duplicates."""
        for chosen in self.slices(borders):
            if chosen:
                yield concat([self.parts[part].narrow(rows) for part, rows in chosen]).latest()

    def indices(self) -> U32:
        """Return the distinct indices, sorted: ``uint32 (n, ndim)``."""
        if len(self.parts) == 1:
            return self.parts[0].indices
        bare = self.without_places()
        out, end = np.empty((len(self), self.ndim), np.uint32), 0
        for block in bare.blocks(bare.borders()):
            out[end : end + len(block)] = block.indices
            end += len(block)
        return out[:end]

    def _bounds(self, borders: U32) -> I64:
        """Return the row of each part at which each range begins, and the number of its rows: ``(parts, k + 2)``."""
        bounds = np.zeros((len(self.parts), len(borders) + 2), np.int64)
        for row, part in zip(bounds, self.parts, strict=True):
            if len(borders):
                row[1:-1] = np.searchsorted(part.indices[:, 0], borders)
            row[-1] = len(part)
        return bounds
