"""Large objects travel in parts at the same time, and what is put together is always one version."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk_engine import Repository, RepositoryConfig
from icechunk_engine.config import StorageConcurrencySettings, StorageSettings
from icechunk_engine.errors import ErrorKind, ObjectNotFoundError, StorageError
from icechunk_engine.storage import Storage
from icechunk_engine.storage.object_store import reading

from .conftest import Running, s3_at
from .proxy import FaultProxy, proxied

SIZE = 100_000
SMALL_PARTS = StorageSettings(concurrency=StorageConcurrencySettings(4, 1000))


def content(seed: int, size: int = SIZE) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def parted(store: Storage) -> Storage:
    return store.with_settings(SMALL_PARTS)


def test_what_is_read_in_parts_is_what_was_written(parted: Storage, store: Storage) -> None:
    data = content(0)
    store.put("chunks/A", data)
    assert parted.get("chunks/A") == data
    assert parted.get_versioned("chunks/A") == store.get_versioned("chunks/A")
    for start, stop in [(0, SIZE), (0, 999), (5, 1005), (5, 1006), (77, SIZE), (SIZE - 1, SIZE), (3, 3)]:
        read = parted.get_range("chunks/A", start, stop)
        assert type(read) is bytes
        assert read == data[start:stop]
    with pytest.raises(StorageError) as caught:
        parted.get_range("chunks/A", 0, SIZE + 1)
    assert caught.value.kind is ErrorKind.INVALID_OBJECT_SIZE
    with pytest.raises(StorageError) as caught:
        parted.get_range("chunks/A", 0, 10 * SIZE)
    assert caught.value.kind is ErrorKind.INVALID_OBJECT_SIZE
    with pytest.raises(ObjectNotFoundError):
        parted.get_range("chunks/B", 0, SIZE)
    with pytest.raises(ObjectNotFoundError):
        parted.get("chunks/B")
    store.put("empty", b"")
    assert parted.get("empty") == b""


def whole(store: Storage) -> bytes:
    return store.get("a")


def by_range(store: Storage) -> bytes:
    return store.get_range("a", 0, SIZE)


@pytest.mark.parametrize(
    ("read", "new_size"), [(whole, SIZE), (by_range, SIZE), (whole, SIZE // 10), (whole, 0), (whole, 2 * SIZE)]
)
def test_parts_are_never_of_two_versions(
    parted: Storage, store: Storage, read: Callable[[Storage], bytes], new_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is replaced when the first part that comes alone has been read, and before the others are."""
    old, new = content(1), content(2, new_size)
    store.put("a", old)
    plain = reading._read_part
    first, replaced = threading.Lock(), threading.Event()

    def in_between(*args: Any) -> Any:
        if first.acquire(blocking=False):
            part = plain(*args)
            store.put("a", new)
            replaced.set()
            return part
        replaced.wait(30)
        return plain(*args)

    monkeypatch.setattr(reading, "_read_part", in_between)
    assert read(parted) == new
    assert replaced.is_set()


def test_large_uploads_are_whole(store: Storage) -> None:
    """In parts of the least size that stores take."""
    data = content(3, 11 * 2**20)
    settings = StorageSettings(minimum_size_for_multipart_upload=2**20).merge(SMALL_PARTS)
    store.with_settings(settings).put("chunks/A", data)
    assert store.get("chunks/A") == data
    parted = store.with_settings(StorageSettings(concurrency=StorageConcurrencySettings(3, 2**20)))
    assert parted.get_range("chunks/A", 1, len(data)) == data[1:]


@pytest.fixture
def proxy(s3_server: Running) -> Iterator[FaultProxy]:
    with proxied(s3_server.port) as proxy:
        yield proxy


def gets(proxy: FaultProxy) -> int:
    seen, proxy.seen = proxy.seen, []
    return sum(request.method == "GET" for request in seen)


def test_requests_of_parts(proxy: FaultProxy, s3_server: Running, place: str) -> None:
    s3_at(s3_server, place).put("chunks/A", content(0))
    far = s3_at(Running(proxy.port), place)
    for storage, parts in ((far, 1), (far.with_settings(SMALL_PARTS), 4)):
        storage.get_range("chunks/A", 0, SIZE)
        assert gets(proxy) == parts
        storage.get("chunks/A")
        assert gets(proxy) == parts
        storage.get_range("chunks/A", 0, 1000)
        assert gets(proxy) == 1


def test_chunks_are_read_in_parts(proxy: FaultProxy, s3_server: Running, place: str) -> None:
    values = np.random.default_rng(0).random(5000)
    with Repository.create(s3_at(s3_server, place)).transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=values.shape, chunks=(1000,), dtype="f8", compressors=None)[:] = (
            values
        )
    parts_of_2000 = RepositoryConfig(storage=StorageSettings(concurrency=StorageConcurrencySettings(18, 2000)))
    repo = Repository.open(s3_at(Running(proxy.port), place), parts_of_2000)
    array = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")
    assert array[0] == values[0]
    gets(proxy)
    np.testing.assert_array_equal(array[:], values)
    assert gets(proxy) == 5 * 4


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_servers_that_tell_no_versions_are_read_at_once(
    proxy: FaultProxy, s3_server: Running, place: str, monkeypatch: pytest.MonkeyPatch, etag: str | None
) -> None:
    data = content(0)
    s3_at(s3_server, place).put("chunks/A", data)
    plain = reading._read_part
    monkeypatch.setattr(reading, "_read_part", lambda *args: plain(*args)._replace(etag=etag))
    storage = s3_at(Running(proxy.port), place).with_settings(SMALL_PARTS)
    assert storage.get_range("chunks/A", 0, SIZE) == data
    assert gets(proxy) == 4 + 1
    assert storage.get_range("chunks/A", 0, SIZE) == data
    assert gets(proxy) == 1
