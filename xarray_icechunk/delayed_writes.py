"""What ``compute=False`` returns: a dask object that writes the dask arrays when it is computed.

Two invariants:

- *The graph is built when it is needed, not before.* Programs that only want the metadata of a template with a million
  chunks never compute the object, and must not pay for a million tasks.
- *An outcome happens at most once, although dask may run each task several times.* Merging the same fork again changes
  nothing. A commit carries the token of its write in its metadata, and a second run of the task finds it in the
  history of the branch.

A commit is a task of the graph, so it takes place wherever dask runs it. A merge must take place in the process of the
session. If the last task runs in that process (threads), it merges. Otherwise :meth:`MergingWrite.compute` does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import dask
from dask.delayed import Delayed

from icechunk_engine.errors import ConflictError, ErrorKind, RebaseFailedError, SessionStateError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.repository import Repository
from icechunk_engine.session import ForkSession, Session, SessionMode, fork_for_graph, workspace_of
from icechunk_engine.transaction.merge import OnOverlap

from .dask_writer import merge_forks, store_graph
from .group_writer import ArrayWrite
from .reopening import reopen
from .targets import Commit

__all__ = ["CommittingWrite", "MergingWrite", "delayed_commit", "delayed_merge"]

_TOKEN_KEY = "to_icechunk"
"""Key of a commit's metadata that holds the token of the delayed write that made it."""


class _DelayedWrite(Delayed):
    """A Delayed whose graph is built when dask first asks for it."""

    __slots__ = ("_build", "_built")

    def __init__(self, key: str, build: Callable[[], Delayed]) -> None:
        super().__init__(key, None)  # type: ignore[no-untyped-call]
        self._build = build
        self._built: Delayed | None = None

    @property
    def dask(self) -> Any:
        """The graph."""
        if self._built is None:
            self._built = self._build()
        return self._built.dask

    def __reduce__(self) -> tuple[object, ...]:
        return Delayed, (self.key, self.dask)


class CommittingWrite(_DelayedWrite):
    """Writes the dask arrays and commits. Its value is the id of the snapshot.

    You can compute it in any way: ``.compute()``, :func:`dask.compute`, ``client.compute``. If it is computed twice,
    the second value is the id of the first commit.
    """

    __slots__ = ()


class MergingWrite(_DelayedWrite):
    """Writes the dask arrays. Its value is a fork with the edits; :meth:`compute` merges it into the session.

    If you compute it in another way, such as ``dask.compute(a, b)`` or ``client.compute(a)``, merge the values
    yourself: ``session.merge(*values)``. Merging twice changes nothing.
    """

    __slots__ = ("_on_overlap", "_session")

    def __init__(self, key: str, build: Callable[[], Delayed], session: Session, on_overlap: OnOverlap) -> None:
        super().__init__(key, build)
        self._session = session
        self._on_overlap = on_overlap

    def compute(self, **kwargs: Any) -> ForkSession | None:
        """Compute the graph, merge the edits into the session, and return the fork (None without dask arrays)."""
        _require_open(self._session)
        (fork,) = dask.compute(self, **kwargs)
        if fork is not None:
            self._session.merge(fork, on_overlap=self._on_overlap)
        merged: ForkSession | None = fork
        return merged


# --- merging ---------------------------------------------------------------------------------------------------------


def delayed_merge(
    session: Session, writes: Sequence[ArrayWrite], split_every: int | None, on_overlap: OnOverlap
) -> MergingWrite:
    """Return the write of some dask arrays into a session that already has their metadata."""
    key = f"icechunk-merge-{uuid4().hex}"

    def build() -> Delayed:
        _require_open(session)
        fork = fork_for_graph(session, is_merged=False)
        forks = _forks(fork, writes, split_every, on_overlap) if writes else []
        bring_home = functools.partial(_bring_home, on_overlap=on_overlap)
        result: Delayed = dask.delayed(bring_home, pure=False)(forks, _Home(session), dask_key_name=key)
        return result

    return MergingWrite(key, build, session, on_overlap)


def _require_open(session: Session) -> None:
    if session.read_only:
        raise SessionStateError(
            "cannot write: the session of this delayed write was committed. Compute before you commit, or write the "
            "values into the committed arrays with to_icechunk(ds, repository, region=...)",
            ErrorKind.READ_ONLY_SESSION,
        )


_homes: WeakValueDictionary[tuple[int, str], Session] = WeakValueDictionary()
"""Sessions by process and token."""


class _Home:
    """A reference to a session that leads to it in its own process only."""

    def __init__(self, session: Session) -> None:
        self.token = (os.getpid(), uuid4().hex)
        self.session: Session | None = session
        _homes[self.token] = session

    def __reduce__(self) -> tuple[object, ...]:
        return _find_home, (self.token,)

    def __dask_tokenize__(self) -> object:
        return self.token


def _find_home(token: tuple[int, str]) -> _Home:
    home = object.__new__(_Home)
    home.token = token
    home.session = _homes.get(token) if token[0] == os.getpid() else None
    return home


def _bring_home(forks: list[ForkSession], home: _Home, on_overlap: OnOverlap) -> ForkSession | None:
    if not forks:
        return None
    merged = merge_forks(forks, on_overlap=on_overlap)
    if home.session is not None:
        home.session.merge(merged, on_overlap=on_overlap)
    return merged


# --- committing ------------------------------------------------------------------------------------------------------


def delayed_commit(
    repository: Repository,
    branch: str,
    fork: ForkSession,
    writes: Sequence[ArrayWrite],
    split_every: int | None,
    on_overlap: OnOverlap,
    commit: Commit,
) -> CommittingWrite:
    """Return the write of some dask arrays and the commit.

    Parameters
    ----------
    fork
        Has the metadata. It was forked from a session without edits.
    """
    token = uuid4().hex
    key = f"icechunk-commit-{token}"
    commit = replace(commit, metadata={**(commit.metadata or {}), _TOKEN_KEY: token})
    task = _CommitTask(repository, branch, fork.snapshot_id, token, commit, on_overlap)

    def build() -> Delayed:
        forks = _forks(fork_for_graph(fork), writes, split_every, on_overlap) if writes else []
        result: Delayed = dask.delayed(task, pure=False)(fork, forks, dask_key_name=key)
        return result

    return CommittingWrite(key, build)


@dataclass(frozen=True, slots=True)
class _CommitTask:
    """Commits the edits of forks, at most once."""

    repository: Repository
    branch: str
    base_id: str
    token: str
    commit: Commit
    on_overlap: OnOverlap

    def __call__(self, fork: ForkSession, forks: list[ForkSession]) -> str:
        found = self._find()
        if found is not None:
            return found
        context = workspace_of(fork).context
        session = Session(context, SnapshotId.from_str(self.base_id), branch=self.branch, mode=SessionMode.writable)
        session.merge(merge_forks([fork, *forks], on_overlap=self.on_overlap))
        try:
            return self.commit.run(session)
        except (ConflictError, RebaseFailedError):
            # Another run of this task may have been faster.
            found = self._find()
            if found is None:
                raise
            return found

    def _find(self) -> str | None:
        """Return the snapshot that an earlier run of this task has committed."""
        for snapshot in self.repository.ancestry(branch=self.branch):
            if snapshot.metadata.get(_TOKEN_KEY) == self.token:
                return snapshot.id
            if snapshot.id == self.base_id:
                break
        return None


def _forks(
    fork: ForkSession, writes: Sequence[ArrayWrite], split_every: int | None, on_overlap: OnOverlap
) -> list[Delayed]:
    """Return one object for each array: the fork through which it is written."""
    merged = [
        store_graph(write.source, reopen(write.target, fork), write.region, split_every, on_overlap)
        for write in writes
    ]
    # A Delayed does not fuse the tasks of arrays, so they are fused here, all together: they may share sources.
    return [array.to_delayed(optimize_graph=False).item() for array in dask.optimize(*merged)]
