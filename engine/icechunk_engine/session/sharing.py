"""Shared sessions: other processes find them by a token, even after the first process has died.

Independent jobs of a batch system cannot receive a pickle, and the process that commits may not be the one that
began. So you can *share* a session. Its token then names everything that others need:

- Jobs *join* it. They start from a snapshot that holds the session's edits, and report what they write, like copies
  of a store (:mod:`.worker_reports`).
- Another process can *resume* it. It starts from the committed snapshot that the session is based on, and collects
  everything that was reported.

The invariant: *the journal of a shared session holds all its edits, including those of its own process.* So this
process reports each edit before the call returns. The journal stays until the commit has succeeded.

Two processes may resume one session. The last one is its coordinator, and the commit of the other is refused. If a
process dies after its commit, but before it removes the journal, both exist. So the commit stores the token, and a
process that resumes the session first looks for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from icechunk_engine.catalog.base import Catalog
from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.journal.entries import JournalEntry
from icechunk_engine.journal.journal import Journal
from icechunk_engine.journal.sharing import SharedRecord, read_shared, write_shared
from icechunk_engine.session.carried import CarriedSession
from icechunk_engine.session.forking import stored_base
from icechunk_engine.session.home_reports import HomeReports
from icechunk_engine.session.ledger import ForkOrigin, ForkPoint, Ledger, Reporting
from icechunk_engine.session.own_metadata import own_metadata, with_own_metadata
from icechunk_engine.session.worker_reports import WorkerReports
from icechunk_engine.storage.base import Storage
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.durable_chunks import make_durable
from icechunk_engine.transaction.edit_sources import EditSource
from icechunk_engine.types import Json
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.exchange import Edit
from icechunk_engine.workspace.permissions import SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import Workspace

_TOKEN_FIELD = "session"
"""Field of the commit metadata that holds the token."""


# --- the process that commits ----------------------------------------------------------------------------------------


class SharedReports(HomeReports):
    """The exchange of a shared session in the process that commits it: collects reports, and reports its own edits.

    Parameters
    ----------
    workspace, ledger, origin_id
        As for :class:`HomeReports`.
    lamport
        Start numbering its own entries here; None in the process that first shares the session.
    """

    def __init__(
        self, workspace: Workspace, ledger: Ledger, origin_id: SnapshotId, *, lamport: int | None = None
    ) -> None:
        super().__init__(workspace, ledger)
        self.coordinator = os.urandom(8).hex()
        origin = ForkOrigin(token=ledger.token, fork_id=None)
        point = ForkPoint(origin_id=origin_id, origin=origin, seen=(), lamport=lamport or 0)
        self._own = _OwnReports(workspace, point, is_first=lamport is None)

    @property
    def is_shared(self) -> bool:
        return True

    @property
    def lamport(self) -> int:
        """The highest number of any entry that this process has written or collected."""
        return self._own.lamport

    def record(self, edit: Edit, source: EditSource) -> None:
        self._own.record(edit, source)

    def record_changes(self, changes: ChangeSet) -> None:
        self._own.record_changes(changes)

    def report(self) -> None:
        self._own.report()

    async def report_async(self) -> None:
        await self._own.report_async()

    def fetch_new(self) -> dict[str, JournalEntry]:
        """Return the new entries of others."""
        self.ignore(self._own.reported_keys)
        found = super().fetch_new()
        self._own.lamport = max([self._own.lamport, *(entry.lamport for entry in found.values())])
        last = dict(self._own.seen_up_to)
        for entry in found.values():
            if entry.has_edits:
                last[entry.writer] = max(last.get(entry.writer, 0), entry.seq)
        self._own.seen_up_to = last
        return found


class _OwnReports(WorkerReports):
    """Reports the edits of the session's own process."""

    def __init__(self, workspace: Workspace, point: ForkPoint, *, is_first: bool) -> None:
        super().__init__(workspace, point, Reporting.edits)
        self.reported_keys: set[str] = set()
        self._is_first = is_first

    def _next_lamport(self) -> int:
        # The first entry holds all edits that were made before the session was shared. It must come before the reports
        # of copies, whose arrays it creates.
        return 0 if self._is_first and not self.reported_keys else super()._next_lamport()

    def _overwrites(self, state: WorkspaceState, own: tuple[EditSource, ...]) -> tuple[tuple[str, int], ...]:
        return ()  # seen_up_to has them

    def reported(self, entry: JournalEntry) -> None:
        super().reported(entry)
        self.reported_keys.add(self.journal.entry_key(entry))


def share(workspace: Workspace, ledger: Ledger) -> None:
    """Share a session. Call it again to give later edits to the jobs that join from now on.

    Reports the session's edits, and stores them as a snapshot that jobs start from.
    """
    workspace.look()
    reports = workspace.exchange
    if not isinstance(reports, SharedReports):
        reports = _begin(workspace, ledger)
    reports.report()
    with workspace.lock:
        workspace.end_epoch()
        state = workspace.state.copy()
    assets = workspace.context.assets
    make_durable(assets.storage, state.changes, lambda: assets.snapshot(state.snapshot_id).nodes)
    record = SharedRecord(
        session=ledger.record(state.snapshot_id),
        base_id=stored_base(workspace, state),
        seen=tuple(state.changes.sources.entries[-1:]),
        lamport=reports.lamport,
        coordinator=reports.coordinator,
    )
    write_shared(ledger.journal, record)


def _begin(workspace: Workspace, ledger: Ledger) -> SharedReports:
    """Report all edits from now on, and the earlier ones."""
    ledger.open(workspace.state.snapshot_id)
    reports = SharedReports(workspace, ledger, workspace.state.snapshot_id)
    with workspace.lock:
        if isinstance(workspace.exchange, HomeReports):
            reports.continue_from(workspace.exchange)
        workspace.end_epoch()
        reports.record_changes(workspace.state.changes)
        workspace.exchange = reports
    return reports


def resume(workspace: Workspace, ledger: Ledger, record: SharedRecord) -> None:
    """Collect the work of a shared session in another process, which becomes its coordinator.

    Parameters
    ----------
    workspace
        A new one, based on the origin of the session.
    """
    ledger.journal.open(record.session)  # it is missing if the last coordinator died while it committed
    reports = SharedReports(workspace, ledger, record.session.origin_id, lamport=record.lamport)
    write_shared(ledger.journal, replace(record, coordinator=reports.coordinator))
    workspace.exchange = reports
    reports.collect("raise")


def require_coordinator(workspace: Workspace, ledger: Ledger) -> None:
    """Refuse to commit a shared session that another process has resumed. One GET; none for other sessions.

    Raises
    ------
    SessionStateError
        ``commit-not-allowed``.
    """
    if not isinstance(workspace.exchange, SharedReports):
        return
    record = read_shared(ledger.journal)
    if record is None:
        raise _unknown(ledger.journal)
    if record.coordinator != workspace.exchange.coordinator:
        raise SessionStateError(
            f"cannot commit: another process has resumed session {ledger.token}. Let that process commit it. To take "
            f"it back, call repo.resume_session({ledger.token!r})",
            ErrorKind.COMMIT_NOT_ALLOWED,
        )


def metadata_with_token(metadata: Mapping[str, Json], token: str) -> dict[str, Json]:
    """Return the metadata of a commit with the token of the shared session."""
    return with_own_metadata(metadata, _TOKEN_FIELD, token)


# --- others ----------------------------------------------------------------------------------------------------------


def joined(context: RepositoryContext, token: str) -> CarriedSession:
    """Return a copy of a shared session that reports its edits. One GET, one HEAD and one LIST.

    Raises
    ------
    SessionStateError
        ``session-ended``: no session with this token takes reports.
    """
    journal = Journal(context.assets.storage, token)
    record = read_shared(journal)
    if record is None or not journal.is_open():
        raise _unknown(journal)
    origin = ForkOrigin(token=token, fork_id=None)
    last, highest = journal.last_numbers()
    return CarriedSession(
        context=context,
        mode=SessionMode.writable,
        state=WorkspaceState(record.base_id, ChangeSet()),
        edits_token=None,
        unchanged_writes=(),
        fork_point=ForkPoint(
            origin_id=record.session.origin_id,
            origin=origin,
            seen=record.seen,
            # A job that repeats the work of a dead one replaces its reports, so it comes after them.
            lamport=max(record.lamport, highest),
            seen_up_to=last,
        ),
        reporting=Reporting.edits,
    )


def resumable(context: RepositoryContext, catalog: Catalog, token: str) -> SharedRecord:
    """Return the record of a session that can be resumed. Removes the journal of one that turns out to be committed.

    Raises
    ------
    SessionStateError
        ``session-ended``: no shared session has this token, or it was committed.
    """
    journal = Journal(context.assets.storage, token)
    record = read_shared(journal)
    if record is None:
        raise _unknown(journal)
    committed = _find_commit(catalog, record, token)
    if committed is not None:
        journal.remove_all()
        raise SessionStateError(
            f"session {token} was already committed, as snapshot {committed} on branch {record.session.branch!r}. Its "
            f"process ended before it could say so. There is nothing left to do",
            ErrorKind.SESSION_ENDED,
        )
    return record


def _find_commit(catalog: Catalog, record: SharedRecord, token: str) -> str | None:
    """Return the id of the snapshot that committed a session; None if it was not committed."""
    branch, origin_id = record.session.branch, record.session.origin_id
    assert branch is not None
    for info in catalog.history(catalog.branch_tip(branch)):
        if info.id == origin_id:
            return None
        if own_metadata(info.metadata).get(_TOKEN_FIELD) == token:
            return info.id
    return None


def discard(storage: Storage, token: str) -> None:
    """Remove the journal of a session. Raises SessionStateError (``session-ended``) if it has none."""
    journal = Journal(storage, token)
    if not journal.remove_all():
        raise _unknown(journal)


def _unknown(journal: Journal) -> SessionStateError:
    return SessionStateError(
        f"no shared session has the token {journal.token!r} in {journal.storage.identity}: it was committed or "
        f"discarded, or this is not its repository. repo.list_sessions() lists those that can be joined",
        ErrorKind.SESSION_ENDED,
    )
