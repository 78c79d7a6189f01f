"""What a writer of a repository does in a process of its own. Imports little, since each of the processes does so."""

from __future__ import annotations

import zarr

from icechunk_engine import ConflictDetector, Repository
from icechunk_engine.storage import Storage


def commit_often(storage: Storage, writer: int, n_commits: int) -> None:
    """One commit for each value of the writer's row of the array."""
    repo = Repository.open(storage)
    for i in range(n_commits):
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+")[writer, i] = writer * 1000 + i
        session.commit(f"{writer}:{i}", rebase_with=ConflictDetector())
