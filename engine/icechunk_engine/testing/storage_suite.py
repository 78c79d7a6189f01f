"""The storage contract as tests. Subclass a suite and add a fixture that makes an empty storage.

::

    class TestMyStorage(StorageSuite, StorageProcessSuite):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)

:class:`StorageSuite` tests the whole contract within one process. :class:`StorageProcessSuite` adds what can only go
wrong between processes. Its storages must be picklable to another process.
"""

from __future__ import annotations

import os
import pickle
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import pytest

from icechunk_engine.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    StorageError,
    VersionMismatchError,
)
from icechunk_engine.storage.base import Storage, Version
from icechunk_engine.testing.racing import (
    compete_in_processes,
    compete_in_threads,
    increment,
    own_pid,
    race_creates,
    race_replaces,
)


def _each_once(won: list[list[int]], expected: range) -> None:
    """Assert that each expected value is in exactly one of the lists."""
    counts = Counter(value for values in won for value in values)
    assert counts == Counter(expected)


class StorageSuite:
    """The contract within one process."""

    n_rounds: ClassVar[int] = 50
    """Rounds of each race. Lower it for slow servers."""

    @pytest.fixture
    def storage(self) -> Iterator[Storage] | Storage:
        """An empty storage."""
        raise NotImplementedError("define a fixture named `storage`")

    def reopened(self, storage: Storage) -> Storage:
        """Return another object for the same place."""
        copy = pickle.loads(pickle.dumps(storage))
        assert isinstance(copy, Storage)
        return copy

    # whole objects

    @pytest.mark.parametrize("size_bytes", [0, 1, 4096, 3_000_001])
    def test_round_trip(self, storage: Storage, size_bytes: int) -> None:
        data = random.Random(size_bytes).randbytes(size_bytes)
        storage.put("chunks/A", data)
        assert storage.get("chunks/A") == data
        read = storage.get("chunks/A")
        assert isinstance(read, bytes)
        info = storage.info("chunks/A")
        assert info is not None
        assert (info.key, info.size_bytes) == ("chunks/A", size_bytes)

    def test_put_of_what_nobody_knows(self, storage: Storage) -> None:
        storage.put("chunks/A", b"1234", atomic=False)
        assert storage.get_range("chunks/A", 1, 3) == b"23"
        storage.put("chunks/A", memoryview(b"56"), atomic=False)
        assert storage.get("chunks/A") == b"56"

    def test_put_takes_views_and_keeps_a_copy(self, storage: Storage) -> None:
        buffer = bytearray(b"0123456789")
        storage.put("a", memoryview(buffer)[2:5])
        buffer[:] = b"xxxxxxxxxx"
        assert storage.get("a") == b"234"

    def test_put_takes_views_of_other_items(self, storage: Storage) -> None:
        numbers = memoryview(bytes(range(16))).cast("I")
        storage.put("a", numbers)
        assert storage.get("a") == bytes(range(16))

    def test_put_overwrites(self, storage: Storage) -> None:
        storage.put("a", b"a long first version")
        storage.put("a", b"short")
        assert storage.get("a") == b"short"

    def test_missing_objects(self, storage: Storage) -> None:
        storage.put("there/a", b"1")
        for key in ("nowhere", "there/b", "not/here/at/all", "there/a/below"):
            for read in (storage.get, storage.get_versioned, lambda key: storage.get_range(key, 0, 1)):
                with pytest.raises(ObjectNotFoundError) as caught:
                    read(key)
                assert caught.value.kind == ErrorKind.OBJECT_NOT_FOUND
                assert key in str(caught.value)
            assert storage.info(key) is None

    def test_other_objects_see_writes(self, storage: Storage) -> None:
        other = self.reopened(storage)
        storage.put("a", b"1")
        assert other.get("a") == b"1"
        version = other.create("b", b"2")
        assert storage.get_versioned("b") == (b"2", version)

    def test_deep_keys(self, storage: Storage) -> None:
        keys = ["/".join("abcdefghijkl"[:n]) + "/leaf" for n in range(1, 13)]
        for key in keys:
            storage.put(key, key.encode())
        for key in keys:
            assert storage.get(key) == key.encode()
        assert {info.key for info in storage.list()} == set(keys)
        assert {info.key for info in storage.list("a/b/c/d")} == {key for key in keys if key.startswith("a/b/c/d")}

    def test_readers_never_see_a_part(self, storage: Storage) -> None:
        """A large object is overwritten while it is read."""
        versions = [bytes([n]) * 300_000 for n in range(2)]
        storage.put("a", versions[0])
        stop = threading.Event()
        seen: list[bool] = []

        def read() -> None:
            while not stop.is_set():
                data = storage.get("a")
                info = storage.info("a")
                seen.append(data in versions and info is not None and info.size_bytes == 300_000)

        reader = threading.Thread(target=read)
        reader.start()
        for n in range(40):
            storage.put("a", versions[n % 2])
        stop.set()
        reader.join()
        assert seen
        assert all(seen)

    # ranges

    def test_ranges(self, storage: Storage) -> None:
        data = bytes(range(256)) * 4
        storage.put("a", data)
        for start, stop in ((0, 1024), (0, 1), (1023, 1024), (100, 700), (0, 0), (5, 5), (1024, 1024)):
            assert storage.get_range("a", start, stop) == data[start:stop]

    @pytest.mark.parametrize(("start", "stop"), [(0, 11), (9, 11), (10, 11), (20, 30), (11, 11)])
    def test_ranges_past_the_end(self, storage: Storage, start: int, stop: int) -> None:
        storage.put("a", b"0123456789")
        with pytest.raises(StorageError) as caught:
            storage.get_range("a", start, stop)
        assert caught.value.kind == ErrorKind.INVALID_OBJECT_SIZE

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2)])
    def test_ranges_that_are_none(self, storage: Storage, start: int, stop: int) -> None:
        storage.put("a", b"0123456789")
        with pytest.raises(InvalidInputError) as caught:
            storage.get_range("a", start, stop)
        assert caught.value.kind == ErrorKind.INVALID_BYTE_RANGE

    # conditional writes

    def test_create_only_once(self, storage: Storage) -> None:
        version = storage.create("repo", b"1")
        assert storage.get_versioned("repo") == (b"1", version)
        with pytest.raises(VersionMismatchError):
            storage.create("repo", b"2")
        assert storage.get_versioned("repo") == (b"1", version)

    def test_create_respects_put(self, storage: Storage) -> None:
        storage.put("repo", b"1")
        with pytest.raises(VersionMismatchError):
            storage.create("repo", b"1")

    def test_create_after_delete(self, storage: Storage) -> None:
        storage.create("repo", b"1")
        storage.delete(["repo"])
        storage.create("repo", b"2")
        assert storage.get("repo") == b"2"

    def test_replace_chain(self, storage: Storage) -> None:
        version = storage.create("repo", b"0")
        for n in range(1, 6):
            version = storage.replace("repo", b"%d" % n, version)
            assert storage.get_versioned("repo") == (b"%d" % n, version)

    def test_replace_of_an_old_version(self, storage: Storage) -> None:
        first = storage.create("repo", b"1")
        second = storage.replace("repo", b"2", first)
        with pytest.raises(VersionMismatchError):
            storage.replace("repo", b"3", first)
        assert storage.get_versioned("repo") == (b"2", second)

    def test_replace_of_a_missing_object(self, storage: Storage) -> None:
        version = storage.create("repo", b"1")
        storage.delete(["repo"])
        with pytest.raises(VersionMismatchError):
            storage.replace("repo", b"2", version)
        assert storage.info("repo") is None
        with pytest.raises(VersionMismatchError):
            storage.replace("never/there", b"2", version)

    def test_replace_respects_put(self, storage: Storage) -> None:
        version = storage.create("repo", b"1")
        storage.put("repo", b"2")
        with pytest.raises(VersionMismatchError):
            storage.replace("repo", b"3", version)

    def test_versions_do_not_repeat(self, storage: Storage) -> None:
        contents: dict[Version, bytes] = {}
        version = storage.create("repo", b"0")
        for n in range(30):
            data = b"%d" % (n % 7)  # same lengths, same moment
            version = storage.replace("repo", data, version)
            assert contents.setdefault(version, data) == data

    def test_one_thread_creates(self, storage: Storage) -> None:
        won = compete_in_threads(race_creates, storage, 4, self.n_rounds)
        _each_once(won, range(self.n_rounds))
        assert all(storage.get(f"race/{n}") == b"%d" % me * 100 for me, rounds in enumerate(won) for n in rounds)

    def test_one_thread_replaces(self, storage: Storage) -> None:
        storage.create("counter", b"")
        _each_once(compete_in_threads(race_replaces, storage, 4, self.n_rounds), range(self.n_rounds))

    def test_no_increment_of_threads_is_lost(self, storage: Storage) -> None:
        storage.create("counter", b"0")
        written = compete_in_threads(increment, storage, 4, 25)
        _each_once(written, range(1, 101))
        assert storage.get("counter") == b"100"

    # listing

    @pytest.fixture
    def filled(self, storage: Storage) -> Storage:
        """Return a storage with objects whose keys begin with the same text, not only the same directory."""
        for key in ("repo", "report", "snapshots/AB", "snapshots/AC", "snapshots/B/C", "snap", "chunks/A", "chunk"):
            storage.put(key, key.encode())
        return storage

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("", {"repo", "report", "snapshots/AB", "snapshots/AC", "snapshots/B/C", "snap", "chunks/A", "chunk"}),
            ("rep", {"repo", "report"}),
            ("repo", {"repo", "report"}),
            ("report", {"report"}),
            ("snap", {"snapshots/AB", "snapshots/AC", "snapshots/B/C", "snap"}),
            ("snapshots/", {"snapshots/AB", "snapshots/AC", "snapshots/B/C"}),
            ("snapshots/A", {"snapshots/AB", "snapshots/AC"}),
            ("snapshots/B", {"snapshots/B/C"}),
            ("snapshots/AB", {"snapshots/AB"}),
            ("snapshots/AB/", set()),
            ("snapshots/Z", set()),
            ("nothing/there", set()),
            ("/", set()),
            ("snapshots//", set()),
        ],
    )
    def test_list(self, filled: Storage, prefix: str, expected: set[str]) -> None:
        listed = list(filled.list(prefix))
        assert len(listed) == len(expected)
        assert {info.key for info in listed} == expected
        assert all(info.size_bytes == len(info.key) for info in listed)

    def test_list_of_an_empty_storage(self, storage: Storage) -> None:
        assert list(storage.list()) == []
        assert list(storage.list("chunks/")) == []

    def test_times_are_microseconds_of_now(self, storage: Storage) -> None:
        storage.put("a/b", b"1")
        (listed,) = storage.list("a/")
        assert listed == storage.info("a/b")
        assert abs(listed.last_modified_us / 1e6 - time.time()) < 3600

    def test_delete_while_listing(self, storage: Storage) -> None:
        for n in range(50):
            storage.put(f"chunks/{n}", b"")
        n_deleted = sum(storage.delete([info.key]) for info in storage.list("chunks/"))
        assert n_deleted == 50
        assert list(storage.list()) == []

    # delete and copy

    def test_delete(self, filled: Storage) -> None:
        assert filled.delete(key for key in ("repo", "missing", "chunks/A", "chunks/none", "a/b/c", "repo/x")) == 2
        assert filled.info("repo") is None
        assert filled.info("report") is not None
        assert filled.delete(["repo"]) == 0
        assert filled.delete([]) == 0

    def test_delete_of_what_is_no_object(self, filled: Storage) -> None:
        assert filled.delete(["snapshots", "chunks"]) == 0
        assert filled.get("snapshots/AB") == b"snapshots/AB"
        assert filled.info("snapshots") is None

    def test_copy(self, storage: Storage) -> None:
        version = storage.create("repo", b"1")
        storage.copy("repo", "overwritten/repo.1")
        assert storage.get("overwritten/repo.1") == b"1"
        storage.replace("repo", b"2", version)
        assert storage.get("overwritten/repo.1") == b"1"
        storage.put("overwritten/repo.1", b"3")
        assert storage.get("repo") == b"2"

    def test_copy_over_an_object(self, storage: Storage) -> None:
        storage.put("a", b"1")
        storage.put("b", b"22")
        storage.copy("a", "b")
        assert storage.get("b") == b"1"
        storage.copy("a", "b")  # the same once more
        assert storage.get("b") == b"1"
        assert {info.key for info in storage.list()} == {"a", "b"}

    def test_copy_of_a_missing_object(self, storage: Storage) -> None:
        with pytest.raises(ObjectNotFoundError):
            storage.copy("missing", "b")
        assert storage.info("b") is None

    def test_flush(self, storage: Storage) -> None:
        storage.flush()
        for n in range(100):
            storage.put(f"chunks/{n}", b"1")
        storage.flush()
        storage.flush()
        assert storage.get("chunks/99") == b"1"

    # the object itself

    def test_identity(self, storage: Storage) -> None:
        other = self.reopened(storage)
        assert other == storage
        assert hash(other) == hash(storage)
        assert other.identity == storage.identity
        assert storage != object()
        assert type(storage).__name__ in repr(storage)

    def test_pickled_storages_work(self, storage: Storage) -> None:
        storage.put("a", b"1")
        other = self.reopened(self.reopened(storage))
        assert other.get("a") == b"1"
        assert (other.is_remote, other.read_only) == (storage.is_remote, storage.read_only)


class StorageProcessSuite:
    """The part of the contract that other processes could break."""

    n_processes: ClassVar[int] = 8
    n_process_rounds: ClassVar[int] = 200
    n_increments: ClassVar[int] = 25

    def test_one_process_creates(self, storage: Storage) -> None:
        won = compete_in_processes(race_creates, storage, self.n_processes, self.n_process_rounds)
        _each_once(won, range(self.n_process_rounds))

    def test_one_process_replaces(self, storage: Storage) -> None:
        storage.create("counter", b"")
        won = compete_in_processes(race_replaces, storage, self.n_processes, self.n_process_rounds)
        _each_once(won, range(self.n_process_rounds))

    def test_no_increment_of_processes_is_lost(self, storage: Storage) -> None:
        storage.create("counter", b"0")
        written = compete_in_processes(increment, storage, self.n_processes, self.n_increments)
        n_expected = self.n_processes * self.n_increments
        _each_once(written, range(1, n_expected + 1))
        assert storage.get("counter") == b"%d" % n_expected

    def test_another_process_is_another_process(self, storage: Storage) -> None:
        """The races above would prove nothing if they ran in one process."""
        storage.create("counter", b"0")
        pids = compete_in_processes(own_pid, storage, 2, 1)
        assert len({os.getpid(), *(pid for found in pids for pid in found)}) == 3
