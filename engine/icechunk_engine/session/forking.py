"""Forks: what a session carries to another process.

A fork starts from a snapshot. A session without edits forks at its own snapshot, without I/O. A session with edits
first stores them as a snapshot that no branch points to, and forks there, so that the fork stays small.

What arrives in another process is a *copy*. Each copy brings its edits back in one of two ways:

- The copy of a fork comes back itself, and is merged (:func:`merge_forks`). It reports only that it wrote, so that the
  session misses it if it does not come back.
- The copy of a store reports its edits before each write returns (:mod:`.worker_reports`), and the session collects
  them (:mod:`.home_reports`). So you can pass the store of a writable session to any library that writes in parallel.

The invariants:

- *All forks of a session, and forks of these forks, have one origin:* the committed snapshot that the session is based
  on. Merging checks the origin and the repository. Edits that were made on another base would mean other nodes.
- *What travels is durable, or says that it is not yet.* Before a fork is pickled, the chunks that it refers to are
  flushed: the process that receives it may commit them, and cannot know that a crash has lost them. Only processes on
  the host of the session's process leave the flush to its commit (:mod:`icechunk_engine.transaction.durable_chunks`).
- *What travels has a complete source.* Forking, pickling and merging end an epoch, so later edits have another source
  (:mod:`icechunk_engine.transaction.edit_sources`).
- *Nothing is lost silently.* A writable session that is not a fork cannot be pickled: its copy could not commit. Two
  edits of which one would be lost are refused (:mod:`icechunk_engine.transaction.merge`). A session is not committed
  while a copy that wrote is missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from icechunk_engine._runtime.cluster_support import load_cluster_support
from icechunk_engine.errors import ErrorKind, InvalidInputError, SessionStateError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.session.home_reports import HomeReports
from icechunk_engine.session.ledger import ForkOrigin, ForkPoint, Ledger, Reporting
from icechunk_engine.session.merging import merge_into, num_seen
from icechunk_engine.session.worker_reports import WorkerReports
from icechunk_engine.storage.base import FlushPromise
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.durable_chunks import flush_or_leave_it
from icechunk_engine.transaction.edit_sources import EditSource, EditSources
from icechunk_engine.transaction.merge import Incoming, OnOverlap
from icechunk_engine.transaction.new_snapshot import write_snapshot
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.permissions import Permissions, SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import EditsToken, Workspace

_MAX_EMBEDDED_BYTES = 16 * 1024
"""Up to this size, the edits of a session travel with the copies of its store. Larger ones are stored once."""


# --- forking ---------------------------------------------------------------------------------------------------------


def start_fork(workspace: Workspace, parent_point: ForkPoint | None, token: str) -> tuple[SnapshotId, ForkPoint]:
    """Return the snapshot that a fork starts from and its fork point. Stores the edits, if there are any.

    Parameters
    ----------
    token
        That of the session.
    """
    with workspace.lock:
        workspace.permissions.require_forkable()
        workspace.end_epoch()
        state = workspace.state.copy()
    point = ForkPoint(
        origin_id=origin_id_of(workspace, parent_point),
        origin=ForkOrigin(token=token, fork_id=os.urandom(8).hex()),
        seen=_seen(state, parent_point),
        flush_promise=_flush_promise(workspace, parent_point),
    )
    return stored_base(workspace, state), point


def stored_base(workspace: Workspace, state: WorkspaceState) -> SnapshotId:
    """Return a snapshot that holds a state. Stores one if the state has edits."""
    if state.changes.is_empty:
        return state.snapshot_id
    assets = workspace.context.assets
    base = assets.snapshot(state.snapshot_id)
    return write_snapshot(assets, base, state.changes, message="fork point", metadata={}, is_final=False).info.id


def _seen(state: WorkspaceState, parent_point: ForkPoint | None) -> tuple[EditSource, ...]:
    inherited = () if parent_point is None else parent_point.seen
    return (*inherited, *state.changes.sources.entries[-1:])


def _flush_promise(workspace: Workspace, parent_point: ForkPoint | None) -> FlushPromise | None:
    if is_shared(workspace):
        return None  # the process that has promised to flush may be gone when the session is resumed
    return workspace.context.assets.storage.promise_flush() if parent_point is None else parent_point.flush_promise


def is_shared(workspace: Workspace) -> bool:
    """Return True if this is a session that can be found by its token (:mod:`.sharing`)."""
    return isinstance(workspace.exchange, HomeReports) and workspace.exchange.is_shared


def origin_id_of(workspace: Workspace, point: ForkPoint | None) -> SnapshotId:
    """Return the committed snapshot that a session or fork goes back to."""
    return workspace.state.snapshot_id if point is None else point.origin_id


def watch_copies(workspace: Workspace, ledger: Ledger, point: ForkPoint | None, reporting: Reporting) -> None:
    """Take reports of the copies of a session or fork from now on. Call it before a copy leaves.

    The first copy of a store costs a PUT, copies of forks nothing.
    """
    origin_id = origin_id_of(workspace, point)
    if reporting is Reporting.edits:
        ledger.open(origin_id)
    ledger.has_copies = True
    if workspace.exchange is None:
        fork_id = None if point is None else point.origin.fork_id
        workspace.exchange = HomeReports(workspace, ledger, fork_id, origin_id)


# --- what a pickle carries -------------------------------------------------------------------------------------------


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
        # Bytes and numbers in place of objects, and nothing that equals the default: forks travel by the thousand.
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


UNPICKLABLE = (
    "You must opt-in to pickle writable sessions in a distributed context using Session.fork(), because a copy could "
    "not commit, and its edits would be lost. To write with xarray, dask or zarr in other processes, pass "
    "session.store: what they write comes back to this session. Or send fork = session.fork() to your tasks, return "
    "it, and call session.merge(*forks). To read in workers, use repo.readonly_session(...)"
)
"""The error that users see if they send a writable session to another process."""


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
    with workspace.lock:
        workspace.permissions.require_forkable()
        workspace.end_epoch()
        state = workspace.state.copy()
    point = ForkPoint(
        origin_id=state.snapshot_id,
        origin=ForkOrigin(token=token, fork_id=None),
        seen=_seen(state, None),
        flush_promise=_flush_promise(workspace, None),
        lamport=workspace.exchange.lamport if isinstance(workspace.exchange, HomeReports) else 0,
    )
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


# --- merging ---------------------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """A session whose edits are to be merged.

    Attributes
    ----------
    workspace
        Its edits.
    point
        Where it left its parent; None if it is not a fork.
    session
        The session itself, to name it in errors.
    """

    workspace: Workspace
    point: ForkPoint | None
    session: object


def merge_forks(
    workspace: Workspace, own_point: ForkPoint | None, arrivals: Sequence[Arrival], on_overlap: OnOverlap
) -> None:
    """Merge the edits of forks into a workspace, all or none.

    Raises
    ------
    SessionStateError
        ``merge-not-allowed``, ``merge-failed``; the workspace is unchanged.
    """
    for arrival in arrivals:
        _require_fork_of(workspace, own_point, arrival)
    _collect_reports(workspace, arrivals, on_overlap)
    loaded = [(arrival, _complete_copy(arrival.workspace)) for arrival in arrivals]

    def incoming(state: WorkspaceState) -> Sequence[Incoming]:
        return [
            Incoming(changes=theirs.changes, num_seen=num_seen(state.changes, () if point is None else point.seen))
            for (_, point, _), theirs in loaded
        ]

    if merge_into(workspace, incoming, on_overlap) and workspace.exchange is not None:
        with workspace.lock:
            for _, theirs in loaded:
                workspace.exchange.record_changes(theirs.changes)


def _collect_reports(workspace: Workspace, arrivals: Sequence[Arrival], on_overlap: OnOverlap) -> None:
    """Collect what copies of the forks have reported. Refuse forks whose copies wrote and have not come back."""
    known = EditSources(workspace.state.changes.sources.entries)
    for arrival in arrivals:
        for source in arrival.workspace.state.changes.sources.entries:
            known.number(source)
    for arrival in arrivals:
        reports = arrival.workspace.exchange
        if isinstance(reports, HomeReports):
            reports.collect(on_overlap)
            if not arrival.workspace.state.changes.sources.entries:
                reports.require_original(known)


def _complete_copy(workspace: Workspace) -> WorkspaceState:
    """Return a copy of the edits. Later edits of the workspace have another source."""
    with workspace.lock:
        workspace.end_epoch()
        return workspace.state.copy()


def _require_fork_of(workspace: Workspace, own_point: ForkPoint | None, arrival: Arrival) -> None:
    """Raise SessionStateError (``merge-not-allowed``) unless an arrival is a fork of this session."""
    origin, point = origin_id_of(workspace, own_point), arrival.point
    here, there = workspace.storage_identity, arrival.workspace.storage_identity
    if point is None or point.origin_id != origin:
        what = f"is not a fork based on snapshot {origin}"
    elif here != there:
        what = f"belongs to the repository at {there}, and this session to the one at {here}"
    else:
        return
    raise SessionStateError(
        f"can only merge forks of this session: {arrival.session!r} {what}. Make forks with session.fork(), and merge "
        f"them before you commit the session",
        ErrorKind.MERGE_NOT_ALLOWED,
    )
