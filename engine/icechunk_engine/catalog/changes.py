"""Changes of a repository as records, and the pure function that applies one to a repo info.

Each change (a commit, a branch, a tag, the configuration, …) is one record. In spec 2 it becomes one entry of the ops
log (spec, *Repo info*). Applying a change never waits and never looks at a clock: the caller passes the time, and the
name under which it keeps a copy of the present ``repo``. So a change that loses a race can be applied again to the
newer repo info, where all its preconditions are checked anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from icechunk_engine.catalog.dates import require_date
from icechunk_engine.catalog.preconditions import (
    FLAG_CREATE_TAG,
    FLAG_DELETE_TAG,
    branch_tip,
    require_amendable,
    require_flag,
    require_moves_allowed,
    require_online,
    snapshot_row,
    tag_target,
)
from icechunk_engine.catalog.ref_names import branch_taken, require_deletable, tag_taken
from icechunk_engine.errors import ConflictError, ErrorKind
from icechunk_engine.format.repo_info import (
    Availability,
    RepoInfo,
    SnapshotRecord,
    Status,
    UpdateKind,
    UpdateRecord,
)
from icechunk_engine.ids import SnapshotId
from icechunk_engine.types import JsonObject


class CatalogChange(ABC):
    """One change of a repository."""

    __slots__ = ()

    needs_online: ClassVar[bool] = True
    """False if the change is allowed whatever the repository's status."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Description for messages, such as "creating branch 'dev'"."""

    @abstractmethod
    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        """Return the changed repo info, its ops log untouched, and the entry for the ops log.

        Raises
        ------
        IcechunkError
            The typed error of the precondition that does not hold.
        """


def advance(info: RepoInfo, change: CatalogChange, *, now_us: int, backup_name: str, max_updates: int) -> RepoInfo:
    """Return the repo info after one change.

    The change is dated ``now_us``, or just after the latest update if that is later. Entries of the ops log must be
    strictly ordered, and a writer whose clock runs ahead must not keep the others from writing.

    Raises
    ------
    IcechunkError
        The typed error of the precondition that does not hold.
    """
    if change.needs_online:
        require_online(info)
    info.updates.require_intact()
    at_us = now_us
    if len(info.updates):
        latest_us = info.updates.record(0).updated_at_us
        require_date(latest_us, "the latest update in 'repo'")
        at_us = max(now_us, latest_us + 1)
    changed, record = change.apply(info, at_us)
    updates, cut_at = changed.updates.push(record, backup_name).trimmed(max_updates)
    if cut_at is None:
        # An empty log has no entry that could name the backup. Nobody writes one, but everybody reads one.
        cut_at = changed.repo_before_updates if len(changed.updates) else backup_name
    return replace(changed, updates=updates, repo_before_updates=cut_at)


def includes_change(info: RepoInfo, backup_name: str) -> bool:
    """Return whether a repo info includes the change that kept the repo info before it under a backup name.

    Each attempt at a change makes a new random backup name. So the name identifies the attempt.
    """
    return backup_name == info.repo_before_updates or backup_name.encode() in info.updates.backup_paths.raws()


# --- branches ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateBranch(CatalogChange):
    """Create a branch at a known snapshot."""

    name: str
    snapshot_id: SnapshotId

    @property
    def description(self) -> str:
        return f"creating branch {self.name!r}"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        if self.name in info.branches:
            raise branch_taken(self.name)
        snapshot_row(info, self.snapshot_id)
        changed = _with_branch(info, self.name, self.snapshot_id)
        return changed, UpdateRecord(kind=UpdateKind.BRANCH_CREATED, updated_at_us=at_us, name=self.name)


@dataclass(frozen=True, slots=True)
class ResetBranch(CatalogChange):
    """Move a branch to any known snapshot. If ``expected`` is given, the branch must be there before."""

    name: str
    snapshot_id: SnapshotId
    expected: SnapshotId | None = None

    @property
    def description(self) -> str:
        return f"resetting branch {self.name!r}"

    def next_tip(self, tip: SnapshotId) -> SnapshotId:
        """Return where the branch goes from ``tip``. Raises ConflictError if it was expected elsewhere."""
        if self.expected is not None and tip != self.expected:
            raise ConflictError(
                str(self.expected),
                str(tip),
                f"branch update conflict: branch {self.name!r} is at {tip}, not at {self.expected}. Look at "
                f"repo.ancestry and reset again",
                ErrorKind.BRANCH_UPDATE_CONFLICT,
            )
        return self.snapshot_id

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        tip = branch_tip(info, self.name)
        target = self.next_tip(tip)
        snapshot_row(info, target)
        return _with_branch(info, self.name, target), UpdateRecord(
            kind=UpdateKind.BRANCH_RESET, updated_at_us=at_us, name=self.name, previous_id=tip
        )


@dataclass(frozen=True, slots=True)
class DeleteBranch(CatalogChange):
    """Delete a branch. Its snapshots stay until garbage collection."""

    name: str

    @property
    def description(self) -> str:
        return f"deleting branch {self.name!r}"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        require_deletable(self.name)
        tip = branch_tip(info, self.name)
        branches = {name: target for name, target in info.branches.items() if name != self.name}
        return replace(info, branches=branches), UpdateRecord(
            kind=UpdateKind.BRANCH_DELETED, updated_at_us=at_us, name=self.name, previous_id=tip
        )


def _with_branch(info: RepoInfo, name: str, target: SnapshotId) -> RepoInfo:
    return replace(info, branches={**info.branches, name: target})


# --- tags --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateTag(CatalogChange):
    """Create an immutable tag at a known snapshot. Its name must never have been used."""

    name: str
    snapshot_id: SnapshotId

    @property
    def description(self) -> str:
        return f"creating tag {self.name!r}"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        require_flag(info, FLAG_CREATE_TAG, "create_tag")
        was_deleted = self.name in info.deleted_tags
        if was_deleted or self.name in info.tags:
            raise tag_taken(self.name, was_deleted=was_deleted)
        snapshot_row(info, self.snapshot_id)
        changed = replace(info, tags={**info.tags, self.name: self.snapshot_id})
        return changed, UpdateRecord(kind=UpdateKind.TAG_CREATED, updated_at_us=at_us, name=self.name)


@dataclass(frozen=True, slots=True)
class DeleteTag(CatalogChange):
    """Delete a tag. Its name can never be used again."""

    name: str

    @property
    def description(self) -> str:
        return f"deleting tag {self.name!r}"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        require_flag(info, FLAG_DELETE_TAG, "delete_tag")
        target = tag_target(info, self.name)
        changed = replace(
            info,
            tags={name: kept for name, kept in info.tags.items() if name != self.name},
            deleted_tags=info.deleted_tags | {self.name},
        )
        return changed, UpdateRecord(
            kind=UpdateKind.TAG_DELETED, updated_at_us=at_us, name=self.name, previous_id=target
        )


# --- snapshots ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddCommit(CatalogChange):
    """Put a new snapshot on a branch. The branch's tip must be the snapshot's parent."""

    branch: str
    snapshot: SnapshotRecord
    has_moves: bool = False

    @property
    def description(self) -> str:
        return f"putting snapshot {self.snapshot.id} onto branch {self.branch!r}"

    def next_tip(self, tip: SnapshotId) -> SnapshotId:
        """Return where the branch goes from ``tip``. Raises ConflictError if another commit came first."""
        if tip != self.snapshot.parent_id:
            raise ConflictError(str(self.snapshot.parent_id), str(tip))
        return self.snapshot.id

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        if self.has_moves:
            require_moves_allowed(info)
        tip = self.next_tip(branch_tip(info, self.branch))
        changed = replace(_with_branch(info, self.branch, tip), snapshots=info.snapshots.insert(self.snapshot))
        return changed, UpdateRecord(
            kind=UpdateKind.NEW_COMMIT, updated_at_us=at_us, name=self.branch, new_id=self.snapshot.id
        )


@dataclass(frozen=True, slots=True)
class AmendCommit(CatalogChange):
    """Put a new snapshot in the place of a branch's tip, which must be ``amended``.

    The amended snapshot stays in the list. The new one gets its parent and pruned logs, which expiration may have
    changed since the new snapshot was made.
    """

    branch: str
    amended: SnapshotId
    snapshot: SnapshotRecord
    has_moves: bool = False

    @property
    def description(self) -> str:
        return f"putting snapshot {self.snapshot.id} in the place of {self.amended} on branch {self.branch!r}"

    def next_tip(self, tip: SnapshotId) -> SnapshotId:
        """Return where the branch goes from ``tip``. Raises ConflictError if another commit came first."""
        if tip != self.amended:
            raise ConflictError(str(self.amended), str(tip))
        return self.snapshot.id

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        if self.has_moves:
            require_moves_allowed(info)
        tip = self.next_tip(branch_tip(info, self.branch))
        amended = info.snapshots.record(snapshot_row(info, self.amended))
        require_amendable(amended)
        snapshot = replace(self.snapshot, parent_id=amended.parent_id, pruned=amended.pruned)
        changed = replace(_with_branch(info, self.branch, tip), snapshots=info.snapshots.insert(snapshot))
        return changed, UpdateRecord(
            kind=UpdateKind.COMMIT_AMENDED,
            updated_at_us=at_us,
            name=self.branch,
            previous_id=self.amended,
            new_id=snapshot.id,
        )


@dataclass(frozen=True, slots=True)
class AddDetachedSnapshot(CatalogChange):
    """Add a new snapshot that no branch points to."""

    snapshot: SnapshotRecord
    has_moves: bool = False

    @property
    def description(self) -> str:
        return f"listing snapshot {self.snapshot.id}"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        if self.has_moves:
            require_moves_allowed(info)
        changed = replace(info, snapshots=info.snapshots.insert(self.snapshot))
        return changed, UpdateRecord(
            kind=UpdateKind.NEW_DETACHED_SNAPSHOT, updated_at_us=at_us, new_id=self.snapshot.id
        )


# --- settings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetConfig(CatalogChange):
    """Replace the persisted configuration. None goes back to the defaults."""

    config: JsonObject | None

    @property
    def description(self) -> str:
        return "storing the configuration"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        return replace(info, config=self.config), UpdateRecord(kind=UpdateKind.CONFIG_CHANGED, updated_at_us=at_us)


@dataclass(frozen=True, slots=True)
class SetMetadata(CatalogChange):
    """Replace the repository's metadata. With ``merge``, add to it."""

    metadata: JsonObject
    merge: bool = False

    @property
    def description(self) -> str:
        return "changing the metadata"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        metadata = {**info.metadata, **self.metadata} if self.merge else dict(self.metadata)
        return replace(info, metadata=metadata), UpdateRecord(kind=UpdateKind.METADATA_CHANGED, updated_at_us=at_us)


@dataclass(frozen=True, slots=True)
class SetStatus(CatalogChange):
    """Make the repository writable or read-only."""

    availability: Availability
    reason: str | None = None

    needs_online: ClassVar[bool] = False

    @property
    def description(self) -> str:
        return f"setting the status to {self.availability.name.lower()}"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        status = Status(availability=self.availability, set_at_us=at_us, reason=self.reason)
        return replace(info, status=status), UpdateRecord(
            kind=UpdateKind.REPO_STATUS_CHANGED, updated_at_us=at_us, status=status
        )


@dataclass(frozen=True, slots=True)
class SetFeatureFlag(CatalogChange):
    """Switch a feature on or off. None goes back to its default."""

    flag_id: int
    setting: bool | None

    @property
    def description(self) -> str:
        return f"setting feature flag {self.flag_id}"

    def apply(self, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
        enabled = set(info.enabled_flags) - {self.flag_id}
        disabled = set(info.disabled_flags) - {self.flag_id}
        if self.setting is not None:
            (enabled if self.setting else disabled).add(self.flag_id)
        changed = replace(info, enabled_flags=tuple(sorted(enabled)), disabled_flags=tuple(sorted(disabled)))
        return changed, UpdateRecord(
            kind=UpdateKind.FEATURE_FLAG_CHANGED, updated_at_us=at_us, flag_id=self.flag_id, flag_value=self.setting
        )
