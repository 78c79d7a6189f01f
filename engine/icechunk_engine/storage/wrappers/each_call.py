"""The base class of wrappers that do one thing around every call, such as count it or delay it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from icechunk_engine.storage.base import ObjectInfo, Version
from icechunk_engine.storage.wrappers.wrapper import WrapperStorage

WRITING_METHODS = frozenset({"put", "create", "replace", "copy", "delete"})
READING_METHODS = frozenset({"get", "get_range", "get_versioned", "list", "info"})


class StorageCall(NamedTuple):
    """One call of a storage method."""

    method: str
    keys: tuple[str, ...]
    """The key; for a copy, source and target; for a delete, all keys; for a listing, the prefix."""
    size_bytes: int = 0
    """Bytes to write; for ``get_range``, the bytes asked for; else 0."""

    @property
    def writes(self) -> bool:
        """True if the call changes the storage."""
        return self.method in WRITING_METHODS


class ObservingStorage(WrapperStorage):
    """Base of wrappers that do one thing around every call, except ``flush``, which is not a request."""

    @abstractmethod
    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        """Call ``function`` to make the call, and return its result."""

    def get(self, key: str) -> bytes:
        return self.around(StorageCall("get", (key,)), lambda: self.inner.get(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        call = StorageCall("get_range", (key,), stop - start)
        return self.around(call, lambda: self.inner.get_range(key, start, stop))

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        return self.around(StorageCall("get_versioned", (key,)), lambda: self.inner.get_versioned(key))

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        call = StorageCall("put", (key,), memoryview(data).nbytes)
        self.around(call, lambda: self.inner.put(key, data, atomic=atomic))

    def create(self, key: str, data: bytes) -> Version:
        return self.around(StorageCall("create", (key,), len(data)), lambda: self.inner.create(key, data))

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        call = StorageCall("replace", (key,), len(data))
        return self.around(call, lambda: self.inner.replace(key, data, version))

    def copy(self, source: str, target: str) -> None:
        self.around(StorageCall("copy", (source, target)), lambda: self.inner.copy(source, target))

    def delete(self, keys: Iterable[str]) -> int:
        wanted = tuple(keys)
        return self.around(StorageCall("delete", wanted), lambda: self.inner.delete(wanted))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # The whole listing is one call, made when it is first iterated.
        yield from self.around(StorageCall("list", (prefix,)), lambda: tuple(self.inner.list(prefix)))

    def info(self, key: str) -> ObjectInfo | None:
        return self.around(StorageCall("info", (key,)), lambda: self.inner.info(key))
