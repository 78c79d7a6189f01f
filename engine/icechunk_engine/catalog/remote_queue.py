"""A queue for the commits to one branch of a distant store. It saves work and is fair; it does not make commits safe.

If many writers commit at once, one wins, and the others have written snapshots for nothing. If they then wait for
random times, those that have just committed overtake those that wait. So a writer that lost puts a small object, its
ticket, below ``turns/``. It looks once how many older tickets are there, and then waits until that many commits have
reached the branch. It removes its ticket at the end. Official ignores these objects.

A commit that meets no other makes no request here. A process remembers for some seconds that it was in a crowd. Until
then it draws a ticket before it begins its next commit, or it would overtake all others.

Nothing relies on the queue: commits are safe because of the conditional write (:mod:`.compare_and_swap`). So every
failure is ignored, and nobody waits for ever:

- If no commit comes, the writer counts the tickets again, because their owners may have left without a commit.
- If nothing changes for five seconds, the owner of the first ticket may be dead. The next writer removes it.
- A writer goes on without its turn after a minute. So nobody counts older tickets.
- If a ticket cannot be removed, it is replaced by an empty object, which is not counted.

The times of tickets are those of the store, so it does not matter if the clocks of writers differ.
"""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from types import TracebackType

from icechunk_engine._runtime.pools import start_request
from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.compare_and_swap import wait_after_lost_commit
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.errors import IcechunkError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.storage.base import ObjectInfo, Storage

FOLDER = "turns/"

_PATIENCE_S = 5.0
_LONGEST_WAIT_S = 60.0
_REMEMBERED_S = 10.0
_SHORTEST_SLEEP_S, _LONGEST_SLEEP_S = 0.02, 1.0
_MIN_STANDSTILL_S = 0.5
_FAST_RETRIES = 5


@dataclass(frozen=True, slots=True)
class _Crowd:
    """What a process remembers of a branch where it had to wait.

    Attributes
    ----------
    until_s
        Time at which it forgets.
    turn_s
        Estimated seconds of one turn.
    """

    until_s: float
    turn_s: float


_crowds: dict[str, _Crowd] = {}
"""By storage and branch."""


class RemoteQueue:
    """The queue of one commit. Leaving the ``with`` block removes the ticket. Does nothing if the storage is local."""

    def __init__(self, assets: AssetManager, branch: str) -> None:
        self._assets = assets
        self._storage = assets.storage
        self._branch = branch
        self._folder = f"{FOLDER}{hashlib.sha256(branch.encode()).hexdigest()[:16]}/"
        self._name = f"{assets.storage.identity}#{branch}"
        self._ticket: str | None = None
        self._num_lost = 0
        self._is_crowded = False
        self._turn_began_s = 0.0

    def __enter__(self) -> RemoteQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._ticket is None:
            return
        now_s = time.monotonic()
        _remove(self._storage, self._ticket)
        if self._is_crowded:
            _crowds[self._name] = _Crowd(now_s + _REMEMBERED_S, (now_s - self._turn_began_s) / (1 + self._num_lost))
        else:
            _crowds.pop(self._name, None)

    def begin(self) -> Catalog:
        """Return a look at the repository for the first attempt. Waits for the turn if this process was in a crowd."""
        crowd = _crowds.get(self._name)
        if crowd is not None and time.monotonic() < crowd.until_s:
            with suppress(IcechunkError):
                return self._wait(crowd.turn_s)
        return open_catalog(self._assets)

    def begin_again(self, attempts: int, took_s: float) -> Catalog:
        """Wait for the turn after a commit was prepared and lost. Returns a look at the repository.

        Parameters
        ----------
        attempts
            Number of lost commits.
        took_s
            Seconds that preparing the commit took.
        """
        if self._storage.is_remote:
            if self._ticket is None:
                with suppress(IcechunkError):
                    return self._wait(took_s)
                wait_after_lost_commit(attempts, took_s)
            else:  # it was our turn, and the winner did not queue: now be faster than others
                self._num_lost += 1
                wait_after_lost_commit(max(0, self._num_lost - _FAST_RETRIES), took_s)
        return open_catalog(self._assets)

    def _wait(self, turn_s: float) -> Catalog:
        """Draw a ticket and wait. Returns the last look at the repository. Raises IcechunkError."""
        found = self._draw()
        line = Line(ticket=self._ticket or "", began_s=time.monotonic(), turn_s=turn_s)
        line.count(found, time.monotonic())
        is_crowded, tip = len(tickets(found)) > 1, None
        while True:
            # A commit reaches the branch before its ticket goes away, so the two looks belong to one moment.
            listing = start_request(lambda: list(self._storage.list(self._folder))) if line.must_count else None
            catalog = open_catalog(self._assets)
            present = catalog.branch_tip(self._branch)
            line.move(0 if tip is None else _num_commits(catalog, present, tip, line.num_ahead), time.monotonic())
            tip = present
            if listing is not None:
                line.count(listing.result(), time.monotonic())
            if line.is_over:
                break
            if line.may_be_dead:
                line.removed.add(line.first)
                _remove(self._storage, line.first)
            time.sleep(random.uniform(0.5, 1) * line.sleep_s)
        self._is_crowded, self._turn_began_s = is_crowded, time.monotonic()
        return catalog

    def _draw(self) -> list[ObjectInfo]:
        """Put a ticket, and return all tickets."""
        self._ticket = f"{self._folder}{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex}"
        self._storage.put(self._ticket, b"ticket")
        return list(self._storage.list(self._folder))


def _num_commits(catalog: Catalog, tip: SnapshotId, before: SnapshotId, most: int) -> int:
    """Return how many commits the branch got since its tip was another one, at most ``most``."""
    if tip == before:
        return 0
    return next((i for i, record in enumerate(islice(catalog.ancestry(tip), most)) if record.id == before), most)


def _remove(storage: Storage, ticket: str) -> None:
    try:
        storage.delete([ticket])
    except IcechunkError:  # some writers may not delete
        with suppress(IcechunkError):
            storage.put(ticket, b"")


# --- what decides: pure ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Line:
    """The place of one writer in the queue. It decides and does not wait.

    Attributes
    ----------
    ticket
        Key of the writer's ticket.
    began_s
        Time at which the writer drew it.
    turn_s
        Estimated seconds of one turn.
    num_ahead
        Number of writers that come first.
    first
        Key of the first ticket when the writer last counted.
    removed
        Tickets that the writer removed, because nothing moved.
    """

    ticket: str
    began_s: float
    turn_s: float
    num_ahead: int = 0
    first: str = ""
    removed: set[str] = field(default_factory=set)
    _now_s: float = 0.0
    _moved_at_s: float = 0.0
    _counted_at_s: float = 0.0

    def __post_init__(self) -> None:
        self._now_s = self._moved_at_s = self.began_s

    def count(self, found: Collection[ObjectInfo], now_s: float) -> None:
        """Take in which tickets are there."""
        ahead = tickets_ahead(found, self.ticket, self.removed)
        first = ahead[0] if ahead else ""
        if not self._counted_at_s:
            self.num_ahead = len(ahead)
        if first != self.first:
            self.first, self._moved_at_s = first, now_s
        # Tickets outlive their commits for a moment. So the number of commits may say more than the number of tickets.
        self.num_ahead = min(self.num_ahead, len(ahead))
        self._now_s = self._counted_at_s = now_s

    def move(self, num_commits: int, now_s: float) -> None:
        """Take in how many commits the branch got."""
        self._now_s = now_s
        if num_commits:
            self.num_ahead -= num_commits
            self._moved_at_s = now_s

    @property
    def is_over(self) -> bool:
        """True if it is the writer's turn, or if it has waited for too long."""
        return self.num_ahead <= 0 or self._now_s - self.began_s > _LONGEST_WAIT_S

    @property
    def must_count(self) -> bool:
        """True if the tickets must be counted: the turn is near, or no commit came for longer than usual."""
        usual_s = min(max(3 * self.turn_s, _MIN_STANDSTILL_S), _PATIENCE_S)
        return self.num_ahead <= 1 or self._now_s - max(self._moved_at_s, self._counted_at_s) > usual_s

    @property
    def may_be_dead(self) -> bool:
        """True if nothing at all happened for long."""
        return self._now_s - self._moved_at_s > _PATIENCE_S

    @property
    def sleep_s(self) -> float:
        """How long to sleep at most before the next look: most of the time that those ahead need."""
        ahead_s = (self.num_ahead - 0.75) * self.turn_s
        return max(_SHORTEST_SLEEP_S, min(ahead_s, _LONGEST_SLEEP_S))


def tickets(found: Collection[ObjectInfo]) -> list[ObjectInfo]:
    """Return the tickets among the objects, oldest first."""
    return sorted((info for info in found if info.size_bytes), key=lambda info: (info.last_modified_us, info.key))


def tickets_ahead(found: Collection[ObjectInfo], own: str, removed: Collection[str] = ()) -> list[str]:
    """Return the keys of the tickets that come before one's own, oldest first.

    None is ahead if one's own was removed: somebody lost patience, and there is no place left to keep.
    """
    ordered = tickets(found)
    place = next((i for i, info in enumerate(ordered) if info.key == own), 0)
    return [
        info.key
        for info in ordered[:place]
        if info.key not in removed and ordered[place].last_modified_us - info.last_modified_us < _LONGEST_WAIT_S * 1e6
    ]
