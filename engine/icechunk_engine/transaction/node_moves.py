"""Moving a node, with all below it, to another path: what is allowed, and the step into the change set. Pure.

A node keeps its id, metadata and manifests; only paths change (spec, *Moves*). Moves are kept as steps, so that a
rebase makes them again on the other tree and takes along what was created below their sources meanwhile.
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
    """Canonical form of a path that begins with ``/``. Raises InvalidInputError (``invalid-path``)."""
    if not path.startswith(paths.ROOT):
        raise InvalidInputError(
            f"{path!r} is not an absolute path; moves name both ends from the root, like '/group/array'",
            ErrorKind.INVALID_PATH,
        )
    return paths.normalize(path)


def obstacle(base: NodeTable, changes: ChangeSet, source: str, target: str) -> IcechunkError | None:
    """Why a node cannot be moved between two canonical paths, as the error to raise; None when it can.

    Where the source is missing, that is a NodeNotFoundError; where something is at or below the target, an
    AlreadyExistsError; anything else a SessionStateError.
    """
    if find_node(base, changes, source) is None:
        return NodeNotFoundError(f"node not found at {source!r}: nothing to move. List what is there first")
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
    return _parent_obstacle(base, changes, target)


def _parent_obstacle(base: NodeTable, changes: ChangeSet, target: str) -> IcechunkError | None:
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
    """Move the node at one canonical path, and all below it, to another; ``changes`` is changed in place.

    Raises
    ------
    IcechunkError
        What :func:`obstacle` finds; nothing was changed.
    """
    error = obstacle(base, changes, source, target)
    if error is not None:
        raise error
    nodes = list(subtree(base, changes, source))
    changes.move_nodes(MoveStep(nodes[0].node_id, source, target), nodes)
