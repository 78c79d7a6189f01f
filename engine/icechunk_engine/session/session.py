"""The classes that users work with: :class:`Session`, :class:`ForkSession` and :class:`IcechunkStore`.

A session *has* a workspace, which holds the snapshot and the edits. The store, the importers and the plugin read and
edit the workspace; :func:`workspace_of` gives it to them. This module holds only what users call: documentation,
checks of arguments, and telemetry. :mod:`.copies` sends edits to other processes, and sessions end in
:mod:`.committing`.

The session and its store are in one module because each returns the other: ``session.store`` and ``store.session``.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Self, SupportsIndex

from icechunk_engine._runtime.cluster_support import load_cluster_support
from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import ErrorKind, ReadOnlyError, SessionStateError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.ids import SnapshotId
from icechunk_engine.session.carried import CarriedSession
from icechunk_engine.session.committing import Committer
from icechunk_engine.session.copies import Copies
from icechunk_engine.session.forking import Arrival
from icechunk_engine.session.hierarchy_methods import HierarchyMethods
from icechunk_engine.session.ledger import Reporting
from icechunk_engine.session.shared_methods import SharedSessionMethods
from icechunk_engine.session.sharing import joined
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.conflicts import ConflictSolver
from icechunk_engine.transaction.merge import OnOverlap, require_on_overlap
from icechunk_engine.types import Json
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.permissions import Permissions, SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.workspace import Workspace
from icechunk_engine.zarr_store.workspace_store import WorkspaceStore

_OWN_ATTRIBUTES = frozenset({"_workspace", "_copies", "_committer"})
"""Attributes that :meth:`Session._set_up` makes."""


class Session(HierarchyMethods, SharedSessionMethods):
    """A view of the hierarchy at one snapshot, plus uncommitted edits if it is writable.

    Do not make sessions yourself: call :meth:`Repository.readonly_session`, :meth:`Repository.writable_session` or
    :meth:`Repository.rearrange_session`. You can use a session from several threads.

    A read-only session pickles. A writable session does not: pass ``session.store`` to libraries that write in other
    processes, or send ``session.fork()`` to your own tasks. Unpickling does no I/O; each process fetches the snapshot
    when it first needs it.
    """

    def __init__(
        self,
        context: RepositoryContext,
        snapshot_id: SnapshotId,
        *,
        branch: str | None = None,
        mode: SessionMode = SessionMode.readonly,
    ) -> None:
        workspace = Workspace(context, WorkspaceState(snapshot_id, ChangeSet()), Permissions(mode, branch=branch))
        self._set_up(Copies(workspace))

    def _set_up(self, copies: Copies) -> None:
        self._workspace = copies.workspace
        self._copies = copies
        self._committer = Committer(copies.workspace)

    @classmethod
    def _of(cls, copies: Copies) -> Self:
        session = cls.__new__(cls)
        session._set_up(copies)
        return session

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[object, ...]:
        return self._copies.refusal or super().__reduce_ex__(protocol)

    def __getstate__(self) -> tuple[CarriedSession] | tuple[CarriedSession, dict[str, object]]:
        carried, theirs = self._copies.pack(), self._attributes_of_users()
        return (carried, theirs) if theirs else (carried,)

    def _attributes_of_users(self) -> dict[str, object]:
        """Return the attributes that users and their subclasses have set. They travel, too."""
        return {name: value for name, value in vars(self).items() if name not in _OWN_ATTRIBUTES}

    def __setstate__(self, state: tuple[CarriedSession] | tuple[CarriedSession, dict[str, object]]) -> None:
        carried, *attributes = state
        self._set_up(Copies.unpacked(carried))
        vars(self).update(*attributes)

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be going away
            if not sys.is_finalizing():
                self._copies.warn_of_lost_edits(self)

    # --- properties --------------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        """True if nothing can be written."""
        return self._workspace.read_only

    @property
    def mode(self) -> SessionMode:
        """READONLY, WRITABLE or REARRANGE."""
        return self._workspace.permissions.mode

    @property
    def branch(self) -> str | None:
        """Branch that a commit goes to; None for read-only sessions and forks."""
        return self._workspace.permissions.branch

    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot that the session is based on."""
        return self._workspace.snapshot_id

    @property
    def config(self) -> RepositoryConfig:
        """Configuration of the repository. To change it, call :meth:`Repository.reopen`."""
        return self._workspace.config

    @property
    def has_uncommitted_changes(self) -> bool:
        """True if a commit would change something."""
        self._workspace.look()
        return self._workspace.has_changes

    @property
    def store(self) -> IcechunkStore:
        """The Zarr store that reads and writes through this session."""
        if not self.read_only:
            load_cluster_support()
        store = IcechunkStore(self)
        store._is_open = True  # one that the class makes is opened by zarr
        return store

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        mine, theirs = self._workspace, other._workspace
        if self.read_only and other.read_only:
            same_place = mine.context.assets.storage == theirs.context.assets.storage
            return same_place and mine.state.snapshot_id == theirs.state.snapshot_id
        return mine.edits_token == theirs.edits_token

    def __hash__(self) -> int:
        return hash(self._workspace.state.snapshot_id)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        place = self._workspace.storage_identity
        if self.read_only:
            return "icechunk-session", place, self.snapshot_id
        return "icechunk-session", place, self.snapshot_id, *self._workspace.edits_token

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{name}={value}' for name, value in self._summary())}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._summary()
        )
        return f"<div><b>icechunk {type(self).__name__}</b><table>{rows}</table></div>"

    def _summary(self) -> Iterator[tuple[str, str]]:
        yield "mode", self.mode.name
        branch = self.branch
        if branch is not None:
            yield "branch", repr(branch)
        yield "snapshot", self.snapshot_id
        if not self.read_only:
            yield "uncommitted", "yes" if self._workspace.has_changes else "no"
        yield "storage", self._workspace.storage_identity

    @property
    def _description(self) -> str:
        """Description for logs and errors."""
        branch = self.branch
        what = "a session without a branch" if branch is None else f"a session on branch {branch!r}"
        return f"{what} of {self._workspace.storage_identity}"

    # --- undoing edits ------------------------------------------------------------------------------------------

    def discard_changes(self) -> None:
        """Drop all uncommitted edits. Chunks that were already stored remain until garbage collection.

        This includes the edits of other processes that have :attr:`store`. If their tasks still write, they get an
        error. Pass them the store again for new writes. A shared session loses its token.
        """
        self._copies.discard()
        self._workspace.discard_edits()

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """Undo all edits made in a ``with`` block if the block raises. This includes the edits of other threads.

        Examples
        --------
        >>> with session.all_or_nothing():  # doctest: +SKIP
        ...     write_first(session.store)
        ...     write_second(session.store)  # if this raises, the first is undone too
        """
        return self._workspace.all_or_nothing()

    # --- forks -------------------------------------------------------------------------------------------------

    def fork(self) -> ForkSession:
        """Return a child session that you can pickle and edit in another process or thread.

        A session without edits forks without I/O. A session with edits first stores them as a snapshot that no branch
        points to. The session keeps its edits. Merge those of the fork back with ``session.merge(fork)``.

        Raises
        ------
        SessionStateError
            ``cannot-fork-read-only-session``.
        """
        return ForkSession._of(self._copies.fork(Reporting.mark))

    @operation(lambda self, *_, **__: f"merging forks into a session of {self._workspace.storage_identity}")
    def merge(self, *others: ForkSession, on_overlap: OnOverlap = "raise") -> None:
        """Merge the edits of forks of this session, all or none.

        Only edits that the session does not have yet are merged. Merging a fork again changes nothing, unless the
        fork made more edits. Merging a session into itself does nothing.

        Parameters
        ----------
        on_overlap : {"raise", "last"}
            If two writers wrote one chunk, or changed one node, without seeing each other's edits: raise an error, or
            let the edit win that is merged last. A task that a scheduler ran twice is never an overlap, and neither
            are equal values.

        Raises
        ------
        TypeError
            An argument is not a session.
        SessionStateError
            ``merge-not-allowed``: an argument is not a fork of this session's snapshot. ``merge-failed``: two writers
            disagree. The error names the node, the chunks and the tasks. The session is unchanged.
        """
        require_on_overlap(on_overlap)
        for other in others:
            if not isinstance(other, Session):
                raise TypeError(
                    f"merge takes forks, as in session.merge(*forks), not {describe(other)}. The session of a store "
                    f"is store.session"
                )
        arrivals = [Arrival(other._workspace, other._copies.point, other) for other in others if other is not self]
        self._copies.merge(arrivals, on_overlap)

    merge_async = async_twin(merge)

    # --- ending ------------------------------------------------------------------------------------------------

    @operation(lambda self, *_, **__: f"committing {self._description}")
    def commit(
        self,
        message: str,
        metadata: Mapping[str, Json] | None = None,
        *,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1_000,
        allow_empty: bool = False,
        allow_unmerged: bool = False,
    ) -> str:
        """Commit the edits: publish them as a new snapshot at the tip of the branch.

        Afterwards the session is read-only at the new snapshot. After an error the repository and the session are as
        before. If the storage failed so that the outcome is unknown (``object-store``), call ``commit`` again: it
        finds a commit that did succeed and does not make it twice.

        Parameters
        ----------
        message
            Commit message.
        metadata
            JSON values stored with the snapshot. They are added to the repository's default commit metadata.
        rebase_with
            Solver to rebase with if another commit came first.
        rebase_tries
            Maximum number of rebases.
        allow_empty
            Commit even if nothing changed.
        allow_unmerged
            Commit even if copies of forks wrote in other processes and were not merged.

        Returns
        -------
        Id of the new snapshot.

        Raises
        ------
        ConflictError
            Another commit came first.
        SessionStateError
            ``no-changes-to-commit``; ``commit-not-allowed``, also if copies of forks are missing; ``merge-failed``:
            edits that workers reported conflict.
        StorageError
            ``not-durable``: the disk refused files of this commit. Write the chunks named in the error again.
        FormatError
            ``snapshot-timestamp``: this machine's clock differs from the storage's by more than ten minutes.
        """
        _require_arguments(message, rebase_with)
        metadata = self._copies.commit_metadata(metadata)
        with self._copies.closed(allow_unmerged=allow_unmerged):
            return self._committer.commit(
                message, metadata, solver=rebase_with, max_rebases=rebase_tries, allow_empty=allow_empty
            )

    commit_async = async_twin(commit)

    @operation(lambda self, *_, **__: f"amending {self._description}")
    def amend(self, message: str, *, metadata: Mapping[str, Json] | None = None, allow_empty: bool = False) -> str:
        """Replace the branch's last snapshot by one that holds its changes and your edits.

        Afterwards the session is read-only at the new snapshot. You can still read the replaced snapshot by its id.

        Parameters
        ----------
        message, metadata
            Those of the new snapshot; it takes nothing over from the replaced one.
        allow_empty
            Amend even if nothing changed, for example to replace only the message.

        Returns
        -------
        Id of the new snapshot.

        Raises
        ------
        ConflictError
            Another commit came first; the session is unchanged.
        SessionStateError
            ``no-changes-to-commit``, ``commit-not-allowed``, ``no-amend-for-initial-commit``.
        StorageError
            ``not-durable``: the disk refused files of this commit. Write the chunks named in the error again.
        FormatError
            ``snapshot-timestamp``: this machine's clock differs from the storage's by more than ten minutes.
        """
        _require_arguments(message)
        metadata = self._copies.commit_metadata(metadata)
        with self._copies.closed():
            return self._committer.amend(message, metadata, allow_empty=allow_empty)

    amend_async = async_twin(amend)

    @operation(lambda self, *_, **__: f"storing a snapshot in {self._workspace.storage_identity}")
    def flush(self, message: str, metadata: Mapping[str, Json] | None = None) -> str:
        """Store the edits as a snapshot that no branch points to. Afterwards the session is read-only there.

        Returns
        -------
        Id of the snapshot. You can read it, tag it, or reset a branch to it.
        """
        _require_arguments(message)
        with self._copies.closed():
            return self._committer.flush(message, metadata)

    flush_async = async_twin(flush)

    @operation(lambda self, *_, **__: f"rebasing {self._description}")
    def rebase(self, solver: ConflictSolver) -> None:
        """Move the edits on top of the branch's current tip.

        Raises
        ------
        RebaseFailedError
            The solver could not settle every conflict; the session is unchanged.
        """
        _require_arguments("", solver)
        if self._copies.is_shared:
            raise SessionStateError(
                "a shared session cannot be rebased, because its jobs go on from the old snapshot. Pass the solver to "
                "session.commit(message, rebase_with=solver)"
            )
        with self._copies.closed():
            self._committer.rebase(solver)
        self._copies.leave_base()

    rebase_async = async_twin(rebase)


def _require_arguments(message: object, solver: object = None) -> None:
    if not isinstance(message, str):
        raise TypeError(f"a commit message must be a string, not {describe(message)}")
    if solver is not None and not isinstance(solver, ConflictSolver):
        raise TypeError(f"the solver must be a ConflictSolver, not {describe(solver)}")


class ForkSession(Session):
    """A child session for a worker, made by :meth:`Session.fork`.

    It reads, writes and pickles, but cannot commit. Merge its edits back with ``session.merge(fork)``.
    """


def fork_for_graph(session: Session, *, is_merged: bool = True) -> ForkSession:
    """Return a fork for a graph of tasks that returns all copies. Not part of the public API.

    Parameters
    ----------
    is_merged
        The caller merges what the graph returns. Otherwise the user must, and a commit without it is refused.
    """
    reporting = Reporting.nothing if is_merged else Reporting.mark
    return ForkSession._of(session._copies.fork(reporting, is_for_graph=True))


def join_shared_session(context: RepositoryContext, token: str) -> ForkSession:
    """Join a session. Not part of the public API: see :meth:`Repository.join_session`."""
    return ForkSession._of(Copies.unpacked(joined(context, token)))


def resume_shared_session(context: RepositoryContext, catalog: Catalog, token: str) -> Session:
    """Resume a session. Not part of the public API: see :meth:`Repository.resume_session`."""
    return Session._of(Copies.resumed(context, catalog, token))


def workspace_of(session: Session) -> Workspace:
    """Return the workspace of a session, for the rest of the package. Not part of the public API."""
    return session._workspace


class IcechunkStore(WorkspaceStore):
    """The Zarr store of a session. You get it from ``session.store``.

    Parameters
    ----------
    session
        The session to read and write.
    read_only
        True refuses writes even if the session takes them. By default the session decides.

    Notes
    -----
    Closing a store does not change its session.

    A store pickles. In another process it reads and writes a copy of the session. If the session is writable, the
    copy reports each write to the journal of the session before the write returns. The session collects these edits
    when you next use it.
    """

    def __init__(self, session: Session, read_only: bool | None = None) -> None:
        if not isinstance(session, Session):
            raise TypeError(f"an IcechunkStore is made from a Session, not from {describe(session)}")
        if read_only is False and session.read_only:
            raise ReadOnlyError(
                "a read-only session has no writable store; use repo.writable_session(branch).store",
                ErrorKind.READ_ONLY_SESSION,
            )
        super().__init__(session._workspace, read_only=bool(read_only))
        self._session = session

    @property
    def session(self) -> Session:
        """The session behind this store."""
        return self._session

    def with_read_only(self, read_only: bool = False) -> IcechunkStore:
        """Return another store of the same session that refuses or takes writes. It is not open yet, as zarr expects.

        Raises
        ------
        ReadOnlyError
            You asked for a writable store of a read-only session.
        """
        return type(self)(self._session, read_only)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IcechunkStore):
            return NotImplemented
        return self._session == other._session and self.read_only == other.read_only

    def __hash__(self) -> int:
        return hash(self._session)

    def __repr__(self) -> str:
        return f"<IcechunkStore read_only={self.read_only} session={self._session!r}>"

    def _repr_html_(self) -> str:
        return f"<div><b>{html.escape(type(self).__name__)}</b></div>{self._session._repr_html_()}"

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return "icechunk-store", self._session.__dask_tokenize__()

    def __reduce__(self) -> tuple[object, ...]:
        session, copies = self._session, self._session._copies
        settings: dict[str, object] = {"_is_open": self._is_open}
        if self._opened_arrays is not None and self._opened_arrays.opened:
            settings["_opened_arrays"] = self._opened_arrays
        if not copies.report_edits:
            return type(self), (session, self._read_only or None), settings
        if (refusal := copies.refusal_of_store) is not None:
            return refusal
        carried = copies.pack_for_store(), session._attributes_of_users()
        return _store_of_copy, (type(self), carried, self._read_only or None), settings

    def __copy__(self) -> IcechunkStore:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> IcechunkStore:
        # Copies of an array read and write the same session: its edits must not split in two.
        return self


def _store_of_copy(
    kind: type[IcechunkStore], carried: tuple[CarriedSession, dict[str, object]], read_only: bool | None
) -> IcechunkStore:
    session = ForkSession.__new__(ForkSession)
    session.__setstate__(carried)
    return kind(session, read_only)
