"""A session cannot travel to other processes. The user sees one short error that says what to send instead."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from distributed import Client

from icechunk_engine import ErrorKind, InvalidInputError, Session

from . import executors, writes
from .conftest import Place

pytestmark = pytest.mark.long


@pytest.fixture
def session(local_place: Place) -> Session:
    return local_place.create().writable_session("main")


def commit(session: Session) -> str:
    return session.commit("in a worker")


def in_arguments(client: Client, session: Session) -> Any:
    return client.submit(commit, session).result()


def in_a_closure(client: Client, session: Session) -> Any:
    return client.submit(lambda: session.commit("in a worker")).result()


def in_a_graph(client: Client, session: Session) -> Any:
    return dask.delayed(commit)(session).compute()


def in_a_container(client: Client, session: Session) -> Any:
    return client.submit(lambda given: given["session"].commit("in a worker"), {"session": session}).result()


@pytest.mark.parametrize("send", [in_arguments, in_a_closure, in_a_graph, in_a_container])
def test_a_cluster_shows_our_error(
    cluster_of_processes: Client, session: Session, send: Callable[[Client, Session], Any]
) -> None:
    with cluster_of_processes.as_current(), pytest.raises(InvalidInputError) as caught:
        send(cluster_of_processes, session)
    assert caught.value.kind == ErrorKind.PICKLE
    shown = "".join(traceback.format_exception(caught.value)).splitlines()
    assert "session.fork()" in shown[-1]
    assert "session.store" in shown[-1]
    assert len(shown) < 40
    assert "serialize" not in "".join(shown)


@pytest.mark.parametrize("name", ["forkserver", "delayed", "loky"])
def test_pools_raise_our_error(request: pytest.FixtureRequest, session: Session, name: str) -> None:
    executor: executors.Executor = request.getfixturevalue(name)
    with pytest.raises((InvalidInputError, pickle.PicklingError)) as caught:
        executor.map(commit, [session])
    if name == "loky":  # it wraps the error
        assert "session.fork()" in "".join(traceback.format_exception(caught.value))
    else:
        assert "session.fork()" in str(caught.value)


def test_the_session_stays_as_it_was(cluster_of_processes: Client, session: Session, local_place: Place) -> None:
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(2,), dtype="i8")[:] = 1
    before = repr(session.status())
    with cluster_of_processes.as_current(), pytest.raises(InvalidInputError):
        in_arguments(cluster_of_processes, session)
    assert repr(session.status()) == before
    session.commit("at home")
    group = zarr.open_group(local_place.open().readonly_session("main").store, mode="r")
    writes.require_values(group, {"a": np.ones(4, "i8")})
