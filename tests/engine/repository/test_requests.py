"""How many requests operations take: said in the docs, kept here."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.session import workspace_of
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.faults import FaultStorage
from icechunk_engine.testing.latency import LatencyStorage


@pytest.fixture
def storage() -> CountingStorage:
    """A counted memory storage that holds a repository with 20 arrays of native chunks."""
    counted = CountingStorage(ic.in_memory_storage())
    repo = Repository.create(counted)
    with repo.transaction("main", message="start") as store:
        root = zarr.create_group(store)
        for i in range(20):
            root.create_array(f"a{i}", shape=(4, 1000), chunks=(1, 1000), dtype="int64", compressors=None)[:] = i
    counted.reset()
    return counted


def cold(storage: CountingStorage) -> CountingStorage:
    """The same objects seen through a place that no cache knows."""
    copy = CountingStorage(ic.in_memory_storage())
    for info in storage.list():
        copy.put(info.key, storage.get(info.key))
    copy.reset()
    return copy


def test_open_and_read(storage: CountingStorage) -> None:
    storage = cold(storage)
    repo = Repository.open(storage)
    assert storage.n_requests == 1  # repo
    session = repo.readonly_session("main")
    assert storage.n_requests == 2  # repo again: a session starts from the present state
    group = zarr.open_group(session.store, mode="r")
    arrays = dict(group.arrays())
    assert storage.n_requests == 3  # the snapshot, whatever the number of arrays
    storage.reset()
    arrays["a3"][0]
    assert storage.n_requests == 2  # one manifest and one chunk
    storage.reset()
    arrays["a3"][1:]
    assert storage.n_requests == 3  # three chunks, the manifest is known
    storage.reset()
    pickled = ic.Repository.open(storage).readonly_session("main")
    storage.reset()
    zarr.open_array(pickled.store, path="a3", mode="r")[0]
    assert storage.n_requests == 1  # sessions of one process share snapshots and manifests


def test_commit_one_array(storage: CountingStorage) -> None:
    repo = Repository.open(storage)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a3", mode="r+")[0] = 7
    storage.reset()
    session.commit("one chunk")
    # The manifest that is replaced is read; its successor, snapshot and log are written; repo is read, kept, swapped.
    assert storage.n_requests == 7
    assert storage.requests["get"] == 1
    assert storage.requests["put"] == 3
    assert storage.requests["get_versioned"] == 1
    assert storage.requests["copy"] == 1
    assert storage.requests["replace"] == 1


def test_metadata_only_commit_writes_no_manifest(storage: CountingStorage) -> None:
    repo = Repository.open(storage)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a3", mode="r+").attrs["units"] = "K"
    storage.reset()
    session.commit("attributes")
    assert storage.requests["put"] == 2
    assert storage.n_requests == 5


def test_a_lost_race_writes_no_manifest_twice(storage: CountingStorage) -> None:
    repo = Repository.open(storage)
    late = repo.writable_session("main")
    zarr.open_array(late.store, path="a3", mode="r+")[0] = 7
    early = repo.writable_session("main")
    zarr.open_array(early.store, path="a4", mode="r+")[0] = 8
    early.commit("early")
    storage.reset()
    late.commit("late", rebase_with=ic.ConflictDetector())
    manifests = [key for key in storage.keys("put") if key.startswith("manifests/")]
    assert len(manifests) == 1
    values = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert np.asarray(values["a3"][0, 0]) == 7
    assert np.asarray(values["a4"][0, 0]) == 8


def overtaken(storage: CountingStorage, path: str, row: int) -> FaultStorage:
    """The storage with another's commit in the middle of the next commit, just before its swap."""

    def overtake(n: int, call: StorageCall, moment: str) -> None:
        if call.method == "replace" and moment == "before" and racing.hook is not None:
            racing.hook = None
            with Repository.open(storage.inner).transaction("main", message="overtook") as store:
                zarr.open_array(store, path=path, mode="r+")[row] = 9

    racing = FaultStorage(storage, overtake)
    return racing


@pytest.mark.parametrize(("path", "row"), [("a4", 3), ("split", 3), ("split", 1)])
def test_a_swap_that_was_lost_costs_log_snapshot_and_swap(storage: CountingStorage, path: str, row: int) -> None:
    """The manifests stay, also when the other commit wrote other manifests of the same array."""
    in_rows = ic.ManifestSplittingConfig.from_dict(
        {ic.ManifestSplitCondition.name_matches("split"): {ic.ManifestSplitDimCondition.Axis(0): 2}}
    )
    Repository.open(storage, ic.RepositoryConfig(manifest=ic.ManifestConfig(splitting=in_rows))).save_config()
    with Repository.open(storage).transaction("main", message="split") as store:
        zarr.create_array(store, name="split", shape=(4, 1000), chunks=(1, 1000), dtype="int64")[:] = 1
    racing = overtaken(storage, path, row)
    mine = "split" if path == "split" else "a3"
    session = Repository.open(racing).writable_session("main")
    zarr.open_array(session.store, path=mine, mode="r+")[0] = 7
    storage.reset()
    session.commit("late", rebase_with=ic.ConflictDetector())
    written = [key.split("/")[0] for key in storage.keys("put")]
    again = ["manifests"] if row == 1 else []  # the only manifest that the other commit replaced too
    assert written == ["manifests", "snapshots", "transactions", *again, "snapshots", "transactions"]
    read = [key.split("/")[0] for key in storage.keys("get")]
    assert set(read) <= {"manifests", "transactions"}  # their snapshot is in the cache
    assert read.count("transactions") == 1
    assert storage.requests["get_versioned"] == 4  # before; whether it was lost; to try again; to rebase
    assert storage.requests["copy"] == storage.requests["replace"] == 2
    values = zarr.open_group(Repository.open(storage).readonly_session("main").store, mode="r")
    assert (values[mine][0, 0], values[path][row, 0]) == (7, 9)


def test_a_rebase_reads_the_logs_and_the_tip(storage: CountingStorage) -> None:
    late = Repository.open(cold(storage))
    session = late.writable_session("main")
    zarr.open_array(session.store, path="a3", mode="r+")[0] = 7
    counted = late.storage
    assert isinstance(counted, CountingStorage)
    hidden = cold(counted)  # the others work where our cache does not see it
    for i in range(5):
        with Repository.open(hidden).transaction("main", message="early") as store:
            zarr.open_array(store, path="a4", mode="r+")[i % 4] = i
    for info in hidden.list():
        counted.put(info.key, hidden.get(info.key))
    counted.reset()
    session.rebase(ic.ConflictDetector())
    assert counted.requests == {"get_versioned": 1, "get": 6}  # repo, five logs, one snapshot
    assert [key.split("/")[0] for key in counted.keys("get")] == ["snapshots"] + ["transactions"] * 5
    counted.reset()
    session.commit("rebased")
    assert counted.requests == {"get_versioned": 1, "get": 1, "put": 3, "copy": 1, "replace": 1}


def test_a_commit_that_comes_too_late_writes_nothing(storage: CountingStorage) -> None:
    repo = Repository.open(storage)
    late = repo.writable_session("main")
    zarr.open_array(late.store, path="a3", mode="r+")[0] = 7
    with repo.transaction("main", message="early") as store:
        zarr.open_array(store, path="a4", mode="r+")[0] = 8
    storage.reset()
    with pytest.raises(ic.ConflictError):
        late.commit("late")
    with pytest.raises(ic.ConflictError):
        late.amend("late")
    assert storage.requests == {"get_versioned": 4, "get": 1}  # to look twice, and once at what the other changed


def test_moving_and_amending_write_no_manifest(storage: CountingStorage) -> None:
    repo = Repository.open(storage)
    session = repo.rearrange_session("main")
    session.move("/a3", "/moved")
    storage.reset()
    session.commit("moved")
    assert storage.requests == {"get_versioned": 1, "put": 2, "copy": 1, "replace": 1}
    session = repo.writable_session("main")
    storage.reset()
    session.amend("another message", allow_empty=True)
    assert storage.requests == {"get_versioned": 1, "get": 1, "put": 2, "copy": 1, "replace": 1}


def test_refs_take_one_swap(storage: CountingStorage) -> None:
    repo = Repository.open(storage)
    tip = repo.lookup_branch("main")
    storage.reset()
    repo.create_tag("t", tip)
    assert storage.n_requests == 3  # read repo, keep it, swap it
    storage.reset()
    list(repo.ancestry(branch="main"))
    assert storage.n_requests == 1


def test_creating_beside_other_objects_does_not_list_them() -> None:
    storage = CountingStorage(ic.in_memory_storage())
    Repository.create(storage, check_clean_root=False)
    assert storage.requests["list"] == 0


def test_an_open_repository_notices_that_its_storage_became_slow() -> None:
    storage = LatencyStorage(ic.in_memory_storage())
    session = Repository.create(CountingStorage(storage)).readonly_session("main")
    assert not workspace_of(session).storage_is_remote
    storage.read_latency_ms = 1
    assert workspace_of(session).storage_is_remote


class _MostAtATime(CountingStorage):
    """Waits, and remembers how many requests of a kind were under way at once."""

    def __init__(self, inner: ic.Storage) -> None:
        super().__init__(inner)
        self.is_remote = True
        self.lock, self.running, self.most = threading.Lock(), Counter[str](), Counter[str]()

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        with self.lock:
            self.running[call.method] += 1
            self.most[call.method] = max(self.most[call.method], self.running[call.method])
        try:
            time.sleep(0.02)
            return super().around(call, function)
        finally:
            with self.lock:
                self.running[call.method] -= 1


def test_a_commit_of_many_arrays_makes_its_requests_together(storage: CountingStorage) -> None:
    slow = _MostAtATime(cold(storage))
    session = Repository.open(slow).writable_session("main")
    for i in range(20):
        zarr.open_array(session.store, path=f"a{i}", mode="r+")[0] = 7
    slow.most.clear()
    session.commit("twenty chunks")
    assert slow.most["get"] > 4
    assert slow.most["put"] > 4
    assert slow.requests["put"] == 20 + 20 + 2  # chunks, manifests, snapshot and log


def test_no_more_requests_at_a_time_than_configured(storage: CountingStorage) -> None:
    slow = _MostAtATime(cold(storage))
    repo = Repository.open(slow, ic.RepositoryConfig(max_concurrent_requests=3))
    session = repo.writable_session("main")
    forks = [pickle.loads(pickle.dumps(session.fork())) for _ in range(2)]
    for i in range(20):
        zarr.open_array(forks[i % 2].store, path=f"a{i}", mode="r+")[0] = 7
    session.merge(*forks)
    slow.most.clear()
    session.commit("twenty chunks")
    assert slow.most["get"] == slow.most["put"] == 3
    slow.most.clear()
    assert np.all(zarr.open_array(repo.readonly_session("main").store, path="a19", mode="r")[0] == 7)
    with repo.transaction("main", message="a large array") as store:
        zarr.create_array(store, name="b", shape=(3000,), chunks=(100,), dtype="f8", compressors=None)[:] = 1
    assert max(slow.most.values()) <= 3
