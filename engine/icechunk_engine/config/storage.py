"""Settings of the storage: concurrency, retries, timeouts, storage classes."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from icechunk_engine.config.base import U16, U32, U64, Flag, Part, Settings, Text, setting


@dataclass(slots=True, repr=False)
class StorageConcurrencySettings(Settings):
    """How a large object is fetched with several requests."""

    max_concurrent_requests_for_object: int | None = setting(U16, effective=18)
    ideal_concurrent_request_size: int | None = setting(U64, effective=12 * 2**20)


@dataclass(slots=True, repr=False)
class StorageRetriesSettings(Settings):
    """How failed requests are repeated."""

    max_tries: int | None = setting(U16, effective=10)
    initial_backoff_ms: int | None = setting(U32, effective=100)
    max_backoff_ms: int | None = setting(U32, effective=180_000)


@dataclass(slots=True, repr=False)
class StorageTimeoutSettings(Settings):
    """Time limits of requests."""

    connect_timeout_ms: int | None = setting(U32)
    read_timeout_ms: int | None = setting(U32)
    operation_timeout_ms: int | None = setting(U32)
    operation_attempt_timeout_ms: int | None = setting(U32)


@dataclass(slots=True, repr=False)
class StorageSettings(Settings):
    """Settings of the storage. Fields that are not set have the storage's own defaults."""

    concurrency: StorageConcurrencySettings | None = setting(Part(StorageConcurrencySettings))
    retries: StorageRetriesSettings | None = setting(Part(StorageRetriesSettings))
    unsafe_use_conditional_create: bool | None = setting(Flag(), effective=True)
    unsafe_use_conditional_update: bool | None = setting(Flag(), effective=True)
    unsafe_use_metadata: bool | None = setting(Flag(), effective=True)
    storage_class: str | None = setting(Text())
    metadata_storage_class: str | None = setting(Text())
    chunks_storage_class: str | None = setting(Text())
    minimum_size_for_multipart_upload: int | None = setting(U64, effective=100 * 2**20)
    timeouts: StorageTimeoutSettings | None = setting(Part(StorageTimeoutSettings))


def default_storage_settings(kind: Literal["object_store", "local", "memory"]) -> StorageSettings:
    """Return the default settings of a kind of storage (spec, *Storage settings*)."""
    if kind == "object_store":
        return StorageSettings(
            concurrency=StorageConcurrencySettings(18, 12 * 2**20),
            retries=StorageRetriesSettings(10, 100, 180_000),
            unsafe_use_conditional_create=True,
            unsafe_use_conditional_update=True,
            unsafe_use_metadata=True,
            minimum_size_for_multipart_upload=100 * 2**20,
        )
    # Files and memory need neither retries nor metadata. Unlike official's, our local storage can compare and swap.
    return StorageSettings(
        concurrency=StorageConcurrencySettings(5, 4096 if kind == "local" else 1),
        retries=StorageRetriesSettings(1, 0, 0),
        unsafe_use_conditional_create=True,
        unsafe_use_conditional_update=True,
        unsafe_use_metadata=False,
        minimum_size_for_multipart_upload=100 * 2**20,
    )
