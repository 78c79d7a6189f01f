"""What a session carries to another process.

A fork carries a snapshot and edits. So does the copy of a store, except that large edits are stored as a snapshot
first, so that pickles stay small.

The invariants:

- *What travels is durable, or says that it is not yet.* The receiver may commit the chunks, and cannot know that a
  crash has lost them. So they are flushed before the pickle is made. Only processes on the host of the session's
  process leave the flush to its commit (:mod:`icechunk_engine.transaction.durable_chunks`).
- *What travels has a complete source.* Pickling ends an epoch, so later edits have another source
  (:mod:`icechunk_engine.transaction.edit_sources`).
- *A writable session that is not a fork cannot be pickled:* its copy could not commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from icechunk_engine._runtime.cluster_support import load_cluster_support
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.session.forking import leave, stored_base
from icechunk_engine.session.home_reports import HomeReports
from icechunk_engine.session.ledger import ForkOrigin, ForkPoint, Reporting
from icechunk_engine.session.worker_reports import WorkerReports
from icechunk_engine.storage.base import FlushPromise
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.durable_chunks import flush_or_leave_it
from icechunk_engine.transaction.edit_sources import EditSource
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.permissions import Permissions, SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import EditsToken, Workspace

_MAX_EMBEDDED_BYTES = 16 * 1024
"""Edits up to this size travel with the copies of the store. Larger ones are stored once."""

UNPICKLABLE = (
    "You must opt-in to pickle writable sessions in a distributed context using Session.fork(), because a copy could "
    "not commit, and its edits would be lost. To write with xarray, dask or zarr in other processes, pass "
    "session.store: this session collects what they write. Or send fork = session.fork() to your tasks, return it, "
    "and call session.merge(*forks). To read in workers, use repo.readonly_session(...)"
)
"""The error that users see if they send a writable session to another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedSession:
    """The content of a pickled session: a fork, or a read-only session.

    Attributes
    ----------
    context
        The repository: storage, configuration and credentials. Files in memory do not travel.
    mode
        What the session can change.
    state
        Id of the base, and the edits as columns. The receiver fetches the snapshot when it needs it.
    edits_token
        Equal to that of the original until one of them is edited. None for a read-only session, whose pickles are
        equal for equal snapshots.
    unchanged_writes
        As in the workspace.
    fork_point
        None for a read-only session.
    reporting
        What the copy reports.
    """

    context: RepositoryContext
    mode: SessionMode
    state: WorkspaceState
    edits_token: EditsToken | None
    unchanged_writes: Sequence[str]
    fork_point: ForkPoint | None
    reporting: Reporting

    def __reduce__(self) -> tuple[object, ...]:
        # Bytes and numbers instead of objects, and no defaults at the end: thousands of forks may travel.
        state = self.state
        carried = [
            self.context,
            self.mode.value,
            state.snapshot_id.raw,
            _pack_point(self.fork_point, state.snapshot_id),
            self.reporting.value,
            self.edits_token,
            self.unchanged_writes,
            None if state.is_untouched else state.changes,
        ]
        while not carried[-1]:
            carried.pop()
        return _unpack, tuple(carried)

    def unpack(self) -> Workspace:
        """Return a workspace with these edits. Does no I/O."""
        point = self.fork_point
        permissions = Permissions(self.mode, is_fork=point is not None)
        workspace = Workspace(self.context, self.state, permissions, edits_token=self.edits_token)
        workspace.unchanged_writes.update(dict.fromkeys(self.unchanged_writes))
        if point is not None:
            load_cluster_support()
            if self.reporting is not Reporting.nothing:
                workspace.exchange = WorkerReports(workspace, point, self.reporting)
        return workspace


type _PackedPoint = tuple[str, str | None, str | None, bool, list[Any], bytes | None, int, Mapping[str, int]]


def _pack_point(point: ForkPoint | None, base_id: SnapshotId) -> _PackedPoint | None:
    if point is None:
        return None
    origin, origin_id = point.origin, point.origin_id
    return (
        origin.token,
        origin.fork_id,
        point.flush_promise,
        point.is_for_graph,
        [tuple(source) for source in point.seen],
        None if origin_id == base_id else origin_id.raw,
        point.lamport,
        point.seen_up_to,
    )


def _unpack(
    context: RepositoryContext,
    mode: int,
    base_id: bytes,
    packed_point: _PackedPoint | None = None,
    reporting: int = 0,
    edits_token: EditsToken | None = None,
    unchanged_writes: Sequence[str] = (),
    changes: ChangeSet | None = None,
) -> CarriedSession:
    snapshot_id, point = SnapshotId(base_id), None
    if packed_point is not None:
        token, fork_id, promise, is_for_graph, seen, origin_id, lamport, seen_up_to = packed_point
        point = ForkPoint(
            origin_id=snapshot_id if origin_id is None else SnapshotId(origin_id),
            origin=ForkOrigin(token=token, fork_id=fork_id),
            seen=tuple(EditSource(*source) for source in seen),
            flush_promise=None if promise is None else FlushPromise(promise),
            is_for_graph=is_for_graph,
            lamport=lamport,
            seen_up_to=seen_up_to,
        )
    return CarriedSession(
        context=context,
        mode=SessionMode(mode),
        state=WorkspaceState(snapshot_id, changes),
        edits_token=edits_token,
        unchanged_writes=unchanged_writes,
        fork_point=point,
        reporting=Reporting(reporting),
    )


def pack(workspace: Workspace, fork_point: ForkPoint | None, reporting: Reporting) -> CarriedSession:
    """Return what a pickle of a session carries, with its chunks flushed or left to a process that has promised it.

    Raises
    ------
    InvalidInputError
        ``pickle``: a writable session that is not a fork.
    StorageError
        ``not-durable``: the disk refused some of its chunks.
    """
    if not workspace.read_only and fork_point is None:
        raise InvalidInputError(UNPICKLABLE, ErrorKind.PICKLE)  # official raises a ValueError, too
    workspace.report()
    with workspace.lock:
        workspace.end_epoch()
        carried = _carried(workspace, workspace.state.copy(), fork_point, reporting)
    _flush_or_leave_it(carried)
    return carried


def pack_for_store(workspace: Workspace, point: ForkPoint | None, token: str) -> CarriedSession:
    """Return what a pickle of a writable session's store carries: a copy that reports its edits.

    Parameters
    ----------
    point
        None for the session itself.
    token
        That of the session.
    """
    if point is not None:
        return pack(workspace, point, Reporting.edits)
    state, point = leave(workspace, None, token, fork_id=None)
    if isinstance(workspace.exchange, HomeReports):
        point = replace(point, lamport=workspace.exchange.lamport)
    if _num_bytes(state.changes) > _MAX_EMBEDDED_BYTES:
        state = WorkspaceState(stored_base(workspace, state), ChangeSet())
    carried = _carried(workspace, state, point, Reporting.edits)
    _flush_or_leave_it(carried)
    return carried


def _carried(
    workspace: Workspace, state: WorkspaceState, point: ForkPoint | None, reporting: Reporting
) -> CarriedSession:
    return CarriedSession(
        context=workspace.context,
        mode=workspace.permissions.mode,
        state=state,  # pickled after the lock is released
        edits_token=None if workspace.read_only else workspace.edits_token,
        unchanged_writes=tuple(workspace.unchanged_writes),
        fork_point=point,
        reporting=reporting,
    )


def _flush_or_leave_it(carried: CarriedSession) -> None:
    assets, state, point = carried.context.assets, carried.state, carried.fork_point
    if not state.changes.is_empty:
        promise = None if point is None else point.flush_promise
        flush_or_leave_it(assets.storage, state.changes, lambda: assets.snapshot(state.snapshot_id).nodes, promise)


def _num_bytes(changes: ChangeSet) -> int:
    nodes = (*changes.new_nodes.values(), *changes.updated_nodes.values())
    columns = sum(edits.collapse().nbytes for edits in changes.chunks.values())
    return columns + sum(len(node.user_data) for node in nodes)
