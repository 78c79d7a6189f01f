"""``to_icechunk`` into sessions that share their edits with other processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import xarray_icechunk as xi
from icechunk_engine.session import Session


@pytest.fixture
def session(repo: Any) -> Session:
    session: Session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(2,), dtype="i4", fill_value=-1)
    return session


def copy_of(session: Session) -> Any:
    """Return a store as another process gets it."""
    return pickle.loads(pickle.dumps(session.store))


actions: list[Callable[[], None]] = []
"""What :func:`fail` does first. A global, because ``to_icechunk`` looks into closures for the session."""


def fail(block: np.ndarray) -> np.ndarray:
    if actions:
        actions.pop()()
    raise RuntimeError("no data")


def broken(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset of which one variable cannot be computed."""
    lazy = dataset.chunk(time=6)
    values = lazy.temperature.data.map_blocks(fail, meta=np.empty((0, 0)))  # without meta dask would call it now
    return lazy.assign(temperature=(("time", "x"), values))


def test_a_worker_writes(repo: Any, session: Session, dataset: xr.Dataset) -> None:
    store = copy_of(session)
    xi.to_icechunk(dataset.chunk(time=2), store, group="g")
    assert len(session._copies.ledger.journal.list_entries()) == 1
    session.commit("by a worker")
    xr.testing.assert_identical(xi.open_dataset(repo, group="g").load(), dataset)


def test_a_worker_that_fails_reports_nothing(repo: Any, session: Session, dataset: xr.Dataset) -> None:
    store = copy_of(session)
    with pytest.raises(RuntimeError, match="no data"):
        xi.to_icechunk(broken(dataset), store, group="g")
    session.commit("without the group")
    assert set(zarr.open_group(repo.readonly_session("main").store, mode="r")) == {"a"}


def test_a_failure_does_not_undo_what_others_reported(repo: Any, session: Session, dataset: xr.Dataset) -> None:
    array = zarr.open_array(copy_of(session), path="a", mode="r+")

    def report_and_collect() -> None:
        array[:2] = 7
        assert session.has_uncommitted_changes

    actions.append(report_and_collect)
    with pytest.raises(RuntimeError, match="no data"):
        xi.to_icechunk(
            broken(dataset),
            session,
            group="g",
            chunkmanager_store_kwargs={"scheduler": "synchronous"},
        )
    session.commit("what the worker wrote")
    root = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert set(root) == {"a"}
    assert root["a"][:].tolist() == [7, 7, -1, -1]


def test_delayed(repo: Any, session: Session, dataset: xr.Dataset) -> None:
    array = zarr.open_array(copy_of(session), path="a", mode="r+")
    delayed: Any = xi.to_icechunk(dataset.chunk(time=2), session, group="g", compute=False)
    array[2:] = 8
    delayed.compute()
    session.commit("both")
    xr.testing.assert_identical(xi.open_dataset(repo, group="g").load(), dataset)
    assert zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:].tolist() == [-1, -1, 8, 8]
