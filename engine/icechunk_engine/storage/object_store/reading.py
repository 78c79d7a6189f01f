"""How objects and ranges of them are read: large ones in parts, with several requests at a time.

**What is always true.** All bytes that one call returns are of one version of the object.

**Why it holds.** Each part comes with the object's etag. If the etags differ, the object was replaced meanwhile, and
it is read again with one request. If a server sends no etag that identifies a version, its objects are read with one
request.

**What would break it.** Trusting weak etags. Adding a condition to the requests instead of comparing the answers:
stores spell etags in different ways and would refuse good requests.
"""

from __future__ import annotations

from collections.abc import Buffer, Callable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from icechunk_engine._runtime.pools import map_parts
from icechunk_engine.config import default_storage_settings
from icechunk_engine.errors import ErrorKind, ObjectNotFoundError, StorageError
from icechunk_engine.storage.base import ObjectInfo
from icechunk_engine.storage.object_store import metadata
from icechunk_engine.storage.object_store.buckets import Bucket
from icechunk_engine.storage.object_store.client import ObjectRequests
from icechunk_engine.storage.object_store.lost_answers import WRITE_ID_SPELLINGS, FoundObject
from icechunk_engine.storage.object_store.objects import ObjectsBelow
from icechunk_engine.storage.object_store.store_errors import UnsatisfiableRangeError
from icechunk_engine.storage.ranges import PartSizes, too_short

if TYPE_CHECKING:
    from icechunk_engine.storage.object_store.obstore_types import GetResult

_DEFAULT_SIZES = PartSizes.of(default_storage_settings("object_store"))

_WITHOUT_ETAGS: set[str] = set()
"""Servers whose answers do not say for sure which version they are of, so that parts cannot be put together."""


class Part(NamedTuple):
    """The answer to one request. The bytes may still be in a buffer of the client."""

    data: Buffer
    etag: str | None
    last_modified: datetime


class RangeRead(NamedTuple):
    """Bytes of an object, and which version they are of."""

    data: bytes
    etag: str | None
    last_modified: datetime


type PartReader = Callable[[int, int], Part]
"""Reads a range with one request."""


def read_object(place: ObjectsBelow, key: str, *, in_parts: bool = True) -> tuple[bytes, FoundObject]:
    """Read an object. For a large one, the first answer gives the first part while the others are requested."""
    requests = place.requests(key)
    result = requests.get()
    with requests:
        attributes, meta = result.attributes, result.meta
        write_id = next((attributes[name] for name in WRITE_ID_SPELLINGS if name in attributes), None)
        found = FoundObject(metadata.version_of(place.bucket.kind, meta), write_id)
        place.clock.observe(metadata.modified_us(meta))
        first, *others = place.sizes.cut(0, meta["size"])
        if not others or not in_parts or not metadata.identifies_version(meta["e_tag"]):
            return result.bytes().to_bytes(), found

    def read(part: tuple[int, int]) -> Part:
        if part != first:
            return _read_part(place.bucket, requests.path, requests.shown, *part)
        with requests:
            return Part(_first_bytes(result, first[1]), meta["e_tag"], meta["last_modified"])

    try:
        whole = _join(map_parts(read, [first, *others]))
    except StorageError as error:
        if error.kind is not ErrorKind.INVALID_OBJECT_SIZE:
            raise
        whole = None  # replaced by a shorter object, which is as good
    return read_object(place, key, in_parts=False) if whole is None else (whole.data, found)


def read_range(
    bucket: Bucket,
    path: str,
    start: int,
    stop: int,
    shown: str,
    sizes: PartSizes = _DEFAULT_SIZES,
    *,
    read_part: PartReader | None = None,
) -> RangeRead:
    """Read bytes ``start:stop`` (at least one) of an object; a large range in parts at the same time.

    Parameters
    ----------
    shown
        Names the object in errors.
    read_part
        Reads ranges of the object in another way than through obstore.

    Raises
    ------
    ObjectNotFoundError
        No such object.
    StorageError
        ``invalid-object-size``, and what the store reports.
    """
    read = read_part or partial(_read_part, bucket, path, shown)
    parts = [(start, stop)] if bucket.url in _WITHOUT_ETAGS else sizes.cut(start, stop)
    whole = _join(map_parts(lambda part: read(*part), parts))
    if whole is not None and len(parts) > 1 and not metadata.identifies_version(whole.etag):
        _WITHOUT_ETAGS.add(bucket.url)
        whole = None
    if whole is None:
        part = read(start, stop)
        whole = RangeRead(bytes(part.data), part.etag, part.last_modified)
    return whole


def read_info(place: ObjectsBelow, key: str) -> ObjectInfo | None:
    """Return size and time of an object, None if it does not exist."""
    try:
        found = metadata.info_of(key, place.requests(key).head())
    except ObjectNotFoundError:
        return None
    place.clock.observe(found.last_modified_us)
    return found


def list_objects(place: ObjectsBelow, prefix: str) -> Iterator[ObjectInfo]:
    """List objects whose key starts with a text. The client lists directories, so the rest is filtered here."""
    if prefix.startswith("/") or "//" in prefix:
        return
    directory = place.path(prefix.rpartition("/")[0])
    for page in ObjectRequests(place.bucket, directory, place.shown(prefix)).pages():
        for meta in page:
            key = place.key(meta["path"])
            if key.startswith(prefix):
                yield metadata.info_of(key, meta)


def _join(parts: list[Part]) -> RangeRead | None:
    """Put parts together; None if they are of several versions because the object was replaced meanwhile."""
    first = parts[0]
    if any(part.etag != first.etag for part in parts):
        return None
    return RangeRead(b"".join([part.data for part in parts]), first.etag, first.last_modified)


def _first_bytes(result: GetResult, stop: int) -> Buffer:
    """Read the first bytes of an answer, and no more."""
    pieces, size = [], 0
    for piece in result.stream(min_chunk_size=stop):
        pieces.append(piece)
        size += len(piece)
        if size >= stop:
            break
    return memoryview(b"".join(pieces))[:stop]


def _read_part(bucket: Bucket, path: str, shown: str, start: int, stop: int) -> Part:
    """Read a range with one request. If the object is shorter, say how long it is."""
    requests = ObjectRequests(bucket, path, shown)
    try:
        result = requests.get_range(start, stop)
        with requests:
            meta = result.meta
            size_bytes = meta["size"]
            if stop <= size_bytes:
                return Part(result.bytes(), meta["e_tag"], meta["last_modified"])
    except UnsatisfiableRangeError:
        size_bytes = requests.head()["size"]
    raise too_short(shown, size_bytes, stop)
