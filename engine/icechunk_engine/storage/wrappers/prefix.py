"""A part of a storage: the objects below a prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from icechunk_engine.storage.base import FlushPromise, ObjectInfo, Storage, Version
from icechunk_engine.storage.wrappers.wrapper import WrapperStorage


class PrefixStorage(WrapperStorage):
    """The part of a storage below ``prefix/``, with keys relative to it."""

    def __init__(self, inner: Storage, prefix: str) -> None:
        super().__init__(inner)
        self.prefix = prefix.strip("/")
        self._start = f"{self.prefix}/" if self.prefix else ""

    @property
    def identity(self) -> str:
        return f"{self.inner.identity.rstrip('/')}/{self.prefix}" if self.prefix else self.inner.identity

    def get(self, key: str) -> bytes:
        return self.inner.get(self._start + key)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        return self.inner.get_range(self._start + key, start, stop)

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        return self.inner.get_versioned(self._start + key)

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        self.inner.put(self._start + key, data, atomic=atomic)

    def create(self, key: str, data: bytes) -> Version:
        return self.inner.create(self._start + key, data)

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        return self.inner.replace(self._start + key, data, version)

    def copy(self, source: str, target: str) -> None:
        self.inner.copy(self._start + source, self._start + target)

    def delete(self, keys: Iterable[str]) -> int:
        return self.inner.delete(self._start + key for key in keys)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        n = len(self._start)
        for found in self.inner.list(self._start + prefix):
            yield found._replace(key=found.key[n:])

    def info(self, key: str) -> ObjectInfo | None:
        found = self.inner.info(self._start + key)
        return None if found is None else found._replace(key=key)

    def not_durable(self) -> Mapping[str, str]:
        mine: dict[str, str] = {}
        for key, reason in self.inner.not_durable().items():
            if key.startswith(self._start):
                mine[key.removeprefix(self._start)] = reason
            elif key == "" or (key.endswith("/") and self._start.startswith(key)):
                mine[""] = reason
        return mine

    def keep_promises(self, promised: Mapping[FlushPromise, Callable[[], Iterable[str]]]) -> None:
        self.inner.keep_promises({promise: partial(self._outer, keys) for promise, keys in promised.items()})

    def _outer(self, keys: Callable[[], Iterable[str]]) -> Iterator[str]:
        return (self._start + key for key in keys())

    def __repr__(self) -> str:
        return f"PrefixStorage({self.inner!r}, {self.prefix!r})"
