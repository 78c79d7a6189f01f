"""Turn the edits of a writer into a journal entry, and an entry into a change set that can be merged. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from icechunk_engine.format.nodes import Node
from icechunk_engine.ids import NodeId
from icechunk_engine.journal.entries import ArrayEdits, JournalEntry, NodeDeleted, NodeSet
from icechunk_engine.transaction.change_set import ChangeSet, ChunkEdits
from icechunk_engine.transaction.edit_sources import EditSource, EditSources


class EntryParts(NamedTuple):
    """The fields of a :class:`JournalEntry` that hold edits."""

    sources: tuple[EditSource, ...]
    nodes_set: list[NodeSet]
    nodes_deleted: list[NodeDeleted]
    arrays: list[ArrayEdits]


def entry_parts(changes: ChangeSet, array_paths: Mapping[NodeId, str]) -> EntryParts:
    """Return the edits of a change set in the form of an entry.

    Parameters
    ----------
    array_paths
        Paths of the arrays whose chunks were edited.
    """
    numbers = changes.node_sources

    def node_set(node: Node, *, is_update: bool) -> NodeSet:
        return NodeSet(node, is_update, node.node_id in changes.shape_sources, numbers[node.node_id])

    gone = (*changes.deleted_nodes.values(), *changes.withdrawn_nodes.values())
    return EntryParts(
        sources=tuple(changes.sources.entries),
        nodes_set=[
            *(node_set(node, is_update=False) for node in changes.new_nodes.values()),
            *(node_set(node, is_update=True) for node in changes.updated_nodes.values()),
        ],
        nodes_deleted=[NodeDeleted(node.path, node.node_id, numbers[node.node_id]) for node in gone],
        arrays=[
            ArrayEdits(node_id, array_paths[node_id], *edits.collapse_with_sources())
            for node_id, edits in changes.chunks.items()
            if edits
        ],
    )


def change_set_of(entry: JournalEntry) -> ChangeSet:
    """Return the edits in an entry."""
    changes = ChangeSet(sources=EditSources(entry.sources))
    if entry.flush_promise is not None:
        changes.sources.leave_flush(entry.flush_promise)
    for path, node_id, number in entry.nodes_deleted:
        changes.deleted_nodes[node_id] = Node(node_id=node_id, path=path, user_data=b"", shape=None)
        changes.node_sources[node_id] = number
    for node, is_update, is_resized, number in entry.nodes_set:
        if is_update:
            changes.update_node(node, number)
        else:
            changes.add_node(node, number)
        if is_resized:
            changes.shape_sources[node.node_id] = number
    for node_id, _, refs, numbers in entry.arrays:
        edits = changes.chunks.setdefault(node_id, ChunkEdits(refs.ndim))
        edits.set_many(refs, np.asarray(numbers, np.int32))
    return changes


def add_changes(onto: ChangeSet, later: ChangeSet) -> None:
    """Add edits to a change set of the same writer, which come after all that it holds."""
    numbers = np.array([onto.sources.number(source) for source in later.sources.entries], np.int32)
    for number, promise in later.sources.promises.items():
        onto.sources.promises.setdefault(int(numbers[number]), promise)

    def number_of(node: Node) -> int:
        return int(numbers[later.node_sources[node.node_id]])

    for node in (*later.deleted_nodes.values(), *later.withdrawn_nodes.values()):
        onto.delete_node(node, number_of(node))
    for node in later.new_nodes.values():
        onto.add_node(node, number_of(node))
    for node in later.updated_nodes.values():
        onto.update_node(node, number_of(node))
    for sources, theirs in (
        (onto.shape_sources, later.shape_sources),
        (onto.encoding_sources, later.encoding_sources),
    ):
        sources.update((node_id, int(numbers[number])) for node_id, number in theirs.items())
    for node_id, edits in later.chunks.items():
        refs, theirs_numbers = edits.collapse_with_sources()
        onto.chunks.setdefault(node_id, ChunkEdits(refs.ndim)).set_many(refs, numbers[theirs_numbers])
