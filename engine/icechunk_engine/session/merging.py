"""Put edits of other processes into a workspace, all or none.

A merge works on a copy of the edits without holding the lock, because it may have to compare stored chunks. It then
takes the lock and replaces the state, if no thread edited the workspace meanwhile; otherwise it starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.edit_sources import EditSource
from icechunk_engine.transaction.equal_chunks import require_equal_chunks
from icechunk_engine.transaction.merge import Incoming, OnOverlap, merge_changes
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import Workspace

_MAX_ATTEMPTS = 100
"""Attempts to merge while other threads keep editing the session."""

NOTHING_SEEN = EditSource("0" * 32, 0)
"""The mark of an ancestor that had no edits."""


def merge_into(
    workspace: Workspace, arrivals: Callable[[WorkspaceState], Sequence[Incoming]], on_overlap: OnOverlap
) -> bool:
    """Merge edits into a workspace. Returns False if it already has all of them.

    Parameters
    ----------
    arrivals
        Returns the edits for the present state of the workspace, in the order in which to merge them. May raise.

    Raises
    ------
    SessionStateError
        ``merge-failed``: two edits conflict. ``concurrency``. The workspace is unchanged.
    """
    for _ in range(_MAX_ATTEMPTS):
        workspace.permissions.require_writable()
        workspace.loaded_state()
        with workspace.lock:
            token, merged = workspace.edits_token, workspace.state.copy()
        num_known = len(merged.changes.sources)
        incoming = arrivals(merged)
        doubts = merge_changes(merged.nodes, merged.changes, incoming, on_overlap, token[0])
        if len(merged.changes.sources) == num_known:
            return False
        require_equal_chunks(workspace.context.assets.storage, doubts)
        with workspace.lock:
            workspace.permissions.require_writable()
            if token == workspace.edits_token:
                workspace.end_epoch()
                workspace.replace_state(merged)
                return True
    raise SessionStateError(
        "cannot merge: other threads kept editing this session. It is unchanged; wait for these threads to finish, "
        "then try again",
        ErrorKind.CONCURRENCY,
    )


def num_seen(changes: ChangeSet, marks: Sequence[EditSource], depth: int = 0) -> int:
    """Return how many of the first sources of some edits a writer had seen.

    Parameters
    ----------
    marks
        The last source that each ancestor of the writer had, oldest ancestor first.
    depth
        Which of these ancestors has the edits. The marks of others say nothing about the order of its sources.
    """
    return changes.sources.find(marks[depth]) + 1 if depth < len(marks) else 0


def seen_of_ancestors(marks: Sequence[EditSource]) -> dict[str, int]:
    """Return up to which epoch a writer had seen its ancestors, by their writers."""
    seen: dict[str, int] = {}
    for mark in marks:
        seen[mark.writer] = max(seen.get(mark.writer, 0), mark.epoch)
    return seen
