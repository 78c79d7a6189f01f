"""The queue for commits: writers take turns in the order in which they came, and nobody waits for the dead."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from icechunk_engine.storage.local import commit_queue as queue
from icechunk_engine.storage.local.commit_queue import Board, Place
from icechunk_engine.storage.local.file_lock import lock, open_lock_file, release


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine, a queue that moves must not look as if it stood still."""
    monkeypatch.setattr(queue, "_PATIENCE_S", 600.0)
    monkeypatch.setattr(queue, "_FIRST_GUESS_S", 30.0)
    monkeypatch.setattr(queue, "_LONGEST_SLEEP_S", 0.005)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """The file of the queue, opened by somebody else."""
    fd = open_lock_file(str(tmp_path / queue.QUEUE_NAME))
    yield fd
    release(fd)


def is_free(fd: int) -> bool:
    if not lock(fd, wait=False):
        return False
    unlock(fd)
    return True


def unlock(fd: int) -> None:
    release(os.dup(fd))  # closing the copy leaves the file open


def test_a_writer_alone_takes_its_turn_and_writes_nothing(tmp_path: Path, fd: int) -> None:
    for _ in range(3):
        with queue.commit_queue(str(tmp_path)):
            assert not is_free(fd)
        assert is_free(fd)
    assert os.fstat(fd).st_size == 0


def test_first_come_first_served(tmp_path: Path, fd: int) -> None:
    assert lock(fd, wait=False)
    served: list[int] = []

    def commit(number: int) -> None:
        with queue.commit_queue(str(tmp_path)):
            served.append(number)

    writers = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for number, writer in enumerate(writers):
        writer.start()
        while queue._read(fd).drawn <= number:
            pass
    unlock(fd)
    for writer in writers:
        writer.join()
    assert served == list(range(8))
    assert queue._read(fd) == Board(drawn=8, served=8, turns=8)


def test_nobody_waits_for_those_who_left(tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_FIRST_GUESS_S", 0.001)
    queue._write(fd, queue._DRAWN, 5)  # five drew tickets and died
    with queue.commit_queue(str(tmp_path)):
        assert not is_free(fd)
    assert queue._read(fd) == Board(drawn=6, served=6, turns=1)


@pytest.mark.parametrize("content", [b"\xff" * 24, b"\xff" * 8, b"abc", b"\0" * 16 + b"\xff" * 9, bytes(range(7, 31))])
def test_wrong_numbers_delay_nobody_for_long(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(queue, "_FIRST_GUESS_S", 0.001)
    os.pwrite(fd, content, 0)
    for _ in range(3):
        with queue.commit_queue(str(tmp_path)):
            assert not is_free(fd)


def test_who_sees_no_progress_goes_on_without_the_turn(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_PATIENCE_S", 0.01)
    assert lock(fd, wait=False)
    with queue.commit_queue(str(tmp_path)):
        assert queue._read(fd).turns == 0  # it is still the other's
    unlock(fd)
    with queue.commit_queue(str(tmp_path)):  # and who left is in nobody's way
        assert not is_free(fd)


def test_a_file_that_cannot_be_written_is_still_a_queue(
    tmp_path: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "pwrite", refuse)
    assert lock(fd, wait=False)
    threading.Timer(0.01, unlock, [fd]).start()
    with queue.commit_queue(str(tmp_path)):
        assert not is_free(fd)


def test_places() -> None:
    place = Place(ticket=8, turns=10, moved_at_s=100.0, turn_s=1.0)
    board = Board(drawn=9, served=3, turns=10)
    assert place.ahead(board) == 4
    place.look(board, 101.0)
    assert not place.may_try(board)
    assert place.waited_s == 1.0
    board = Board(drawn=9, served=5, turns=12)
    place.look(board, 101.5)
    assert place.ahead(board) == 2
    assert (place.turn_s, place.waited_s) == (0.75, 0.0)
    assert not place.may_try(board)
    board = Board(drawn=9, served=7, turns=14)
    place.look(board, 102.0)
    assert place.ahead(board) == 0
    assert place.may_try(board)
    passed = Board(drawn=9, served=9, turns=15)
    assert place.ahead(passed) == 0


def test_those_behind_sleep_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_LONGEST_SLEEP_S", 0.25)
    place = Place(ticket=100, turns=0, moved_at_s=0.0, turn_s=0.01)
    sleeps = [place.sleep_s(Board(drawn=100, served=served, turns=0)) for served in (0, 80, 97, 98, 99)]
    assert sleeps == [0.25, pytest.approx(0.095), 0.01, 0.005, queue._POLL_S]


def test_a_queue_that_stands_still_lets_others_try() -> None:
    place = Place(ticket=5, turns=0, moved_at_s=0.0, turn_s=1.0)
    board = Board(drawn=5, served=0, turns=0)
    place.look(board, 3.0 + queue._FIRST_GUESS_S)
    assert not place.may_try(board)
    place.look(board, 3.1 + queue._FIRST_GUESS_S)
    assert place.may_try(board)
