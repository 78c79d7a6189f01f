"""Find the conflicts between our edits and their commits. Pure.

*Ours* are the uncommitted edits of a session. *Theirs* are the commits that reached the branch first. Two sources
describe their changes, and the detection needs both:

- *Their tree*, the nodes after their last commit, decides whether our edits still have a place. It is what our edits
  will be applied to, so it is always right.
- *Their transaction logs* say which commit did what, and which metadata and chunks changed. The tree does not show
  that.

Logs can be incomplete: other libraries write them, too, and a branch may have been reset in between. So :func:`detect`
looks for conflicts commit by commit, and :func:`detect_unlogged` looks once more in the tree alone, as if any node
might be new or deleted. Only a log shows who overwrote a chunk or changed metadata, so a rebase refuses to go on if
one is lost (:mod:`icechunk_engine.transaction.rebase`).

The detection must find everything that would break the rules of a replay (:mod:`icechunk_engine.transaction.replay`),
which does not check again. A new kind of edit therefore needs its conflict here, or it can land on a node that no
longer exists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from icechunk_engine import paths
from icechunk_engine.columns.tables import U8, U32, distinct_rows, lex_order, rows_differ
from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.format.transaction_log import TransactionLog
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.conflicts import Conflict, ConflictType
from icechunk_engine.transaction.replay import added_below, is_same_new_group, replay_moves


class _AllNodeIds(Collection[NodeId]):
    """The set of all node ids."""

    def __contains__(self, item: object) -> bool:
        return True

    def __iter__(self) -> Iterator[NodeId]:
        raise TypeError("all ids cannot be listed")

    def __len__(self) -> int:
        raise TypeError("all ids cannot be counted")


@dataclass(frozen=True, slots=True)
class _TheirEdits:
    """The nodes that one commit changed, and the chunks."""

    new: Collection[NodeId]
    deleted: Collection[NodeId]
    updated: Collection[NodeId]
    chunks: dict[NodeId, U32]


_ANY_EDITS = _TheirEdits(new=_AllNodeIds(), deleted=_AllNodeIds(), updated=frozenset(), chunks={})
"""The edits of a commit without a log: any node may be new or deleted. The tree decides which ones are."""


def _edits_in(log: TransactionLog) -> _TheirEdits:
    return _TheirEdits(
        new=_ids(log.new_groups) | _ids(log.new_arrays),
        deleted=_ids(log.deleted_groups) | _ids(log.deleted_arrays),
        updated=_ids(log.updated_groups) | _ids(log.updated_arrays),
        chunks=log.updated_chunks,
    )


def _ids(rows: U8) -> set[NodeId]:
    return {NodeId.from_row(row) for row in rows}


def inverse_log(log: TransactionLog) -> TransactionLog:
    """Return the log of taking a commit back, for a branch that was reset or amended."""
    return replace(
        log,
        new_groups=log.deleted_groups,
        new_arrays=log.deleted_arrays,
        deleted_groups=log.new_groups,
        deleted_arrays=log.new_arrays,
    )


def detect(ours: ChangeSet, our_base: NodeTable, theirs: TransactionLog, their_tree: NodeTable) -> list[Conflict]:
    """Find every conflict between our edits and one commit of theirs.

    Parameters
    ----------
    ours, our_base
        Our change set and the nodes that it is based on.
    theirs, their_tree
        The transaction log of their commit, and the nodes after the last of their commits.
    """
    if theirs.moved_nodes:
        # Our new nodes are known by their paths, and after a move other nodes may be at these paths.
        return [Conflict(ConflictType.MoveOperationCannotBeRebased, theirs.moved_nodes[0].source)]
    their_edits = _edits_in(theirs)
    return [
        *_detect(ours, our_base, their_edits, their_tree),
        *(
            conflict
            for conflict in replay_moves(ours, their_tree)[1]
            if _may_have_caused(their_edits, conflict.path, our_base, their_tree)
        ),
    ]


def _may_have_caused(their_edits: _TheirEdits, path: str, our_base: NodeTable, their_tree: NodeTable) -> bool:
    """Return True if a commit added or deleted a node at, above or below a path."""
    rows = [their_tree.find(above) for above in paths.ancestors(path)] + list(their_tree.subtree(path))
    base_rows = [our_base.find(above) for above in (path, *paths.ancestors(path))]
    return any(row >= 0 and their_tree.node_id(row) in their_edits.new for row in rows) or any(
        row >= 0 and our_base.node_id(row) in their_edits.deleted for row in base_rows
    )


def detect_unlogged(ours: ChangeSet, our_base: NodeTable, their_tree: NodeTable) -> list[Conflict]:
    """Find conflicts between our edits and their tree, without their logs."""
    return [*_detect(ours, our_base, _ANY_EDITS, their_tree), *replay_moves(ours, their_tree)[1]]


def _detect(ours: ChangeSet, our_base: NodeTable, their_edits: _TheirEdits, their_tree: NodeTable) -> list[Conflict]:
    return [
        *_new_node_conflicts(ours, our_base, their_edits, their_tree),
        *_update_conflicts(ours, their_edits, their_tree),
        *_chunk_conflicts(ours, our_base, their_edits, their_tree),
        *_delete_conflicts(ours, our_base, their_edits, their_tree),
    ]


def _new_node_conflicts(
    ours: ChangeSet, our_base: NodeTable, their_edits: _TheirEdits, their_tree: NodeTable
) -> Iterator[Conflict]:
    # A node of theirs that we delete is not in our way: our edits replace it.
    for path, node in sorted(ours.new_nodes.items()):
        row = their_tree.find(path)
        if row >= 0 and _stays(ours, their_edits.new, their_tree, row):
            if not is_same_new_group(node, our_base, their_tree):
                yield Conflict(ConflictType.NewNodeConflictsWithExistingNode, path)
        elif _has_bad_ancestor(path, ours, our_base, their_edits, their_tree):
            yield Conflict(ConflictType.NewNodeInInvalidGroup, path)
        if node.is_array:  # an array has no members, so nothing of theirs may be below it
            for below in their_tree.subtree(path):
                if below != row and _stays(ours, their_edits.new, their_tree, below):
                    yield Conflict(ConflictType.NewNodeInInvalidGroup, their_tree.path(below))


def _stays(ours: ChangeSet, candidates: Collection[NodeId], their_tree: NodeTable, row: int) -> bool:
    """Return True if a node of theirs is one of the candidates and we do not delete it."""
    node_id = their_tree.node_id(row)
    return node_id in candidates and node_id not in ours.deleted_nodes


def _has_bad_ancestor(
    path: str, ours: ChangeSet, our_base: NodeTable, their_edits: _TheirEdits, their_tree: NodeTable
) -> bool:
    """Return True if a node above our new one is an array in their tree, or a group that they deleted."""
    for above in paths.ancestors(path):
        if above in ours.new_nodes:
            continue
        row = their_tree.find(above)
        if row >= 0:
            if their_tree.is_array[row] and _stays(ours, their_edits.new, their_tree, row):
                return True
            continue
        base_row = our_base.find(above)
        if base_row >= 0:
            base_id = our_base.node_id(base_row)
            if base_id in their_edits.deleted and base_id not in ours.deleted_nodes:
                return True
    return False


def _update_conflicts(ours: ChangeSet, their_edits: _TheirEdits, their_tree: NodeTable) -> Iterator[Conflict]:
    for node_id, node in ours.updated_nodes.items():
        if node_id in their_edits.updated:
            yield Conflict(ConflictType.ZarrMetadataDoubleUpdate, node.path)
        elif node_id in their_edits.deleted and their_tree.row_of_id(node_id) < 0:
            # The log alone does not suffice: a later commit may have undone the deletion.
            yield Conflict(
                ConflictType.ZarrMetadataUpdateOfDeletedArray
                if node.is_array
                else ConflictType.ZarrMetadataUpdateOfDeletedGroup,
                node.path,
            )


def _chunk_conflicts(
    ours: ChangeSet, our_base: NodeTable, their_edits: _TheirEdits, their_tree: NodeTable
) -> Iterator[Conflict]:
    for node_id, edits in ours.chunks.items():
        row = our_base.row_of_id(node_id)
        if row < 0 or not edits:
            continue  # nobody else can know an array that we created
        path = our_base.path(row)
        if node_id in their_edits.deleted and their_tree.row_of_id(node_id) < 0:
            yield Conflict(ConflictType.ChunksUpdatedInDeletedArray, path)
            continue
        if node_id in their_edits.updated:
            yield Conflict(ConflictType.ChunksUpdatedInUpdatedArray, path)
        if node_id in their_edits.chunks:
            both = common_rows(edits.collapse().indices, their_edits.chunks[node_id])
            if len(both):
                yield Conflict(ConflictType.ChunkDoubleUpdate, path, both.tolist())


def _delete_conflicts(
    ours: ChangeSet, our_base: NodeTable, their_edits: _TheirEdits, their_tree: NodeTable
) -> Iterator[Conflict]:
    for node_id, node in ours.deleted_nodes.items():
        if their_tree.row_of_id(node_id) < 0:
            continue  # both deleted it
        if node.is_array:
            if node_id in their_edits.updated or node_id in their_edits.chunks:
                yield Conflict(ConflictType.DeleteOfUpdatedArray, node.path)
        elif node_id in their_edits.updated or any(
            new_id in their_edits.new for new_id in added_below(node.path, our_base, their_tree)
        ):
            yield Conflict(ConflictType.DeleteOfUpdatedGroup, node.path)


def common_rows(one: U32, other: U32) -> U32:
    """Return the rows that two arrays of chunk indices have in common, sorted."""
    if one.shape[1] != other.shape[1]:
        return one[:0]
    if one.shape[1] == 0:
        return one[: min(1, len(one), len(other))]
    stacked = np.concatenate([distinct_rows(one), distinct_rows(other)])
    stacked = stacked[lex_order(stacked)]
    return stacked[:-1][~rows_differ(stacked)] if len(stacked) > 1 else stacked[:0]
