"""The queue of writers on a distant store: who lost waits for its turn, nobody waits for the dead, nothing remains."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.catalog import remote_queue
from icechunk_engine.catalog.remote_queue import FOLDER, Line, RemoteQueue, tickets_ahead
from icechunk_engine.storage.base import ObjectInfo
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.faults import FaultStorage, Moment


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote_queue, "_SHORTEST_SLEEP_S", 0.001)
    remote_queue._crowds.clear()
    yield
    remote_queue._crowds.clear()


@pytest.fixture
def storage() -> FaultStorage:
    """A store in memory that counts as distant."""
    storage = FaultStorage(ic.in_memory_storage())
    storage.is_remote = True
    return storage


@pytest.fixture
def repo(storage: FaultStorage) -> Repository:
    repo = Repository.create(storage)
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(12,), chunks=(1,), dtype="int8")
    return repo


def edited(repo: Repository, index: int) -> ic.Session:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[index] = index + 1
    return session


def values(repo: Repository) -> list[int]:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]).tolist()


def overtaken(storage: FaultStorage, repo: Repository, times: int) -> list[StorageCall]:
    """Let another writer commit right before each of the first swaps. Returns the calls that concern tickets."""
    rivals = iter(range(5, 5 + times))
    calls: list[StorageCall] = []

    def overtake(n: int, call: StorageCall, moment: Moment) -> None:
        if moment == "before" and call.keys and call.keys[0].startswith(FOLDER):
            calls.append(call)
        if call.method == "replace" and moment == "before" and (rival := next(rivals, None)) is not None:
            edited(near, rival).commit("rival")

    near = Repository.open(storage.inner)
    storage.hook = overtake
    return calls


def left(storage: FaultStorage) -> list[str]:
    return [info.key for info in storage.inner.list(FOLDER)]


def test_a_commit_that_meets_no_other_makes_no_request(storage: FaultStorage, repo: Repository) -> None:
    calls = overtaken(storage, repo, 0)
    edited(repo, 0).commit("mine", rebase_with=ic.ConflictDetector())
    assert calls == []


@pytest.mark.parametrize("times", [1, 3])
def test_who_lost_draws_one_ticket(storage: FaultStorage, repo: Repository, times: int) -> None:
    calls = overtaken(storage, repo, times)
    edited(repo, 0).commit("mine", rebase_with=ic.ConflictDetector())
    assert [call.method for call in calls] == ["put", "list", "list", "delete"]
    assert left(storage) == []
    assert values(repo)[0] == 1
    assert sum(map(bool, values(repo))) == times + 1
    calls.clear()  # nobody else was there, so the next one does not queue
    edited(repo, 1).commit("mine too", rebase_with=ic.ConflictDetector())
    assert calls == []


def test_nobody_queues_for_a_store_that_is_near(
    storage: FaultStorage, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_queue, "wait_after_lost_commit", lambda *_: pytest.fail("waited"))
    storage.is_remote = False
    calls = overtaken(storage, repo, 3)
    edited(repo, 0).commit("mine", rebase_with=ic.ConflictDetector())
    assert calls == []


def test_without_a_solver_nobody_queues(storage: FaultStorage, repo: Repository) -> None:
    calls = overtaken(storage, repo, 1)
    with pytest.raises(ic.ConflictError):
        edited(repo, 0).commit("mine")
    assert calls == []


def test_a_ticket_goes_away_with_a_commit_that_fails(storage: FaultStorage, repo: Repository) -> None:
    calls = overtaken(storage, repo, 1)
    with pytest.raises(ic.RebaseFailedError):
        edited(repo, 5).commit("mine", rebase_with=ic.ConflictDetector())
    assert calls[-1].method == "delete"
    assert left(storage) == []


def test_first_come_first_served(storage: FaultStorage, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits until as many commits came as tickets were ahead of its own."""
    monkeypatch.setattr(remote_queue, "_REMEMBERED_S", -1)  # or the commits below would draw tickets of their own
    monkeypatch.setattr(remote_queue, "_PATIENCE_S", 60)
    first = RemoteQueue(repo._assets, "main")
    first.begin_again(1, 0.001)
    order: list[int] = []

    def wait(number: int) -> None:
        with RemoteQueue(repo._assets, "main") as queue:
            queue.begin_again(1, 0.001)
            order.append(number)
            edited(repo, number).commit(str(number), rebase_with=ic.ConflictDetector())

    writers = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    for number, writer in enumerate(writers):
        writer.start()
        while len(left(storage)) < number + 2 and writer.is_alive():
            pass
    assert order == []
    with first:
        edited(repo, 11).commit("first")
    for writer in writers:
        writer.join()
    assert order == list(range(5))
    assert left(storage) == []


def test_a_process_that_was_in_a_crowd_queues_at_once(storage: FaultStorage, repo: Repository) -> None:
    other = RemoteQueue(repo._assets, "main")
    other.begin_again(1, 0.001)
    mine = threading.Thread(target=lambda: RemoteQueue(repo._assets, "main").__enter__().begin_again(1, 0.001))
    mine.start()
    while len(left(storage)) < 2:
        pass
    with other:
        edited(repo, 11).commit("other")
    mine.join()
    remote_queue._crowds[f"{storage.identity}#main"] = remote_queue._Crowd(float("inf"), 0.001)
    (ticket,) = left(storage)
    storage.inner.delete([ticket])
    calls = overtaken(storage, repo, 0)
    edited(repo, 0).commit("mine", rebase_with=ic.ConflictDetector())
    assert [call.method for call in calls] == ["put", "list", "list", "delete"]
    calls.clear()  # by then the crowd was gone
    edited(repo, 1).commit("mine too", rebase_with=ic.ConflictDetector())
    assert calls == []


def test_nobody_waits_for_the_dead(storage: FaultStorage, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_queue, "_PATIENCE_S", 0.01)
    for _ in range(3):
        RemoteQueue(repo._assets, "main")._draw()
    overtaken(storage, repo, 1)
    edited(repo, 0).commit("mine", rebase_with=ic.ConflictDetector())
    assert values(repo)[0] == 1
    assert left(storage) == []


@pytest.mark.parametrize("method", ["put", "list", "delete"])
def test_a_queue_that_does_not_work_is_no_obstacle(
    storage: FaultStorage, repo: Repository, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(remote_queue, "wait_after_lost_commit", lambda attempts, _: waits.append(attempts))
    overtaken(storage, repo, 1)
    overtake = storage.hook
    assert overtake is not None

    def refuse(n: int, call: StorageCall, moment: Moment) -> None:
        if call.method == method and call.keys[0].startswith(FOLDER):
            raise ic.StorageError("access denied", ic.ErrorKind.OBJECT_STORE)
        overtake(n, call, moment)

    storage.hook = refuse
    edited(repo, 0).commit("mine", rebase_with=ic.ConflictDetector())
    assert values(repo)[0] == 1
    assert waits == ([] if method == "delete" else [1])
    sizes = [info.size_bytes for info in storage.inner.list(FOLDER)]
    assert sizes == ([0] if method == "delete" else []), "an empty object is no ticket"


def test_tickets() -> None:
    def info(key: str, second: int, size_bytes: int = 6) -> ObjectInfo:
        return ObjectInfo(key, size_bytes, second * 1_000_000)

    found = [info("c", 70), info("b", 70), info("z", 69), info("gone", 68, 0), info("old", 10), info("d", 71)]
    assert tickets_ahead(found, "b") == ["z"]
    assert tickets_ahead(found, "c") == ["z", "b"]
    assert tickets_ahead(found, "d", removed={"z"}) == ["b", "c"]
    assert tickets_ahead(found, "z") == ["old"]
    assert tickets_ahead(found, "mine was removed") == []


def seen(line: Line) -> tuple[int, bool, bool]:
    return line.num_ahead, line.must_count, line.is_over


def test_a_line() -> None:
    found = [ObjectInfo(key, 6, 1_000_000) for key in "abcd"]
    line = Line(ticket="d", began_s=100.0, turn_s=2.0)
    line.count(found, 100.0)
    assert seen(line) == (3, False, False)
    line.move(2, 101.0)
    assert seen(line) == (1, True, False), "the turn is near"
    assert line.sleep_s == 0.5
    line.count(found[1:], 102.0)
    assert seen(line) == (1, True, False), "the commits say more than the tickets, which outlive them"
    line.count(found[3:], 103.0)
    assert seen(line) == (0, True, True)


def test_a_line_that_stands_still() -> None:
    found = [ObjectInfo(key, 6, 1_000_000) for key in "abcd"]
    line = Line(ticket="d", began_s=100.0, turn_s=1.0)
    line.count(found, 100.0)
    line.move(0, 103.0)
    assert seen(line) == (3, False, False)
    line.move(0, 103.1)
    assert seen(line) == (3, True, False)
    line.count(found, 103.1)
    assert seen(line) == (3, False, False)
    looks = []
    for now_s in (105.0, 105.1):
        line.move(0, now_s)
        looks.append(line.may_be_dead)
    assert looks == [False, True]
    line.removed.add(line.first)
    line.count(found, 105.2)
    assert (line.num_ahead, line.first, line.may_be_dead) == (2, "b", False)
    line.move(0, 160.1)
    assert line.is_over, "nobody waits longer than a minute"
