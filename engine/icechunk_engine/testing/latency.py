"""A storage that is as slow as a network."""

from __future__ import annotations

import time
from collections.abc import Callable

from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.wrappers import ObservingStorage, StorageCall


class LatencyStorage(ObservingStorage):
    """Makes every request as slow as over a network.

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
        """Pause before each request that writes. You can change it at any time."""
        return self._write_latency_ms

    @write_latency_ms.setter
    def write_latency_ms(self, value: int) -> None:
        self._write_latency_ms = _latency(value)
        self._update_is_remote()

    @property
    def read_latency_ms(self) -> int:
        """Pause before each request that reads. You can change it at any time."""
        return self._read_latency_ms

    @read_latency_ms.setter
    def read_latency_ms(self, value: int) -> None:
        self._read_latency_ms = _latency(value)
        self._update_is_remote()

    def _update_is_remote(self) -> None:
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
        raise TypeError(f"a latency must be an integer number of milliseconds, not {value!r}")
    if value < 0:
        raise OverflowError(f"a latency must not be negative: {value} ms")
    return value
