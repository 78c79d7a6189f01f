"""What a session knows about its copies in other processes: forks, and pickled sessions and stores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from icechunk_engine._runtime.cluster_support import is_client
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.errors import SessionStateError
from icechunk_engine.session.carried import UNPICKLABLE, CarriedSession, pack, pack_for_store
from icechunk_engine.session.closing import ReportsClosed, end_reports
from icechunk_engine.session.forking import Arrival, merge_forks, start_fork
from icechunk_engine.session.home_reports import HomeReports, is_shared
from icechunk_engine.session.ledger import ForkPoint, Ledger, Reporting, origin_id_of
from icechunk_engine.session.refusals import RefusedCopy
from icechunk_engine.session.sharing import metadata_with_token, require_coordinator, resumable, resume, share
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.merge import OnOverlap
from icechunk_engine.types import Json
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.permissions import Permissions, SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import EditsToken, Workspace


class Copies:
    """Sends the edits of a session to other processes, and collects and merges theirs.

    Parameters
    ----------
    workspace
        The edits of the session.
    point
        Where the session left its parent; None unless it is a fork.
    reporting
        What copies of this fork report.
    ledger
        The journal of the session; by default a new one, as soon as it is needed.
    """

    def __init__(
        self,
        workspace: Workspace,
        point: ForkPoint | None = None,
        reporting: Reporting = Reporting.nothing,
        ledger: Ledger | None = None,
    ) -> None:
        self.workspace = workspace
        self.point = point
        self._reporting = reporting
        self._ledger = ledger
        self._store_copy: tuple[EditsToken, CarriedSession] | None = None

    @classmethod
    def unpacked(cls, carried: CarriedSession) -> Copies:
        """Unpack a session that arrived in this process. Does no I/O."""
        point = carried.fork_point
        if point is None:
            return cls(carried.unpack())
        may_open = carried.reporting is Reporting.edits
        ledger = Ledger(carried.context.assets.storage, token=point.origin.token, may_open=may_open)
        return cls(carried.unpack(), point, carried.reporting, ledger)

    @classmethod
    def resumed(cls, context: RepositoryContext, catalog: Catalog, token: str) -> Copies:
        """Resume a shared session in this process, with everything that was reported."""
        record = resumable(context, catalog, token)
        origin_id, branch = record.session.origin_id, record.session.branch
        permissions = Permissions(SessionMode.writable, branch=branch)
        workspace = Workspace(context, WorkspaceState(origin_id, ChangeSet()), permissions)
        ledger = Ledger(context.assets.storage, branch, token)
        resume(workspace, ledger, record)
        return cls(workspace, ledger=ledger)

    @property
    def ledger(self) -> Ledger:
        """The journal of the session."""
        with self.workspace.lock:  # all threads must use one journal
            if self._ledger is None:
                self._ledger = Ledger(self.workspace.context.assets.storage, self.workspace.permissions.branch)
            return self._ledger

    # --- pickles -------------------------------------------------------------------------------------------------

    @property
    def refusal(self) -> tuple[type[RefusedCopy], tuple[str]] | None:
        """What to pickle in place of a writable session, if a cluster would bury an error; otherwise None."""
        refuses = self.point is None and not self.workspace.read_only and is_client()
        return (RefusedCopy, (UNPICKLABLE,)) if refuses else None

    @property
    def refusal_of_store(self) -> tuple[type[RefusedCopy], tuple[str]] | None:
        """What to pickle in place of a store that cannot be sent; None if it can, or if pickling raises."""
        return self.refusal if self.workspace.permissions.mode is SessionMode.rearrange else None

    @property
    def report_edits(self) -> bool:
        """True if copies of the store report their edits. Otherwise the store is pickled with its session."""
        return not self.workspace.read_only and (self.point is None or not self.point.is_for_graph)

    def pack(self) -> CarriedSession:
        """Return what a pickle of the session carries. Raises if it cannot be pickled."""
        if self.point is not None and self._reporting is not Reporting.nothing:
            self._watch(Reporting.mark)
        return pack(self.workspace, self.point, self._reporting)

    def pack_for_store(self) -> CarriedSession:
        """Return what a pickle of the store carries. One LIST, and a GET for each new report."""
        self.workspace.permissions.require_forkable()
        self._watch(Reporting.edits)
        with suppress(SessionStateError):  # the next look raises a conflict; pickling does not
            self.workspace.look()  # a new task may replace what finished tasks wrote
        known = self._store_copy
        if known is None or known[0] != self.workspace.edits_token:
            carried = pack_for_store(self.workspace, self.point, self.ledger.token)
            known = self._store_copy = self.workspace.edits_token, carried
        return known[1]

    def _watch(self, reporting: Reporting) -> None:
        """Take reports of copies from now on. Call it before a copy leaves.

        The first copy of a store costs a PUT, copies of forks nothing.
        """
        workspace, point, ledger = self.workspace, self.point, self.ledger
        if reporting is Reporting.edits:
            ledger.open(origin_id_of(workspace, point))
        ledger.has_copies = True
        if workspace.exchange is None:
            workspace.exchange = HomeReports(workspace, ledger, point)

    # --- forks ---------------------------------------------------------------------------------------------------

    def fork(self, reporting: Reporting, *, is_for_graph: bool = False) -> Copies:
        """Fork the session. Stores its edits first, if there are any."""
        ledger, context = self.ledger, self.workspace.context
        self.workspace.look()
        base_id, point = start_fork(self.workspace, self.point, ledger.token)
        permissions = Permissions(SessionMode.writable, is_fork=True)
        workspace = Workspace(context, WorkspaceState(base_id, ChangeSet()), permissions)
        return Copies(workspace, replace(point, is_for_graph=is_for_graph), reporting, ledger)

    def merge(self, arrivals: Sequence[Arrival], on_overlap: OnOverlap) -> None:
        """Merge forks, all or none. First collects the reports of copies of the store."""
        workspace = self.workspace
        workspace.permissions.require_writable()
        if isinstance(workspace.exchange, HomeReports):
            workspace.exchange.collect(on_overlap)
        if arrivals:
            merge_forks(workspace, self.point, arrivals, on_overlap)
            workspace.report()

    @property
    def have_lost_edits(self) -> bool:
        """True if edits are lost when the session goes away now."""
        workspace = self.workspace
        if self.is_shared:
            return False  # the journal has them
        if not workspace.permissions.is_fork:
            return not workspace.read_only and workspace.has_changes
        return self._reporting is Reporting.mark and workspace.has_unshared_edits

    def warn_of_lost_edits(self, session: object) -> None:
        """Warn if edits are lost. Call it from ``__del__``."""
        if self.have_lost_edits:
            what = "merged" if self.workspace.permissions.is_fork else "committed"
            warnings.warn(
                f"a session with uncommitted edits went away, and nobody {what} them: {session!r}",
                ResourceWarning,
                stacklevel=3,
                source=session,
            )

    # --- sharing -------------------------------------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """True if other processes find the session by its token."""
        return is_shared(self.workspace)

    def share(self) -> str:
        """Make the session known by its token. Returns the token."""
        self.workspace.permissions.require_forkable()
        if self.point is None:
            share(self.workspace, self.ledger)
        elif self.point.origin.fork_id is not None:
            raise SessionStateError(
                "a fork cannot be shared, because its edits are merged with session.merge(fork). Share the session "
                "that you forked"
            )
        return self.ledger.token

    def commit_metadata(self, metadata: Mapping[str, Json] | None) -> Mapping[str, Json] | None:
        """Return the metadata of a commit. Raises if another process is to commit."""
        if not self.is_shared:
            return metadata
        require_coordinator(self.workspace, self.ledger)
        return metadata_with_token(metadata or {}, self.ledger.token)

    # --- ending --------------------------------------------------------------------------------------------------

    def closed(self, *, allow_unmerged: bool = False) -> ReportsClosed:
        """Return a context in which the session ends."""
        return ReportsClosed(self.workspace, self.ledger, allow_unmerged=allow_unmerged)

    def discard(self) -> None:
        """Drop all reports so far, because the session discards its edits."""
        workspace, ledger = self.workspace, self._ledger
        if ledger is None:
            return
        copies_write = self._store_copy is not None and self.point is None
        if copies_write or self.is_shared:
            # A late report must not bring back what was discarded.
            end_reports(workspace, ledger)
            self._ledger = self._store_copy = None
        elif ledger.has_copies and workspace.exchange is None:
            self._watch(Reporting.mark)
        if isinstance(workspace.exchange, HomeReports):
            workspace.exchange.forget_all()

    def leave_base(self) -> None:
        """Begin a new journal after a rebase: forks and stores that were sent before have another base."""
        self._ledger = None
