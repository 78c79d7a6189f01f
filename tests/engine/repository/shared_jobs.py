"""A shared session, its jobs, and processes that run them: ``python -m tests.engine.repository.shared_jobs``.

Imports little, because tests start many of these processes.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import numpy as np
import zarr

from icechunk_engine import Repository, Session, local_filesystem_storage
from icechunk_engine.session.lost_commits import CommitAttempts

N_JOBS = 6
ROWS = 4
"""Rows of chunks that one job writes."""

EXPECTED = np.arange(N_JOBS * ROWS * 3, dtype="f8").reshape(N_JOBS * ROWS, 3)
EXPECTED[ROWS : 2 * ROWS] = np.nan  # one job writes fill values only: no chunk is stored


def make_template(session: Session) -> None:
    """Create the arrays that the jobs fill, and write the coordinates."""
    root = zarr.create_group(session.store)
    array = root.create_array(
        "t", shape=EXPECTED.shape, chunks=(1, 3), dtype="f8", fill_value=np.nan, dimension_names=["time", "x"]
    )
    array.attrs["units"] = "K"
    root.create_array("x", shape=(3,), dtype="i8", dimension_names=["x"])[:] = [10, 20, 30]
    root.create_array("unnamed", shape=(2, 2), chunks=(1, 1), dtype="i8")


def rows_of(job: int) -> slice:
    return slice(job * ROWS, (job + 1) * ROWS)


def run_job(session: Session, job: int) -> None:
    """What each job does."""
    region = {"time": rows_of(job)}
    if session.is_done("t", region):
        return
    zarr.open_array(session.store, path="t", mode="r+")[rows_of(job)] = EXPECTED[rows_of(job)]
    session.mark_done("t", region)


def die_at(when: str) -> None:
    """Kill this process before or after it moves the branch."""
    real = CommitAttempts.publish

    def publish(attempts: CommitAttempts, *args: Any) -> None:
        if when == "after":
            real(attempts, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    CommitAttempts.publish = publish  # type: ignore[method-assign, assignment]


def coordinate(place: str, token: str, when: str) -> None:
    """Begin or resume the session, and die while it is shared, or while it is committed."""
    repo = Repository.open(local_filesystem_storage(place))
    if token:
        session = repo.resume_session(token)
    else:
        session = repo.writable_session("main")
        make_template(session)
        print(session.share(), flush=True)
    if when == "shared":
        os.kill(os.getpid(), signal.SIGKILL)
    die_at(when)
    session.commit("all")


def work(place: str, token: str, job: str, when: str) -> None:
    """Run a job. ``when`` may be "halfway", to die there."""
    session = Repository.open(local_filesystem_storage(place)).join_session(token)
    if when == "halfway":
        zarr.open_array(session.store, path="t", mode="r+")[rows_of(int(job)).start] = -1
        os.kill(os.getpid(), signal.SIGKILL)
    run_job(session, int(job))


if __name__ == "__main__":
    (coordinate if sys.argv[1] == "coordinate" else work)(*sys.argv[2:])
