"""The tree of nodes as a session sees it: base snapshot ⊕ change set. Pure lookups.

The rule of the tree: members belong to groups, arrays have none. No node is made below an array, and no array where
members are already. Trees that another library wrote may break the rule; they are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

from icechunk_engine import paths
from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icechunk_engine.format.nodes import Node, NodeTable
from icechunk_engine.transaction.change_set import ChangeSet


def find_node(base: NodeTable, changes: ChangeSet, path: str) -> Node | None:
    """The node at a canonical path, in its present form; None if there is none."""
    node = changes.placed(path)
    if node is not None:
        return node
    row = base.find(path)
    return None if row < 0 else _present(base, changes, row)


def _present(base: NodeTable, changes: ChangeSet, row: int) -> Node | None:
    node = base.node(row)
    if changes.is_gone(node.node_id):
        return None
    return changes.updated_nodes.get(node.node_id, node)


def get_array(base: NodeTable, changes: ChangeSet, path: str) -> Node:
    """The array at a path.

    Raises
    ------
    NodeNotFoundError
        ``node-not-found``.
    InvalidInputError
        ``not-an-array``: there is a group.
    """
    node = find_node(base, changes, path)
    if node is None:
        raise NodeNotFoundError(
            f"node not found at {path!r}. Create the array first, or list what is there with session.store.list_dir",
            ErrorKind.NODE_NOT_FOUND,
        )
    if not node.is_array:
        raise InvalidInputError(f"there is not an array at {path!r}, but a group", ErrorKind.NOT_AN_ARRAY)
    return node


def children(base: NodeTable, changes: ChangeSet, path: str) -> list[Node]:
    """Nodes directly below a path, sorted by name."""
    found = [_present(base, changes, row) for row in base.children(path)]
    nodes = [node for node in found if node is not None]
    nodes.extend(changes.placed_children(path))
    return sorted(nodes, key=lambda node: node.path)


def child_names(base: NodeTable, changes: ChangeSet, path: str) -> list[str]:
    """Sorted names of what lies directly below a path: nodes, and groups that have members but no document."""
    names = {paths.name(node.path) for node in children(base, changes, path)}
    depth = 0 if path == paths.ROOT else path.count("/")
    for orphan in _orphans(base, changes):
        if orphan != path and paths.is_within(orphan, path):
            names.add(orphan.split("/")[depth + 1])
    return sorted(names)


def _orphans(base: NodeTable, changes: ChangeSet) -> Iterator[str]:
    for path in base.orphans:
        if find_node(base, changes, path) is not None:
            yield path
    for parent in changes.placed_parents():
        if parent != paths.ROOT and find_node(base, changes, parent) is None:
            yield from (node.path for node in changes.placed_children(parent))


def subtree(base: NodeTable, changes: ChangeSet, path: str) -> Iterator[Node]:
    """The node at a path and all below it, parents before children, siblings by name."""
    found = [_present(base, changes, row) for row in base.subtree(path)]
    nodes = [node for node in found if node is not None]
    nodes.extend(changes.placed_below(path))
    return iter(sorted(nodes, key=lambda node: paths.tree_order(node.path)))


def array_above(base: NodeTable, changes: ChangeSet, path: str) -> str | None:
    """Path of an array that is an ancestor of ``path``, if there is one (nothing may live below an array)."""
    for above in paths.ancestors(path):
        node = find_node(base, changes, above)
        if node is not None and node.is_array:
            return above
    return None


def misplaced(base: NodeTable, changes: ChangeSet, path: str, *, is_array: bool) -> str | None:
    """Why no such node may be made at a free path; None if it may."""
    above = array_above(base, changes, path)
    if above is not None:
        return f"{above!r} is an array, and arrays have no members. Choose a path below a group"
    if is_array:
        member = next(subtree(base, changes, path), None)
        if member is not None:
            return (
                f"{member.path!r} lies below that path, and arrays have no members. Delete what lies there first "
                f"(zarr does with overwrite=True), or choose another path"
            )
    return None
