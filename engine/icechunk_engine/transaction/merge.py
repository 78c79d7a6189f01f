"""Merge a fork's edits into the change set of the session that it came from. Pure.

A fork starts from the state that its parent saw. So both know a node by the same id, whether it is in their common
base or the parent created it before the fork. Three rules decide:

- *Nodes*: two forks may make the same edit twice, because schedulers retry and duplicate tasks. Two different edits of
  one node are an error: the result would depend on the order of the merges.
- *Chunks*: the fork that is merged last wins. Tasks that ran twice wrote the same values.
- *Nodes that two forks created at one path* have two ids. If their metadata is equal, the first one stays and the
  chunks of the second go to it.

The merge relies on the common start. In unrelated sessions, one path can be two different nodes, so
:meth:`Session.merge <icechunk_engine.Session.merge>` refuses forks of another session or another base first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.format.nodes import Node, NodeTable
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.hierarchy import find_node, placement_problem


def merge_fork(
    base: NodeTable,
    into: ChangeSet,
    fork_base: NodeTable,
    fork: ChangeSet,
    revisions: Mapping[NodeId, int],
) -> None:
    """Apply a fork's edits to ``into`` in place. After an error ``into`` is half changed, so pass a copy.

    Parameters
    ----------
    base, into
        Base nodes and change set of the session that receives the edits.
    fork_base, fork
        The nodes that the fork started from, and its change set.
    revisions
        Revisions of the receiver's chunk edits when the fork was made, by array. They tell whether a chunk was written
        after that.

    Raises
    ------
    SessionStateError
        ``merge-failed``: both changed one node. The error names it.
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
        return  # deleted and created again here
    # Chunks that the fork itself saw are meant by its deletion. Later ones were written by somebody else.
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
            raise _disagreement(node.path, "was created in a fork, and another node is at that path")
        return present
    if placement_problem(base, into, node.path, is_array=node.is_array) is not None:
        raise _disagreement(
            node.path, "would be an array with members: one fork created the array, another one a node below it"
        )
    into.add_node(node)
    return None


def _merge_update(base: NodeTable, into: ChangeSet, fork_base: NodeTable, node: Node) -> None:
    present = find_node(base, into, node.path)
    if present is None or present.node_id != node.node_id:
        raise _disagreement(node.path, "was changed in a fork and deleted elsewhere")
    if present.user_data == node.user_data:
        return
    # The change applies if the node is still as the fork found it.
    row = fork_base.find(node.path)
    before = fork_base.node(row) if row >= 0 else None
    if before is None or before.user_data != present.user_data:
        raise _disagreement(node.path, "has metadata that two forks changed to different values")
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
        f"cannot merge: node {path!r} {what}. The session is as it was before the merge. Change a node in one place "
        f"only: in one fork, or in the session before or after the parallel work",
        ErrorKind.MERGE_FAILED,
    )
