"""Object stores against the storage contract, with competing processes."""

from __future__ import annotations

import pytest

from icechunk_engine.storage import Storage
from icechunk_engine.testing.storage_suite import StorageProcessSuite, StorageSuite

from .conftest import Running, azure_at, gcs_at, s3_at


class TestS3(StorageSuite, StorageProcessSuite):
    @pytest.fixture
    def storage(self, s3_server: Running, place: str) -> Storage:
        return s3_at(s3_server, place)


class TestCeph(StorageSuite, StorageProcessSuite):
    @pytest.fixture
    def storage(self, ceph_server: Running, place: str) -> Storage:
        return s3_at(ceph_server, place)


class TestGoogleCloudStorage(StorageSuite, StorageProcessSuite):
    @pytest.fixture
    def storage(self, gcs_server: Running, place: str) -> Storage:
        return gcs_at(gcs_server, place)


class TestAzure(StorageSuite, StorageProcessSuite):
    @pytest.fixture
    def storage(self, azure_server: Running, place: str) -> Storage:
        return azure_at(azure_server, place)
