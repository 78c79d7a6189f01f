"""Move a node and everything below it to another path: check the move, and record it in the change set. Pure.

A node keeps its id, metadata and manifests; only paths change (spec, *Moves*). The change set also keeps the moves as
steps. A rebase replays the steps on the new tree, and so also moves the nodes that others created below the sources
meanwhile.
"""

from __future__ import annotations

from icechunk_engine import paths
from icechunk_engine.errors import (
    AlreadyExistsError,
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    NodeNotFoundError,
    SessionStateError,
)
from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.transaction.change_set import ChangeSet, MoveStep
from icechunk_engine.transaction.hierarchy import array_above, find_node, subtree


def require_absolute(path: str) -> str:
    """Return the canonical form of a path that begins with ``/``. Raises InvalidInputError (``invalid-path``)."""
    if not path.startswith(paths.ROOT):
        raise InvalidInputError(
            f"{path!r} is not an absolute path. Give both paths of a move from the root, like '/group/array'",
            ErrorKind.INVALID_PATH,
        )
    return paths.normalize(path)


def move_error(base: NodeTable, changes: ChangeSet, source: str, target: str) -> IcechunkError | None:
    """Return the error that a move between two canonical paths would raise; None if the move is allowed.

    It is a NodeNotFoundError if the source is missing, an AlreadyExistsError if a node is at or below the target, and
    a SessionStateError in all other cases.
    """
    if find_node(base, changes, source) is None:
        return NodeNotFoundError(
            f"node not found at {source!r}: nothing to move. List the nodes with session.store.list_dir"
        )
    if paths.is_within(target, source):
        return SessionStateError(
            f"cannot move {source!r} into itself or its own descendant {target!r}. Choose a target outside of it",
            ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT,
        )
    there = [node.path for node in subtree(base, changes, target) if not paths.is_within(node.path, source)]
    if there:
        return AlreadyExistsError(
            f"cannot move {source!r} to {target!r}: a move cannot overwrite existing node at {there[0]!r}. Delete it "
            f"in a writable session first, or choose another target",
            ErrorKind.MOVE_WONT_OVERWRITE,
        )
    return _parent_error(base, changes, target)


def _parent_error(base: NodeTable, changes: ChangeSet, target: str) -> IcechunkError | None:
    array = array_above(base, changes, target)
    if array is not None:
        return SessionStateError(
            f"cannot move to {target!r}: {array!r} is an array, not a group. Choose a path below a group",
            ErrorKind.MOVE_DESTINATION_PARENT_NOT_GROUP,
        )
    above = paths.parent(target)
    if above is not None and find_node(base, changes, above) is None:
        return SessionStateError(
            f"cannot move to {target!r}: the destination's parent group {above!r} does not exist. Create it in a "
            f"writable session first",
            ErrorKind.MOVE_DESTINATION_PARENT_MISSING,
        )
    return None


def move(base: NodeTable, changes: ChangeSet, source: str, target: str) -> None:
    """Move the node at one canonical path, and everything below it, to another. Changes ``changes`` in place.

    Raises
    ------
    IcechunkError
        The error of :func:`move_error`. Nothing was changed.
    """
    error = move_error(base, changes, source, target)
    if error is not None:
        raise error
    nodes = list(subtree(base, changes, source))
    changes.move_nodes(MoveStep(nodes[0].node_id, source, target), nodes)
