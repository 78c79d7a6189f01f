"""Instruments for the rule of waiting: locks that know who holds them, and a storage that asks at every request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

from icechunk_engine._runtime import locks
from icechunk_engine.storage import Storage
from icechunk_engine.storage.wrappers import ObservingStorage, StorageCall

_held = threading.local()


class CheckedLock:
    """A reentrant lock that fails when its thread holds another one: locks are leaves."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @staticmethod
    def held() -> list[CheckedLock]:
        """Those that the calling thread holds."""
        if not hasattr(_held, "locks"):
            _held.locks = []
        found: list[CheckedLock] = _held.locks
        return found

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        others = [lock for lock in self.held() if lock is not self]
        assert not others, "a thread that holds one engine lock takes another"
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self.held().append(self)
        return taken

    def release(self) -> None:
        self.held().remove(self)
        self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_held_for_long(self) -> bool:
        """Whether the lock cannot be had within seconds, which no thread may keep it for."""
        if not self._lock.acquire(timeout=5):
            return True
        self._lock.release()
        return False

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]


@contextmanager
def checked_locks(monkeypatch: Any) -> Iterator[None]:
    """Everything made in the block has checked locks."""
    monkeypatch.setattr(locks, "threading", SimpleNamespace(RLock=CheckedLock))
    yield
    monkeypatch.undo()


class LockCheckingStorage(ObservingStorage):
    """Fails a request while any engine lock is held: by its own thread, or by one that waits for it."""

    def __init__(self, inner: Storage, *, is_remote: bool) -> None:
        super().__init__(inner)
        self.is_remote = is_remote
        self.methods: set[str] = set()

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        self.methods.add(call.method)
        assert not CheckedLock.held(), f"{call.method} of {call.keys} is made under a lock"
        made: list[Any] = list(locks.memory_locks())
        for lock in made:
            if isinstance(lock, CheckedLock):
                assert not lock.is_held_for_long(), f"a lock is held while {call.method} of {call.keys} is waited for"
        return function()

    def __reduce__(self) -> Any:
        raise AssertionError("made for one process")
