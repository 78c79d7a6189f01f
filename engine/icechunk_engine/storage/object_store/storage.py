"""A repository in an object store: :class:`ObjectStorage` keeps the storage contract with requests.

The module only chooses. :mod:`.reading` and :mod:`.writing` make the requests, :mod:`.conditional_writes` settles
conditional ones, and :mod:`.condition_probes` refuses stores that ignore conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from icechunk_engine.config import StorageSettings, default_storage_settings
from icechunk_engine.storage.base import ObjectInfo, Storage, Version
from icechunk_engine.storage.object_store.buckets import Bucket, with_settings
from icechunk_engine.storage.object_store.condition_probes import require_conditions
from icechunk_engine.storage.object_store.conditional_writes import write_as_single_writer, write_if
from icechunk_engine.storage.object_store.objects import ObjectsBelow
from icechunk_engine.storage.object_store.reading import list_objects, read_info, read_object, read_range
from icechunk_engine.storage.object_store.writing import copy_object, delete_objects, put_object
from icechunk_engine.storage.ranges import PartSizes, check_range, too_short

_DEFAULTS = default_storage_settings("object_store")


class ObjectStorage(Storage):
    """The objects below a prefix of a bucket.

    Parameters
    ----------
    bucket
        The bucket, and with which credentials to access it.
    prefix
        Without slashes at its ends; empty for the whole bucket.
    settings
        Retries, timeouts, storage classes, conditional writes.

    Notes
    -----
    :meth:`delete` of more than 16 keys counts missing ones as removed, because object stores do not report them.
    """

    is_remote = True

    def __init__(self, bucket: Bucket, prefix: str = "", settings: StorageSettings = _DEFAULTS) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.settings = settings
        self._place = ObjectsBelow(with_settings(bucket, settings), self.prefix, settings, PartSizes.of(settings))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.bucket, self.prefix, self.settings)

    @property
    def identity(self) -> str:
        return self._place.identity

    def with_settings(self, settings: StorageSettings) -> ObjectStorage:
        merged = _DEFAULTS.merge(settings)
        return self if merged == self.settings else type(self)(self.bucket, self.prefix, merged)

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        return read_object(self._place, key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        data, found = read_object(self._place, key)
        return data, found.version

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        place = self._place
        if start == stop:  # no request can ask for zero bytes
            found = self.info(key)
            if found is None:
                raise place.missing(key)
            if found.size_bytes < stop:
                raise too_short(place.shown(key), found.size_bytes, stop)
            return b""
        return read_range(place.bucket, place.path(key), start, stop, place.shown(key), place.sizes).data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return list_objects(self._place, prefix)

    def info(self, key: str) -> ObjectInfo | None:
        return read_info(self._place, key)

    def clock_lower_bound_us(self) -> int | None:
        return self._place.clock.lower_bound_us()

    # --- writing -----------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        require_conditions(self._place)
        put_object(self._place, key, data)

    def create(self, key: str, data: bytes) -> Version:
        if not self.settings.unsafe_use_conditional_create:
            return write_as_single_writer(self._place, key, data, None)
        require_conditions(self._place)
        return write_if(self._place, key, data, None)

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        if not self.settings.unsafe_use_conditional_update:
            return write_as_single_writer(self._place, key, data, version)
        require_conditions(self._place)
        return write_if(self._place, key, data, version)

    def copy(self, source: str, target: str) -> None:
        require_conditions(self._place)
        copy_object(self._place, source, target)

    def delete(self, keys: Iterable[str]) -> int:
        return delete_objects(self._place, keys)
