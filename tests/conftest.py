"""The order of the tests, and the fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from icechunk_engine import Repository, in_memory_storage
from icechunk_engine.storage import Storage, local_filesystem_storage
from tests import profiles

if TYPE_CHECKING:
    from distributed import Client

profiles.choose_examples()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes seconds, so it starts before the others")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the long tests first, or the last of them would run alone while the other processes have nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(params=["memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: os.PathLike[str]) -> Storage:
    """A fresh place for a repository, of each kind."""
    if request.param == "memory":
        return in_memory_storage()
    return local_filesystem_storage(os.path.join(tmp_path, "repository"))


@pytest.fixture
def repo(storage: Storage) -> Repository:
    """An empty repository."""
    return Repository.create(storage)


CLUSTER: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": ":0", "silence_logs": 50}


@pytest.fixture(scope="session")
def cluster_of_processes() -> Iterator[Client]:
    """Two worker processes of dask. Starting them takes seconds, so all tests share them."""
    from distributed import Client, LocalCluster

    with LocalCluster(processes=True, **CLUSTER) as cluster, Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture(scope="session")
def cluster_of_threads() -> Iterator[Client]:
    """Workers in this process, which may be given the very objects that are here."""
    from distributed import Client, LocalCluster

    with LocalCluster(processes=False, **CLUSTER) as cluster, Client(cluster, set_as_default=False) as client:
        yield client
