"""Hypothesis profiles and the fixtures that every test may use."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from icechunk_engine import Repository, in_memory_storage
from icechunk_engine.storage import Storage, local_filesystem_storage

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("default", max_examples=25, **_COMMON)
settings.register_profile("ci", max_examples=40, derandomize=True, **_COMMON)
settings.register_profile("nightly", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


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
