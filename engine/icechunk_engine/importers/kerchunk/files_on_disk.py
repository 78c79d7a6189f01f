"""Look up the size and the modification time of local files."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.kerchunk.target_urls import listed
from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.virtual.containers import location_to_path


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Size of a file in bytes, and its modification time in Unix seconds, rounded up."""

    size_bytes: int
    modified_s: int


def file_facts(locations: Sequence[str]) -> list[FileFacts | None]:
    """Return facts about each location, or None if it is not a local file.

    Raises
    ------
    InvalidInputError
        ``virtual-chunk-fetch``: files are missing. The message lists them.
    """
    facts: list[FileFacts | None] = []
    missing = []
    for location in locations:
        if not location.startswith("file://"):
            facts.append(None)
            continue
        found = _stat(location_to_path(location))
        if isinstance(found, str):
            missing.append(f"{short_repr(location_to_path(location))} ({found})")
        else:
            facts.append(found)
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of the local files in the reference set cannot be used: {listed(missing)}. "
            f"Put them there, or pass check_files=False if the files are on another machine",
            ErrorKind.VIRTUAL_CHUNK_FETCH,
        )
    return facts


def _stat(path: str) -> FileFacts | str:
    try:
        status = os.stat(path)
    except OSError as error:
        return error.strerror or "cannot be opened"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return FileFacts(status.st_size, -(-status.st_mtime_ns // 1_000_000_000))
