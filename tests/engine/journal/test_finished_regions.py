"""Finished regions are recorded once their data are safe, and found by their names."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import icechunk_engine as ic
from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.ids import NodeId
from icechunk_engine.journal.finished_regions import FinishedRegions
from icechunk_engine.journal.journal import Journal
from icechunk_engine.journal.regions import Box
from icechunk_engine.storage.base import Storage
from icechunk_engine.testing.counting import CountingStorage
from tests.engine.journal.entries import RECORD, entry
from tests.engine.storage.power_loss import Recorder, crashes

ARRAY, OTHER = NodeId(b"an-array"), NodeId(b"another-")
LONG: Box = ((10**18, 10**18 + 5),) * 12


@pytest.fixture(params=["memory", "local", "remote"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    """An open journal."""
    storage: Storage = ic.in_memory_storage()
    if request.param == "local":
        storage = ic.local_filesystem_storage(tmp_path / "repo")
    if request.param == "remote":
        storage = CountingStorage(storage)
        storage.is_remote = True
    found = Journal(storage, "token")
    found.open(RECORD)
    return found


def test_regions_are_found_again(journal: Journal) -> None:
    regions = FinishedRegions(journal)
    assert regions.boxes(ARRAY) == []
    some: list[Box] = [((0, 5), (3, 4)), ((5, 10), (3, 4)), LONG]
    for box in (*some, *some):  # twice is as once
        regions.add(ARRAY, box)
    regions.add(OTHER, ())
    assert sorted(regions.boxes(ARRAY)) == sorted(some)
    assert regions.boxes(OTHER) == [()]
    journal.put_entry(entry())
    assert len(journal.list_entries()) == 1
    assert journal.remove_all() >= 2
    assert list(journal.storage.list("journals/")) == []


def test_foreign_objects_are_no_regions(journal: Journal) -> None:
    regions = FinishedRegions(journal)
    regions.add(ARRAY, LONG)
    (key,) = [found.key for found in journal.storage.list(f"{journal.prefix}done/")]
    prefix = key.rpartition("/")[0]
    for name in ("x", "5-3", "0-1_", "deeper/0-1", "0" * 64):
        journal.storage.put(f"{prefix}/{name}", b"0-1")
    assert regions.boxes(ARRAY) == [LONG]
    journal.storage.put(key, b"0-1")  # not what the name says
    assert regions.boxes(ARRAY) == []


def test_a_region_of_a_session_that_has_ended(journal: Journal) -> None:
    journal.close()
    with pytest.raises(SessionStateError, match="too late") as caught:
        FinishedRegions(journal).add(ARRAY, ((0, 1),))
    assert caught.value.kind == ErrorKind.SESSION_ENDED
    assert list(journal.storage.list(journal.prefix)) == []


def test_requests() -> None:
    storage = CountingStorage(ic.in_memory_storage())
    storage.is_remote = True
    journal = Journal(storage, "token")
    journal.open(RECORD)
    regions = FinishedRegions(journal)
    storage.reset()
    for start in range(5):
        regions.add(ARRAY, ((start, start + 1),))
    assert dict(storage.requests) == {"put": 5, "info": 5}
    storage.reset()
    assert len(regions.boxes(ARRAY)) == 5
    assert dict(storage.requests) == {"list": 1}


def test_a_crash_leaves_no_region_without_its_data(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    recorder = Recorder(tmp_path / "repo")
    with recorder.recording():
        journal = Journal(ic.local_filesystem_storage(tmp_path / "repo"), "token")
        journal.open(RECORD)
        journal.storage.put("chunks/a", b"data", atomic=False)
        journal.put_entry(entry())
        FinishedRegions(journal).add(ARRAY, ((0, 1),))
        recorder.acknowledge(0)
    n_with = n_without = 0
    for number, crash in enumerate(crashes(recorder, random.Random(1), n_random=20)):
        crash.build(tmp_path / str(number))
        left = Journal(ic.local_filesystem_storage(tmp_path / str(number)), "token")
        boxes = FinishedRegions(left).boxes(ARRAY)
        if boxes:
            assert len(left.fetch_entries(left.list_entries())) == 1
            assert left.storage.get("chunks/a") == b"data"
        assert boxes or crash.acknowledged < 0
        n_with += bool(boxes)
        n_without += not boxes
    assert n_with
    assert n_without
