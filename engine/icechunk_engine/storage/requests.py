"""How the engine makes requests: each is reported to logs and spans, and only so many run at a time.

:class:`~icechunk_engine.assets.AssetManager` wraps its storage once, with :func:`for_requests`. The engine makes all
requests of a repository through that wrapper, so none can skip the reports or the limit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from icechunk_engine._runtime.observing import request
from icechunk_engine._runtime.pools import POOL_SIZE
from icechunk_engine.storage.base import ObjectInfo, Storage
from icechunk_engine.storage.wrappers import LimitedStorage, ObservingStorage, StorageCall

_LOG = logging.getLogger(__name__)

_VERBS = {"get_range": "get", "get_versioned": "get"}
"""A reader of the logs does not care how an object is read."""


def for_requests(storage: Storage, max_concurrent: int) -> Storage:
    """Return the storage with its requests reported and limited.

    Parameters
    ----------
    max_concurrent
        Maximum number of requests at a time to this place, counted over the whole process. Storages that are not
        remote are not limited. The pool of threads is the limit for larger numbers.
    """
    if storage.is_remote and max_concurrent < POOL_SIZE:
        storage = LimitedStorage(storage, max(max_concurrent, 1))
    return ReportedStorage(storage)


class ReportedStorage(ObservingStorage):
    """Reports each request to the log at level TRACE, and to the current span if it is recorded."""

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        with request(_LOG, _VERBS.get(call.method, call.method), _shown(call.keys)):
            return function()

    # These two are written out because reading and writing small chunks spends its time here.

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        with request(_LOG, "put", key):
            self.inner.put(key, data, atomic=atomic)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        with request(_LOG, "get", key):
            return self.inner.get_range(key, start, stop)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # A caller that never takes an object must not pay for the listing, and one that takes the first must not pay
        # for all. Only the wait for the first object is reported: a generator must not hold a span open between its
        # steps.
        objects = self.inner.list(prefix)
        with request(_LOG, "list", prefix):
            first = next(objects, None)
        if first is not None:
            yield first
            yield from objects


def _shown(keys: tuple[str, ...]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0] if keys else ''} and {len(keys) - 1} more"
