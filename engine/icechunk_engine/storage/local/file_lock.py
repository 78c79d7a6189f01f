"""Exclusion of other processes and threads from one directory, by a kernel lock on a hidden file.

The kernel drops the lock when its holder dies, so there are no stale locks, and the file is never unlinked, so two
holders can never hold two different files. Everybody opens the file anew: ``flock`` then also excludes threads.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from icechunk_engine._runtime.locks import run_in_child
from icechunk_engine.errors import ErrorKind, StorageError

LOCK_NAME = ".icechunk.lock#1"
"""Neither this library nor official lists names that end in ``#`` and digits, so the file is not junk to either."""

QUEUE_NAME = ".icechunk.turn#1"

_POLLS = 12
_TURN_PATIENCE_S = 5.0
_TURN_POLL_S = 0.002
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int, *, wait: bool) -> bool:
        while True:
            try:
                msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    raise
                if not wait:
                    return False
            else:
                return True

    def _unlock(fd: int) -> None:
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(fd: int, *, wait: bool) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


_open_fds: set[int] = set()


@contextmanager
def locked(directory: str, give_up: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a directory.

    Parameters
    ----------
    directory
        Must exist.
    give_up
        Called while somebody else holds the lock; raises when waiting has become pointless.

    Raises
    ------
    StorageError
        ``storage-config``: the file system cannot lock.
    OSError
        The lock file cannot be opened.
    """
    fd = _acquire(os.path.join(directory, LOCK_NAME), give_up)
    try:
        yield
    finally:
        _release(fd)


@contextmanager
def commit_queue(directory: str) -> Iterator[None]:
    """Hold another lock of a directory, that nobody relies on: after some seconds, or where none can be had, go on."""
    fd = _try_to_enter(os.path.join(directory, QUEUE_NAME))
    try:
        yield
    finally:
        if fd is not None:
            _release(fd)


def _try_to_enter(path: str) -> int | None:
    try:
        fd = _open(path)
    except OSError:
        return None
    _open_fds.add(fd)
    deadline = time.monotonic() + _TURN_PATIENCE_S
    try:
        while not _lock(fd, wait=False):
            if time.monotonic() > deadline:
                _release(fd)
                return None
            time.sleep(random.uniform(0.5, 1.5) * _TURN_POLL_S)
    except OSError:
        _release(fd)
        return None
    except BaseException:
        _release(fd)
        raise
    return fd


def _acquire(path: str, give_up: Callable[[], None]) -> int:
    while True:
        fd = _open(path)
        _open_fds.add(fd)
        try:
            _wait(fd, give_up)
            if _is_at(fd, path):
                return fd
        except OSError as error:
            _release(fd)
            if error.errno in _NO_LOCKS:
                raise StorageError(
                    f"the file system of {path} cannot lock files ({error.strerror}), so concurrent commits could "
                    f"lose data. Keep the repository on a local disk, or on an object store through its own URL",
                    ErrorKind.STORAGE_CONFIG,
                ) from error
            raise
        except BaseException:
            _release(fd)
            raise
        _release(fd)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Somebody else's file in a shared directory. Reading suffices to lock it, but on NFS.
        return os.open(path, os.O_RDONLY)


def _wait(fd: int, give_up: Callable[[], None]) -> None:
    """Poll a little, so that those who have lost meanwhile leave the queue; then queue up, which is fair."""
    for attempt in range(_POLLS):
        if _lock(fd, wait=False):
            return
        give_up()
        time.sleep(random.uniform(0.0001, 0.0003) * (attempt + 1))
    _lock(fd, wait=True)


def _is_at(fd: int, path: str) -> bool:
    """Whether the locked file is still the one that others will lock: not so when the directory was emptied."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _release(fd: int) -> None:
    # Unlock before closing: a child forked meanwhile shares the open file, closing alone would leave it locked.
    with suppress(OSError):
        _unlock(fd)
    _open_fds.discard(fd)
    os.close(fd)


@run_in_child
def _close_all() -> None:
    """A child must not keep its parent's lock alive. It closes only: unlocking would take it from the parent."""
    for fd in tuple(_open_fds):
        with suppress(OSError):
            os.close(fd)
    _open_fds.clear()
