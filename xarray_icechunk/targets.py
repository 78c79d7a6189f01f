"""The targets of ``to_icechunk``, and how a call ends for each.

A session, fork or store belongs to the caller: the call leaves its edits there, and the caller commits or merges. For
a repository, path or URL, the call starts a session and commits it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from icechunk_engine.errors import (
    ErrorKind,
    InvalidInputError,
    ReadOnlyError,
    RefNotFoundError,
    RepositoryNotFoundError,
    StorageError,
)
from icechunk_engine.errors.foreign import describe
from icechunk_engine.repository import DEFAULT_BRANCH, Repository
from icechunk_engine.session import IcechunkStore, Session, workspace_of
from icechunk_engine.storage import Storage
from icechunk_engine.storage.from_url import as_storage
from icechunk_engine.transaction.conflicts import ConflictSolver
from icechunk_engine.types import Json

from .locations import split_pipeline

__all__ = ["Commit", "Destination", "WriteTarget", "own_session", "resolve_target"]

type WriteTarget = Session | IcechunkStore | Repository | Storage | str | os.PathLike[str]
"""Where ``to_icechunk`` can write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """How to commit; the fields are arguments of :meth:`Session.commit`."""

    message: str
    metadata: Mapping[str, Json] | None
    rebase_with: ConflictSolver
    rebase_tries: int

    def run(self, session: Session) -> str:
        """Commit a session. Returns the id of the snapshot: that of the base if nothing changed."""
        if not session.has_uncommitted_changes:
            return session.snapshot_id
        try:
            return self._commit(session)
        except StorageError:
            # The commit may have succeeded, and only its answer was lost. The session finds out when it commits again.
            # The caller has no session, and would write everything twice.
            return self._commit(session)

    def _commit(self, session: Session) -> str:
        return session.commit(
            self.message, dict(self.metadata or {}), rebase_with=self.rebase_with, rebase_tries=self.rebase_tries
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A branch of a repository that exists or is to be created.

    Attributes
    ----------
    storage
        Where the repository is or will be.
    repository
        None if it does not exist yet.
    group
        Path of the group that the URL names; empty for the root.
    """

    storage: Storage
    repository: Repository | None
    branch: str
    group: str = ""

    def open_or_create(self) -> Repository:
        """Return the repository. Creates it if it does not exist."""
        return self.repository or Repository.open_or_create(self.storage)


def own_session(target: object, **commit_arguments: object) -> Session | None:
    """Return the caller's session, from a session or a store; None if the target is neither.

    Parameters
    ----------
    **commit_arguments
        Arguments of the call that only make sense if the call itself commits. None means not given.

    Raises
    ------
    ReadOnlyError, SessionStateError
        The session or the store takes no edits.
    InvalidInputError
        One of the arguments is given.
    """
    if not isinstance(target, Session | IcechunkStore):
        return None
    session = target if isinstance(target, Session) else target.session
    if given := [name for name, value in commit_arguments.items() if value is not None]:
        raise InvalidInputError(
            f"you cannot use {', '.join(given)} here, because to_icechunk does not commit a {type(target).__name__}. "
            f"Call session.commit(message) yourself, or pass the repository, its path or its URL",
            ErrorKind.NOT_ALLOWED,
        )
    if session.read_only:
        raise ReadOnlyError(
            "the session is read-only. Use repository.writable_session(branch), and start a new session after a commit"
        )
    if isinstance(target, IcechunkStore) and target.read_only:
        raise ReadOnlyError("the store is read-only. Pass its session, or session.store")
    workspace_of(session).permissions.require_writable()
    return session


def resolve_target(target: object, *, branch: str | None, storage_options: Mapping[str, object] | None) -> Destination:
    """Open the repository that a target names. Creates nothing.

    Raises
    ------
    InvalidInputError
        The target is of another kind, or an argument does not fit it.
    RefNotFoundError
        The repository does not exist yet, so it cannot have this branch.
    """
    if isinstance(target, Repository):
        if storage_options:
            raise InvalidInputError(
                "storage_options go with a path or URL. This Repository is already open: leave them out",
                ErrorKind.STORAGE_CONFIG,
            )
        return Destination(storage=target.storage, repository=target, branch=branch or DEFAULT_BRANCH)
    if not isinstance(target, Storage | str | os.PathLike):
        raise InvalidInputError(
            f"cannot write to {describe(target)}. Pass a Session, such as repository.writable_session(branch), its "
            f"store, a Repository, or a path or URL",
            ErrorKind.NOT_ALLOWED,
        )
    group = ""
    if not isinstance(target, Storage):
        target, branch, group = _parse(target, branch)
    storage = as_storage(target, storage_options)
    try:
        repository = Repository.open(storage)
    except RepositoryNotFoundError:
        if branch not in (None, DEFAULT_BRANCH):
            raise RefNotFoundError(
                f"no repository at {storage.identity}, and a new one has only the branch {DEFAULT_BRANCH!r}, not "
                f"{branch!r}. Leave branch out, or create the repository and the branch first"
            ) from None
        repository = None
    return Destination(storage=storage, repository=repository, branch=branch or DEFAULT_BRANCH, group=group)


def _parse(location: str | os.PathLike[str], branch: str | None) -> tuple[str, str | None, str]:
    """Split a URL that may end in ``|icechunk:@branch.NAME/group`` into the repository's place, branch and group."""
    place, named, group = split_pipeline(location)
    if not named:
        return place, branch, group
    if "branch" not in named or branch not in (None, named["branch"]):
        raise InvalidInputError(
            f"cannot write to {os.fspath(location)!r}"
            + (f" and to branch={branch!r}" if "branch" in named else ": you can write to branches only")
            + f". Write {place + '|icechunk:@branch.NAME'!r}, or use branch=",
            ErrorKind.INVALID_REF_TYPE,
        )
    return place, named["branch"], group
