"""Storages around a storage: a prefix, read-only access, and instruments for tests and benchmarks.

A wrapper is the same place as what it wraps (equal identity, but for :class:`PrefixStorage`), so caches are shared.
"""

from __future__ import annotations

import threading
import time
import weakref
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, NamedTuple

from icechunk_engine._runtime.locks import memory_lock, run_in_child
from icechunk_engine.errors import ErrorKind, ReadOnlyError, StorageError
from icechunk_engine.storage.base import ObjectInfo, Storage, Version

if TYPE_CHECKING:
    from icechunk_engine.config import StorageSettings

WRITING_METHODS = frozenset({"put", "create", "replace", "copy", "delete"})
READING_METHODS = frozenset({"get", "get_range", "get_versioned", "list", "info"})


class StorageCall(NamedTuple):
    """One call of a storage method."""

    method: str
    keys: tuple[str, ...]
    """The key; source and target of a copy; all keys of a delete; the prefix of a listing."""
    size_bytes: int = 0
    """Bytes to be written; of reads, the bytes asked for where the call says so, else 0."""

    @property
    def writes(self) -> bool:
        """Whether the call changes the storage."""
        return self.method in WRITING_METHODS


class WrapperStorage(Storage):
    """Hands every call to ``inner``; subclasses change what they are about."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.is_remote = inner.is_remote
        self.read_only = inner.read_only

    @property
    def identity(self) -> str:
        return self.inner.identity

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        return self.inner.get_range(key, start, stop)

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        return self.inner.get_versioned(key)

    def put(self, key: str, data: bytes | memoryview, *, is_new: bool = False) -> None:
        self.inner.put(key, data, is_new=is_new)

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

    def heard_us(self) -> int | None:
        return self.inner.heard_us()

    def commit_queue(self) -> AbstractContextManager[None]:
        return self.inner.commit_queue()

    def with_settings(self, settings: StorageSettings) -> Storage:
        inner = self.inner.with_settings(settings)
        if inner is self.inner:
            return self
        other = object.__new__(type(self))  # not copied: what instruments counted stays shared
        other.__dict__.update(self.__dict__, inner=inner)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"


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

    def put(self, key: str, data: bytes | memoryview, *, is_new: bool = False) -> None:
        self.inner.put(self._start + key, data, is_new=is_new)

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

    def __repr__(self) -> str:
        return f"PrefixStorage({self.inner!r}, {self.prefix!r})"


class ReadOnlyStorage(WrapperStorage):
    """Refuses every write with ReadOnlyError (``read-only-storage``)."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.read_only = True

    def put(self, key: str, data: bytes | memoryview, *, is_new: bool = False) -> None:
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


class ObservingStorage(WrapperStorage):
    """Base of wrappers that do the same thing around every call. ``flush`` is not a request and passes through."""

    @abstractmethod
    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        """Make the call by calling ``function``, and return what it returned."""

    def get(self, key: str) -> bytes:
        return self.around(StorageCall("get", (key,)), lambda: self.inner.get(key))

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        call = StorageCall("get_range", (key,), stop - start)
        return self.around(call, lambda: self.inner.get_range(key, start, stop))

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        return self.around(StorageCall("get_versioned", (key,)), lambda: self.inner.get_versioned(key))

    def put(self, key: str, data: bytes | memoryview, *, is_new: bool = False) -> None:
        call = StorageCall("put", (key,), memoryview(data).nbytes)
        self.around(call, lambda: self.inner.put(key, data, is_new=is_new))

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


class LimitedStorage(ObservingStorage):
    """Makes so many requests at a time and no more, with all others in the process that limit the same place so.

    Listings are not counted, nor the parts that large objects are read in.
    """

    def __init__(self, inner: Storage, most: int) -> None:
        super().__init__(inner)
        self.most = most
        self._room = _room(inner.identity, most)

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        with self._room:
            return function()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.inner, self.most)


_ROOMS: weakref.WeakValueDictionary[tuple[str, int], threading.Semaphore] = weakref.WeakValueDictionary()
_ROOMS_LOCK = memory_lock()


def _room(identity: str, most: int) -> threading.Semaphore:
    with _ROOMS_LOCK:
        return _ROOMS.setdefault((identity, most), threading.BoundedSemaphore(most))


@run_in_child
def _empty_rooms() -> None:
    """In the child there is room again: the requests under way are the parent's."""
    for (_, most), room in list(_ROOMS.items()):
        room.__init__(most)  # type: ignore[misc]


class CountingStorage(ObservingStorage):
    """Counts requests and bytes by method, and remembers every call.

    Attributes
    ----------
    requests : Counter[str]
        Calls by method, failed ones included.
    bytes_read, bytes_written : Counter[str]
        Bytes that came back, and bytes sent by calls that succeeded, by method.
    calls : list[StorageCall]
        All calls in the order in which they began.

    Notes
    -----
    Thread-safe. A pickled copy starts from zero.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._lock = memory_lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything counted."""
        self.requests: Counter[str] = Counter()
        self.bytes_read: Counter[str] = Counter()
        self.bytes_written: Counter[str] = Counter()
        self.calls: list[StorageCall] = []

    @property
    def n_requests(self) -> int:
        """Calls of all methods."""
        return self.requests.total()

    def keys(self, method: str) -> tuple[str, ...]:
        """The keys that calls of one method were about, in order."""
        return tuple(key for call in self.calls if call.method == method for key in call.keys)

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        with self._lock:
            self.requests[call.method] += 1
            self.calls.append(call)
        result = function()
        data = result[0] if isinstance(result, tuple) and call.method == "get_versioned" else result
        with self._lock:
            if isinstance(data, bytes):
                self.bytes_read[call.method] += len(data)
            elif call.size_bytes and call.writes:
                self.bytes_written[call.method] += call.size_bytes
        return result

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.inner,)


class LatencyStorage(ObservingStorage):
    """Makes every request as slow as a network would.

    Parameters
    ----------
    write_latency_ms
        Pause before each put, create, replace, copy and delete.
    read_latency_ms
        Pause before each get, get_range, get_versioned, list and info.
    """

    def __init__(self, inner: Storage, *, write_latency_ms: int = 0, read_latency_ms: int = 0) -> None:
        super().__init__(inner)
        self._write_latency_ms = self._read_latency_ms = 0
        self.write_latency_ms = write_latency_ms
        self.read_latency_ms = read_latency_ms

    @property
    def write_latency_ms(self) -> int:
        """Pause before each request that writes; may be set anew at any time."""
        return self._write_latency_ms

    @write_latency_ms.setter
    def write_latency_ms(self, value: int) -> None:
        self._write_latency_ms = _latency(value)
        self._set_waits()

    @property
    def read_latency_ms(self) -> int:
        """Pause before each request that reads; may be set anew at any time."""
        return self._read_latency_ms

    @read_latency_ms.setter
    def read_latency_ms(self, value: int) -> None:
        self._read_latency_ms = _latency(value)
        self._set_waits()

    def _set_waits(self) -> None:
        self.is_remote = self.inner.is_remote or self._write_latency_ms > 0 or self._read_latency_ms > 0

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        latency_ms = self.write_latency_ms if call.writes else self.read_latency_ms
        if latency_ms > 0:
            time.sleep(latency_ms / 1000)
        return function()

    def __repr__(self) -> str:
        return (
            f"LatencyStorage({self.inner!r}, write_latency_ms={self.write_latency_ms}, "
            f"read_latency_ms={self.read_latency_ms})"
        )


def _latency(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"a latency is a number of milliseconds as an integer, not {value!r}")
    if value < 0:
        raise OverflowError(f"a latency must not be negative, not {value} ms")
    return value


type Moment = Literal["before", "after"]
type FaultHook = Callable[[int, StorageCall, Moment], None]


class FaultStorage(ObservingStorage):
    """Calls a function before and after each call; what it raises is what the caller sees.

    Raising ``"before"`` is a request that never arrived, raising ``"after"`` one that took effect and whose answer was
    lost. So a test can run an operation once to count its calls, then once for each call and moment, and check that
    what is stored is always whole.

    Parameters
    ----------
    hook
        ``hook(n, call, moment)``; ``n`` counts calls from 0. ``"after"`` is left out when the call itself raised.
        None: only count.
    """

    def __init__(self, inner: Storage, hook: FaultHook | None = None) -> None:
        super().__init__(inner)
        self.hook = hook
        self.n_calls = 0
        self._lock = memory_lock()

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        with self._lock:
            n = self.n_calls
            self.n_calls += 1
        if self.hook is not None:
            self.hook(n, call, "before")
        result = function()
        if self.hook is not None:
            self.hook(n, call, "after")
        return result

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.inner, self.hook)


class FailOnce:
    """A hook for :class:`FaultStorage`: the ``n``-th call fails, before or after it took effect.

    Parameters
    ----------
    error
        What to raise; a StorageError that looks like a lost connection if not given.
    """

    def __init__(self, n: int, moment: Moment, error: Exception | None = None) -> None:
        self.n = n
        self.moment = moment
        self.error = error
        self.failed: StorageCall | None = None

    def __call__(self, n: int, call: StorageCall, moment: Moment) -> None:
        if n == self.n and moment == self.moment:
            self.failed = call
            raise self.error or StorageError(
                f"injected fault {moment} {call.method} of {', '.join(call.keys)}: try again", ErrorKind.OBJECT_STORE
            )
