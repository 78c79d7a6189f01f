"""Make transaction logs: from a change set, or from the logs of two commits that become one. Pure.

See *Transaction log* in the spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np

from icechunk_engine.columns.tables import U8, U32, distinct_rows, row_keys
from icechunk_engine.errors import FormatError
from icechunk_engine.format.transaction_log import Move, TransactionLog
from icechunk_engine.ids import NodeId, SnapshotId
from icechunk_engine.transaction.change_set import ChangeSet


def log_of_changes(snapshot_id: SnapshotId, changes: ChangeSet) -> TransactionLog:
    """Return the log of a change set."""
    new, updated, deleted = changes.new_nodes.values(), changes.updated_nodes.values(), changes.deleted_nodes.values()
    return TransactionLog(
        snapshot_id=snapshot_id,
        new_groups=_sorted_ids(node.node_id for node in new if not node.is_array),
        new_arrays=_sorted_ids(node.node_id for node in new if node.is_array),
        deleted_groups=_sorted_ids(node.node_id for node in deleted if not node.is_array),
        deleted_arrays=_sorted_ids(node.node_id for node in deleted if node.is_array),
        updated_arrays=_sorted_ids(node.node_id for node in updated if node.is_array),
        updated_groups=_sorted_ids(node.node_id for node in updated if not node.is_array),
        updated_chunks={node_id: edits.sorted_parts().indices() for node_id, edits in changes.chunks.items() if edits},
        moved_nodes=moves_of_changes(changes),
    )


def moves_of_changes(changes: ChangeSet) -> tuple[Move, ...]:
    """Return one move for each node whose path changed, sorted by the new path."""
    moved = [
        Move(changes.moved_from[node.node_id], path, node.node_id, node.is_array)
        for path, node in changes.moved_nodes.items()
    ]
    return tuple(sorted(moved, key=_order))


def _order(move: Move) -> list[str]:
    return move.target.split("/")


def _sorted_ids(ids: Iterable[NodeId]) -> U8:
    raws = sorted(node_id.raw for node_id in ids)
    return np.frombuffer(b"".join(raws), np.uint8).reshape(len(raws), NodeId.SIZE)


def amended_log(amended: TransactionLog, changes: TransactionLog) -> TransactionLog:
    """Return the log of a commit together with the changes that amend it.

    It is the union of both logs, as the official library writes it: a node that was created and then deleted is in
    both lists. Several moves of a node become one, or none if the node is back at its old path or deleted.
    """
    deleted = {NodeId.from_row(row) for rows in (changes.deleted_groups, changes.deleted_arrays) for row in rows}
    moved = {move.node_id: move for move in amended.moved_nodes if move.node_id not in deleted}
    for move in changes.moved_nodes:
        first = moved.pop(move.node_id, move)
        if first.source != move.target:
            moved[move.node_id] = Move(first.source, move.target, move.node_id, move.is_array)
    return TransactionLog(
        snapshot_id=changes.snapshot_id,
        new_groups=_union(amended.new_groups, changes.new_groups),
        new_arrays=_union(amended.new_arrays, changes.new_arrays),
        deleted_groups=_union(amended.deleted_groups, changes.deleted_groups),
        deleted_arrays=_union(amended.deleted_arrays, changes.deleted_arrays),
        updated_arrays=_union(amended.updated_arrays, changes.updated_arrays),
        updated_groups=_union(amended.updated_groups, changes.updated_groups),
        updated_chunks=_union_of_chunks(amended.updated_chunks, changes.updated_chunks),
        moved_nodes=tuple(sorted(moved.values(), key=_order)),
    )


def merged_log(logs: Sequence[TransactionLog]) -> TransactionLog:
    """Return the log of consecutive commits, oldest first, by the rules of :func:`amended_log`."""
    return reduce(amended_log, logs)


def _union(one: U8, other: U8) -> U8:
    return np.unique(row_keys(np.concatenate([one, other]))).view(np.uint8).reshape(-1, NodeId.SIZE)


def _union_of_chunks(one: dict[NodeId, U32], other: dict[NodeId, U32]) -> dict[NodeId, U32]:
    union = one | other
    for node_id in one.keys() & other.keys():
        # Logs of the official library may list an array with no chunks. Its rank is then unknown.
        parts = [indices for indices in (one[node_id], other[node_id]) if len(indices)]
        if len(parts) == 2 and parts[0].shape[1] != parts[1].shape[1]:
            raise FormatError(
                "the transaction log of the commit to amend is damaged: it lists chunks of another rank than the "
                "array has. Make a new commit instead of amending"
            )
        if len(parts) == 2:
            union[node_id] = distinct_rows(np.concatenate(parts))
        elif parts:
            union[node_id] = parts[0]
    return union
