"""The dask object that ``compute=False`` returns. It writes the dask arrays when it is computed.

You can compute it in any way (``.compute()``, ``dask.compute``, ``client.compute``) and with any scheduler. Two
invariants:

- *The graph is built when it is needed, not before.* Programs that only want the metadata of a template with a million
  chunks never compute the object, and must not pay for a million tasks.
- *The result is merged or committed once, although dask may run each task several times.* Merging the same edits again
  changes nothing. A commit carries the token of its write in its metadata. A second run of the task finds it in the
  history of the branch.

The last task of the graph gets the store of the session. In the session's process it merges into the session. In
another process the store is a copy, which reports the merged edits to the session's journal. For a repository the last
task commits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import dask
from dask.delayed import Delayed

from icechunk_engine.errors import ConflictError, ErrorKind, RebaseFailedError, SessionStateError
from icechunk_engine.ids import SnapshotId
from icechunk_engine.repository import Repository
from icechunk_engine.session import ForkSession, IcechunkStore, Session, SessionMode, fork_for_graph, workspace_of
from icechunk_engine.transaction.merge import OnOverlap

from .dask_writer import merge_forks, store_graph
from .group_writer import ArrayWrite
from .reopening import reopen
from .targets import Commit

__all__ = ["DelayedWrite", "delayed_commit", "delayed_merge"]

_TOKEN_KEY = "to_icechunk"
"""Key of a commit's metadata that holds the token of the delayed write that made it."""


class DelayedWrite(Delayed):
    """A Delayed whose graph is built when dask first asks for it."""

    __slots__ = ("_build", "_built", "_check")

    def __init__(self, key: str, build: Callable[[], Delayed], check: Callable[[], None] | None = None) -> None:
        """Make a Delayed; ``check`` raises if it is too late to write."""
        super().__init__(key, None)  # type: ignore[no-untyped-call]
        self._build = build
        self._check = check
        self._built: Delayed | None = None

    @property
    def dask(self) -> Any:
        """The graph."""
        if self._check is not None:
            self._check()
        if self._built is None:
            self._built = self._build()
        return self._built.dask

    def __reduce__(self) -> tuple[object, ...]:
        return Delayed, (self.key, self.dask)


# --- merging ---------------------------------------------------------------------------------------------------------


def delayed_merge(
    session: Session, writes: Sequence[ArrayWrite], split_every: int | None, on_overlap: OnOverlap
) -> DelayedWrite:
    """Return a delayed write of dask arrays into a session that already has their metadata. Its value is None."""
    key = f"icechunk-merge-{uuid4().hex}"

    def build() -> Delayed:
        forks = _forks(fork_for_graph(session), writes, split_every, on_overlap) if writes else []
        result: Delayed = dask.delayed(_merge, pure=False)(forks, session.store, on_overlap, dask_key_name=key)
        return result

    def check() -> None:
        if session.read_only:
            raise SessionStateError(
                "cannot write: the session of this delayed write was committed. Compute before you commit, or write "
                "the values into the committed arrays with to_icechunk(ds, repository, region=...)",
                ErrorKind.READ_ONLY_SESSION,
            )

    return DelayedWrite(key, build, check)


def _merge(forks: list[ForkSession], store: IcechunkStore, on_overlap: OnOverlap) -> None:
    if forks:
        store.session.merge(merge_forks(forks, on_overlap=on_overlap), on_overlap=on_overlap)


# --- committing ------------------------------------------------------------------------------------------------------


def delayed_commit(
    repository: Repository,
    branch: str,
    fork: ForkSession,
    writes: Sequence[ArrayWrite],
    split_every: int | None,
    on_overlap: OnOverlap,
    commit: Commit,
) -> DelayedWrite:
    """Return a delayed write and commit of dask arrays. Its value is the id of the snapshot.

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

    return DelayedWrite(key, build)


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
        finally:
            if not session.read_only:  # not committed: nobody can use the edits any more
                session.discard_changes()

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
