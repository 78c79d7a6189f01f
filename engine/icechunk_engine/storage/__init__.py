"""Where a repository's objects live: the contract of storages, and one module or folder for each kind."""

from __future__ import annotations

import os
from collections.abc import Callable

from icechunk_engine.columns.chunk_refs import ChunkType
from icechunk_engine.config import (
    AnyObjectStoreConfig,
    ChecksumAlgorithm,
    ObjectStoreConfig,
    S3Options,
    StorageConcurrencySettings,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    azure_store,
    gcs_store,
    http_store,
    local_filesystem_store,
    s3_store,
)
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.storage import from_credentials
from icechunk_engine.storage.base import ObjectInfo, Storage, StorageObjectInfo, Version
from icechunk_engine.storage.from_keywords import (
    azure_storage,
    gcs_storage,
    hf_storage,
    http_storage,
    r2_storage,
    s3_object_store_storage,
    s3_storage,
    tigris_storage,
)
from icechunk_engine.storage.from_url import storage_from_url
from icechunk_engine.storage.fsspec_files import FsspecStorage
from icechunk_engine.storage.local.storage import LocalStorage
from icechunk_engine.storage.memory import MemoryStorage
from icechunk_engine.storage.redirects import redirect_storage
from icechunk_engine.storage.wrappers import PrefixStorage, ReadOnlyStorage

__all__ = [
    "AnyObjectStoreConfig",
    "ChecksumAlgorithm",
    "ChunkType",
    "FsspecStorage",
    "LocalStorage",
    "MemoryStorage",
    "ObjectInfo",
    "ObjectStoreConfig",
    "PrefixStorage",
    "ReadOnlyStorage",
    "S3Options",
    "Storage",
    "StorageConcurrencySettings",
    "StorageObjectInfo",
    "StorageRetriesSettings",
    "StorageSettings",
    "StorageTimeoutSettings",
    "Version",
    "azure_storage",
    "azure_store",
    "gcs_storage",
    "gcs_store",
    "hf_storage",
    "http_storage",
    "http_store",
    "in_memory_storage",
    "local_filesystem_storage",
    "local_filesystem_store",
    "r2_storage",
    "redirect_storage",
    "s3_object_store_storage",
    "s3_storage",
    "s3_store",
    "storage_from_url",
    "tigris_storage",
]


def in_memory_storage() -> Storage:
    """Return a new, empty storage in the memory of this process."""
    return MemoryStorage()


def local_filesystem_storage(path: str | os.PathLike[str]) -> Storage:
    """Return a storage in a local folder, or in a folder of a network file system that can lock files.

    The first write makes the folder. Any number of threads and processes of this library can commit at the same time.

    Raises
    ------
    InvalidInputError
        ``path`` is a URL.
    StorageError
        ``storage-config``: the system has no POSIX file locks (Windows).
    """
    text = os.fspath(path)
    if "://" in text:
        raise InvalidInputError(
            f"{text!r} is a URL, not a path. Pass the path of a directory, or call storage_from_url(url)",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return LocalStorage(text)


_CONSTRUCTORS: dict[str, Callable[..., Storage]] = {
    "new_azure_blob": from_credentials.new_azure_blob,
    "new_gcs": from_credentials.new_gcs,
    "new_hf": from_credentials.new_hf,
    "new_http": from_credentials.new_http,
    "new_in_memory": in_memory_storage,
    "new_local_filesystem": local_filesystem_storage,
    "new_r2": from_credentials.new_r2,
    "new_redirect": redirect_storage,
    "new_s3": from_credentials.new_s3,
    "new_s3_object_store": from_credentials.new_s3_object_store,
    "new_tigris": from_credentials.new_tigris,
}
for _name, _make in _CONSTRUCTORS.items():
    setattr(Storage, _name, staticmethod(_make))
