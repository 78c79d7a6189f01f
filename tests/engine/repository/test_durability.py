"""What a commit publishes is on the disk before it is published."""

from __future__ import annotations

import pickle

import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.storage import MemoryStorage, Version


class WriteBackStorage(MemoryStorage):
    """Notes which objects were written since the last flush; swapping while there are any would be a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.unflushed: list[str] = []

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        super().put(key, data, atomic=atomic)
        self.unflushed.append(key)

    def flush(self) -> None:
        self.unflushed.clear()

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        assert not self.unflushed
        return super().replace(key, data, version)


def write(session: ic.Session, value: int) -> None:
    zarr.open_array(session.store, path="a", mode="r+")[:] = value


def test_everything_is_flushed_before_the_swap() -> None:
    storage = WriteBackStorage()
    repo = Repository.create(storage)
    with repo.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=(400,), chunks=(100,), dtype="i8", compressors=None)
    session = repo.writable_session("main")
    write(session, 1)
    assert len(storage.unflushed) == 4
    session.commit("chunks")
    assert not storage.unflushed


def test_what_a_fork_wrote_is_flushed_before_it_goes_home() -> None:
    """Another process commits it, and cannot flush what this one wrote."""
    storage = WriteBackStorage()
    repo = Repository.create(storage)
    with repo.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=(400,), chunks=(100,), dtype="i8", compressors=None)
    fork = repo.writable_session("main").fork()
    write(fork, 1)
    assert storage.unflushed
    pickle.dumps(fork)
    assert not storage.unflushed
