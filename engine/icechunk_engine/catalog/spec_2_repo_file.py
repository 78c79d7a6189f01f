"""Spec 2: all refs and the whole history are in one file, ``repo``, which each change replaces by compare-and-swap.

What is always true, and what keeps it true:

- ``repo`` names only snapshots whose files are complete: they are written before ``repo`` is.
- Each version of ``repo`` was made from the one that it replaced. A change reads ``repo``, checks its preconditions,
  and replaces exactly the version that it read. So no change is lost, and none is made on top of a state that nobody
  checked.
- Each version that was replaced is kept below ``overwritten/``, and the ops log names that backup. The backup is
  copied before the swap, because another program may follow the name as soon as the swap took place.

The answer to a swap can be lost: the store may have made it although the request failed. Then ``repo`` is read again.
Each attempt gives its backup a new random name. If the ops log has that name, the attempt succeeded. Without this
check a retry would find its own change in its way and report a conflict with itself.

Requests: one GET for a look at the refs and history. A change takes a GET, a COPY and a conditional PUT, again for
each time that another writer is faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar, Self

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog import preconditions
from icechunk_engine.catalog.base import Catalog, FirstFiles
from icechunk_engine.catalog.changes import CatalogChange, advance, includes_change
from icechunk_engine.catalog.clock_check import now_us, require_right_clock, warn_of_future
from icechunk_engine.catalog.compare_and_swap import swap
from icechunk_engine.catalog.durable_files import require_durable
from icechunk_engine.catalog.history import SnapshotInfo, snapshot_infos
from icechunk_engine.catalog.ops_log_entries import Update
from icechunk_engine.columns.tables import I64
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import (
    FormatError,
    IcechunkError,
    ObjectNotFoundError,
    StorageError,
    VersionMismatchError,
)
from icechunk_engine.format import layout
from icechunk_engine.format.repo_info import (
    RepoInfo,
    SnapshotRecord,
    decode_repo_info,
    encode_repo_info,
    initial_repo_info,
)
from icechunk_engine.format.snapshot import encode_snapshot, initial_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, encode_transaction_log
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ObjectId, SnapshotId
from icechunk_engine.storage.base import Version
from icechunk_engine.types import JsonObject, SpecVersion

VersionedInfo = tuple[RepoInfo, Version]


class RepoFileCatalog(Catalog):
    """Refs and history as one version of ``repo`` has them. It is read once, when first needed."""

    spec_version: ClassVar[SpecVersion] = SpecVersion.v2

    def __init__(self, assets: AssetManager, known: VersionedInfo | None = None) -> None:
        super().__init__(assets)
        self._known = known

    @property
    def _info(self) -> RepoInfo:
        if self._known is None:
            self._known = self.assets.repo_info()
        return self._known[0]

    # --- finding -----------------------------------------------------------------------------------------------

    @staticmethod
    def entry_key() -> str:
        return layout.REPO

    @classmethod
    def find(cls, assets: AssetManager) -> Self:
        return cls(assets, assets.repo_info())

    def with_assets(self, assets: AssetManager) -> Self:
        return type(self)(assets, self._known)

    # --- refs --------------------------------------------------------------------------------------------------

    def branches(self) -> set[str]:
        return set(self._info.branches)

    def tags(self) -> set[str]:
        return set(self._info.tags)

    def branch_tip(self, name: str) -> SnapshotId:
        return preconditions.branch_tip(self._info, name)

    def tag_target(self, name: str) -> SnapshotId:
        return preconditions.tag_target(self._info, name)

    # --- history -----------------------------------------------------------------------------------------------

    def snapshot(self, snapshot_id: SnapshotId) -> SnapshotRecord:
        return self._info.snapshots.record(preconditions.snapshot_row(self._info, snapshot_id))

    def ancestry(self, snapshot_id: SnapshotId) -> Iterator[SnapshotRecord]:
        return self._info.snapshots.ancestors(preconditions.snapshot_row(self._info, snapshot_id))

    def history(self, snapshot_id: SnapshotId) -> Iterator[SnapshotInfo]:
        return snapshot_infos(self._info.snapshots, self._rows(snapshot_id))

    def newest_at(self, tip: SnapshotId, time_us: int) -> SnapshotId | None:
        table, rows = self._info.snapshots, self._rows(tip)
        early = rows[table.flushed_at[rows] <= time_us]
        return table.id(int(early[0])) if len(early) else None

    def _rows(self, snapshot_id: SnapshotId) -> I64:
        return self._info.snapshots.ancestry_rows(preconditions.snapshot_row(self._info, snapshot_id))

    def ops_log(self) -> Iterator[Update]:
        return self._updates(self._info)

    def _updates(self, info: RepoInfo) -> Iterator[Update]:
        """Yield the entries of a repo info, then of those it replaced: one request for each of them."""
        seen: set[str] = set()
        while True:
            info.updates.require_intact()
            for i in range(len(info.updates)):
                yield Update.of(info.updates.record(i))
            name = info.repo_before_updates
            if name is None:
                return
            # Names come from a file that others wrote: they must neither lead elsewhere nor go round in a circle.
            key = layout.overwritten_key(name)
            if name in seen or not layout.is_backup_name(name):
                reason = "was listed already" if name in seen else "is not a backup name"
                raise FormatError(
                    f"the ops log says that it continues in {key!r}, which {reason}: older entries cannot be listed. "
                    f"The data are not affected. Restore the objects under overwritten/ from a copy"
                )
            seen.add(name)
            try:
                info = decode_repo_info(self.assets.storage.get(key))
            except ObjectNotFoundError:
                raise FormatError(
                    f"the ops log continues in {key}, which is missing: older entries cannot be listed. Restore the "
                    f"object from a copy"
                ) from None

    # --- settings and status -----------------------------------------------------------------------------------

    def stored_config(self) -> RepositoryConfig | None:
        stored = self._info.config
        return None if stored is None else RepositoryConfig.from_stored(stored)

    def repo_info(self, purpose: str) -> RepoInfo:
        return self._info

    def overview(self) -> list[tuple[str, object]]:
        return [
            ("status", self._info.status.availability.name.lower()),
            ("snapshots", len(self._info.snapshots)),
        ]

    def require_online(self) -> None:
        preconditions.require_online(self._info)

    def require_moves_supported(self) -> None:
        """Do nothing: repositories of spec 2 support them."""

    def require_moves_allowed(self) -> None:
        preconditions.require_moves_allowed(self._info)

    def require_amend_supported(self) -> None:
        """Do nothing: repositories of spec 2 support it."""

    # --- changes -----------------------------------------------------------------------------------------------

    def _publish(self, change: CatalogChange) -> Catalog:
        known = [] if self._known is None else [self._known]

        def attempt() -> VersionedInfo:
            # Only the first attempt may start from what was read before: the others know that it is old.
            return self._attempt(change, known.pop() if known else self.assets.repo_info())

        return type(self)(self.assets, swap(self.assets.config, attempt))

    def _attempt(self, change: CatalogChange, present: VersionedInfo) -> VersionedInfo:
        """Make one attempt at a change. Raises VersionMismatchError if another writer was faster."""
        storage, config = self.assets.storage, self.assets.config
        info, version = present
        time_us = now_us()
        backup = layout.backup_name(time_us // 1000, str(ObjectId.random()))
        changed = advance(
            info,
            change,
            now_us=time_us,
            backup_name=backup,
            max_updates=config.num_updates_per_repo_info_file,
        )
        if len(info.updates):  # after advance, which refuses an invalid date
            warn_of_future(info.updates.record(0).updated_at_us, time_us)
        data = encode_repo_info(changed, level=config.compression_level)
        storage.copy(layout.REPO, layout.overwritten_key(backup))
        if storage.is_remote:  # local copies keep the time of the original, which says nothing about the clock
            require_right_clock(storage, layout.overwritten_key(backup), time_us, now_us())
        try:
            version = storage.replace(layout.REPO, data, version)
        except StorageError as error:
            return self._settle_lost_swap(error, backup)
        self.assets.remember_repo_info(changed, version)
        return changed, version

    def _settle_lost_swap(self, error: StorageError, backup: str) -> VersionedInfo:
        """Return the present repo info if the swap took place although it raised. Raise the error if it did not."""
        try:
            found = self.assets.repo_info()
        except IcechunkError:
            raise error from None  # the first error counts more than one on the way to find out
        if includes_change(found[0], backup):
            require_durable(self.assets.storage, [layout.REPO])
            return found
        # After a mismatch the swap can never take place, so nobody needs the backup. After other errors it may still
        # arrive at the store and then needs it. A backup that nobody needs does no harm.
        if isinstance(error, VersionMismatchError):
            with suppress(IcechunkError):
                self.assets.storage.delete([layout.overwritten_key(backup)])
        raise error

    def _branch_key(self, branch: str) -> str:
        return layout.REPO

    # --- files -------------------------------------------------------------------------------------------------

    def first_files(self, created_us: int, config: JsonObject | None) -> FirstFiles:
        level = self.assets.config.compression_level
        log = TransactionLog.empty(INITIAL_SNAPSHOT_ID)
        return FirstFiles(
            config=None,
            others={
                layout.snapshot_key(INITIAL_SNAPSHOT_ID): encode_snapshot(initial_snapshot(created_us), level=level),
                layout.transaction_log_key(INITIAL_SNAPSHOT_ID): encode_transaction_log(log, level=level),
            },
            visible=(layout.REPO, encode_repo_info(initial_repo_info(created_us, config), level=level)),
        )

    def parent_in_file(self, parent_id: SnapshotId) -> SnapshotId | None:
        return None

    def require_irregular_chunks(self, path: str) -> None:
        """Do nothing: repositories of spec 2 hold them."""
