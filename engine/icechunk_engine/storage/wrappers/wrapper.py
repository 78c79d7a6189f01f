"""The base class of wrappers: it passes every call on unchanged.

A wrapper has the identity of the storage it wraps, so both share caches. :class:`.prefix.PrefixStorage` is the
exception, because it is another place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager

from icechunk_engine.config import StorageSettings
from icechunk_engine.storage.base import FlushPromise, ObjectInfo, Storage, Version


class WrapperStorage(Storage):
    """Passes every call on to ``inner``. Subclasses override the calls that they change."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.read_only = inner.read_only

    _own_is_remote: bool | None = None

    @property
    def is_remote(self) -> bool:
        """True if calls go over a network: as set on this wrapper, else as ``inner`` says now.

        It is not copied, because that of a LatencyStorage can change while a repository uses it.
        """
        return self.inner.is_remote if self._own_is_remote is None else self._own_is_remote

    @is_remote.setter
    def is_remote(self, value: bool) -> None:
        self._own_is_remote = value

    @property
    def identity(self) -> str:
        return self.inner.identity

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        return self.inner.get_range(key, start, stop)

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        return self.inner.get_versioned(key)

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        self.inner.put(key, data, atomic=atomic)

    def create(self, key: str, data: bytes) -> Version:
        return self.inner.create(key, data)

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        return self.inner.replace(key, data, version)

    def copy(self, source: str, target: str) -> None:
        self.inner.copy(source, target)

    def delete(self, keys: Iterable[str]) -> int:
        return self.inner.delete(keys)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def info(self, key: str) -> ObjectInfo | None:
        return self.inner.info(key)

    def default_settings(self) -> StorageSettings:
        return self.inner.default_settings()

    def flush(self) -> None:
        self.inner.flush()

    def not_durable(self) -> Mapping[str, str]:
        return self.inner.not_durable()

    def promise_flush(self) -> FlushPromise | None:
        return self.inner.promise_flush()

    def leaves_flush_to(self, promise: FlushPromise) -> bool:
        return self.inner.leaves_flush_to(promise)

    def keep_promises(self, promised: Mapping[FlushPromise, Callable[[], Iterable[str]]]) -> None:
        self.inner.keep_promises(promised)

    def clock_lower_bound_us(self) -> int | None:
        return self.inner.clock_lower_bound_us()

    def commit_queue(self) -> AbstractContextManager[None]:
        return self.inner.commit_queue()

    def with_settings(self, settings: StorageSettings) -> Storage:
        inner = self.inner.with_settings(settings)
        if inner is self.inner:
            return self
        other = object.__new__(type(self))  # not by the constructor: counters stay shared
        other.__dict__.update(self.__dict__, inner=inner)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"
