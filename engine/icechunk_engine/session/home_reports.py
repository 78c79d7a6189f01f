"""The session that copies came from: it collects their reports.

As long as there are copies, the session looks at its journal before each read, status, merge, fork and commit. If two
reports conflict, each of these calls raises the error until the user settles it, with ``merge(on_overlap="last")`` or
by discarding the edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine.errors import ErrorKind, IcechunkError, SessionStateError
from icechunk_engine.journal.change_entries import change_set_of
from icechunk_engine.journal.combining import MAX_SEPARATE, can_be_combined, combine
from icechunk_engine.journal.entries import JournalEntry
from icechunk_engine.session.ledger import ForkPoint, Ledger, depth_of, origin_id_of
from icechunk_engine.session.merging import merge_into, num_seen, seen_of_ancestors
from icechunk_engine.transaction.edit_sources import EditSources
from icechunk_engine.transaction.merge import Incoming, OnOverlap
from icechunk_engine.workspace.exchange import Exchange
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import Workspace

_SHOWN = 3


class HomeReports(Exchange):
    """The exchange of a session or fork in the process that made it.

    Parameters
    ----------
    workspace
        The session or fork.
    ledger
        The journal of the session.
    point
        Where the fork left its parent: take the reports of copies of this fork. None for a session: take the reports
        of copies of its store.
    """

    def __init__(self, workspace: Workspace, ledger: Ledger, point: ForkPoint | None = None) -> None:
        self._workspace = workspace
        self._ledger = ledger
        self._fork_id = None if point is None else point.origin.fork_id
        self._origin_id = origin_id_of(workspace, point)
        self._depth = depth_of(point)
        self._lock = memory_lock()
        self._seen_up_to: dict[str, Mapping[str, int]] = {}
        self._collected: dict[str, JournalEntry | None] = {}  # None if merged; marks and reports of forks stay
        self._separate: list[JournalEntry] = []  # collected, and can be combined

    def look(self, *, for_chunks: bool = False) -> None:
        """Collect new reports. One LIST, and a GET for each new report."""
        self.collect("raise")

    def collect(self, on_overlap: OnOverlap) -> None:
        """Merge new reports of our copies. Raises the errors of a merge; the reports then stay new."""
        if not self._ledger.has_copies or self._workspace.read_only:
            return
        new = self.fetch_new()
        mine = {key: entry for key, entry in new.items() if self._is_mine(entry)}
        entries = list(mine.values())
        seen_up_to = self._seen_by_writer(entries)
        arrivals = [(change_set_of(entry), entry) for entry in entries if entry.has_edits]

        def incoming(state: WorkspaceState) -> Sequence[Incoming]:
            return [
                Incoming(
                    changes=changes,
                    num_seen=num_seen(state.changes, entry.seen, self._depth),
                    also_seen=entry.overwrites,
                    seen_up_to={**seen_of_ancestors(entry.seen), **seen_up_to.get(entry.writer, {})},
                )
                for changes, entry in arrivals
            ]

        if arrivals:
            merge_into(self._workspace, incoming, on_overlap)
        with self._lock:
            # Only the sources of the others are needed.
            self._collected.update((key, replace(entry, arrays=[], nodes_set=[])) for key, entry in new.items())
            self._collected.update((key, None) for key, entry in mine.items() if entry.has_edits)
            self._separate += [entry for entry in entries if can_be_combined(entry)]
        with suppress(IcechunkError):  # it only makes listing cheaper
            self._combine()

    def _combine(self) -> None:
        """Replace many collected entries by one. One PUT, one HEAD and one DELETE.

        Not in a shared session: a process that resumes it must know what each writer had seen.
        """
        with self._lock:
            if len(self._separate) < MAX_SEPARATE or self.is_shared:
                return
            entries, self._separate = self._separate, []
        journal = self._ledger.journal
        by_promise: dict[str | None, list[JournalEntry]] = {}
        for entry in entries:
            by_promise.setdefault(entry.flush_promise, []).append(entry)
        for group in by_promise.values():
            with self._workspace.lock:
                writer, seq = self._workspace.current_epoch
                self._workspace.end_epoch()
            combined = combine(group, writer, seq)
            with self._lock:
                self._collected[journal.entry_key(combined)] = None
            journal.put_entry(combined)
            journal.storage.delete([journal.entry_key(entry) for entry in group])

    def _seen_by_writer(self, entries: Sequence[JournalEntry]) -> Mapping[str, Mapping[str, int]]:
        """Return which epochs of others each writer had seen, by these entries and by earlier ones."""
        with self._lock:
            for entry in entries:
                if entry.seen_up_to:
                    known = self._seen_up_to.get(entry.writer, {})
                    self._seen_up_to[entry.writer] = {**known, **dict(entry.seen_up_to)}
            return self._seen_up_to.copy()

    @property
    def lamport(self) -> int:
        """New copies start numbering their entries here."""
        return 0

    @property
    def is_shared(self) -> bool:
        """True if the session also reports its own edits, so that another process can resume it."""
        return False

    def ignore(self, keys: Iterable[str]) -> None:
        """Do not collect some entries."""
        with self._lock:
            self._collected.update(dict.fromkeys(keys))

    def continue_from(self, other: HomeReports) -> None:
        """Take over what another exchange of this session has collected."""
        with self._lock:
            self._collected.update(other._collected)
            self._seen_up_to.update(other._seen_up_to)

    def fetch_new(self) -> dict[str, JournalEntry]:
        """Return the entries that have not been collected, by key, in the order in which to apply them."""
        with self._lock:
            known = set(self._collected)
        journal = self._ledger.journal
        return {journal.entry_key(entry): entry for entry in journal.fetch_entries(journal.list_entries(after=known))}

    def _is_mine(self, entry: JournalEntry) -> bool:
        return entry.is_of(self._origin_id, self._fork_id)

    def forget(self) -> None:
        """Ignore all new reports of our copies. One LIST, and a GET for each."""
        self._forget(lambda entry: self._is_mine(entry) and entry.has_edits)

    def forget_all(self) -> None:
        """Ignore all reports so far, including those of copies of forks, because the session discards its edits."""
        self._forget(lambda entry: True)
        with self._lock:
            self._collected = dict.fromkeys(self._collected)

    def _forget(self, is_meant: Callable[[JournalEntry], bool]) -> None:
        if self._ledger.has_copies and not self._workspace.read_only:
            new = self.fetch_new()
            with self._lock:
                self._collected.update((key, None) for key, entry in new.items() if is_meant(entry))

    # --- copies that were not merged -----------------------------------------------------------------------------

    def missing(self, known: EditSources) -> list[JournalEntry]:
        """Return reports of copies that wrote, if their edits are not among ``known`` sources.

        A copy also counts as known if another run of its task is.
        """
        tasks = {source.task for source in known.entries if source.task is not None}
        with self._lock:
            entries = [entry for entry in self._collected.values() if entry is not None]
        return [
            entry
            for entry in entries
            if any(source not in known and source.task not in tasks for source in entry.sources)
        ]

    def require_original(self, known: EditSources) -> None:
        """Refuse to merge a fork without edits if copies of it wrote and were not merged."""
        self.look()
        missing = [entry for entry in self.missing(known) if self._is_mine(entry)]
        if missing:
            raise SessionStateError(
                f"cannot merge this fork: it has no edits, but copies of it in other processes do, and they were not "
                f"returned ({_named(missing)}). Return the fork from each task, and merge what the tasks return: "
                f"session.merge(*returned)",
                ErrorKind.MERGE_FAILED,
            )

    def require_complete(self, known: EditSources) -> None:
        """Refuse to commit while copies of forks wrote and were not merged."""
        missing = self.missing(known)
        if missing:
            raise SessionStateError(
                f"cannot commit: copies of forks wrote in other processes, and they were not merged "
                f"({_named(missing)}). Merge what the tasks return: session.merge(*returned). To commit without these "
                f"edits, pass allow_unmerged=True",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )


def is_shared(workspace: Workspace) -> bool:
    """Return True if the session of a workspace can be found by its token (:mod:`.sharing`)."""
    return isinstance(workspace.exchange, HomeReports) and workspace.exchange.is_shared


def _named(entries: Sequence[JournalEntry]) -> str:
    names = list(dict.fromkeys(source.label for entry in entries for source in entry.sources))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
