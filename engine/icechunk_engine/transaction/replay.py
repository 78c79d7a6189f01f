"""Replay the edits of a session on another tree. Pure.

Invariant of the result: every edit belongs to a node of the tree, no path has two nodes, and nothing lies below an
array or a deleted group. Edits of nodes hold for another tree without a change, because they are kept by node id; only
deletions and metadata must take over the form that the tree gives the node. Moves are different: where a node ends
depends on the moves before. So they are made again, one after the other, and each can fail.

:func:`replay_edits` relies on the conflict detection (:mod:`icechunk_engine.transaction.conflict_detection`) to have
found everything that would break these rules, and on a solver to have settled it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from icechunk_engine.columns.chunk_finder import ChunkFinder
from icechunk_engine.columns.chunk_refs import DELETED, ChunkRefs
from icechunk_engine.errors import AlreadyExistsError, SessionStateError
from icechunk_engine.format.nodes import Node, NodeTable
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet, ChunkEdits
from icechunk_engine.transaction.conflicts import Conflict, ConflictSolver, ConflictType, VersionSelection
from icechunk_engine.transaction.hierarchy import find_node
from icechunk_engine.transaction.node_moves import move, move_error


def replay_moves(ours: ChangeSet, tree: NodeTable) -> tuple[ChangeSet, list[Conflict]]:
    """Make our moves on another tree, in the order in which they were made; return them and the failed ones."""
    replayed = ChangeSet()
    conflicts: list[Conflict] = []
    for step in ours.moves:
        node = find_node(tree, replayed, step.source)
        if node is None or node.node_id != step.node_id:
            conflicts.append(Conflict(ConflictType.MoveOperationCannotBeRebased, step.source))
            continue
        error = move_error(tree, replayed, step.source, step.target)
        if error is None:
            move(tree, replayed, step.source, step.target)
        elif isinstance(error, AlreadyExistsError):
            conflicts.append(Conflict(ConflictType.NewNodeConflictsWithExistingNode, step.target))
        else:
            assert isinstance(error, SessionStateError)
            conflicts.append(Conflict(ConflictType.NewNodeInInvalidGroup, step.target))
    return replayed, conflicts


def replay_edits(
    ours: ChangeSet, our_base: NodeTable, conflicts: Sequence[Conflict], solver: ConflictSolver, tree: NodeTable
) -> ChangeSet:
    """Return our edits on top of their tree, after the solver settled all conflicts.

    A node that we changed gets our metadata and keeps the manifests that ``tree`` gives it. If both sides deleted a
    node, our deletion is dropped. If we deleted a group, the nodes that they added to it are deleted, too. If both
    sides created the same group, theirs stays, and our nodes below it go into theirs.
    """
    if ours.moves:
        return replay_moves(ours, tree)[0]
    result = ours.copy()
    for node in ours.new_nodes.values():
        if is_same_new_group(node, our_base, tree):
            result.delete_node(node)
    for conflict in conflicts:
        both_wrote = conflict.conflict_type is ConflictType.ChunkDoubleUpdate
        if both_wrote and solver.chunks_of(conflict) is VersionSelection.UseTheirs:
            _drop_conflicted_chunks(result, our_base, conflict)
    for node_id, node in ours.updated_nodes.items():
        theirs = tree.node(tree.row_of_id(node_id))
        result.updated_nodes[node_id] = replace(theirs, user_data=node.user_data, shape=node.shape)
    result.deleted_nodes.clear()
    for node_id, node in ours.deleted_nodes.items():
        row = tree.row_of_id(node_id)
        if row < 0:
            continue
        result.deleted_nodes[node_id] = tree.node(row)
        if node.path not in result.new_nodes:  # else a new node took the place, and theirs may stay below it
            for added_id in added_below(node.path, our_base, tree):
                result.deleted_nodes[added_id] = tree.node(tree.row_of_id(added_id))
    return result


def _drop_conflicted_chunks(changes: ChangeSet, our_base: NodeTable, conflict: Conflict) -> None:
    """Drop our edits of the chunks that both sides wrote."""
    node_id = our_base.node_id(our_base.find(conflict.path))
    edits, sources = changes.chunks[node_id].collapse_with_sources()
    dropped = np.asarray(conflict.conflicted_chunks, np.uint32).reshape(-1, edits.ndim)
    kept = ChunkFinder(ChunkRefs.build(dropped, DELETED).latest()).find_many(edits.indices) < 0
    changes.chunks[node_id] = ChunkEdits(edits.ndim)
    changes.chunks[node_id].set_many(edits.take(kept), sources[kept])


def is_same_new_group(node: Node, our_base: NodeTable, their_tree: NodeTable) -> bool:
    """Return True if a new node of ours is a group that they created, too, with the same metadata.

    Keeping one of the two loses nothing, because a group has no content besides its metadata.

    Two arrays with the same metadata are not the same. Each side may have written fill values over chunks of the
    other: a new array has no edit for a chunk that holds only fill values, so nobody would notice. A group that
    replaced a node of the base is not the same either, because its writer also meant to remove all members.
    """
    row = their_tree.find(node.path)
    if row < 0 or node.is_array or their_tree.is_array[row] or our_base.find(node.path) >= 0:
        return False
    was_moved_there = our_base.row_of_id(their_tree.node_id(row)) >= 0
    return not was_moved_there and their_tree.node(row).user_data == node.user_data


def added_below(path: str, our_base: NodeTable, their_tree: NodeTable) -> Iterator[NodeId]:
    """Yield the nodes that they added at or below a path."""
    for row in their_tree.subtree(path):
        node_id = their_tree.node_id(row)
        if our_base.row_of_id(node_id) < 0:
            yield node_id
