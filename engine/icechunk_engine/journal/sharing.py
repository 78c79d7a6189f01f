"""Find a shared session by its token.

The record ``journals/<token>/shared`` lets jobs join the session, and lets another process resume it. Unlike the
record ``session``, it stays until the commit has succeeded: a coordinator may die while it commits, and its successor
must find the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from icechunk_engine._runtime.pools import map_requests
from icechunk_engine.errors import FormatError, ObjectNotFoundError
from icechunk_engine.format import layout
from icechunk_engine.ids import SnapshotId
from icechunk_engine.journal.journal import Journal, SessionRecord, is_token
from icechunk_engine.storage.base import ObjectInfo, Storage
from icechunk_engine.transaction.edit_sources import EditSource

_NAME = "shared"
_MAX_SIZE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRecord:
    """How to join or resume a session.

    Attributes
    ----------
    session
        The session, as its other record describes it.
    base_id
        The snapshot that jobs start from: the origin with the edits that the session had when it was shared.
    seen
        The last source of these edits; empty if there were none.
    lamport
        Jobs start numbering their entries here, so that these come after those edits.
    coordinator
        Random name of the process that will commit. A process that resumes the session writes its own.
    """

    session: SessionRecord
    base_id: SnapshotId
    seen: tuple[EditSource, ...]
    lamport: int
    coordinator: str


def read_shared(journal: Journal) -> SharedRecord | None:
    """Return the record of a shared session; None if there is none. One GET. Raises FormatError."""
    key = journal.prefix + _NAME
    try:
        return _decode(journal.storage.get(key), key)
    except ObjectNotFoundError:
        return None


def write_shared(journal: Journal, record: SharedRecord) -> None:
    """Store the record. One PUT."""
    fields = {
        "version": 1,
        "session": json.loads(record.session.to_bytes()),
        "base": str(record.base_id),
        "seen": record.seen,
        "lamport": record.lamport,
        "coordinator": record.coordinator,
    }
    data = json.dumps(fields, indent=1).encode()
    storage = journal.storage
    if not storage.is_remote:
        storage.flush()  # what the record refers to must survive a crash of the machine as long as the record does
    storage.put(journal.prefix + _NAME, data)
    if not storage.is_remote:
        storage.flush()


def _decode(data: bytes, name: str) -> SharedRecord:
    try:
        if len(data) > _MAX_SIZE:
            raise ValueError(f"it has {len(data)} bytes")
        fields = json.loads(data)
        if not isinstance(fields, dict) or fields.get("version") != 1:
            raise ValueError("it is not an object of version 1")
        lamport, coordinator = fields["lamport"], fields["coordinator"]
        if type(lamport) is not int or not 0 <= lamport < 2**62 or not isinstance(coordinator, str):
            raise ValueError("its number or its coordinator is wrong")
        return SharedRecord(
            session=SessionRecord.from_bytes(json.dumps(fields["session"]).encode(), name),
            base_id=SnapshotId.from_str(fields["base"]),
            seen=tuple([_source(row) for row in fields["seen"]]),
            lamport=lamport,
            coordinator=coordinator,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(
            f"the record {name} is damaged ({error}). Restore the object from a backup, or begin a new session"
        ) from None


def _source(row: list[object]) -> EditSource:
    writer, epoch, task = row
    if not isinstance(writer, str) or type(epoch) is not int or not (task is None or isinstance(task, str)):
        raise ValueError("its sources are wrong")
    return EditSource(writer, epoch, task)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session that has a journal: one that is under way, or one whose process has died.

    Attributes
    ----------
    token
        Names the session.
    branch
        The branch that it commits to; None if unknown.
    snapshot_id
        The committed snapshot that it is based on; None if unknown.
    host
        Name of the machine that it began on; None if unknown.
    created_at
        When it began, by the clock of that machine; None if unknown.
    last_report_at
        When the newest object of the journal was written, by the clock of the storage.
    is_shared
        True if it can be joined and resumed by its token.
    num_reports
        Number of reports that are not committed yet.
    size_bytes
        Size of all objects of the journal.
    """

    token: str
    branch: str | None
    snapshot_id: str | None
    host: str | None
    created_at: datetime | None
    last_report_at: datetime
    is_shared: bool
    num_reports: int
    size_bytes: int


def find_journals(storage: Storage) -> list[SessionInfo]:
    """Return all journals of a repository, sorted by the time of their last report.

    One LIST, and one or two GETs for each journal.
    """
    found: dict[str, list[ObjectInfo]] = {}
    for info in storage.list(layout.JOURNALS):
        token = info.key.removeprefix(layout.JOURNALS).partition("/")[0]
        if is_token(token):
            found.setdefault(token, []).append(info)
    infos = map_requests(storage, lambda token: _summary(Journal(storage, token), found[token]), found)
    return sorted(infos, key=lambda info: (info.last_report_at, info.token))


def _summary(journal: Journal, objects: Iterable[ObjectInfo]) -> SessionInfo:
    objects = list(objects)
    record: SessionRecord | None = None
    is_shared = any(info.key == journal.prefix + _NAME for info in objects)
    try:
        shared = read_shared(journal) if is_shared else None
        record = shared.session if shared is not None else journal.record()
    except FormatError:
        pass  # return what is known without the record
    return SessionInfo(
        token=journal.token,
        branch=None if record is None else record.branch,
        snapshot_id=None if record is None else str(record.origin_id),
        host=None if record is None else record.host,
        created_at=None if record is None else record.created_at,
        last_report_at=datetime.fromtimestamp(max(info.last_modified_us for info in objects) / 1e6, UTC),
        is_shared=is_shared,
        num_reports=sum(journal.is_entry(info.key) for info in objects),
        size_bytes=sum(info.size_bytes for info in objects),
    )
