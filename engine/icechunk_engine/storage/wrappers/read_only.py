"""A storage that refuses writes."""

from __future__ import annotations

from collections.abc import Iterable

from icechunk_engine.errors import ErrorKind, ReadOnlyError
from icechunk_engine.storage.base import Storage, Version
from icechunk_engine.storage.wrappers.wrapper import WrapperStorage


class ReadOnlyStorage(WrapperStorage):
    """Refuses every write with ReadOnlyError (``read-only-storage``)."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.read_only = True

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        raise self._refusal(f"write {key!r}")

    def create(self, key: str, data: bytes) -> Version:
        raise self._refusal(f"create {key!r}")

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        raise self._refusal(f"replace {key!r}")

    def copy(self, source: str, target: str) -> None:
        raise self._refusal(f"copy {source!r}")

    def delete(self, keys: Iterable[str]) -> int:
        raise self._refusal("delete objects")

    def _refusal(self, action: str) -> ReadOnlyError:
        return ReadOnlyError(
            f"cannot {action}: the storage {self.identity} was opened for reading only. Open it for writing",
            ErrorKind.READ_ONLY_STORAGE,
        )
