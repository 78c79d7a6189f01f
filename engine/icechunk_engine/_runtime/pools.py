"""The one bridge between callers and I/O that waits.

The engine's logic is synchronous. A storage that waits for a network gets its calls made on one bounded pool of
threads, many at a time; everything else is called in place, because a hop to a thread or an event loop costs more
than a small local read. Asynchronous callers get each operation on a thread of its own (:func:`async_twin`), so no
event loop is ever blocked by a network and no lock belongs to a loop.

Heavy computing that releases the interpreter's lock (compression) goes to one thread a processor
(:func:`map_heavy`).

Pool threads run single storage calls or computations only, never whole operations (the rule of
:mod:`icechunk_engine._runtime.locks`), so the pools cannot deadlock. They do not survive a fork; the child makes its
own.
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
"""Requests in flight in one process: official's default (``max_concurrent_requests``). Threads come as needed."""


class Waiting(Protocol):
    """What this module asks of a storage."""

    is_remote: bool


class _Pool:
    """A lazily made executor that a forked child forgets."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._name = name
        self._lock = memory_lock()
        self._executor: ThreadPoolExecutor | None = None
        forget_in_child(self)

    def forget(self) -> None:
        """In a forked child: its threads are the parent's."""
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
        """Call on a thread; in place once the main thread has ended, or where no thread can be started.

        In the latter case a thread that ends another task may make the call once more.
        """
        try:
            return self.get().submit(function, *args, **kwargs)
        except RuntimeError:
            return _done(function, *args, **kwargs)


def _done[**P, R](function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """A call made in place."""
    done: Future[R] = Future()
    try:
        done.set_result(function(*args, **kwargs))
    except Exception as error:
        done.set_exception(error)
    return done


_POOL = _Pool(POOL_SIZE, "icechunk-io")
_PARTS = _Pool(64, "icechunk-part")
"""For the parts of large objects, which tasks of the other pool wait for."""

_PROCESSORS = _Pool(os.cpu_count() or 1, "icechunk-cpu")


def map_requests[T, R](storage: Waiting, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]``, concurrently where the storage waits.

    ``function`` makes storage calls and must not call this again. The first error is raised after all calls ended, so
    that none is still running when the caller cleans up.
    """
    items = list(items)
    if not storage.is_remote or len(items) < 2:
        return [function(item) for item in items]
    return _map(_POOL, function, items)


def map_parts[T, R](function: Callable[[T], R], parts: list[T]) -> list[R]:
    """``[function(part) for part in parts]``, concurrently; ``function`` makes one request for a part of an object.

    Unlike :func:`map_requests` for use in a storage's calls. The first error is raised after all ended.
    """
    return [function(part) for part in parts] if len(parts) < 2 else _map(_PARTS, function, parts)


def _map[T, R](pool: _Pool, function: Callable[[T], R], items: list[T]) -> list[R]:
    function = bound(function)
    futures = [pool.submit(function, item) for item in items]
    try:
        errors = [error for future in futures if (error := future.exception()) is not None]
    except BaseException:  # an interrupt: what has not begun need not
        for future in futures:
            future.cancel()
        raise
    if errors:
        raise errors[0]
    return [future.result() for future in futures]


def start_heavy[R](function: Callable[[], R], is_heavy: bool) -> Future[R]:
    """Begin a computation: on a thread of the processors where it is heavy, otherwise it is done at once."""
    return _PROCESSORS.submit(function) if is_heavy else _done(function)


def map_heavy[T, R](function: Callable[[T], R], items: Iterable[T], is_heavy: Callable[[T], bool]) -> Iterator[R]:
    """``map(function, items)``, with the heavy items on a thread for each processor.

    Items are asked for only as fast as they are worked off, so that few are held at a time. ``function`` makes no
    storage calls.
    """
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(start_heavy(functools.partial(function, item), is_heavy(item)))
        while pending and (len(pending) > _PROCESSORS.size or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def start_request[R](function: Callable[[], R]) -> Future[R]:
    """Begin one storage call on the pool."""
    return _POOL.get().submit(bound(function))


async def request[**P, R](function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """One storage call on the pool, awaited."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_POOL.get(), functools.partial(bound(function), *args, **kwargs))


async def in_thread[**P, R](function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """A whole operation on a thread of its own, awaited."""
    return await asyncio.to_thread(function, *args, **kwargs)


def async_twin[**P, R](method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The asynchronous twin of a synchronous function: same parameters, same result, run in a thread.

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
