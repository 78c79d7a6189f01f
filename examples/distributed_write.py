"""Many processes write for one commit: first with a dask cluster, then with a pool of processes."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import dask.array
import numpy as np
import xarray as xr
import zarr
from dask.distributed import Client, LocalCluster

import icechunk_engine as icechunk
import xarray_icechunk

DAYS, POINTS = 40, 50_000


def main(location: Path) -> None:
    repository = xarray_icechunk.open_or_create_repository(location)

    # With dask: the workers write, and their edits come back to the session. Nothing is visible before the commit.
    values = dask.array.random.default_rng(0).normal(280, 10, size=(DAYS, POINTS), chunks=(10, 25_000))
    dataset = xr.Dataset({"temperature": (("day", "point"), values, {"units": "K"})})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        session = repository.writable_session("main")
        xarray_icechunk.to_icechunk(dataset, session)
        session.commit("Written by a dask cluster")
    with xr.open_dataset(location, engine="icechunk") as written:
        print(f"dask cluster: {dict(written.sizes)}, mean {float(written.temperature.mean()):.1f} K")

    # With any pool: send a fork of the session to each process, and merge the forks that come back.
    session = repository.writable_session("main")
    zarr.create_array(
        session.store,
        name="anomaly",
        shape=(DAYS, POINTS),
        chunks=(10, 25_000),
        dtype="f4",
        dimension_names=["day", "point"],
    )
    session.commit("An empty array")

    session = repository.writable_session("main")
    starts = range(0, DAYS, 10)
    # "spawn" starts clean processes. Forked processes would inherit locks that other threads hold.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        forks = pool.map(write_days, [session.fork() for _ in starts], starts)
        session.merge(*forks)
    session.commit("Written by a pool of processes")

    print("\nHistory of branch main, newest first:")
    for snapshot in repository.ancestry(branch="main"):
        print(f"  {snapshot.message}")
    array = zarr.open_array(repository.readonly_session("main").store, path="anomaly", mode="r")
    result = np.asarray(array[:])
    print(f"\npool of processes: day 0 is {result[0, 0]:.0f}, day {DAYS - 1} is {result[-1, 0]:.0f}")


def write_days(fork: icechunk.ForkSession, start: int) -> icechunk.ForkSession:
    """Write ten days and return the fork. This runs in another process."""
    array = zarr.open_array(fork.store, path="anomaly", mode="r+")
    array[start : start + 10] = np.repeat(np.arange(start, start + 10)[:, None], POINTS, axis=1)
    return fork


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder, "repository"))
