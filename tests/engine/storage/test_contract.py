"""Every storage of this package against the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from icechunk_engine.storage import LocalStorage, MemoryStorage, PrefixStorage, Storage
from icechunk_engine.storage.wrappers import WrapperStorage
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.faults import FaultStorage
from icechunk_engine.testing.latency import LatencyStorage
from icechunk_engine.testing.storage_suite import StorageProcessSuite, StorageSuite


class TestMemory(StorageSuite):
    @pytest.fixture
    def storage(self) -> Storage:
        return MemoryStorage()


class TestLocal(StorageSuite, StorageProcessSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path / "made" / "on demand")


class TestLocalNotDurable(StorageSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path, durable=False)


class TestLocalThroughASymlink(StorageSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        return LocalStorage(tmp_path / "link")


class TestPrefixOfMemory(StorageSuite):
    @pytest.fixture
    def storage(self) -> Storage:
        inner = MemoryStorage()
        inner.put("outside", b"1")
        inner.put("a/besides", b"1")
        inner.put("a/b.besides", b"1")
        return PrefixStorage(inner, "a/b")


class TestPrefixOfLocal(StorageSuite, StorageProcessSuite):
    n_processes = 2
    n_process_rounds = 20

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return PrefixStorage(LocalStorage(tmp_path), "/a/b/")


class TestWrapper(StorageSuite):
    @pytest.fixture
    def storage(self) -> Storage:
        return WrapperStorage(MemoryStorage())


class TestCounting(StorageSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return CountingStorage(LocalStorage(tmp_path))


class TestLatency(StorageSuite):
    n_rounds = 5

    @pytest.fixture
    def storage(self) -> Storage:
        return LatencyStorage(MemoryStorage(), write_latency_ms=1)


class TestFaultsThatNeverHappen(StorageSuite):
    @pytest.fixture
    def storage(self) -> Storage:
        return FaultStorage(MemoryStorage())
