"""Forks: what a session carries to another process, and how its edits come back.

A fork starts from a snapshot. A session without edits forks at its own snapshot, without I/O. A session with edits
first stores them as a snapshot that no branch points to, and forks there, so that the fork stays small.

The invariants:

- *All forks of a session, and forks of these forks, have one origin:* the committed snapshot that the session is based
  on. Merging checks the origin and the repository. Edits that were made on another base would mean other nodes.
- *What travels is durable, or says that it is not yet.* Before a fork is pickled, the chunks that it refers to are
  flushed: the process that receives it may commit them, and cannot know that a crash has lost them. Only processes on
  the host of the session's process leave the flush to its commit (:mod:`icechunk_engine.transaction.durable_chunks`).
- *What travels has a complete source.* Forking, pickling and merging end an epoch, so later edits have another source
  (:mod:`icechunk_engine.transaction.edit_sources`).
- *Nothing is lost silently.* A writable session that is not a fork cannot be pickled, because the edits of the copy
  would never come back. Two edits of which one would be lost are refused (:mod:`icechunk_engine.transaction.merge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from icechunk_engine.errors import ErrorKind, InvalidInputError, SessionStateError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.storage.base import FlushPromise
from icechunk_engine.transaction.durable_chunks import flush_or_leave_it
from icechunk_engine.transaction.edit_sources import EditSource
from icechunk_engine.transaction.equal_chunks import require_equal_chunks
from icechunk_engine.transaction.merge import Incoming, OnOverlap, merge_changes
from icechunk_engine.transaction.new_snapshot import write_snapshot
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.permissions import Permissions, SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import EditsToken, Workspace

_MAX_MERGE_ATTEMPTS = 100
"""Attempts to merge while other threads keep editing the session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPoint:
    """Where a fork left its parent.

    Attributes
    ----------
    origin_id
        The committed snapshot that the session and all its forks are based on.
    seen
        The last source of edits that each ancestor had at the fork, oldest ancestor first. The fork has seen this
        source and all that came before it.
    flush_promise
        The promise of the process that made the first fork to flush what its forks write; None if it gave none.
    """

    origin_id: SnapshotId
    seen: tuple[EditSource, ...]
    flush_promise: FlushPromise | None = None


# --- forking ---------------------------------------------------------------------------------------------------------


def start_fork(workspace: Workspace, parent_point: ForkPoint | None) -> tuple[SnapshotId, ForkPoint]:
    """Return the snapshot that a fork starts from and its fork point. Stores the edits, if there are any."""
    with workspace.lock:
        workspace.permissions.require_forkable()
        workspace.end_epoch()
        state = workspace.state.copy()
    base_id = state.snapshot_id
    if not state.changes.is_empty:
        assets = workspace.context.assets
        new = write_snapshot(
            assets, assets.snapshot(base_id), state.changes, message="fork point", metadata={}, is_final=False
        )
        base_id = new.info.id
    seen = (*(() if parent_point is None else parent_point.seen), *state.changes.sources.entries[-1:])
    promise = workspace.context.assets.storage.promise_flush() if parent_point is None else parent_point.flush_promise
    return base_id, ForkPoint(origin_id=_origin(state, parent_point), seen=seen, flush_promise=promise)


def _origin(state: WorkspaceState, point: ForkPoint | None) -> SnapshotId:
    return state.snapshot_id if point is None else point.origin_id


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
    """

    context: RepositoryContext
    mode: SessionMode
    state: WorkspaceState
    edits_token: EditsToken | None
    unchanged_writes: Sequence[str]
    fork_point: ForkPoint | None

    def unpack(self) -> Workspace:
        """Return a workspace with these edits. Does no I/O."""
        permissions = Permissions(self.mode, is_fork=self.fork_point is not None)
        workspace = Workspace(self.context, self.state, permissions, edits_token=self.edits_token)
        workspace.unchanged_writes.update(dict.fromkeys(self.unchanged_writes))
        return workspace


def pack(workspace: Workspace, fork_point: ForkPoint | None) -> CarriedSession:
    """Return what a pickle of a session carries, with its chunks flushed or left to a process that has promised it.

    Raises
    ------
    InvalidInputError
        ``pickle``: a writable session that is not a fork.
    StorageError
        ``not-durable``: the disk refused some of its chunks.
    """
    if not workspace.read_only and fork_point is None:
        raise InvalidInputError(  # official raises a ValueError, too
            "You must opt-in to pickle writable sessions in a distributed context using Session.fork(), because "
            "the edits of a copy would be lost. Send fork = session.fork() to the workers, and merge the forks that "
            "they return with session.merge(*forks). With xarray, xarray_icechunk.to_icechunk(ds, session) does all "
            "of this. To read in workers, use repo.readonly_session(...)",
            ErrorKind.PICKLE,
        )
    with workspace.lock:
        workspace.end_epoch()
        carried = CarriedSession(
            context=workspace.context,
            mode=workspace.permissions.mode,
            state=workspace.state.copy(),  # pickled after the lock is released
            edits_token=None if workspace.read_only else workspace.edits_token,
            unchanged_writes=tuple(workspace.unchanged_writes),
            fork_point=fork_point,
        )
    assets, state = workspace.context.assets, carried.state
    if not state.changes.is_empty:
        promise = None if fork_point is None else fork_point.flush_promise
        flush_or_leave_it(assets.storage, state.changes, lambda: assets.snapshot(state.snapshot_id).nodes, promise)
    return carried


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
    loaded = [(arrival, _complete_copy(arrival.workspace)) for arrival in arrivals]
    for _ in range(_MAX_MERGE_ATTEMPTS):
        workspace.permissions.require_writable()
        workspace.loaded_state()
        with workspace.lock:
            token, merged = workspace.edits_token, workspace.state.copy()
        incoming = [_incoming(workspace, own_point, merged, arrival, theirs) for arrival, theirs in loaded]
        doubts = merge_changes(merged.nodes, merged.changes, incoming, on_overlap, workspace.edits_token[0])
        if len(merged.changes.sources) == len(workspace.state.changes.sources):
            return  # everything is known
        require_equal_chunks(workspace.context.assets.storage, doubts)
        with workspace.lock:
            workspace.permissions.require_writable()
            if token == workspace.edits_token:
                workspace.end_epoch()
                workspace.replace_state(merged)
                return
    raise SessionStateError(
        "cannot merge: other threads kept editing this session. It is unchanged; wait for these threads to finish, "
        "then try again",
        ErrorKind.CONCURRENCY,
    )


def _complete_copy(workspace: Workspace) -> WorkspaceState:
    """Return a copy of the edits. Later edits of the workspace have another source."""
    with workspace.lock:
        workspace.end_epoch()
        return workspace.state.copy()


def _incoming(
    workspace: Workspace, own_point: ForkPoint | None, state: WorkspaceState, arrival: Arrival, theirs: WorkspaceState
) -> Incoming:
    """Return the edits of a fork of this session. Raises SessionStateError (``merge-not-allowed``) for any other."""
    origin, point = _origin(state, own_point), arrival.point
    here, there = workspace.storage_identity, arrival.workspace.storage_identity
    if point is None or point.origin_id != origin:
        what = f"is not a fork based on snapshot {origin}"
    elif here != there:
        what = f"belongs to the repository at {there}, and this session to the one at {here}"
    else:
        num_seen = max((state.changes.sources.find(source) + 1 for source in point.seen), default=0)
        return Incoming(changes=theirs.changes, num_seen=num_seen)
    raise SessionStateError(
        f"can only merge forks of this session: {arrival.session!r} {what}. Make forks with session.fork(), and merge "
        f"them before you commit the session",
        ErrorKind.MERGE_NOT_ALLOWED,
    )
