"""The doctor finds what is there and what is wrong, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from icechunk_engine import Repository, doctor
from icechunk_engine.errors import InvalidInputError, StorageError
from icechunk_engine.ops.doctor import Diagnosis
from icechunk_engine.storage import LocalStorage, MemoryStorage, ReadOnlyStorage, Storage, Version
from icechunk_engine.storage.wrappers import StorageCall, WrapperStorage
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.faults import FaultStorage


def texts(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.name: finding.text for finding in diagnosis.findings}


def test_a_healthy_repository(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    Repository.create(storage)
    before = {info.key for info in storage.list()}
    diagnosis = doctor(storage, write=True)
    assert diagnosis.ok, diagnosis
    assert "1 snapshots" in texts(diagnosis)["read"]
    assert texts(diagnosis)["conditional writes"] == "kept"
    assert {info.key for info in storage.list()} == before
    assert capsys.readouterr().out.startswith(storage.identity)


def test_looking_changes_nothing(tmp_path: Path) -> None:
    storage = CountingStorage(LocalStorage(tmp_path / "repo"))
    assert doctor(storage).ok
    assert not any(call.writes for call in storage.calls)
    assert not (tmp_path / "repo").exists()
    assert "no repository" in texts(doctor(tmp_path / "repo"))["read"]
    assert texts(doctor(ReadOnlyStorage(MemoryStorage()), write=True))["write"] == "this storage is read-only"
    with pytest.raises(InvalidInputError):
        doctor("nothing://here")


class Careless(WrapperStorage):
    """A store that takes conditions and ignores them."""

    def create(self, key: str, data: bytes) -> Version:
        self.put(key, data)
        return self.get_versioned(key)[1]

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        return self.create(key, data)


def test_a_store_that_ignores_conditions() -> None:
    storage = Careless(MemoryStorage())
    diagnosis = doctor(storage, write=True)
    assert not diagnosis.ok
    failed = {finding.name for finding in diagnosis.findings if finding.ok is False}
    assert failed == {"conditional writes", "one winner"}
    assert list(storage.list()) == []


def test_a_store_that_is_away() -> None:
    def away(n: int, call: StorageCall, moment: str) -> None:
        raise StorageError("no route to host")

    diagnosis = doctor(FaultStorage(MemoryStorage(), away), write=True)
    assert not diagnosis.ok
    assert "no route to host" in str(diagnosis)
