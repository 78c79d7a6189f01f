"""Bring a fork's edits into the change set of the session it came from. Pure.

A fork starts from what its parent saw. Its edits are therefore facts about nodes that the parent knows too, by id:
created there before the fork, or in the shared base. Two workers may say the same thing twice; saying different things
about one node is an error. For chunks the last one merged wins: retried and duplicated tasks write the same value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.format.nodes import Node, NodeTable
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.hierarchy import find_node, misplaced


def merge_fork(
    base: NodeTable,
    into: ChangeSet,
    fork_base: NodeTable,
    fork: ChangeSet,
    revisions: Mapping[NodeId, int],
) -> None:
    """Apply a fork's edits to ``into`` in place; on an error ``into`` is half changed, so pass a copy.

    Parameters
    ----------
    base, into
        The receiving session: its base nodes and its change set.
    fork_base, fork
        The fork: the nodes that it started from and what it changed.
    revisions
        Revision of the receiver's chunk edits when the fork was made, by array.

    Raises
    ------
    SessionStateError
        ``merge-failed``, naming the node about which the two disagree.
    """
    for node in fork.deleted_nodes.values():
        _merge_deletion(base, into, node, revisions)
    twins: dict[NodeId, Node] = {}
    for node in fork.new_nodes.values():
        twin = _merge_new_node(base, into, node)
        if twin is not None:
            twins[node.node_id] = twin
    for node in fork.updated_nodes.values():
        _merge_update(base, into, fork_base, node)
    for node_id, edits in fork.chunks.items():
        if not edits:
            continue
        target = twins.get(node_id) or _array_by_id(base, into, fork_base, fork, node_id)
        into.edits_of(target).set_many(edits.collapse())


def _merge_deletion(base: NodeTable, into: ChangeSet, node: Node, revisions: Mapping[NodeId, int]) -> None:
    present = find_node(base, into, node.path)
    if present is None:
        return  # deleted here too
    if present.node_id != node.node_id:
        return  # deleted and made anew here
    edits = into.chunks.get(node.node_id)
    written = edits is not None and edits.revision > revisions.get(node.node_id, 0)
    if written or present.user_data != node.user_data:
        raise _disagreement(node.path, "was deleted in one fork and changed elsewhere")
    into.delete_node(present)


def _merge_new_node(base: NodeTable, into: ChangeSet, node: Node) -> Node | None:
    present = find_node(base, into, node.path)
    if present is not None:
        same = present.user_data == node.user_data and node.path in into.new_nodes
        if not same:
            raise _disagreement(node.path, "was created in a fork, and there is another node at that path")
        return present
    if misplaced(base, into, node.path, is_array=node.is_array) is not None:
        raise _disagreement(
            node.path, "would be an array with members: one fork made the array, another what lies in it"
        )
    into.add_node(node)
    return None


def _merge_update(base: NodeTable, into: ChangeSet, fork_base: NodeTable, node: Node) -> None:
    present = find_node(base, into, node.path)
    if present is None or present.node_id != node.node_id:
        raise _disagreement(node.path, "was changed in a fork and deleted elsewhere")
    if present.user_data == node.user_data:
        return
    row = fork_base.find(node.path)
    before = fork_base.node(row) if row >= 0 else None
    if before is None or before.user_data != present.user_data:
        raise _disagreement(node.path, "has metadata that was changed in two places to different values")
    into.update_node(replace(present, user_data=node.user_data, shape=node.shape))


def _array_by_id(base: NodeTable, into: ChangeSet, fork_base: NodeTable, fork: ChangeSet, node_id: NodeId) -> Node:
    path = next((node.path for node in fork.new_nodes.values() if node.node_id == node_id), None)
    if path is None:
        row = fork_base.row_of_id(node_id)
        path = fork_base.path(row) if row >= 0 else None
    node = find_node(base, into, path) if path is not None else None
    if node is None or node.node_id != node_id:
        raise _disagreement(path or str(node_id), "has chunks written in a fork and was deleted elsewhere")
    return node


def _disagreement(path: str, what: str) -> SessionStateError:
    return SessionStateError(
        f"cannot merge: node {path!r} {what}. The session is as it was before the merge; let one fork alone change "
        f"a node's metadata, before or after the parallel part",
        ErrorKind.MERGE_FAILED,
    )
