"""Shared sessions: jobs that know only a token, coordinators that die, regions that are finished."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository, Session
from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.testing.counting import CountingStorage

from .shared_jobs import EXPECTED, N_JOBS, make_template, rows_of, run_job


def require_all(repo: Repository) -> None:
    """Compare every value after the commit, in ours and in official's words."""
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    np.testing.assert_array_equal(np.asarray(group["t"][:]), EXPECTED)
    assert np.asarray(group["x"][:]).tolist() == [10, 20, 30]
    assert len(list(repo.ancestry(branch="main"))) == 2
    assert repo.list_sessions() == []


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.create(ic.local_filesystem_storage(tmp_path / "repo"))


@pytest.fixture
def session(repo: Repository) -> Session:
    """A session with a template."""
    found = repo.writable_session("main")
    make_template(found)
    return found


# --- in one process --------------------------------------------------------------------------------------------------


def test_jobs_write_and_the_session_commits(repo: Repository, session: Session) -> None:
    token = session.share()
    assert session.share() == token
    for job in range(N_JOBS):
        run_job(Repository.open(repo.storage).join_session(token), job)
    assert session.regions_missing("t") == []
    session.commit("all")
    require_all(repo)


def test_regions_say_what_is_finished(repo: Repository, session: Session) -> None:
    token = session.share()
    job = repo.join_session(token)
    assert job.regions_done("t") == session.regions_done("t") == []
    whole = {"time": slice(0, 24), "x": slice(0, 3)}
    assert session.regions_missing("t") == [whole]
    job.mark_done("t", {"time": slice(8, 12)})
    job.mark_done("/t", {"time": slice(0, 4)})
    job.mark_done("t", {"time": slice(0, 4)})
    for each in (session, job, repo.join_session(token)):
        assert each.regions_done("t") == [
            {"time": slice(0, 4), "x": slice(0, 3)},
            {"time": slice(8, 12), "x": slice(0, 3)},
        ]
        assert each.regions_missing("t") == [
            {"time": slice(4, 8), "x": slice(0, 3)},
            {"time": slice(12, 24), "x": slice(0, 3)},
        ]
        assert each.is_done("t", {"time": slice(1, 3)})
        assert not each.is_done("t", {"time": slice(3, 5)})
        assert each.regions_done("x") == []
    session.mark_done("t", {"time": slice(4, 8)})
    assert job.is_done("t", {"time": slice(0, 12)})
    job.mark_done("unnamed", (slice(0, 1),))
    assert session.regions_done("unnamed") == [(slice(0, 1), slice(0, 2))]


def test_regions_belong_to_an_array_and_not_to_its_path(repo: Repository, session: Session) -> None:
    token = session.share()
    session.mark_done("t", {})
    assert session.regions_missing("t") == []
    zarr.create_array(session.store, name="t", shape=(8,), chunks=(1,), dtype="i8", overwrite=True)
    assert session.regions_done("t") == []
    session.mark_done("t", slice(4, 8))
    zarr.open_array(session.store, path="t").resize((6,))
    assert session.regions_done("t") == [(slice(4, 6),)]
    assert repo.resume_session(token).regions_missing("t") == [(slice(0, 4),)]


def test_a_session_that_is_not_shared_records_no_regions(session: Session) -> None:
    for ask in (lambda: session.mark_done("t", {}), lambda: session.regions_done("t")):
        with pytest.raises(SessionStateError, match=r"session\.share\(\)"):
            ask()


def test_another_process_goes_on(repo: Repository, session: Session) -> None:
    token = session.share()
    run_job(repo.join_session(token), 0)
    zarr.open_array(session.store, path="t", mode="r+")[rows_of(2)] = EXPECTED[rows_of(2)]  # reported, too
    session.mark_done("t", {"time": rows_of(2)})
    zarr.open_group(session.store).attrs["title"] = "later"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del session  # its edits are not lost
    resumed = repo.resume_session(token)
    assert resumed.branch == "main"
    assert dict(zarr.open_group(resumed.store, mode="r").attrs) == {"title": "later"}
    for job in range(N_JOBS):
        run_job(resumed if job == 4 else repo.join_session(token), job)
    resumed.commit("all", metadata={"job": "array"})
    require_all(repo)
    (newest, *_) = repo.ancestry(branch="main")
    assert newest.metadata == {"job": "array", "__icechunk": {"session": token}}


def test_a_repetition_replaces_what_a_dead_job_has_left(repo: Repository, session: Session) -> None:
    token = session.share()
    dead, alive = repo.join_session(token), repo.join_session(token)
    zarr.open_array(dead.store, path="unnamed", mode="r+")[0, 0] = -1
    again = repo.join_session(token)
    zarr.open_array(again.store, path="unnamed", mode="r+")[0, 0] = 1
    zarr.open_array(again.store, path="unnamed", mode="r+")[0, 1] = 2  # its second entry
    assert np.asarray(zarr.open_array(session.store, path="unnamed", mode="r")[0]).tolist() == [1, 2]
    zarr.open_array(session.store, path="unnamed", mode="r+")[0, 1] = 3  # what was collected may be replaced, too
    resumed = repo.resume_session(token)
    assert np.asarray(zarr.open_array(resumed.store, path="unnamed", mode="r")[0]).tolist() == [1, 3]
    zarr.open_array(alive.store, path="unnamed", mode="r+")[0, 0] = 5  # it had not seen that
    with pytest.raises(SessionStateError, match="unnamed"):
        resumed.commit("all")


def test_a_job_may_send_its_session_to_workers_of_its_own(repo: Repository, session: Session) -> None:
    """What they write replaces what an earlier run of the job has left, and needs no merge."""
    token = session.share()
    dead = repo.join_session(token)
    zarr.open_array(dead.store, path="unnamed", mode="r+")[:] = -1
    again = repo.join_session(token)
    copies = [pickle.loads(pickle.dumps(again.store)), pickle.loads(pickle.dumps(again)).store]
    for row, store in enumerate(copies):
        zarr.open_array(store, path="unnamed", mode="r+")[row] = row
    home_copy = pickle.loads(pickle.dumps(session.store))  # one of the session's own store
    zarr.open_array(home_copy, path="t", mode="r+")[0] = 1
    resumed = repo.resume_session(token)
    for each in (session, resumed):
        assert np.asarray(zarr.open_array(each.store, path="unnamed", mode="r")[:]).tolist() == [[0, 0], [1, 1]]
    resumed.commit("all")


def test_copies_that_reported_before_the_session_was_shared(repo: Repository, session: Session) -> None:
    copy = pickle.loads(pickle.dumps(session.store))
    zarr.open_array(copy, path="t", mode="r+")[rows_of(0)] = EXPECTED[rows_of(0)]
    slow = pickle.loads(pickle.dumps(session.store))
    token = session.share()
    zarr.open_array(slow, path="t", mode="r+")[rows_of(2)] = EXPECTED[rows_of(2)]
    resumed = repo.resume_session(token)
    for each in (session, resumed, repo.join_session(token)):
        values = np.asarray(zarr.open_array(each.store, path="t", mode="r")[:])
        np.testing.assert_array_equal(values[rows_of(0)], EXPECTED[rows_of(0)])
        np.testing.assert_array_equal(values[rows_of(2)], EXPECTED[rows_of(2)])
    resumed.commit("all")


def test_arrays_made_after_sharing(repo: Repository, session: Session) -> None:
    token = session.share()
    early = repo.join_session(token)
    zarr.create_array(session.store, name="late", shape=(4,), chunks=(1,), dtype="i8")
    zarr.open_array(early.store, path="late", mode="r+")[0] = 1  # it looks, since it misses the array
    session.share()
    zarr.open_array(repo.join_session(token).store, path="late", mode="r+")[1] = 2
    made_by_job = repo.join_session(token)
    zarr.create_array(made_by_job.store, name="job", shape=(4,), chunks=(1,), dtype="i8")[:] = 7
    resumed = repo.resume_session(token)
    for each in (session, resumed):
        group = zarr.open_group(each.store, mode="r")
        assert np.asarray(group["late"][:]).tolist() == [1, 2, 0, 0]
        assert np.asarray(group["job"][:]).tolist() == [7] * 4
    resumed.commit("all")


def test_only_the_last_coordinator_commits(repo: Repository, session: Session) -> None:
    token = session.share()
    resumed = repo.resume_session(token)
    for end in (lambda: session.commit("first"), lambda: session.amend("first")):
        with pytest.raises(SessionStateError, match="another process has resumed") as caught:
            end()
        assert caught.value.kind == ErrorKind.COMMIT_NOT_ALLOWED
    run_job(repo.join_session(token), 0)
    back = repo.resume_session(token)
    with pytest.raises(SessionStateError, match="another process has resumed"):
        resumed.commit("second")
    back.commit("third")
    assert len(list(repo.ancestry(branch="main"))) == 2


def test_jobs_that_come_too_late(repo: Repository, session: Session) -> None:
    token = session.share()
    job = repo.join_session(token)
    session.commit("all")
    with pytest.raises(SessionStateError, match="too late") as caught:
        zarr.open_array(job.store, path="t", mode="r+")[0] = 1
    assert caught.value.kind == ErrorKind.SESSION_ENDED
    with pytest.raises(SessionStateError, match="too late"):
        job.mark_done("t", {})
    for call in (repo.join_session, repo.resume_session, repo.discard_session):
        with pytest.raises(SessionStateError, match="no shared session has the token") as caught:
            call(token)
        assert caught.value.kind == ErrorKind.SESSION_ENDED
    assert repo.list_sessions() == []


@pytest.mark.parametrize("by", ["session", "repository"])
def test_discarding(repo: Repository, session: Session, by: str) -> None:
    token = session.share()
    job = repo.join_session(token)
    run_job(job, 0)
    if by == "session":
        session.discard_changes()
    else:
        repo.discard_session(token)
    with pytest.raises(SessionStateError, match="too late"):
        run_job(job, 2)
    assert repo.list_sessions() == []
    with pytest.raises(SessionStateError, match="no shared session"):
        repo.resume_session(token)
    session.discard_changes()


def test_what_cannot_be_shared_or_rebased(repo: Repository, session: Session) -> None:
    with pytest.raises(SessionStateError, match="fork cannot be shared"):
        session.fork().share()
    with pytest.raises(SessionStateError, match="cannot fork a read-only session"):
        repo.readonly_session("main").share()
    token = session.share()
    job = repo.join_session(token)
    assert job.share() == token
    with pytest.raises(SessionStateError, match="cannot be rebased"):
        session.rebase(ic.ConflictDetector())
    with repo.transaction("main", message="other") as store:
        zarr.create_group(store, path="other")
    run_job(job, 0)
    session.commit("mine", rebase_with=ic.ConflictDetector())
    assert set(zarr.open_group(repo.readonly_session("main").store, mode="r")) == {"t", "x", "unnamed", "other"}


def test_a_commit_that_failed_goes_on(repo: Repository, session: Session) -> None:
    token = session.share()
    with repo.transaction("main", message="other") as store:
        zarr.create_group(store, path="other")
    run_job(repo.join_session(token), 0)
    with pytest.raises(ic.ConflictError):
        session.commit("mine")
    for job in range(1, N_JOBS):
        run_job(repo.join_session(token), job)
    resumed = repo.resume_session(token)
    assert resumed.regions_missing("t") == []
    resumed.commit("mine", rebase_with=ic.ConflictDetector())
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    np.testing.assert_array_equal(np.asarray(group["t"][:]), EXPECTED)


def test_two_jobs_that_write_one_chunk(repo: Repository, session: Session) -> None:
    token = session.share()
    one, other = repo.join_session(token), repo.join_session(token)
    zarr.open_array(one.store, path="unnamed", mode="r+")[0, 0] = 1
    zarr.open_array(other.store, path="unnamed", mode="r+")[0, 0] = 2
    for look in (session.status, lambda: repo.resume_session(token)):
        with pytest.raises(SessionStateError, match="unnamed") as caught:
            look()
        assert caught.value.kind == ErrorKind.MERGE_FAILED


def test_forks_of_a_shared_session(repo: Repository, session: Session) -> None:
    """What is merged is in the journal, too."""
    token = session.share()
    fork = session.fork()
    zarr.open_array(fork.store, path="t", mode="r+")[rows_of(0)] = EXPECTED[rows_of(0)]
    session.merge(fork)
    resumed = repo.resume_session(token)
    values = np.asarray(zarr.open_array(resumed.store, path="t", mode="r")[rows_of(0)])
    np.testing.assert_array_equal(values, EXPECTED[rows_of(0)])
    resumed.commit("all")


def test_the_list_of_sessions(repo: Repository, session: Session) -> None:
    assert repo.list_sessions() == []
    token = session.share()
    run_job(repo.join_session(token), 0)
    other = repo.writable_session("main")
    (info,) = repo.list_sessions()
    assert (info.token, info.branch, info.snapshot_id) == (token, "main", other.snapshot_id)
    assert info.is_shared
    assert info.created_at is not None
    assert info.created_at <= info.last_report_at
    assert info.num_reports >= 2
    session.commit("all")
    assert repo.list_sessions() == []


def test_xarray_writes_regions(repo: Repository, session: Session) -> None:
    token = session.share()
    data = xr.Dataset({"t": (("time", "x"), EXPECTED)})
    for job in range(N_JOBS):
        region = {"time": rows_of(job)}
        joined = repo.join_session(token)
        data.isel(region).to_zarr(joined.store, region=region, consolidated=False)
        joined.mark_done("t", region)
    assert session.regions_missing("t") == []
    session.commit("all")
    require_all(repo)


def test_requests(tmp_path: Path) -> None:
    storage = CountingStorage(ic.in_memory_storage())
    repo = Repository.create(storage)
    session = repo.writable_session("main")
    make_template(session)
    token = session.share()
    storage.reset()
    job = repo.join_session(token)
    assert dict(storage.requests) == {"get": 1, "info": 1, "list": 1}
    storage.reset()
    zarr.open_array(job.store, path="t", mode="r+")
    assert "list" not in storage.requests  # the template is in the snapshot that the job starts from
    storage.reset()
    job.mark_done("t", {"time": slice(0, 1)})
    assert storage.requests["put"] + storage.requests["create"] == 1
    assert storage.requests["info"] == 1
    storage.reset()
    assert len(job.regions_done("t")) == 1
    assert dict(storage.requests) == {"list": 1}
    session.commit("all")


# --- in processes of their own ---------------------------------------------------------------------------------------


def run(*arguments: object, killed: bool = False) -> str:
    """Run a process of :mod:`.shared_jobs`. Returns what it prints."""
    command = [sys.executable, "-m", "tests.engine.repository.shared_jobs", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=120, check=False)
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr
    return done.stdout.strip()


@pytest.mark.long
def test_jobs_and_coordinators_that_are_killed(repo: Repository, tmp_path: Path) -> None:
    place = tmp_path / "repo"
    token = run("coordinate", place, "", "shared", killed=True)
    with ThreadPoolExecutor(2) as threads:
        lives = threads.submit(run, "work", place, token, 0, "")
        dies = threads.submit(run, "work", place, token, 3, "halfway", killed=True)
        lives.result()
        dies.result()
    for job in (1, 2, 4):
        run_job(repo.join_session(token), job)
    missing = repo.join_session(token).regions_missing("t")
    assert missing == [{"time": rows_of(job), "x": slice(0, 3)} for job in (3, 5)]
    # The next coordinator dies before it moves the branch: no record says that the session takes reports.
    run("coordinate", place, token, "before", killed=True)
    (info,) = repo.list_sessions()
    assert (info.token, info.branch) == (token, "main")
    with pytest.raises(SessionStateError, match="no shared session"):
        repo.join_session(token)
    resumed = repo.resume_session(token)
    run("work", place, token, 3, "")  # the repetition replaces what the killed job has left
    run_job(resumed, 5)
    assert resumed.regions_missing("t") == []
    # The last coordinator dies after it has moved the branch.
    run("coordinate", place, token, "after", killed=True)
    assert len(repo.list_sessions()) == 1
    with pytest.raises(SessionStateError, match="already committed, as snapshot"):
        repo.resume_session(token)
    require_all(repo)
