"""The order of the tests, and the fixtures that every test may use."""

from __future__ import annotations

import os

import pytest

from icechunk_engine import Repository, in_memory_storage
from icechunk_engine.storage import Storage, local_filesystem_storage
from tests import profiles

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
