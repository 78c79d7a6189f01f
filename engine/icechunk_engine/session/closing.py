"""Stop taking reports while a session ends, so that no edit of a worker is lost between two snapshots.

The order matters (:mod:`icechunk_engine.journal.journal`): delete the record, collect the last reports, end the
session, remove the journal. If the session does not end, it takes reports again.
"""

from __future__ import annotations

from contextlib import suppress

from icechunk_engine.errors import IcechunkError
from icechunk_engine.session.home_reports import HomeReports
from icechunk_engine.session.ledger import Ledger
from icechunk_engine.workspace.workspace import Workspace


class ReportsClosed:
    """A context in which a session ends. Makes no request for a session without copies in other processes.

    Parameters
    ----------
    allow_unmerged
        End even if copies of forks wrote and were not merged.

    Raises
    ------
    SessionStateError
        On entering. ``merge-failed``: reports conflict. ``commit-not-allowed``: copies of forks are missing.
    """

    def __init__(self, workspace: Workspace, ledger: Ledger, *, allow_unmerged: bool = False) -> None:
        self._workspace = workspace
        self._ledger = ledger
        self._allow_unmerged = allow_unmerged
        self._origin_id = workspace.state.snapshot_id
        self._is_mine = False
        self._must_reopen = False

    def __enter__(self) -> None:
        workspace, ledger = self._workspace, self._ledger
        if workspace.read_only or workspace.permissions.is_fork:
            return  # the commit that follows is refused
        try:
            with workspace.lock:
                ledger.require_going_on("committed or rebased")
                ledger.is_ending = self._is_mine = True  # before has_copies is read: see Ledger.open
            if ledger.has_copies:
                self._collect_last()
        except BaseException:
            self._take_reports_again()
            raise

    def _collect_last(self) -> None:
        ledger, workspace = self._ledger, self._workspace
        reports = workspace.exchange
        if not isinstance(reports, HomeReports):
            reports = HomeReports(workspace, ledger)
        self._must_reopen = ledger.is_open
        ledger.close()
        reports.collect("raise")
        if not self._allow_unmerged:
            reports.require_complete(workspace.state.changes.sources)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._is_mine:
            return
        if kind is not None:
            self._take_reports_again()
            return
        if self._ledger.has_copies:
            self._workspace.exchange = None
            with suppress(IcechunkError):  # the session has ended; maintenance removes what is left
                self._ledger.remove()
        self._ledger.is_ending = self._workspace.read_only  # a rebased session goes on

    def _take_reports_again(self) -> None:
        if self._is_mine:
            self._ledger.is_ending = False
        if self._must_reopen:
            with suppress(IcechunkError):  # the first error counts; copies that report now are refused
                self._ledger.open(self._origin_id)


def end_reports(workspace: Workspace, ledger: Ledger) -> None:
    """Take no more reports, and drop those that were not collected. Copies that write later get an error."""
    ledger.close()
    workspace.exchange = None
    with suppress(IcechunkError):  # nothing takes these reports any more; maintenance removes what is left
        ledger.remove()
