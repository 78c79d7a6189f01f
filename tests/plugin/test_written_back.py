"""Datasets that are opened lazily from a session and written back to it through plain Zarr."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client

import icechunk_engine as ic
from icechunk_engine import Repository, SessionStateError


@pytest.fixture
def session(repo: Repository) -> ic.Session:
    with repo.transaction("main", message="start") as store:
        ds = xr.Dataset({"t": ("x", np.arange(8))})
        ds.to_zarr(store, consolidated=False, zarr_format=3, encoding={"t": {"chunks": (4,)}})
    return repo.writable_session("main")


def lazy(session: ic.Session, **options: Any) -> xr.Dataset:
    return xr.open_zarr(session.store, consolidated=False, **options)


def lazy_icechunk(session: ic.Session, **options: Any) -> xr.Dataset:
    opened: Any = session
    return xr.open_dataset(opened, engine="icechunk", **options)


@pytest.mark.parametrize("open_it", [lazy, lazy_icechunk])
@pytest.mark.parametrize("chunks", [None, {"x": 4}])
def test_mode_w_deletes_what_it_would_read(session: ic.Session, chunks: Any, open_it: Any) -> None:
    ds = open_it(session, chunks=chunks)
    with pytest.raises(SessionStateError, match=r"'/t' was (deleted|replaced).*to_icechunk"):
        (ds if chunks is None else ds + 1).to_zarr(session.store, mode="w", consolidated=False, zarr_format=3)
    session.discard_changes()
    assert lazy(session).t.values.tolist() == list(range(8))


def test_on_a_cluster(cluster_of_processes: Client, tmp_path: Any) -> None:
    repo = Repository.create(ic.local_filesystem_storage(str(tmp_path / "repo")))
    with repo.transaction("main", message="start") as store:
        ds = xr.Dataset({"t": ("x", np.arange(8))})
        ds.to_zarr(store, consolidated=False, zarr_format=3, encoding={"t": {"chunks": (4,)}})
    session = repo.writable_session("main")
    with cluster_of_processes.as_current():
        ds = lazy(session, chunks={"x": 4}) + 1
        with pytest.raises(SessionStateError, match=r"'/t' was (deleted|replaced).*to_icechunk"):
            ds.to_zarr(session.store, mode="w", consolidated=False, zarr_format=3)
        session.discard_changes()
        ds = lazy(session, chunks={"x": 4}) + 1
        ds.to_zarr(session.store, mode="a", consolidated=False, zarr_format=3)
        session.commit("in place")
    assert lazy(repo.readonly_session("main")).t.values.tolist() == list(range(1, 9))


def test_values_that_were_loaded_are_written(session: ic.Session) -> None:
    (lazy(session).load() + 1).to_zarr(session.store, mode="w", consolidated=False, zarr_format=3)
    assert lazy(session).t.values.tolist() == list(range(1, 9))


def test_an_array_that_is_gone(session: ic.Session) -> None:
    array = zarr.open_array(session.store, path="t", mode="r")
    del zarr.open_group(session.store)["t"]
    with pytest.raises(SessionStateError, match="'/t' was deleted"):
        array[:]
