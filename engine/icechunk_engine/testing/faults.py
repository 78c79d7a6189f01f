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
