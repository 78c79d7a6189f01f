"""The records of shared sessions, and the list of all journals."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import icechunk_engine as ic
from icechunk_engine.errors import FormatError
from icechunk_engine.ids import NodeId, SnapshotId
from icechunk_engine.journal.finished_regions import FinishedRegions
from icechunk_engine.journal.journal import Journal
from icechunk_engine.journal.sharing import SharedRecord, find_journals, read_shared, write_shared
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.transaction.edit_sources import EditSource
from tests.engine.journal.entries import RECORD, entry

SHARED = SharedRecord(
    session=RECORD, base_id=SnapshotId.random(), seen=(EditSource("ab" * 16, 3, "t"),), lamport=7, coordinator="me"
)


def test_the_record_of_a_shared_session() -> None:
    journal = Journal(ic.in_memory_storage(), "token")
    assert read_shared(journal) is None
    for record in (SHARED, dataclasses.replace(SHARED, seen=(), lamport=0)):
        write_shared(journal, record)
        assert read_shared(journal) == record
    assert not journal.is_open()
    assert journal.remove_all() == 1
    assert read_shared(journal) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"session": {}},
        {"session": None},
        {"base": "x"},
        {"base": 3},
        {"seen": None},
        {"seen": [["a"]]},
        {"seen": [["a", "b", None]]},
        {"lamport": -1},
        {"lamport": 2**62},
        {"lamport": True},
        {"coordinator": None},
    ],
    ids=str,
)
def test_hostile_records(changed: dict[str, Any]) -> None:
    journal = Journal(ic.in_memory_storage(), "token")
    write_shared(journal, SHARED)
    (key,) = [found.key for found in journal.storage.list("journals/")]
    fields = json.loads(journal.storage.get(key))
    for data in (json.dumps(fields | changed).encode(), b"[" * 100_000, b" " * 2**21):
        journal.storage.put(key, data)
        with pytest.raises(FormatError, match="damaged"):
            read_shared(journal)


def test_all_journals_are_found() -> None:
    storage = CountingStorage(ic.in_memory_storage())
    assert find_journals(storage) == []
    dead, shared, damaged = (Journal(storage, token) for token in ("dead", "shared", "damaged"))
    dead.open(RECORD)
    dead.put_entry(entry(0))
    dead.put_entry(entry(1))
    dead.close()
    storage.put(damaged.record_key, b"nonsense")
    shared.open(RECORD)
    write_shared(shared, SHARED)
    shared.put_entry(entry(0))
    FinishedRegions(shared).add(NodeId(b"an-array"), ((0, 1),))
    storage.put("journals/a.b/session", b"")
    storage.reset()
    found = {info.token: info for info in find_journals(storage)}
    assert dict(storage.requests) == {"list": 1, "get": 3}
    assert list(found) == ["dead", "damaged", "shared"]
    assert (found["dead"].num_reports, found["dead"].is_shared, found["dead"].branch) == (2, False, None)
    assert (found["damaged"].num_reports, found["damaged"].host) == (0, None)
    info = found["shared"]
    assert (info.num_reports, info.is_shared, info.branch) == (1, True, "main")
    assert (info.created_at, info.host, info.snapshot_id) == (RECORD.created_at, RECORD.host, str(RECORD.origin_id))
    assert datetime.now(UTC) - info.last_report_at < timedelta(minutes=5)
    assert info.size_bytes == sum(one.size_bytes for one in storage.list("journals/shared/"))
