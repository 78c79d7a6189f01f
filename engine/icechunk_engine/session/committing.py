"""How a session ends: commit, amend and flush; and rebase, which prepares a commit.

The invariant: after an error the session and the branch are as before; after success the session is read-only at the
new snapshot. While a thread commits, the session takes no edits (:mod:`icechunk_engine.workspace.permissions`), and
the thread works on a copy of the edits without holding the lock. Nobody waits for a lock during the requests.

The last steps of :meth:`Committer._end` are in an order in which an interrupt between any two leaves a session that
either can go on or has ended. The read-only mode comes after the new state: a read-only session with the old state
would have lost its edits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.changes import AddCommit, AddDetachedSnapshot, AmendCommit
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.catalog.preconditions import require_amendable
from icechunk_engine.catalog.remote_queue import RemoteQueue
from icechunk_engine.errors import ConflictError, ErrorKind, IcechunkError, SessionStateError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.session.lost_commits import CommitAttempts
from icechunk_engine.session.own_metadata import with_own_metadata
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.conflicts import ConflictSolver
from icechunk_engine.transaction.manifest_plans import ManifestMemo
from icechunk_engine.transaction.new_snapshot import NewSnapshot, write_snapshot
from icechunk_engine.transaction.rebase import describe_conflicts, rebase_changes
from icechunk_engine.types import Json
from icechunk_engine.workspace.permissions import SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import Workspace

_MAX_REBASE_ATTEMPTS = 100
"""Attempts to rebase while other threads keep editing the session."""

type Metadata = Mapping[str, Json]


class Committer:
    """Turns the edits of a workspace into snapshots. A session has one for its whole life."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._attempts = CommitAttempts(workspace)

    # --- commit ------------------------------------------------------------------------------------------------

    def commit(
        self,
        message: str,
        metadata: Metadata | None,
        *,
        solver: ConflictSolver | None,
        max_rebases: int,
        allow_empty: bool,
    ) -> str:
        """Commit the edits to the branch. Returns the id of the new snapshot."""

        def commit(branch: str, state: WorkspaceState) -> NewSnapshot:
            assets = self._workspace.context.assets
            with assets.storage.commit_queue(), RemoteQueue(assets, branch) as queue:
                return self._commit_with_rebases(state, branch, message, metadata, solver, max_rebases, queue)

        return self._end("commit", commit, allow_empty=allow_empty)

    def _commit_with_rebases(
        self,
        state: WorkspaceState,
        branch: str,
        message: str,
        metadata: Metadata | None,
        solver: ConflictSolver | None,
        max_rebases: int,
        queue: RemoteQueue,
    ) -> NewSnapshot:
        """Commit. After a lost race rebase a copy of the edits and try again, reusing the manifests that still hold.

        Looks at the branch before it writes anything, because a race that is already lost needs no files.
        """
        assets = self._workspace.context.assets
        memo: ManifestMemo = {}
        base_id, changes, num_rebases = state.snapshot_id, state.changes, 0
        catalog = queue.begin()
        while True:
            catalog.require_online()
            started = time.monotonic()
            try:
                _require_tip(catalog, branch, base_id)
                new = write_snapshot(
                    assets,
                    assets.snapshot(base_id),
                    changes,
                    message=message,
                    metadata=self._full_metadata(metadata, num_rebases if solver is not None else None),
                    memo=memo,
                )
                self._attempts.publish(new, AddCommit(branch, new.info, bool(changes.moved_nodes)), catalog)
            except ConflictError as error:
                if error.kind is not ErrorKind.COMMIT_CONFLICT:
                    raise
                if (published := self._attempts.find_published(branch)) is not None:
                    return published
                if solver is None or num_rebases >= max_rebases:
                    raise self._explained(error, branch, base_id, changes) from None
            else:
                return new
            num_rebases += 1
            if base_id == catalog.branch_tip(branch):  # the race was lost after we looked at the branch
                catalog = queue.begin_again(num_rebases, time.monotonic() - started)
            base_id, changes = rebase_changes(assets, catalog, branch, base_id, changes, solver)

    def _explained(self, error: ConflictError, branch: str, base_id: SnapshotId, changes: ChangeSet) -> ConflictError:
        """Return the error of a lost race with the other commit and the conflicts, if they are known."""
        assets = self._workspace.context.assets
        try:
            found = describe_conflicts(assets, open_catalog(assets), branch, base_id, changes)
        except IcechunkError as failure:
            found = f"looking for conflicts failed: {failure}"
        return ConflictError(error.expected_parent, error.actual_parent, f"{error.message}. {found}", error.kind)

    # --- amend and flush ---------------------------------------------------------------------------------------

    def amend(self, message: str, metadata: Metadata | None, *, allow_empty: bool) -> str:
        """Replace the last snapshot of the branch. Returns the id of the new snapshot."""

        def amend(branch: str, state: WorkspaceState) -> NewSnapshot:
            with self._workspace.context.assets.storage.commit_queue():
                return self._amend(state, branch, message, metadata)

        return self._end("amend", amend, allow_empty=allow_empty)

    def _amend(self, state: WorkspaceState, branch: str, message: str, metadata: Metadata | None) -> NewSnapshot:
        assets, base_id, changes = self._workspace.context.assets, state.snapshot_id, state.changes
        catalog = open_catalog(assets)
        catalog.require_amend_supported()
        catalog.require_online()
        try:
            _require_tip(catalog, branch, base_id)
            require_amendable(catalog.snapshot(base_id))
            amended = assets.transaction_log(base_id)
            if amended is None:
                raise SessionStateError(
                    f"cannot amend snapshot {base_id}: its transaction log is gone. Commit instead",
                    ErrorKind.REBASE_TX_LOG_PRUNED,
                )
            new = write_snapshot(
                assets,
                assets.snapshot(base_id),
                changes,
                message=message,
                metadata=self._full_metadata(metadata),
                amended=amended,
            )
            self._attempts.publish(new, AmendCommit(branch, base_id, new.info, bool(changes.moved_nodes)), catalog)
        except ConflictError as error:
            if error.kind is not ErrorKind.COMMIT_CONFLICT:
                raise
            if (published := self._attempts.find_published(branch)) is not None:
                return published
            raise self._explained(error, branch, base_id, changes) from None
        return new

    def flush(self, message: str, metadata: Metadata | None) -> str:
        """Store a snapshot that no branch points to. Returns its id."""

        def flush(_: str, state: WorkspaceState) -> NewSnapshot:
            assets = self._workspace.context.assets
            new = write_snapshot(
                assets,
                assets.snapshot(state.snapshot_id),
                state.changes,
                message=message,
                metadata=self._full_metadata(metadata),
            )
            open_catalog(assets).publish(AddDetachedSnapshot(new.info, bool(state.changes.moved_nodes)))
            return new

        return self._end("flush", flush)

    # --- rebase ------------------------------------------------------------------------------------------------

    def rebase(self, solver: ConflictSolver) -> None:
        """Move the edits on top of the branch's current tip."""
        workspace, permissions = self._workspace, self._workspace.permissions
        assets = workspace.context.assets
        published = self._attempts.find_published(permissions.require_committable())
        branch = permissions.require_committable()  # again: another thread may just be ending the commit we found
        if published is not None:
            raise ConflictError(
                message=f"these edits are already committed: an earlier commit succeeded as snapshot "
                f"{published.info.id}, although its answer was lost. Call commit again; it returns this snapshot and "
                f"ends the session"
            )
        for _ in range(_MAX_REBASE_ATTEMPTS):
            with workspace.lock:
                permissions.require_committable()
                token, state = workspace.edits_token, workspace.state.copy()
            catalog = open_catalog(assets)
            tip, changes = rebase_changes(assets, catalog, branch, state.snapshot_id, state.changes, solver)
            rebased = WorkspaceState(tip, changes, assets.snapshot(tip))
            with workspace.lock:
                permissions.require_committable()
                if token == workspace.edits_token:
                    workspace.replace_state(rebased)
                    return
        raise SessionStateError(
            "cannot rebase: other threads kept editing this session. It is unchanged; wait for these threads to "
            "finish, then try again",
            ErrorKind.CONCURRENCY,
        )

    # --- ending ------------------------------------------------------------------------------------------------

    def _end(
        self, action: str, store: Callable[[str, WorkspaceState], NewSnapshot], *, allow_empty: bool = False
    ) -> str:
        """End the session at the snapshot that ``store`` makes from the branch and a copy of the edits.

        The session takes no edits meanwhile. If ``store`` raises, the session is as before.
        """
        workspace, permissions = self._workspace, self._workspace.permissions
        is_mine = False
        try:
            with workspace.lock:
                branch = permissions.require_committable()
                self._require_changes(action, allow_empty=allow_empty)
                permissions.is_committing = is_mine = True
                state = workspace.state.copy()
            new = store(branch, state)
            with workspace.lock:  # the order of these steps matters, see above
                workspace.replace_state(WorkspaceState(new.info.id, ChangeSet(), new.snapshot))
                self._attempts.clear()
                permissions.mode = SessionMode.readonly
                permissions.branch = None
            return str(new.info.id)
        finally:
            if is_mine:
                permissions.is_committing = False

    def _require_changes(self, action: str, *, allow_empty: bool) -> None:
        if self._workspace.has_changes or allow_empty:
            return
        unchanged = list(self._workspace.unchanged_writes)
        raise SessionStateError(
            f"nothing to {action}, no changes made to the session: no group, array or chunk was changed"
            + (f" (the metadata of {_listed(unchanged)} was written again without a change)" if unchanged else "")
            + ("" if action == "flush" else f". To {action} anyway, pass allow_empty=True"),
            ErrorKind.NO_CHANGES_TO_COMMIT,
        )

    def _full_metadata(self, metadata: Metadata | None, num_rebases: int | None = None) -> dict[str, Json]:
        """Return the metadata of a new snapshot; ``num_rebases`` is recorded where official records it."""
        full = {**self._workspace.context.default_commit_metadata, **(metadata or {})}
        return full if num_rebases is None else with_own_metadata(full, "rebase_attempts", num_rebases)


def _listed(paths: Sequence[str], max_shown: int = 5) -> str:
    num_more = len(paths) - max_shown
    return ", ".join(paths[:max_shown]) + (f" and {num_more} more" if num_more > 0 else "")


def _require_tip(catalog: Catalog, branch: str, expected: SnapshotId) -> None:
    """Raise ConflictError unless the branch points to the expected snapshot."""
    tip = catalog.branch_tip(branch)
    if tip != expected:
        raise ConflictError(str(expected), str(tip))
