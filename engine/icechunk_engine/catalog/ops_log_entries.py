"""The ops log as users see it: what was done to the repository, and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from datetime import datetime
from typing import Any

from icechunk_engine.catalog.dates import utc_of_us
from icechunk_engine.catalog.html_tables import html_table
from icechunk_engine.format.repo_info import Status, UpdateKind, UpdateRecord
from icechunk_engine.types import RepoAvailability, RepoStatus


def public_status(status: Status) -> RepoStatus:
    """Return the public view of a status."""
    return RepoStatus(
        RepoAvailability[status.availability.name.lower()], utc_of_us(status.set_at_us, "the status"), status.reason
    )


class UpdateType:
    """The kind of an entry of the ops log. Each kind is a nested class."""

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


# By kind in the file: the public name of the class, and its fields with the fields of the record they show.
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
        What the update did.
    updated_at
        When it was made, in UTC, by the writer's clock.
    backup_path
        Name below ``overwritten/`` of the repo info as this update left it. None for the latest update.
    """

    kind: UpdateType
    updated_at: datetime
    backup_path: str | None

    @classmethod
    def of(cls, record: UpdateRecord) -> Update:
        """Return the public view of a row of the update table."""
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
