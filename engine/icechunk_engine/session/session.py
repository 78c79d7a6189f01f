"""Sessions: an isolated view of one snapshot, with uncommitted edits when writable.

A read-only session is a snapshot and nothing else. A writable session belongs to a branch and ends with a commit,
after which it is read-only at the new snapshot; a rearrange session does the same with moves in place of edits. A fork
is a picklable child for a worker: it cannot commit, its edits go home through :meth:`Session.merge`. Unpickling does
no I/O; the snapshot is fetched when first needed, once a process.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.changes import (
    AddCommit,
    AddDetachedSnapshot,
    AmendCommit,
    CatalogChange,
)
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.catalog.preconditions import require_amendable
from icechunk_engine.catalog.swapping import wait_after_lost_commit
from icechunk_engine.errors import (
    ConflictError,
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from icechunk_engine.errors.foreign import describe
from icechunk_engine.ids import NodeId, SnapshotId
from icechunk_engine.session.view import RepositoryContext, ViewState
from icechunk_engine.session.workspace import Workspace
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.commit import ManifestMemo, NewSnapshot, write_snapshot
from icechunk_engine.transaction.conflicts import ConflictSolver
from icechunk_engine.transaction.diff import Diff, diff_of_changes
from icechunk_engine.transaction.durable_chunks import make_durable
from icechunk_engine.transaction.merge import merge_fork
from icechunk_engine.transaction.rebase import describe_conflicts, rebase_changes
from icechunk_engine.types import NumberedEnum

if TYPE_CHECKING:
    from icechunk_engine.store import IcechunkStore


_REBASE_TRIES = 100
"""Rebases that begin anew because another thread edited the session meanwhile."""


class SessionMode(NumberedEnum):
    """What a session may do."""

    readonly = 0
    writable = 1
    rearrange = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPoint:
    """Where a fork left its parent, so that its edits can be merged back.

    Attributes
    ----------
    origin_id
        The committed snapshot that the whole family of forks is based on.
    revisions
        Revision of the parent's chunk edits at that moment, by array.
    """

    origin_id: SnapshotId
    revisions: Mapping[NodeId, int]


class Session(Workspace):
    """A view of the hierarchy at one snapshot, plus uncommitted edits when writable.

    Made by :meth:`Repository.readonly_session`, :meth:`Repository.writable_session` and friends, never directly.
    Safe to use from several threads.
    """

    def __init__(
        self,
        context: RepositoryContext,
        snapshot_id: SnapshotId,
        *,
        branch: str | None = None,
        mode: SessionMode = SessionMode.readonly,
    ) -> None:
        super().__init__(context, snapshot_id)
        self._branch = branch
        self._mode = mode
        self._fork_point: ForkPoint | None = None
        self._is_ending = False
        # Snapshots that may have been published, for all that is known, each with the edits that it holds.
        self._unsettled: list[tuple[NewSnapshot, tuple[str, int]]] = []

    # --- identity and state ------------------------------------------------------------------------------------

    @property
    def read_only(self) -> bool:
        """True when nothing can be written."""
        return self._mode is SessionMode.readonly

    @property
    def mode(self) -> SessionMode:
        """READONLY, WRITABLE or REARRANGE."""
        return self._mode

    @property
    def is_fork(self) -> bool:
        """True for a child made by :meth:`fork`."""
        return self._fork_point is not None

    @property
    def branch(self) -> str | None:
        """Branch that a commit goes to; None for read-only sessions and forks."""
        return self._branch

    @property
    def has_uncommitted_changes(self) -> bool:
        """True when a commit would change something."""
        return not self._state.changes.is_empty

    @property
    def store(self) -> IcechunkStore:
        """The Zarr store that reads and writes through this session."""
        return self._context.make_store(self)

    def status(self) -> Diff:
        """The uncommitted edits."""
        state = self._loaded()
        with self._lock:
            return diff_of_changes(state.changes, state.nodes)

    def discard_changes(self) -> None:
        """Forget all uncommitted edits. Chunks written meanwhile stay as garbage until collected."""
        with self._lock:
            self._require_not_read_only()
            self._require_not_ending()
            self._set_again.clear()
            self._replace_state(ViewState(self._state.snapshot_id, ChangeSet(), self._state.base))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        if self.read_only and other.read_only:
            same_place = self._context.assets.storage == other._context.assets.storage
            return same_place and self._state.snapshot_id == other._state.snapshot_id
        return self._edits_token() == other._edits_token()

    def __hash__(self) -> int:
        return hash(self._state.snapshot_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{name}={value}' for name, value in self._summary())}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self._summary()
        )
        return f"<div><b>icechunk {type(self).__name__}</b><table>{rows}</table></div>"

    @property
    def _place(self) -> str:
        """What an operation is about, for logs and errors."""
        what = "a session without a branch" if self.branch is None else f"a session on branch {self.branch!r}"
        return f"{what} of {self.storage_identity}"

    def _summary(self) -> Iterator[tuple[str, str]]:
        yield "mode", self._mode.name
        if self._branch is not None:
            yield "branch", repr(self._branch)
        yield "snapshot", self.snapshot_id
        if not self.read_only:
            yield "uncommitted", "yes" if self.has_uncommitted_changes else "no"
        yield "storage", self._context.assets.storage.identity

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        place = self._context.assets.storage.identity
        if self.read_only:
            return "icechunk-session", place, self.snapshot_id
        return "icechunk-session", place, self.snapshot_id, *self._edits_token()

    # --- pickling ----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        if not self.read_only and not self.is_fork:
            raise InvalidInputError(  # official's is a ValueError, too
                "You must opt-in to pickle writable sessions in a distributed context using Session.fork(), since "
                "the edits of a copy would be lost. Send fork = session.fork() to the workers and bring their "
                "changes back with session.merge(*forks); xarray users call xarray_icechunk.to_icechunk(ds, "
                "session), which does all of that. For reading in workers use repo.readonly_session(...)",
                ErrorKind.PICKLE,
            )
        with self._lock:
            state = self.__dict__.copy()
            state["_state"] = self._state.copy()  # pickled after the lock is released
        if self.has_uncommitted_changes:
            # What a fork wrote in a worker must be durable before the coordinator may commit it.
            storage, edited = self._context.assets.storage, state["_state"]
            make_durable(storage, edited.changes, lambda: self._context.assets.snapshot(edited.snapshot_id).nodes)
        for name in ("_lock", "_is_copy"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = memory_lock()
        self._is_copy = True

    # --- forks -------------------------------------------------------------------------------------------------

    def fork(self) -> ForkSession:
        """A picklable child for another process or thread.

        A clean session forks without I/O. A session with edits first stores them as an unpublished snapshot that the
        fork starts from, so that the fork stays small; the session keeps its edits.

        Raises
        ------
        SessionStateError
            ``cannot-fork-read-only-session``.
        """
        with self._lock:
            if self._mode is SessionMode.readonly:
                raise SessionStateError(
                    "cannot fork a read-only session. Pickle it as it is, or fork one of "
                    "repo.writable_session(branch)",
                    ErrorKind.CANNOT_FORK_READ_ONLY_SESSION,
                )
            self._require_writable()
            state = self._state.copy()
            origin = self._origin
        base_id = state.snapshot_id
        if not state.changes.is_empty:
            base = self._context.assets.snapshot(base_id)
            new = write_snapshot(
                self._context.assets, base, state.changes, message="fork point", metadata={}, is_final=False
            )
            base_id = new.info.id
        child = ForkSession(self._context, base_id, mode=SessionMode.writable)
        child._fork_point = ForkPoint(
            origin_id=origin,
            revisions={node_id: edits.revision for node_id, edits in state.changes.chunks.items()},
        )
        return child

    @property
    def _origin(self) -> SnapshotId:
        """The committed snapshot that this session and its forks are based on."""
        return self._state.snapshot_id if self._fork_point is None else self._fork_point.origin_id

    @operation(lambda self, *_, **__: f"merging forks into a session of {self.storage_identity}")
    def merge(self, *others: ForkSession) -> None:
        """Bring the edits of forks of this session home; all of them or none.

        Where two forks wrote the same chunk, the later one in the argument list wins. A fork may be merged again after
        it made more edits; merging a session into itself changes nothing.

        Raises
        ------
        TypeError
            Something that is no session.
        SessionStateError
            ``merge-not-allowed``: not a fork of this session's snapshot. ``merge-failed``: two of them disagree about
            a node's metadata or existence. The session is unchanged.
        """
        for other in others:
            if not isinstance(other, Session):
                raise TypeError(
                    f"merge takes forks, session.merge(*forks), not {describe(other)}; that of a store is "
                    f"store.session"
                )
        self._require_writable()
        arriving = [(other, other._copied_state()) for other in others if other is not self]  # its edits are here
        if others and not arriving:
            return

        def bring_home(state: ViewState) -> None:
            origin = self._origin
            merged = state.copy()
            for other, theirs in arriving:
                point = other._fork_point
                if point is None or point.origin_id != origin:
                    raise SessionStateError(
                        f"can only merge forks of this session: {other!r} is not a fork based on snapshot {origin}. "
                        f"Make forks with session.fork() and merge them before the session commits",
                        ErrorKind.MERGE_NOT_ALLOWED,
                    )
                if not theirs.changes.is_empty:
                    merge_fork(state.nodes, merged.changes, theirs.nodes, theirs.changes, point.revisions)
            self._replace_state(merged)

        self._edit(bring_home)

    def _copied_state(self) -> ViewState:
        """The present state, loaded if there are edits; what is edited later is not in it."""
        with self._lock:
            state = self._state.copy()
        if not state.changes.is_empty and state.base is None:
            state.base = self._context.assets.snapshot(state.snapshot_id)
        return state

    merge_async = async_twin(merge)

    # --- ending ------------------------------------------------------------------------------------------------

    @operation(lambda self, *_, **__: f"committing {self._place}")
    def commit(
        self,
        message: str,
        metadata: dict[str, Any] | None = None,
        *,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1_000,
        allow_empty: bool = False,
    ) -> str:
        """Publish the edits as a new snapshot at the tip of the branch; afterwards the session is read-only there.

        All or nothing: on an error the repository and the session are as before. When the storage failed in such a way
        that nobody can tell (``object-store``), call it again: a commit that did take place is not made twice.

        Parameters
        ----------
        message
            Commit message.
        metadata
            JSON-like values kept with the snapshot, on top of the repository's default commit metadata.
        rebase_with
            When another commit came first, rebase with this solver and try again.
        rebase_tries
            How often at most.
        allow_empty
            Commit even if nothing changed.

        Returns
        -------
        Id of the new snapshot.

        Raises
        ------
        ConflictError
            Another commit came first.
        SessionStateError
            ``no-changes-to-commit``, ``commit-not-allowed``.
        StorageError
            ``not-durable``: the disk refused files that the edits refer to. Write the named chunks again.
        FormatError
            ``snapshot-timestamp``: this machine's clock is more than ten minutes from the storage's.
        """
        _require_arguments(message, rebase_with)

        def commit(branch: str, state: ViewState) -> NewSnapshot:
            with self._context.assets.storage.commit_queue():
                return self._commit_with_retries(state, branch, message, metadata, rebase_with, rebase_tries)

        return self._end("commit", commit, allow_empty=allow_empty)

    def _commit_with_retries(
        self,
        state: ViewState,
        branch: str,
        message: str,
        metadata: dict[str, Any] | None,
        solver: ConflictSolver | None,
        tries: int,
    ) -> NewSnapshot:
        """Commit; on a lost race rebase a copy of the edits and try again, keeping what need not be written anew.

        The branch is looked at first: what has lost already is not written.
        """
        assets = self._context.assets
        memo: ManifestMemo = {}
        base_id, changes, attempts = state.snapshot_id, state.changes, 0
        refs = open_catalog(assets)
        while True:
            refs.require_online()
            started = time.monotonic()
            try:
                _require_tip(refs, branch, base_id)
                new = write_snapshot(
                    assets,
                    assets.snapshot(base_id),
                    changes,
                    message=message,
                    metadata=self._full_metadata(metadata, attempts if solver is not None else None),
                    memo=memo,
                )
                self._publish(new, AddCommit(branch, new.info, bool(changes.moved_nodes)), refs)
            except ConflictError as error:
                if error.kind is not ErrorKind.COMMIT_CONFLICT:
                    raise
                if (landed := self._landed(branch)) is not None:
                    return landed
                if solver is None or attempts >= tries:
                    raise self._told_apart(error, branch, base_id, changes) from None
            else:
                return new
            attempts += 1
            if base_id == refs.branch_tip(branch):  # it was lost after the branch was looked at
                if assets.storage.is_remote:
                    wait_after_lost_commit(attempts, time.monotonic() - started)
                refs = open_catalog(assets)
            base_id, changes = rebase_changes(assets, refs, branch, base_id, changes, solver)

    def _publish(self, new: NewSnapshot, change: CatalogChange, refs: Catalog) -> None:
        """Publish, and remember it until it is known not to have taken place, or the session has ended."""
        self._unsettled.append((new, self._edits_token()))  # before: an interrupt may come as soon as it took place
        try:
            refs.publish(change)
        except IcechunkError as error:
            if not isinstance(error, StorageError):
                self._unsettled.pop()
            raise

    def _landed(self, branch: str) -> NewSnapshot | None:
        """The snapshot of an earlier try whose answer was lost, if the branch has it.

        Raises
        ------
        ConflictError
            It has, and the session was edited since.
        """
        if not self._unsettled:
            return None
        refs = open_catalog(self._context.assets)
        line = {info.id for info in refs.ancestry(refs.branch_tip(branch))}
        for new, token in self._unsettled:
            if new.info.id in line:
                refs.require_published(branch)
                if token == self._edits_token():
                    return new
                raise ConflictError(
                    message=f"an earlier commit of this session, whose answer was lost, did take place: snapshot "
                    f"{new.info.id}. What was edited after it is not in there; make these edits in a new session"
                )
        return None

    def _told_apart(self, error: ConflictError, branch: str, base_id: SnapshotId, changes: ChangeSet) -> ConflictError:
        """The error of a lost race, with what conflicts and with which commit, as far as that can be found out."""
        assets = self._context.assets
        try:
            found = describe_conflicts(assets, open_catalog(assets), branch, base_id, changes)
        except IcechunkError as unknown:
            found = f"what conflicts could not be found out: {unknown}"
        return ConflictError(error.expected_parent, error.actual_parent, f"{error.message}. {found}", error.kind)

    commit_async = async_twin(commit)

    @operation(lambda self, *_, **__: f"amending {self._place}")
    def amend(self, message: str, *, metadata: dict[str, Any] | None = None, allow_empty: bool = False) -> str:
        """Put the branch's last snapshot and the edits together into one that takes its place.

        The snapshot that is replaced can still be read by its id. Afterwards the session is read-only at the new one.

        Parameters
        ----------
        message, metadata
            Those of the new snapshot; nothing is taken over from the one that is replaced.
        allow_empty
            Amend even if nothing changed, to replace message and metadata only.

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
            ``not-durable``: the disk refused files that the edits refer to. Write the named chunks again.
        FormatError
            ``snapshot-timestamp``: this machine's clock is more than ten minutes from the storage's.
        """
        _require_arguments(message)

        def amend(branch: str, state: ViewState) -> NewSnapshot:
            with self._context.assets.storage.commit_queue():
                return self._amend(state, branch, message, metadata)

        return self._end("amend", amend, allow_empty=allow_empty)

    def _amend(self, state: ViewState, branch: str, message: str, metadata: dict[str, Any] | None) -> NewSnapshot:
        assets, base_id, changes = self._context.assets, state.snapshot_id, state.changes
        refs = open_catalog(assets)
        refs.require_amend_supported()
        refs.require_online()
        try:
            _require_tip(refs, branch, base_id)
            require_amendable(refs.snapshot(base_id))
            amended = assets.transaction_log(base_id)
            if amended is None:
                raise SessionStateError(
                    f"snapshot {base_id} cannot be amended: its transaction log is gone. Commit instead",
                    ErrorKind.REBASE_TX_LOG_PRUNED,
                )
            new = write_snapshot(
                assets,
                assets.snapshot(base_id),
                changes,
                message=message,
                metadata=self._full_metadata(metadata, None),
                amended=amended,
            )
            self._publish(new, AmendCommit(branch, base_id, new.info, bool(changes.moved_nodes)), refs)
        except ConflictError as error:
            if error.kind is not ErrorKind.COMMIT_CONFLICT:
                raise
            if (landed := self._landed(branch)) is not None:
                return landed
            raise self._told_apart(error, branch, base_id, changes) from None
        return new

    amend_async = async_twin(amend)

    @operation(lambda self, *_, **__: f"storing a snapshot in {self.storage_identity}")
    def flush(self, message: str, metadata: dict[str, Any] | None = None) -> str:
        """Store the edits as a detached snapshot that no branch points to; afterwards the session is read-only there.

        Returns
        -------
        Id of the snapshot, to read, tag or reset a branch to it.
        """
        _require_arguments(message)

        def flush(_: str, state: ViewState) -> NewSnapshot:
            new = write_snapshot(
                self._context.assets,
                self._context.assets.snapshot(state.snapshot_id),
                state.changes,
                message=message,
                metadata=self._full_metadata(metadata, None),
            )
            catalog = open_catalog(self._context.assets)
            catalog.publish(AddDetachedSnapshot(new.info, bool(state.changes.moved_nodes)))
            return new

        return self._end("flush", flush)

    flush_async = async_twin(flush)

    @operation(lambda self, *_, **__: f"rebasing {self._place}")
    def rebase(self, solver: ConflictSolver) -> None:
        """Put the edits on top of the branch's present tip.

        Raises
        ------
        RebaseFailedError
            The solver could not settle every conflict; the session is unchanged.
        """
        _require_arguments("", solver)
        landed = self._landed(self._require_quiet())
        branch = self._require_quiet()  # once more: what landed may be a commit that another thread is about to end
        if landed is not None:
            raise ConflictError(
                message=f"these edits are committed: an earlier commit, whose answer was lost, did take place as "
                f"snapshot {landed.info.id}. Call commit again, which says so and ends the session"
            )
        assets = self._context.assets
        for _ in range(_REBASE_TRIES):
            with self._lock:
                self._require_quiet()
                token, state = self._edits_token(), self._state.copy()
            tip, changes = rebase_changes(
                assets, open_catalog(assets), branch, state.snapshot_id, state.changes, solver
            )
            rebased = ViewState(tip, changes, assets.snapshot(tip))
            with self._lock:
                self._require_quiet()
                if token == self._edits_token():
                    self._replace_state(rebased)
                    return
        raise SessionStateError(
            "other threads edited this session all the time while it was to be rebased; it is unchanged. Let them end "
            "first",
            ErrorKind.CONCURRENCY,
        )

    rebase_async = async_twin(rebase)

    def _full_metadata(self, metadata: dict[str, Any] | None, rebase_attempts: int | None) -> dict[str, Any]:
        full = {**self._context.default_commit_metadata, **(metadata or {})}
        if rebase_attempts is not None:
            own = full.get("__icechunk")
            full["__icechunk"] = {**(own if isinstance(own, dict) else {}), "rebase_attempts": rebase_attempts}
        return full

    def _end(self, action: str, store: Callable[[str, ViewState], NewSnapshot], *, allow_empty: bool = False) -> str:
        """Become read-only at the snapshot that ``store`` makes of branch and edits, and returns; gives its id.

        Nobody changes the edits meanwhile. When ``store`` raises, they are as before.
        """
        is_mine = False
        try:
            with self._lock:
                branch = self._require_quiet()
                self._require_changes(action, allow_empty=allow_empty)
                self._is_ending = is_mine = True
                state = self._state.copy()
            new = store(branch, state)
            with self._lock:
                # In this order, so that an interrupt leaves a session that can go on or has ended, and nothing else.
                self._replace_state(ViewState(new.info.id, ChangeSet(), new.snapshot))
                self._unsettled = []
                self._mode = SessionMode.readonly
                self._branch = None
            return str(new.info.id)
        finally:
            if is_mine:
                self._is_ending = False

    # --- preconditions -----------------------------------------------------------------------------------------

    def _require_not_read_only(self) -> None:
        if self._mode is SessionMode.readonly:
            raise ReadOnlyError(
                "Read only sessions cannot modify the repository. Write through repo.writable_session(branch); after "
                "a commit, start a new session to go on",
                ErrorKind.READ_ONLY_SESSION,
            )

    def _require_not_ending(self) -> None:
        # An edit that came now would be in no commit, and gone when this one succeeds.
        if self._is_ending:
            raise SessionStateError(
                "another thread is committing this session, so it takes no edits. Wait until commit returns; then go "
                "on in a new session, or in this one if the commit failed",
                ErrorKind.CONCURRENCY,
            )

    def _require_writable(self) -> None:
        self._require_not_read_only()
        self._require_data_session()
        self._require_not_ending()

    def _require_data_session(self) -> None:
        if self._mode is SessionMode.rearrange:
            raise SessionStateError(
                "This session was created to rearrange the hierarchy, other write operations cannot be executed. "
                "Write data through repo.writable_session(branch)",
                ErrorKind.REARRANGE_SESSION_ONLY,
            )

    def _require_rearranging(self) -> None:
        self._require_not_read_only()
        self._require_not_ending()
        if self._mode is not SessionMode.rearrange:
            raise SessionStateError(
                "To move nodes in the hierarchy you need to create a rearrange session: "
                "session = repo.rearrange_session(branch)",
                ErrorKind.NON_REARRANGE_SESSION,
            )

    def _require_committable(self) -> str:
        if self.is_fork:
            raise SessionStateError(
                "commits are not allowed on read-only or forked sessions, and this is a fork. Bring it home with "
                "session.merge(fork) and commit that session",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        if self._mode is SessionMode.readonly:
            raise SessionStateError(
                "commits are not allowed on read-only or forked sessions, and this one is read-only. Write through "
                "repo.writable_session(branch); after a commit, start a new session to go on",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        assert self._branch is not None
        return self._branch

    def _require_quiet(self) -> str:
        """The branch of a session that may be committed or rebased, and that no other thread is committing."""
        branch = self._require_committable()
        self._require_not_ending()
        return branch

    def _require_changes(self, action: str, *, allow_empty: bool = False) -> None:
        if self._state.changes.is_empty and not allow_empty:
            again = list(self._set_again)
            raise SessionStateError(
                f"nothing to {action}, no changes made to the session: no group, array or chunk was changed"
                + (f" (the metadata of {_listed(again)} was written again as it was)" if again else "")
                + ("" if action == "flush" else f". Pass allow_empty=True to {action} all the same"),
                ErrorKind.NO_CHANGES_TO_COMMIT,
            )


def _listed(paths: Sequence[str], at_most: int = 5) -> str:
    more = len(paths) - at_most
    return ", ".join(paths[:at_most]) + (f" and {more} more" if more > 0 else "")


def _require_arguments(message: object, solver: object = None) -> None:
    if not isinstance(message, str):
        raise TypeError(f"a commit message must be a string, not {describe(message)}")
    if solver is not None and not isinstance(solver, ConflictSolver):
        raise TypeError(f"the solver must be a ConflictSolver, not {describe(solver)}")


def _require_tip(refs: Catalog, branch: str, expected: SnapshotId) -> None:
    """Raise ConflictError unless a branch is where the session began: what has lost already need not be written."""
    tip = refs.branch_tip(branch)
    if tip != expected:
        raise ConflictError(str(expected), str(tip))


class ForkSession(Session):
    """A child session for a worker: reads, writes and pickles; its edits go home through :meth:`Session.merge`."""

    @property
    def mode(self) -> SessionMode:
        """WRITABLE: forks take edits, though they cannot commit them."""
        return self._mode


def workspace_of(session: Session) -> Workspace:
    """What the rest of the engine reads and edits a session through; no part of a session's public face."""
    return session


__all__ = ["ForkPoint", "ForkSession", "RepositoryContext", "Session", "SessionMode", "workspace_of"]
