"""The storage contract: what the engine needs of a place that keeps objects.

Every backend promises, and :mod:`icechunk_engine.testing.storage_suite` checks:

1. *Whole objects.* A reader sees an object complete in one of its versions, or not at all; never a part.
2. *Read after write.* When a write has returned, every later read and listing, from any process, sees it.
3. *Exactly one winner.* Of any number of concurrent :meth:`Storage.create` calls for one key, or
   :meth:`Storage.replace` calls on one version, from any number of processes, exactly one returns; the others raise
   :class:`~icechunk_engine.errors.VersionMismatchError` and change nothing.
4. *Durable.* What a returned write stored survives the death of the process. It also survives a crash of the
   machine, as far as the file system honours fsync, once the writing process has called :meth:`Storage.flush`; this
   holds at once for :meth:`Storage.create` and :meth:`Storage.replace`, which flush before they write. What could
   not be made durable, :meth:`Storage.not_durable` names until it is written again: nothing that is published may
   refer to it.
5. *Versions never repeat.* The version of an object whose content was written anew differs from those before,
   or stands for byte-identical content.

Calls are synchronous and thread-safe. A storage whose calls wait for a network says so (``is_remote``), and the engine
then runs them on its bounded pool of threads (:mod:`icechunk_engine._runtime.pools`); calls of the others are made in
place.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, NamedTuple, NewType

from icechunk_engine.config import StorageSettings, default_storage_settings

Version = NewType("Version", str)
"""Opaque name of one version of one object (an etag, a generation, a content hash)."""

PROBE_PREFIX = "doctor/"
"""Below it lie objects that a place is tried with. They are removed at once, where that is allowed and works, and are
never part of a repository."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ObjectInfo(NamedTuple):
    """One row of a listing."""

    key: str
    size_bytes: int
    last_modified_us: int
    """Unix microseconds by the storage's clock."""


@dataclass(frozen=True, slots=True)
class StorageObjectInfo:
    """One object, as :meth:`Storage.list_objects_metadata` shows it."""

    key: str
    size_bytes: int
    created_at: datetime


class Storage(ABC):
    """Keys to objects under one prefix. Keys are relative, ``/``-separated, and hold ASCII only.

    Subclasses are picklable (a memory storage within its process) and compare equal when they are the same place.
    """

    is_remote: bool = False
    """True when calls wait for a network."""

    read_only: bool = False
    """True when every write raises ReadOnlyError (``read-only-storage``)."""

    # By official's names, from :mod:`.constructors` and the functions of the package, which makes them known here.
    new_azure_blob: ClassVar[Callable[..., Storage]]
    new_gcs: ClassVar[Callable[..., Storage]]
    new_hf: ClassVar[Callable[..., Storage]]
    new_http: ClassVar[Callable[..., Storage]]
    new_in_memory: ClassVar[Callable[..., Storage]]
    new_local_filesystem: ClassVar[Callable[..., Storage]]
    new_r2: ClassVar[Callable[..., Storage]]
    new_redirect: ClassVar[Callable[..., Storage]]
    new_s3: ClassVar[Callable[..., Storage]]
    new_s3_object_store: ClassVar[Callable[..., Storage]]
    new_tigris: ClassVar[Callable[..., Storage]]

    @property
    @abstractmethod
    def identity(self) -> str:
        """Names the place, equal for two storages at one place; holds no secret. Keys shared caches and tokens."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectNotFoundError."""

    @abstractmethod
    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes ``start:stop``, exactly ``stop - start`` of them.

        Raises
        ------
        ObjectNotFoundError
            No such object.
        StorageError
            ``invalid-object-size``: the object ends before ``stop``.
        """

    @abstractmethod
    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        """The whole object and the version that it is. Raises ObjectNotFoundError."""

    @abstractmethod
    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        """Write an object, or overwrite it.

        Parameters
        ----------
        atomic
            False: a listing may show a part of the object while it is written, and a writer that is killed may leave
            that part behind. Pass False only for a key that nobody can know yet, such as that of a new chunk.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> Version:
        """Write only if there is no such object. Raises VersionMismatchError."""

    @abstractmethod
    def replace(self, key: str, data: bytes, version: Version) -> Version:
        """Write only over exactly that version (compare and swap). Raises VersionMismatchError."""

    @abstractmethod
    def copy(self, source: str, target: str) -> None:
        """Copy an object inside this storage. Raises ObjectNotFoundError."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> int:
        """Remove objects, those that are there; returns how many were removed.

        Where a store does not tell, all keys of a large deletion count as removed.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with ``prefix`` (text, not a directory), in no particular order."""

    @abstractmethod
    def info(self, key: str) -> ObjectInfo | None:
        """Size and time of one object, None if it is not there."""

    def flush(self) -> None:  # noqa: B027 - most storages have nothing to do
        """Wait until all that this process has written is durable.

        A process that hands over what it wrote, for another process to commit, calls this before. Free when there is
        nothing to flush. Raises StorageError (``not-durable``) while :meth:`not_durable` names something that this
        process wrote; everything else is durable all the same.
        """

    def not_durable(self) -> Mapping[str, str]:
        """Keys of objects that may not survive a crash of the machine though they were flushed, with the reasons.

        A key that ends in ``/`` stands for all objects below it, the empty key for all. Objects stay on this list
        until they are written again.
        """
        return {}

    def clock_lower_bound_us(self) -> int | None:
        """Return a time that the store's clock has reached, in Unix microseconds; None if unknown.

        The bound comes from earlier answers. No request is made for it.
        """
        return None

    def commit_queue(self) -> AbstractContextManager[None]:
        """Held while a commit is prepared and swapped in, so that others need not prepare what will lose.

        Advice only, and only where it is cheap: whoever has waited a while goes on without. What keeps commits safe
        is :meth:`replace`.
        """
        return nullcontext()

    def with_settings(self, settings: StorageSettings) -> Storage:
        """The same place, used with other retries, timeouts and storage classes, where these mean something."""
        return self

    def default_settings(self) -> StorageSettings:
        """What holds for this storage where nothing is configured."""
        return default_storage_settings("object_store")

    def list_objects(
        self, settings: StorageSettings | None = None, prefix: str | None = None
    ) -> Sequence[tuple[str, int]]:
        """Keys and sizes in bytes of all objects, or of those below a directory; see :meth:`list_objects_metadata`."""
        return [(found.key, found.size_bytes) for found in self.list_objects_metadata(settings, prefix)]

    def list_objects_metadata(
        self, settings: StorageSettings | None = None, prefix: str | None = None
    ) -> Sequence[StorageObjectInfo]:
        """All objects, sorted by key.

        Parameters
        ----------
        settings
            For the requests; by default the storage's own.
        prefix
            Only those below this directory, such as ``snapshots``, with keys relative to it.
        """
        storage = self if settings is None else self.with_settings(settings)
        start = f"{prefix.strip('/')}/" if prefix and prefix.strip("/") else ""
        found = [info for info in storage.list(start) if not info.key.startswith(PROBE_PREFIX)]
        return [
            StorageObjectInfo(
                info.key[len(start) :], info.size_bytes, _EPOCH + timedelta(microseconds=info.last_modified_us)
            )
            for info in sorted(found)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.identity}>"

    def _repr_html_(self) -> str:
        rows = {"type": type(self).__name__, "place": self.identity, "writable": "no" if self.read_only else "yes"}
        cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
        return f"<table><caption>icechunk Storage</caption>{cells}</table>"
