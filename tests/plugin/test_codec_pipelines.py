"""Remote arrays are read and written with many requests at a time, and with the right values."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk_engine as ic
import xarray_icechunk as xi
from icechunk_engine.storage.wrappers import StorageCall, WrapperStorage
from icechunk_engine.testing.faults import FaultStorage
from xarray_icechunk import to_icechunk
from xarray_icechunk.codec_pipelines import REQUESTS

CHUNKS = 300
ONE_CHUNK = {"a": {"chunks": (100,), "compressors": None}}


class Far(WrapperStorage):
    """A slow storage in memory that counts how many calls of each kind run at the same time."""

    def __init__(self) -> None:
        super().__init__(ic.in_memory_storage())
        self.is_remote = True
        self.lock, self.running, self.most = threading.Lock(), Counter[str](), Counter[str]()

    def _slowly[R](self, name: str, call: Callable[[], R]) -> R:
        with self.lock:
            self.running[name] += 1
            self.most[name] = max(self.most[name], self.running[name])
        try:
            time.sleep(0.02)
            return call()
        finally:
            with self.lock:
                self.running[name] -= 1

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        return self._slowly("get", lambda: super(Far, self).get_range(key, start, stop))

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        self._slowly("put", lambda: super(Far, self).put(key, data, atomic=atomic))


@pytest.fixture
def far() -> Far:
    return Far()


@pytest.fixture
def repo(far: Far) -> ic.Repository:
    return ic.Repository.create(far, ic.RepositoryConfig(inline_chunk_threshold_bytes=0))


@pytest.fixture
def dataset() -> xr.Dataset:
    return xr.Dataset({"a": ("x", np.random.default_rng(0).random(CHUNKS * 100))})


def written(repo: ic.Repository, dataset: xr.Dataset) -> xr.Dataset:
    """Write the dataset and open it again."""
    session = repo.writable_session("main")
    to_icechunk(dataset, session, mode="w", encoding=ONE_CHUNK)
    session.commit("dataset")
    return xi.open_dataset(repo)


def test_many_requests_at_a_time(far: Far, repo: ic.Repository, dataset: xr.Dataset) -> None:
    opened = written(repo, dataset)
    assert 10 < far.most["put"] <= REQUESTS
    far.most.clear()
    np.testing.assert_array_equal(opened.a.values, dataset.a)
    assert 10 < far.most["get"] <= REQUESTS


def test_who_says_how_many_gets_so_many(far: Far, repo: ic.Repository, dataset: xr.Dataset) -> None:
    with zarr.config.set({"async.concurrency": 3}):
        np.testing.assert_array_equal(written(repo, dataset).a.values, dataset.a)
        assert far.most["put"] <= 3
        assert far.most["get"] <= 3


def test_parts_of_chunks_and_chunks_that_are_not_there(repo: ic.Repository, dataset: xr.Dataset) -> None:
    session = repo.writable_session("main")
    to_icechunk(dataset, session, encoding=ONE_CHUNK)
    expected = dataset.a.values.copy()
    expected[150:1050] = 7
    expected[2000:3000] = np.nan  # the fill value: these chunks are deleted
    for part in (slice(150, 1050), slice(2000, 3000)):
        values = xr.Dataset({"a": ("x", expected[part])})
        to_icechunk(values, session, region={"x": part})
    session.commit("parts")
    read = repo.readonly_session("main")
    assert read.chunk_type("/a", (25,)) is ic.ChunkType.uninitialized
    opened = xi.open_dataset(read).a
    np.testing.assert_array_equal(opened.values, expected)
    np.testing.assert_array_equal(opened[111:2345:7].values, expected[111:2345:7])


def test_shards_are_left_to_zarr(repo: ic.Repository, dataset: xr.Dataset) -> None:
    session = repo.writable_session("main")
    to_icechunk(dataset, session, encoding={"a": {"chunks": (100,), "shards": (1000,)}})
    session.commit("shards")
    opened = xi.open_dataset(repo).a
    np.testing.assert_array_equal(opened.values, dataset.a)
    np.testing.assert_array_equal(opened[950:1050].values, dataset.a[950:1050])


@pytest.mark.parametrize("method", ["put", "get_range"])
def test_an_error_ends_all_of_it(far: Far, repo: ic.Repository, dataset: xr.Dataset, method: str) -> None:
    written(repo, dataset).close()
    calls: list[int] = []

    def break_one(n: int, call: StorageCall, moment: str) -> None:
        if call.method == method and call.keys[0].startswith("chunks/") and moment == "before":
            calls.append(n)
            if len(calls) == 20:
                raise ic.StorageError("the link is down")

    broken = ic.Repository.open(FaultStorage(far, break_one))
    session = broken.writable_session("main")
    with pytest.raises(ic.StorageError, match="the link is down"):
        if method == "put":
            to_icechunk(dataset + 1, session, mode="w", encoding=ONE_CHUNK)
        else:
            xi.open_dataset(session).load()
    assert not session.has_uncommitted_changes
    assert len(calls) < 20 + 2 * REQUESTS
