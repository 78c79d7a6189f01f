"""What a repository's refs and history are asked, whichever files they are kept in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from icechunk_engine.catalog.history import SnapshotInfo
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.format.repo_info import SnapshotRecord
from icechunk_engine.ids import SnapshotId


class Catalog(ABC):
    """Branches, tags and lines of snapshots, as they are now; short-lived, ask anew for each operation."""

    @abstractmethod
    def branches(self) -> set[str]:
        """Names of all branches."""

    @abstractmethod
    def tags(self) -> set[str]:
        """Names of all tags that were not deleted."""

    @abstractmethod
    def branch_tip(self, name: str) -> SnapshotId:
        """Snapshot that a branch points to. Raises RefNotFoundError."""

    @abstractmethod
    def tag_target(self, name: str) -> SnapshotId:
        """Snapshot that a tag points to. Raises RefNotFoundError."""

    @abstractmethod
    def snapshot(self, snapshot_id: SnapshotId) -> SnapshotRecord:
        """What is known of a snapshot. Raises SnapshotNotFoundError."""

    @abstractmethod
    def ancestry(self, snapshot_id: SnapshotId) -> Iterator[SnapshotRecord]:
        """A snapshot and those it is based on, newest first. Raises SnapshotNotFoundError."""

    def history(self, snapshot_id: SnapshotId) -> Iterator[SnapshotInfo]:
        """:meth:`ancestry` as it is shown."""
        return map(SnapshotInfo.of, self.ancestry(snapshot_id))

    def newest_at(self, tip: SnapshotId, time_us: int) -> SnapshotId | None:
        """The newest of a line of snapshots that was there at some time (Unix microseconds), None for none."""
        return next((info.id for info in self.ancestry(tip) if info.flushed_at_us <= time_us), None)

    @abstractmethod
    def require_online(self) -> None:
        """Raise ReadOnlyError unless the repository takes writes."""


def needs_spec_2(what: str) -> FormatError:
    """The error for what repositories of spec version 1 do not have."""
    return FormatError(
        f"{what}: this operation requires a repository that is at least version 2.0, and this one has spec version 1. "
        f"Upgrade it with "
        f"icechunk.upgrade_icechunk_repository(repo, dry_run=False)",
        ErrorKind.UNSUPPORTED_SPEC_VERSION,
    )
