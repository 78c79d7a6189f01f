"""How many requests operations take: said in the docs, kept here."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.storage.wrappers import CountingStorage


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


def test_refs_take_one_swap(storage: CountingStorage) -> None:
    repo = Repository.open(storage)
    tip = repo.lookup_branch("main")
    storage.reset()
    repo.create_tag("t", tip)
    assert storage.n_requests == 3  # read repo, keep it, swap it
    storage.reset()
    list(repo.ancestry(branch="main"))
    assert storage.n_requests == 1
