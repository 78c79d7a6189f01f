"""What was written to a local disk but is not known to have reached it, and what is known to be lost.

An fsync per chunk costs 0.3 ms and more (10 000 chunks: seconds), and nothing refers to a chunk before the commit
point. So writes are remembered here and flushed before the commit point, all at once. A few files get an fsync each;
many make one ``syncfs``, which took 90 ms after 10 000 files of 1 kB where fsyncs took 10 s, but which also waits for
what other programs wrote to that file system.

A failed sync is final
----------------------
When the system cannot write a page, it reports the error once and may then forget the data: the next fsync of the same
file succeeds, although nothing was written. So a file whose sync failed counts as lost, for all storages of this
process at that place, until somebody writes it again. Syncing it again proves nothing.

Only who waits for a file learns of its error. An fsync reports the file's own; ``syncfs`` reports one for the whole
file system, to each descriptor that was opened before somebody else was told. So a descriptor is opened before the
first file is written, and kept until everything has been flushed. When it reports an error, each file is synced
to find out which one it was; if none owns up, all of them count as lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import batched, repeat

from icechunk_engine._runtime.locks import forget_in_child, memory_lock

if sys.platform == "darwin":
    from fcntl import F_FULLFSYNC, fcntl

_FEW = 32
"""Up to here an fsync per file costs less than waiting for what others wrote."""

_MANY = 4096
"""So many files are flushed in the background, so that the list stays short and a commit finds little left to do."""

_TOO_MANY = 16 * _MANY
"""A writer that is so far ahead of the disk waits for it."""

_WATCHED_ROOTS = 64
"""Descriptors kept for ``syncfs``, at most. Without one, each file is asked for its error."""

_PATIENCE_S = 0.0005
"""A disk that takes longer gets its fsyncs from several threads; a faster one is done before they have begun."""

_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, *([errno.EBADF] if sys.platform == "win32" else [])})
"""Errors of a file system that has no fsync for such a file; Windows has none for files opened for reading."""

_TO_SYNC = os.O_RDWR | getattr(os, "O_BINARY", 0) if sys.platform == "win32" else os.O_RDONLY
"""Windows only syncs what was opened for writing."""

type Losses = dict[str, OSError]
"""Paths and the errors of their syncs."""


class Unflushed:
    """The files written below one root by this process since the last flush, and those whose flush failed.

    Attributes
    ----------
    lost
        Files and directories whose sync failed. What lies below such a directory is lost with it.
    inherited
        In a forked child: what the parent had not flushed. Only the parent learns whether it reached the disk.
    """

    __slots__ = (
        "__weakref__",
        "_has_heard",
        "_is_flushing_soon",
        "_lost_names",
        "_paths",
        "_root",
        "_sync_lock",
        "_taken",
        "_watch",
        "inherited",
        "lost",
    )

    def __init__(self, root: str) -> None:
        self._root = root
        self._paths: deque[str] = deque()
        self._taken: list[str] = []
        # One thread at a time waits for the disk, and nobody returns while another one still syncs what he wrote.
        # This lock guards no memory; nothing else is locked and no task is awaited by who holds it.
        self._sync_lock = threading.Lock()
        self._is_flushing_soon = False
        self._has_heard = False
        self._watch = -1
        self.lost: Losses = {}
        self._lost_names: Losses = {}
        self.inherited: frozenset[str] = frozenset()

    def watch(self) -> None:
        """Call before a file is written: from here on ``syncfs`` will tell what goes wrong."""
        if self._watch < 0 and _HAS_SYNCFS:
            self._open_watch()

    def add(self, path: str) -> None:
        """Remember a file that was written, or a directory that was made. Thread-safe without a lock."""
        if self.lost or self.inherited:
            self.forgive(path)
        self.add_again(path)

    def add_again(self, path: str) -> None:
        """Remember a file or directory whose loss, if it was lost before, is not made good."""
        self._paths.append(path)
        n = len(self._paths)
        if n >= _MANY and not self._is_flushing_soon:
            self._is_flushing_soon = True
            _background.submit(self._flush_in_background)
        elif n >= _TOO_MANY:
            self._flush_in_background()

    def flush(self) -> Losses:
        """Return when everything added before the call is on the disk, but for what is returned, which is lost.

        Raises OSError when a file cannot be opened; it stays on the list.
        """
        with self._sync_lock:
            # Moved in one step, so that an interrupt leaves every path in one of the two lists.
            self._taken.extend(map(deque.popleft, repeat(self._paths, len(self._paths))))
            if not self._taken:
                return {}
            # Where an interrupt came after an error was told, a second sync would hide it.
            losses = self._sync([path for path in dict.fromkeys(self._taken) if path not in self.lost])
            self._taken.clear()
            if losses:
                self._hear_the_rest()
            if not self._paths:
                _close(self._watch_with(-1))
            return losses

    def lose(self, path: str, error: OSError) -> None:
        """Note that a file, or the name of one, may not survive."""
        self.lost[path] = error

    def forgive(self, path: str) -> None:
        """A file was removed, or written anew, and what happened to the old one no longer matters."""
        self.lost.pop(path, None)
        self.inherited -= {path}

    def forget(self) -> None:
        """In a forked child: what the parent wrote is the parent's to flush."""
        self.inherited |= {*self._paths, *self._taken}
        self._paths.clear()
        self._taken.clear()
        self._sync_lock = threading.Lock()
        self._is_flushing_soon = False
        _close(self._watch_with(-1))

    def _sync(self, paths: Sequence[str]) -> Losses:
        if len(paths) <= _FEW or not _HAS_SYNCFS:
            return self._sync_files(paths)
        watch = self._watch_with(-1)
        self.watch()  # what is written from now on
        try:
            is_certain = _sync_file_systems(set(map(os.path.dirname, paths)), watch)
        except OSError as error:
            losses = self._sync_files(paths)
            if not losses:  # the system has forgotten whose error it was; directories have just been synced
                losses = {path: error for path in paths if not os.path.isdir(path)}
                self.lost |= losses
            return losses
        finally:
            _close(watch)
        is_certain, self._has_heard = is_certain and not self._has_heard, False
        return {} if is_certain else _look_for_errors(paths, self.lost)

    def _sync_files(self, paths: Sequence[str]) -> Losses:
        """Files, and the directories that they are in."""
        losses: Losses = {}
        directories = dict.fromkeys(map(os.path.dirname, paths)) if sys.platform != "win32" else {}
        for some in batched((path for path in paths if path not in directories), _FEW):
            losses |= _sync_each(some, self.lost)
        for some in batched(directories, _FEW):
            _sync_each(some, self._lost_names)
        if self._lost_names:  # the files may be whole, but their names are not
            losses |= {p: error for p in paths if (error := self._lost_names.get(os.path.dirname(p))) is not None}
            self.lost |= losses
            self._lost_names.clear()
        return losses

    def _hear_the_rest(self) -> None:
        """Syncing file by file, the file system noted errors that it would tell again, of files that are lost already.

        Whoever writes meanwhile may have caused some of them, so the next files are asked one by one.
        """
        _close(self._watch_with(-1))
        self._has_heard = True
        if _HAS_SYNCFS:
            with suppress(OSError):
                fd = os.open(self._root, os.O_RDONLY)
                try:
                    _syncfs(fd)
                finally:
                    os.close(fd)

    def _flush_in_background(self) -> None:
        """What fails is on the list of losses, and told to who waits for it."""
        try:
            with suppress(OSError):
                self.flush()
        finally:
            self._is_flushing_soon = False

    def _open_watch(self) -> None:
        with suppress(OSError):  # the root may not be there yet
            fd = os.open(self._root, os.O_RDONLY)
            _close(self._watch_with(fd) if self._watch < 0 else fd)

    def _watch_with(self, fd: int) -> int:
        """Put another descriptor, or none (-1), in the place of the one that watches, which is returned."""
        oldest = -1
        with _watching:
            previous, self._watch = self._watch, fd
            _watched.pop(previous, None)
            if fd >= 0:
                if len(_watched) >= _WATCHED_ROOTS:
                    oldest = next(iter(_watched))
                    _watched.pop(oldest)._watch = -1
                _watched[fd] = self
        _close(oldest)
        return previous


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


_watching = memory_lock()
_watched: dict[int, Unflushed] = {}


def unflushed(root: str) -> Unflushed:
    """The process-wide record for a root: a commit through one storage covers what its copies wrote."""
    found = _by_root.get(root)
    return found if found is not None else forget_in_child(_by_root.setdefault(root, Unflushed(root)))


def sync_directory(path: str) -> None:
    """Make creations and renames in a directory durable, where the system lets a directory be synced."""
    if sys.platform != "win32":
        for error in _sync_each([path], {}).values():
            raise error


# --- a few files -------------------------------------------------------------------------------------------------


def _sync_each(paths: Iterable[str], lost: Losses) -> Losses:
    """Wait for files. The disk is given all of them before one is waited for, and a slow one may do them at once.

    Returns
    -------
    Those that failed. They are in ``lost`` as soon as they are known, also when the wait is interrupted.
    """
    losses: Losses = {}
    waiting: list[tuple[str, int]] = []
    try:
        for path in paths:
            with suppress(FileNotFoundError, NotADirectoryError):  # deleted since
                waiting.append((path, os.open(path, _TO_SYNC)))
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


def _sync_and_close(path: str, fd: int, losses: Losses, lost: Losses) -> None:
    try:
        _sync_one(path, fd, losses, lost)
    finally:
        os.close(fd)


def _sync_one(path: str, fd: int, losses: Losses, lost: Losses) -> None:
    """Wait for one file, once: the system tells an error once."""
    try:
        os.fsync(fd)
        if sys.platform == "darwin":  # fsync leaves the data in the memory of the drive
            with suppress(OSError):
                fcntl(fd, F_FULLFSYNC)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            lost[path] = losses[path] = error


class _Threads:
    """Threads that come when there is work; a forked child makes its own."""

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._executor: ThreadPoolExecutor | None = None

    def submit[**P](self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> Future[None]:
        """Run on a thread, or at once when the interpreter is about to end or no thread can be started."""
        done: Future[None] = Future()
        turns = deque([None])  # An executor that cannot start a thread has taken the task, and may run it later.

        def once() -> None:
            try:
                turns.pop()
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
        """In a forked child: it has none of the threads."""
        self._executor = None


_threads = forget_in_child(_Threads(8, "icechunk-fsync"))
_background = forget_in_child(_Threads(1, "icechunk-flush"))


# --- many files --------------------------------------------------------------------------------------------------


def _sync_file_systems(directories: Iterable[str], watch: int) -> bool:
    """Wait for all that was written to the file systems of some directories.

    Parameters
    ----------
    watch
        A descriptor that was opened before anything was written, or -1.

    Returns
    -------
    True when every error since then would have been told.
    """
    devices: set[int] = set()
    is_certain = watch >= 0 and _SYNCFS_TELLS
    if watch >= 0:
        devices.add(os.fstat(watch).st_dev)
        is_certain &= _syncfs(watch)
    for directory in directories:
        try:
            fd = os.open(directory, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted since
        try:
            device = os.fstat(fd).st_dev
            if device not in devices:
                is_certain = False  # somebody else may have been told before
                _syncfs(fd)
                devices.add(device)
        finally:
            os.close(fd)
    return is_certain


def _look_for_errors(paths: Iterable[str], lost: Losses) -> Losses:
    """Files that the disk refused, though it has been waited for; a few microseconds each."""
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


def _of_libc(name: str) -> ctypes._NamedFuncPointer | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    return found


def _kernel() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) if sys.platform.startswith("linux") else ()


_syncfs_of_libc = _of_libc("syncfs")
_HAS_SYNCFS = _syncfs_of_libc is not None
_SYNCFS_TELLS = _kernel() >= (5, 8)
"""Older kernels wait, and keep errors of the writing to themselves."""

_sync_file_range = _of_libc("sync_file_range")
_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2


def _start_writing(fd: int) -> None:
    """Hand a file's data to the disk without waiting; the fsync that follows tells of what goes wrong."""
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def _wait_for_writing(fd: int) -> None:
    """Wait for data that were handed to the disk, and raise OSError for those that were refused."""
    if (
        _sync_file_range is None
        or _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WAIT_BEFORE) == 0
    ):
        return
    code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE):  # a directory, or a file system without it
        raise OSError(code, os.strerror(code))


def _syncfs(fd: int) -> bool:
    """Wait for a file system. Returns False when errors would not have been told; raises OSError."""
    assert _syncfs_of_libc is not None
    if _syncfs_of_libc(fd) == 0:
        return True
    code = ctypes.get_errno()
    if code != errno.ENOSYS:
        raise OSError(code, os.strerror(code))
    os.sync()  # a sandbox without syncfs; on Linux this waits
    return False


_by_root: dict[str, Unflushed] = {}
