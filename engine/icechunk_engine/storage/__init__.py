"""Places that keep a repository's objects: the contract, and one module per kind of place."""

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
    redirect_storage,
    s3_object_store_storage,
    s3_storage,
    tigris_storage,
)
from icechunk_engine.storage.from_url import storage_from_url
from icechunk_engine.storage.fsspec_files import FsspecStorage
from icechunk_engine.storage.local.storage import LocalStorage
from icechunk_engine.storage.memory import MemoryStorage
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
    """A new, empty storage in the memory of this process."""
    return MemoryStorage()


def local_filesystem_storage(path: str | os.PathLike[str]) -> Storage:
    """A storage in a directory of a local (or locking network) file system; the directory is made on the first write.

    Safe for concurrent commits from any number of threads and processes of this library.

    Raises
    ------
    InvalidInputError
        ``path`` is a URL.
    """
    text = os.fspath(path)
    if "://" in text:
        raise InvalidInputError(
            f"{text!r} is a URL, not a path: pass the path of a directory here, or the URL where storages are opened "
            f"by URL",
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
