"""Spec 1: each branch and tag is a small file of its own, and each snapshot file names its parent.

A branch moves by compare-and-swap of its file. A tag's file is created once and stays; a tombstone beside it says that
the tag was deleted. Nothing else of an update is kept: there is no ops log.

Requests: one for a branch, two for a tag, one listing for the names; one for each snapshot of a history that is not
cached. An update takes three to five.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import singledispatch
from typing import Any

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog import changes
from icechunk_engine.catalog.base import Catalog, needs_spec_2
from icechunk_engine.catalog.clock_check import now_us
from icechunk_engine.catalog.durable_files import settle
from icechunk_engine.catalog.swapping import swap
from icechunk_engine.config.yaml_form import to_yaml
from icechunk_engine.errors import (
    ErrorKind,
    FormatError,
    InvalidInputError,
    ObjectNotFoundError,
    SessionStateError,
    VersionMismatchError,
)
from icechunk_engine.format import layout, v1
from icechunk_engine.format.repo_info import SnapshotRecord
from icechunk_engine.ids import ObjectId, SnapshotId
from icechunk_engine.storage.base import Storage, Version


class RefFileCatalog(Catalog):
    """Refs and history from their files, each read when asked for."""

    def __init__(self, assets: AssetManager) -> None:
        self._assets = assets

    def _names(self) -> layout.RefFiles:
        names = list_refs(self._assets.storage)
        if changes.MAIN not in names.branches:
            _require_not_upgraded(self._assets.storage)
        return names

    def branches(self) -> set[str]:
        return set(self._names().branches)

    def tags(self) -> set[str]:
        return set(self._names().tags)

    def branch_tip(self, name: str) -> SnapshotId:
        return _branch(self._assets.storage, name)[0]

    def tag_target(self, name: str) -> SnapshotId:
        storage = self._assets.storage
        key = layout.tag_ref_key(_ref_name(name))
        was_deleted = storage.info(layout.deleted_tag_key(name)) is not None
        if not was_deleted:
            try:
                return v1.decode_ref(storage.get(key), key)
            except ObjectNotFoundError:
                _require_not_upgraded(storage)
        raise changes.unknown_tag(name, self.tags(), was_deleted=was_deleted)

    def snapshot(self, snapshot_id: SnapshotId) -> SnapshotRecord:
        found = self._assets.snapshot(snapshot_id)
        return SnapshotRecord(
            id=found.snapshot_id,
            parent_id=found.parent_id,
            flushed_at_us=found.flushed_at_us,
            message=found.message,
            metadata=found.metadata,
        )

    def ancestry(self, snapshot_id: SnapshotId) -> Iterator[SnapshotRecord]:
        return self._walk(self.snapshot(snapshot_id))

    def _walk(self, info: SnapshotRecord) -> Iterator[SnapshotRecord]:
        seen = {info.id}
        yield info
        while info.parent_id is not None:
            info = self.snapshot(info.parent_id)
            if info.id in seen:
                raise parents_form_circle(info.id)
            seen.add(info.id)
            yield info

    def require_online(self) -> None:
        """Spec 1 has no status: always online."""


def parents_form_circle(snapshot_id: SnapshotId) -> FormatError:
    """The error for a line of snapshots that has no end."""
    return FormatError(
        f"the parents of the snapshots form a circle through {snapshot_id}. Restore that snapshot's file from a copy "
        f"of the repository"
    )


def list_refs(storage: Storage) -> layout.RefFiles:
    """Names of all refs: one listing."""
    return layout.RefFiles.of_keys(found.key for found in storage.list(layout.REFS))


def _branch(storage: Storage, name: str) -> tuple[SnapshotId, Version]:
    key = layout.branch_ref_key(_ref_name(name))
    try:
        data, version = storage.get_versioned(key)
    except ObjectNotFoundError:
        _require_not_upgraded(storage)
        raise changes.unknown_branch(name, list_refs(storage).branches) from None
    return v1.decode_ref(data, key), version


def _ref_name(name: str) -> str:
    changes.require_text(name)
    if "/" in name or "\0" in name or not _is_unicode(name):
        raise InvalidInputError(
            f"{name!r} is no branch or tag name in a repository of spec version 1: names are text without '/' and NUL",
            ErrorKind.INVALID_REF_NAME,
        )
    return name


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _require_not_upgraded(storage: Storage) -> None:
    """Raise SessionStateError when there is a ``repo``: what is written to ref files from then on would be lost."""
    if storage.info(layout.REPO) is not None:
        raise SessionStateError(
            f"the repository at {storage.identity} was upgraded to spec version 2 after it was opened here. Open it "
            f"anew with Repository.open(storage); edits that are not committed must be made again",
            ErrorKind.INVALID_REPOSITORY_MIGRATION,
        )


# --- updates -----------------------------------------------------------------------------------------------------


def update_ref_files(assets: AssetManager, update: changes.CatalogChange) -> None:
    """Make one update.

    Raises
    ------
    IcechunkError
        The update's own precondition failed; nothing was changed.
    ConflictError
        ``update-attempts-exhausted``.
    FormatError
        ``unsupported-spec-version``: spec 1 has no such update.
    SessionStateError
        ``invalid-repository-migration``: the repository is of spec version 2 by now.
    """
    swap(assets.config, lambda: _apply(update, assets))


@singledispatch
def _apply(update: Any, assets: AssetManager) -> None:
    raise needs_spec_2(f"cannot make the update {type(update).__name__}")


@_apply.register
def _(update: changes.CreateBranch, assets: AssetManager) -> None:
    storage, key = assets.storage, layout.branch_ref_key(_ref_name(update.name))
    if storage.info(key) is None:
        assets.snapshot(update.snapshot_id)  # raises unless it is there
        _require_not_upgraded(storage)
        with suppress(VersionMismatchError):
            storage.create(key, v1.encode_ref(update.snapshot_id))
            return
    raise changes.branch_taken(update.name)


@_apply.register
def _(update: changes.ResetBranch, assets: AssetManager) -> None:
    tip, version = _branch(assets.storage, update.name)
    target = changes.next_tip(update, tip)
    assets.snapshot(target)
    _move_branch(update.name, target, version, assets.storage)


@_apply.register
def _(update: changes.AddCommit, assets: AssetManager) -> None:
    tip, version = _branch(assets.storage, update.branch)
    if tip != update.snapshot.id:  # else an earlier attempt took effect and its answer was lost
        _move_branch(update.branch, changes.next_tip(update, tip), version, assets.storage)


def _move_branch(name: str, target: SnapshotId, version: Version, storage: Storage) -> None:
    _require_not_upgraded(storage)
    key = layout.branch_ref_key(name)
    storage.replace(key, v1.encode_ref(target), version)


@_apply.register
def _(update: changes.DeleteBranch, assets: AssetManager) -> None:
    changes.require_deletable(update.name)
    _branch(assets.storage, update.name)
    _require_not_upgraded(assets.storage)
    assets.storage.delete([layout.branch_ref_key(update.name)])
    settle(assets.storage, [layout.branch_ref_key(update.name)])


@_apply.register
def _(update: changes.CreateTag, assets: AssetManager) -> None:
    storage, key = assets.storage, layout.tag_ref_key(_ref_name(update.name))
    was_deleted = storage.info(layout.deleted_tag_key(update.name)) is not None
    if not was_deleted and storage.info(key) is None:
        assets.snapshot(update.snapshot_id)
        _require_not_upgraded(storage)
        with suppress(VersionMismatchError):
            storage.create(key, v1.encode_ref(update.snapshot_id))
            return
    raise changes.tag_taken(update.name, was_deleted=was_deleted)


@_apply.register
def _(update: changes.DeleteTag, assets: AssetManager) -> None:
    references = RefFileCatalog(assets)
    references.tag_target(update.name)
    _require_not_upgraded(assets.storage)
    try:
        assets.storage.create(layout.deleted_tag_key(update.name), b"")
    except VersionMismatchError:
        raise changes.unknown_tag(update.name, references.tags(), was_deleted=True) from None


@_apply.register
def _(update: changes.AddDetachedSnapshot, assets: AssetManager) -> None:
    """The snapshot's files are all there is to it."""
    _require_not_upgraded(assets.storage)


@_apply.register
def _(update: changes.SetConfig, assets: AssetManager) -> None:
    storage, data = assets.storage, to_yaml(update.config or {})
    _require_not_upgraded(storage)
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
