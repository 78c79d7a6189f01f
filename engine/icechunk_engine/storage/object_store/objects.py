"""The objects below one prefix of a bucket, as data that reading and writing share."""

from __future__ import annotations

from dataclasses import dataclass, field

from icechunk_engine.config import StorageSettings
from icechunk_engine.errors import ObjectNotFoundError
from icechunk_engine.storage.object_store.buckets import Bucket
from icechunk_engine.storage.object_store.client import ObjectRequests
from icechunk_engine.storage.ranges import PartSizes
from icechunk_engine.storage.store_clock import StoreClock


@dataclass(frozen=True, slots=True)
class ObjectsBelow:
    """Where objects are and how requests to them are made.

    Attributes
    ----------
    bucket
        With the timeouts and retries of ``settings``.
    prefix
        Without slashes at its ends; empty for the whole bucket.
    clock
        Learns from the answers.
    """

    bucket: Bucket
    prefix: str
    settings: StorageSettings
    sizes: PartSizes
    clock: StoreClock = field(default_factory=StoreClock)

    @property
    def identity(self) -> str:
        """Names the place, without secrets."""
        return f"{self.bucket.url}/{self.prefix}" if self.prefix else self.bucket.url

    def path(self, key: str) -> str:
        """Return the path of an object in the bucket."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def key(self, path: str) -> str:
        """Inverse of :meth:`path`."""
        return path[len(self.prefix) + 1 :] if self.prefix else path

    def shown(self, key: str) -> str:
        """Return what errors call an object."""
        return f"{key!r} in {self.identity}"

    def requests(self, key: str) -> ObjectRequests:
        """Return the requests about one object."""
        return ObjectRequests(self.bucket, self.path(key), self.shown(key))

    def missing(self, key: str) -> ObjectNotFoundError:
        """Return the error for an object that does not exist."""
        return ObjectNotFoundError(f"no object {self.shown(key)}")
