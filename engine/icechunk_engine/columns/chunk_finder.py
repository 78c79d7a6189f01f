"""Finds the rows of chunks among sorted references; one lookup takes about a microsecond.

Built once for a set of references, and cheap to build. By how the rows fill their bounding box: a linear key that *is*
the row where every cell is there, a table of rows where many are, and bisection on linear keys where few are. Boxes of
2**63 cells or more have no linear keys; there the rows' bytes are compared, which takes a little longer.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.columns.tables import I64, column_bounds, row_strides
from icechunk_engine.keys import ChunkIndex

CELLS_PER_ROW = 4
"""A table of rows is used while it has at most so many cells a row (16 bytes a reference)."""

MISSING = -1


class ChunkFinder:
    """Rows of references that are sorted by index, without duplicates (as :meth:`ChunkRefs.latest` gives them).

    Parameters
    ----------
    refs
        Only looked at here, not kept.
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
            return
        keys = self._linear(refs.indices)
        if n_cells <= CELLS_PER_ROW * self._n:
            table = np.full(n_cells, MISSING, np.int32 if self._n < 2**31 else np.int64)
            table[keys] = np.arange(self._n)
            self._table = memoryview(table)
        else:
            self._keys = memoryview(keys)

    def find(self, index: ChunkIndex) -> int:
        """Row of one chunk, -1 if it is not there. ``index`` must have the rank of the references."""
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

    def find_many(self, indices: NDArray[Any]) -> I64:
        """Rows of many chunks: ``indices (m, ndim)`` → ``int64 (m,)``, -1 where one is not there."""
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

    def _linear(self, indices: NDArray[Any]) -> I64:
        """Cell of the bounding box that each index is in, C order."""
        keys = np.zeros(len(indices), np.int64)
        for axis, (start, _, stride) in enumerate(self._axes):
            keys += (indices[:, axis].astype(np.int64) - start) * stride
        return keys


def _raw_keys(indices: NDArray[Any]) -> NDArray[np.bytes_]:
    """Big-endian bytes of each row, which compare as the rows do."""
    return np.ascontiguousarray(indices.astype(">u4")).view(f"S{4 * indices.shape[1]}").reshape(-1)


def _search(known: NDArray[Any], wanted: NDArray[Any]) -> I64:
    """Positions in sorted, distinct, non-empty ``known``; -1 for what is not there."""
    rows = np.minimum(np.searchsorted(known, wanted), len(known) - 1).astype(np.int64)
    return np.where(known[rows] == wanted, rows, np.int64(MISSING))
