"""Many writers of one repository on a server: independent processes, and the workers of a cluster."""

from __future__ import annotations

import multiprocessing
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.distributed import Client

import xarray_icechunk as xi
from icechunk_engine import Repository
from icechunk_engine.storage import Storage
from tests.profiles import by_profile

from . import writing
from .conftest import BUCKET, Running, s3_at


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "n_writers", "n_commits"),
    by_profile(quick=[("s3", 8, 3), ("ceph", 12, 4)], thorough=[("s3", 8, 5), ("ceph", 20, 10)]),
)
def test_independent_writers_lose_nothing(
    request: pytest.FixtureRequest, place: str, kind: str, n_writers: int, n_commits: int
) -> None:
    storage = s3_at(request.getfixturevalue(f"{kind}_server"), place)
    repo = Repository.create(storage)
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(n_writers, n_commits), chunks=(1, 1), dtype="int64", fill_value=-1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([writing.__name__])  # or most of the time would go into imports
    workers = [
        context.Process(target=writing.commit_often, args=(storage, writer, n_commits)) for writer in range(n_writers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(500)
    assert [worker.exitcode for worker in workers] == [0] * n_writers
    final = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    np.testing.assert_array_equal(final, np.arange(n_writers)[:, None] * 1000 + np.arange(n_commits))
    history = list(repo.ancestry(branch="main"))
    assert len(history) == n_writers * n_commits + 2
    assert [info.parent_id for info in history[:-1]] == [info.id for info in history[1:]]


@pytest.mark.long
def test_a_cluster_writes_one_commit(store: Storage, cluster_of_processes: Client) -> None:
    repo = Repository.create(store)
    values = dask.array.random.default_rng(0).random((40, 300), chunks=(10, 100))
    dataset = xr.Dataset({"v": (("y", "x"), values)}, coords={"x": np.arange(300)})
    with cluster_of_processes.as_current():
        session = repo.writable_session("main")
        xi.to_icechunk(dataset, session)
        session.commit("by the workers")
        with xi.open_dataset(repo, chunks={}) as lazy:
            total = float(lazy.v.sum().compute())
        expected = dataset.load()
    with xi.open_dataset(Repository.open(store)) as opened:
        xr.testing.assert_identical(opened.load(), expected)
    np.testing.assert_allclose(total, float(expected.v.sum()))
    assert len(list(repo.ancestry(branch="main"))) == 2


@pytest.mark.long
def test_one_call_with_a_url(s3_server: Running, place: str, cluster_of_processes: Client) -> None:
    """Creates, writes on the cluster and commits; later calls append, fill a region, and write when computed."""
    options = {"key": "key", "secret": "secret", "endpoint_url": s3_server.url, "region": "us-east-1"}
    url = f"s3://{BUCKET}/{place}"
    values = dask.array.random.default_rng(0).random((40, 300), chunks=(10, 100))
    dataset = xr.Dataset({"v": (("y", "x"), values)}, coords={"y": np.arange(40)})
    with pytest.raises(ValueError, match="overlap multiple Dask chunks"):
        xi.to_icechunk(dataset, url, storage_options=options, encoding={"v": {"chunks": (15, 100)}})
    assert not Repository.exists(s3_at(s3_server, place))
    with cluster_of_processes.as_current():
        xi.to_icechunk(dataset.isel(y=slice(0, 20)), url, storage_options=options, message="first")
        xi.to_icechunk(dataset.isel(y=slice(20, 40)), url, storage_options=options, append_dim="y", message="second")
        patch = dataset[["v"]].isel(y=slice(10, 20)) + 1
        delayed: Any = xi.to_icechunk(patch, url, storage_options=options, region="auto", compute=False)
        assert cluster_of_processes.compute(delayed).result() == delayed.compute()
        expected = dataset.compute()
    expected.v[10:20] += 1
    with xi.open_dataset(url, storage_options=options) as opened:
        xr.testing.assert_identical(opened.load(), expected)
    history = [
        snapshot.message for snapshot in xi.open_repository(url, storage_options=options).ancestry(branch="main")
    ]
    assert history == ["Write a region of 'v' in /", "second", "first", "Repository initialized"]
