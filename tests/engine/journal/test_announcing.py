"""Announcements report all edits, many in one entry; no failure of one caller loses the edits of another."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest

from icechunk_engine.errors import ErrorKind, SessionStateError, StorageError
from icechunk_engine.journal.journal import Journal
from icechunk_engine.testing.faults import FailOnce, Moment
from tests.engine.journal.entries import RECORD
from tests.engine.journal.place import WAIT_S, Place


@pytest.fixture(params=[False, True], ids=["near", "remote"])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(is_remote=request.param)


def test_one_after_the_other(place: Place) -> None:
    place.announcer.announce()
    assert place.calls == []  # nothing to report
    for number in range(3):
        place.write(number)
    assert place.stored() == [[0], [1], [2]]
    assert place.calls == ["put", "info"] * 3
    asyncio.run(place.write_async(3))
    assert place.stored()[3:] == [[3]]


def test_threads_that_come_meanwhile_share_an_entry(place: Place) -> None:
    place.gate.clear()
    with ThreadPoolExecutor(20) as threads:
        done = [threads.submit(place.write, 0)]
        assert place.arrived.acquire(timeout=WAIT_S)
        done += [threads.submit(place.write, number) for number in range(1, 20)]
        wait_until(lambda: len(place.owner.pending) == 20)
        place.gate.set()
        for one in done:
            one.result(WAIT_S)
    # Threads that made their edit but had not yet called announce may need a round more, which finds nothing.
    assert place.stored()[0] == [0]
    assert sorted(chain(*place.stored())) == list(range(20))
    assert len(place.stored()) <= 3


def wait_until(holds: Any) -> None:
    """Wait for other threads."""
    ready = threading.Event()
    for _ in range(WAIT_S * 1000):
        if holds():
            return
        ready.wait(0.001)
    raise AssertionError("it never came true")


def test_coroutines_share_an_entry(place: Place) -> None:
    async def write_all() -> None:
        await asyncio.gather(*(place.write_async(number) for number in range(50)))

    asyncio.run(write_all())
    assert sorted(chain(*place.stored())) == list(range(50))
    assert len(place.stored()) <= 2


def test_threads_and_coroutines_together(place: Place) -> None:
    async def write_some(first: int) -> None:
        for start in range(first, first + 50, 10):
            await asyncio.gather(*(place.write_async(number) for number in range(start, start + 10)))

    def write_in_turn(first: int) -> None:
        for i in range(50):
            place.write(first + i)

    with ThreadPoolExecutor(6) as threads:
        done = [threads.submit(asyncio.run, write_some(first)) for first in (100, 200, 300)]
        done += [threads.submit(write_in_turn, first) for first in (400, 500, 600)]
        for one in done:
            one.result(WAIT_S)
    assert sorted(chain(*place.stored())) == [hundred * 100 + i for hundred in range(1, 7) for i in range(50)]


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failed_request_loses_no_edit(place: Place, n: int, moment: Moment) -> None:
    place.fail = FailOnce(n, moment)
    place.owner.edit(1)
    with pytest.raises(StorageError, match="injected"):
        place.announcer.announce()
    place.write(2)
    assert place.stored()[-1] == [1, 2]  # the first entry may be there, too: its answer was lost


def test_a_failed_entry_of_many_callers_loses_no_edit(place: Place) -> None:
    place.fail = FailOnce(2, "before")  # the second entry
    place.gate.clear()

    def outcome(number: int) -> str:
        try:
            place.write(number)
        except StorageError as error:
            return str(error)
        return "stored"

    with ThreadPoolExecutor(10) as threads:
        first = threads.submit(outcome, 0)
        assert place.arrived.acquire(timeout=WAIT_S)
        others = [threads.submit(outcome, number) for number in range(1, 10)]
        wait_until(lambda: len(place.owner.pending) == 10 and _waiting(place) == 9)
        place.gate.set()
        assert first.result(WAIT_S) == "stored"
        # A caller that wakes only after the second entry has failed reports once more, which succeeds.
        assert {one.result(WAIT_S)[:14] for one in others} <= {"injected fault", "stored"}
    assert place.fail.failed is not None
    place.write(99)
    assert place.stored()[0] == [0]
    assert sorted(chain(*place.stored())) == [*range(10), 99]


def is_busy(place: Place) -> bool:
    return place.announcer._under_way is not None


def _waiting(place: Place) -> int:
    found = place.announcer._under_way
    return 0 if found is None else len(found.wakers)


def test_a_cancelled_leader_loses_nothing() -> None:
    place = Place(is_remote=True)

    async def run() -> None:
        place.gate.clear()
        leader = asyncio.create_task(place.write_async(0))
        await asyncio.to_thread(place.arrived.acquire, timeout=WAIT_S)
        others = [asyncio.create_task(place.write_async(number)) for number in (1, 2)]
        while _waiting(place) < 3:
            await asyncio.sleep(0.001)
        leader.cancel()
        others[0].cancel()
        place.gate.set()
        results = await asyncio.wait_for(asyncio.gather(leader, *others, return_exceptions=True), WAIT_S)
        assert isinstance(results[0], asyncio.CancelledError)
        assert isinstance(results[1], asyncio.CancelledError)
        assert results[2] is None

    asyncio.run(run())
    assert place.stored() == [[0], [1, 2]]


@pytest.mark.parametrize("is_remote", [False, True])
def test_an_interrupted_leader_loses_nothing(is_remote: bool) -> None:
    place = Place(is_remote=is_remote)
    place.fail = FailOnce(0, "after", KeyboardInterrupt())  # type: ignore[arg-type]
    place.gate.clear()
    interrupted: list[BaseException] = []

    def lead() -> None:
        try:
            place.write(0)
        except KeyboardInterrupt as error:
            interrupted.append(error)

    leader = threading.Thread(target=lead)
    leader.start()
    assert place.arrived.acquire(timeout=WAIT_S)
    with ThreadPoolExecutor(3) as threads:
        others = [threads.submit(place.write, number) for number in (1, 2, 3)]
        wait_until(lambda: _waiting(place) == 3)
        place.gate.set()
        for one in others:
            one.result(WAIT_S)
    leader.join(WAIT_S)
    assert interrupted
    assert sorted(place.stored()[-1]) == [0, 1, 2, 3]


def test_a_session_that_ended_is_told_to_everybody(place: Place) -> None:
    Journal(place.storage.inner, "token").close()
    for _ in range(2):
        place.owner.edit(1)
        with pytest.raises(SessionStateError, match="too late") as caught:
            place.announcer.announce()
        assert caught.value.kind == ErrorKind.SESSION_ENDED
    assert place.stored() == []
    Journal(place.storage.inner, "token").open(RECORD)  # its commit failed
    place.write(2)
    assert place.stored() == [[1, 1, 2]]


def test_the_announcer_of_a_forked_child_starts_anew(place: Place) -> None:
    place.gate.clear()
    leader = threading.Thread(target=place.write, args=(0,))
    leader.start()
    assert place.arrived.acquire(timeout=WAIT_S)
    place.announcer.forget()
    assert not is_busy(place)
    place.gate.set()
    leader.join(WAIT_S)
    place.write(1)
