"""A queue for the commits to one folder. It saves work; it does not make commits safe.

Without it, many writers prepare their commits at the same time, one wins, and the others prepare again. In the queue
they take turns, so most commits succeed at the first attempt.

Nothing relies on the queue: :meth:`~icechunk_engine.storage.base.Storage.replace` keeps commits safe. So every failure
is ignored. A writer who cannot lock the file, or who has waited for five seconds, goes on without its turn. A commit
that hangs therefore delays the others by five seconds at most.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from icechunk_engine.storage.local.file_lock import lock, open_lock_file, release

QUEUE_NAME = ".icechunk.turn#1"

_PATIENCE_S = 5.0
_POLL_S = 0.002


@contextmanager
def commit_queue(directory: str) -> Iterator[None]:
    """Hold the turn to commit to a directory, or go on without it after some seconds."""
    fd = _take_turn(os.path.join(directory, QUEUE_NAME))
    try:
        yield
    finally:
        if fd is not None:
            release(fd)


def _take_turn(path: str) -> int | None:
    try:
        fd = open_lock_file(path)
    except OSError:
        return None
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while not lock(fd, wait=False):
            if time.monotonic() > deadline:
                release(fd)
                return None
            time.sleep(random.uniform(0.5, 1.5) * _POLL_S)
    except OSError:
        release(fd)
        return None
    except BaseException:
        release(fd)
        raise
    return fd
