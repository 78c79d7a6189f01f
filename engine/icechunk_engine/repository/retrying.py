"""Repeat a change on the newest snapshot until it is committed.

A rebase settles what both writers may keep. Other conflicts need the change itself to run again. For example, two
appends both resize the array, and the second one must see the new length before it can tell where its data go.

The invariant: the change is committed at most once. It runs again only after an error which says that nothing was
committed. If the storage failed so that the outcome is unknown, the same session commits again: only that session can
find a commit that did succeed (:mod:`icechunk_engine.session.lost_commits`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from icechunk_engine.catalog.compare_and_swap import wait_after_lost_commit
from icechunk_engine.errors import (
    ConflictError,
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    RebaseFailedError,
    SessionStateError,
    StorageError,
)
from icechunk_engine.session import Session

_OUTCOME_UNKNOWN = frozenset({ErrorKind.OBJECT_STORE, ErrorKind.THROTTLED})
_MAX_COMMIT_CALLS = 3
"""Calls of ``commit`` while the outcome is unknown. The storage has retried each of its requests before."""


def repeat_until_committed(
    begin: Callable[[], Session],
    write: Callable[[Session], object],
    commit: Callable[[Session], str],
    max_attempts: int,
) -> str:
    """Begin a session, write and commit. After a conflict, wait and do all of it again. Returns the snapshot's id.

    Raises
    ------
    IcechunkError
        The error of the last attempt, with the number of attempts; or an error that another attempt cannot settle.
    """
    if max_attempts < 1:
        raise InvalidInputError(
            f"max_attempts must be at least 1, not {max_attempts}", ErrorKind.INVALID_COMMIT_CONFIGURATION
        )
    began = time.monotonic()
    for number in range(1, max_attempts + 1):
        started = time.monotonic()
        session = begin()
        try:
            write(session)
            try:
                return _commit_surely(commit, session)
            except (ConflictError, SessionStateError) as error:
                if not _may_succeed_later(error):
                    raise
                if number == max_attempts:
                    raise _last_error(error, number, time.monotonic() - began) from error
        finally:
            if not session.read_only:
                session.discard_changes()
        wait_after_lost_commit(number, time.monotonic() - started)
    raise AssertionError("the last attempt returns or raises")


def _commit_surely(commit: Callable[[Session], str], session: Session) -> str:
    """Commit. As long as the outcome is unknown, call again: a commit that did succeed is found."""
    for number in range(1, _MAX_COMMIT_CALLS + 1):
        started = time.monotonic()
        try:
            return commit(session)
        except StorageError as error:
            if error.kind not in _OUTCOME_UNKNOWN:
                raise
            if number == _MAX_COMMIT_CALLS:
                raise StorageError(
                    f"{error.message}. It is unknown whether the change was committed: look at the history of the "
                    f"branch before you repeat it",
                    error.kind,
                ) from error
        wait_after_lost_commit(number, time.monotonic() - started)
    raise AssertionError("the last call returns or raises")


def _may_succeed_later(error: ConflictError | SessionStateError) -> bool:
    return isinstance(error, ConflictError) or error.kind is ErrorKind.REBASE_TX_LOG_PRUNED


def _last_error(error: ConflictError | SessionStateError, attempts: int, took_s: float) -> IcechunkError:
    """Return the error of the last attempt, with what happened before it."""
    message = f"gave up after {attempts} attempts in {took_s:.1f} s, and nothing was committed. {error.message}"
    if isinstance(error, RebaseFailedError):
        return RebaseFailedError(error.snapshot, error.conflicts, message)
    if isinstance(error, ConflictError):
        return ConflictError(error.expected_parent, error.actual_parent, message, error.kind)
    return SessionStateError(message, error.kind)
