"""A queue for the commits to one folder. It saves work and is fair; it does not make commits safe.

Without it, many writers prepare their commits at the same time, one wins, and the others prepare again. In the queue
they take turns in the order in which they came, so most commits succeed at the first attempt.

Nothing relies on the queue: :meth:`~icechunk_engine.storage.base.Storage.replace` keeps commits safe. So every failure
is ignored, and the numbers in the file may be wrong. A writer who cannot lock the file goes on without its turn. So
does one who has seen nobody take a turn for five seconds: a commit that hangs delays the others by no more than that.

The turn is a kernel lock on the file. The content of the file says who comes next. It is written only if somebody has
to wait:

- ``drawn`` is the last ticket. A writer who has to wait draws the next one. Two writers may draw the same ticket.
- ``served`` is the last ticket whose owner got the turn. The tickets between that one and yours are ahead of you.
- ``turns`` grows with each turn, and so shows that the queue moves.

You only try to take the lock if nobody is ahead of you, or if the queue stands still: those ahead may be gone. You
sleep longer the more writers are ahead of you, so a long queue costs little time of the processors.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from icechunk_engine.storage.local.file_lock import lock, open_lock_file, release

QUEUE_NAME = ".icechunk.turn#1"

_PATIENCE_S = 5.0
_POLL_S = 0.001
_LONGEST_SLEEP_S = 0.25
_FIRST_GUESS_S = 0.02
"""Seconds that one turn takes, as long as nothing better is known."""


@contextmanager
def commit_queue(directory: str) -> Iterator[None]:
    """Hold the turn to commit to a directory, or go on without it after some seconds."""
    fd = _take_turn(os.path.join(directory, QUEUE_NAME))
    try:
        yield
    finally:
        if fd is not None:
            release(fd)


def _take_turn(path: str) -> int | None:
    try:
        fd = open_lock_file(path)
    except OSError:
        return None
    try:
        if _wait(fd):
            return fd
    except OSError:
        pass
    except BaseException:
        release(fd)
        raise
    release(fd)
    return None


def _wait(fd: int) -> bool:
    """Wait for the turn. Returns False if nobody took a turn for some seconds."""
    board = _read(fd)
    if board.drawn <= board.served and lock(fd, wait=False):
        return True
    place = Place(ticket=max(board.drawn, board.served) + 1, turns=board.turns, moved_at_s=time.monotonic())
    _write(fd, _DRAWN, place.ticket)
    while True:
        board = _read(fd)
        place.look(board, time.monotonic())
        if place.may_try(board) and lock(fd, wait=False):
            board = _read(fd)
            _write(fd, _SERVED, max(board.served, place.ticket))
            _write(fd, _TURNS, board.turns + 1)
            return True
        if place.waited_s > _PATIENCE_S:
            return False
        time.sleep(random.uniform(0.5, 1) * place.sleep_s(board))


class Board(NamedTuple):
    """The content of the file."""

    drawn: int
    served: int
    turns: int


@dataclass(slots=True)
class Place:
    """The place of one writer in the queue. It decides and does not wait.

    Attributes
    ----------
    ticket
        The ticket that the writer drew.
    turns
        Number of turns when the writer last looked.
    moved_at_s
        Time at which the writer last saw the queue move.
    waited_s
        Seconds since then.
    turn_s
        Estimated seconds of one turn.
    """

    ticket: int
    turns: int
    moved_at_s: float
    waited_s: float = 0.0
    turn_s: float = _FIRST_GUESS_S

    def look(self, board: Board, now_s: float) -> None:
        """Take in what the board says now."""
        self.waited_s = now_s - self.moved_at_s
        if board.turns != self.turns:
            self.turn_s = self.waited_s / max(board.turns - self.turns, 1)
            self.turns, self.moved_at_s, self.waited_s = board.turns, now_s, 0.0

    def ahead(self, board: Board) -> int:
        """Return the number of tickets that come first."""
        return max(self.ticket - board.served - 1, 0)

    def may_try(self, board: Board) -> bool:
        """Return True if it is this writer's turn, or if the queue stands still."""
        return self.ahead(board) == 0 or self.waited_s > min(3 * self.turn_s + _FIRST_GUESS_S, _PATIENCE_S / 5)

    def sleep_s(self, board: Board) -> float:
        """Return how long to sleep at most before the next look: half of the time that those ahead need."""
        return max(_POLL_S, min(self.ahead(board) * self.turn_s / 2, _LONGEST_SLEEP_S))


_NUMBER = struct.Struct("<Q")
_DRAWN, _SERVED, _TURNS = range(len(Board._fields))


def _read(fd: int) -> Board:
    data = os.pread(fd, len(Board._fields) * _NUMBER.size, 0)
    numbers = [number for (number,) in _NUMBER.iter_unpack(data[: len(data) // _NUMBER.size * _NUMBER.size])]
    return Board(*numbers, *[0] * (len(Board._fields) - len(numbers)))


def _write(fd: int, field: int, value: int) -> None:
    with suppress(OSError):  # the file belongs to somebody else
        os.pwrite(fd, _NUMBER.pack(value % 2**64), field * _NUMBER.size)
