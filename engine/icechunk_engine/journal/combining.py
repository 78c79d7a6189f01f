"""Combine journal entries that the session has collected, so that listing the journal stays cheap. Pure.

While copies are under way, the session lists its journal before each read. Thousands of tasks leave thousands of
entries. The session replaces them by a few, instead of deleting them, because copies in other processes may still have
to read them.

Only entries that hold nothing but chunks are combined. An entry that makes nodes stays: two writers may have made
equal nodes at one path, and a combined entry could hold only one of them.

A combined entry has the Lamport time 0, so it comes before all others. This is right because everything that its
edits rely on was collected with them or earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from icechunk_engine.ids import NodeId
from icechunk_engine.journal.change_entries import add_changes, change_set_of, entry_parts
from icechunk_engine.journal.entries import JournalEntry
from icechunk_engine.transaction.change_set import ChangeSet

MAX_SEPARATE = 256
"""Number of entries at which they are combined."""


def can_be_combined(entry: JournalEntry) -> bool:
    """Return True for an entry that holds only chunks and has not been combined before."""
    return bool(entry.arrays) and not entry.nodes_set and not entry.nodes_deleted and entry.lamport > 0


def combine(entries: Sequence[JournalEntry], writer: str, seq: int) -> JournalEntry:
    """Return one entry with the edits of several.

    Parameters
    ----------
    entries
        At least one; all of one fork, with one flush promise, in the order in which they were merged.
    writer, seq
        Those of the new entry.
    """
    combined = ChangeSet()
    paths: dict[NodeId, str] = {}
    for entry in entries:
        add_changes(combined, change_set_of(entry))
        paths.update((array.node_id, array.path) for array in entry.arrays)
    parts = entry_parts(combined, paths)
    return replace(
        entries[0],
        writer=writer,
        seq=seq,
        lamport=0,
        seen=(),
        overwrites=(),
        sources=parts.sources,
        arrays=parts.arrays,
    )
