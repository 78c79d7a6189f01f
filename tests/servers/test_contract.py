"""Object stores against the storage contract, with competing processes."""

from __future__ import annotations

import pytest

from icechunk_engine.storage import Storage
from icechunk_engine.testing.storage_suite import StorageProcessSuite, StorageSuite
from tests.profiles import by_profile

from .conftest import Running, azure_at, gcs_at, s3_at


class _ServerSuite(StorageSuite, StorageProcessSuite):
    """Requests take time: fewer of them than on a disk."""

    n_rounds = by_profile(quick=15, thorough=50)
    n_process_rounds = by_profile(quick=25, thorough=200)
    n_increments = by_profile(quick=6, thorough=25)


class TestS3(_ServerSuite):
    @pytest.fixture
    def storage(self, s3_server: Running, place: str) -> Storage:
        return s3_at(s3_server, place)


class TestCeph(_ServerSuite):
    @pytest.fixture
    def storage(self, ceph_server: Running, place: str) -> Storage:
        return s3_at(ceph_server, place)


class TestGoogleCloudStorage(_ServerSuite):
    @pytest.fixture
    def storage(self, gcs_server: Running, place: str) -> Storage:
        return gcs_at(gcs_server, place)


class TestAzure(_ServerSuite):
    @pytest.fixture
    def storage(self, azure_server: Running, place: str) -> Storage:
        return azure_at(azure_server, place)
