"""Caches bounded in bytes, and what is fetched before it is asked for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine._runtime.shared_loads import SharedLoads
from icechunk_engine.session import workspace_of
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.latency import LatencyStorage
from tests.engine.repository.test_requests import cold


@pytest.fixture
def stored() -> CountingStorage:
    """Two coordinates, a large array, and an array in a group; native chunks, a manifest each."""
    counted = CountingStorage(ic.in_memory_storage())
    repo = Repository.create(counted)
    with repo.transaction("main", message="start") as store:
        root = zarr.create_group(store)
        for name in ("lat", "lon"):
            root.create_array(name, data=np.arange(500.0), chunks=(500,), compressors=None)
        root.create_array("large", data=np.arange(3000.0), chunks=(100,), compressors=None)
        root.create_array("group/time", data=np.arange(500.0), chunks=(500,), compressors=None)
    return counted


def config(**preload: object) -> ic.RepositoryConfig:
    made = ic.RepositoryConfig.default()
    made.manifest = ic.ManifestConfig(preload=ic.ManifestPreloadConfig(**preload))  # type: ignore[arg-type]
    return made


def manifests_fetched(storage: CountingStorage, opened_with: ic.RepositoryConfig | None) -> int:
    """Manifests that opening a session fetches in the background."""
    counted = cold(storage)
    waiting = LatencyStorage(counted, read_latency_ms=1)
    Repository.open(waiting, opened_with).readonly_session("main")
    for thread in threading.enumerate():
        if thread.name == "icechunk-preload":
            thread.join()
    return counted.requests["get"] - 1  # but for the snapshot


condition = ic.ManifestPreloadCondition


@pytest.mark.parametrize(
    ("opened_with", "expected"),
    [
        (None, 3),  # by default small manifests of coordinates
        (config(preload_if=condition.true()), 4),
        (config(preload_if=condition.false()), 0),
        (config(preload_if=condition.name_matches("^l")), 3),
        (config(preload_if=condition.path_matches("^/group/")), 1),
        (config(preload_if=condition.num_refs(2, None)), 1),
        (config(preload_if=condition.true(), max_arrays_to_scan=2), 2),
        (config(preload_if=condition.true(), max_total_refs=31), 2),
    ],
)
def test_preload(stored: CountingStorage, opened_with: ic.RepositoryConfig | None, expected: int) -> None:
    assert manifests_fetched(stored, opened_with) == expected


def test_nothing_is_preloaded_where_reading_does_not_wait(stored: CountingStorage) -> None:
    counted = cold(stored)
    Repository.open(counted, config(preload_if=condition.true())).readonly_session("main")
    time.sleep(0)
    assert counted.requests["get"] == 0


def test_lost_files_do_not_keep_a_session_from_opening(stored: CountingStorage) -> None:
    counted = cold(stored)
    counted.delete([info.key for info in counted.list("manifests/")])
    session = Repository.open(LatencyStorage(counted, read_latency_ms=1)).readonly_session("main")
    assert workspace_of(session).get_node("/large") is not None


def test_chunks_are_kept_when_asked_for(stored: CountingStorage) -> None:
    for limit, requests in ((0, 60), (10_000_000, 30), (10_000, 60)):
        counted = cold(stored)
        caching = ic.CachingConfig(num_bytes_chunks=limit)
        session = Repository.open(counted, ic.RepositoryConfig(caching=caching)).readonly_session("main")
        array = zarr.open_array(session.store, path="large", mode="r")
        for _ in range(2):
            np.testing.assert_array_equal(array[:], np.arange(3000.0))
        assert counted.requests["get_range"] == requests


def test_weights_are_bounded() -> None:
    cache = SharedLoads[str, str](100)
    for key in range(50):
        cache.put(str(key), str(key), 30)
        assert sum(cache.get(str(other)) is not None for other in range(50)) == min(key + 1, 3)
    cache.put("huge", "value", 1000)  # the newest always stays: it is in use
    assert cache.get("huge") == "value"
    assert cache.get("49") is None
    cache.put("huge", "value", 10)
    cache.put("1", "1", 80)
    assert cache.get("huge") == "value"


def damage(folder: Path) -> None:
    """Flip a byte in the body of each manifest and snapshot."""
    for path in (*folder.glob("manifests/*"), *folder.glob("snapshots/*")):
        content = bytearray(path.read_bytes())
        content[60] ^= 0xFF
        path.write_bytes(content)


def test_files_are_read_again_once_nobody_holds_them(tmp_path: Path) -> None:
    def values() -> np.ndarray:
        repo = Repository.open(ic.local_filesystem_storage(str(tmp_path)))
        return np.asarray(zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:])

    with Repository.create(ic.local_filesystem_storage(str(tmp_path))).transaction("main", message="start") as store:
        zarr.create_array(store, name="a", data=np.arange(3), chunks=(1,))
    del store
    assert values().tolist() == [0, 1, 2]
    damage(tmp_path)
    with pytest.raises(ic.FormatError):
        values()


def test_clearing_the_caches_shows_what_is_on_disk(tmp_path: Path) -> None:
    repo = Repository.create(ic.local_filesystem_storage(str(tmp_path)))
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", data=np.arange(3), chunks=(1,))
    array = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")
    kept = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    repo.clear_caches()
    assert array[:].tolist() == [0, 1, 2]
    assert workspace_of(repo.readonly_session("main")).get_node("/a") is not None
    damage(tmp_path)
    again = Repository.open(ic.local_filesystem_storage(str(tmp_path)))
    assert zarr.open_array(again.readonly_session("main").store, path="a", mode="r")[:].tolist() == [0, 1, 2]
    repo.clear_caches()
    for broken in (lambda: array[:], lambda: workspace_of(again.readonly_session("main")).get_node("/a")):
        with pytest.raises(ic.FormatError):
            broken()
    for path, content in kept.items():
        path.write_bytes(content)
    assert array[:].tolist() == [0, 1, 2]  # what could not be read is not remembered


def test_clearing_forgets_everything(stored: CountingStorage) -> None:
    counted = cold(stored)
    repo = Repository.open(counted, ic.RepositoryConfig(caching=ic.CachingConfig(num_bytes_chunks=10_000_000)))
    counts = []
    for _ in range(2):
        counted.reset()
        zarr.open_array(repo.readonly_session("main").store, path="large", mode="r")[:]
        list(repo.ancestry(branch="main"))
        counts.append((counted.requests["get"], counted.requests["get_range"]))
        repo.clear_caches()
    assert counts[0] == counts[1]
    assert counts[0][1] == 30
