"""A cache weighed in bytes whose loads are shared: what several ask for at the same time is loaded once.

Loads follow the rule of :mod:`._runtime.locks`. The lock is held to look and to put. A caller that finds neither a
value nor a load under way leads one, without the lock. Later callers wait for its result, but never in a task of a
pool: threads of whole operations block, coroutines await. A caller waits for others only after its own loads have
ended, so operations cannot wait for each other in a circle.

A load that fails for its leader says nothing about the others, who may have other credentials or more patience. Each
of them then loads on its own, and gets its own error.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial

from icechunk_engine._runtime.locks import forget_in_child, memory_lock
from icechunk_engine._runtime.pools import request, start_request

type Weighed[V] = tuple[V, int | None]
"""A value, and how much memory it takes in bytes; None for one that is not to be kept."""

type RunAll[K, V] = Callable[[Callable[[K], V], Iterable[K]], list[V]]
"""Calls a function with each of some keys; all calls have ended when it returns or raises."""


class SharedLoads[K, V]:
    """Values by key. The least recently used go when the weights exceed the limit; one value always stays.

    Thread-safe, and of use on any number of event loops.

    Parameters
    ----------
    limit_bytes
        Most that the values may weigh together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = memory_lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0
        self._under_way: dict[K, Future[V]] = {}
        forget_in_child(self)

    def forget(self) -> None:
        """In a forked child: the threads that load are the parent's."""
        self._under_way = {}

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()
            self._weight = 0

    def get(self, key: K) -> V | None:
        """The value, if it is there."""
        with self._lock:
            return self._find(key)

    def put(self, key: K, value: V, weight: int) -> None:
        """Set a value of ``weight`` bytes."""
        with self._lock:
            previous = self._values.pop(key, None)
            if previous is not None:
                self._weight -= previous[1]
            self._values[key] = value, weight
            self._weight += weight
            while self._weight > self.limit_bytes and len(self._values) > 1:
                _, (_, dropped) = self._values.popitem(last=False)
                self._weight -= dropped

    def drop(self, key: K, value: V) -> None:
        """Forget a value that turned out to be stale, unless another one has replaced it."""
        with self._lock:
            entry = self._values.get(key)
            if entry is not None and entry[0] is value:
                del self._values[key]
                self._weight -= entry[1]

    # --- loading -----------------------------------------------------------------------------------------------

    def load(self, key: K, load: Callable[[K], Weighed[V]], *, patience_s: float | None = None) -> V:
        """The value, loaded by this thread unless it is there or being loaded. For whole operations.

        Parameters
        ----------
        patience_s
            How long to wait for another thread's load before loading as well. Tasks of a pool that call this set it,
            so that their wait ends whatever the other thread does.
        """
        found = self._join(key)
        if not isinstance(found, _Load):
            return found
        if found.is_mine:
            return self._lead(key, found.result, load)
        try:
            if found.result.exception(patience_s) is None:
                return found.result.result()
        except TimeoutError:
            pass
        return self._load(key, load)

    def load_many(self, keys: Iterable[K], load: Callable[[K], Weighed[V]], run_all: RunAll[K, V]) -> list[V]:
        """The values of several keys, in their order; ``run_all`` loads those that nobody else does. For operations.

        Raises
        ------
        BaseException
            The first error of ``load``, after all loads of this call have ended.
        """
        keys = list(keys)
        found = {key: self._join(key) for key in dict.fromkeys(keys)}
        values = {key: value for key, value in found.items() if not isinstance(value, _Load)}
        mine = {key: one.result for key, one in found.items() if isinstance(one, _Load) and one.is_mine}
        try:
            loaded = run_all(lambda key: self._lead(key, mine[key], load), mine)
        finally:
            for key, result in mine.items():  # of an interrupt: what was not begun is waited for by nobody
                self._end(key, result)
        values.update(zip(mine, loaded, strict=True))
        failed: list[K] = []
        for key, one in found.items():
            if isinstance(one, _Load) and not one.is_mine:
                if one.result.exception() is None:
                    values[key] = one.result.result()
                else:
                    failed.append(key)
        values.update(zip(failed, run_all(lambda key: self._load(key, load), failed), strict=True))
        return [values[key] for key in keys]

    async def load_soon(self, key: K, load: Callable[[K], Weighed[V]]) -> V:
        """The value, loaded by one task of the request pool unless it is there or being loaded. For event loops."""
        found = self._join(key)
        if not isinstance(found, _Load):
            return found
        if found.is_mine:
            try:
                start_request(partial(self._lead, key, found.result, load))
            except BaseException:  # no thread can be started any more
                self._end(key, found.result)
                raise
        try:
            return await asyncio.wrap_future(found.result)
        except Exception:
            if found.is_mine:
                raise
        return await request(self._load, key, load)

    def _find(self, key: K) -> V | None:
        entry = self._values.get(key)
        if entry is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def _join(self, key: K) -> V | _Load[V]:
        """The value, or the load to lead or to wait for."""
        with self._lock:
            # In one step: between a look for the value and one for its load, the load could end, and be made twice.
            value = self._find(key)
            if value is not None:
                return value
            result = self._under_way.get(key)
            if result is not None:
                return _Load(result, is_mine=False)
            result = self._under_way[key] = Future()
            result.set_running_or_notify_cancel()  # so that no one waiter can cancel it for all
            return _Load(result, is_mine=True)

    def _lead(self, key: K, result: Future[V], load: Callable[[K], Weighed[V]]) -> V:
        try:
            value = self._load(key, load)
            result.set_result(value)
            return value
        except BaseException as error:
            with suppress(InvalidStateError):
                result.set_exception(error)
            raise
        finally:
            self._end(key, result)

    def _end(self, key: K, result: Future[V]) -> None:
        """Whatever came of it: the load is not under way any more."""
        with self._lock:
            if self._under_way.get(key) is result:
                del self._under_way[key]
        with suppress(InvalidStateError):
            result.set_exception(_AbandonedError())

    def _load(self, key: K, load: Callable[[K], Weighed[V]]) -> V:
        value, weight = load(key)
        if weight is not None:
            self.put(key, value, weight)
        return value


class _Load[V]:
    """A load under way, and whether the caller is the one to do it."""

    __slots__ = ("is_mine", "result")

    def __init__(self, result: Future[V], *, is_mine: bool) -> None:
        self.result = result
        self.is_mine = is_mine


class _AbandonedError(Exception):
    """The leader was interrupted before it began; those who wait load for themselves."""
