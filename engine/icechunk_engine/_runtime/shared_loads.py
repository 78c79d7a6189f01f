"""A cache limited in bytes that shares loads: if several callers need a value at the same time, it is loaded once.

**What is always true.** A load that is under way will end, and everybody who waits for it will be told, whatever the
loading thread runs into. Two operations never wait for each other.

**Why it holds.** The lock is held only to look and to put (rule 1 of :mod:`._runtime.locks`). A caller that finds
neither a value nor a load under way becomes the leader and loads without the lock. Later callers wait for its result,
but never in a task of a pool: threads of whole operations block, coroutines await. A caller waits for others only
after its own loads have ended, so operations cannot wait in a circle.

**Failures.** The error of a leader says nothing about the others, who may have other credentials or more patience.
Each of them then loads on its own and gets its own error.

**What would break it.** An interrupt (``KeyboardInterrupt``) can come between any two steps of a leader. So a load
begins inside the ``try`` that ends it, and it may be ended twice. Waiters are told through queues, because a put is a
single step. An interrupt inside a future, an event or a condition would leave everybody waiting.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from icechunk_engine._runtime.locks import forget_in_child, memory_lock
from icechunk_engine._runtime.pools import request, start_request

type Weighed[V] = tuple[V, int | None]
"""A value and its memory in bytes; None if the value must not be kept."""

type RunAll[K, V] = Callable[[Callable[[K], V], Iterable[K]], list[V]]
"""Calls a function with each key. All calls have ended when it returns or raises."""


class SharedLoads[K, V]:
    """Values by key. If they exceed the limit, the least recently used are dropped; one value always stays.

    Thread-safe, and usable from any number of event loops.

    Parameters
    ----------
    limit_bytes
        Maximum memory of all values together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = memory_lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._weight = 0
        self._under_way: dict[K, _Load[V]] = {}
        forget_in_child(self)

    def forget(self) -> None:
        """Drop the loads of the parent's threads. Called in a forked child."""
        self._under_way = {}

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()
            self._weight = 0

    def get(self, key: K) -> V | None:
        """Return the value, None if it is not cached."""
        with self._lock:
            return self._find(key)

    def put(self, key: K, value: V, weight: int) -> None:
        """Cache a value of ``weight`` bytes."""
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
        """Drop a value that turned out to be stale, unless another one has replaced it."""
        with self._lock:
            entry = self._values.get(key)
            if entry is not None and entry[0] is value:
                del self._values[key]
                self._weight -= entry[1]

    # --- loading -----------------------------------------------------------------------------------------------

    def load(self, key: K, load: Callable[[K], Weighed[V]], *, patience_s: float | None = None) -> V:
        """Return the value. This thread loads it, unless it is cached or being loaded. For whole operations.

        Parameters
        ----------
        patience_s
            How long to wait for another thread's load before loading too. Tasks of a pool must set it, so that their
            wait ends whatever the other thread does.
        """
        value = self.get(key)
        return value if value is not None else self._load_missing([key], load, _one_by_one, patience_s)[key]

    def load_many(self, keys: Iterable[K], load: Callable[[K], Weighed[V]], run_all: RunAll[K, V]) -> list[V]:
        """Return the values of several keys, in order. ``run_all`` loads those that nobody else loads. For operations.

        Raises
        ------
        BaseException
            The first error of ``load``, after all loads of this call have ended.
        """
        keys = list(keys)
        values = {key: value for key in dict.fromkeys(keys) if (value := self.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in values]
        if missing:
            values |= self._load_missing(missing, load, run_all)
        return [values[key] for key in keys]

    async def load_async(self, key: K, load: Callable[[K], Weighed[V]]) -> V:
        """Return the value. A task of the request pool loads it, unless another does. For event loops."""
        value = self.get(key)
        if value is not None:
            return value
        mine, errors = _Load[V](), list[BaseException]()

        def load_here(key: K) -> Weighed[V]:
            try:
                return load(key)
            except BaseException as error:
                errors.append(error)
                raise

        try:
            found = self._join(key, mine)
            if not isinstance(found, _Load):
                return found
            if found is mine:
                start_request(partial(self._lead, key, mine, load_here))
        except BaseException:  # no thread can be started any more
            self._end({key: mine})
            raise
        await self._ended(key, found)
        if found.values:
            return found.values[0]
        if errors:
            raise errors.pop()
        return await request(self._load, key, load)

    def _load_missing(
        self, keys: list[K], load: Callable[[K], Weighed[V]], run_all: RunAll[K, V], patience_s: float | None = None
    ) -> dict[K, V]:
        """Return the values of keys that are not cached. No key may be given twice."""
        mine = {key: _Load[V]() for key in keys}
        try:
            found = {key: self._join(key, one) for key, one in mine.items()}
            run_all(lambda key: self._lead(key, mine[key], load), [key for key in keys if found[key] is mine[key]])
        finally:
            try:
                self._end(mine)
            except BaseException:  # an interrupt in the middle of it
                self._end(mine)
                raise
        values: dict[K, V] = {}
        failed: list[K] = []
        for key, one in found.items():
            if not isinstance(one, _Load):
                values[key] = one
                continue
            if one is not mine[key]:
                self._wait(key, one, patience_s)
            if one.values:
                values[key] = one.values[0]
            else:
                failed.append(key)
        values.update(zip(failed, run_all(lambda key: self._load(key, load), failed), strict=True))
        return values

    def _find(self, key: K) -> V | None:
        entry = self._values.get(key)
        if entry is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def _join(self, key: K, mine: _Load[V]) -> V | _Load[V]:
        """Return the value, or the load to wait for, or ``mine``, which the caller must then lead and end."""
        with self._lock:
            # Both under one lock: between two looks, a load could end, and the value would be loaded twice.
            value = self._find(key)
            return value if value is not None else self._under_way.setdefault(key, mine)

    def _lead(self, key: K, mine: _Load[V], load: Callable[[K], Weighed[V]]) -> V:
        try:
            value = self._load(key, load)
            mine.values.append(value)
            return value
        finally:
            self._end({key: mine})

    def _end(self, loads: dict[K, _Load[V]]) -> None:
        """End the loads, whatever came of them, and wake those who wait. Loads of others are left alone."""
        for key, load in loads.items():
            with self._lock:
                if self._under_way.get(key) is load:
                    del self._under_way[key]
            for wake in load.wakers:
                with suppress(RuntimeError):  # that event loop is closed
                    wake()

    def _wait(self, key: K, load: _Load[V], patience_s: float | None) -> None:
        signal: SimpleQueue[None] = SimpleQueue()
        if self._will_be_told(key, load, partial(signal.put, None)):
            with suppress(Empty):
                signal.get(timeout=patience_s)

    async def _ended(self, key: K, load: _Load[V]) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        if self._will_be_told(key, load, partial(loop.call_soon_threadsafe, _settle, ended)):
            await ended

    def _will_be_told(self, key: K, load: _Load[V], wake: Callable[[], object]) -> bool:
        """Return False if the load has ended. Else ``wake`` will be called at least once, from another thread."""
        with self._lock:
            if self._under_way.get(key) is not load:
                return False
            load.wakers.append(wake)
            return True

    def _load(self, key: K, load: Callable[[K], Weighed[V]]) -> V:
        value, weight = load(key)
        if weight is not None:
            self.put(key, value, weight)
        return value


class _Load[V]:
    """A load under way.

    Attributes
    ----------
    values
        The value, once it is loaded; empty after a load that failed or was interrupted.
    wakers
        Functions to call when the load has ended.
    """

    __slots__ = ("values", "wakers")

    def __init__(self) -> None:
        self.values: list[V] = []
        self.wakers: list[Callable[[], object]] = []


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _one_by_one[K, V](function: Callable[[K], V], keys: Iterable[K]) -> list[V]:
    return [function(key) for key in keys]
