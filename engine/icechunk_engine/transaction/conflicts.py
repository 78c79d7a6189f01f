"""Find conflicts between two changes, apply the policies that settle them, and replay edits on another tree. Pure.

*Ours* are the uncommitted edits of a session. *Theirs* are the commits that reached the branch first. Two sources tell
what they did, and each has a part that the other cannot play:

- *Their tree*, the nodes after their last commit, decides whether our edits still have a place. It is what our edits
  will be applied to, so it is always right.
- *Their transaction logs* say which commit did what, and which metadata and chunks changed. The tree does not show
  that.

Logs can be incomplete: other libraries write them, too, and a branch may have been reset in between. So :func:`detect`
looks for conflicts commit by commit, and :func:`detect_unlogged` looks once more in the tree alone, as if any node
might be new or deleted. Only a log shows who overwrote a chunk or changed metadata, so a rebase refuses to go on if
one is lost (:mod:`icechunk_engine.transaction.rebase`).

What is always true after a rebase: every edit belongs to a node that exists, no path has two nodes, and nothing lies
below an array or a deleted group. :func:`replay_edits` relies on the detection for this and does not check again. A
new kind of edit therefore needs its conflict here, or it can land on a node that no longer exists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from icechunk_engine import paths
from icechunk_engine.columns.chunk_finder import ChunkFinder
from icechunk_engine.columns.chunk_refs import DELETED, ChunkRefs
from icechunk_engine.columns.tables import U8, U32, distinct_rows, lex_order, rows_differ
from icechunk_engine.errors import AlreadyExistsError, SessionStateError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.format.transaction_log import TransactionLog
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet, ChunkEdits
from icechunk_engine.transaction.hierarchy import find_node
from icechunk_engine.transaction.node_moves import move, move_error
from icechunk_engine.types import NumberedEnum


class ConflictType(NumberedEnum):
    """Kinds of conflict between uncommitted edits (ours) and another commit (theirs)."""

    NewNodeConflictsWithExistingNode = 1
    NewNodeInInvalidGroup = 2
    ZarrMetadataDoubleUpdate = 3
    ZarrMetadataUpdateOfDeletedArray = 4
    ZarrMetadataUpdateOfDeletedGroup = 5
    ChunkDoubleUpdate = 6
    ChunksUpdatedInDeletedArray = 7
    ChunksUpdatedInUpdatedArray = 8
    DeleteOfUpdatedArray = 9
    DeleteOfUpdatedGroup = 10
    MoveOperationCannotBeRebased = 11

    def __repr__(self) -> str:
        return self.name

    def __str__(self) -> str:
        """Return the name in words."""
        return (
            "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in self.name).strip().capitalize()
        )


SOLVABLE = frozenset(
    {ConflictType.ChunkDoubleUpdate, ConflictType.DeleteOfUpdatedArray, ConflictType.DeleteOfUpdatedGroup}
)
"""The conflicts that a solver may settle. In all others, the edits of one side have no place to go."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One conflict: its kind, the node's path and, for chunk conflicts, the chunk indices."""

    conflict_type: ConflictType
    path: str
    conflicted_chunks: Sequence[Sequence[int]] | None = None

    def __repr__(self) -> str:
        return (
            f"Conflict(ConflictType.{self.conflict_type.name}, {self.path!r}, "
            f"conflicted_chunks={self.conflicted_chunks!r})"
        )

    def __str__(self) -> str:
        text = f"{self.conflict_type.name} at {self.path}"
        if self.conflicted_chunks:
            shown = ", ".join(str(tuple(index)) for index in self.conflicted_chunks[:5])
            more = len(self.conflicted_chunks) - 5
            text += f", chunks {shown}" + (f" and {more} more" if more > 0 else "")
        return text


class VersionSelection(NumberedEnum):
    """Whose chunk stays if both sides wrote it."""

    Fail = 0
    UseOurs = 1
    UseTheirs = 2


class ConflictSolver:
    """Base class of the policies of a rebase. A policy decides which conflicts it settles, and whose chunks stay."""

    def settle(self, conflicts: Sequence[Conflict]) -> list[Conflict]:
        """Return the conflicts that this policy does not settle. All given ones are :data:`SOLVABLE`."""
        return list(conflicts)

    def chunks_of(self, conflict: Conflict) -> VersionSelection:
        """Return whose chunks stay in a chunk conflict that this policy settles."""
        return VersionSelection.Fail


@dataclass(frozen=True, slots=True)
class ConflictDetector(ConflictSolver):
    """Report every conflict and settle none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicConflictSolver(ConflictSolver):
    """Settle chunk conflicts and deletions by rule. All other conflicts fail.

    Parameters
    ----------
    on_chunk_conflict
        What to do if both sides wrote the same chunk: keep ours (default), keep theirs, or fail.
    fail_on_delete_of_updated_array, fail_on_delete_of_updated_group
        Fail if we deleted a node that they changed. By default, the node is deleted.
    """

    on_chunk_conflict: VersionSelection = VersionSelection.UseOurs
    fail_on_delete_of_updated_array: bool = False
    fail_on_delete_of_updated_group: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.on_chunk_conflict, VersionSelection):
            raise TypeError(f"on_chunk_conflict must be a VersionSelection, not {describe(self.on_chunk_conflict)}")

    def settle(self, conflicts: Sequence[Conflict]) -> list[Conflict]:
        """Return the conflicts that remain."""
        return [conflict for conflict in conflicts if not self._settles(conflict.conflict_type)]

    def _settles(self, kind: ConflictType) -> bool:
        if kind is ConflictType.ChunkDoubleUpdate:
            return self.on_chunk_conflict is not VersionSelection.Fail
        if kind is ConflictType.DeleteOfUpdatedArray:
            return not self.fail_on_delete_of_updated_array
        return kind is ConflictType.DeleteOfUpdatedGroup and not self.fail_on_delete_of_updated_group

    def chunks_of(self, conflict: Conflict) -> VersionSelection:
        """Return whose chunks stay."""
        return self.on_chunk_conflict


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
    for path, node in sorted(ours.new_nodes.items()):
        row = their_tree.find(path)
        if row >= 0 and _stays(ours, their_edits.new, their_tree, row):
            yield Conflict(ConflictType.NewNodeConflictsWithExistingNode, path)
        elif _has_bad_ancestor(path, ours, our_base, their_edits, their_tree):
            yield Conflict(ConflictType.NewNodeInInvalidGroup, path)
        if node.is_array:
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
            continue
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
            new_id in their_edits.new for new_id in _added_below(node.path, our_base, their_tree)
        ):
            yield Conflict(ConflictType.DeleteOfUpdatedGroup, node.path)


def _added_below(path: str, our_base: NodeTable, their_tree: NodeTable) -> Iterator[NodeId]:
    """Yield the nodes that they added at or below a path."""
    for row in their_tree.subtree(path):
        node_id = their_tree.node_id(row)
        if our_base.row_of_id(node_id) < 0:
            yield node_id


def common_rows(one: U32, other: U32) -> U32:
    """Return the rows that two arrays of chunk indices have in common, sorted."""
    if one.shape[1] != other.shape[1]:
        return one[:0]
    if one.shape[1] == 0:
        return one[: min(1, len(one), len(other))]
    stacked = np.concatenate([distinct_rows(one), distinct_rows(other)])
    stacked = stacked[lex_order(stacked)]
    return stacked[:-1][~rows_differ(stacked)] if len(stacked) > 1 else stacked[:0]


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


def remaining_conflicts(conflicts: Sequence[Conflict], solver: ConflictSolver) -> list[Conflict]:
    """Return the conflicts that the solver does not settle, and those that no solver may."""
    solvable = [conflict for conflict in conflicts if conflict.conflict_type in SOLVABLE]
    return [conflict for conflict in conflicts if conflict.conflict_type not in SOLVABLE] + solver.settle(solvable)


def replay_edits(
    ours: ChangeSet, our_base: NodeTable, conflicts: Sequence[Conflict], solver: ConflictSolver, tree: NodeTable
) -> ChangeSet:
    """Return our edits on top of their tree, after the solver settled all conflicts.

    A node that we changed gets our metadata and keeps the manifests that ``tree`` gives it. If both sides deleted a
    node, our deletion is dropped. If we deleted a group, the nodes that they added to it are deleted, too.
    """
    if ours.moves:
        return replay_moves(ours, tree)[0]
    result = ours.copy()
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
            for added_id in _added_below(node.path, our_base, tree):
                result.deleted_nodes[added_id] = tree.node(tree.row_of_id(added_id))
    return result


def _drop_conflicted_chunks(changes: ChangeSet, our_base: NodeTable, conflict: Conflict) -> None:
    """Drop our edits of the chunks that both sides wrote."""
    node_id = our_base.node_id(our_base.find(conflict.path))
    edits = changes.chunks[node_id].collapse()
    dropped = np.asarray(conflict.conflicted_chunks, np.uint32).reshape(-1, edits.ndim)
    kept = edits.take(ChunkFinder(ChunkRefs.build(dropped, DELETED).latest()).find_many(edits.indices) < 0)
    changes.chunks[node_id] = ChunkEdits(edits.ndim)
    changes.chunks[node_id].set_many(kept)
