"""Look up nodes in the tree that a session sees: the base snapshot with the change set on top. Pure.

The rule of the tree: only groups have members. A session does not create a node below an array, or an array at a path
that has members. Trees that another library wrote may break the rule; they are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from icechunk_engine import paths
from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icechunk_engine.format.nodes import Node, NodeTable
from icechunk_engine.transaction.change_set import ChangeSet


def find_node(base: NodeTable, changes: ChangeSet, path: str) -> Node | None:
    """Return the node at a canonical path with all edits; None if the path has no node."""
    node = changes.placed(path)
    if node is not None:
        return node
    row = base.find(path)
    return None if row < 0 else _with_edits(base, changes, row)


def _with_edits(base: NodeTable, changes: ChangeSet, row: int) -> Node | None:
    node = base.node(row)
    if changes.left_its_path(node.node_id):
        return None
    return changes.updated_nodes.get(node.node_id, node)


def get_array(base: NodeTable, changes: ChangeSet, path: str) -> Node:
    """Return the array at a path.

    Raises
    ------
    NodeNotFoundError
        ``node-not-found``.
    InvalidInputError
        ``not-an-array``: the node is a group.
    """
    node = find_node(base, changes, path)
    if node is None:
        raise NodeNotFoundError(
            f"node not found at {path!r}. Create the array first, or list the nodes with session.store.list_dir",
            ErrorKind.NODE_NOT_FOUND,
        )
    if not node.is_array:
        raise InvalidInputError(f"there is not an array at {path!r}, but a group", ErrorKind.NOT_AN_ARRAY)
    return node


def children(base: NodeTable, changes: ChangeSet, path: str) -> list[Node]:
    """Return the nodes directly below a path, sorted by name."""
    found = [_with_edits(base, changes, row) for row in base.children(path)]
    nodes = [node for node in found if node is not None]
    nodes.extend(changes.placed_children(path))
    return sorted(nodes, key=lambda node: node.path)


def child_names(base: NodeTable, changes: ChangeSet, path: str) -> list[str]:
    """Return the sorted names directly below a path: nodes, and groups that have members but no metadata document."""
    names = {paths.name(node.path) for node in children(base, changes, path)}
    depth = 0 if path == paths.ROOT else path.count("/")
    for orphan in _orphans(base, changes):
        if orphan != path and paths.is_within(orphan, path):
            names.add(orphan.split("/")[depth + 1])
    return sorted(names)


def _orphans(base: NodeTable, changes: ChangeSet) -> Iterator[str]:
    """Yield the paths of nodes whose parent does not exist."""
    for path in base.orphans:
        if find_node(base, changes, path) is not None:
            yield path
    for parent in changes.placed_parents():
        if parent != paths.ROOT and find_node(base, changes, parent) is None:
            yield from (node.path for node in changes.placed_children(parent))


def subtree(base: NodeTable, changes: ChangeSet, path: str) -> Iterator[Node]:
    """Return the node at a path and all nodes below it, parents before children, siblings by name."""
    found = [_with_edits(base, changes, row) for row in base.subtree(path)]
    nodes = [node for node in found if node is not None]
    nodes.extend(changes.placed_below(path))
    return iter(sorted(nodes, key=lambda node: paths.tree_order(node.path)))


def array_above(base: NodeTable, changes: ChangeSet, path: str) -> str | None:
    """Return the path of an array above ``path``; None if no ancestor is an array."""
    for above in paths.ancestors(path):
        node = find_node(base, changes, above)
        if node is not None and node.is_array:
            return above
    return None


def placement_problem(base: NodeTable, changes: ChangeSet, path: str, *, is_array: bool) -> str | None:
    """Return the reason why a node may not be created at a free path; None if it may."""
    above = array_above(base, changes, path)
    if above is not None:
        return f"{above!r} is an array, and arrays have no members. Choose a path below a group"
    if is_array:
        member = next(subtree(base, changes, path), None)
        if member is not None:
            return (
                f"{member.path!r} lies below that path, and arrays have no members. Delete it first (zarr does with "
                f"overwrite=True), or choose another path"
            )
    return None
