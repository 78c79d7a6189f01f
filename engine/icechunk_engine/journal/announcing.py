"""Report edits to the journal. Edits that are made during a request share the next one.

**What is always true.** When an announcement returns, every edit that its caller had made before is in the repository.
If it raises, the edits still wait at their owner, and the next announcement reports them, too. All callers that wait
for an entry learn its outcome, whatever happens to the thread that writes it.

**Why it holds.** Entries are written in *rounds*, one at a time. A caller that finds no round under way leads one: it
takes all waiting edits, and stores them as one entry. Later callers wait until it has ended. One of them then leads
the next round for all of them, because a round takes every edit that was made before it began. So a hundred concurrent
writes cost a few requests. The owner forgets edits only when their entry is stored (:meth:`Outbox.reported`).

**Failures.** If the storage refuses an entry, all callers whose edits were in it get the error. If the leader is
interrupted, the others do not know the outcome, and one of them leads again. A coroutine that is cancelled stops
waiting; its round goes on, because it belongs to a task of the pool.

**What would break it.** An interrupt can come between any two steps of a leader. So a round begins inside the ``try``
that ends it, and it may be ended twice. Waiters are told through queues, because a put is a single step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from icechunk_engine._runtime.locks import forget_in_child, memory_lock
from icechunk_engine._runtime.pools import start_request
from icechunk_engine.journal.entries import JournalEntry
from icechunk_engine.journal.journal import Journal


class Outbox(Protocol):
    """The owner of the edits that wait to be reported, such as a workspace.

    Both methods make no requests, but ``take`` may wait for a local disk. They are called on any thread or event loop,
    never two at a time for one announcer.
    """

    def take(self) -> JournalEntry | None:
        """Return all edits that are not reported yet as one entry; None if there are none.

        The edits stay unreported. If :meth:`reported` does not follow, the next call returns them again, with those
        that were made since. Each call returns a ``seq`` that no entry of this writer had before: the object of a
        failed entry may exist although its answer was lost, and the session reads each name once.
        """
        ...

    def reported(self, entry: JournalEntry) -> None:
        """Forget the edits in an entry: it is stored. Edits made after :meth:`take` still wait."""
        ...


class Announcer:
    """Reports the edits of one owner to the journal of a session.

    A caller makes its edits, then calls :meth:`announce` or :meth:`announce_async`, and returns to its user when that
    returns. Never call it from a task of the request pool.

    Parameters
    ----------
    journal
        Where the entries go.
    outbox
        Whose edits to report.
    durable
        As for :meth:`Journal.put_entry`, except for entries whose flush is left to the session's process.

    Notes
    -----
    Requests: one PUT and one HEAD for each entry; none if no edits wait.
    """

    def __init__(self, journal: Journal, outbox: Outbox, *, durable: bool = False) -> None:
        self._journal = journal
        self._outbox = outbox
        self._durable = durable
        self._lock = memory_lock()
        self._under_way: _Round | None = None
        self._n_begun = 0
        forget_in_child(self)

    def forget(self) -> None:
        """Drop the round of a thread of the parent. Called in a forked child."""
        self._under_way = None

    def announce(self) -> None:
        """Report all edits that were made before this call, by any thread.

        Raises
        ------
        SessionStateError
            ``session-ended``: the session takes no reports any more.
        StorageError
            The entry was not stored, or perhaps it was and the answer was lost.
        """
        seen: int | None = None
        while True:
            mine = _Round()
            try:
                found = self._join(mine)
                if found is mine:
                    self._lead(mine)
            finally:
                try:
                    self._end(mine)
                except BaseException:  # an interrupt in the middle of it
                    self._end(mine)
                    raise
            if found is not mine:
                self._wait(found)
            seen = found.number if seen is None else seen
            if found.settles(mine, seen):
                return

    async def announce_async(self) -> None:
        """Await :meth:`announce`: same result and errors. A task of the pool makes the requests behind a network."""
        storage = self._journal.storage
        if not storage.is_remote:
            await asyncio.sleep(0)  # other coroutines that can finish their edits now join this round
        seen: int | None = None
        while True:
            mine = _Round()
            try:
                found = self._join(mine)
                if found is mine and storage.is_remote:
                    start_request(partial(self._lead, mine))
                elif found is mine:
                    self._lead(mine)  # a hop to a thread would take as long as writing a small file
            except BaseException:  # also: no thread can be started any more
                self._end(mine)
                raise
            await self._ended(found)
            seen = found.number if seen is None else seen
            if found.settles(mine, seen):
                return

    def _join(self, mine: _Round) -> _Round:
        """Return the round under way, or ``mine``, which the caller must then lead and end."""
        with self._lock:
            if self._under_way is None:
                self._n_begun += 1
                mine.number = self._n_begun
                self._under_way = mine
            return self._under_way

    def _lead(self, mine: _Round) -> None:
        try:
            entry = self._outbox.take()
            if entry is not None:
                self._journal.put_entry(entry, durable=self._durable and entry.flush_promise is None)
                self._outbox.reported(entry)
            mine.outcomes.append(None)
        except Exception as error:
            mine.outcomes.append(error)
        finally:
            self._end(mine)

    def _end(self, mine: _Round) -> None:
        """End a round, whatever came of it, and wake those who wait. Does nothing to rounds of others."""
        with self._lock:
            if self._under_way is mine:
                self._under_way = None
        for wake in mine.wakers:
            with suppress(RuntimeError):  # that event loop is closed
                wake()

    def _wait(self, found: _Round) -> None:
        signal: SimpleQueue[None] = SimpleQueue()
        if self._will_be_told(found, partial(signal.put, None)):
            signal.get()

    async def _ended(self, found: _Round) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        if self._will_be_told(found, partial(loop.call_soon_threadsafe, _settle, ended)):
            await ended

    def _will_be_told(self, found: _Round, wake: Callable[[], object]) -> bool:
        """Return False if the round has ended. Else ``wake`` will be called at least once, from another thread."""
        with self._lock:
            if self._under_way is not found:
                return False
            found.wakers.append(wake)
            return True


class _Round:
    """One entry on its way.

    Attributes
    ----------
    number
        Rounds of one announcer are numbered from 1.
    outcomes
        None if the edits are reported, or the error; empty if the leader was interrupted.
    wakers
        Functions to call when the round has ended.
    """

    __slots__ = ("number", "outcomes", "wakers")

    def __init__(self) -> None:
        self.number = 0
        self.outcomes: list[Exception | None] = []
        self.wakers: list[Callable[[], object]] = []

    def settles(self, mine: _Round, seen: int) -> bool:
        """Return True if this round, which has ended, has reported the caller's edits. Raises its error.

        Parameters
        ----------
        mine
            The round that the caller would have led.
        seen
            Number of the first round that the caller found. It may have begun before the caller's edits were made.
        """
        if (self is not mine and self.number <= seen) or not self.outcomes:
            return False
        error = self.outcomes[0]
        if error is not None:
            raise error
        return True


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)
