"""At most so many requests at a time (``RepositoryConfig.max_concurrent_requests``).

All storages in a process that limit the same place to the same number share one semaphore. A request holds it while it
runs. That is safe because a request never waits for another request (rule 3 of :mod:`icechunk_engine._runtime.locks`),
so the semaphore is always released.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator

from icechunk_engine._runtime.locks import memory_lock, run_in_child
from icechunk_engine.storage.base import ObjectInfo, Storage
from icechunk_engine.storage.wrappers.observing import ObservingStorage, StorageCall


class LimitedStorage(ObservingStorage):
    """Makes so many requests at a time and no more, with all others in the process that limit the same place so.

    Listings are not counted, nor the parts that large objects are read in.
    """

    def __init__(self, inner: Storage, most: int) -> None:
        super().__init__(inner)
        self.most = most
        self._room = _room(inner.identity, most)

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        with self._room:
            return function()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.inner, self.most)


_ROOMS: weakref.WeakValueDictionary[tuple[str, int], threading.Semaphore] = weakref.WeakValueDictionary()
_ROOMS_LOCK = memory_lock()


def _room(identity: str, most: int) -> threading.Semaphore:
    with _ROOMS_LOCK:
        return _ROOMS.setdefault((identity, most), threading.BoundedSemaphore(most))


@run_in_child
def _empty_rooms() -> None:
    """In the child there is room again: the requests under way are the parent's."""
    for (_, most), room in list(_ROOMS.items()):
        room.__init__(most)  # type: ignore[misc]
