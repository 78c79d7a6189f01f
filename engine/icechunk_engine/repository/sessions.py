"""Sessions of a repository: reading a snapshot, writing to a branch, moving nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.dates import us_of_datetime
from icechunk_engine.errors import ErrorKind, InvalidInputError, SnapshotNotFoundError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.journal.sharing import SessionInfo, find_journals
from icechunk_engine.repository.base import RepositoryBase, resolve_ref, show_arguments
from icechunk_engine.repository.retrying import repeat_until_committed
from icechunk_engine.session import (
    ForkSession,
    IcechunkStore,
    Session,
    SessionMode,
    join_shared_session,
    resume_shared_session,
)
from icechunk_engine.session.preloading import start_preload
from icechunk_engine.session.sharing import discard
from icechunk_engine.transaction.conflicts import ConflictDetector, ConflictSolver
from icechunk_engine.workspace.context import RepositoryContext


class SessionMethods(RepositoryBase):
    """The methods of :class:`Repository` that begin sessions."""

    def _context(self) -> RepositoryContext:
        known = self._known_context  # one for all sessions: it is pickled only once
        metadata = self._default_commit_metadata  # never changed in place
        if known is None or known.default_commit_metadata is not metadata:
            known = self._known_context = RepositoryContext(
                assets=self._assets, config=self._config, resolver=self._resolver, default_commit_metadata=metadata
            )
        return known

    @operation(
        lambda self, *refs, **named: (
            f"opening a snapshot to read ({show_arguments(refs, named)}) of {self.storage.identity}"
        )
    )
    def readonly_session(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: datetime | None = None,
    ) -> Session:
        """Open a committed snapshot for reading.

        Parameters
        ----------
        branch, tag, snapshot_id
            The snapshot to read; give exactly one of them.
        as_of
            With ``branch``: open its newest snapshot that was not written after this time, which must have a time
            zone.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            The ref or snapshot does not exist, or the branch had no snapshot at that time.
        """
        return self._readonly_session(self._catalog(), branch, tag, snapshot_id, as_of)

    def _readonly_session(
        self,
        catalog: Catalog,
        branch: str | None,
        tag: str | None,
        snapshot_id: str | None,
        as_of: datetime | None,
    ) -> Session:
        found = catalog.snapshot(resolve_ref(catalog, branch, tag, snapshot_id)).id
        if as_of is not None:
            if branch is None:
                raise InvalidInputError(
                    "as_of argument must be provided together with a branch name", ErrorKind.INVALID_REF_TYPE
                )
            found = _newest_at(catalog, branch, found, as_of)
        start_preload(self._assets, found)
        return Session(self._context(), found)

    readonly_session_async = async_twin(readonly_session)

    @operation(
        lambda self, *refs, **named: (
            f"opening a branch to write ({show_arguments(refs, named)}) of {self.storage.identity}"
        )
    )
    def writable_session(self, branch: str) -> Session:
        """Begin a session that starts from a branch's present tip and commits to that branch.

        Raises
        ------
        RefNotFoundError
            The branch does not exist.
        ReadOnlyError
            The repository's status forbids writing.
        """
        catalog = self._catalog()
        tip = catalog.branch_tip(branch)
        catalog.require_online()
        start_preload(self._assets, tip)
        return Session(self._context(), tip, branch=branch, mode=SessionMode.writable)

    writable_session_async = async_twin(writable_session)

    @operation(
        lambda self, *refs, **named: (
            f"opening a branch to rearrange ({show_arguments(refs, named)}) of {self.storage.identity}"
        )
    )
    def rearrange_session(self, branch: str) -> Session:
        """Begin a session that moves and renames nodes (:meth:`Session.move`) and does nothing else.

        Raises
        ------
        RefNotFoundError
            The branch does not exist.
        ReadOnlyError
            The repository's status forbids writing.
        SessionStateError
            ``feature-flag-disabled``: ``move_node`` is switched off.
        FormatError
            ``unsupported-spec-version``: spec version 1 has no moves.
        """
        catalog = self._catalog()
        catalog.require_moves_supported()
        tip = catalog.branch_tip(branch)
        catalog.require_online()
        catalog.require_moves_allowed()
        start_preload(self._assets, tip)
        return Session(self._context(), tip, branch=branch, mode=SessionMode.rearrange)

    rearrange_session_async = async_twin(rearrange_session)

    # --- shared sessions ---------------------------------------------------------------------------------------

    @operation(lambda self, token: f"joining session {token} of {self.storage.identity}")
    def join_session(self, token: str) -> ForkSession:
        """Return a session for a job that writes a part of a shared session.

        It starts with the edits that the session had when it was last shared. Each write is stored before the call
        returns; there is nothing to merge or to commit. The session's process commits the writes of all jobs.

        Parameters
        ----------
        token
            From :meth:`Session.share`.

        Raises
        ------
        SessionStateError
            ``session-ended``: the session was committed or discarded, or the token is unknown.
        """
        return join_shared_session(self._context(), token)

    @operation(lambda self, token: f"resuming session {token} of {self.storage.identity}")
    def resume_session(self, token: str) -> Session:
        """Go on with a shared session in the place of the process that shared it, with all edits of all jobs.

        Only one process should commit: after this call the other one is refused.

        Parameters
        ----------
        token
            From :meth:`Session.share`.

        Raises
        ------
        SessionStateError
            ``session-ended``: the session was committed or discarded, or the token is unknown. ``merge-failed``: two
            jobs have written the same chunk.
        """
        catalog = self._catalog()
        catalog.require_online()
        return resume_shared_session(self._context(), catalog, token)

    def list_sessions(self) -> list[SessionInfo]:
        """Return the sessions whose edits are kept in the repository, the one that was written to last at the end.

        These are the shared sessions, and others whose store or forks write in other processes now, or did so until
        their process died. Discard those that are dead (:meth:`discard_session`).
        """
        return find_journals(self._assets.storage)

    def discard_session(self, token: str) -> None:
        """Give up a session that is not committed: remove what :meth:`list_sessions` shows of it.

        Chunks that it has stored remain until garbage collection. Jobs that still write get an error.

        Raises
        ------
        SessionStateError
            ``session-ended``: no such session.
        """
        discard(self._assets.storage, token)

    @contextmanager
    def transaction(
        self,
        branch: str,
        *,
        message: str,
        metadata: dict[str, Any] | None = None,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1_000,
    ) -> Iterator[IcechunkStore]:
        """Provide a store to write to, and commit if the block ends without an exception.

        >>> from icechunk_engine import Repository, in_memory_storage
        >>> import zarr
        >>> repo = Repository.create(in_memory_storage())
        >>> with repo.transaction("main", message="first") as store:
        ...     _ = zarr.create_group(store)
        >>> next(repo.ancestry(branch="main")).message
        'first'
        """
        session = self.writable_session(branch)
        yield session.store
        session.commit(message, metadata, rebase_with=rebase_with, rebase_tries=rebase_tries)

    def commit_with_retry(
        self,
        write: Callable[[Session], object],
        branch: str,
        *,
        message: str,
        metadata: dict[str, Any] | None = None,
        rebase_with: ConflictSolver | None = None,
        max_attempts: int = 50,
        allow_empty: bool = False,
    ) -> str:
        """Write and commit; if another commit conflicts, do both again on the newest snapshot.

        Use it for changes that depend on the data that are there, such as an append: the second of two appends must
        see the first. Changes that do not touch each other are committed at the first attempt, because a commit
        rebases first. Between attempts the call waits for a random time that grows with their number.

        Parameters
        ----------
        write
            Makes the change in the session that it gets, but does not commit. It is called again for each attempt,
            with a new session, so it must read what it needs from that session. If it raises, nothing is committed.
        branch
            Branch to commit to.
        message, metadata, allow_empty
            As in :meth:`Session.commit`.
        rebase_with
            Solver for conflicts. By default every conflict leads to another attempt.
        max_attempts
            Maximum number of attempts.

        Returns
        -------
        Id of the new snapshot.

        Raises
        ------
        ConflictError
            All attempts failed. The message tells their number and the last conflict; if it is a RebaseFailedError, so
            do its attributes.
        SessionStateError
            ``no-changes-to-commit``: ``write`` changed nothing.

        Examples
        --------
        >>> from icechunk_engine import Repository, in_memory_storage
        >>> import zarr
        >>> repo = Repository.create(in_memory_storage())
        >>> def append(session):
        ...     log = zarr.open_array(session.store, path="log", mode="a", shape=(0,), chunks=(10,), dtype="i8")
        ...     log.append([log.size])
        >>> snapshot_id = repo.commit_with_retry(append, "main", message="one more")
        """
        return repeat_until_committed(
            lambda: self.writable_session(branch),
            write,
            lambda session: session.commit(
                message, metadata, rebase_with=rebase_with or ConflictDetector(), allow_empty=allow_empty
            ),
            max_attempts,
        )


def _newest_at(catalog: Catalog, branch: str, tip: SnapshotId, time: datetime) -> SnapshotId:
    """Return the newest snapshot of a branch that was not written after a time. Raises SnapshotNotFoundError."""
    early = catalog.newest_at(tip, us_of_datetime(time))
    if early is None:
        *_, first = catalog.history(tip)
        raise SnapshotNotFoundError(
            f"branch {branch!r} does not have a snapshot before or at {time.isoformat()}; its first is of "
            f"{first.written_at.isoformat()}",
            ErrorKind.NO_SNAPSHOT_AT_TIME,
        )
    return early
