"""Find the rows of chunks among sorted references. One lookup takes about a microsecond.

A finder is built once for a set of references. It numbers the cells of their bounding box in C order; the number of
a cell is its *key*. How full the box is decides how a key becomes a row:

========================  ==========================  =====================
the box                   method                      memory per reference
========================  ==========================  =====================
full                      the key is the row          none
at least a quarter full   a table: key → row          16 bytes at most
sparser                   bisection among the keys    8 bytes
2**63 cells or more       bisection among row bytes   4 bytes an axis
========================  ==========================  =====================

All four rely on one fact: the references are sorted by index and have no duplicates. Then keys ascend with rows, which
bisection needs, and a full box holds row ``i`` in cell ``i``, because ``n`` distinct cells of a box of ``n`` cells are
all of them. Unsorted or repeated rows would not raise: they would return the wrong chunk. Pass
:meth:`ChunkRefs.latest <icechunk_engine.columns.chunk_refs.ChunkRefs.latest>`.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.columns.tables import I64, Integers, column_bounds, row_strides
from icechunk_engine.keys import ChunkIndex

CELLS_PER_ROW = 4
"""Largest number of cells per reference for which the finder keeps a table of rows (4 bytes a cell)."""

MISSING = -1
"""The row of a chunk that is not among the references."""


class ChunkFinder:
    """Find rows among references that are sorted by index and have no duplicates.

    Parameters
    ----------
    refs
        The references. The finder does not keep them.
    """

    __slots__ = ("_axes", "_keys", "_n", "_raw_keys", "_table")

    def __init__(self, refs: ChunkRefs) -> None:
        self._n = len(refs)
        self._table: memoryview | None = None
        self._keys: memoryview | None = None
        self._raw_keys: NDArray[np.bytes_] | None = None
        starts, spans = [0] * refs.ndim, [0] * refs.ndim
        if self._n:
            lowest, highest = column_bounds(refs.indices)
            starts = lowest.tolist()
            spans = [last - start + 1 for start, last in zip(starts, highest.tolist(), strict=True)]
        strides = row_strides(spans)
        # (start, span, stride) of each axis
        self._axes = tuple(
            (start, span, stride)
            for start, span, stride in zip(starts, spans, strides or [0] * refs.ndim, strict=True)
        )
        if strides is None:
            self._raw_keys = _raw_keys(refs.indices)
            return
        n_cells = strides[0] * spans[0] if spans else 1
        if n_cells == self._n:
            return  # the box is full: keys are rows
        keys = self._linear(refs.indices)
        if n_cells <= CELLS_PER_ROW * self._n:
            table = np.full(n_cells, MISSING, np.int32 if self._n < 2**31 else np.int64)
            table[keys] = np.arange(self._n)
            self._table = memoryview(table)
        else:
            self._keys = memoryview(keys)

    def find(self, index: ChunkIndex) -> int:
        """Return the row of one chunk, -1 if it is missing. ``index`` must have the rank of the references."""
        key = 0
        for position, (start, span, stride) in zip(index, self._axes, strict=True):
            position -= start
            if not 0 <= position < span:
                return MISSING
            key += position * stride
        if self._table is not None:
            return int(self._table[key])
        if self._keys is not None:
            row = bisect_left(self._keys, key)
            return row if row < self._n and self._keys[row] == key else MISSING
        if self._raw_keys is not None:
            return int(_search(self._raw_keys, _raw_keys(np.array([index], np.uint32)))[0])
        return key if key < self._n else MISSING

    def find_many(self, indices: Integers) -> I64:
        """Return the rows of the chunks ``indices (m, ndim)`` as ``int64 (m,)``, -1 for each missing chunk."""
        found = np.full(len(indices), MISSING, np.int64)
        if self._n == 0:
            return found
        inside = np.ones(len(indices), np.bool_)
        for axis, (start, span, _) in enumerate(self._axes):
            column = indices[:, axis]
            inside &= (column >= start) & (column < start + span)
        rows = np.flatnonzero(inside)
        wanted = indices[rows]
        if self._raw_keys is not None:
            found[rows] = _search(self._raw_keys, _raw_keys(wanted))
            return found
        keys = self._linear(wanted)
        if self._table is not None:
            keys = np.asarray(self._table)[keys].astype(np.int64)
        elif self._keys is not None:
            keys = _search(np.asarray(self._keys), keys)
        found[rows] = keys
        return found

    def _linear(self, indices: Integers) -> I64:
        """Number the cell of the bounding box that each index is in, in C order."""
        keys = np.zeros(len(indices), np.int64)
        for axis, (start, _, stride) in enumerate(self._axes):
            keys += (indices[:, axis].astype(np.int64) - start) * stride
        return keys


def _raw_keys(indices: Integers) -> NDArray[np.bytes_]:
    """Return the big-endian bytes of each row, which compare as the rows do."""
    return np.ascontiguousarray(indices.astype(">u4")).view(f"S{4 * indices.shape[1]}").reshape(-1)


def _search[T: (np.int64, np.bytes_)](known: NDArray[T], wanted: NDArray[T]) -> I64:
    """Return the positions of values in sorted, distinct, non-empty ``known``; -1 for missing ones."""
    rows = np.minimum(np.searchsorted(known, wanted), len(known) - 1).astype(np.int64)
    return np.where(known[rows] == wanted, rows, np.int64(MISSING))
