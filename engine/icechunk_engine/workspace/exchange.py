"""How a workspace exchanges edits with other processes: an interface that the session layer implements.

A workspace that shares its edits calls its exchange at these moments:

- before a read, to bring in the edits of others, and after it, to note what was read;
- after it misses something that others may have made since;
- with each edit, under the lock;
- after an operation with edits, before it returns to its caller, to tell others.
"""

from __future__ import annotations

from collections.abc import Callable

from icechunk_engine.columns.chunk_refs import ChunkRef
from icechunk_engine.format.nodes import Node
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.edit_sources import EditSource

type Edit = Callable[[ChangeSet, int], None]
"""An edit, as a function of a change set and the number that the source of the edit has there."""


class Exchange:
    """The base class of exchanges. Each method does nothing unless a subclass overrides it.

    Methods make requests unless they say otherwise.
    """

    def look(self, *, for_chunks: bool) -> None:
        """Bring in the edits of others before nodes or chunks are read."""

    def look_again(self) -> bool:
        """Bring in the edits of others after something was missing. Returns True if there were any."""
        return False

    def forget(self) -> None:
        """Ignore reports of others since the last look, because the edits are being undone."""

    def note_chunk_read(self, array: Node, index: ChunkIndex, ref: ChunkRef | None) -> None:
        """Note that a chunk is read at this reference, None if it is not stored. Makes no request."""

    def note_document_read(self, node: Node) -> None:
        """Note that the document of a node is read. Makes no request."""

    def record(self, edit: Edit, source: EditSource) -> None:
        """Note an edit, under the workspace's lock. Makes no request."""

    def record_changes(self, changes: ChangeSet) -> None:
        """Note merged edits, under the workspace's lock. Makes no request."""

    def report(self) -> None:
        """Tell others about all edits that were noted before the call."""

    async def report_async(self) -> None:
        """Async twin of :meth:`report`, which never blocks the event loop behind a network."""
