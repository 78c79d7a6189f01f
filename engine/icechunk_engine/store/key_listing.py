"""Store keys and names out of columns of chunk indices, for listings: no Python object a chunk until it is yielded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import keys
from icechunk_engine.columns.tables import U32
from icechunk_engine.errors import InvalidInputError
from icechunk_engine.keys import ChunkIndex

BATCH_SIZE = 16_384
"""Keys built at a time: enough to spread the cost of the batch, few enough to stream."""


def chunk_keys(path: str, indices: U32) -> Iterator[list[str]]:
    """Store keys of an array's chunks in the order of the rows, batch by batch.

    Parameters
    ----------
    path
        Node path of the array.
    indices
        ``uint32 (n, ndim)``.
    """
    prefix = keys.chunk_prefix(path)
    if indices.shape[1] == 0:
        if len(indices):
            yield [prefix]
        return
    template = prefix.replace("%", "%%") + "/%d" * indices.shape[1]
    for start in range(0, len(indices), BATCH_SIZE):
        columns = indices[start : start + BATCH_SIZE].T.tolist()
        yield list(map(template.__mod__, zip(*columns, strict=True)))


def rows_under(indices: U32, index_prefix: ChunkIndex) -> NDArray[np.bool_]:
    """Mask of the rows that begin with ``index_prefix``; none when the prefix is longer than the rank."""
    if len(index_prefix) > indices.shape[1]:
        return np.zeros(len(indices), np.bool_)
    mask = np.ones(len(indices), np.bool_)
    for axis, position in enumerate(index_prefix):
        mask &= indices[:, axis] == position
    return mask


def next_components(indices: U32, index_prefix: ChunkIndex) -> list[str]:
    """Distinct key components right after ``index_prefix``, in numerical order."""
    axis = len(index_prefix)
    if axis >= indices.shape[1]:
        return []
    return [str(position) for position in np.unique(indices[rows_under(indices, index_prefix), axis]).tolist()]


def parse_chunk_directory(directory: str) -> tuple[str, ChunkIndex] | None:
    """Array path and index prefix that ``a/c`` or ``a/c/0/1`` would be, None if it cannot be a place of chunks."""
    try:
        parsed = keys.parse(directory)
    except InvalidInputError:
        return None
    return (parsed.path, parsed.index) if isinstance(parsed, keys.ChunkKey) else None
