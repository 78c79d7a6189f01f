"""The storage contract: what the engine needs of a place that keeps objects.

Every storage promises the following, and :mod:`icechunk_engine.testing.storage_suite` checks it:

1. *Whole objects.* A reader sees an object complete in one of its versions, or not at all. It never sees a part.
2. *Read after write.* When a write has returned, every later read and listing, from any process, sees it.
3. *Exactly one winner.* Of any number of concurrent :meth:`Storage.create` calls for one key, or
   :meth:`Storage.replace` calls on one version, from any number of processes, exactly one returns. The others raise
   :class:`~icechunk_engine.errors.VersionMismatchError` and change nothing.
4. *Durable.* What a write has stored survives the death of the process. After the writing process has called
   :meth:`Storage.flush`, it also survives a crash of the machine, if the file system honours fsync.
   :meth:`Storage.create` and :meth:`Storage.replace` flush before they write, so for them this holds at once.
   :meth:`Storage.not_durable` names what could not be made durable, until it is written again. Nothing that is
   published may refer to it. A process can leave the flush to another one that has promised it
   (:meth:`Storage.promise_flush`).
5. *Versions never repeat.* When an object is written again, its version differs from all versions before, unless the
   content is byte-identical.

Calls are synchronous and thread-safe. If ``is_remote`` is True, the engine makes the calls on its bounded pool of
threads (:mod:`icechunk_engine._runtime.pools`). Otherwise it makes them in the calling thread.
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
from icechunk_engine.errors import ErrorKind, StorageError

Version = NewType("Version", str)
"""Opaque name of one version of one object (an etag, a generation, a content hash)."""

FlushPromise = NewType("FlushPromise", str)
"""Opaque name of a process's promise to flush what other processes write (:meth:`Storage.promise_flush`)."""

PROBE_PREFIX = "doctor/"
"""Keys of test objects begin with this. They are removed at once if possible, and are never part of a repository."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ObjectInfo(NamedTuple):
    """One row of a listing."""

    key: str
    size_bytes: int
    last_modified_us: int
    """Unix microseconds by the clock of the storage."""


@dataclass(frozen=True, slots=True)
class StorageObjectInfo:
    """One object, as :meth:`Storage.list_objects_metadata` returns it."""

    key: str
    size_bytes: int
    created_at: datetime


class Storage(ABC):
    """A place that keeps objects under keys. Keys are relative, ASCII, and separated by ``/``.

    Subclasses are picklable (a memory storage only within its process). Storages of the same place compare equal.
    """

    is_remote: bool = False
    """True if calls go over a network."""

    read_only: bool = False
    """True if every write raises ReadOnlyError (``read-only-storage``)."""

    # Official's names for :mod:`.from_credentials`. The package sets them, because that module imports this one.
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
        """A name for the place without secrets, equal for all storages of that place. Caches are shared by it."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Read an object. Raises ObjectNotFoundError."""

    @abstractmethod
    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes ``start:stop``, exactly ``stop - start`` of them.

        Raises
        ------
        ObjectNotFoundError
            No such object.
        StorageError
            ``invalid-object-size``: the object ends before ``stop``.
        """

    @abstractmethod
    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        """Read an object and its version. Raises ObjectNotFoundError."""

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
        """Write an object that does not exist yet. Raises VersionMismatchError if it exists."""

    @abstractmethod
    def replace(self, key: str, data: bytes, version: Version) -> Version:
        """Write an object if it still has that version (compare and swap). Raises VersionMismatchError."""

    @abstractmethod
    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the storage. Raises ObjectNotFoundError."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> int:
        """Remove objects and return how many existed. Missing ones are ignored.

        Some stores do not report what existed. There, all keys of a large deletion count.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List all objects whose key starts with ``prefix`` (a text, not a directory), in no particular order."""

    @abstractmethod
    def info(self, key: str) -> ObjectInfo | None:
        """Return size and time of one object, None if it does not exist."""

    def flush(self) -> None:  # noqa: B027 - most storages have nothing to do
        """Wait until everything that this process has written is durable.

        Call it before another process commits what this one wrote. It is free if there is nothing to flush.

        Raises
        ------
        StorageError
            ``not-durable``: :meth:`not_durable` names something that this process wrote. Everything else is durable.
        """

    def not_durable(self) -> Mapping[str, str]:
        """Return the keys of flushed objects that may not survive a crash of the machine, with reasons.

        A key that ends in ``/`` stands for all objects below it, the empty key for all. Objects stay on the list until
        they are written again.
        """
        return {}

    def promise_flush(self) -> FlushPromise | None:
        """Promise to flush what other processes write from now on; None if each process must flush for itself.

        From this call on, this process hears of errors of the disk. Send the promise to the other processes, and call
        :meth:`keep_promises` before you publish what they wrote.
        """
        return None

    def leaves_flush_to(self, promise: FlushPromise) -> bool:
        """Return True if another process, which gave the promise, can flush all that this process has written."""
        return False

    def keep_promises(self, promised: Mapping[FlushPromise, Callable[[], Iterable[str]]]) -> None:
        """Wait until what others wrote under promises, and what this process wrote, is durable.

        An object that may have been lost is in :meth:`not_durable` afterwards: after an error that nobody can assign
        to an object, these are all objects written since the promise.

        Parameters
        ----------
        promised
            For each promise, a function that returns the keys of the objects written under it. It is called only if
            the state of single objects matters.

        Raises
        ------
        StorageError
            The state of the objects cannot be found out. Publish nothing that refers to them.
        """
        if promised:
            raise StorageError(
                f"{self.identity} cannot flush what other processes wrote. Open the repository as they did, and merge "
                f"their edits again",
                ErrorKind.NOT_DURABLE,
            )

    def clock_lower_bound_us(self) -> int | None:
        """Return a time that the store's clock has reached, in Unix microseconds; None if unknown.

        The bound comes from earlier answers. No request is made for it.
        """
        return None

    def commit_queue(self) -> AbstractContextManager[None]:
        """Return a context to hold while you prepare and publish a commit, so that others wait for their turn.

        It only saves work: after a while, a waiting writer goes on without it. :meth:`replace` keeps commits safe.
        """
        return nullcontext()

    def with_settings(self, settings: StorageSettings) -> Storage:
        """Return a storage of the same place with other settings, if they mean something to it."""
        return self

    def default_settings(self) -> StorageSettings:
        """Return the settings of this storage if nothing is configured."""
        return default_storage_settings("object_store")

    def list_objects(
        self, settings: StorageSettings | None = None, prefix: str | None = None
    ) -> Sequence[tuple[str, int]]:
        """List keys and sizes in bytes. See :meth:`list_objects_metadata` for the parameters."""
        return [(found.key, found.size_bytes) for found in self.list_objects_metadata(settings, prefix)]

    def list_objects_metadata(
        self, settings: StorageSettings | None = None, prefix: str | None = None
    ) -> Sequence[StorageObjectInfo]:
        """List all objects, sorted by key.

        Parameters
        ----------
        settings
            Settings for the requests. Default: those of the storage.
        prefix
            List only this directory, such as ``snapshots``. Keys are relative to it.
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
