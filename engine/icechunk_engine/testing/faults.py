"""A storage whose requests fail when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.wrappers import ObservingStorage, StorageCall

type Moment = Literal["before", "after"]
type FaultHook = Callable[[int, StorageCall, Moment], None]


class FaultStorage(ObservingStorage):
    """Calls a function before and after each request. What the function raises, the caller sees.

    An error ``"before"`` stands for a request that never arrived, an error ``"after"`` for a request that took effect
    but whose answer was lost. So a test can run an operation once to count its requests, then once for each request
    and moment, and check that the stored objects are always consistent.

    Parameters
    ----------
    hook
        ``hook(n, call, moment)``, where ``n`` counts requests from 0. It is not called ``"after"`` a request that
        raised. None: only count.
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
    """A hook for :class:`FaultStorage`: request number ``n`` fails, before or after it takes effect.

    Parameters
    ----------
    error
        What to raise. Default: a StorageError that looks like a lost connection.
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
