"""Facts about two changes that cannot both stand, and the policies that settle them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import paths
from icechunk_engine.chunk_finder import ChunkFinder
from icechunk_engine.chunk_refs import DELETED, ChunkRefs
from icechunk_engine.columns import U32, lex_order, rows_differ
from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.format.transaction_log import TransactionLog
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet, ChunkEdits


class ConflictType(Enum):
    """Kinds of conflict between uncommitted edits (ours) and another commit (theirs)."""

    NewNodeConflictsWithExistingNode = (1,)
    NewNodeInInvalidGroup = (2,)
    ZarrMetadataDoubleUpdate = (3,)
    ZarrMetadataUpdateOfDeletedArray = (4,)
    ZarrMetadataUpdateOfDeletedGroup = (5,)
    ChunkDoubleUpdate = (6,)
    ChunksUpdatedInDeletedArray = (7,)
    ChunksUpdatedInUpdatedArray = (8,)
    DeleteOfUpdatedArray = (9,)
    DeleteOfUpdatedGroup = (10,)
    MoveOperationCannotBeRebased = (11,)


@dataclass(frozen=True, slots=True)
class Conflict:
    """One conflict: its kind, the node's path and, for chunk conflicts, the chunk indices."""

    conflict_type: ConflictType
    path: str
    conflicted_chunks: Sequence[Sequence[int]] | None = None

    def __str__(self) -> str:
        text = f"{self.conflict_type.name} at {self.path}"
        if self.conflicted_chunks:
            shown = ", ".join(str(tuple(index)) for index in self.conflicted_chunks[:5])
            more = len(self.conflicted_chunks) - 5
            text += f", chunks {shown}" + (f" and {more} more" if more > 0 else "")
        return text


class VersionSelection(Enum):
    """Whose chunk stays when both sides wrote it."""

    Fail = 0
    UseOurs = 1
    UseTheirs = 2


class ConflictSolver:
    """Base of the policies that a rebase may apply: which of our edits give way, and which conflicts remain."""

    def settle(self, conflicts: Sequence[Conflict]) -> list[Conflict]:
        """The conflicts that this policy cannot settle."""
        return list(conflicts)

    def chunks_of(self, conflict: Conflict) -> VersionSelection:
        """Whose chunks stay in a chunk conflict that was settled."""
        return VersionSelection.Fail


@dataclass(frozen=True, slots=True)
class ConflictDetector(ConflictSolver):
    """Report every conflict, settle none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicConflictSolver(ConflictSolver):
    """Settle chunk conflicts and deletions by rule; everything else fails.

    Parameters
    ----------
    on_chunk_conflict
        Both sides wrote the same chunk: keep ours (default), keep theirs, or fail.
    fail_on_delete_of_updated_array, fail_on_delete_of_updated_group
        We deleted what they changed: fail instead of deleting it all the same.
    """

    on_chunk_conflict: VersionSelection = VersionSelection.UseOurs
    fail_on_delete_of_updated_array: bool = False
    fail_on_delete_of_updated_group: bool = False

    def settle(self, conflicts: Sequence[Conflict]) -> list[Conflict]:
        """The conflicts that remain."""
        return [conflict for conflict in conflicts if not self._settles(conflict.conflict_type)]

    def _settles(self, kind: ConflictType) -> bool:
        if kind is ConflictType.ChunkDoubleUpdate:
            return self.on_chunk_conflict is not VersionSelection.Fail
        if kind is ConflictType.DeleteOfUpdatedArray:
            return not self.fail_on_delete_of_updated_array
        return kind is ConflictType.DeleteOfUpdatedGroup and not self.fail_on_delete_of_updated_group

    def chunks_of(self, conflict: Conflict) -> VersionSelection:
        """Whose chunks stay."""
        return self.on_chunk_conflict


def detect(ours: ChangeSet, our_base: NodeTable, theirs: TransactionLog, their_tree: NodeTable) -> list[Conflict]:
    """Every conflict between our edits and one commit of theirs.

    Parameters
    ----------
    ours, our_base
        Our change set and the nodes that it is based on.
    theirs, their_tree
        Their transaction log and the nodes after their commit.
    """
    if theirs.moved_nodes:
        return [Conflict(ConflictType.MoveOperationCannotBeRebased, theirs.moved_nodes[0].source)]
    touched = _Touched(theirs)
    return [
        *_new_node_conflicts(ours, our_base, touched, their_tree),
        *_update_conflicts(ours, touched),
        *_chunk_conflicts(ours, our_base, theirs, touched),
        *_delete_conflicts(ours, touched, their_tree),
    ]


class _Touched:
    """Node ids of one transaction log as sets."""

    def __init__(self, log: TransactionLog) -> None:
        self.new = _ids(log.new_groups) | _ids(log.new_arrays)
        self.updated = _ids(log.updated_groups) | _ids(log.updated_arrays)
        self.deleted = _ids(log.deleted_groups) | _ids(log.deleted_arrays)
        self.written = set(log.updated_chunks)


def _ids(rows: NDArray[np.uint8]) -> set[NodeId]:
    return {NodeId.from_row(row) for row in rows}


def _new_node_conflicts(
    ours: ChangeSet, our_base: NodeTable, touched: _Touched, their_tree: NodeTable
) -> Iterator[Conflict]:
    for path in sorted(ours.new_nodes):
        row = their_tree.find(path)
        if row >= 0 and their_tree.node(row).node_id not in ours.deleted_nodes:
            yield Conflict(ConflictType.NewNodeConflictsWithExistingNode, path)
        elif _has_bad_ancestor(path, ours, our_base, touched, their_tree):
            yield Conflict(ConflictType.NewNodeInInvalidGroup, path)
    our_arrays = {path for path, node in ours.new_nodes.items() if node.is_array}
    for node_id in touched.new if our_arrays else ():
        row = their_tree.row_of_id(node_id)
        if row >= 0 and not our_arrays.isdisjoint(paths.ancestors(their_tree.path(row))):
            yield Conflict(ConflictType.NewNodeInInvalidGroup, their_tree.path(row))


def _has_bad_ancestor(
    path: str, ours: ChangeSet, our_base: NodeTable, touched: _Touched, their_tree: NodeTable
) -> bool:
    """True when something above our new node is an array in their tree, or a group that they deleted."""
    for above in paths.ancestors(path):
        if above in ours.new_nodes:
            continue
        row = their_tree.find(above)
        if row >= 0:
            node = their_tree.node(row)
            if node.is_array and node.node_id not in ours.deleted_nodes:
                return True
            continue
        base_row = our_base.find(above)
        if base_row >= 0 and our_base.node(base_row).node_id in touched.deleted:
            return True
    return False


def _update_conflicts(ours: ChangeSet, touched: _Touched) -> Iterator[Conflict]:
    for node_id, node in ours.updated_nodes.items():
        if node_id in touched.updated:
            yield Conflict(ConflictType.ZarrMetadataDoubleUpdate, node.path)
        elif node_id in touched.deleted:
            yield Conflict(
                ConflictType.ZarrMetadataUpdateOfDeletedArray
                if node.is_array
                else ConflictType.ZarrMetadataUpdateOfDeletedGroup,
                node.path,
            )


def _chunk_conflicts(
    ours: ChangeSet, our_base: NodeTable, theirs: TransactionLog, touched: _Touched
) -> Iterator[Conflict]:
    for node_id, edits in ours.chunks.items():
        row = our_base.row_of_id(node_id)
        if row < 0 or not edits:
            continue
        path = our_base.path(row)
        if node_id in touched.deleted:
            yield Conflict(ConflictType.ChunksUpdatedInDeletedArray, path)
            continue
        if node_id in touched.updated:
            yield Conflict(ConflictType.ChunksUpdatedInUpdatedArray, path)
        if node_id in touched.written:
            both = common_rows(edits.collapse().indices, theirs.updated_chunks[node_id])
            if len(both):
                yield Conflict(ConflictType.ChunkDoubleUpdate, path, both.tolist())


def _delete_conflicts(ours: ChangeSet, touched: _Touched, their_tree: NodeTable) -> Iterator[Conflict]:
    for node_id, node in ours.deleted_nodes.items():
        if node.is_array:
            if node_id in touched.updated or node_id in touched.written:
                yield Conflict(ConflictType.DeleteOfUpdatedArray, node.path)
        elif node_id in touched.updated or any(
            their_tree.row_of_id(new) >= 0 and paths.is_within(their_tree.path(their_tree.row_of_id(new)), node.path)
            for new in touched.new
        ):
            yield Conflict(ConflictType.DeleteOfUpdatedGroup, node.path)


def common_rows(one: U32, other: U32) -> U32:
    """Rows that stand in both of two arrays of chunk indices, sorted."""
    if one.shape[1] != other.shape[1]:
        return one[:0]
    if one.shape[1] == 0:
        return one[: min(1, len(one), len(other))]
    stacked = np.concatenate([_distinct(one), _distinct(other)])
    stacked = stacked[lex_order(stacked)]
    return stacked[:-1][~rows_differ(stacked)] if len(stacked) > 1 else stacked[:0]


def _distinct(rows: U32) -> U32:
    ordered = rows[lex_order(rows)]
    return ordered[np.append(rows_differ(ordered), True)] if len(ordered) > 1 else ordered


def rebased(ours: ChangeSet, conflicts: Sequence[Conflict], solver: ConflictSolver, tree: NodeTable) -> ChangeSet:
    """Our edits on top of their tree, after all conflicts were settled.

    Nodes that we changed or deleted are taken in their form of ``tree``; what they deleted too is forgotten.
    """
    result = ours.copy()
    for conflict in conflicts:
        both_wrote = conflict.conflict_type is ConflictType.ChunkDoubleUpdate
        if both_wrote and solver.chunks_of(conflict) is VersionSelection.UseTheirs:
            _give_way(result, tree, conflict)
    for node_id, node in list(result.updated_nodes.items()):
        theirs = tree.node(tree.row_of_id(node_id))
        result.updated_nodes[node_id] = replace(theirs, user_data=node.user_data, shape=node.shape)
    for node_id, node in list(result.deleted_nodes.items()):
        del result.deleted_nodes[node_id]
        for row in () if node.path in result.new_nodes else tree.subtree(node.path):
            below = tree.node(row)
            result.deleted_nodes[below.node_id] = below
        row = tree.row_of_id(node_id)
        if row >= 0:
            result.deleted_nodes[node_id] = tree.node(row)
    return result


def _give_way(changes: ChangeSet, tree: NodeTable, conflict: Conflict) -> None:
    """Drop our edits of the chunks that both sides wrote."""
    node_id = tree.node(tree.find(conflict.path)).node_id
    edits = changes.chunks[node_id].collapse()
    lost = np.asarray(conflict.conflicted_chunks, np.uint32).reshape(-1, edits.ndim)
    kept = edits.take(ChunkFinder(ChunkRefs.build(lost, DELETED).latest()).find_many(edits.indices) < 0)
    changes.chunks[node_id] = ChunkEdits(edits.ndim)
    changes.chunks[node_id].set_many(kept)
