"""Store keys and names from columns of chunk indices. No chunk becomes a Python object before it is yielded. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import keys
from icechunk_engine.columns.tables import U32
from icechunk_engine.errors import InvalidInputError
from icechunk_engine.keys import ChunkIndex

BATCH_SIZE = 16_384
"""Number of keys built at a time: large enough to spread the cost of a batch, small enough to stream."""


def chunk_keys(path: str, indices: U32) -> Iterator[list[str]]:
    """Yield the store keys of an array's chunks in the order of the rows, in batches.

    Parameters
    ----------
    path
        Path of the array.
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
    """Return the mask of rows that begin with ``index_prefix``; all False if it is longer than the rank."""
    if len(index_prefix) > indices.shape[1]:
        return np.zeros(len(indices), np.bool_)
    mask = np.ones(len(indices), np.bool_)
    for axis, position in enumerate(index_prefix):
        mask &= indices[:, axis] == position
    return mask


def next_components(indices: U32, index_prefix: ChunkIndex) -> list[str]:
    """Return the distinct key components right after ``index_prefix``, in numerical order."""
    axis = len(index_prefix)
    if axis >= indices.shape[1]:
        return []
    return [str(position) for position in np.unique(indices[rows_under(indices, index_prefix), axis]).tolist()]


def parse_chunk_directory(directory: str) -> tuple[str, ChunkIndex] | None:
    """Return the array path and index prefix of ``a/c`` or ``a/c/0/1``; None if no chunk can have such a key."""
    try:
        parsed = keys.parse(directory)
    except InvalidInputError:
        return None
    return (parsed.path, parsed.index) if isinstance(parsed, keys.ChunkKey) else None
