"""Move chunks inside an array's grid without copying their bytes: the edits are columns of references. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import DELETED, ChunkRefs, concat
from icechunk_engine.keys import ChunkIndex

IndexMap = Callable[[Iterable[int]], Iterable[int] | None]
"""Maps a chunk index, given as a list, to another one or None."""


def shifted(refs: ChunkRefs, offset: NDArray[np.int64], grid: Sequence[int]) -> ChunkRefs:
    """Return the edits that move every chunk by ``offset``. Chunks that leave the grid are dropped.

    Deletions of all old positions come first, then the new positions. Later edits win, so chunks may take each other's
    places.

    Parameters
    ----------
    refs
        All references of the array.
    offset
        ``int64 (ndim,)``, in chunks.
    """
    moved = refs.indices.astype(np.int64) + offset
    inside = ((moved >= 0) & (moved < np.asarray(grid, np.int64))).all(axis=1)
    placed = replace(refs.take(np.flatnonzero(inside)), indices=moved[inside].astype(np.uint32))
    return concat([ChunkRefs.build(refs.indices, DELETED), placed])


def reindexed(
    refs: ChunkRefs, forward: IndexMap, backward: IndexMap | None, require: Callable[[ChunkIndex], None]
) -> ChunkRefs:
    """Return the edits that move each chunk to the index that ``forward`` returns.

    Parameters
    ----------
    refs
        All references of the array.
    forward
        Maps an old index to the new one; None leaves the chunk where it is.
    backward
        Maps a new index to the old one; used to delete chunks at positions to which no chunk moves.
    require
        Raises for an index outside the array's grid.
    """
    # The callbacks are the user's Python functions, so here, and only here, Python visits chunks one by one.
    old = [tuple(index) for index in refs.indices.tolist()]
    targets = [forward(list(index)) for index in old]
    rows = np.array([row for row, target in enumerate(targets) if target is not None], np.int64)
    new = [tuple(target) for target in targets if target is not None]
    for index in new:
        require(index)
    placed = replace(refs.take(rows), indices=_rows(new, refs.ndim))
    if backward is None:
        return placed
    present = set(old)
    vacated = [index for index in old if (source := backward(list(index))) is None or tuple(source) not in present]
    return concat([ChunkRefs.build(_rows(vacated, refs.ndim), DELETED), placed])


def _rows(indices: Sequence[ChunkIndex], ndim: int) -> NDArray[np.uint32]:
    return np.array(indices, np.uint32).reshape(len(indices), ndim)
