"""Loads that are shared: once for all who ask at the same time, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from icechunk_engine._runtime import pools
from icechunk_engine._runtime.shared_loads import SharedLoads


class Loader:
    """Loads that begin when they are told to, and are counted."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.calls: list[str] = []
        self.errors: dict[int, BaseException] = {}

    def __call__(self, key: str) -> tuple[str, int]:
        self.calls.append(key)
        number = len(self.calls)
        self.begun.set()
        assert self.go.wait(30)
        if number in self.errors:
            raise self.errors[number]
        return f"{key}{number}", 10


def in_order[K, V](function: Callable[[K], V], keys: Iterable[K]) -> list[V]:
    return [function(key) for key in keys]


def in_threads(*functions: Callable[[], object]) -> list[object]:
    """Results or errors."""
    results: list[object] = [None] * len(functions)

    def run(i: int) -> None:
        try:
            results[i] = functions[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def until_joined(loads: SharedLoads[str, str], waiting: Callable[[], bool]) -> None:
    while not waiting():
        threading.Event().wait(0.001)


def test_what_several_ask_for_is_loaded_once() -> None:
    loads, loader = SharedLoads[str, str](100), Loader()
    joined = threading.Semaphore(0)
    find = loads._join

    def join(*arguments: Any) -> Any:
        found = find(*arguments)
        joined.release()
        return found

    loads._join = join  # type: ignore[method-assign,assignment]

    def let_go() -> None:
        for _ in range(5):
            assert joined.acquire(timeout=30)
        loader.go.set()

    async def on_a_loop() -> list[str]:
        return list(await asyncio.gather(loads.load_async("k", loader), loads.load_async("k", loader)))

    results = in_threads(
        let_go,
        lambda: loads.load("k", loader),
        lambda: loads.load("k", loader),
        lambda: loads.load_many(["k"], loader, in_order),
        lambda: asyncio.run(on_a_loop()),
    )
    assert loader.calls == ["k"]
    assert results == [None, "k1", "k1", ["k1"], ["k1", "k1"]]
    assert loads.load("k", loader) == "k1"


def test_the_value_and_its_load_are_looked_for_in_one_step() -> None:
    """Between two steps a load could end, and be made again."""
    loads, loader = SharedLoads[str, str](100), Loader()
    loader.go.set()
    find, looks, others = loads._find, list[int](), list[threading.Thread]()

    def look(key: str) -> str | None:
        found = find(key)
        looks.append(threading.get_ident())
        if looks == [threading.get_ident()] * 2:  # the look that goes with the one for a load
            # Another one's load ends at once, if the lock lets it.
            others.append(threading.Thread(target=lambda: loads.load(key, loader)))
            others[0].start()
            others[0].join(0.2)
        return found

    loads._find = look  # type: ignore[method-assign]
    assert loads.load("k", loader) == "k1"
    others[0].join(30)
    assert loader.calls == ["k"]


@pytest.mark.parametrize("error", [ValueError("of the first"), KeyboardInterrupt()])
def test_one_load_that_fails_leaves_the_others_to_load_for_themselves(error: BaseException) -> None:
    loads, loader = SharedLoads[str, str](100), Loader()
    loader.errors[1] = error
    first: list[BaseException] = []

    def lead() -> None:
        try:
            loads.load("k", loader)
        except BaseException as raised:
            first.append(raised)

    def follow() -> str:
        assert loader.begun.wait(30)
        threading.Timer(0.05, loader.go.set).start()
        return loads.load("k", loader)

    assert in_threads(lead, follow) == [None, "k2"]
    assert first == [error]
    assert not loads._under_way


@pytest.mark.parametrize("error", [ValueError("of the first"), KeyboardInterrupt()])
def test_an_interrupt_of_the_one_who_loads_is_not_raised_on_an_event_loop(error: BaseException) -> None:
    """It would end the loop, and all who wait for what runs there would wait for ever."""
    loads, loader = SharedLoads[str, str](100), Loader()
    loader.errors[1] = error

    def lead() -> None:
        with pytest.raises(type(error)):
            loads.load("k", loader)

    async def follow() -> str:
        assert loader.begun.wait(30)
        waiting = asyncio.ensure_future(loads.load_async("k", loader))
        await asyncio.sleep(0.05)
        loader.go.set()
        return await waiting

    assert in_threads(lead, lambda: asyncio.run(follow())) == [None, "k2"]


def test_a_closed_loop_keeps_nobody_from_being_told() -> None:
    loads, loader = SharedLoads[str, str](100), Loader()

    async def leave() -> None:
        waiting = asyncio.ensure_future(loads.load_async("k", loader))
        await asyncio.sleep(0.01)
        waiting.cancel()

    leader = threading.Thread(target=loads.load, args=("k", loader))
    leader.start()
    assert loader.begun.wait(30)
    asyncio.run(leave())  # waits first, on a loop that is closed when the load ends
    threading.Timer(0.05, loader.go.set).start()
    assert loads.load("k", loader) == "k1"
    leader.join()


def test_an_interrupt_abandons_what_was_not_begun() -> None:
    loads, loader = SharedLoads[str, str](100), Loader()
    loader.go.set()
    loader.errors[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        loads.load_many(["a", "b"], loader, in_order)
    assert not loads._under_way
    assert loads.load("b", loader) == "b2"


def test_a_cancelled_coroutine_does_not_cancel_the_others() -> None:
    loads, loader = SharedLoads[str, str](100), Loader()

    async def run() -> str:
        first = asyncio.ensure_future(loads.load_async("k", loader))
        second = asyncio.ensure_future(loads.load_async("k", loader))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        loader.go.set()
        return await second

    assert asyncio.run(run()) == "k1"
    assert loader.calls == ["k"]


def test_patience_ends() -> None:
    loads, loader = SharedLoads[str, str](100), Loader()
    leader = threading.Thread(target=loads.load, args=("k", loader))
    leader.start()
    assert loader.begun.wait(30)
    assert loads.load("k", lambda key: ("own", 1), patience_s=0.01) == "own"
    loader.go.set()
    leader.join()


def test_what_has_no_weight_is_not_kept() -> None:
    loads = SharedLoads[str, str | None](100)
    assert loads.load("k", lambda _: (None, None)) is None
    assert loads.load("k", lambda _: ("there now", 1)) == "there now"


def test_stale_values_are_dropped_once() -> None:
    loads = SharedLoads[str, list[int]](100)
    old, new = [1], [2]
    loads.put("k", old, 60)
    loads.drop("k", old)
    loads.put("k", new, 60)
    loads.drop("k", old)  # by somebody who is late
    assert loads.get("k") is new
    assert loads._weight == 60


def test_requests_have_all_ended_when_one_of_them_fails() -> None:
    """Else a request could still be under way while its caller cleans up."""
    ended: list[int] = []
    slow = threading.Event()

    def call(n: int) -> None:
        if n == 0:
            threading.Timer(0.2, slow.set).start()
            raise ValueError(n)
        assert slow.wait(30)
        ended.append(n)

    class Far:
        is_remote = True

    with pytest.raises(ValueError, match="0"):
        pools.map_requests(Far(), call, range(8))
    assert sorted(ended) == list(range(1, 8))
