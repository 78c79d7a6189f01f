"""The commit metadata that the library itself writes, below a key where the official library does so, too. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from icechunk_engine.types import Json

_KEY = "__icechunk"


def own_metadata(metadata: Mapping[str, Json]) -> Mapping[str, Json]:
    """Return the library's part of the metadata of a snapshot."""
    own = metadata.get(_KEY)
    return own if isinstance(own, dict) else {}


def with_own_metadata(metadata: Mapping[str, Json], name: str, value: Json) -> dict[str, Json]:
    """Return metadata of a commit with one more value in the library's part."""
    return {**metadata, _KEY: {**own_metadata(metadata), name: value}}
