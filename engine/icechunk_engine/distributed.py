"""For frameworks that write in parallel: get the session of an array, and merge forks into one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import zarr

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.session import ForkSession, IcechunkStore, Session

__all__ = ["extract_session", "merge_sessions"]


def extract_session(zarray: zarr.Array[Any], axis: Any = None, keepdims: Any = None) -> Session:
    """Return the session that an array is read from or written to.

    Parameters
    ----------
    zarray
        An array in an :class:`~icechunk_engine.store.IcechunkStore`.
    axis, keepdims
        Ignored. Dask reductions pass them.

    Raises
    ------
    TypeError
        The array is in another store.
    """
    store = getattr(zarray, "store", None)
    if not isinstance(store, IcechunkStore):
        where = describe(zarray) if store is None else describe(store)
        raise TypeError(f"extract_session takes an array in an IcechunkStore, not one of {where}")
    return store.session


def merge_sessions(*sessions: ForkSession | list[ForkSession] | list[list[ForkSession]]) -> ForkSession:
    """Merge several forks of one session into one.

    Parameters
    ----------
    *sessions
        Forks, also in nested lists. A fork that occurs several times counts once.

    Returns
    -------
    The first fork, which then has the edits of all. Merge it into the session with ``session.merge(fork)``.

    Raises
    ------
    TypeError
        One of the arguments is not a fork.
    SessionStateError
        ``merge-not-allowed``, ``merge-failed``; no fork was changed.
    """
    distinct = list({id(fork): fork for fork in _flattened(sessions)}.values())
    if not distinct:
        raise InvalidInputError("merge_sessions needs at least one fork", ErrorKind.MERGE_NOT_ALLOWED)
    first, *others = distinct
    first.merge(*others)
    return first


def _flattened(sessions: Any) -> Iterator[ForkSession]:
    for item in sessions:
        if isinstance(item, list | tuple):
            yield from _flattened(item)
        elif isinstance(item, ForkSession):
            yield item
        else:
            raise TypeError(
                f"merge_sessions only accepts ForkSession objects, not {describe(item)}. Merge forks into their "
                f"session with session.merge(*forks)"
            )
