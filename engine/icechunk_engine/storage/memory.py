"""Objects in the memory of this process, for tests, experiments and repositories that do not need to outlive it."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import ClassVar, Self
from weakref import WeakValueDictionary

from icechunk_engine._runtime.locks import MemoryLock, memory_lock, run_in_child
from icechunk_engine.config import StorageSettings, default_storage_settings
from icechunk_engine.errors import ErrorKind, ObjectNotFoundError, StorageError, VersionMismatchError
from icechunk_engine.storage.base import ObjectInfo, Storage, Version
from icechunk_engine.storage.ranges import check_range, too_short

_ONE_PROCESS = (
    "A memory storage lives in one process only. To share a repository between processes, use "
    "local_filesystem_storage or an object store"
)


class MemoryStorage(Storage):
    """A dictionary that keeps the whole storage contract, compare-and-swap included.

    A pickled copy is the same storage, as long as it stays in the process and the original lives. Unpickling in
    another process raises StorageError. A forked child can read what existed when it was forked. It cannot write,
    because its parent would never see what it wrote.
    """

    _live: ClassVar[WeakValueDictionary[str, MemoryStorage]] = WeakValueDictionary()
    _named: ClassVar[dict[str, MemoryStorage]] = {}
    _registry_lock: ClassVar[MemoryLock] = memory_lock()

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._name = self._token
        self._objects: dict[str, tuple[bytes, Version, int]] = {}
        self._versions = itertools.count(1)
        self._lock = memory_lock()
        self._forked = False
        self._live[self._token] = self

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the storage of that name in this process. The first call makes it; it lives as long as the
        process."""
        made = cls()
        made._name = name
        with cls._registry_lock:
            storage = cls._named.setdefault(name, made)
        assert isinstance(storage, cls)
        return storage

    @property
    def identity(self) -> str:
        return f"memory://{self._name}"

    def default_settings(self) -> StorageSettings:
        return default_storage_settings("memory")

    def get(self, key: str) -> bytes:
        return self._object(key)[0]

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        data = self._object(key)[0]
        if stop > len(data):
            raise too_short(f"{key!r} in {self.identity}", len(data), stop)
        return data[start:stop]

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        data, version, _ = self._object(key)
        return data, version

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        with self._writing():
            self._store(key, data)

    def create(self, key: str, data: bytes) -> Version:
        with self._writing():
            if key in self._objects:
                raise VersionMismatchError(f"{key!r} already exists in {self.identity}. Read it and decide again")
            return self._store(key, data)

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        with self._writing():
            current = self._objects.get(key)
            if current is None or current[1] != version:
                raise VersionMismatchError(
                    f"{key!r} in {self.identity} is not the version that was read. Read it again"
                )
            return self._store(key, data)

    def copy(self, source: str, target: str) -> None:
        with self._writing():
            self._store(target, self._object(source)[0])

    def delete(self, keys: Iterable[str]) -> int:
        wanted = tuple(keys)
        with self._writing():
            return sum(self._objects.pop(key, None) is not None for key in wanted)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            objects = tuple(self._objects.items())
        for key, (data, _, modified_us) in objects:
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), modified_us)

    def clock_lower_bound_us(self) -> int:
        return time.time_ns() // 1000

    def info(self, key: str) -> ObjectInfo | None:
        found = self._objects.get(key)
        return None if found is None else ObjectInfo(key, len(found[0]), found[2])

    def __reduce__(self) -> tuple[object, ...]:
        return _same_process_storage, (self._token, self.identity)

    def _object(self, key: str) -> tuple[bytes, Version, int]:
        found = self._objects.get(key)
        if found is None:
            raise ObjectNotFoundError(f"no object {key!r} in {self.identity}")
        return found

    def _store(self, key: str, data: bytes | memoryview) -> Version:
        """Store an object; the caller holds the lock. ``bytes`` copies only what could change later."""
        version = Version(str(next(self._versions)))
        self._objects[key] = (bytes(data), version, time.time_ns() // 1000)
        return version

    def _writing(self) -> MemoryLock:
        if self._forked:
            raise StorageError(
                f"{self.identity} was made before this process was forked, so writes to it would be lost. "
                f"{_ONE_PROCESS}",
                ErrorKind.STORAGE_CONFIG,
            )
        return self._lock


def _same_process_storage(token: str, identity: str) -> MemoryStorage:
    """Find the storage that was pickled in this process."""
    storage = MemoryStorage._live.get(token)
    if storage is None:
        raise StorageError(
            f"{identity} does not exist in this process, or no longer. {_ONE_PROCESS}", ErrorKind.STORAGE_CONFIG
        )
    return storage


@run_in_child
def _mark_forked() -> None:
    for storage in tuple(MemoryStorage._live.values()):
        storage._forked = True
