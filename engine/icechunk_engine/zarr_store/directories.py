"""Directories such as ``group/array`` or ``array/c/0``, and the keys below them.

A directory is a whole number of path components: ``a`` covers ``a/b`` but not ``ab``.
"""

from __future__ import annotations

from typing import NamedTuple

from icechunk_engine import paths
from icechunk_engine.errors import InvalidInputError
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.workspace.workspace import Workspace
from icechunk_engine.zarr_store import key_listing


class ChunkDirectory(NamedTuple):
    """``array/c/0``: the chunks of the array at ``path`` whose longer index starts with ``index_prefix``."""

    path: str
    index_prefix: ChunkIndex


def chunk_directory(workspace: Workspace, prefix: str) -> ChunkDirectory | None:
    """Return the array and index prefix of ``array/c`` or ``array/c/0``; None for all other directories."""
    found = key_listing.parse_chunk_directory(prefix.strip("/"))
    if found is None:
        return None
    path, index = found
    reader = workspace.array_reader(path)
    return ChunkDirectory(path, index) if reader is not None and len(index) < reader.ndim else None


def node_path(prefix: str) -> str | None:
    """Return the path of the node that a directory would belong to; None if no node can have this path."""
    try:
        return paths.normalize(prefix.strip("/"))
    except InvalidInputError:
        return None
