"""The wrappers do what they are for, and nothing else (the contract is tested elsewhere)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from icechunk_engine.errors import ErrorKind, ObjectNotFoundError, ReadOnlyError, StorageError
from icechunk_engine.storage import LocalStorage, MemoryStorage, Storage, Version
from icechunk_engine.storage.wrappers import (
    READING_METHODS,
    WRITING_METHODS,
    PrefixStorage,
    ReadOnlyStorage,
    StorageCall,
    WrapperStorage,
)
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.faults import FailOnce, FaultStorage
from icechunk_engine.testing.latency import LatencyStorage

WRAPPERS: list[Callable[[Storage], WrapperStorage]] = [
    WrapperStorage,
    ReadOnlyStorage,
    CountingStorage,
    LatencyStorage,
    FaultStorage,
    lambda inner: PrefixStorage(inner, ""),
]

WRITES: dict[str, Callable[[Storage, Version], Any]] = {
    "put": lambda storage, version: storage.put("b", b"22"),
    "create": lambda storage, version: storage.create("c", b"333"),
    "replace": lambda storage, version: storage.replace("a", b"4444", version),
    "copy": lambda storage, version: storage.copy("a", "d"),
    "delete": lambda storage, version: storage.delete(["a", "nothing"]),
}
READS: dict[str, Callable[[Storage], Any]] = {
    "get": lambda storage: storage.get("a"),
    "get_range": lambda storage: storage.get_range("a", 1, 3),
    "get_versioned": lambda storage: storage.get_versioned("a"),
    "list": lambda storage: list(storage.list("a")),
    "info": lambda storage: storage.info("a"),
}


@pytest.fixture
def inner() -> Storage:
    storage = MemoryStorage()
    storage.create("a", b"12345")
    return storage


def test_every_method_is_known() -> None:
    methods = {name for name in Storage.__abstractmethods__ if name != "identity"}
    assert methods == READING_METHODS | WRITING_METHODS
    assert set(WRITES) == WRITING_METHODS
    assert set(READS) == READING_METHODS


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_are_the_same_place(wrap: Callable[[Storage], WrapperStorage], inner: Storage) -> None:
    wrapped = wrap(inner)
    assert wrapped == inner
    assert pickle.loads(pickle.dumps(wrapped)) == inner
    assert repr(inner) in repr(wrapped)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_pass_flush_on(wrap: Callable[[Storage], WrapperStorage]) -> None:
    flushed = []

    class Flushing(MemoryStorage):
        def flush(self) -> None:
            flushed.append(self)

    wrap(Flushing()).flush()
    assert len(flushed) == 1


def test_prefix_of_local_is_the_directory(tmp_path: Path) -> None:
    storage = PrefixStorage(LocalStorage(tmp_path), "a/b")
    storage.put("c", b"1")
    assert storage == LocalStorage(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"1"
    assert pickle.loads(pickle.dumps(storage)).get("c") == b"1"


@pytest.mark.parametrize("method", sorted(WRITES))
def test_read_only_refuses_writes(method: str, inner: Storage) -> None:
    storage = ReadOnlyStorage(inner)
    before = {info.key: inner.get(info.key) for info in inner.list()}
    assert storage.read_only
    with pytest.raises(ReadOnlyError, match="reading only") as caught:
        WRITES[method](storage, inner.get_versioned("a")[1])
    assert caught.value.kind == ErrorKind.READ_ONLY_STORAGE
    assert {info.key: inner.get(info.key) for info in inner.list()} == before


@pytest.mark.parametrize("method", sorted(READS))
def test_read_only_reads(method: str, inner: Storage) -> None:
    assert READS[method](ReadOnlyStorage(inner)) == READS[method](inner)


def test_counting_reads(inner: Storage) -> None:
    storage = CountingStorage(inner)
    for read in READS.values():
        read(storage)
        read(storage)
    assert storage.requests == dict.fromkeys(READS, 2)
    assert storage.n_requests == 10
    assert storage.bytes_read == {"get": 10, "get_range": 4, "get_versioned": 10}
    assert not storage.bytes_written
    assert storage.calls[:2] == [StorageCall("get", ("a",))] * 2
    assert storage.keys("get_range") == ("a", "a")
    storage.reset()
    assert storage.n_requests == 0
    assert not storage.bytes_read
    assert storage.calls == []


def test_counting_writes(inner: Storage) -> None:
    storage = CountingStorage(inner)
    version = inner.get_versioned("a")[1]
    for write in WRITES.values():
        write(storage, version)
    assert storage.requests == dict.fromkeys(WRITES, 1)
    assert storage.bytes_written == {"put": 2, "create": 3, "replace": 4}
    assert storage.keys("copy") == ("a", "d")
    assert storage.keys("delete") == ("a", "nothing")


def test_counting_failures(inner: Storage) -> None:
    storage = CountingStorage(inner)
    with pytest.raises(ObjectNotFoundError):
        storage.get("missing")
    with pytest.raises(StorageError):
        storage.create("a", b"1")
    assert storage.requests == {"get": 1, "create": 1}
    assert not storage.bytes_written


def test_latency(inner: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    storage = LatencyStorage(inner, write_latency_ms=20, read_latency_ms=5)
    assert storage.is_remote
    for read in READS.values():
        read(storage)
    assert slept == [0.005] * 5
    slept.clear()
    version = inner.get_versioned("a")[1]
    for write in WRITES.values():
        write(storage, version)
    assert slept == [0.02] * 5
    slept.clear()
    free = LatencyStorage(inner)
    free.put("a", b"1")
    assert not free.is_remote
    assert slept == []
    assert "write_latency_ms=20, read_latency_ms=5" in repr(storage)


@pytest.mark.parametrize("method", sorted(WRITES))
def test_a_fault_before_leaves_everything_as_it_was(method: str, inner: Storage) -> None:
    before = {info.key: inner.get(info.key) for info in inner.list()}
    fail = FailOnce(0, "before")
    with pytest.raises(StorageError, match=f"before {method}"):
        WRITES[method](FaultStorage(inner, fail), inner.get_versioned("a")[1])
    assert {info.key: inner.get(info.key) for info in inner.list()} == before
    assert fail.failed is not None
    assert fail.failed.method == method


@pytest.mark.parametrize("method", sorted(WRITES))
def test_a_fault_after_leaves_the_change(method: str, inner: Storage) -> None:
    before = {info.key: inner.get(info.key) for info in inner.list()}
    with pytest.raises(StorageError, match=f"after {method}"):
        WRITES[method](FaultStorage(inner, FailOnce(0, "after")), inner.get_versioned("a")[1])
    assert {info.key: inner.get(info.key) for info in inner.list()} != before


def test_a_sweep_meets_every_call_once(inner: Storage) -> None:
    def operation(storage: Storage) -> None:
        for read in READS.values():
            read(storage)

    counted = FaultStorage(inner)
    operation(counted)
    assert counted.n_calls == len(READS)
    failed = []
    for n in range(counted.n_calls):
        fail = FailOnce(n, "before", ConnectionResetError("gone"))
        with pytest.raises(ConnectionResetError):
            operation(FaultStorage(inner, fail))
        assert fail.failed is not None
        failed.append(fail.failed.method)
    assert failed == list(READS)
    operation(FaultStorage(inner, FailOnce(counted.n_calls, "before")))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such system call")
def test_a_forked_child_has_room_for_its_own_requests() -> None:
    """Also where the parent was in the middle of as many as are allowed, which nobody ends in the child."""
    code = """
import os, signal
from icechunk_engine import in_memory_storage
from icechunk_engine.storage.wrappers import LimitedStorage
storage = LimitedStorage(in_memory_storage(), 2)
with storage._semaphore, storage._semaphore:
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        assert storage.info("a") is None
        os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


class Lossy(MemoryStorage):
    """Says what it lost, and what time it is."""

    def not_durable(self) -> dict[str, str]:
        return {"a/b/chunks/A": "bad", "a/b/manifests/": "bad", "a/c/chunks/B": "bad", "repo": "bad"} | self.more

    def clock_lower_bound_us(self) -> int:
        return 5

    more: dict[str, str] = {}  # noqa: RUF012


def test_losses_and_time_come_through() -> None:
    inner = Lossy()
    assert ReadOnlyStorage(inner).not_durable() == inner.not_durable()
    part = PrefixStorage(inner, "a/b")
    assert part.not_durable() == {"chunks/A": "bad", "manifests/": "bad"}
    for above in ("", "a/", "a/b/"):
        inner.more = {above: "worse"}
        assert part.not_durable()[""] == "worse"
    assert part.clock_lower_bound_us() == 5
