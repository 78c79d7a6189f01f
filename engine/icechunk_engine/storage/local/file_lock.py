"""A kernel lock on a hidden file, which excludes other processes and threads from replacing objects in a folder.

**What is always true.** At most one thread of one process on one machine, or on one file server that supports locks,
is inside :func:`locked` for a folder.

**Why it holds.** ``flock`` belongs to the open file, and every caller opens the file anew, so threads exclude each
other as processes do. The kernel drops the lock when its holder dies, so a lock never goes stale. The file is never
unlinked, so two holders cannot hold two different files. If the whole folder was removed and made again, the holder
notices that the file at the path is another one and starts over.

**What would break it.** Unlinking the lock file. Sharing one open file between threads. A forked child that keeps the
file open: it would hold its parent's lock, so a child closes all of them.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from icechunk_engine._runtime.locks import run_in_child
from icechunk_engine.errors import ErrorKind, StorageError

with suppress(ImportError):  # Without it nobody gets here: LocalStorage refuses to be made.
    import fcntl

LOCK_NAME = ".icechunk.lock#1"
"""Neither this library nor official lists names that end in ``#`` and digits."""

_POLLS = 12
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})

_open_fds: set[int] = set()


@contextmanager
def locked(directory: str, give_up: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a directory.

    Parameters
    ----------
    directory
        Must exist.
    give_up
        Called while somebody else holds the lock. It raises to end the wait, for example because the object was
        replaced meanwhile.

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
        release(fd)


def open_lock_file(path: str) -> int:
    """Open a file to lock, and register it so that a forked child closes it. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # In a shared directory the file may belong to somebody else. Except on NFS, you can lock a file that you can
        # only read.
        fd = os.open(path, os.O_RDONLY)
    _open_fds.add(fd)
    return fd


def lock(fd: int, *, wait: bool) -> bool:
    """Lock an open file. Returns False if ``wait`` is False and somebody else holds the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Unlock and close a file of :func:`open_lock_file`."""
    # Unlock before closing: a child that was just forked shares the open file, and closing alone would keep the lock.
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    _open_fds.discard(fd)
    os.close(fd)


def _acquire(path: str, give_up: Callable[[], None]) -> int:
    while True:
        fd = open_lock_file(path)
        try:
            _wait(fd, give_up)
            if _is_at(fd, path):
                return fd
        except OSError as error:
            release(fd)
            if error.errno in _NO_LOCKS:
                raise StorageError(
                    f"the file system of {path} cannot lock files ({error.strerror}), so concurrent commits could "
                    f"lose data. Keep the repository on a local disk, or on an object store through its own URL",
                    ErrorKind.STORAGE_CONFIG,
                ) from error
            raise
        except BaseException:
            release(fd)
            raise
        release(fd)


def _wait(fd: int, give_up: Callable[[], None]) -> None:
    """Wait for the lock: poll first, so that callers who have lost meanwhile leave, then block, which is fair."""
    for attempt in range(_POLLS):
        if lock(fd, wait=False):
            return
        give_up()
        time.sleep(random.uniform(0.0001, 0.0003) * (attempt + 1))
    lock(fd, wait=True)


def _is_at(fd: int, path: str) -> bool:
    """Return True if the locked file is still the one at the path, and so the one that others lock."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


@run_in_child
def _close_all() -> None:
    """Close the parent's lock files. Do not unlock them: that would take the lock from the parent."""
    for fd in tuple(_open_fds):
        with suppress(OSError):
            os.close(fd)
    _open_fds.clear()
