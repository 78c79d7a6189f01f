"""The catalog of a repository: its refs, its history, its settings, and the changes of them.

Where these are kept depends on the spec version, and only the subclasses know it:

- spec 1: a small file for each ref, ``config.yaml``, and the parents named in snapshots (:mod:`.spec_1_ref_files`);
- spec 2: all of it in the one file ``repo`` (:mod:`.spec_2_repo_file`).

The rest of the engine asks a catalog, which :func:`~icechunk_engine.catalog.opening.open_catalog` returns, and does
not look at the spec version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from icechunk_engine._runtime.observing import operation
from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.changes import CatalogChange
from icechunk_engine.catalog.durable_files import settle
from icechunk_engine.catalog.history import SnapshotInfo
from icechunk_engine.catalog.ops_log_entries import Update
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.format.repo_info import RepoInfo, SnapshotRecord
from icechunk_engine.ids import SnapshotId
from icechunk_engine.types import JsonObject, SpecVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFiles:
    """The files of a new repository.

    Attributes
    ----------
    config
        Key and content of a configuration file, if the spec version has one.
    others
        Content by key.
    visible
        Key and content of the file that makes the repository visible.
    """

    config: tuple[str, bytes] | None
    others: Mapping[str, bytes]
    visible: tuple[str, bytes]


class Catalog(ABC):
    """One look at a repository's refs and history, and the way to change them.

    A catalog may keep what it has read. Open a new one for each operation.
    """

    spec_version: ClassVar[SpecVersion]

    def __init__(self, assets: AssetManager) -> None:
        self.assets = assets

    # --- finding -----------------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def entry_key() -> str:
        """Return the key of the object that every repository of this spec version has."""

    @classmethod
    @abstractmethod
    def find(cls, assets: AssetManager) -> Self:
        """Look for a repository of this spec version: one request.

        Raises
        ------
        RepositoryNotFoundError
            The place holds none.
        FormatError
            Its file cannot be read.
        """

    @abstractmethod
    def with_assets(self, assets: AssetManager) -> Self:
        """Return what this catalog has read, for use with the assets of the opened repository."""

    # --- refs --------------------------------------------------------------------------------------------------

    @abstractmethod
    def branches(self) -> set[str]:
        """Return the names of all branches."""

    @abstractmethod
    def tags(self) -> set[str]:
        """Return the names of all tags that were not deleted."""

    @abstractmethod
    def branch_tip(self, name: str) -> SnapshotId:
        """Return the snapshot that a branch points to. Raises RefNotFoundError."""

    @abstractmethod
    def tag_target(self, name: str) -> SnapshotId:
        """Return the snapshot that a tag points to. Raises RefNotFoundError."""

    # --- history -----------------------------------------------------------------------------------------------

    @abstractmethod
    def snapshot(self, snapshot_id: SnapshotId) -> SnapshotRecord:
        """Return the record of a snapshot. Raises SnapshotNotFoundError."""

    @abstractmethod
    def ancestry(self, snapshot_id: SnapshotId) -> Iterator[SnapshotRecord]:
        """Yield a snapshot and its ancestors, newest first. Raises SnapshotNotFoundError."""

    def history(self, snapshot_id: SnapshotId) -> Iterator[SnapshotInfo]:
        """Yield the public views of :meth:`ancestry`."""
        return map(SnapshotInfo.of, self.ancestry(snapshot_id))

    def newest_at(self, tip: SnapshotId, time_us: int) -> SnapshotId | None:
        """Return the newest snapshot, from ``tip`` back, not written after a time. None if all are later.

        Parameters
        ----------
        time_us
            Unix microseconds.
        """
        return next((record.id for record in self.ancestry(tip) if record.flushed_at_us <= time_us), None)

    @abstractmethod
    def ops_log(self) -> Iterator[Update]:
        """Yield the entries of the ops log, newest first. Raises FormatError in spec 1, which has none."""

    # --- settings and status -----------------------------------------------------------------------------------

    @abstractmethod
    def stored_config(self) -> RepositoryConfig | None:
        """Return the persisted configuration, None for the defaults."""

    @abstractmethod
    def repo_info(self, purpose: str) -> RepoInfo:
        """Return the repo info.

        Parameters
        ----------
        purpose
            What it is needed for, to be named in the error.

        Raises
        ------
        FormatError
            ``unsupported-spec-version``: spec 1 has no repo info.
        """

    @abstractmethod
    def overview(self) -> list[tuple[str, object]]:
        """Return names and values that a notebook shows besides the refs."""

    @abstractmethod
    def require_online(self) -> None:
        """Raise ReadOnlyError if the repository's status forbids writing."""

    @abstractmethod
    def require_moves_supported(self) -> None:
        """Raise FormatError in spec 1, which has no moves. Makes no request."""

    @abstractmethod
    def require_moves_allowed(self) -> None:
        """Raise SessionStateError if a feature flag forbids moving nodes."""

    @abstractmethod
    def require_amend_supported(self) -> None:
        """Raise FormatError in spec 1, where commits cannot be amended."""

    # --- changes -----------------------------------------------------------------------------------------------

    @operation(lambda self, change: f"{change.description} of {self.assets.storage.identity}")
    def publish(self, change: CatalogChange) -> Catalog:
        """Make one change, all or nothing, and return the catalog after it.

        The first attempt starts from what this catalog has read. If another writer wins, the change is applied again
        to what that writer left.

        Raises
        ------
        IcechunkError
            The change's own precondition failed; nothing was changed.
        ConflictError
            ``update-attempts-exhausted``: other writers won each time.
        FormatError
            ``unsupported-spec-version``: repositories of this spec version cannot be changed in this way.
            ``snapshot-timestamp``: this machine's clock is wrong.
        StorageError
            ``not-durable``: the change was made, but a crash of the machine may undo it.
        """
        return self._publish(change)

    @abstractmethod
    def _publish(self, change: CatalogChange) -> Catalog: ...

    def require_published(self, branch: str) -> None:
        """Raise StorageError (``not-durable``) if a crash of the machine may undo what was published on a branch."""
        settle(self.assets.storage, [self._branch_key(branch)])

    @abstractmethod
    def _branch_key(self, branch: str) -> str:
        """Return the key of the object that holds a branch."""

    # --- files -------------------------------------------------------------------------------------------------

    @abstractmethod
    def first_files(self, created_us: int, config: JsonObject | None) -> FirstFiles:
        """Return the files of a new repository, with a branch ``main`` at an empty first snapshot. Pure.

        Parameters
        ----------
        created_us
            Unix microseconds.
        config
            Persisted form of the configuration.
        """

    @abstractmethod
    def parent_in_file(self, parent_id: SnapshotId) -> SnapshotId | None:
        """Return the parent that a new snapshot's file names; None if the catalog alone knows parents."""

    @abstractmethod
    def require_irregular_chunks(self, path: str) -> None:
        """Raise InvalidInputError if an array's chunks must all have the same size."""


def needs_spec_2(purpose: str) -> FormatError:
    """Return the error for a feature that repositories of spec version 1 lack."""
    return FormatError(
        f"{purpose}: this operation requires a repository that is at least version 2.0, and this one has spec version "
        f"1. Upgrade it with icechunk.upgrade_icechunk_repository(repo, dry_run=False)",
        ErrorKind.UNSUPPORTED_SPEC_VERSION,
    )
