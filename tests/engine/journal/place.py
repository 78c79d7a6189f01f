"""A journal whose requests wait at a gate, and an owner of edits who reports to it."""

from __future__ import annotations

import threading

import icechunk_engine as ic
from icechunk_engine.columns.chunk_refs import NATIVE, ChunkRef, ChunkRefs
from icechunk_engine.ids import ChunkId
from icechunk_engine.journal.announcing import Announcer
from icechunk_engine.journal.entries import JournalEntry
from icechunk_engine.journal.journal import Journal
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.faults import FailOnce, FaultStorage, Moment
from tests.engine.journal.entries import RECORD, entry

WAIT_S = 30


class Owner:
    """An owner of edits, as a workspace is one. An edit is a number."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pending: list[int] = []
        self.seq = 0
        self.n_calls_at_once = 0

    def edit(self, number: int) -> None:
        with self.lock:
            self.pending.append(number)

    def take(self) -> JournalEntry | None:
        with self.lock:
            self.n_calls_at_once += 1
            assert self.n_calls_at_once == 1, "two entries on their way"
            taken = list(self.pending)
            self.n_calls_at_once -= 1
        if not taken:
            return None
        self.seq += 1
        refs = [((number, 0), ChunkRef(kind=NATIVE, length=1, chunk_id=ChunkId(bytes(12)))) for number in taken]
        return entry(self.seq, refs=ChunkRefs.of(2, refs))

    def reported(self, entry: JournalEntry) -> None:
        with self.lock:
            del self.pending[: len(entry.arrays[0].refs)]


class Place:
    """A journal on a storage whose requests wait at a gate, and its announcer."""

    def __init__(self, *, is_remote: bool) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self.fail: FailOnce | None = None
        self.calls: list[str] = []
        self.storage = FaultStorage(ic.in_memory_storage(), self._hook)
        self.storage.is_remote = is_remote
        self.journal = Journal(self.storage, "token")
        Journal(self.storage.inner, "token").open(RECORD)
        self.owner = Owner()
        self.announcer = Announcer(self.journal, self.owner)

    def _hook(self, n: int, call: StorageCall, moment: Moment) -> None:
        if moment == "before":
            self.calls.append(call.method)
            if call.method == "put":
                self.arrived.release()
                assert self.gate.wait(WAIT_S)
        if self.fail is not None:
            self.fail(n, call, moment)

    def stored(self) -> list[list[int]]:
        """The edits in each entry."""
        inner = Journal(self.storage.inner, "token")
        return [one.arrays[0].refs.indices[:, 0].tolist() for one in inner.fetch_entries(inner.list_entries())]

    def write(self, number: int) -> None:
        """What a caller does."""
        self.owner.edit(number)
        self.announcer.announce()
        self.require(number)

    async def write_async(self, number: int) -> None:
        self.owner.edit(number)
        await self.announcer.announce_async()
        self.require(number)

    def require(self, number: int) -> None:
        assert any(number in numbers for numbers in self.stored())
