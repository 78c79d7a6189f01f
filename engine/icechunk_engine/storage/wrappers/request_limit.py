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
from icechunk_engine.storage.wrappers.each_call import ObservingStorage, StorageCall


class LimitedStorage(ObservingStorage):
    """Makes at most ``most`` requests at a time, together with all such storages of the same place in this process.

    Listings do not count, nor do the parts in which large objects are read.
    """

    def __init__(self, inner: Storage, most: int) -> None:
        super().__init__(inner)
        self.most = most
        self._semaphore = _semaphore(inner.identity, most)

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        with self._semaphore:
            return function()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.inner.list(prefix)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.inner, self.most)


_SEMAPHORES: weakref.WeakValueDictionary[tuple[str, int], threading.Semaphore] = weakref.WeakValueDictionary()
_SEMAPHORES_LOCK = memory_lock()


def _semaphore(identity: str, most: int) -> threading.Semaphore:
    with _SEMAPHORES_LOCK:
        return _SEMAPHORES.setdefault((identity, most), threading.BoundedSemaphore(most))


@run_in_child
def _release_in_child() -> None:
    """Release all semaphores in a forked child: the requests under way belong to the parent."""
    for (_, most), semaphore in list(_SEMAPHORES.items()):
        semaphore.__init__(most)  # type: ignore[misc]
