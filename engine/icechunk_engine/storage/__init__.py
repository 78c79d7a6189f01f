"""Places that keep a repository's objects: the contract, and one module per kind of place."""

from __future__ import annotations

import os

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.storage._fsspec import FsspecStorage
from icechunk_engine.storage._local import LocalStorage
from icechunk_engine.storage._memory import MemoryStorage
from icechunk_engine.storage.base import ObjectInfo, Storage, Version
from icechunk_engine.storage.object_stores import (
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
from icechunk_engine.storage.urls import storage_from_url
from icechunk_engine.storage.wrappers import PrefixStorage, ReadOnlyStorage

__all__ = [
    "FsspecStorage",
    "LocalStorage",
    "MemoryStorage",
    "ObjectInfo",
    "PrefixStorage",
    "ReadOnlyStorage",
    "Storage",
    "Version",
    "azure_storage",
    "gcs_storage",
    "hf_storage",
    "http_storage",
    "in_memory_storage",
    "local_filesystem_storage",
    "r2_storage",
    "redirect_storage",
    "s3_object_store_storage",
    "s3_storage",
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
