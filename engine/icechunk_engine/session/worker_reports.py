"""A copy in a worker: it reports its edits to its session, and finds those of other workers.

A copy reports before each write returns. So when a task has ended, the session finds its edits. A copy sees the edits
of other workers when it first reads a chunk, and when it misses a node or a chunk. It does not look before each write:
a task that writes whole chunks makes no request to read others' reports.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

from icechunk_engine.columns.chunk_refs import ChunkRef
from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.format.nodes import Node
from icechunk_engine.ids import NodeId
from icechunk_engine.journal.announcing import Announcer
from icechunk_engine.journal.change_entries import add_changes, change_set_of, entry_parts
from icechunk_engine.journal.entries import JournalEntry
from icechunk_engine.journal.journal import Journal
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.session.ledger import ForkPoint, Reporting
from icechunk_engine.session.merging import merge_into
from icechunk_engine.session.seen_edits import SeenEdits
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.durable_chunks import flush_or_leave_it
from icechunk_engine.transaction.edit_sources import EditSource
from icechunk_engine.transaction.merge import Incoming
from icechunk_engine.workspace.exchange import Edit, Exchange
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import Workspace


class WorkerReports(Exchange):
    """The exchange of a copy.

    Parameters
    ----------
    workspace
        The copy.
    point
        Where it left the session.
    reporting
        What it reports.

    Attributes
    ----------
    journal
        That of the session.
    lamport
        The highest number of any entry that this copy has written or seen.
    seen_up_to
        As in :class:`~.ledger.ForkPoint`.
    """

    def __init__(self, workspace: Workspace, point: ForkPoint, reporting: Reporting) -> None:
        self._workspace = workspace
        self._point = point
        self._reporting = reporting
        self.journal = Journal(workspace.context.assets.storage, point.origin.token)
        self._announcer = Announcer(self.journal, self, durable=True)
        self._unreported = ChangeSet()
        self._in_flight: ChangeSet | None = None
        self._marked: set[EditSource] = set()
        self._num_marks = 0
        self._collected: set[str] = set()
        self.lamport = point.lamport
        self.seen_up_to = point.seen_up_to
        self._reported_seen: Mapping[str, int] = {}
        self._has_looked = False
        self._seen = SeenEdits()

    # --- reporting -----------------------------------------------------------------------------------------------

    def record(self, edit: Edit, source: EditSource) -> None:
        """Note an edit."""
        number = self._unreported.sources.number(source)
        if self._reporting is Reporting.edits:
            edit(self._unreported, number)
            self._seen.note_edit(edit)

    def record_changes(self, changes: ChangeSet) -> None:
        """Note merged edits."""
        if self._reporting is Reporting.edits:
            add_changes(self._unreported, changes)

    @property
    def _must_report(self) -> bool:
        if self._in_flight is not None:
            return True  # a report has failed, or is under way
        return any(source not in self._marked for source in self._unreported.sources.entries)

    def report(self) -> None:
        """Report all edits so far. One PUT and one HEAD; a copy that only marks its edits does so once a source."""
        if self._must_report:
            self._announcer.announce()

    async def report_async(self) -> None:
        """Async twin of :meth:`report`."""
        if self._must_report:
            await self._announcer.announce_async()

    def take(self) -> JournalEntry | None:
        """Return all unreported edits as one entry. Later edits have another source."""
        workspace = self._workspace
        with workspace.lock:
            if not self._unreported.sources and self._in_flight is None:
                return None
            if self._in_flight is None:
                self._in_flight = self._unreported
            else:
                add_changes(self._in_flight, self._unreported)
            self._unreported = ChangeSet()
            writer, seq = workspace.current_epoch
            if self._reporting is Reporting.mark:
                seq = self._num_marks = self._num_marks + 1  # of marks: their epoch goes on
            else:
                workspace.end_epoch()
            state = workspace.state
            parts = entry_parts(self._in_flight, self._array_paths(state))
            overwrites = self._overwrites(state, parts.sources)
        # Chunks must be durable before the session knows them, unless it flushes them when it commits.
        assets, promise = workspace.context.assets, self._point.flush_promise
        flush_or_leave_it(assets.storage, self._in_flight, lambda: assets.snapshot(state.snapshot_id).nodes, promise)
        self.lamport = self._next_lamport()
        return JournalEntry(
            writer=writer,
            seq=seq,
            lamport=self.lamport,
            origin_id=self._point.origin_id,
            fork=self._point.origin.fork_id,
            flush_promise=next(iter(self._in_flight.sources.promises.values()), None),
            seen=self._point.seen,
            overwrites=overwrites,
            seen_up_to=() if self.seen_up_to == self._reported_seen else tuple(self.seen_up_to.items()),
            sources=parts.sources,
            nodes_set=parts.nodes_set,
            nodes_deleted=parts.nodes_deleted,
            arrays=parts.arrays,
        )

    def _next_lamport(self) -> int:
        # Two runs of one task have not seen each other. The clock orders them: the last run counts.
        return max(self.lamport + 1, time.time_ns() // 1000)

    def reported(self, entry: JournalEntry) -> None:
        """Forget the edits in an entry."""
        if self._reporting is Reporting.mark:
            self._marked.update(entry.sources)
        self._in_flight = None
        if entry.seen_up_to:
            self._reported_seen = dict(entry.seen_up_to)
        self._collected.add(self.journal.entry_key(entry))

    def _array_paths(self, state: WorkspaceState) -> dict[NodeId, str]:
        """Return the paths of the arrays in flight. Their nodes are in memory: chunks were written to them."""
        assert self._in_flight is not None
        made = {node.node_id: path for path, node in state.changes.new_nodes.items()}
        result = {}
        for node_id in self._in_flight.chunks:
            row = -1 if state.base is None else state.base.nodes.row_of_id(node_id)
            result[node_id] = made.get(node_id) or (state.nodes.path(row) if row >= 0 else "/")
        return result

    def _overwrites(self, state: WorkspaceState, own: tuple[EditSource, ...]) -> tuple[tuple[str, int], ...]:
        """Return the sources of others that this copy had seen. They were reported, so the session has them, too."""
        mine = {(writer, epoch) for writer, epoch, _ in own}
        found = ((source.writer, source.epoch) for source in state.changes.sources.entries)
        return tuple(dict.fromkeys(source for source in found if source not in mine | self._seen.unseen))

    # --- what was read -------------------------------------------------------------------------------------------

    def note_chunk_read(self, array: Node, index: ChunkIndex, ref: ChunkRef | None) -> None:
        """Note that this copy has seen a chunk of others."""
        with self._workspace.lock:
            self._seen.note_chunk_read(array.node_id, index, ref)

    def note_document_read(self, node: Node) -> None:
        """Note that this copy has seen a document of others."""
        with self._workspace.lock:
            self._seen.note_document_read(node)

    # --- edits of others -----------------------------------------------------------------------------------------

    def look(self, *, for_chunks: bool) -> None:
        """Collect the reports of others before the first chunk is read. One LIST, and a GET for each new report."""
        if for_chunks and not self._has_looked and self._reporting is Reporting.edits:
            self.look_again()

    def look_again(self) -> bool:
        """Collect the reports of others. Returns True if there were any."""
        if self._reporting is not Reporting.edits:
            return False
        self._has_looked = True
        found = False
        while True:
            keys = self.journal.list_entries(after=self._collected)
            entries = self.journal.fetch_entries(keys)
            for entry in entries:
                found |= self._show(entry)
            self._collected.update(keys)
            if len(entries) == len(keys):
                return found
            # The session has combined some of them into a new entry. List again.

    def _show(self, entry: JournalEntry) -> bool:
        """Merge the edits of others into the copy. Returns True if they are new."""
        self.lamport = max(self.lamport, entry.lamport)
        is_ours = entry.is_of(self._point.origin_id, self._point.origin.fork_id)
        if not (is_ours and entry.has_edits):  # a mark names sources whose edits it does not bring
            return False
        changes = change_set_of(entry)
        incoming = Incoming(changes=changes, num_seen=0)
        with self._workspace.lock:  # before they can be replaced
            waiting = (self._unreported,) if self._in_flight is None else (self._in_flight, self._unreported)
            self._seen.bring_in(changes, waiting)
        try:
            # The session decides whether it conflicts with other edits. Here it only becomes visible.
            return merge_into(self._workspace, partial(_only, incoming), "last")
        except SessionStateError as error:
            if error.kind is not ErrorKind.MERGE_FAILED:
                raise
            return False


def _only(incoming: Incoming, _: WorkspaceState) -> list[Incoming]:
    return [incoming]
