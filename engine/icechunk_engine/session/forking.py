"""Forks: how a session is split among processes and put together again.

A fork starts from a snapshot. A session without edits forks at its own snapshot, without I/O. A session with edits
first stores them as a snapshot that no branch points to, and forks there, so that the fork stays small.

What arrives in another process is a *copy*. The session gets its edits in one of two ways:

- The copy of a fork is returned and merged (:func:`merge_forks`). It reports only that it wrote, so that the session
  notices if it is missing.
- The copy of a store reports its edits before each write returns (:mod:`.worker_reports`), and the session collects
  them (:mod:`.home_reports`). So you can pass the store of a writable session to any library that writes in parallel.

The invariants:

- *All forks of a session, and forks of these forks, have one origin:* the committed snapshot that the session is based
  on. Merging checks the origin and the repository. In edits made on another base, ids could mean other nodes.
- *Edits that leave have a complete source.* Forking and merging end an epoch, so later edits have another source
  (:mod:`icechunk_engine.transaction.edit_sources`).
- *Nothing is lost silently.* If one of two edits would be lost, both are refused
  (:mod:`icechunk_engine.transaction.merge`). A session is not committed while a copy that wrote is missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.session.home_reports import HomeReports, is_shared
from icechunk_engine.session.ledger import ForkOrigin, ForkPoint, depth_of, origin_id_of
from icechunk_engine.session.merging import NOTHING_SEEN, merge_into, num_seen, seen_of_ancestors
from icechunk_engine.storage.base import FlushPromise
from icechunk_engine.transaction.edit_sources import EditSources
from icechunk_engine.transaction.merge import Incoming, OnOverlap
from icechunk_engine.transaction.new_snapshot import write_snapshot
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import Workspace

# --- forking ---------------------------------------------------------------------------------------------------------


def start_fork(workspace: Workspace, parent_point: ForkPoint | None, token: str) -> tuple[SnapshotId, ForkPoint]:
    """Return the snapshot that a fork starts from and its fork point. Stores the edits, if there are any.

    Parameters
    ----------
    token
        That of the session.
    """
    state, point = leave(workspace, parent_point, token, fork_id=os.urandom(8).hex())
    return stored_base(workspace, state), point


def leave(
    workspace: Workspace, parent_point: ForkPoint | None, token: str, *, fork_id: str | None
) -> tuple[WorkspaceState, ForkPoint]:
    """Return a copy of the edits for a fork or a copy of the store, and its fork point. Ends the epoch."""
    with workspace.lock:
        workspace.permissions.require_forkable()
        workspace.end_epoch()
        state = workspace.state.copy()
    inherited = () if parent_point is None else parent_point.seen or (NOTHING_SEEN,)
    return state, ForkPoint(
        origin_id=state.snapshot_id if parent_point is None else parent_point.origin_id,
        origin=ForkOrigin(token=token, fork_id=fork_id),
        seen=(*inherited, *(state.changes.sources.entries[-1:] or [NOTHING_SEEN])),
        flush_promise=_flush_promise(workspace, parent_point),
    )


def stored_base(workspace: Workspace, state: WorkspaceState) -> SnapshotId:
    """Return a snapshot that holds a state. Stores one if the state has edits."""
    if state.changes.is_empty:
        return state.snapshot_id
    assets = workspace.context.assets
    base = assets.snapshot(state.snapshot_id)
    return write_snapshot(assets, base, state.changes, message="fork point", metadata={}, is_final=False).info.id


def _flush_promise(workspace: Workspace, parent_point: ForkPoint | None) -> FlushPromise | None:
    if is_shared(workspace):
        return None  # when the session is resumed, the process that promised to flush may have ended
    return workspace.context.assets.storage.promise_flush() if parent_point is None else parent_point.flush_promise


# --- merging ---------------------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """A session whose edits are to be merged.

    Attributes
    ----------
    workspace
        Its edits.
    point
        The point where it left its parent; None if it is not a fork.
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
    depth = depth_of(own_point)
    seen = [(() if arrival.point is None else arrival.point.seen, theirs) for arrival, theirs in loaded]

    def incoming(state: WorkspaceState) -> Sequence[Incoming]:
        return [
            Incoming(
                changes=theirs.changes,
                num_seen=num_seen(state.changes, marks, depth),
                seen_up_to=seen_of_ancestors(marks),
            )
            for marks, theirs in seen
        ]

    if merge_into(workspace, incoming, on_overlap) and workspace.exchange is not None:
        with workspace.lock:
            for _, theirs in loaded:
                workspace.exchange.record_changes(theirs.changes)


def _collect_reports(workspace: Workspace, arrivals: Sequence[Arrival], on_overlap: OnOverlap) -> None:
    """Collect what copies of the forks have reported. Refuse forks whose copies wrote and were not returned."""
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
