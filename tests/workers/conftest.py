"""Executors of separate processes, started once a test process, and the places of repositories."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import icechunk
import pytest

from icechunk_engine import Repository
from icechunk_engine.storage import Storage, local_filesystem_storage
from tests.servers import conftest as servers

from . import executors, writes

if TYPE_CHECKING:
    from distributed import Client

s3_server = servers.s3_server
place = servers.place


@dataclass(frozen=True)
class Place:
    """A place for a repository, for both libraries."""

    storage: Storage
    official: Callable[[], icechunk.Storage]

    def create(self) -> Repository:
        return Repository.create(self.storage)

    def open(self) -> Repository:
        """Open it anew: this repository shares no session or cache with another."""
        return Repository.open(self.storage)


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    path = str(tmp_path / "repository")
    return Place(local_filesystem_storage(path), lambda: icechunk.local_filesystem_storage(path))


@pytest.fixture
def s3_place(s3_server: servers.Running, place: str) -> Place:
    def official() -> icechunk.Storage:
        return icechunk.s3_storage(
            bucket=servers.BUCKET,
            prefix=place,
            region="us-east-1",
            endpoint_url=s3_server.url,
            allow_http=True,
            force_path_style=True,
            access_key_id="key",
            secret_access_key="secret",
        )

    return Place(servers.s3_at(s3_server, place), official)


def _pool(start_method: Any) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start_method)) as pool:
        yield pool


@pytest.fixture(scope="session")
def pool_of_spawned_processes() -> Iterator[ProcessPoolExecutor]:
    yield from _pool("spawn")


@pytest.fixture(scope="session")
def preloaded_forkserver() -> None:
    """Make new processes of the fork server start with the modules that they need."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([writes.__name__, "cubed", "distributed"])


@pytest.fixture(scope="session")
def pool_of_forkserver_processes(preloaded_forkserver: None) -> Iterator[ProcessPoolExecutor]:
    yield from _pool("forkserver")


@pytest.fixture(scope="session")
def threads() -> Iterator[executors.Executor]:
    with ThreadPoolExecutor(2) as pool:
        yield executors.of_threads(pool)


@pytest.fixture(scope="session")
def spawn(pool_of_spawned_processes: ProcessPoolExecutor) -> executors.Executor:
    return executors.of_processes(pool_of_spawned_processes)


@pytest.fixture(scope="session")
def forkserver(pool_of_forkserver_processes: ProcessPoolExecutor) -> executors.Executor:
    return executors.of_processes(pool_of_forkserver_processes)


@pytest.fixture(scope="session")
def delayed(pool_of_forkserver_processes: ProcessPoolExecutor) -> executors.Executor:
    return executors.of_delayed(pool_of_forkserver_processes)


@pytest.fixture(scope="session")
def distributed(cluster_of_processes: Client) -> executors.Executor:
    return executors.of_cluster(cluster_of_processes)


@pytest.fixture(scope="session")
def loky() -> executors.Executor:
    return executors.of_joblib()
