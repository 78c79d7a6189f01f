"""Documents and keys that an Icechunk store accepts, for tests that zarr wrote for stores that accept anything."""

from __future__ import annotations

import json
from collections.abc import Sequence

from icechunk_engine import keys
from icechunk_engine.session import Session, workspace_of

GROUP = b'{"zarr_format":3,"node_type":"group","attributes":{}}'


def array_document(shape: Sequence[int] = (16, 16, 16), chunks: Sequence[int] | None = None, **more: object) -> bytes:
    """A minimal valid array document; by default 16 chunks along each of three axes."""
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks or [1] * len(shape))}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {},
            **more,
        }
    ).encode()


def put(session: Session, key: str, value: bytes) -> None:
    """Store a value past the store, with an array of fitting rank where a chunk needs one."""
    parsed = keys.parse(key)
    if isinstance(parsed, keys.MetadataKey):
        workspace_of(session).set_metadata(parsed.path, value)
    elif isinstance(parsed, keys.ChunkKey):
        ensure_array(session, key)
        workspace_of(session).set_chunk(parsed.path, parsed.index, value)


def ensure_array(session: Session, key: str) -> None:
    """Create the array of a chunk key unless it is there."""
    parsed = keys.parse(key)
    if isinstance(parsed, keys.ChunkKey) and workspace_of(session).get_node(parsed.path) is None:
        workspace_of(session).set_metadata(parsed.path, array_document([2000] * len(parsed.index)))


def read(session: Session, key: str) -> bytes | None:
    """The value of a key, past the store."""
    parsed = keys.parse(key)
    if isinstance(parsed, keys.MetadataKey):
        return workspace_of(session).read_metadata(parsed.path)
    assert isinstance(parsed, keys.ChunkKey)
    ref = workspace_of(session).locate_chunk(parsed.path, parsed.index)
    return None if ref is None else workspace_of(session).fetch_chunk(ref, 0, ref.length)
