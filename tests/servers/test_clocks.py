"""A wrong clock is found out by what a store says, and a right one costs no request."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import zarr

from icechunk_engine import ErrorKind, FormatError, Repository, Session
from icechunk_engine.storage import Storage
from icechunk_engine.storage.object_store import metadata

from .conftest import Running, s3_at
from .proxy import proxied


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    real = time.time_ns

    def move(seconds: float) -> None:
        monkeypatch.setattr(time, "time_ns", lambda: real() + int(seconds * 1e9))

    return move


def edited(repo: Repository) -> Session:
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="a").attrs["at"] = time.monotonic()
    return session


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_wrong_clock_is_refused(store: Storage, set_clock: Callable[[float], None], seconds: float) -> None:
    repo = Repository.create(store)
    tip = edited(repo).commit("right")
    session = edited(repo)
    set_clock(seconds)
    changes: list[Callable[[], object]] = [lambda: session.commit("wrong"), lambda: session.flush("wrong")]
    if seconds > 0:
        changes.append(lambda: repo.create_tag("wrong", tip))
    for change in changes:
        with pytest.raises(FormatError, match="clock has drifted") as caught:
            change()
        assert caught.value.kind == ErrorKind.SNAPSHOT_TIMESTAMP
    set_clock(0)
    assert repo.lookup_branch("main") == tip
    assert not repo.list_tags()
    session.commit("right again")


def test_a_right_clock_costs_no_request(s3_server: Running, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But one in a process that comes to a repository which nobody has updated for a while."""
    edited(Repository.create(s3_at(s3_server, place))).commit("first")
    with proxied(s3_server.port) as proxy:

        def heads() -> int:
            seen, proxy.seen = proxy.seen, []
            return sum(request.method == "HEAD" for request in seen)

        repo = Repository.open(s3_at(Running(proxy.port), place))
        edited(repo).commit("recently updated")
        assert heads() == 0

        modified_us = metadata.modified_us

        def an_hour_ago(meta: Any) -> int:
            return modified_us(meta) - (3600 * 10**6 if meta["path"].endswith("/repo") else 0)

        monkeypatch.setattr(metadata, "modified_us", an_hour_ago)
        repo = Repository.open(s3_at(Running(proxy.port), place))
        for n_heads in (1, 0, 0):
            edited(repo).commit("long after the last update")
            assert heads() == n_heads
        repo.create_tag("tag", repo.lookup_branch("main"))
        assert heads() == 0
