"""Which edits of others a copy had seen when it replaced them. Pure.

A copy can bring in the edits of others at any time: between the read and the write of one chunk, another thread or
another chunk of the same write may look at the journal. Then the copy *has* an edit of others, but the bytes that it
writes were computed without that edit. The invariant: *an edit of others counts as seen by a write only if the copy
has read that chunk or document since the edit was brought in.* An edit that is replaced unseen is a conflict, which
the session raises when it collects the report.

The methods are called under the lock of the workspace.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import DELETED, ChunkRef, ChunkRefs
from icechunk_engine.format.nodes import Node
from icechunk_engine.ids import NodeId
from icechunk_engine.journal.change_entries import add_changes
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction.change_set import ChangeSet, ChunkEdits
from icechunk_engine.workspace.exchange import Edit

_ANY_REF = ChunkRef(kind=DELETED)


class SeenEdits:
    """The edits of others that a copy has, and which of them it has read.

    Attributes
    ----------
    unseen
        Writers and epochs of edits that the copy replaced without having read them.
    """

    def __init__(self) -> None:
        self.unseen: set[tuple[str, int]] = set()
        self._others = ChangeSet()
        self._read_documents: dict[NodeId, int] = {}  # each with the source that it was read from
        self._read_chunks: dict[NodeId, ChunkEdits] = {}  # only their indices and sources matter

    def bring_in(self, changes: ChangeSet, waiting: Iterable[ChangeSet]) -> None:
        """Note edits of others that the copy has from now on.

        Parameters
        ----------
        waiting
            Edits of the copy that are not reported yet. They were made without seeing these.
        """
        if any(source not in self._others.sources for source in changes.sources.entries):
            add_changes(self._others, changes)
            for edits in waiting:
                self._check(edits)

    def note_chunk_read(self, node_id: NodeId, index: ChunkIndex, ref: ChunkRef | None) -> None:
        """Note that the copy has read a chunk, at this reference."""
        edits = self._others.chunks.get(node_id)
        if edits:
            _, refs, sources = edits.overlap(np.array([index], np.uint32).reshape(1, -1))
            if len(refs) and (refs.kinds[0] == DELETED if ref is None else refs.row(0) == ref):
                read = self._read_chunks.setdefault(node_id, ChunkEdits(len(index)))
                read.set(index, _ANY_REF, int(sources[0]))

    def note_document_read(self, node: Node) -> None:
        """Note that the copy has read the document of a node."""
        number = self._others.node_sources.get(node.node_id)
        theirs = self._others.updated_nodes.get(node.node_id) or self._others.new_nodes.get(node.path)
        if number is not None and theirs is not None and theirs.user_data == node.user_data:
            self._read_documents[node.node_id] = number

    def note_edit(self, edit: Edit) -> None:
        """Note an edit of the copy. Nodes that it deletes count as read."""
        if self._others.sources:
            touched = ChangeSet()
            edit(touched, 0)
            self._check(touched)

    def _check(self, touched: ChangeSet) -> None:
        others = self._others
        for node_id in touched.updated_nodes:
            number = others.node_sources.get(node_id)
            if number is not None and self._read_documents.get(node_id) != number:
                self._add_unseen(number)
        for node_id, edits in touched.chunks.items():
            theirs = others.chunks.get(node_id)
            if theirs:
                _, refs, sources = theirs.overlap(edits.collapse().indices)
                for number in np.unique(sources[self._read_from(node_id, refs) != sources]).tolist():
                    self._add_unseen(number)

    def _read_from(self, node_id: NodeId, refs: ChunkRefs) -> NDArray[np.int32]:
        """Return the source that each chunk was read from, -1 if it was not read."""
        found = np.full(len(refs), -1, np.int32)
        read = self._read_chunks.get(node_id)
        if read:
            positions, _, sources = read.overlap(refs.indices)
            found[positions] = sources
        return found

    def _add_unseen(self, number: int) -> None:
        source = self._others.sources.entries[number]
        self.unseen.add((source.writer, source.epoch))
