"""Comparing this machine's clock with the clocks of the storage and of other writers.

Snapshots and updates are ordered by time. The official library refuses to write anything dated before the latest
update. So one commit from a machine whose clock runs an hour ahead keeps users of that library from writing for an
hour. Like the official library, we refuse to write if our clock and the storage's are more than ten minutes apart.

Why the comparison is sound: the storage dates an object while we write it. Its date must therefore lie between our
times before and after the write, give or take the tolerance. Slow requests only widen that interval, so they never
lead to a false alarm. A copy that keeps the date of its original would, so the object must be newly written.

What it costs: asking for the date takes a request. We skip it if earlier answers of the storage show that the clocks
agree (:meth:`~icechunk_engine.storage.base.Storage.clock_lower_bound_us`). On a disk, each write tells the time for
free, so the request is made only before an error.
"""

from __future__ import annotations

import time
import warnings
from datetime import UTC, datetime, timedelta

from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.storage.base import Storage

TOLERANCE_US = 600_000_000
"""Ten minutes, as in the official library."""


def now_us() -> int:
    """Return the wall clock in Unix microseconds."""
    return time.time_ns() // 1000


def require_right_clock(storage: Storage, key: str, began_us: int, now: int) -> None:
    """Raise an error if this machine's clock is wrong.

    Parameters
    ----------
    key
        An object that was just written.
    began_us, now
        Times of this machine's clock before and after the write, in Unix microseconds.

    Raises
    ------
    FormatError
        ``snapshot-timestamp``: the clock and the storage's are more than ten minutes apart.
    """
    clock_lower_bound_us = storage.clock_lower_bound_us()
    if clock_lower_bound_us is None:
        if storage.is_remote:
            return  # no answers to compare with: a request for each write would cost too much
    elif abs(now - clock_lower_bound_us) <= TOLERANCE_US:
        return
    found = storage.info(key)
    if found is not None and not began_us - TOLERANCE_US <= found.last_modified_us <= now + TOLERANCE_US:
        apart_us = began_us - found.last_modified_us
        raise FormatError(
            f"this machine's clock has drifted: it shows {_shown(began_us)}, the clock of {storage.identity} shows "
            f"{_shown(found.last_modified_us)}. They are {_span(abs(apart_us))} apart, and ten minutes are allowed, "
            f"because snapshots are ordered by time. Nothing was committed. Set this machine's clock, then try again",
            ErrorKind.SNAPSHOT_TIMESTAMP,
        )


def warn_of_future(latest_us: int, now: int) -> None:
    """Warn if the latest update of a repository is dated in the future."""
    if latest_us > now + TOLERANCE_US:
        warnings.warn(
            f"the latest update of this repository is dated {_shown(latest_us)}, which is in the future: the clock of "
            f"this machine is late, or another writer's was ahead. Your update is dated just after it. Programs "
            f"that use the official library cannot write before that time. Check the clocks of all writers",
            stacklevel=2,
        )


def _shown(time_us: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, OSError, ValueError):
        return f"{time_us} microseconds after 1970"


def _span(span_us: int) -> str:
    return str(timedelta(seconds=span_us // 1_000_000))
