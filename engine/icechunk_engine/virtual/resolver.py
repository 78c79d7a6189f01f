"""Read virtual chunks: find the container, require authorisation, fetch a range, notice changed objects.

Deny by default: a location is read only when it lies in a container of the configuration and that container was
authorised by whoever opened the repository. Local files and named memory storages are read here, all others by
:mod:`.remote`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from icechunk_engine.chunk_refs import ChunkRef
from icechunk_engine.config import VirtualChunkContainer, urls
from icechunk_engine.credentials import AnyCredential
from icechunk_engine.errors import ErrorKind, ObjectNotFoundError, StorageError
from icechunk_engine.storage import MemoryStorage
from icechunk_engine.virtual import containers as rules
from icechunk_engine.virtual.remote import bucket_of, read_remote

_LOCAL = ("file:", "memory:")
LOCATION_CACHE_SIZE = 4096


class VirtualResolver:
    """Fetches ranges of virtual objects for one repository or session.

    Parameters
    ----------
    containers
        Virtual chunk containers of the configuration, by URL prefix.
    authorized
        URL prefixes that may be read, with their credentials.
    """

    def __init__(
        self,
        containers: Mapping[str, VirtualChunkContainer],
        authorized: Mapping[str, AnyCredential | None] | None = None,
    ) -> None:
        self.containers = dict(containers)
        self.authorized = {rules.with_trailing_slash(prefix): value for prefix, value in (authorized or {}).items()}
        self._readers: dict[str, _Reader] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.containers, self.authorized)

    def fetch(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        """Bytes ``start:stop`` of a virtual chunk.

        Raises
        ------
        InvalidInputError
            ``no-container-for-virtual-chunk``, ``unauthorized-virtual-chunk-container``.
        StorageError
            ``virtual-chunk-fetch``, ``invalid-object-size``, ``virtual-chunk-modified``.
        """
        assert ref.location is not None
        return self._reader(ref.location)(ref, ref.offset + start, ref.offset + stop)

    def waits(self, ref: ChunkRef) -> bool:
        """True when reading the location waits for a network."""
        location = ref.location or ""
        if location.startswith("vcc://"):
            name = urls.authority_of(location)
            location = next((known.url_prefix for known in self.containers.values() if known.name == name), "")
        return not location.startswith(_LOCAL)

    @property
    def may_wait(self) -> bool:
        """True when locations that need a network may be read here: one of their containers was authorised."""
        return any(not prefix.lower().startswith(_LOCAL) for prefix in self.authorized)

    def _reader(self, location: str) -> _Reader:
        reader = self._readers.get(location)
        if reader is None:
            url, container = rules.resolve_location(location, self.containers)
            credential = rules.authorize(container, self.authorized)
            reader = _reader_for(url, container, credential)
            if len(self._readers) >= LOCATION_CACHE_SIZE:
                self._readers.clear()
            self._readers[location] = reader
        return reader


_Reader = Callable[[ChunkRef, int, int], bytes]


def _reader_for(url: str, container: VirtualChunkContainer, credential: AnyCredential | None) -> _Reader:
    scheme = url.partition("://")[0]
    if scheme == "file":
        path = rules.location_to_path(url)
        return lambda ref, start, stop: _read_file(path, ref, start, stop)
    if scheme == "memory":
        name, _, key = url.removeprefix("memory://").partition("/")
        return lambda ref, start, stop: _read_memory(name, key, ref, start, stop)
    bucket, key = bucket_of(url, container, credential), rules.location_to_key(url)
    return lambda ref, start, stop: read_remote(bucket, key, url, ref, start, stop)


def _read_file(path: str, ref: ChunkRef, start: int, stop: int) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise StorageError(
            f"cannot open {path}, which a virtual chunk refers to: {error.strerror}. Put the file back, or correct "
            f"the references",
            ErrorKind.VIRTUAL_CHUNK_FETCH,
        ) from error
    try:
        if ref.etag is not None or ref.last_modified:
            _require_unchanged(path, os.fstat(fd), ref)
        data = _read_exactly(fd, start, stop)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", ErrorKind.VIRTUAL_CHUNK_FETCH) from error
    finally:
        os.close(fd)
    return _require_length(path, data, start, stop)


def _read_exactly(fd: int, start: int, stop: int) -> bytes:
    data = os.pread(fd, stop - start, start)
    if len(data) == stop - start or not data:
        return data
    parts = [data]  # one read returns 2 GiB at most
    while (have := sum(map(len, parts))) < stop - start and (more := os.pread(fd, stop - start - have, start + have)):
        parts.append(more)
    return b"".join(parts)


def _require_unchanged(path: str, status: os.stat_result, ref: ChunkRef) -> None:
    """Etag first, as the format says; times are compared at whole seconds."""
    if ref.etag is not None:
        etag = f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"
        same = ref.etag.strip('"') in (etag, "*")
    else:
        same = status.st_mtime_ns // 1_000_000_000 <= ref.last_modified
    if not same:
        raise StorageError(
            f"{path} was changed after its chunks were referenced. Put the old file back, or import it again",
            ErrorKind.VIRTUAL_CHUNK_MODIFIED,
        )


def _read_memory(name: str, key: str, ref: ChunkRef, start: int, stop: int) -> bytes:
    try:
        data = MemoryStorage.named(name).get(key)
    except ObjectNotFoundError:
        raise StorageError(
            f"no object {key!r} in memory storage {name!r}, which a virtual chunk refers to",
            ErrorKind.VIRTUAL_CHUNK_FETCH,
        ) from None
    return _require_length(f"memory://{name}/{key}", data[start:stop], start, stop)


def _require_length(where: str, data: bytes, start: int, stop: int) -> bytes:
    if len(data) != stop - start:
        raise StorageError(
            f"{where} ends before byte {stop}, which a virtual chunk refers to: it was truncated or replaced. Put the "
            f"old file back, or import it again",
            ErrorKind.INVALID_OBJECT_SIZE if data else ErrorKind.VIRTUAL_CHUNK_FETCH,
        )
    return data
