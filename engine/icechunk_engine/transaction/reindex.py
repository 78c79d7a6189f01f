"""Moving chunks inside an array's grid without copying payloads: edits as columns. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import DELETED, ChunkRefs, concat
from icechunk_engine.keys import ChunkIndex

IndexMap = Callable[[Iterable[int]], Iterable[int] | None]
"""A chunk index as a list → another one, or None."""


def shifted(refs: ChunkRefs, offset: NDArray[np.int64], grid: Sequence[int]) -> ChunkRefs:
    """Edits that move every chunk by ``offset``: present positions are cleared, then those still in the grid are set.

    Parameters
    ----------
    refs
        All present references of the array.
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
    """Edits that move chunks to where ``forward`` says, and clear what ``backward`` shows to be vacated.

    The callbacks are the caller's Python functions, so this is the one place that visits chunks one by one.

    Parameters
    ----------
    require
        Raises for an index outside the array's grid.
    """
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
