"""The latest entries of the ops log in the repo info, as columns (spec, *Ops log*).

Each update of a repository adds an entry and rewrites the others, up to a thousand by default, so they stay columns.

The log is a chain through backups. Entry ``i`` names the backup that holds the repo info as that update left it, and
that backup holds entry ``i`` and all older ones. So entries may be dropped from the end once a backup has them
(:meth:`UpdateTable.trimmed`), and the file then names that backup. Only the newest entry has no backup: its repo info
is the file itself.

An update of an unknown kind, or a damaged log, does not stop readers, because refs and snapshots do not depend on it.
It stops writers: they would have to rewrite the entries, and would lose them for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, U64, BytesTable, Integers, Mask, concat_tables
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.flatbuf.reader import Tables
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout, TableWriter
from icechunk_engine.format import schema
from icechunk_engine.format.metadata import encode_text
from icechunk_engine.ids import SnapshotId

UpdateKind = schema.UpdateTag


class Availability(IntEnum):
    """Which operations the repository allows."""

    ONLINE = 0
    READ_ONLY = 1
    OFFLINE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The status of the repository.

    Attributes
    ----------
    availability
        Which operations it allows.
    set_at_us
        When the status was set, Unix microseconds.
    reason
        Why availability is limited.
    """

    availability: Availability
    set_at_us: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """One entry of the ops log. The kind decides which fields it uses.

    Attributes
    ----------
    kind
        The kind of update.
    updated_at_us
        When it was made, Unix microseconds.
    name
        The branch or tag.
    previous_id, new_id
        The snapshots before and after.
    from_version, to_version
        The spec versions before and after a migration.
    flag_id, flag_value
        A feature flag and its setting, which is None for the default.
    status
        The new status.
    backup_path
        Name below ``overwritten/`` of the repo info as this update left it; None for the latest entry.
    """

    kind: UpdateKind
    updated_at_us: int
    name: str = ""
    previous_id: SnapshotId | None = None
    new_id: SnapshotId | None = None
    from_version: int = 0
    to_version: int = 0
    flag_id: int = 0
    flag_value: bool | None = None
    status: Status | None = None
    backup_path: str | None = None


_ROW = np.dtype(
    [
        ("kind", "u1"),
        ("updated_at", "u8"),
        ("has_backup", "?"),
        ("previous_id", "u1", SnapshotId.SIZE),
        ("new_id", "u1", SnapshotId.SIZE),
        ("from_version", "u1"),
        ("to_version", "u1"),
        ("flag_id", "u2"),
        ("flag_value", "?"),
        ("flag_is_set", "?"),
        ("availability", "u1"),
        ("set_at", "u8"),
        ("has_reason", "?"),
    ]
)


@dataclass(frozen=True, slots=True)
class _Slots:
    """The slots of fields that several kinds have; None if a kind lacks the field."""

    name: int | None = None
    previous_id: int | None = None
    new_id: int | None = None


_NAMED = _Slots(schema.NamedUpdate.NAME)
_NAMED_FROM = _Slots(schema.NamedUpdate.NAME, schema.NamedUpdate.PREVIOUS_SNAP_ID)
_SLOTS = {kind: _Slots() for kind in UpdateKind} | {
    UpdateKind.TAG_CREATED: _NAMED,
    UpdateKind.TAG_DELETED: _NAMED_FROM,
    UpdateKind.BRANCH_CREATED: _NAMED,
    UpdateKind.BRANCH_DELETED: _NAMED_FROM,
    UpdateKind.BRANCH_RESET: _NAMED_FROM,
    UpdateKind.NEW_COMMIT: _Slots(schema.NewCommitUpdate.BRANCH, None, schema.NewCommitUpdate.NEW_SNAP_ID),
    UpdateKind.COMMIT_AMENDED: _Slots(
        schema.CommitAmendedUpdate.BRANCH,
        schema.CommitAmendedUpdate.PREVIOUS_SNAP_ID,
        schema.CommitAmendedUpdate.NEW_SNAP_ID,
    ),
    UpdateKind.NEW_DETACHED_SNAPSHOT: _Slots(None, None, schema.NewDetachedSnapshotUpdate.NEW_SNAP_ID),
}


@dataclass(frozen=True, slots=True, eq=False)
class UpdateTable:
    """Columns of ``n`` entries, newest first.

    Attributes
    ----------
    rows
        Structured ``(n,)``: the fields of fixed size. Fields that a kind lacks are zero.
    names, backup_paths, reasons
        Texts, empty where an entry has none.
    damage
        Why the entries could not be read. The table is then empty. Refs and snapshots can still be read.
    """

    rows: NDArray[Any]
    names: BytesTable
    backup_paths: BytesTable
    reasons: BytesTable
    damage: str = ""

    @classmethod
    def of(cls, records: Sequence[UpdateRecord]) -> UpdateTable:
        """Make a table of entries, newest first. Raises InvalidInputError for texts that are not valid Unicode."""
        rows = np.zeros(len(records), _ROW)
        for row, record in zip(rows, records, strict=True):
            status = record.status or Status(availability=Availability.ONLINE, set_at_us=0)
            row["kind"], row["updated_at"] = record.kind, record.updated_at_us
            row["has_backup"], row["has_reason"] = record.backup_path is not None, status.reason is not None
            row["previous_id"] = _id_row(record.previous_id)
            row["new_id"] = _id_row(record.new_id)
            row["from_version"], row["to_version"] = record.from_version, record.to_version
            row["flag_id"] = record.flag_id
            row["flag_value"], row["flag_is_set"] = bool(record.flag_value), record.flag_value is not None
            row["availability"], row["set_at"] = status.availability, status.set_at_us
        reasons = [record.status.reason or "" if record.status is not None else "" for record in records]
        return cls(
            rows,
            BytesTable.of([encode_text(record.name, "a ref name") for record in records]),
            BytesTable.of([record.backup_path or "" for record in records]),
            BytesTable.of([encode_text(reason, "the reason of a status") for reason in reasons]),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def require_intact(self) -> None:
        """Raise FormatError if the entries could not be read: an update would lose them for good."""
        if self.damage:
            raise FormatError(
                f"the ops log cannot be read ({self.damage}). Branches, tags and snapshots still can. To list or make "
                f"updates again, restore the object 'repo' from its newest copy under overwritten/",
                ErrorKind.DESERIALIZATION,
            )

    def record(self, i: int) -> UpdateRecord:
        """Return entry ``i`` as an object; 0 is the newest. Raises FormatError for an entry of unknown kind."""
        row = self.rows[i]
        kind = _known_kind(int(row["kind"]))
        slots = _SLOTS[kind]
        is_set = kind is UpdateKind.FEATURE_FLAG_CHANGED and bool(row["flag_is_set"])
        return UpdateRecord(
            kind=kind,
            updated_at_us=int(row["updated_at"]),
            name=self.names.text(i),
            previous_id=None if slots.previous_id is None else SnapshotId(row["previous_id"].tobytes()),
            new_id=None if slots.new_id is None else SnapshotId(row["new_id"].tobytes()),
            from_version=int(row["from_version"]),
            to_version=int(row["to_version"]),
            flag_id=int(row["flag_id"]),
            flag_value=bool(row["flag_value"]) if is_set else None,
            status=self._status(i) if kind is UpdateKind.REPO_STATUS_CHANGED else None,
            backup_path=self.backup_paths.text(i) if row["has_backup"] else None,
        )

    def _status(self, i: int) -> Status:
        row = self.rows[i]
        return Status(
            availability=Availability(int(row["availability"])),
            set_at_us=int(row["set_at"]),
            reason=self.reasons.text(i) if row["has_reason"] else None,
        )

    def push(self, record: UpdateRecord, backup_path: str) -> UpdateTable:
        """Add a new entry. The entry that was the newest gets the name of the backup of its repo info.

        Raises FormatError if the entries could not be read.
        """
        self.require_intact()
        top = UpdateTable.of([replace(record, backup_path=None)])
        if len(self) == 0:
            return top
        rows = np.concatenate([top.rows, self.rows])
        rows["has_backup"][1] = True
        # All entries but the newest, whose empty name is replaced. Starts without the first one are a table, too.
        older_backups = BytesTable(self.backup_paths.data, self.backup_paths.starts[1:])
        return UpdateTable(
            rows,
            concat_tables([top.names, self.names]),
            concat_tables([BytesTable.of(["", backup_path]), older_backups]),
            concat_tables([top.reasons, self.reasons]),
        )

    def trimmed(self, n: int) -> tuple[UpdateTable, str | None]:
        """Return the newest entries, and the name of the backup in which the log continues.

        At least the newest ``n`` entries stay. Entries are dropped from the first one after these that has a backup,
        because that backup holds it and all older ones. The name is None if no entry is dropped: the log then
        continues where it did.
        """
        with_backup = np.flatnonzero(self.rows["has_backup"][n:])
        if len(with_backup) == 0:
            return self, None
        stop = n + int(with_backup[0])
        kept = UpdateTable(
            self.rows[:stop],
            names=BytesTable(self.names.data, self.names.starts[: stop + 1]),
            backup_paths=BytesTable(self.backup_paths.data, self.backup_paths.starts[: stop + 1]),
            reasons=BytesTable(self.reasons.data, self.reasons.starts[: stop + 1]),
        )
        return kept, self.backup_paths.text(stop)


def _id_row(snapshot_id: SnapshotId | None) -> U8:
    return np.zeros(SnapshotId.SIZE, np.uint8) if snapshot_id is None else snapshot_id.to_row()


def _known_kind(number: int) -> UpdateKind:
    try:
        return UpdateKind(number)
    except ValueError:
        raise FormatError(
            f"the ops log holds an update of kind {number}, which this library does not know. You can read the "
            f"repository; to change it or list its updates, upgrade the library",
            ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION,
        ) from None


# --- reading -------------------------------------------------------------------------------------------------------


def read_status(tables: Tables) -> tuple[U8, U64, Mask, BytesTable]:
    """Read ``RepoStatus`` tables as columns: availability, time, mask of those with a reason, reason."""
    fields = schema.RepoStatus
    availability = tables.scalar(fields.AVAILABILITY, np.uint8)
    if bool((availability > max(Availability)).any()):
        raise tables.buffer.error("a repository status is unknown")
    return (
        availability,
        tables.scalar(fields.SET_AT, np.uint64),
        tables.present(fields.LIMITED_AVAILABILITY_REASON),
        tables.strings(fields.LIMITED_AVAILABILITY_REASON),
    )


def read_updates(root: Tables) -> UpdateTable:
    """Read the ``Update`` tables of a repo info. If they are damaged, the returned table is empty and says so."""
    try:
        return _read_updates(root.vectors(schema.Repo.LATEST_UPDATES, 4, "the list of updates").tables(20))
    except FormatError as error:
        return replace(UpdateTable.of([]), damage=str(error))


def _read_updates(tables: Tables) -> UpdateTable:
    fields = schema.Update
    rows = np.zeros(len(tables), _ROW)
    rows["kind"] = tables.scalar(fields.UPDATE_TYPE_TYPE, np.uint8)
    rows["updated_at"] = tables.scalar(fields.UPDATED_AT, np.uint64)
    rows["has_backup"] = tables.present(fields.BACKUP_PATH)
    backup_paths = tables.strings(fields.BACKUP_PATH)
    names: list[tuple[I64, BytesTable]] = []
    reasons: list[tuple[I64, BytesTable]] = []
    for number in _kinds_in(rows):
        if number not in _SLOTS:
            continue  # a kind of a newer version: readers ignore it, see _known_kind
        kind = UpdateKind(number)
        of_kind = np.flatnonzero(rows["kind"] == kind)
        if kind in _WITHOUT_FIELDS:
            continue
        details = tables.take(of_kind).children(fields.UPDATE_TYPE, "the details of an update")
        _read_details(kind, details, rows, of_kind, names, reasons)
    return UpdateTable(rows, _scattered(names, len(tables)), backup_paths, _scattered(reasons, len(tables)))


def _read_details(
    kind: UpdateKind,
    details: Tables,
    rows: NDArray[Any],
    of_kind: I64,
    names: list[tuple[I64, BytesTable]],
    reasons: list[tuple[I64, BytesTable]],
) -> None:
    slots = _SLOTS[kind]
    if slots.name is not None:
        names.append((of_kind, details.strings(slots.name, "the name of a branch or tag")))
    if slots.previous_id is not None:
        rows["previous_id"][of_kind] = details.required_struct(slots.previous_id, SnapshotId.SIZE, "a snapshot id")
    if slots.new_id is not None:
        rows["new_id"][of_kind] = details.required_struct(slots.new_id, SnapshotId.SIZE, "a snapshot id")
    if kind is UpdateKind.REPO_MIGRATED:
        rows["from_version"][of_kind] = details.scalar(schema.RepoMigratedUpdate.FROM_VERSION, np.uint8)
        rows["to_version"][of_kind] = details.scalar(schema.RepoMigratedUpdate.TO_VERSION, np.uint8)
    if kind is UpdateKind.FEATURE_FLAG_CHANGED:
        flag = schema.FeatureFlagChangedUpdate
        rows["flag_id"][of_kind] = details.scalar(flag.ID, np.uint16)
        rows["flag_value"][of_kind] = details.scalar(flag.NEW_VALUE, np.uint8) != 0
        rows["flag_is_set"][of_kind] = details.scalar(flag.IS_SET, np.uint8) != 0
    if kind is UpdateKind.REPO_STATUS_CHANGED:
        status = details.children(schema.RepoStatusChangedUpdate.STATUS, "the status of an update")
        availability, set_at, has_reason, reason = read_status(status)
        rows["availability"][of_kind], rows["set_at"][of_kind] = availability, set_at
        rows["has_reason"][of_kind] = has_reason
        reasons.append((of_kind, reason))


def _kinds_in(rows: NDArray[Any]) -> list[int]:
    kinds: list[int] = np.flatnonzero(np.bincount(rows["kind"])).tolist()
    return kinds


def _scattered(parts: Sequence[tuple[I64, BytesTable]], n: int) -> BytesTable:
    """Put the texts of all parts at their rows into a table of ``n`` texts. Texts of other rows are empty."""
    texts = concat_tables([*(text for _, text in parts), BytesTable.of([""])])
    sources = np.full(n, len(texts) - 1, np.int64)
    if parts:
        sources[np.concatenate([rows for rows, _ in parts])] = np.arange(len(texts) - 1)
    return texts.take(sources)


# --- writing -------------------------------------------------------------------------------------------------------

_ID = f"V{SnapshotId.SIZE}"
_UPDATE = TableLayout.of(
    {
        schema.Update.UPDATE_TYPE_TYPE: "u1",
        schema.Update.UPDATE_TYPE: OFFSET,
        schema.Update.UPDATED_AT: "<u8",
        schema.Update.BACKUP_PATH: OFFSET,
    }
)
_STATUS = TableLayout.of(
    {
        schema.RepoStatus.AVAILABILITY: "u1",
        schema.RepoStatus.SET_AT: "<u8",
        schema.RepoStatus.LIMITED_AVAILABILITY_REASON: OFFSET,
    }
)


def _details_layout(kind: UpdateKind, slots: _Slots) -> TableLayout:
    if kind is UpdateKind.REPO_MIGRATED:
        return TableLayout.of(
            {schema.RepoMigratedUpdate.FROM_VERSION: "u1", schema.RepoMigratedUpdate.TO_VERSION: "u1"}
        )
    if kind is UpdateKind.FEATURE_FLAG_CHANGED:
        flag = schema.FeatureFlagChangedUpdate
        return TableLayout.of({flag.ID: "<u2", flag.NEW_VALUE: "u1", flag.IS_SET: "u1"})
    if kind is UpdateKind.REPO_STATUS_CHANGED:
        return TableLayout.of({schema.RepoStatusChangedUpdate.STATUS: OFFSET})
    fields = ((slots.name, OFFSET), (slots.previous_id, _ID), (slots.new_id, _ID))
    return TableLayout.of({slot: dtype for slot, dtype in fields if slot is not None})


_DETAILS = {kind: _details_layout(kind, slots) for kind, slots in _SLOTS.items()}
_WITHOUT_FIELDS = {kind for kind, layout in _DETAILS.items() if not layout.fields}


def write_status(
    arena: Arena,
    availability: Integers,
    set_at: Integers,
    has_reason: Mask,
    reasons: BytesTable,
) -> I64:
    """Write ``RepoStatus`` tables from columns; return their positions."""
    fields = schema.RepoStatus
    tables = arena.tables(_STATUS, len(availability))
    tables.set(fields.AVAILABILITY, availability)
    tables.set(fields.SET_AT, set_at)
    tables.point(fields.LIMITED_AVAILABILITY_REASON, arena.strings(reasons), present=has_reason)
    return tables.positions


def write_updates(arena: Arena, updates: UpdateTable) -> I64:
    """Write the ``Update`` tables; return their positions. Raises FormatError for entries of unknown kind."""
    fields, rows = schema.Update, updates.rows
    tables = arena.tables(_UPDATE, len(updates))
    tables.set(fields.UPDATE_TYPE_TYPE, rows["kind"])
    tables.set(fields.UPDATED_AT, rows["updated_at"])
    details = np.zeros(len(updates), np.int64)
    for number in _kinds_in(rows):
        kind = _known_kind(number)
        of_kind = np.flatnonzero(rows["kind"] == kind)
        children = arena.tables(_DETAILS[kind], len(of_kind))
        details[of_kind] = children.positions
        _write_details(arena, kind, children, updates, of_kind)
    tables.point(fields.UPDATE_TYPE, details)
    tables.point(fields.BACKUP_PATH, arena.strings(updates.backup_paths), present=rows["has_backup"])
    return tables.positions


def _write_details(arena: Arena, kind: UpdateKind, children: TableWriter, updates: UpdateTable, of_kind: I64) -> None:
    rows, slots = updates.rows[of_kind], _SLOTS[kind]
    if slots.name is not None:
        children.point(slots.name, arena.strings(updates.names.take(of_kind)))
    if slots.previous_id is not None:
        children.set(slots.previous_id, rows["previous_id"])
    if slots.new_id is not None:
        children.set(slots.new_id, rows["new_id"])
    if kind is UpdateKind.REPO_MIGRATED:
        children.set(schema.RepoMigratedUpdate.FROM_VERSION, rows["from_version"])
        children.set(schema.RepoMigratedUpdate.TO_VERSION, rows["to_version"])
    if kind is UpdateKind.FEATURE_FLAG_CHANGED:
        children.set(schema.FeatureFlagChangedUpdate.ID, rows["flag_id"])
        children.set(schema.FeatureFlagChangedUpdate.NEW_VALUE, rows["flag_value"])
        children.set(schema.FeatureFlagChangedUpdate.IS_SET, rows["flag_is_set"])
    if kind is UpdateKind.REPO_STATUS_CHANGED:
        status = write_status(
            arena, rows["availability"], rows["set_at"], rows["has_reason"], updates.reasons.take(of_kind)
        )
        children.point(schema.RepoStatusChangedUpdate.STATUS, status)
