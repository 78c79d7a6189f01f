"""xarray's own tests of its Zarr backend, writing to and reading from our store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import xarray as xr
import zarr
from xarray.tests import test_backends
from xarray.tests.conftest import time_unit, use_dask

from icechunk_engine.repository import Repository
from icechunk_engine.storage import local_filesystem_storage
from icechunk_engine.store import IcechunkStore

__all__ = ["time_unit", "use_dask"]  # fixtures that xarray's tests ask for

# What xarray warns about in its own tests is for xarray to say. Most of them let go of a session without a commit.
pytestmark = pytest.mark.filterwarnings("default", "ignore::ResourceWarning")


@pytest.fixture(params=[3])
def default_zarr_format(request: pytest.FixtureRequest) -> Iterator[None]:
    """Icechunk holds Zarr format 3 only, so that xarray's tests need not run a second time for format 2."""
    with zarr.config.set(default_zarr_format=request.param):
        yield


@contextlib.contextmanager
def new_store() -> Iterator[IcechunkStore]:
    with tempfile.TemporaryDirectory() as directory:
        yield Repository.create(local_filesystem_storage(directory)).writable_session("main").store


class TestZarrBackend(test_backends.ZarrBase):
    """Everything within one session, before it commits."""

    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[IcechunkStore]:
        with new_store() as store:
            yield store


class TestCommittedRoundtrips(test_backends.ZarrBase):
    """The same; where a test writes once and reads once, what is read was committed in between."""

    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[IcechunkStore]:
        with new_store() as store:
            yield store

    @contextlib.contextmanager
    def roundtrip(
        self,
        data: xr.Dataset,
        save_kwargs: dict[str, Any] | None = None,
        open_kwargs: dict[str, Any] | None = None,
        allow_cleanup_failure: bool = False,
    ) -> Iterator[xr.Dataset]:
        with tempfile.TemporaryDirectory() as directory:
            repo = Repository.create(local_filesystem_storage(directory))
            session = repo.writable_session("main")
            self.save(data, session.store, **(save_kwargs or {}))
            session.commit("saved")
            store = Repository.open(local_filesystem_storage(directory)).readonly_session("main").store
            with self.open(store, **(open_kwargs or {})) as opened:
                yield opened


@pytest.fixture
def tmp_store() -> Iterator[IcechunkStore]:
    with new_store() as store:
        yield store


class TestZarrRegionAuto(test_backends.TestZarrRegionAuto):
    @contextlib.contextmanager
    def create_zarr_target(self) -> Iterator[IcechunkStore]:
        with new_store() as store:
            yield store
