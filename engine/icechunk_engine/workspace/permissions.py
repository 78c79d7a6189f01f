"""The permissions of a session, and the errors that say what is not allowed and why.

A workspace asks before each edit: once to fail early, and once more under its lock. The second answer is the one that
counts, because a commit begins under that lock: an edit either happens before the commit copies the edits, or is
refused.
"""

from __future__ import annotations

from icechunk_engine.errors import ErrorKind, ReadOnlyError, SessionStateError
from icechunk_engine.types import NumberedEnum


class SessionMode(NumberedEnum):
    """The kind of a session."""

    readonly = 0
    writable = 1
    rearrange = 2


class Permissions:
    """The present permissions of a session. A commit makes it read-only.

    Attributes
    ----------
    mode
        What the session can change.
    branch
        Branch that a commit goes to; None for read-only sessions and forks.
    is_fork
        True for a fork, which takes edits but cannot commit them.
    is_committing
        True while a thread commits the session.
    """

    __slots__ = ("branch", "is_committing", "is_fork", "mode")

    def __init__(self, mode: SessionMode, *, branch: str | None = None, is_fork: bool = False) -> None:
        self.mode = mode
        self.branch = branch
        self.is_fork = is_fork
        self.is_committing = False

    @property
    def read_only(self) -> bool:
        """True if the session takes no edits at all."""
        return self.mode is SessionMode.readonly

    def require_editable(self) -> None:
        """Raise unless the session takes edits of some kind now."""
        if self.mode is SessionMode.readonly:
            raise ReadOnlyError(
                "Read only sessions cannot modify the repository. Write through repo.writable_session(branch); after "
                "a commit, start a new session",
                ErrorKind.READ_ONLY_SESSION,
            )
        if self.is_committing:
            # The commit would not contain the edit, and would discard it on success.
            raise SessionStateError(
                "another thread is committing this session, so it takes no edits. Wait until commit returns. Then "
                "start a new session, or use this one again if the commit failed",
                ErrorKind.CONCURRENCY,
            )

    def require_writable(self) -> None:
        """Raise unless the session takes edits of metadata and chunks now."""
        if self.mode is SessionMode.rearrange:
            raise SessionStateError(
                "This session was created to rearrange the hierarchy, other write operations cannot be executed. "
                "Write data through repo.writable_session(branch)",
                ErrorKind.REARRANGE_SESSION_ONLY,
            )
        self.require_editable()

    def require_rearranging(self) -> None:
        """Raise unless nodes can be moved now."""
        self.require_editable()
        if self.mode is not SessionMode.rearrange:
            raise SessionStateError(
                "To move nodes in the hierarchy you need to create a rearrange session: "
                "session = repo.rearrange_session(branch)",
                ErrorKind.NON_REARRANGE_SESSION,
            )

    def require_forkable(self) -> None:
        """Raise unless the session can be forked now."""
        if self.mode is SessionMode.readonly:
            raise SessionStateError(
                "cannot fork a read-only session. Pickle the session itself, or fork one that you get from "
                "repo.writable_session(branch)",
                ErrorKind.CANNOT_FORK_READ_ONLY_SESSION,
            )
        self.require_writable()

    def require_committable(self) -> str:
        """Return the branch of a session that can be committed or rebased now.

        Raises
        ------
        SessionStateError
            ``commit-not-allowed``: a read-only session or a fork. ``concurrency``: another thread is committing it.
        """
        if self.is_fork:
            raise SessionStateError(
                "commits are not allowed on read-only or forked sessions, and this is a fork. Merge it into its "
                "session with session.merge(fork), then commit that session",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        if self.mode is SessionMode.readonly:
            raise SessionStateError(
                "commits are not allowed on read-only or forked sessions, and this one is read-only. Write through "
                "repo.writable_session(branch); after a commit, start a new session",
                ErrorKind.COMMIT_NOT_ALLOWED,
            )
        self.require_editable()
        assert self.branch is not None
        return self.branch
