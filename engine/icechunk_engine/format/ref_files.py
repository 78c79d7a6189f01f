"""The files of branches and tags in spec version 1: each is a JSON object that names a snapshot."""

from __future__ import annotations

import json

from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.ids import SnapshotId

_MAX_REF_FILE = 2**12
"""Largest ref file that is read. Those of the official library have 35 bytes."""


def encode_ref(snapshot_id: SnapshotId) -> bytes:
    """Make the file of a branch or tag."""
    return b'{"snapshot":"%s"}' % str(snapshot_id).encode()


def decode_ref(data: bytes, key: str) -> SnapshotId:
    """Return the snapshot that a ref file points to. ``key`` names the file in the error, a FormatError."""
    try:
        if len(data) > _MAX_REF_FILE:
            raise ValueError
        return SnapshotId.from_str(json.loads(data)["snapshot"])
    except (ValueError, KeyError, TypeError, RecursionError):  # a bad id is a ValueError too
        raise FormatError(
            f'{key} is damaged: it must have the form {{"snapshot":"1CECHNKREP0F1RSTCMT0"}}, but it contains '
            f"{data[:80]!r}. Restore it from a copy, or write the id of the snapshot that it should point to",
            ErrorKind.DESERIALIZATION,
        ) from None
