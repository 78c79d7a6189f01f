"""What was written to a local disk but is not known to have reached it.

An fsync per chunk costs 0.3 ms and more (10 000 chunks: seconds), and nothing refers to a chunk before the commit
point. So writes are remembered here and flushed before the commit point, all at once. A few files get an fsync each;
many make one ``syncfs``, which took 90 ms after 10 000 files of 1 kB where fsyncs took 10 s, but which also waits for
what other programs wrote to that file system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import batched

_FEW = 32
"""Up to here an fsync per file costs less than waiting for what others wrote."""

_REMEMBERED = 4096
"""Bound of the list of paths; beyond it only their directories are kept, or the files flushed at once."""


_PATIENCE_S = 0.0005
"""A disk that takes longer gets its fsyncs from several threads; a faster one is done before they have begun."""


class Unflushed:
    """The files written below one root by this process since the last flush."""

    __slots__ = ("_directories", "_lock", "_paths")

    def __init__(self) -> None:
        self._paths: deque[str] = deque()
        self._directories: set[str] = set()
        self._lock = threading.Lock()

    def add(self, path: str) -> None:
        """Remember a file, or a directory that was made. Thread-safe without a lock."""
        self._paths.append(path)
        if len(self._paths) > _REMEMBERED:
            with self._lock:
                self._shorten()

    def flush(self) -> None:
        """Return when everything added before the call is on the disk. Raises OSError."""
        # Under the lock, so that nobody returns while another thread still flushes what he wrote.
        with self._lock:
            paths = _drain(self._paths)
            directories, self._directories = self._directories, set()
            try:
                if not directories and (len(paths) <= _FEW or not _HAS_SYNCFS):
                    _sync_files(paths)
                else:
                    _sync_file_systems(directories.union(map(os.path.dirname, paths)))
            except BaseException:
                self._paths.extendleft(paths)
                self._directories |= directories
                raise

    def forget(self) -> None:
        """In a forked child: what the parent wrote is the parent's to flush."""
        self._paths.clear()
        self._directories = set()
        self._lock = threading.Lock()

    def _shorten(self) -> None:
        paths = _drain(self._paths)
        if _HAS_SYNCFS:
            self._directories.update(map(os.path.dirname, paths))
        else:
            _sync_files(paths)


def unflushed(root: str) -> Unflushed:
    """The process-wide record for a root: a commit through one storage covers what its copies wrote."""
    return _by_root.setdefault(root, Unflushed())


def sync_directory(path: str) -> None:
    """Make creations and renames in a directory durable, where the system lets a directory be synced."""
    if sys.platform != "win32":
        _sync([path])


def _sync_files(paths: Iterable[str]) -> None:
    """Files, and the directories that they are in."""
    for some in batched(paths, _FEW):
        directories = map(os.path.dirname, some) if sys.platform != "win32" else ()
        _sync(dict.fromkeys((*some, *directories)))


def _sync(paths: Iterable[str]) -> None:
    """Wait for files. The disk is given all of them before one is waited for, and a slow one may do them at once."""
    fds: list[int] = []
    try:
        for path in paths:
            with suppress(FileNotFoundError, NotADirectoryError):  # deleted since
                fds.append(os.open(path, os.O_RDONLY))
        if len(fds) > 1:
            for fd in fds:
                _start_writing(fd)
        patient_until = time.perf_counter() + _PATIENCE_S
        for number, fd in enumerate(fds):
            if time.perf_counter() > patient_until:
                _fsync_together(fds[number:])
                break
            _fsync(fd)
    finally:
        for fd in fds:
            os.close(fd)


def _fsync_together(fds: Sequence[int]) -> None:
    waiting = [_fsync_soon(fd) for fd in fds]
    errors = [error for one in waiting if (error := one.exception()) is not None]  # of none that still runs
    if errors:
        raise errors[0]


def _fsync_soon(fd: int) -> Future[None]:
    """On a thread, or at once when the interpreter is about to end. Once a file: the system tells an error once."""
    try:
        return _threads().submit(_fsync, fd)
    except RuntimeError:
        done: Future[None] = Future()
        try:
            _fsync(fd)
        except OSError as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        return done


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # a file system without this fsync
            raise


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, thread_name_prefix="icechunk-fsync")


def _sync_file_systems(directories: Iterable[str]) -> None:
    devices: set[int] = set()
    for directory in directories:
        try:
            fd = os.open(directory, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since
        try:
            device = os.fstat(fd).st_dev
            if device not in devices:
                _syncfs(fd)
                devices.add(device)
        finally:
            os.close(fd)


def _of_libc(name: str) -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    return found


_syncfs_of_libc = _of_libc("syncfs")
_HAS_SYNCFS = _syncfs_of_libc is not None
_sync_file_range = _of_libc("sync_file_range")
_SYNC_FILE_RANGE_WRITE = 2


def _start_writing(fd: int) -> None:
    """Hand a file's data to the disk without waiting; the fsync that follows tells of what goes wrong."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def _syncfs(fd: int) -> None:
    assert _syncfs_of_libc is not None
    if _syncfs_of_libc(fd) == 0:
        return
    code = ctypes.get_errno()
    if code != errno.ENOSYS:
        raise OSError(code, os.strerror(code))
    os.sync()  # a sandbox without syncfs; on Linux this waits


def _drain(queue: deque[str]) -> list[str]:
    return [queue.popleft() for _ in range(len(queue))]


_by_root: dict[str, Unflushed] = {}


def _after_fork() -> None:
    _threads.cache_clear()
    for record in _by_root.values():
        record.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
