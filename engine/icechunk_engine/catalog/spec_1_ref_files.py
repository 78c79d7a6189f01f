"""Spec 1: each branch and tag is a small file, and each snapshot's file names its parent.

What is always true, and what keeps it true:

- A branch's file names a snapshot whose files are complete: they are written before the branch moves.
- A branch moves only from where its mover saw it, because its file is replaced by compare-and-swap.
- A tag never moves: its file is created once and stays. A tombstone beside it says that the tag was deleted, so its
  name is never free again.
- Nothing is written to ref files once ``repo`` exists: the repository was upgraded to spec 2, and nobody would read
  it. Each change therefore looks for ``repo`` before it writes. The upgrade compares the refs before and after, which
  covers all but a moment between that look and the write (:mod:`icechunk_engine.ops.migrate`).

Nothing else of a change is kept: spec 1 has no ops log, no status and no feature flags.

Requests: one for a branch, two for a tag, one listing for the names; one for each snapshot of a history that is not
cached. A change takes three to five.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar, NoReturn, Self

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog, FirstFiles, needs_spec_2
from icechunk_engine.catalog.changes import (
    AddCommit,
    AddDetachedSnapshot,
    CatalogChange,
    CreateBranch,
    CreateTag,
    DeleteBranch,
    DeleteTag,
    ResetBranch,
    SetConfig,
)
from icechunk_engine.catalog.clock_check import now_us
from icechunk_engine.catalog.compare_and_swap import swap
from icechunk_engine.catalog.durable_files import settle
from icechunk_engine.catalog.ops_log_entries import Update
from icechunk_engine.catalog.ref_names import (
    MAIN,
    branch_taken,
    require_deletable,
    require_text,
    tag_taken,
    unknown_branch,
    unknown_tag,
)
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.config.yaml_form import from_yaml, to_yaml
from icechunk_engine.errors import (
    ErrorKind,
    FormatError,
    InvalidInputError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    SessionStateError,
    VersionMismatchError,
)
from icechunk_engine.format import layout, ref_files
from icechunk_engine.format.repo_info import SnapshotRecord
from icechunk_engine.format.snapshot import encode_snapshot, initial_snapshot
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ObjectId, SnapshotId
from icechunk_engine.storage.base import Storage, Version
from icechunk_engine.types import JsonObject, SpecVersion


class RefFileCatalog(Catalog):
    """Refs and history in files of their own, each read when it is needed."""

    spec_version: ClassVar[SpecVersion] = SpecVersion.v1

    def __init__(self, assets: AssetManager) -> None:
        super().__init__(assets)
        self._storage = assets.storage

    # --- finding -----------------------------------------------------------------------------------------------

    @staticmethod
    def entry_key() -> str:
        return layout.branch_ref_key(MAIN)

    @classmethod
    def find(cls, assets: AssetManager) -> Self:
        key = cls.entry_key()
        try:
            ref_files.decode_ref(assets.storage.get(key), key)
        except ObjectNotFoundError:
            raise RepositoryNotFoundError(f"no repository of spec version 1 at {assets.storage.identity}") from None
        return cls(assets)

    def with_assets(self, assets: AssetManager) -> Self:
        return type(self)(assets)

    # --- refs --------------------------------------------------------------------------------------------------

    def branches(self) -> set[str]:
        return set(self._names().branches)

    def tags(self) -> set[str]:
        return set(self._names().tags)

    def _names(self) -> layout.RefFiles:
        names = list_refs(self._storage)
        if MAIN not in names.branches:
            self._require_not_upgraded()
        return names

    def branch_tip(self, name: str) -> SnapshotId:
        return self._branch(name)[0]

    def _branch(self, name: str) -> tuple[SnapshotId, Version]:
        """Return where a branch points, and the version of its file. Raises RefNotFoundError."""
        key = layout.branch_ref_key(_ref_name(name))
        try:
            data, version = self._storage.get_versioned(key)
        except ObjectNotFoundError:
            self._require_not_upgraded()
            raise unknown_branch(name, list_refs(self._storage).branches) from None
        return ref_files.decode_ref(data, key), version

    def tag_target(self, name: str) -> SnapshotId:
        key = layout.tag_ref_key(_ref_name(name))
        was_deleted = self._has(layout.deleted_tag_key(name))
        if not was_deleted:
            try:
                return ref_files.decode_ref(self._storage.get(key), key)
            except ObjectNotFoundError:
                self._require_not_upgraded()
        raise unknown_tag(name, self.tags(), was_deleted=was_deleted)

    def _has(self, key: str) -> bool:
        return self._storage.info(key) is not None

    def _require_not_upgraded(self) -> None:
        """Raise SessionStateError if ``repo`` exists: nobody would read what is written to ref files."""
        if self._has(layout.REPO):
            raise SessionStateError(
                f"the repository at {self._storage.identity} was upgraded to spec version 2 after it was opened here. "
                f"Open it anew with Repository.open(storage); edits that are not committed must be made again",
                ErrorKind.INVALID_REPOSITORY_MIGRATION,
            )

    # --- history -----------------------------------------------------------------------------------------------

    def snapshot(self, snapshot_id: SnapshotId) -> SnapshotRecord:
        found = self.assets.snapshot(snapshot_id)
        return SnapshotRecord(
            id=found.snapshot_id,
            parent_id=found.parent_id,
            flushed_at_us=found.flushed_at_us,
            message=found.message,
            metadata=found.metadata,
        )

    def ancestry(self, snapshot_id: SnapshotId) -> Iterator[SnapshotRecord]:
        return self._ancestors(self.snapshot(snapshot_id))

    def _ancestors(self, record: SnapshotRecord) -> Iterator[SnapshotRecord]:
        seen = {record.id}
        yield record
        while record.parent_id is not None:
            record = self.snapshot(record.parent_id)
            if record.id in seen:
                raise parents_form_circle(record.id)
            seen.add(record.id)
            yield record

    def ops_log(self) -> Iterator[Update]:
        raise needs_spec_2("the ops log")

    # --- settings and status -----------------------------------------------------------------------------------

    def stored_config(self) -> RepositoryConfig | None:
        try:
            return RepositoryConfig.from_stored(from_yaml(self._storage.get(layout.CONFIG_YAML)))
        except ObjectNotFoundError:
            return None

    def repo_info(self, purpose: str) -> NoReturn:
        raise needs_spec_2(purpose)

    def overview(self) -> list[tuple[str, object]]:
        return []

    def require_online(self) -> None:
        """Do nothing: without a status, a repository is always online."""

    def require_moves_supported(self) -> None:
        raise needs_spec_2("moves")

    def require_moves_allowed(self) -> None:
        """Do nothing: spec 1 has no feature flags."""

    def require_amend_supported(self) -> None:
        raise needs_spec_2("cannot amend")

    # --- changes -----------------------------------------------------------------------------------------------

    def _publish(self, change: CatalogChange) -> Catalog:
        swap(self.assets.config, lambda: self._make(change))
        return self

    def _make(self, change: CatalogChange) -> None:
        """Make one attempt at a change. Raises VersionMismatchError if another writer was faster."""
        match change:
            case CreateBranch():
                self._create_branch(change)
            case ResetBranch():
                tip, version = self._branch(change.name)
                target = change.next_tip(tip)
                self._require_snapshot(target)
                self._move_branch(change.name, target, version)
            case DeleteBranch():
                self._delete_branch(change.name)
            case CreateTag():
                self._create_tag(change)
            case DeleteTag():
                self._delete_tag(change.name)
            case AddCommit():
                tip, version = self._branch(change.branch)
                if tip != change.snapshot.id:  # else an earlier attempt succeeded, and its answer was lost
                    self._move_branch(change.branch, change.next_tip(tip), version)
            case AddDetachedSnapshot():  # its files are all that exists of it
                self._require_not_upgraded()
            case SetConfig():
                self._set_config(to_yaml(change.config or {}))
            case _:
                raise needs_spec_2(change.description)

    def _require_snapshot(self, snapshot_id: SnapshotId) -> None:
        """Raise SnapshotNotFoundError if a snapshot does not exist."""
        self.assets.snapshot(snapshot_id)

    def _create_branch(self, change: CreateBranch) -> None:
        key = layout.branch_ref_key(_ref_name(change.name))
        if not self._has(key):
            self._require_snapshot(change.snapshot_id)
            self._require_not_upgraded()
            with suppress(VersionMismatchError):
                self._storage.create(key, ref_files.encode_ref(change.snapshot_id))
                return
        raise branch_taken(change.name)

    def _move_branch(self, name: str, target: SnapshotId, version: Version) -> None:
        self._require_not_upgraded()
        self._storage.replace(layout.branch_ref_key(name), ref_files.encode_ref(target), version)

    def _delete_branch(self, name: str) -> None:
        require_deletable(name)
        self._branch(name)
        self._require_not_upgraded()
        key = layout.branch_ref_key(name)
        self._storage.delete([key])
        settle(self._storage, [key])

    def _create_tag(self, change: CreateTag) -> None:
        key = layout.tag_ref_key(_ref_name(change.name))
        was_deleted = self._has(layout.deleted_tag_key(change.name))
        if not was_deleted and not self._has(key):
            self._require_snapshot(change.snapshot_id)
            self._require_not_upgraded()
            with suppress(VersionMismatchError):
                self._storage.create(key, ref_files.encode_ref(change.snapshot_id))
                return
        raise tag_taken(change.name, was_deleted=was_deleted)

    def _delete_tag(self, name: str) -> None:
        self.tag_target(name)
        self._require_not_upgraded()
        try:
            self._storage.create(layout.deleted_tag_key(name), b"")
        except VersionMismatchError:
            raise unknown_tag(name, self.tags(), was_deleted=True) from None

    def _set_config(self, data: bytes) -> None:
        storage = self._storage
        self._require_not_upgraded()
        try:
            _, version = storage.get_versioned(layout.CONFIG_YAML)
        except ObjectNotFoundError:
            storage.create(layout.CONFIG_YAML, data)
            return
        name = layout.backup_name(now_us() // 1000, str(ObjectId.random()), of=layout.CONFIG_YAML)
        backup = layout.overwritten_key(name)
        storage.copy(layout.CONFIG_YAML, backup)
        try:
            storage.replace(layout.CONFIG_YAML, data, version)
        except VersionMismatchError:
            storage.delete([backup])
            raise

    def _branch_key(self, branch: str) -> str:
        return layout.branch_ref_key(branch)

    # --- files -------------------------------------------------------------------------------------------------

    def first_files(self, created_us: int, config: JsonObject | None) -> FirstFiles:
        snapshot = encode_snapshot(initial_snapshot(created_us, 1), level=self.assets.config.compression_level)
        return FirstFiles(
            config=None if config is None else (layout.CONFIG_YAML, to_yaml(config)),
            others={layout.snapshot_key(INITIAL_SNAPSHOT_ID): snapshot},
            visible=(self.entry_key(), ref_files.encode_ref(INITIAL_SNAPSHOT_ID)),
        )

    def parent_in_file(self, parent_id: SnapshotId) -> SnapshotId | None:
        return parent_id

    def require_irregular_chunks(self, path: str) -> None:
        raise InvalidInputError(
            f"array {path!r} has chunks of different sizes, which repositories of spec version 1 cannot hold. Use "
            f"a regular grid, or upgrade with icechunk.upgrade_icechunk_repository(repo, dry_run=False)",
            ErrorKind.BAD_METADATA,
        )


def parents_form_circle(snapshot_id: SnapshotId) -> FormatError:
    """Return the error for a line of snapshots without an end."""
    return FormatError(
        f"the parents of the snapshots form a circle through {snapshot_id}. Restore that snapshot's file from a copy "
        f"of the repository"
    )


def list_refs(storage: Storage) -> layout.RefFiles:
    """Return the names of all refs: one listing."""
    return layout.RefFiles.of_keys(found.key for found in storage.list(layout.REFS))


def _ref_name(name: str) -> str:
    """Return the name if a file can have it. Raises InvalidInputError."""
    require_text(name)
    if "/" in name or "\0" in name or not _is_unicode(name):
        raise InvalidInputError(
            f"{name!r} is not a valid branch or tag name in a repository of spec version 1: names are text without "
            f"'/' and NUL",
            ErrorKind.INVALID_REF_NAME,
        )
    return name


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
