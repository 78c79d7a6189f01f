"""Shared sessions on an S3 server: jobs that know a token, and a coordinator that comes later."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from icechunk_engine import Repository
from icechunk_engine.errors import SessionStateError
from tests.engine.repository.shared_jobs import EXPECTED, N_JOBS, make_template, run_job

from .conftest import Running, s3_at


def test_jobs_and_another_coordinator(s3_server: Running, place: str) -> None:
    repo = Repository.create(s3_at(s3_server, place))
    session = repo.writable_session("main")
    make_template(session)
    token = session.share()

    def join_and_run(job: int) -> None:
        run_job(Repository.open(s3_at(s3_server, place)).join_session(token), job)

    dead = repo.join_session(token)
    zarr.open_array(dead.store, path="t", mode="r+")[0] = -1
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(join_and_run, range(N_JOBS - 1)))
    late = repo.join_session(token)
    resumed = repo.resume_session(token)
    assert len(resumed.regions_missing("t")) == 1
    join_and_run(N_JOBS - 1)
    assert resumed.regions_missing("t") == []
    with pytest.raises(SessionStateError, match="another process has resumed"):
        session.commit("the first coordinator")
    resumed.commit("all")
    assert repo.list_sessions() == []
    with pytest.raises(SessionStateError, match="too late"):
        zarr.open_array(late.store, path="t", mode="r+")[0] = 5
    values = np.asarray(zarr.open_array(repo.readonly_session("main").store, path="t", mode="r")[:])
    np.testing.assert_array_equal(values, EXPECTED)
