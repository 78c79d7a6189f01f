"""A storage that counts requests and bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.wrappers import ObservingStorage, StorageCall


class CountingStorage(ObservingStorage):
    """Counts requests and bytes by method, and records every call.

    Attributes
    ----------
    requests : Counter[str]
        Calls by method, including failed ones.
    bytes_read, bytes_written : Counter[str]
        Bytes that were returned, and bytes that successful calls sent, by method.
    calls : list[StorageCall]
        All calls, in the order in which they began.

    Notes
    -----
    Thread-safe. A pickled copy starts at zero.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._lock = memory_lock()
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.requests: Counter[str] = Counter()
        self.bytes_read: Counter[str] = Counter()
        self.bytes_written: Counter[str] = Counter()
        self.calls: list[StorageCall] = []

    @property
    def n_requests(self) -> int:
        """Number of calls of all methods."""
        return self.requests.total()

    def keys(self, method: str) -> tuple[str, ...]:
        """Return the keys of the calls of one method, in order."""
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
