"""Refusing to publish anything that depends on a file that the disk failed to store.

A disk reports a failure only once, to the thread that flushes first. A second fsync of the same file succeeds although
its data are lost. So the storage remembers each failure until the file is written again
(:meth:`~icechunk_engine.storage.base.Storage.not_durable`), and the functions here ask it before a change counts as
made. A flush that succeeds does not replace the question: another thread may have received the error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage.base import Storage

SHOWN = 5


def settle(storage: Storage, keys: Collection[str]) -> None:
    """Wait until objects, or their deletion, survive a crash of the machine. Errors as in :func:`require_durable`."""
    flush_files(storage)
    require_durable(storage, keys)


def require_durable(storage: Storage, keys: Iterable[str]) -> None:
    """Raise StorageError (``not-durable``) if one of the objects is known not to survive a crash of the machine."""
    lost = storage.not_durable()
    files = [key for key in keys if any(covers(place, key) for place in lost)] if lost else []
    if files:
        raise StorageError(
            f"the disk refused {listed(files, len(files))} in {storage.identity} ({reasons(lost)}), and a crash of "
            f"the machine may damage it or undo its last change. Check the disk and its free space, then try again",
            ErrorKind.NOT_DURABLE,
        )


def flush_files(storage: Storage) -> None:
    """Flush, and ignore files that could not be made durable: they may have nothing to do with the caller."""
    try:
        storage.flush()
    except StorageError as error:
        if error.kind is not ErrorKind.NOT_DURABLE:
            raise


def covers(place: str, key: str) -> bool:
    """Return whether an entry of :meth:`Storage.not_durable` stands for an object."""
    return key == place or ((place == "" or place.endswith("/")) and key.startswith(place))


def reasons(lost: Mapping[str, str]) -> str:
    """Return the distinct reasons, at most three, for a message."""
    return ", ".join(sorted(set(lost.values()))[:3])


def listed(items: list[str], n_items: int) -> str:
    """Return the first items and how many more there are, for a message."""
    shown = items[:SHOWN]
    return ", ".join(shown) + (f" and {n_items - len(shown)} more" if n_items > len(shown) else "")
