"""A machine whose clock is wrong does not write: its dates would keep others from writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import icechunk as official
import pytest
import zarr

from icechunk_engine import ErrorKind, FormatError, Repository
from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.store_clock import StoreClock
from icechunk_engine.types import SpecVersion


@pytest.fixture(params=[1, 2])
def repo(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    return Repository.create(LocalStorage(tmp_path / "repo"), spec_version=SpecVersion(request.param))


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock of this process, in seconds; the file system keeps the right time."""
    real = time.time_ns

    def move(seconds: float) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: real() + int(seconds * 1e9))

    return move


def commit(repo: Repository, message: str = "edits") -> str:
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a").attrs["at"] = time.monotonic()
    return session.commit(message)


@pytest.mark.parametrize("seconds", [3600, 700, -700, -3600])
def test_a_wrong_clock_is_refused(repo: Repository, set_clock: Callable[[float], None], seconds: float) -> None:
    tip = commit(repo)
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a").attrs["x"] = 1
    set_clock(seconds)
    endings: list[Callable[[str], str]] = [session.commit, session.flush]
    if repo.spec_version == SpecVersion.v2:
        endings.append(session.amend)
    for end in endings:
        with pytest.raises(FormatError, match="clock has drifted") as caught:
            end("edits")
        assert caught.value.kind == ErrorKind.SNAPSHOT_TIMESTAMP
        assert "UTC" in str(caught.value)
    assert repo.lookup_branch("main") == tip
    set_clock(0)
    session.commit("edits")


@pytest.mark.parametrize("seconds", [500, -500])
def test_some_minutes_are_allowed(repo: Repository, set_clock: Callable[[float], None], seconds: float) -> None:
    commit(repo)
    set_clock(seconds)
    commit(repo)
    first, second, _ = repo.ancestry(branch="main")
    assert first.written_at > second.written_at


def test_official_can_write_after_us(repo: Repository, set_clock: Callable[[float], None], tmp_path: Path) -> None:
    """The fault that this is about: a commit dated in an hour locked everybody else out."""
    set_clock(3600)
    with pytest.raises(FormatError):
        commit(repo)
    set_clock(0)
    theirs = official.Repository.open(official.local_filesystem_storage(str(tmp_path / "repo")))
    session = theirs.writable_session("main")
    zarr.open_group(session.store, mode="a").attrs["x"] = 1
    session.commit("theirs")


def test_no_repository_is_made_with_a_wrong_clock(tmp_path: Path, set_clock: Callable[[float], None]) -> None:
    set_clock(3600)
    with pytest.raises(FormatError, match="Set this machine's clock"):
        Repository.create(LocalStorage(tmp_path / "repo"))
    set_clock(0)
    Repository.create(LocalStorage(tmp_path / "repo"))


def test_dates_in_the_future_are_told(tmp_path: Path, set_clock: Callable[[float], None]) -> None:
    """Someone else's clock was ahead. We can write all the same, which official cannot."""
    repo = Repository.create(LocalStorage(tmp_path / "repo"))
    set_clock(3600)
    repo.create_tag("early", repo.lookup_branch("main"))  # the file system tells nothing here
    set_clock(0)
    with pytest.warns(UserWarning, match="in the future"):
        commit(repo)
    theirs = official.Repository.open(official.local_filesystem_storage(str(tmp_path / "repo")))
    with pytest.raises(official.IcechunkError, match="clock has drifted"):
        theirs.create_tag("theirs", theirs.lookup_branch("main"))


def test_a_store_clock_only_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    clock = StoreClock()
    assert clock.lower_bound_us() is None
    clock.observe(5_000_000)
    clock.observe(3_000_000)
    assert clock.lower_bound_us() == 5_000_000
    now_s = 110.0
    clock.observe(14_000_000)
    assert clock.lower_bound_us() == 15_000_000
    clock.observe(20_000_000)
    assert clock.lower_bound_us() == 20_000_000
