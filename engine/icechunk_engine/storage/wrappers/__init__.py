"""Storages that stand in front of another storage and change what its calls do."""

from icechunk_engine.storage.wrappers.each_call import READING_METHODS, WRITING_METHODS, ObservingStorage, StorageCall
from icechunk_engine.storage.wrappers.prefix import PrefixStorage
from icechunk_engine.storage.wrappers.read_only import ReadOnlyStorage
from icechunk_engine.storage.wrappers.request_limit import LimitedStorage
from icechunk_engine.storage.wrappers.wrapper import WrapperStorage

__all__ = [
    "READING_METHODS",
    "WRITING_METHODS",
    "LimitedStorage",
    "ObservingStorage",
    "PrefixStorage",
    "ReadOnlyStorage",
    "StorageCall",
    "WrapperStorage",
]
