"""Spec 2: all refs and the whole history are in one file, ``repo``, which each update swaps for another.

Requests: one GET for a look at the refs and history; an update takes a GET, a COPY and a conditional PUT, again for
each time that it loses against another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog import changes
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.clock_check import now_us, require_right_clock, warn_of_future
from icechunk_engine.catalog.durable_files import require_durable
from icechunk_engine.catalog.history import SnapshotInfo, snapshot_infos
from icechunk_engine.catalog.swapping import swap
from icechunk_engine.columns.tables import I64
from icechunk_engine.errors import IcechunkError, StorageError, VersionMismatchError
from icechunk_engine.format import layout
from icechunk_engine.format.repo_info import RepoInfo, SnapshotRecord, encode_repo_info
from icechunk_engine.ids import ObjectId, SnapshotId
from icechunk_engine.storage.base import Version


class RepoFileCatalog(Catalog):
    """Refs and history as one version of ``repo`` has them."""

    def __init__(self, info: RepoInfo, version: Version | None = None) -> None:
        self.info = info
        self.version = version

    def branches(self) -> set[str]:
        return set(self.info.branches)

    def tags(self) -> set[str]:
        return set(self.info.tags)

    def branch_tip(self, name: str) -> SnapshotId:
        return changes.branch_tip(self.info, name)

    def tag_target(self, name: str) -> SnapshotId:
        return changes.tag_target(self.info, name)

    def snapshot(self, snapshot_id: SnapshotId) -> SnapshotRecord:
        return self.info.snapshots.record(changes.snapshot_row(self.info, snapshot_id))

    def _rows(self, snapshot_id: SnapshotId) -> I64:
        return self.info.snapshots.ancestry_rows(changes.snapshot_row(self.info, snapshot_id))

    def ancestry(self, snapshot_id: SnapshotId) -> Iterator[SnapshotRecord]:
        return self.info.snapshots.ancestors(changes.snapshot_row(self.info, snapshot_id))

    def history(self, snapshot_id: SnapshotId) -> Iterator[SnapshotInfo]:
        return snapshot_infos(self.info.snapshots, self._rows(snapshot_id))

    def newest_at(self, tip: SnapshotId, time_us: int) -> SnapshotId | None:
        table, rows = self.info.snapshots, self._rows(tip)
        early = rows[table.flushed_at[rows] <= time_us]
        return table.id(int(early[0])) if len(early) else None

    def require_online(self) -> None:
        changes.require_online(self.info)


def update_repo_file(
    assets: AssetManager, update: changes.CatalogChange, present: RepoFileCatalog | None = None
) -> RepoInfo:
    """Apply one update to the present repo info and swap it in; retried while others win the swap.

    When an answer is lost, the object is read back to see whether the swap took place: the name of our backup in its
    ops log tells.

    Parameters
    ----------
    present
        What was just read, to save the first request.

    Raises
    ------
    IcechunkError
        The update's own precondition failed; nothing was changed.
    ConflictError
        ``update-attempts-exhausted``.
    FormatError
        ``snapshot-timestamp``: the clock of this machine is not that of the storage.
    StorageError
        ``not-durable``: the update took place, but a crash of the machine may undo it.
    """
    storage, config = assets.storage, assets.config
    known = [] if present is None or present.version is None else [(present.info, present.version)]

    def attempt() -> RepoInfo:
        info, version = known.pop() if known else assets.repo_info()
        time_us = now_us()
        backup = layout.backup_name(time_us // 1000, str(ObjectId.random()))
        changed = changes.advance(
            info,
            update,
            now_us=time_us,
            backup_name=backup,
            max_updates=config.num_updates_per_repo_info_file,
        )
        if len(info.updates):  # of what is a date; what is none was refused
            warn_of_future(info.updates.record(0).updated_at_us, time_us)
        data = encode_repo_info(changed, level=config.compression_level)
        storage.copy(layout.REPO, layout.overwritten_key(backup))
        if storage.is_remote:  # elsewhere a copy is as old as what was copied
            require_right_clock(storage, layout.overwritten_key(backup), time_us, now_us())
        try:
            version = storage.replace(layout.REPO, data, version)
        except StorageError as error:
            found = _read_back(assets, error)
            if changes.has_landed(found, backup):
                require_durable(storage, [layout.REPO])
                return found
            if isinstance(error, VersionMismatchError):  # after others the swap may still come, and need its backup
                with suppress(IcechunkError):  # a stray backup does no harm
                    storage.delete([layout.overwritten_key(backup)])
            raise
        assets.remember_repo_info(changed, version)
        return changed

    return swap(config, attempt)


def _read_back(assets: AssetManager, error: StorageError) -> RepoInfo:
    """The repo info after a swap that failed with ``error``, which counts more than one on the way."""
    try:
        return assets.repo_info()[0]
    except IcechunkError:
        raise error from None
