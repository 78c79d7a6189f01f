"""The journal of a session on the wire."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from icechunk_engine.errors import SessionStateError
from icechunk_engine.journal.announcing import Announcer
from icechunk_engine.journal.journal import Journal
from icechunk_engine.storage import Storage
from tests.engine.journal.entries import RECORD, assert_equal, entry
from tests.engine.journal.place import Owner


def test_a_session_that_ends_while_workers_report(store: Storage) -> None:
    journal = Journal(store, "token")
    journal.open(RECORD)
    told: list[str] = []
    began = threading.Barrier(5)

    def report(number: int) -> None:
        began.wait()
        for seq in range(8):
            try:
                Journal(store, "token").put_entry(entry(seq, writer=f"{number}" * 32))
            except SessionStateError:
                return
            told.append(journal.entry_key(entry(seq, writer=f"{number}" * 32)))

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(report, number) for number in range(4)]
        began.wait()
        while len(told) < 6:
            assert not all(writer.done() for writer in writers)
        early = journal.list_entries()
        journal.close()
        keys = early + journal.list_entries(after=set(early))
        for writer in writers:
            writer.result()
    assert set(told) <= set(keys)
    assert {journal.entry_key(one) for one in journal.fetch_entries(keys)} >= set(told)
    assert journal.record() is None
    journal.remove_all()
    assert list(store.list("journals/")) == []


def test_coroutines_share_entries(store: Storage) -> None:
    journal = Journal(store, "token")
    journal.open(RECORD)
    owner = Owner()
    announcer = Announcer(journal, owner)

    async def write(number: int) -> None:
        owner.edit(number)
        await announcer.announce_async()

    async def write_all() -> None:
        await asyncio.gather(*(write(number) for number in range(60)))

    asyncio.run(write_all())
    entries = journal.fetch_entries(journal.list_entries())
    assert sorted(row for one in entries for row in one.arrays[0].refs.indices[:, 0].tolist()) == list(range(60))
    assert len(entries) <= 3
    assert_equal(journal.fetch_entries([journal.entry_key(entries[0])])[0], entries[0])


@pytest.mark.parametrize("token", ["A-z_9", "x" * 64])
def test_names_on_the_wire(store: Storage, token: str) -> None:
    journal = Journal(store, token)
    journal.open(RECORD)
    assert journal.is_open()
    assert [found.key for found in store.list("journals/")] == [f"journals/{token}/session"]
    assert journal.remove_all() >= 0
    assert not journal.is_open()
