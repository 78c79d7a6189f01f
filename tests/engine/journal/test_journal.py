"""No report is lost that its writer was told is stored, at whatever request the session ends."""

from __future__ import annotations

import dataclasses
import itertools
import random
import threading
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path

import pytest

import icechunk_engine as ic
from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError, SessionStateError, StorageError
from icechunk_engine.journal.entry_format import encode_entry
from icechunk_engine.journal.journal import Journal
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.faults import FailOnce, FaultStorage, Moment
from tests.engine.journal.entries import RECORD, WRITER, assert_equal, entry
from tests.engine.storage.power_loss import Recorder, crashes

OTHER_WRITER = "fedcba9876543210" * 2


@pytest.fixture(params=["memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty place."""
    return ic.in_memory_storage() if request.param == "memory" else ic.local_filesystem_storage(tmp_path / "repo")


@pytest.fixture
def journal(storage: Storage) -> Journal:
    """An open journal."""
    found = Journal(storage, "token")
    found.open(RECORD)
    return found


def names(journal: Journal) -> set[str]:
    """The names of all objects of a journal."""
    return {found.key.removeprefix(journal.prefix) for found in journal.storage.list(journal.prefix)}


# --- the record ------------------------------------------------------------------------------------------------------


def test_the_record(storage: Storage) -> None:
    journal = Journal(storage, "token")
    assert not journal.is_open()
    assert journal.record() is None
    journal.open(RECORD)
    assert journal.is_open()
    assert journal.record() == RECORD
    other_zone = dataclasses.replace(RECORD, created_at=RECORD.created_at.astimezone(timezone(timedelta(hours=5))))
    journal.open(dataclasses.replace(other_zone, branch=None))
    found = journal.record()
    assert found is not None
    assert (found.branch, found.created_at) == (None, RECORD.created_at)
    journal.close()
    assert not journal.is_open()
    journal.close()  # nothing to do


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 2}',
        b"[" * 100_000,
        b" " * 2**21,
        RECORD.to_bytes()[:-3],
        RECORD.to_bytes().replace(b'"main"', b"7"),
        RECORD.to_bytes().replace(b"+00:00", b""),
        RECORD.to_bytes().replace(b"2026", b"x"),
        RECORD.to_bytes().replace(str(RECORD.origin_id).encode(), b"x"),
    ],
    ids=range(11),
)
def test_hostile_records(storage: Storage, data: bytes) -> None:
    storage.put("journals/token/session", data)
    with pytest.raises(FormatError, match=r"journals/token/session is damaged.*new session"):
        Journal(storage, "token").record()


@pytest.mark.parametrize("token", ["", "a/b", "..", "a.b", "-a", "a-", "é", "x" * 65, None, 3, "a\n"])
def test_tokens_that_are_no_names(storage: Storage, token: object) -> None:
    with pytest.raises(InvalidInputError, match="not a session token"):
        Journal(storage, token)  # type: ignore[arg-type]


# --- entries ---------------------------------------------------------------------------------------------------------


def test_entries_come_back_in_order(journal: Journal) -> None:
    written = [
        entry(0, lamport=3),
        entry(10, lamport=3),
        entry(2, lamport=1, writer=OTHER_WRITER),
        entry(9, lamport=3),
        entry(0, lamport=2, writer=OTHER_WRITER),
    ]
    for one in written:
        journal.put_entry(one)
    keys = journal.list_entries()
    found = journal.fetch_entries(keys)
    for after, before in zip(found, [written[2], written[4], written[0], written[3], written[1]], strict=True):
        assert_equal(after, before)
    assert journal.last_numbers() == ({WRITER: 10, OTHER_WRITER: 2}, 3)
    assert journal.list_entries(after=keys) == []
    assert set(journal.list_entries(after={journal.entry_key(entry(10, lamport=3))})) == set(keys) - {
        journal.entry_key(entry(10, lamport=3))
    }


def test_other_objects_are_no_entries(journal: Journal) -> None:
    journal.put_entry(entry())
    for name in (
        "x",
        "README.md",
        f"{WRITER}.x",
        f"{WRITER}.1",
        f"{WRITER}.1.2.bak",
        f"deeper/{WRITER}.1.2",
        f"{WRITER.upper()}.0.0",
    ):
        journal.storage.put(journal.prefix + name, b"")
    Journal(journal.storage, "token2").open(RECORD)
    Journal(journal.storage, "token2").put_entry(entry())
    assert journal.list_entries() == [journal.entry_key(entry(0))]


def test_an_entry_of_another_name_is_refused(journal: Journal) -> None:
    key = journal.entry_key(entry(0, writer=OTHER_WRITER))
    journal.storage.put(key, encode_entry(entry()))
    with pytest.raises(FormatError, match=f"{key} holds another journal entry"):
        journal.fetch_entries([key])
    journal.storage.put(key, b"nonsense")
    with pytest.raises(FormatError, match=key):
        journal.fetch_entries([key])


def test_entries_that_their_writer_removed_are_left_out(journal: Journal) -> None:
    journal.put_entry(entry(1))
    keys = [journal.entry_key(entry(0)), journal.entry_key(entry(1))]
    (found,) = journal.fetch_entries(keys)
    assert found.seq == 1


def test_removing_all(journal: Journal) -> None:
    other = Journal(journal.storage, "token-2")
    for one in (journal, other):
        one.open(RECORD)
        for seq in range(3):
            one.put_entry(entry(seq))
    assert journal.remove_all() == 3
    assert names(journal) == set()
    assert len(names(other)) == 4
    assert journal.remove_all() == 0


def test_a_durable_entry_survives_a_crash(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    recorder = Recorder(tmp_path / "repo")
    with recorder.recording():
        storage = ic.local_filesystem_storage(tmp_path / "repo")
        journal = Journal(storage, "token")
        journal.open(RECORD)
        storage.put("chunks/a", b"written before")
        journal.put_entry(entry(), durable=True)
        recorder.acknowledge(0)
    n_before = n_after = 0
    for number, crash in enumerate(crashes(recorder, random.Random(1), n_random=20)):
        crash.build(tmp_path / str(number))
        left = Journal(ic.local_filesystem_storage(tmp_path / str(number)), "token")
        found = left.fetch_entries(left.list_entries())  # no damaged entry, whenever the crash comes
        if found:
            assert left.storage.get("chunks/a") == b"written before"
        n_before += not found
        n_after += crash.acknowledged == 0
        assert found or crash.acknowledged < 0
    assert n_before
    assert n_after


# --- requests --------------------------------------------------------------------------------------------------------


def refused(journal: Journal) -> None:
    """Report to a session that has ended."""
    with pytest.raises(SessionStateError, match="too late") as caught:
        journal.put_entry(entry(2))
    assert caught.value.kind == ErrorKind.SESSION_ENDED


def test_requests() -> None:
    storage = CountingStorage(ic.in_memory_storage())
    journal = Journal(storage, "token")
    journal.open(RECORD)
    assert dict(storage.requests) == {"put": 1}
    for call, expected in [
        (lambda: journal.is_open(), {"info": 1}),
        (lambda: journal.record(), {"get": 1}),
        (lambda: journal.put_entry(entry(0)), {"put": 1, "info": 1}),
        (lambda: journal.put_entry(entry(1)), {"put": 1, "info": 1}),
        (lambda: journal.list_entries(), {"list": 1}),
        (lambda: journal.fetch_entries([journal.entry_key(entry(seq)) for seq in (0, 1)]), {"get": 2}),
        (lambda: journal.close(), {"delete": 1}),
        (lambda: refused(journal), {"put": 1, "info": 1, "delete": 1}),
        (lambda: journal.remove_all(), {"delete": 2, "list": 1}),
    ]:
        storage.reset()
        call()
        assert dict(storage.requests) == expected


def test_entries_are_fetched_many_at_a_time() -> None:
    meeting = threading.Barrier(20)

    def meet(n: int, call: StorageCall, moment: Moment) -> None:
        if call.method == "get" and moment == "before":
            meeting.wait(timeout=30)  # all requests must be under way before one is answered

    remote = FaultStorage(ic.in_memory_storage(), meet)
    remote.is_remote = True
    journal = Journal(remote, "token")
    journal.open(RECORD)
    for seq in range(20):
        journal.put_entry(entry(seq))
    assert [one.seq for one in journal.fetch_entries(journal.list_entries())] == list(range(20))


# --- the protocol ----------------------------------------------------------------------------------------------------


class Ending:
    """A session that ends: at each call it makes its next request."""

    def __init__(self, journal: Journal, *, fails: bool = False) -> None:
        self.journal = journal
        self.collected: list[int] | None = None
        self._steps = self._run(fails)

    def _run(self, fails: bool) -> Iterator[None]:
        self.journal.close()
        yield
        keys = self.journal.list_entries()
        yield
        found = [one.seq for one in self.journal.fetch_entries(keys)]
        yield
        if fails:
            self.journal.open(RECORD)
            yield
            self.journal.close()
            yield
            keys = self.journal.list_entries(after=keys)
            yield
            found += [one.seq for one in self.journal.fetch_entries(keys)]
            yield
        self.journal.remove_all()
        self.collected = found

    def step(self) -> None:
        """Make one request, if any is left."""
        next(self._steps, None)

    def finish(self) -> list[int]:
        """Make all that are left; return the numbers of the entries that are part of the commit."""
        for _ in self._steps:
            pass
        assert self.collected is not None
        return self.collected


class Interleaved:
    """Before request ``n`` of a writer, the session has made ``until[n]`` requests."""

    def __init__(self, ending: Ending, until: tuple[int, ...]) -> None:
        self._ending, self._until, self._made = ending, until, 0

    def __call__(self, n: int, call: StorageCall, moment: Moment) -> None:
        while moment == "before" and self._made < self._until[n]:
            self._ending.step()
            self._made += 1


@pytest.mark.parametrize("fails", [False, True])
def test_no_report_is_lost_whenever_the_session_ends(storage: Storage, fails: bool) -> None:
    outcomes = set()
    n_steps = 9 if fails else 4
    # A writer makes up to three requests. Before each of them, the session makes some of its own.
    for split in itertools.combinations_with_replacement(range(n_steps), 3):
        journal = Journal(storage, f"t{'-'.join(map(str, split))}-{fails}-0")
        journal.open(RECORD)
        ending = Ending(journal, fails=fails)
        writer = Journal(FaultStorage(storage, Interleaved(ending, split)), journal.token)
        try:
            writer.put_entry(entry(0))
            told = "stored"
        except SessionStateError:
            told = "refused"
        collected = ending.finish()
        outcomes.add((told, len(collected)))
        if told == "stored":
            assert collected == [0]
        assert names(journal) == set()
    # A refused report can be part of the commit nevertheless, as the error says.
    assert outcomes == {("stored", 1), ("refused", 0), ("refused", 1)}


def test_a_report_that_fails_halfway_is_not_half_there(storage: Storage) -> None:
    for n, moment in itertools.product(range(2), ("before", "after")):
        journal = Journal(storage, f"t-{n}-{moment}")
        journal.open(RECORD)
        failing = Journal(FaultStorage(storage, FailOnce(n, moment)), journal.token)  # type: ignore[arg-type]
        with pytest.raises(StorageError, match="injected"):
            failing.put_entry(entry(0))
        failing.put_entry(entry(1))  # again, under another number
        seqs = [one.seq for one in journal.fetch_entries(journal.list_entries())]
        assert seqs in ([0, 1], [1])
