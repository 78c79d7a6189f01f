"""Read virtual chunks: find the container, check the authorisation, fetch a range, and detect changed objects.

Access is denied by default. A location is read only if it is in a configured container and the reader of the
repository authorised that container. This module reads named memory storages, :mod:`.local_files` reads local files,
and :mod:`.remote` reads everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from icechunk_engine.columns.chunk_refs import ChunkRef
from icechunk_engine.config import VirtualChunkContainer, virtual_urls
from icechunk_engine.credentials import AnyCredential
from icechunk_engine.errors import ErrorKind, ObjectNotFoundError, StorageError
from icechunk_engine.storage import MemoryStorage
from icechunk_engine.virtual import containers as rules
from icechunk_engine.virtual.authorisation import Granted, authorize
from icechunk_engine.virtual.local_files import LocalFile, require_length
from icechunk_engine.virtual.remote import bucket_of, part_reader_of, read_remote

_LOCAL = ("file:", "memory:")
LOCATION_CACHE_SIZE = 4096


class VirtualResolver:
    """Reads ranges of virtual chunks for one repository or session.

    Parameters
    ----------
    containers
        Configured virtual chunk containers by URL prefix.
    authorized
        Credentials by authorised URL prefix.
    """

    def __init__(
        self,
        containers: Mapping[str, VirtualChunkContainer],
        authorized: Mapping[str, AnyCredential | None] | None = None,
    ) -> None:
        self.containers = dict(containers)
        self.authorized = {rules.with_trailing_slash(prefix): value for prefix, value in (authorized or {}).items()}
        self._readers: dict[str, _Reader] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.containers, self.authorized)

    def fetch(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        """Read bytes ``start:stop`` of a virtual chunk.

        Raises
        ------
        InvalidInputError
            ``no-container-for-virtual-chunk``, ``unauthorized-virtual-chunk-container``.
        StorageError
            ``virtual-chunk-fetch``, ``invalid-object-size``, ``virtual-chunk-modified``.
        """
        assert ref.location is not None
        return self._reader(ref.location)(ref, ref.offset + start, ref.offset + stop)

    def is_remote(self, ref: ChunkRef) -> bool:
        """Return True if reading the location waits for a network."""
        location = ref.location or ""
        if location.startswith("vcc://"):
            name = virtual_urls.authority_of(location)
            location = next((known.url_prefix for known in self.containers.values() if known.name == name), "")
        return not location.startswith(_LOCAL)

    @property
    def may_be_remote(self) -> bool:
        """True if a container on a network is authorised."""
        return any(not prefix.lower().startswith(_LOCAL) for prefix in self.authorized)

    def _reader(self, location: str) -> _Reader:
        reader = self._readers.get(location)
        if reader is None:
            url, container = rules.resolve_location(location, self.containers)
            reader = _reader_for(url, container, authorize(container, self.authorized))
            if len(self._readers) >= LOCATION_CACHE_SIZE:
                self._readers.clear()
            self._readers[location] = reader
        return reader


_Reader = Callable[[ChunkRef, int, int], bytes]


def _reader_for(url: str, container: VirtualChunkContainer, granted: Granted) -> _Reader:
    scheme = url.partition("://")[0]
    if scheme == "file":
        path, prefix = rules.location_to_path(url), container.url_prefix
        places = (rules.normalize_location(prefix), *granted.places)
        folders = [rules.location_to_path(place) for place in places if place.startswith("file:")]
        return LocalFile(path, folders, prefix)
    if scheme == "memory":
        name, _, key = url.removeprefix("memory://").partition("/")
        return lambda ref, start, stop: _read_memory(name, key, ref, start, stop)
    bucket, key = bucket_of(url, container, granted.credential), rules.location_to_key(url)
    part_reader = part_reader_of(bucket, key, url, granted.places, container.url_prefix)
    return lambda ref, start, stop: read_remote(bucket, key, url, ref, start, stop, part_reader)


def _read_memory(name: str, key: str, ref: ChunkRef, start: int, stop: int) -> bytes:
    try:
        data = MemoryStorage.named(name).get(key)
    except ObjectNotFoundError:
        raise StorageError(
            f"error fetching virtual reference: memory storage {name!r} has no object {key!r} for a virtual chunk. "
            f"Put it back, or correct the chunk reference",
            ErrorKind.VIRTUAL_CHUNK_FETCH,
        ) from None
    return require_length(f"memory://{name}/{key}", data[start:stop], start, stop)
