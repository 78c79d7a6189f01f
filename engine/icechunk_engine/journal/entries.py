"""The content of a journal entry: edits of one writer, each with its source. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.format.nodes import Node
from icechunk_engine.ids import NodeId, SnapshotId
from icechunk_engine.transaction.edit_sources import EditSource, SourceNumbers


class NodeSet(NamedTuple):
    """A node that was created, or whose document changed.

    Attributes
    ----------
    node
        The node. Its manifests do not travel.
    is_update
        False if the writer created the node.
    is_resized
        The writer changed the shape of the array after it had created it.
    source_number
        Position of the edit's source in ``JournalEntry.sources``.
    """

    node: Node
    is_update: bool
    is_resized: bool
    source_number: int


class NodeDeleted(NamedTuple):
    """A node that was deleted. ``source_number`` as in :class:`NodeSet`."""

    path: str
    node_id: NodeId
    source_number: int


class ArrayEdits(NamedTuple):
    """Edits of the chunks of one array. Later rows win.

    Attributes
    ----------
    node_id, path
        The array.
    refs
        ``n`` chunk references, deletions included, in any order.
    source_numbers
        ``int32 (n,)``.
    """

    node_id: NodeId
    path: str
    refs: ChunkRefs
    source_numbers: SourceNumbers


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """Edits that one writer reports together.

    Attributes
    ----------
    writer
        Id of the linear history of edits that they belong to: 8 to 64 hexadecimal digits.
    seq
        Number of the entry, unique for its writer.
    lamport
        Greater than that of every entry that the writer had seen.
    origin_id
        The committed snapshot that the writer's session is based on.
    fork
        Id of the explicit fork that the writer is a copy of; None for a copy of a store.
    sources
        The sources of the edits.
    flush_promise
        Promise of another process to flush the chunks; None if they were flushed before the entry was stored.
    seen
        The last source of edits that each ancestor had when the writer left it. The writer had seen all up to these.
    overwrites
        More sources that the writer had seen, as writer and epoch.
    seen_up_to
        Writers and epochs: the writer had seen the sources of these writers up to these epochs. This holds for all its
        later entries, too.
    nodes_set, nodes_deleted, arrays
        The edits.
    """

    writer: str
    seq: int
    lamport: int
    origin_id: SnapshotId
    fork: str | None
    sources: tuple[EditSource, ...]
    flush_promise: str | None = None
    seen: tuple[EditSource, ...]
    overwrites: tuple[tuple[str, int], ...]
    seen_up_to: tuple[tuple[str, int], ...] = ()
    nodes_set: list[NodeSet]
    nodes_deleted: list[NodeDeleted]
    arrays: list[ArrayEdits]

    def is_of(self, origin_id: SnapshotId, fork: str | None) -> bool:
        """Return True if the writer is a copy of this fork, or of the store, of a session with this origin."""
        return self.fork == fork and self.origin_id == origin_id

    @property
    def has_edits(self) -> bool:
        """False for a mark, which only says that its writer wrote."""
        return bool(self.arrays or self.nodes_set or self.nodes_deleted)
