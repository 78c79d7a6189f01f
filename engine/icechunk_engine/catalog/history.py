"""The public views of a repository's history: snapshots, manifests files, ops log entries."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, make_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from icechunk_engine.columns.tables import I64, U64
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.format.repo_info import NO_PARENT, SnapshotRecord, SnapshotTable, Status, UpdateKind, UpdateRecord
from icechunk_engine.ids import base32_of_rows
from icechunk_engine.types import RepoAvailability, RepoStatus

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_US = 253_402_300_800_000_000
"""The year 10 000, which datetimes do not reach."""


def utc_of_us(unix_us: int, of: str = "an entry") -> datetime:
    """Unix microseconds as an aware datetime in UTC. Raises FormatError, as :func:`require_date`."""
    require_date(unix_us, of)
    return _EPOCH + timedelta(microseconds=unix_us)


def require_date(unix_us: int, of: str) -> None:
    """Raise FormatError (``snapshot-timestamp``) unless Unix microseconds that were stored are a date.

    Parameters
    ----------
    of
        What is dated so, for the message.
    """
    if not 0 <= unix_us < _END_US:
        raise FormatError(
            f"{of} is dated {unix_us} µs after 1970, which is not a valid date: the file is damaged. The data can "
            f"be read by snapshot id, branch or tag; to see or continue the history, restore that file from a copy",
            ErrorKind.SNAPSHOT_TIMESTAMP,
        )


def _utc_of_column(unix_us: U64, of: Sequence[str]) -> Iterable[datetime]:
    """:func:`utc_of_us` of many; what is not a date raises when it is reached."""
    if len(unix_us) and int(unix_us.max()) >= _END_US:
        return map(utc_of_us, unix_us.tolist(), of)
    elapsed: list[timedelta] = unix_us.astype("m8[us]").tolist()
    return [_EPOCH + time for time in elapsed]


def us_of_datetime(moment: datetime) -> int:
    """Unix microseconds of a datetime. Raises TypeError for a naive one, which could mean UTC or local time."""
    if moment.utcoffset() is None:
        raise TypeError(
            f"{moment!r} has no time zone: pass an aware datetime, such as datetime.now(timezone.utc) or "
            f"moment.replace(tzinfo=timezone.utc)"
        )
    elapsed = moment - _EPOCH
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def public_status(status: Status) -> RepoStatus:
    """Public view of the status record."""
    return RepoStatus(
        RepoAvailability[status.availability.name.lower()], utc_of_us(status.set_at_us, "the status"), status.reason
    )


def html_table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A two-column table for notebooks."""
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<div><b>{html.escape(title)}</b><table>{body}</table></div>"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """One snapshot in the history."""

    id: str
    parent_id: str | None
    written_at: datetime
    message: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, record: SnapshotRecord) -> SnapshotInfo:
        """View of a row of the snapshot table."""
        return cls(
            id=str(record.id),
            parent_id=None if record.parent_id is None else str(record.parent_id),
            written_at=utc_of_us(record.flushed_at_us, f"snapshot {record.id}"),
            message=record.message,
            metadata=record.metadata,
        )

    def __repr__(self) -> str:
        return (
            f"SnapshotInfo(id={self.id!r}, parent_id={self.parent_id!r}, "
            f"written_at={self.written_at.isoformat(timespec='milliseconds')}, message={self.message[:60]!r}"
            + (f", metadata={self.metadata!r}" if self.metadata else "")
            + ")"
        )

    def _repr_html_(self) -> str:
        return html_table(
            "Snapshot",
            [
                ("id", self.id),
                ("parent", self.parent_id or "—"),
                ("written at", self.written_at.isoformat(timespec="milliseconds")),
                ("message", self.message),
                ("metadata", self.metadata or "—"),
            ],
        )


def snapshot_infos(table: SnapshotTable, rows: I64) -> Iterator[SnapshotInfo]:
    """Views of many rows of the snapshot table, made a batch at a time: who wants only the newest gets only few."""
    start, size = 0, 1
    while start < len(rows):
        part = rows[start : start + size]
        start, size = start + size, min(16 * size, 4096)
        parents = table.parents[part]
        known, codes = np.unique(np.concatenate([part, parents]), return_inverse=True)
        names: list[str | None] = [*base32_of_rows(table.ids[known])]
        if len(known) and known[0] == NO_PARENT:
            names[0] = None
        ids = [names[code] for code in codes.tolist()]
        for row, own, parent, time, message, has_metadata in zip(
            part.tolist(),
            ids[: len(part)],
            ids[len(part) :],
            _utc_of_column(table.flushed_at[part], [f"snapshot {name}" for name in ids[: len(part)]]),
            table.messages.take(part).texts(),
            (table.metadata.lengths[part] > 0).tolist(),
            strict=True,
        ):
            assert own is not None
            metadata = table.metadata.decode(row) if has_metadata else {}
            yield SnapshotInfo(id=own, parent_id=parent, written_at=time, message=message, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ManifestFileInfo:
    """One manifest file of a snapshot."""

    id: str
    size_bytes: int
    num_chunk_refs: int

    def _repr_html_(self) -> str:
        return html_table(
            "Manifest", [("id", self.id), ("bytes", self.size_bytes), ("chunk references", self.num_chunk_refs)]
        )


class UpdateType:
    """What one entry of the ops log did; each kind is a nested class."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"UpdateType.{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    RepoInitialized: type[UpdateType]
    RepoMigrated: type[UpdateType]
    ConfigChanged: type[UpdateType]
    MetadataChanged: type[UpdateType]
    TagCreated: type[UpdateType]
    TagDeleted: type[UpdateType]
    BranchCreated: type[UpdateType]
    BranchDeleted: type[UpdateType]
    BranchReset: type[UpdateType]
    NewCommit: type[UpdateType]
    CommitAmended: type[UpdateType]
    NewDetachedSnapshot: type[UpdateType]
    GCRan: type[UpdateType]
    ExpirationRan: type[UpdateType]
    FeatureFlagChanged: type[UpdateType]
    RepoStatusChanged: type[UpdateType]


# Kind in the file, public name, and which fields of the record it shows under which names.
_KINDS: dict[UpdateKind, tuple[str, dict[str, str]]] = {
    UpdateKind.REPO_INITIALIZED: ("RepoInitialized", {}),
    UpdateKind.REPO_MIGRATED: ("RepoMigrated", {"from_version": "from_version", "to_version": "to_version"}),
    UpdateKind.CONFIG_CHANGED: ("ConfigChanged", {}),
    UpdateKind.METADATA_CHANGED: ("MetadataChanged", {}),
    UpdateKind.TAG_CREATED: ("TagCreated", {"name": "name"}),
    UpdateKind.TAG_DELETED: ("TagDeleted", {"name": "name", "previous_snap_id": "previous_id"}),
    UpdateKind.BRANCH_CREATED: ("BranchCreated", {"name": "name"}),
    UpdateKind.BRANCH_DELETED: ("BranchDeleted", {"name": "name", "previous_snap_id": "previous_id"}),
    UpdateKind.BRANCH_RESET: ("BranchReset", {"name": "name", "previous_snap_id": "previous_id"}),
    UpdateKind.NEW_COMMIT: ("NewCommit", {"branch": "name", "new_snap_id": "new_id"}),
    UpdateKind.COMMIT_AMENDED: (
        "CommitAmended",
        {"branch": "name", "previous_snap_id": "previous_id", "new_snap_id": "new_id"},
    ),
    UpdateKind.NEW_DETACHED_SNAPSHOT: ("NewDetachedSnapshot", {"new_snap_id": "new_id"}),
    UpdateKind.GC_RAN: ("GCRan", {}),
    UpdateKind.EXPIRATION_RAN: ("ExpirationRan", {}),
    UpdateKind.FEATURE_FLAG_CHANGED: ("FeatureFlagChanged", {"id": "flag_id", "new_value": "flag_value"}),
    UpdateKind.REPO_STATUS_CHANGED: ("RepoStatusChanged", {"status": "status"}),
}

_CLASSES: dict[str, type[UpdateType]] = {}
for _name, _fields in _KINDS.values():
    _class = make_dataclass(_name, dict.fromkeys(_fields, Any).items(), bases=(UpdateType,), eq=False, repr=False)
    _class.__module__, _class.__qualname__ = __name__, f"UpdateType.{_name}"
    setattr(UpdateType, _name, _class)
    _CLASSES[_name] = _class


@dataclass(frozen=True, slots=True)
class Update:
    """One entry of the ops log.

    Attributes
    ----------
    kind
        What was done.
    updated_at
        When, by the writer's clock, in UTC.
    backup_path
        Object under ``overwritten/`` that holds the repo info as this update left it; None for the latest one.
    """

    kind: UpdateType
    updated_at: datetime
    backup_path: str | None

    @classmethod
    def of(cls, record: UpdateRecord) -> Update:
        """View of a row of the update table."""
        name, fields = _KINDS[record.kind]
        values = {}
        for public, private in fields.items():
            value = getattr(record, private)
            if public.endswith("snap_id"):
                value = str(value)
            elif public == "status" and value is not None:
                value = public_status(value)
            values[public] = value
        return cls(
            _CLASSES[name](**values), utc_of_us(record.updated_at_us, "an entry of the ops log"), record.backup_path
        )

    def _repr_html_(self) -> str:
        return html_table(
            "Update",
            [
                ("kind", repr(self.kind)),
                ("updated at", self.updated_at.isoformat(timespec="milliseconds")),
                ("backup", self.backup_path or "—"),
            ],
        )
