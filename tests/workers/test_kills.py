"""Workers of a cluster are killed while they write: nothing is lost, and one commit holds everything.

Only workers that are up are killed. A nanny gives up if its worker dies while it starts.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
from distributed import Client, Status
from distributed.diagnostics.plugin import SchedulerPlugin

import xarray_icechunk as xi
from tests.profiles import by_profile

from .conftest import Place

pytestmark = pytest.mark.long

N_ROUNDS, N_TASKS, N_KILLS = by_profile(quick=(2, 100, 1), thorough=(20, 1000, 10))


class Killer(SchedulerPlugin):
    """Kills workers at random moments, which it chooses as numbers of finished tasks."""

    name = "killer"

    def __init__(self, cluster: Any, seed: int) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._moments = sorted(self._random.sample(range(N_TASKS // 10, N_TASKS // 2), N_KILLS))
        self._n_finished = 0
        self.n_killed = 0

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if start == "processing" and finish == "memory":
            self._n_finished += 1
            if (
                self._moments
                and self._moments[0] <= self._n_finished
                and (pids := self._pids_of_workers_that_are_up())
            ):
                del self._moments[0]
                os.kill(self._random.choice(pids), signal.SIGKILL)
                self.n_killed += 1

    def _pids_of_workers_that_are_up(self) -> list[int]:
        registered = self._cluster.scheduler.workers
        return [
            nanny.pid
            for nanny in self._cluster.workers.values()
            if nanny.status == nanny.process.status == Status.running  # else it is starting or ending
            and nanny.worker_address in registered
            and nanny.pid is not None
        ]


@contextmanager
def killing(client: Client, seed: int) -> Iterator[Killer]:
    """Wait until all workers are up, then kill some while the block runs."""
    cluster: Any = client.cluster
    client.wait_for_workers(len(cluster.workers))
    scheduler = cluster.scheduler
    killer = Killer(cluster, seed)
    allowed, scheduler.allowed_failures = scheduler.allowed_failures, 1000
    scheduler.add_plugin(killer)
    try:
        # The cluster gives up a worker that happens to be down this long after an earlier death.
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}):
            yield killer
    finally:
        scheduler.remove_plugin(killer.name)
        scheduler.allowed_failures = allowed


def dataset() -> xr.Dataset:
    """Half of the tasks write objects, the others chunks that go into the manifest."""
    n = N_TASKS // 2
    values = np.random.default_rng(5).random((n, 100))
    return xr.Dataset({"large": (("y", "x"), values), "small": ("y", values[:, 0])}, coords={"y": np.arange(n)})


def with_to_icechunk(ds: xr.Dataset, session: Any) -> None:
    xi.to_icechunk(ds, session)


def with_to_zarr(ds: xr.Dataset, session: Any) -> None:
    ds.to_zarr(session.store, zarr_format=3, consolidated=False)


@pytest.mark.parametrize("write", [with_to_icechunk, with_to_zarr])
@pytest.mark.parametrize("seed", range(N_ROUNDS))
def test_killed_workers_lose_nothing(
    cluster_of_processes: Client, local_place: Place, write: Callable[[xr.Dataset, Any], None], seed: int
) -> None:
    expected = dataset()
    lazy = expected.map(lambda variable: variable.copy(data=in_rows(variable)))
    session = local_place.create().writable_session("main")
    with cluster_of_processes.as_current(), killing(cluster_of_processes, seed) as killer:
        write(lazy, session)
    assert killer.n_killed
    session.commit("by workers")
    repo = local_place.open()
    assert len(list(repo.ancestry(branch="main"))) == 2
    xr.testing.assert_identical(xi.open_dataset(repo.readonly_session("main")).load(), expected)


def in_rows(variable: xr.DataArray) -> Any:
    return dask.array.from_array(variable.to_numpy(), chunks=(1, *variable.shape[1:]))
