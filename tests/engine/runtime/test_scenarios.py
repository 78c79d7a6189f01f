"""Nothing hangs: scenarios that once did, and random programs of threads, each in a process with a watchdog."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import icechunk_engine as ic
from tests.bounded import run_bounded
from tests.engine.runtime import scenarios
from tests.profiles import by_profile

THREADS_MB = 8000
"""Address space, not memory: each thread reserves 8 MB for its stack."""


def test_writes_beside_whole_operations() -> None:
    n_rounds = by_profile(quick=3, thorough=10)
    run_bounded(scenarios.writes_beside_whole_operations, n_rounds, 600, seconds=120, megabytes=THREADS_MB)


def test_reads_of_a_fresh_session() -> None:
    n_rounds = by_profile(quick=5, thorough=20)
    run_bounded(scenarios.reads_of_a_fresh_session, n_rounds, 400, seconds=120, megabytes=THREADS_MB)


def test_work_that_outlives_the_main_thread(tmp_path: Path) -> None:
    run_bounded(scenarios.work_that_outlives_the_main_thread, str(tmp_path / "r"), megabytes=THREADS_MB)
    repo = ic.Repository.open(ic.local_filesystem_storage(tmp_path / "r"))
    assert next(repo.ancestry(branch="main")).message == "late"


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forks_at_random_moments(tmp_path: Path) -> None:
    n_rounds = by_profile(quick=20, thorough=100)
    run_bounded(scenarios.forks_at_random_moments, str(tmp_path / "r"), n_rounds, 1, seconds=240, megabytes=THREADS_MB)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forks_of_several_threads() -> None:
    run_bounded(scenarios.forks_of_several_threads, 8, seconds=60, megabytes=THREADS_MB)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_in_the_middle_of_an_edit() -> None:
    run_bounded(scenarios.a_fork_in_the_middle_of_an_edit, seconds=60, megabytes=THREADS_MB)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_random_threads(tmp_path: Path) -> None:
    duration_s = by_profile(quick=8.0, thorough=120.0)
    done = run_bounded(scenarios.random_threads, str(tmp_path / "r"), duration_s, 1, seconds=400, megabytes=THREADS_MB)
    assert done > 0
