"""Where a copy came from, and the journal that it reports to.

All copies of one session, and their copies, share its *token*. It names the session's journal, where copies report
what they wrote (:mod:`icechunk_engine.journal.journal`). The session writes its record before the first copy is
pickled, because a copy may report only while the record exists.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum

from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.ids import SnapshotId, encode_base32
from icechunk_engine.journal.journal import Journal, SessionRecord
from icechunk_engine.storage.base import FlushPromise, Storage
from icechunk_engine.transaction.edit_sources import EditSource
from icechunk_engine.workspace.workspace import Workspace


class Reporting(Enum):
    """What a copy reports to the session that it came from."""

    nothing = 0
    """Nothing: the sender makes sure that it is returned."""
    mark = 1
    """That it wrote something. Its edits are returned with the copy."""
    edits = 2
    """Its edits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkOrigin:
    """The session and fork that a copy came from.

    Attributes
    ----------
    token
        Names the session.
    fork_id
        Names the fork whose copy this is; None for copies of the session's own store.
    """

    token: str
    fork_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPoint:
    """Where a fork left its parent.

    Attributes
    ----------
    origin_id
        The committed snapshot that the session and all its forks are based on.
    origin
        Names the session, and the fork.
    seen
        The last source of edits that each ancestor had at the fork, oldest ancestor first. The fork has seen this
        source and all that came before it.
    flush_promise
        The promise of the session's process to flush the chunks of others; None if each process must flush for itself.
    is_for_graph
        True if a graph of tasks returns all copies of the fork, also those of its store.
    lamport
        Copies start numbering their journal entries here, so that these come after the entries that the session had
        seen.
    seen_up_to
        For a job of a shared session: the last epoch that each writer had reported when the job joined.
    """

    origin_id: SnapshotId
    origin: ForkOrigin
    seen: tuple[EditSource, ...]
    flush_promise: FlushPromise | None = None
    is_for_graph: bool = False
    lamport: int = 0
    seen_up_to: Mapping[str, int] = field(default_factory=dict)


def origin_id_of(workspace: Workspace, point: ForkPoint | None) -> SnapshotId:
    """Return the committed snapshot that a session or fork is based on."""
    return workspace.state.snapshot_id if point is None else point.origin_id


def depth_of(point: ForkPoint | None) -> int:
    """Return the number of ancestors: 0 for a session, 1 for its fork, and so on."""
    return 0 if point is None else len(point.seen)


class Ledger:
    """The journal of a session. It is opened when the first copy is pickled.

    Parameters
    ----------
    branch
        The branch that the session will commit to, for the record.
    token
        The token of the session that a copy came from; a new one by default.
    may_open
        False for the copy of a fork: only the session's own process may open the journal, or a copy could open it
        again after the commit.

    Attributes
    ----------
    has_copies
        True once a copy may exist.
    is_open
        True while the session takes reports.
    is_ending
        True while the session ends. It then sends no copies: nobody would collect their reports.
    """

    def __init__(
        self, storage: Storage, branch: str | None = None, token: str | None = None, *, may_open: bool = True
    ) -> None:
        self.token = token or encode_base32(os.urandom(12))
        self.journal = Journal(storage, self.token)
        self.has_copies = token is not None
        self._branch = branch
        self.is_open = token is not None and may_open
        self._may_open = may_open
        self.is_ending = False
        self._created_at = datetime.now(UTC)

    def open(self, origin_id: SnapshotId) -> None:
        """Take reports. One PUT the first time, and after :meth:`close`.

        Raises
        ------
        SessionStateError
            ``concurrency``: the session ends. ``not-allowed``: a copy cannot open the journal, and it is closed.
        """
        # The order matters: an ending that begins in between sees has_copies, or is seen here.
        self.has_copies = True
        self.require_going_on("sent to other processes")
        if not self.is_open and not self._may_open:
            self._require_open_elsewhere()
        if not self.is_open:
            self.journal.open(self.record(origin_id))
            self.is_open = True
            if self.is_ending:
                self.close()
            self.require_going_on("sent to other processes")

    def _require_open_elsewhere(self) -> None:
        if not self.journal.is_open():
            raise SessionStateError(
                "the store of this fork cannot be sent on, because its session takes no reports: it has ended, or "
                "only forks of it were sent. Send fork.fork() to your tasks, return it and merge it with "
                "fork.merge(...). Or send session.store from the process of the session",
                ErrorKind.NOT_ALLOWED,
            )
        self.is_open = True

    def require_going_on(self, what: str) -> None:
        """Raise SessionStateError (``concurrency``) if a thread is ending the session; it then cannot be ``what``."""
        if self.is_ending:
            raise SessionStateError(
                f"another thread is committing this session, so it cannot be {what}. Wait until commit returns. Then "
                f"start a new session, or use this one again if the commit failed",
                ErrorKind.CONCURRENCY,
            )

    def record(self, origin_id: SnapshotId) -> SessionRecord:
        """Return the record of the session."""
        return SessionRecord(
            origin_id=origin_id, branch=self._branch, created_at=self._created_at, host=platform.node()
        )

    def close(self) -> None:
        """Take no more reports. One DELETE."""
        self.is_open = False
        self.journal.close()

    def remove(self) -> None:
        """Remove the journal after the commit."""
        self.has_copies = False
        self.journal.remove_all()
