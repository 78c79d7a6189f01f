"""Changes that run again on the newest snapshot until they are committed."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.repository import retrying
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.faults import FaultStorage


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the attempts after which the change would have waited."""
    waited: list[int] = []
    monkeypatch.setattr(retrying, "wait_after_lost_commit", lambda number, _: waited.append(number))
    return waited


@pytest.fixture
def log(repo: Repository) -> Repository:
    with repo.transaction("main", message="empty log") as store:
        zarr.create_array(store, name="log", shape=(0,), chunks=(3,), dtype="int64")
    return repo


def appending(value: int) -> Callable[[ic.Session], object]:
    return lambda session: zarr.open_array(session.store, path="log", mode="r+").append([value])


def overtaken(repo: Repository, times: int, change: Callable[[ic.Session], object]) -> Callable[[ic.Session], None]:
    """Return a change that is overtaken by another commit after each of its first calls."""
    rivals = iter(range(-1, -1 - times, -1))

    def write(session: ic.Session) -> None:
        change(session)
        if (rival := next(rivals, None)) is not None:
            faster = repo.writable_session("main")
            appending(rival)(faster)
            faster.commit("faster")

    return write


def logged(repo: Repository) -> list[int]:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path="log", mode="r")[:]).tolist()


def test_the_change_runs_again_on_the_newest_snapshot(log: Repository, waits: list[int]) -> None:
    made = log.commit_with_retry(overtaken(log, 3, appending(7)), "main", message="mine", metadata={"k": 1})
    assert logged(log) == [-1, -2, -3, 7]
    newest, *older = log.ancestry(branch="main")
    assert (newest.id, newest.message) == (made, "mine")
    assert newest.metadata["k"] == 1
    assert [info.message for info in older[:3]] == ["faster"] * 3
    assert waits == [1, 2, 3]


def test_what_does_not_conflict_runs_once(log: Repository, waits: list[int]) -> None:
    def add(session: ic.Session) -> None:
        zarr.create_group(session.store, path="other")

    log.commit_with_retry(overtaken(log, 1, add), "main", message="mine")
    assert waits == []
    assert logged(log) == [-1]
    zarr.open_group(log.readonly_session("main").store, path="other", mode="r")


def test_a_solver_settles_conflicts_without_another_attempt(log: Repository, waits: list[int]) -> None:
    log.commit_with_retry(appending(1), "main", message="first")

    def overwrite(session: ic.Session) -> None:
        zarr.open_array(session.store, path="log", mode="r+")[0] = 5
        faster = log.writable_session("main")
        zarr.open_array(faster.store, path="log", mode="r+")[0] = 6
        faster.commit("faster")

    log.commit_with_retry(overwrite, "main", message="mine", rebase_with=ic.BasicConflictSolver())
    assert logged(log) == [5]
    assert waits == []


def test_the_last_error_says_what_happened(log: Repository, waits: list[int]) -> None:
    with pytest.raises(
        ic.RebaseFailedError, match=r"gave up after 2 attempts in .* ZarrMetadataDoubleUpdate"
    ) as caught:
        log.commit_with_retry(overtaken(log, 9, appending(7)), "main", message="mine", max_attempts=2)
    assert waits == [1]
    assert logged(log) == [-1, -2]
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.snapshot == log.lookup_branch("main")
    assert {conflict.path for conflict in error.conflicts} == {"/log"}
    assert "'faster'" in str(error)


@pytest.mark.parametrize("error", [ZeroDivisionError, ic.ConflictError])
def test_an_error_of_the_change_ends_it(log: Repository, waits: list[int], error: type[Exception]) -> None:
    sessions = []

    def fail(session: ic.Session) -> None:
        sessions.append(session)
        appending(7)(session)
        raise error

    with pytest.raises(error):
        log.commit_with_retry(fail, "main", message="mine")
    assert len(sessions) == 1
    assert waits == []
    assert not sessions[0].has_uncommitted_changes
    assert logged(log) == []


def test_a_change_that_changes_nothing(log: Repository) -> None:
    with pytest.raises(ic.SessionStateError, match="nothing to commit"):
        log.commit_with_retry(lambda session: None, "main", message="mine")
    made = log.commit_with_retry(lambda session: None, "main", message="mine", allow_empty=True)
    assert log.lookup_branch("main") == made


def test_a_change_must_not_commit(log: Repository) -> None:
    def commit(session: ic.Session) -> None:
        appending(7)(session)
        session.commit("by itself")

    with pytest.raises(ic.SessionStateError, match="read-only"):
        log.commit_with_retry(commit, "main", message="mine")


def test_attempts_are_counted_from_one(log: Repository) -> None:
    with pytest.raises(ic.IcechunkError, match="max_attempts must be at least 1"):
        log.commit_with_retry(appending(7), "main", message="mine", max_attempts=0)


def silent(storage: ic.Storage, answers_lost: int) -> FaultStorage:
    """Return a storage that goes down right after the first swap, for a number of calls."""
    down = iter(range(answers_lost))
    storage = FaultStorage(storage)
    has_swapped = False

    def swallow(n: int, call: StorageCall, moment: str) -> None:
        nonlocal has_swapped
        has_swapped |= call.method == "replace" and moment == "after"
        if has_swapped and next(down, None) is not None:
            raise ic.StorageError("no answer", ic.ErrorKind.OBJECT_STORE)

    storage.hook = swallow
    return storage


def test_a_commit_of_unknown_outcome_is_not_made_twice(log: Repository, waits: list[int]) -> None:
    repo = Repository.open(log.storage)
    place = silent(repo.storage, 2)  # neither the swap nor the look at its outcome gets an answer
    Repository.open(place).commit_with_retry(appending(7), "main", message="mine")
    assert logged(log) == [7]
    assert [info.message for info in log.ancestry(branch="main")].count("mine") == 1
    assert waits == [1]


def test_an_outcome_that_stays_unknown(log: Repository) -> None:
    place = Repository.open(silent(log.storage, 1000))
    with pytest.raises(ic.StorageError, match="unknown whether the change was committed"):
        place.commit_with_retry(appending(7), "main", message="mine")
    assert logged(log) == [7]
