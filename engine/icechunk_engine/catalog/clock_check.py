"""This machine's clock against that of the storage and of other writers.

Snapshots and updates are ordered by time, and the official library refuses to write what is not later than what is
there. One commit from a machine whose clock runs an hour ahead keeps its users from writing for an hour. So a clock
that differs from the storage's by more than ten minutes is refused, as the official library does.

The storage's time is that of an object which was just written. To ask for it is a request more. So that is done only
if nothing heard before shows that the clocks agree: over a network about once in a process, and only where the
repository was not updated in the last ten minutes; on a disk, where each write tells the time, only before an error.
"""

from __future__ import annotations

import time
import warnings
from datetime import UTC, datetime, timedelta

from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.storage.base import Storage

TOLERANCE_US = 600_000_000
"""The official library's."""


def now_us() -> int:
    """Wall clock in Unix microseconds."""
    return time.time_ns() // 1000


def require_right_clock(storage: Storage, key: str, began_us: int, now: int) -> None:
    """Refuse to go on with a clock that is wrong.

    Parameters
    ----------
    key
        An object that was written just now.
    began_us, now
        What this machine's clock showed before and after.

    Raises
    ------
    FormatError
        ``snapshot-timestamp``: the clock differs from the storage's by more than ten minutes.
    """
    clock_lower_bound_us = storage.clock_lower_bound_us()
    if clock_lower_bound_us is None:
        if storage.is_remote:
            return  # a request each time would cost more than it is worth
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
    """Warn when the latest update of a repository is dated in the future."""
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
