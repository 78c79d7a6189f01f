"""Conditions that a repo info must meet before it is changed, and lookups that raise typed errors. Pure."""

from __future__ import annotations

from icechunk_engine.catalog.ref_names import unknown_branch, unknown_tag
from icechunk_engine.errors import ErrorKind, ReadOnlyError, SessionStateError, SnapshotNotFoundError
from icechunk_engine.format.repo_info import Availability, RepoInfo, SnapshotRecord
from icechunk_engine.ids import SnapshotId

FLAG_MOVE_NODE = 3
FLAG_CREATE_TAG = 4
FLAG_DELETE_TAG = 5


def require_online(info: RepoInfo) -> None:
    """Raise ReadOnlyError (``read-only-repository``) if the repository's status forbids writing."""
    if info.status.availability is not Availability.ONLINE:
        reason = f" ({info.status.reason})" if info.status.reason else ""
        raise ReadOnlyError(
            f"the repository status is {info.status.availability.name.lower().replace('_', '-')}{reason}. "
            f"Make it writable again with repo.set_status(RepoStatus(RepoAvailability.online))",
            ErrorKind.READ_ONLY_REPOSITORY,
        )


def require_flag(info: RepoInfo, flag_id: int, name: str) -> None:
    """Raise SessionStateError (``feature-flag-disabled``) if a feature is switched off."""
    if flag_id in info.disabled_flags:
        raise SessionStateError(
            f"the operation is disabled by a feature flag ({name}) of this repository; "
            f"switch it on with repo.set_feature_flag({name!r}, True)",
            ErrorKind.FEATURE_FLAG_DISABLED,
        )


def require_moves_allowed(info: RepoInfo) -> None:
    """Raise SessionStateError (``feature-flag-disabled``) if moving nodes is switched off."""
    require_flag(info, FLAG_MOVE_NODE, "move_node")


def require_amendable(snapshot: SnapshotRecord) -> None:
    """Raise SessionStateError (``no-amend-for-initial-commit``) for a snapshot without a parent."""
    if snapshot.parent_id is None:
        raise SessionStateError(
            f"the first commit in the repository cannot be an amend, and {snapshot.id} is its only snapshot. Commit "
            f"instead",
            ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT,
        )


def branch_tip(info: RepoInfo, name: str) -> SnapshotId:
    """Return the snapshot that a branch points to. Raises RefNotFoundError."""
    try:
        return info.branches[name]
    except KeyError:
        raise unknown_branch(name, info.branches) from None


def tag_target(info: RepoInfo, name: str) -> SnapshotId:
    """Return the snapshot that a tag points to. Raises RefNotFoundError."""
    try:
        return info.tags[name]
    except KeyError:
        raise unknown_tag(name, info.tags, was_deleted=name in info.deleted_tags) from None


def snapshot_row(info: RepoInfo, snapshot_id: SnapshotId) -> int:
    """Return the row of a snapshot in the table. Raises SnapshotNotFoundError."""
    row = info.snapshots.find(snapshot_id)
    if row < 0:
        raise SnapshotNotFoundError(
            f"no snapshot {snapshot_id} in this repository; repo.ancestry(branch='main') lists those of a branch"
        )
    return row
