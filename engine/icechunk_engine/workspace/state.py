"""The state of a workspace: a base snapshot and the edits on top of it.

Base and edits always belong together. A rebase, merge, move or commit never changes the base of a state: it makes a
new state and puts it in place with one assignment. Code that holds a state therefore sees a matching pair, even while
another thread rebases. If base and edits were two attributes of the workspace, a reader between the two assignments
would apply the edits to the wrong snapshot.
"""

from __future__ import annotations

from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.format.snapshot import Snapshot
from icechunk_engine.ids import SnapshotId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.workspace.array_reader import ArrayReader


class WorkspaceState:
    """A base snapshot and the edits on top of it. Pickles without the snapshot, which is fetched again when needed.

    Attributes
    ----------
    snapshot_id
        Id of the base.
    base
        The base; None until it is fetched.
    changes
        The edits. The workspace changes them in place, under its lock, while this is its state.
    readers
        Readers of arrays by path. Each is valid until the next edit of a node.
    """

    __slots__ = ("base", "changes", "readers", "snapshot_id")

    def __init__(
        self, snapshot_id: SnapshotId, changes: ChangeSet | None = None, base: Snapshot | None = None
    ) -> None:
        self.snapshot_id = snapshot_id
        self.changes = ChangeSet() if changes is None else changes
        self.base = base
        self.readers: dict[str, ArrayReader] = {}

    @property
    def nodes(self) -> NodeTable:
        """Nodes of the base, which must have been fetched."""
        assert self.base is not None
        return self.base.nodes

    def copy(self) -> WorkspaceState:
        """Return the same base with a copy of the edits."""
        return WorkspaceState(self.snapshot_id, self.changes.copy(), self.base)

    @property
    def is_untouched(self) -> bool:
        """True if the edits are those of a new session: not only no change, but no trace of one."""
        changes = self.changes
        return not changes.sources and changes.is_empty and not changes.moves

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), ((self.snapshot_id,) if self.is_untouched else (self.snapshot_id, self.changes))
