"""What Zarr store keys mean: the metadata of a node, one chunk, or a name of Zarr v2 that never exists.

Metadata are in ``zarr.json``. Chunks have the default chunk key encoding with ``/``: ``a/c/0/1``, or ``a/c`` for a
scalar array.
"""

from __future__ import annotations

from dataclasses import dataclass

from icechunk_engine import paths
from icechunk_engine.errors import ErrorKind, InvalidInputError

METADATA_NAME = "zarr.json"
V2_NAMES = frozenset({".zgroup", ".zarray", ".zattrs", ".zmetadata"})
MAX_CHUNK_INDEX = 2**32 - 2

ChunkIndex = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MetadataKey:
    """``…/zarr.json`` of the node at ``path``."""

    path: str


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """One chunk of the array at ``path``. ``index`` is empty for a scalar array."""

    path: str
    index: ChunkIndex


@dataclass(frozen=True, slots=True)
class V2Key:
    """The name of a Zarr v2 metadata document. It never exists; zarr asks for it to find out the format of a group."""


Key = MetadataKey | ChunkKey | V2Key
_V2_KEY = V2Key()


def _invalid(key: str) -> InvalidInputError:
    return InvalidInputError(
        f"invalid zarr key format {key!r}: the keys of this store are 'zarr.json', '<path>/zarr.json' and chunks "
        f"'<array>/c/0/1' (arrays must use the 'default' chunk key encoding with separator '/')",
        ErrorKind.INVALID_KEY,
    )


def parse(key: str) -> Key:
    """Parse a store key.

    Raises
    ------
    InvalidInputError
        ``invalid-key``: the key is none of the three kinds.
    """
    if not isinstance(key, str):
        raise _invalid(key)
    stripped = key[1:] if key[:1] == "/" else key
    top, _, last = stripped.rpartition("/")
    if last == METADATA_NAME:
        return MetadataKey(_node_path(top, key))
    if last in V2_NAMES:
        return _V2_KEY
    return _parse_chunk(stripped, key)


def _parse_chunk(stripped: str, key: str) -> ChunkKey:
    """Parse a chunk key: digits after the last component that is exactly ``c``."""
    parts = stripped.split("/")
    for position in range(len(parts) - 1, -1, -1):
        part = parts[position]
        if part == "c":
            index = tuple([int(digits) for digits in parts[position + 1 :]])
            return ChunkKey(_node_path("/".join(parts[:position]), key), index)
        if not (part.isascii() and part.isdigit() and len(part) <= 10 and int(part) <= MAX_CHUNK_INDEX):
            break
    raise _invalid(key)


def _node_path(text: str, key: str) -> str:
    try:
        return paths.normalize(text)
    except InvalidInputError:
        raise _invalid(key) from None


def metadata_key(path: str) -> str:
    """Return the store key of the metadata document of a node."""
    return METADATA_NAME if path == paths.ROOT else f"{path[1:]}/{METADATA_NAME}"


def chunk_prefix(path: str) -> str:
    """Return the store key of the chunks of an array without the index: ``a/c``."""
    return "c" if path == paths.ROOT else f"{path[1:]}/c"


def chunk_key(path: str, index: ChunkIndex) -> str:
    """Return the store key of one chunk."""
    return "/".join([chunk_prefix(path), *map(str, index)])
