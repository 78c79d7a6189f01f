"""Repository updates as records, and the pure function that applies one to a repo info.

Every change of the repository (a commit, a branch, a tag, the configuration …) is one record and becomes one entry of
the ops log (spec, *Repo info*). :func:`advance` never waits and never looks at a clock: the caller passes the time and
the name under which the present ``repo`` object is being kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

from icechunk_engine.catalog.history import require_date
from icechunk_engine.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    InvalidInputError,
    ReadOnlyError,
    RefNotFoundError,
    SessionStateError,
    SnapshotNotFoundError,
)
from icechunk_engine.format.repo_info import (
    Availability,
    RepoInfo,
    SnapshotRecord,
    Status,
    UpdateKind,
    UpdateRecord,
)
from icechunk_engine.ids import SnapshotId

MAIN = "main"

FLAG_MOVE_NODE = 3
FLAG_CREATE_TAG = 4
FLAG_DELETE_TAG = 5


@dataclass(frozen=True, slots=True)
class CreateBranch:
    """A new branch at a known snapshot."""

    name: str
    snapshot_id: SnapshotId


@dataclass(frozen=True, slots=True)
class ResetBranch:
    """Move a branch to any known snapshot; with ``expected``, only from there."""

    name: str
    snapshot_id: SnapshotId
    expected: SnapshotId | None = None


@dataclass(frozen=True, slots=True)
class DeleteBranch:
    """Remove a branch; its snapshots stay until garbage collection."""

    name: str


@dataclass(frozen=True, slots=True)
class CreateTag:
    """A new, immutable tag; its name must never have been used."""

    name: str
    snapshot_id: SnapshotId


@dataclass(frozen=True, slots=True)
class DeleteTag:
    """Remove a tag; the name is never free again."""

    name: str


@dataclass(frozen=True, slots=True)
class AddCommit:
    """A new snapshot becomes the tip of a branch, whose tip must be the snapshot's parent."""

    branch: str
    snapshot: SnapshotRecord
    has_moves: bool = False


@dataclass(frozen=True, slots=True)
class AmendCommit:
    """A new snapshot takes the place of a branch's tip, which must be ``amended``; that one stays known.

    The new snapshot gets the parent that the amended one has by then, and its pruned logs.
    """

    branch: str
    amended: SnapshotId
    snapshot: SnapshotRecord
    has_moves: bool = False


@dataclass(frozen=True, slots=True)
class AddDetachedSnapshot:
    """A new snapshot that no branch points to."""

    snapshot: SnapshotRecord
    has_moves: bool = False


@dataclass(frozen=True, slots=True)
class SetConfig:
    """Replace the persisted configuration (None: back to the defaults)."""

    config: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class SetMetadata:
    """Replace, or with ``merge`` extend, the repository's metadata."""

    metadata: dict[str, Any]
    merge: bool = False


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Make the repository writable or read-only; allowed whatever the present status."""

    availability: Availability
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SetFeatureFlag:
    """Switch a feature on or off, or back to its default (None)."""

    flag_id: int
    setting: bool | None


CatalogChange = (
    CreateBranch
    | ResetBranch
    | DeleteBranch
    | CreateTag
    | DeleteTag
    | AddCommit
    | AmendCommit
    | AddDetachedSnapshot
    | SetConfig
    | SetMetadata
    | SetStatus
    | SetFeatureFlag
)


def describe(update: CatalogChange) -> str:
    """What an update does, for messages."""
    match update:
        case CreateBranch(name=name):
            return f"creating branch {name!r}"
        case ResetBranch(name=name):
            return f"resetting branch {name!r}"
        case DeleteBranch(name=name):
            return f"deleting branch {name!r}"
        case CreateTag(name=name):
            return f"creating tag {name!r}"
        case DeleteTag(name=name):
            return f"deleting tag {name!r}"
        case AddCommit(branch=branch, snapshot=snapshot):
            return f"putting snapshot {snapshot.id} onto branch {branch!r}"
        case AmendCommit(branch=branch, amended=amended, snapshot=snapshot):
            return f"putting snapshot {snapshot.id} in the place of {amended} on branch {branch!r}"
        case AddDetachedSnapshot(snapshot=snapshot):
            return f"listing snapshot {snapshot.id}"
        case SetConfig():
            return "storing the configuration"
        case SetMetadata():
            return "changing the metadata"
        case SetStatus(availability=availability):
            return f"setting the status to {availability.name.lower()}"
        case SetFeatureFlag(flag_id=flag_id):
            return f"setting feature flag {flag_id}"


def advance(info: RepoInfo, update: CatalogChange, *, now_us: int, backup_name: str, max_updates: int) -> RepoInfo:
    """The repo info after one update.

    The update's time is ``now_us``, or just after the latest update where another writer's clock runs ahead: entries
    must be strictly ordered, and a fast clock elsewhere must not keep anybody from writing.

    Raises
    ------
    IcechunkError
        The typed error of whatever precondition does not hold; nothing was changed.
    """
    if not isinstance(update, SetStatus):
        require_online(info)
    info.updates.require_intact()
    at_us = now_us
    if len(info.updates):
        latest_us = info.updates.record(0).updated_at_us
        require_date(latest_us, "the latest update in 'repo'")
        at_us = max(now_us, latest_us + 1)
    changed, record = apply(update, info, at_us)
    updates, cut_at = changed.updates.push(record, backup_name).trimmed(max_updates)
    if cut_at is None:
        # An empty log, which nobody writes but everybody reads, has no entry that could name the backup.
        cut_at = changed.repo_before_updates if len(changed.updates) else backup_name
    return replace(changed, updates=updates, repo_before_updates=cut_at)


def has_landed(info: RepoInfo, backup_name: str) -> bool:
    """True when the update that kept the object before it under that name is part of the repo info."""
    return backup_name == info.repo_before_updates or backup_name.encode() in info.updates.backup_paths.raws()


def require_online(info: RepoInfo) -> None:
    """Raise ReadOnlyError (``read-only-repository``) unless the repository takes writes."""
    if info.status.availability is not Availability.ONLINE:
        reason = f" ({info.status.reason})" if info.status.reason else ""
        raise ReadOnlyError(
            f"the repository status is {info.status.availability.name.lower().replace('_', '-')}{reason}. "
            f"Make it writable again with repo.set_status(RepoStatus(RepoAvailability.online))",
            ErrorKind.READ_ONLY_REPOSITORY,
        )


def branch_tip(info: RepoInfo, name: str) -> SnapshotId:
    """Snapshot that a branch points to. Raises RefNotFoundError."""
    try:
        return info.branches[name]
    except KeyError:
        raise unknown_branch(name, info.branches) from None


def tag_target(info: RepoInfo, name: str) -> SnapshotId:
    """Snapshot that a tag points to. Raises RefNotFoundError."""
    try:
        return info.tags[name]
    except KeyError:
        raise unknown_tag(name, info.tags, was_deleted=name in info.deleted_tags) from None


def next_tip(update: AddCommit | AmendCommit | ResetBranch, tip: SnapshotId) -> SnapshotId:
    """Where a branch that is at ``tip`` goes. Raises ConflictError when the update expected it elsewhere."""
    if not isinstance(update, ResetBranch):
        expected = update.snapshot.parent_id if isinstance(update, AddCommit) else update.amended
        if tip != expected:
            raise ConflictError(str(expected), str(tip))
        return update.snapshot.id
    if update.expected is not None and tip != update.expected:
        raise ConflictError(
            str(update.expected),
            str(tip),
            f"branch update conflict: branch {update.name!r} is at {tip}, not at {update.expected}. Look at "
            f"repo.ancestry and reset again",
            ErrorKind.BRANCH_UPDATE_CONFLICT,
        )
    return update.snapshot_id


def snapshot_row(info: RepoInfo, snapshot_id: SnapshotId) -> int:
    """Row of a snapshot in the table. Raises SnapshotNotFoundError."""
    row = info.snapshots.find(snapshot_id)
    if row < 0:
        raise SnapshotNotFoundError(
            f"no snapshot {snapshot_id} in this repository; repo.ancestry(branch='main') lists those of a branch"
        )
    return row


def unknown_branch(name: str, known: Collection[str]) -> RefNotFoundError:
    """The error for a branch that is not there."""
    kind = ErrorKind.BRANCH_NOT_FOUND if name == MAIN else ErrorKind.REF_NOT_FOUND
    return RefNotFoundError(f"ref not found: no branch {name!r}. {_listed('branches', known)}", kind)


def unknown_tag(name: str, known: Collection[str], *, was_deleted: bool) -> RefNotFoundError:
    """The error for a tag that is not there."""
    gone = " (it was deleted)" if was_deleted else ""
    return RefNotFoundError(f"ref not found: no tag {name!r}{gone}. {_listed('tags', known)}")


def branch_taken(name: str) -> AlreadyExistsError:
    """The error for a branch that is there already."""
    return AlreadyExistsError(
        f"branch already exists: {name!r}. Move it with repo.reset_branch, or choose another name",
        ErrorKind.BRANCH_ALREADY_EXISTS,
    )


def tag_taken(name: str, *, was_deleted: bool) -> AlreadyExistsError:
    """The error for a tag whose name is in use, or was."""
    if was_deleted:
        return AlreadyExistsError(
            f"tag was already deleted: {name!r}, and icechunk does not allow tag reuse. Choose another name",
            ErrorKind.TAG_PREVIOUSLY_DELETED,
        )
    return AlreadyExistsError(
        f"tag already exists, tags are immutable: {name!r}. Choose another name", ErrorKind.TAG_ALREADY_EXISTS
    )


def require_deletable(branch: str) -> None:
    """Raise SessionStateError (``cannot-delete-main``) for the branch that every repository has."""
    if branch == MAIN:
        raise SessionStateError("the main branch cannot be deleted; reset it instead", ErrorKind.CANNOT_DELETE_MAIN)


def _listed(what: str, names: Collection[str]) -> str:
    if not names:
        return f"The repository has no {what}"
    shown = ", ".join(repr(name) for name in sorted(names)[:10])
    return f"Its {what}: {shown}" + (", …" if len(names) > 10 else "")


@singledispatch
def apply(update: Any, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    """The changed repo info (ops log untouched) and the ops log entry of one update."""
    raise TypeError(f"{type(update).__name__} is not a repository update")


@apply.register
def _(update: CreateBranch, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    if update.name in info.branches:
        raise branch_taken(update.name)
    snapshot_row(info, update.snapshot_id)
    changed = replace(info, branches={**info.branches, update.name: update.snapshot_id})
    return changed, UpdateRecord(kind=UpdateKind.BRANCH_CREATED, updated_at_us=at_us, name=update.name)


@apply.register
def _(update: ResetBranch, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    tip = branch_tip(info, update.name)
    target = next_tip(update, tip)
    snapshot_row(info, target)
    changed = replace(info, branches={**info.branches, update.name: target})
    return changed, UpdateRecord(kind=UpdateKind.BRANCH_RESET, updated_at_us=at_us, name=update.name, previous_id=tip)


@apply.register
def _(update: DeleteBranch, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    require_deletable(update.name)
    tip = branch_tip(info, update.name)
    branches = {name: target for name, target in info.branches.items() if name != update.name}
    return replace(info, branches=branches), UpdateRecord(
        kind=UpdateKind.BRANCH_DELETED, updated_at_us=at_us, name=update.name, previous_id=tip
    )


@apply.register
def _(update: CreateTag, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    require_flag(info, FLAG_CREATE_TAG, "create_tag")
    was_deleted = update.name in info.deleted_tags
    if was_deleted or update.name in info.tags:
        raise tag_taken(update.name, was_deleted=was_deleted)
    snapshot_row(info, update.snapshot_id)
    changed = replace(info, tags={**info.tags, update.name: update.snapshot_id})
    return changed, UpdateRecord(kind=UpdateKind.TAG_CREATED, updated_at_us=at_us, name=update.name)


@apply.register
def _(update: DeleteTag, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    require_flag(info, FLAG_DELETE_TAG, "delete_tag")
    target = tag_target(info, update.name)
    changed = replace(
        info,
        tags={name: kept for name, kept in info.tags.items() if name != update.name},
        deleted_tags=info.deleted_tags | {update.name},
    )
    return changed, UpdateRecord(
        kind=UpdateKind.TAG_DELETED, updated_at_us=at_us, name=update.name, previous_id=target
    )


@apply.register
def _(update: AddCommit, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    _require_moves_allowed(info, update.has_moves)
    tip = next_tip(update, branch_tip(info, update.branch))
    changed = replace(
        info, snapshots=info.snapshots.insert(update.snapshot), branches={**info.branches, update.branch: tip}
    )
    return changed, UpdateRecord(
        kind=UpdateKind.NEW_COMMIT, updated_at_us=at_us, name=update.branch, new_id=update.snapshot.id
    )


@apply.register
def _(update: AmendCommit, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    _require_moves_allowed(info, update.has_moves)
    tip = next_tip(update, branch_tip(info, update.branch))
    amended = info.snapshots.record(snapshot_row(info, update.amended))
    require_amendable(amended)
    snapshot = replace(update.snapshot, parent_id=amended.parent_id, pruned=amended.pruned)
    changed = replace(info, snapshots=info.snapshots.insert(snapshot), branches={**info.branches, update.branch: tip})
    return changed, UpdateRecord(
        kind=UpdateKind.COMMIT_AMENDED,
        updated_at_us=at_us,
        name=update.branch,
        previous_id=update.amended,
        new_id=snapshot.id,
    )


def require_amendable(snapshot: SnapshotRecord) -> None:
    """Raise SessionStateError (``no-amend-for-initial-commit``) for a snapshot without parent."""
    if snapshot.parent_id is None:
        raise SessionStateError(
            f"the first commit in the repository cannot be an amend, and there is only snapshot {snapshot.id}; commit "
            f"instead",
            ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT,
        )


@apply.register
def _(update: AddDetachedSnapshot, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    _require_moves_allowed(info, update.has_moves)
    changed = replace(info, snapshots=info.snapshots.insert(update.snapshot))
    return changed, UpdateRecord(kind=UpdateKind.NEW_DETACHED_SNAPSHOT, updated_at_us=at_us, new_id=update.snapshot.id)


@apply.register
def _(update: SetConfig, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    return replace(info, config=update.config), UpdateRecord(kind=UpdateKind.CONFIG_CHANGED, updated_at_us=at_us)


@apply.register
def _(update: SetMetadata, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    metadata = {**info.metadata, **update.metadata} if update.merge else dict(update.metadata)
    return replace(info, metadata=metadata), UpdateRecord(kind=UpdateKind.METADATA_CHANGED, updated_at_us=at_us)


@apply.register
def _(update: SetStatus, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    status = Status(availability=update.availability, set_at_us=at_us, reason=update.reason)
    return replace(info, status=status), UpdateRecord(
        kind=UpdateKind.REPO_STATUS_CHANGED, updated_at_us=at_us, status=status
    )


@apply.register
def _(update: SetFeatureFlag, info: RepoInfo, at_us: int) -> tuple[RepoInfo, UpdateRecord]:
    enabled = set(info.enabled_flags) - {update.flag_id}
    disabled = set(info.disabled_flags) - {update.flag_id}
    if update.setting is not None:
        (enabled if update.setting else disabled).add(update.flag_id)
    changed = replace(info, enabled_flags=tuple(sorted(enabled)), disabled_flags=tuple(sorted(disabled)))
    return changed, UpdateRecord(
        kind=UpdateKind.FEATURE_FLAG_CHANGED,
        updated_at_us=at_us,
        flag_id=update.flag_id,
        flag_value=update.setting,
    )


def _require_moves_allowed(info: RepoInfo, has_moves: bool) -> None:
    if has_moves:
        require_flag(info, FLAG_MOVE_NODE, "move_node")


def require_flag(info: RepoInfo, flag_id: int, name: str) -> None:
    """Raise SessionStateError (``feature-flag-disabled``) when a feature is switched off."""
    if flag_id in info.disabled_flags:
        raise SessionStateError(
            f"the operation is disabled by a feature flag ({name}) of this repository; "
            f"switch it on with repo.set_feature_flag({name!r}, True)",
            ErrorKind.FEATURE_FLAG_DISABLED,
        )


def require_ref_name(name: object) -> str:
    """A name that a new branch or tag may have. What others have named otherwise is still found and deleted.

    Raises
    ------
    InvalidInputError
        ``invalid-ref-name``: empty, or with control characters or lone surrogates, which nobody could see or type.
        Repositories of spec version 1 also refuse ``/``.
    """
    text = require_text(name)
    bad = next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs")), None)
    if text and bad is None:
        return text
    found = f"this one holds {bad!r}" if bad is not None else "this one is empty"
    raise InvalidInputError(
        f"{text!r} cannot name a branch or tag: names are text without control characters and surrogates, and "
        f"{found}. Choose another name",
        ErrorKind.INVALID_REF_NAME,
    )


def require_text(name: object) -> str:
    """A name of any kind. Raises TypeError."""
    if not isinstance(name, str):
        raise TypeError(f"names of branches and tags are str, not {type(name).__name__}: {name!r}")
    return name
