"""History of a repository: snapshots, differences, the ops log, and the content of single files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.catalog import inspection
from icechunk_engine.catalog.ancestry_graph import AncestryGraph, Entry, children_first
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.history import ManifestFileInfo, SnapshotInfo
from icechunk_engine.catalog.ops_log_entries import Update
from icechunk_engine.catalog.ref_names import MAIN
from icechunk_engine.errors import ErrorKind, InvalidInputError, ObjectNotFoundError, SnapshotNotFoundError
from icechunk_engine.format import layout
from icechunk_engine.format.repo_info import SnapshotRecord
from icechunk_engine.ids import ManifestId, SnapshotId
from icechunk_engine.repository.base import RepositoryBase, resolve_ref, show_arguments
from icechunk_engine.transaction.commit_logs import merged_log
from icechunk_engine.transaction.diff import Diff, diff_of_logs


class HistoryMethods(RepositoryBase):
    """The methods of :class:`Repository` about history."""

    # --- snapshots ---------------------------------------------------------------------------------------------

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """Yield a ref's snapshot and its ancestors, newest first.

        This takes one request, and in spec version 1 one for each snapshot.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            The ref or snapshot does not exist.
        """
        catalog = self._catalog()
        return catalog.history(resolve_ref(catalog, branch, tag, snapshot_id))

    async def async_ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> AsyncIterator[SnapshotInfo]:
        """Asynchronous twin of :meth:`ancestry`."""
        for snapshot in await async_twin(
            lambda: list(self.ancestry(branch=branch, tag=tag, snapshot_id=snapshot_id))
        )():
            yield snapshot

    def ancestry_graph(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        plain: bool = False,
    ) -> AncestryGraph:
        """Return the history as a picture, to print or to show in a notebook.

        Parameters
        ----------
        branch, tag, snapshot_id
            Start of the picture, at most one of them. If none is given, all branches are drawn.
        plain
            Draw without colours.
        """
        catalog = self._catalog()
        branches = {name: catalog.branch_tip(name) for name in catalog.branches()}
        tags = {name: catalog.tag_target(name) for name in catalog.tags()}
        if branch is tag is snapshot_id is None:
            tips = [branches[name] for name in sorted(branches, key=lambda name: (name != MAIN, name))]
        else:
            tips = [resolve_ref(catalog, branch, tag, snapshot_id)]
        branches_at, tags_at = _names_by_target(branches), _names_by_target(tags)
        entries = [
            Entry.of(record, branches_at.get(record.id, ()), tags_at.get(record.id, ()))
            for record in children_first(_ancestors_of_all(catalog, tips))
        ]
        return AncestryGraph(entries, str(tips[0]), plain=plain)

    ancestry_graph_async = async_twin(ancestry_graph)

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """Return one snapshot of the history. Raises SnapshotNotFoundError."""
        return SnapshotInfo.of(self._catalog().snapshot(SnapshotId.from_str(snapshot_id)))

    lookup_snapshot_async = async_twin(lookup_snapshot)

    def list_manifest_files(self, snapshot_id: str) -> list[ManifestFileInfo]:
        """Return the manifest files of a snapshot, sorted by id."""
        files = self._assets.snapshot(SnapshotId.from_str(snapshot_id)).manifest_files
        return [
            ManifestFileInfo(str(ManifestId.from_row(row)), int(size), int(count))
            for row, size, count in zip(files.ids, files.sizes, files.num_refs, strict=True)
        ]

    list_manifest_files_async = async_twin(list_manifest_files)

    @operation(
        lambda self, *refs, **named: (
            f"comparing two snapshots ({show_arguments(refs, named)}) of {self.storage.identity}"
        )
    )
    def diff(
        self,
        *,
        from_branch: str | None = None,
        from_tag: str | None = None,
        from_snapshot_id: str | None = None,
        to_branch: str | None = None,
        to_tag: str | None = None,
        to_snapshot_id: str | None = None,
    ) -> Diff:
        """Return the changes of all commits after one snapshot, up to another.

        Raises
        ------
        InvalidInputError
            ``bad-snapshot-chain-for-diff``: the first is not an ancestor of the second.
        """
        catalog = self._catalog()
        start = catalog.snapshot(resolve_ref(catalog, from_branch, from_tag, from_snapshot_id)).id
        stop = resolve_ref(catalog, to_branch, to_tag, to_snapshot_id)
        ids = [log_id for record in _commits_between(catalog, start, stop) for log_id in (*record.pruned, record.id)]
        logs = [log for log_id in ids if (log := self._assets.transaction_log(log_id)) is not None]
        return diff_of_logs(logs, self._assets.snapshot(start).nodes, self._assets.snapshot(stop).nodes)

    diff_async = async_twin(diff)

    # --- ops log -----------------------------------------------------------------------------------------------

    def ops_log(self) -> Iterator[Update]:
        """Yield all updates of the repository, newest first. This takes one request for each page of the log."""
        return self._catalog().ops_log()

    async def ops_log_async(self) -> AsyncIterator[Update]:
        """Asynchronous twin of :meth:`ops_log`."""
        for update in await async_twin(lambda: list(self.ops_log()))():
            yield update

    # --- single files ------------------------------------------------------------------------------------------

    def inspect_repo_info(self) -> dict[str, Any]:
        """Return the content of the object ``repo`` as a document, for debugging."""
        self._catalog().repo_info("inspect_repo_info")
        return inspection.repo_info_document(self._assets.storage.get(layout.REPO))

    inspect_repo_info_async = async_twin(inspect_repo_info)

    def inspect_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """Return the content of a snapshot's file as a document, for debugging. Raises SnapshotNotFoundError."""
        return inspection.snapshot_document(self._file_of_snapshot(layout.snapshot_key, snapshot_id))

    inspect_snapshot_async = async_twin(inspect_snapshot)

    def inspect_transaction_log(self, snapshot_id: str) -> dict[str, Any]:
        """Return the content of a commit's transaction log as a document, for debugging.

        If ancestors of the snapshot have expired, their changes are merged in, and ``synthetic_composite`` says so.

        Raises
        ------
        SnapshotNotFoundError
            The log does not exist.
        """
        data = self._file_of_snapshot(layout.transaction_log_key, snapshot_id)
        return inspection.transaction_log_document(data, self._composite_log(SnapshotId.from_str(snapshot_id)))

    inspect_transaction_log_async = async_twin(inspect_transaction_log)

    def _composite_log(self, snapshot_id: SnapshotId) -> inspection.CompositeLog | None:
        """Return the merged log of a snapshot that stands for expired ones, None for all other snapshots."""
        try:
            pruned = self._catalog().snapshot(snapshot_id).pruned
        except SnapshotNotFoundError:  # the file exists, but no repo info lists the snapshot: show the file alone
            return None
        if not pruned:
            return None
        logs = self._assets.transaction_logs([*pruned, snapshot_id])
        found = [log_id for log_id, log in zip(pruned, logs, strict=False) if log is not None]
        missing = [log_id for log_id in pruned if log_id not in found]
        return inspection.CompositeLog(merged_log([log for log in logs if log is not None]), found, missing)

    def _file_of_snapshot(self, key_of: Callable[[SnapshotId], str], snapshot_id: str) -> bytes:
        key = key_of(SnapshotId.from_str(snapshot_id))
        try:
            return self._assets.storage.get(key)
        except ObjectNotFoundError:
            raise SnapshotNotFoundError(
                f"the object {key} does not exist: the snapshot was never written, or garbage collection removed it. "
                f"repo.ancestry lists the snapshots of a ref"
            ) from None


def _commits_between(catalog: Catalog, start: SnapshotId, stop: SnapshotId) -> list[SnapshotRecord]:
    """Return the commits after one snapshot up to another, oldest first. Raises InvalidInputError without a path."""
    records: list[SnapshotRecord] = []
    for record in catalog.ancestry(stop):
        if record.id == start:
            return records[::-1]
        records.append(record)
    raise InvalidInputError(
        f"`to` snapshot ancestry doesn't include `from`: {stop} does not come from {start}; a diff goes "
        f"from an older snapshot to a later one of the same line",
        ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF,
    )


def _ancestors_of_all(catalog: Catalog, tips: list[SnapshotId]) -> dict[SnapshotId, SnapshotRecord]:
    """Return some snapshots and all their ancestors, each looked up once."""
    found: dict[SnapshotId, SnapshotRecord] = {}
    for tip in tips:
        line: dict[SnapshotId, SnapshotRecord] = {}
        for record in catalog.ancestry(tip):
            if record.id in found:
                break
            line[record.id] = record
        found |= line
    return found


def _names_by_target(refs: Mapping[str, SnapshotId]) -> dict[SnapshotId, tuple[str, ...]]:
    """Return the refs that point to each snapshot, sorted."""
    names: dict[SnapshotId, tuple[str, ...]] = {}
    for name in sorted(refs):
        names[refs[name]] = (*names.get(refs[name], ()), name)
    return names
