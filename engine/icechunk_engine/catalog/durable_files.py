"""Nothing is published over a file that the disk refused.

A disk that fails says so once (:mod:`icechunk_engine.storage.local.durability`). The storage remembers it. Here it is
asked before an update counts as made, and its answer stays the same until the file is written again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage.base import Storage

SHOWN = 5


def settle(storage: Storage, keys: Collection[str]) -> None:
    """Wait until the objects ``keys``, or their deletion, survive a crash; errors as :func:`require_durable`."""
    flush_files(storage)
    require_durable(storage, keys)


def require_durable(storage: Storage, keys: Iterable[str]) -> None:
    """Raise StorageError (``not-durable``) if one of the objects may not survive a crash, for all that is known."""
    lost = storage.not_durable()
    files = [key for key in keys if any(covers(place, key) for place in lost)] if lost else []
    if files:
        raise StorageError(
            f"the disk refused {listed(files, len(files))} in {storage.identity} ({reasons(lost)}), and a crash of "
            f"the machine may damage it or undo its last change. Check the disk and its free space, then try again",
            ErrorKind.NOT_DURABLE,
        )


def flush_files(storage: Storage) -> None:
    """What could not be flushed may belong to somebody else: it is looked at afterwards."""
    try:
        storage.flush()
    except StorageError as error:
        if error.kind is not ErrorKind.NOT_DURABLE:
            raise


def covers(place: str, key: str) -> bool:
    return key == place or ((place == "" or place.endswith("/")) and key.startswith(place))


def reasons(lost: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(lost.values()))[:3])


def listed(items: list[str], n_items: int) -> str:
    shown = items[:SHOWN]
    return ", ".join(shown) + (f" and {n_items - len(shown)} more" if n_items > len(shown) else "")
