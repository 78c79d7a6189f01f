"""A cache weighed in bytes whose loads are shared: what several ask for at the same time is loaded once.

Loads follow the rule of :mod:`._runtime.locks`. The lock is held to look and to put. A caller that finds neither a
value nor a load under way leads one, without the lock. Later callers wait for its result, but never in a task of a
pool: threads of whole operations block, coroutines await. A caller waits for others only after its own loads have
ended, so operations cannot wait for each other in a circle.

A load that fails for its leader says nothing about the others, who may have other credentials or more patience. Each
of them then loads on its own, and gets its own error.

An interrupt (``KeyboardInterrupt``) may come between any two steps of a leader. So a load begins inside the ``try``
that ends it, and may be ended twice. Waiters are told through queues, which are single steps. Futures, events and
conditions are not: an interrupt inside one would leave everybody waiting.
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
        self._under_way: dict[K, _Load[V]] = {}
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
        value = self.get(key)
        return value if value is not None else self._load_missing([key], load, _in_turn, patience_s)[key]

    def load_many(self, keys: Iterable[K], load: Callable[[K], Weighed[V]], run_all: RunAll[K, V]) -> list[V]:
        """The values of several keys, in their order; ``run_all`` loads those that nobody else does. For operations.

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
        """The value, loaded by one task of the request pool unless it is there or being loaded. For event loops."""
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
        """The values of keys, none twice, that were looked for in vain."""
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
        """The value, or the load to wait for, or ``mine``, which the caller leads and ends."""
        with self._lock:
            # In one step: between a look for the value and one for its load, the load could end, and be made twice.
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
        """Whatever came of them: the loads are not under way any more. Those of others are left alone."""
        for key, load in loads.items():
            with self._lock:
                if self._under_way.get(key) is load:
                    del self._under_way[key]
            for wake in load.wakers:
                with suppress(RuntimeError):  # that event loop is closed
                    wake()

    def _wait(self, key: K, load: _Load[V], patience_s: float | None) -> None:
        bell: SimpleQueue[None] = SimpleQueue()
        if self._is_to_be_told(key, load, partial(bell.put, None)):
            with suppress(Empty):
                bell.get(timeout=patience_s)

    async def _ended(self, key: K, load: _Load[V]) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        if self._is_to_be_told(key, load, partial(loop.call_soon_threadsafe, _settle, ended)):
            await ended

    def _is_to_be_told(self, key: K, load: _Load[V], wake: Callable[[], object]) -> bool:
        """False when the load has ended; else ``wake`` will be called, from another thread, at least once."""
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
        The value, once it is there; none after a load that failed or was interrupted.
    wakers
        Called when the load has ended.
    """

    __slots__ = ("values", "wakers")

    def __init__(self) -> None:
        self.values: list[V] = []
        self.wakers: list[Callable[[], object]] = []


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _in_turn[K, V](function: Callable[[K], V], keys: Iterable[K]) -> list[V]:
    return [function(key) for key in keys]
