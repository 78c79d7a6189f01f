"""The thread pools, and the only bridge between callers and slow I/O.

**What is always true.** A pool with work to do makes progress. A task is one storage call or one computation, and
never waits for another task (rule 3 of :mod:`icechunk_engine._runtime.locks`).

**How it is used.** The engine's logic is synchronous. Calls to a remote storage run on one bounded pool, many at a
time. Other calls run in the calling thread, because a hop to a thread or an event loop costs more than a small local
read. Asynchronous callers get a thread for each operation (:func:`async_twin`), so a network never blocks an event
loop, and no lock belongs to a loop. Heavy computations that release the interpreter's lock, such as compression, run
on one thread for each processor (:func:`map_heavy`).

**What would break it.** A task that submits to its own pool and waits: when the pool is full of such tasks, none can
finish. So the parts of large objects, which request tasks wait for, have a pool of their own. Threads do not survive a
fork, so the child makes its own pools.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from icechunk_engine._runtime.locks import forget_in_child, memory_lock
from icechunk_engine._runtime.observing import bound

POOL_SIZE = 256
"""Maximum number of requests in flight in one process: official's default. Threads are started as needed."""


class PossiblyRemote(Protocol):
    """The part of a storage that this module uses."""

    is_remote: bool


class _Pool:
    """An executor that is made when it is first used. A forked child makes its own."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = name
        self._lock = memory_lock()
        self._executor: ThreadPoolExecutor | None = None
        forget_in_child(self)

    def forget(self) -> None:
        """Drop the threads of the parent. Called in a forked child."""
        self._executor = None

    def get(self) -> ThreadPoolExecutor:
        executor = self._executor
        if executor is None:
            with self._lock:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(self.size, thread_name_prefix=self._name)
                executor = self._executor
        return executor

    def submit[**P, R](self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call on a thread; in this thread if the main thread has ended or no thread can be started.

        In the last case, a thread that finishes another task may make the call a second time.
        """
        try:
            return self.get().submit(function, *args, **kwargs)
        except RuntimeError:
            return _done(function, *args, **kwargs)


def _done[**P, R](function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Make a call in this thread."""
    done: Future[R] = Future()
    try:
        done.set_result(function(*args, **kwargs))
    except Exception as error:
        done.set_exception(error)
    return done


_POOL = _Pool(POOL_SIZE, "icechunk-io")
_PARTS = _Pool(64, "icechunk-part")
"""For parts of large objects. Tasks of the other pool wait for them."""

_PROCESSORS = _Pool(os.cpu_count() or 1, "icechunk-cpu")


def map_requests[T, R](storage: PossiblyRemote, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return ``[function(item) for item in items]``, called concurrently if the storage is remote.

    ``function`` makes storage calls and must not call this again. The first error is raised after all calls have
    ended, so nothing is still running when the caller cleans up.
    """
    items = list(items)
    if not storage.is_remote or len(items) < 2:
        return [function(item) for item in items]
    return _map(_POOL, function, items)


def map_parts[T, R](function: Callable[[T], R], parts: list[T]) -> list[R]:
    """Return ``[function(part) for part in parts]``, called concurrently, one request for each part of an object.

    Unlike :func:`map_requests`, you can call it inside a storage call. The first error is raised after all have ended.
    """
    return [function(part) for part in parts] if len(parts) < 2 else _map(_PARTS, function, parts)


def _map[T, R](pool: _Pool, function: Callable[[T], R], items: list[T]) -> list[R]:
    function = bound(function)
    futures = [pool.submit(function, item) for item in items]
    try:
        errors = [error for future in futures if (error := future.exception()) is not None]
    except BaseException:  # an interrupt: do not begin the rest
        for future in futures:
            future.cancel()
        raise
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


def start_heavy[R](function: Callable[[], R], is_heavy: bool) -> Future[R]:
    """Start a computation on a thread if it is heavy, else do it at once."""
    return _PROCESSORS.submit(function) if is_heavy else _done(function)


def map_heavy[T, R](function: Callable[[T], R], items: Iterable[T], is_heavy: Callable[[T], bool]) -> Iterator[R]:
    """Yield ``function(item)`` in order, with heavy items on one thread for each processor.

    Items are taken from the iterable only as fast as they are processed, so few are in memory at a time. ``function``
    must make no storage calls.
    """
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(start_heavy(functools.partial(function, item), is_heavy(item)))
        while pending and (len(pending) > _PROCESSORS.size or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def start_request[R](function: Callable[[], R]) -> Future[R]:
    """Start one storage call on the pool."""
    return _POOL.get().submit(bound(function))


async def request[**P, R](function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Await one storage call on the pool."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_POOL.get(), functools.partial(bound(function), *args, **kwargs))


async def in_thread[**P, R](function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Await a whole operation on a thread of its own."""
    return await asyncio.to_thread(function, *args, **kwargs)


def async_twin[**P, R](method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make the asynchronous twin of a function. It takes the same parameters, and runs the function in a thread.

    >>> import asyncio
    >>> add_async = async_twin(lambda a, b: a + b)
    >>> asyncio.run(add_async(1, 2))
    3
    """

    @functools.wraps(method)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(method, *args, **kwargs)

    twin.__name__ = f"{method.__name__}_async"
    twin.__qualname__ = f"{method.__qualname__}_async"
    twin.__doc__ = f"Asynchronous twin of :meth:`{method.__name__}`: same parameters, result and errors."
    return twin
