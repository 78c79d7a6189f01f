"""The system calls that wait for a disk, for a few files and for whole file systems.

Each file is synced once. The system reports an error once, so a second sync of the same file would hide it
(:mod:`.durability`). This holds too if a wait is interrupted: a failed file is in ``lost`` before anything else
happens."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from icechunk_engine._runtime.locks import forget_in_child

with suppress(ImportError):  # Without it nobody gets here: LocalStorage refuses to be made.
    import fcntl

_PATIENCE_S = 0.0005
"""A disk that takes longer gets its fsyncs from several threads. A faster one is done before they have started."""

_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP})
"""Errors of a file system that has no fsync for such a file."""

type Losses = dict[str, OSError]
"""Paths and the errors of their syncs."""


# --- a few files -----------------------------------------------------------------------------------------------------


def sync_each(paths: Iterable[str], lost: Losses) -> Losses:
    """Wait for files. All are handed to the disk before the first wait, and a slow disk gets several at a time.

    Returns
    -------
    Those that failed. Each is in ``lost`` as soon as it is known, even if the wait is interrupted.
    """
    losses: Losses = {}
    waiting: list[tuple[str, int]] = []
    try:
        for path in paths:
            with suppress(FileNotFoundError, NotADirectoryError):  # deleted since
                waiting.append((path, os.open(path, os.O_RDONLY)))
        if len(waiting) > 1:
            for _, fd in waiting:
                _start_writing(fd)
        patient_until = time.perf_counter() + _PATIENCE_S
        waiting.reverse()
        while waiting and time.perf_counter() <= patient_until:
            path, fd = waiting[-1]
            _sync_one(path, fd, losses, lost)
            waiting.pop()
            os.close(fd)
        tasks: list[Future[None]] = []
        while waiting:  # each task closes its own file, and may outlive an interrupt of this wait
            tasks.append(_threads.submit(_sync_and_close, *waiting.pop(), losses, lost))
        for task in tasks:
            task.result()
    finally:
        for _, fd in waiting:
            os.close(fd)
    return losses


def sync_directory(path: str) -> None:
    """Make creations and renames in a directory durable. Raises OSError."""
    for error in sync_each([path], {}).values():
        raise error


def _sync_and_close(path: str, fd: int, losses: Losses, lost: Losses) -> None:
    try:
        _sync_one(path, fd, losses, lost)
    finally:
        os.close(fd)


def _sync_one(path: str, fd: int, losses: Losses, lost: Losses) -> None:
    """Wait for one file, once: the system reports an error once."""
    try:
        os.fsync(fd)
        _empty_drive_cache(fd)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            lost[path] = losses[path] = error


def _empty_drive_cache(fd: int) -> None:
    """On macOS, fsync leaves the data in the memory of the drive. This call writes them out; some drives refuse it."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)


class Threads:
    """Threads that are started when there is work. A forked child starts its own."""

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._executor: ThreadPoolExecutor | None = None

    def submit[**P](self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Future[None]:
        """Call on a thread, or here if no thread can be started or the interpreter is about to end. Calls once."""
        done: Future[None] = Future()
        # An executor that cannot start a thread keeps the task and may run it later, when it was already run here.
        chances = deque([None])

        def once() -> None:
            try:
                chances.pop()
            except IndexError:
                return
            try:
                function(*args, **kwargs)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        try:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._size, thread_name_prefix=self._name)
            self._executor.submit(once)
        except RuntimeError:
            once()
        return done

    def forget(self) -> None:
        """Called in a forked child, which has none of the threads."""
        self._executor = None


_threads = forget_in_child(Threads(8, "icechunk-fsync"))


# --- many files ------------------------------------------------------------------------------------------------------


def sync_file_systems(directories: Iterable[str], watch: int) -> bool:
    """Wait for everything that was written to the file systems of some directories. Raises OSError.

    Parameters
    ----------
    watch
        A descriptor that was opened before anything was written, or -1.

    Returns
    -------
    True if every error since then would have been reported.
    """
    devices: set[int] = set()
    is_certain = watch >= 0 and SYNCFS_REPORTS_ERRORS
    if watch >= 0:
        devices.add(os.fstat(watch).st_dev)
        is_certain &= syncfs(watch)
    for directory in directories:
        try:
            fd = os.open(directory, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since
        try:
            device = os.fstat(fd).st_dev
            if device not in devices:
                is_certain = False  # the error may have been reported to somebody else before this open
                syncfs(fd)
                devices.add(device)
        finally:
            os.close(fd)
    return is_certain


def find_failed_writes(paths: Iterable[str], lost: Losses) -> Losses:
    """Return files that the disk refused, after ``syncfs`` has waited for them. Takes a few microseconds each."""
    losses: Losses = {}
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                _wait_for_writing(fd)
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since
        except OSError as error:
            lost[path] = losses[path] = error
    return losses


def syncfs(fd: int) -> bool:
    """Wait for a file system. Returns False if errors would not have been reported; raises OSError."""
    assert _syncfs_of_libc is not None
    if _syncfs_of_libc(fd) == 0:
        return True
    code = ctypes.get_errno()
    if code != errno.ENOSYS:
        raise OSError(code, os.strerror(code))
    os.sync()  # a sandbox without syncfs; on Linux this waits
    return False


def _start_writing(fd: int) -> None:
    """Hand a file's data to the disk without waiting. The fsync that follows reports errors."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def _wait_for_writing(fd: int) -> None:
    """Wait for data that were handed to the disk. Raises OSError if some were refused."""
    if (
        _sync_file_range is None
        or _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WAIT_BEFORE) == 0
    ):
        return
    code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):  # a directory, or a file system without this call
        raise OSError(code, os.strerror(code))


def kind_of_file_system(path: str) -> int:
    """Return the magic number of the file system that a path is on; 0 if unknown."""
    if _statfs_of_libc is None:
        return 0
    facts = ctypes.create_string_buffer(_STATFS_SIZE)
    if _statfs_of_libc(os.fsencode(path), facts) != 0:
        return 0
    return ctypes.c_ulong.from_buffer(facts).value & 0xFFFFFFFF  # the first field on most machines; unknown on others


def _of_libc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of the C library; None where it has none of that name."""
    try:
        found: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):
        return None
    return found


def _kernel() -> tuple[int, ...]:
    """The first two numbers of the kernel's version."""
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


# Both calls exist on Linux only.
_syncfs_of_libc = _of_libc("syncfs")
HAS_SYNCFS = _syncfs_of_libc is not None
SYNCFS_REPORTS_ERRORS = HAS_SYNCFS and _kernel() >= (5, 8)
"""Older kernels wait but do not report errors of writing."""

_statfs_of_libc = _of_libc("statfs") if HAS_SYNCFS else None  # other systems have other structures
_STATFS_SIZE = 512
"""Room for the structure, which has some 120 bytes."""

_sync_file_range = _of_libc("sync_file_range")
_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2
