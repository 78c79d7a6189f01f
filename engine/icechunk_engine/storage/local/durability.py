"""Which files of a local folder may not be on the disk yet, and which ones the disk has lost.

**What is always true.** When :meth:`UnsyncedFiles.flush` has returned, everything that this process added before the
call is on the disk, except what ``lost`` and ``of_parent`` list. :class:`.storage.LocalStorage` flushes before
``create`` and ``replace`` publish anything, and a commit refuses to refer to a file on these lists. So after a crash
of the machine, each commit finds all of its files.

**Files are synced together.** An fsync for each chunk costs 0.3 ms or more: seconds for 10 000 chunks. Nothing refers
to a chunk before the commit, so paths are recorded here and synced later. A few files get one fsync each. Many files
get one ``syncfs``. It took 90 ms after 10 000 files of 1 kB, where fsyncs took 10 s, but it also waits for what other
programs wrote to that file system.

**A failed sync is final.** When the system cannot write a page, it reports the error once and may then drop the data.
The next fsync of the same file succeeds, although nothing was written. So a file whose sync failed stays in ``lost``,
for all storages of this process at that folder, until somebody writes it again.

**An error is reported only to those who listen.** An fsync reports the errors of its file. ``syncfs`` reports errors
of the whole file system, once to each descriptor that was open before anybody was told. So a descriptor is opened
before the first file is written (:meth:`UnsyncedFiles.watch`) and kept until everything has been flushed. If it
reports an error, each file is synced to find out which one failed. If no file admits to it, all of them count as
lost.

**What would break it.** Writing a file without ``watch`` before and ``add`` after. Syncing a failed file again and
believing the answer. Dropping a path from the record before its sync has ended, so that an interrupt loses it.
Returning from ``flush`` while another thread still syncs files that were added before (hence ``_flush_lock``)."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import batched, repeat

from icechunk_engine._runtime.locks import forget_in_child, memory_lock
from icechunk_engine.storage.local import disk_sync
from icechunk_engine.storage.local.disk_sync import Losses

_FEW = 32
"""Up to this many files, an fsync for each costs less than waiting for what others wrote."""

_MANY = 4096
"""From this many files on, they are flushed in the background. The list stays short and a commit finds little to
do."""

_TOO_MANY = 16 * _MANY
"""A writer that is this far ahead of the disk waits for it."""

_WATCHED_FOLDERS = 64
"""Maximum number of descriptors kept for ``syncfs``. Without one, each file is asked for its error."""


class UnsyncedFiles:
    """Files that this process wrote below one folder since the last flush, and those whose sync failed.

    Attributes
    ----------
    lost
        Files and directories whose sync failed. What lies below such a directory is lost with it.
    of_parent
        In a forked child: what the parent had not flushed. Only the parent learns whether it reached the disk.
    """

    __slots__ = (
        "__weakref__",
        "_being_synced",
        "_flush_lock",
        "_is_flushing_soon",
        "_lost_directories",
        "_must_ask_each_file",
        "_paths",
        "_root",
        "_watch_fd",
        "lost",
        "of_parent",
    )

    def __init__(self, root: str) -> None:
        self._root = root
        self._paths: deque[str] = deque()
        self._being_synced: list[str] = []
        # Held while a thread waits for the disk, so that nobody returns while another thread still syncs his files.
        # The rule forbids locks across I/O (_runtime.locks). This one is allowed because it guards no memory, only
        # flush takes it, and its holder takes no other lock and waits for no task that could need this one.
        self._flush_lock = threading.Lock()
        self._is_flushing_soon = False
        self._must_ask_each_file = False
        self._watch_fd = -1
        self.lost: Losses = {}
        self._lost_directories: Losses = {}
        self.of_parent: frozenset[str] = frozenset()

    def watch(self) -> None:
        """Call before a file is written. From then on, ``syncfs`` reports what goes wrong."""
        if self._watch_fd < 0 and disk_sync.HAS_SYNCFS:
            self._open_watch()

    def add(self, path: str) -> None:
        """Record a file that was written, or a directory that was made. Thread-safe without a lock."""
        if self.lost or self.of_parent:
            self.discard(path)
        self.add_again(path)

    def add_again(self, path: str) -> None:
        """Record a file or directory that needs a sync but was not written anew: if it was lost, it stays lost."""
        self._paths.append(path)
        n = len(self._paths)
        if n >= _MANY and not self._is_flushing_soon:
            self._is_flushing_soon = True
            _background.submit(self._flush_in_background)
        elif n >= _TOO_MANY:
            self._flush_in_background()

    def flush(self) -> Losses:
        """Wait until everything added before the call is on the disk. Returns what was lost instead.

        Raises OSError if a file cannot be opened. It stays on the list.
        """
        with self._flush_lock:
            # Moved in one step, so that an interrupt leaves every path in one of the two lists.
            self._being_synced.extend(map(deque.popleft, repeat(self._paths, len(self._paths))))
            if not self._being_synced:
                return {}
            # After an interrupt, some may be in `lost` already. Syncing them again would hide their errors.
            losses = self._sync([path for path in dict.fromkeys(self._being_synced) if path not in self.lost])
            self._being_synced.clear()
            if losses:
                self._use_up_errors()
            if not self._paths:
                _close(self._watch_with(-1))
            return losses

    def mark_lost(self, path: str, error: OSError) -> None:
        """Note that a file, or the name of one, may not survive a crash."""
        self.lost[path] = error

    def discard(self, path: str) -> None:
        """Forget what happened to a file that was removed or is being written anew."""
        self.lost.pop(path, None)
        self.of_parent -= {path}

    def forget(self) -> None:
        """Called in a forked child: the parent flushes what the parent wrote."""
        self.of_parent |= {*self._paths, *self._being_synced}
        self._paths.clear()
        self._being_synced.clear()
        self._flush_lock = threading.Lock()
        self._is_flushing_soon = False
        _close(self._watch_with(-1))

    def _sync(self, paths: Sequence[str]) -> Losses:
        if len(paths) <= _FEW or not disk_sync.HAS_SYNCFS:
            return self._sync_files(paths)
        watch_fd = self._watch_with(-1)
        self.watch()  # what is written from now on
        try:
            is_certain = disk_sync.sync_file_systems(set(map(os.path.dirname, paths)), watch_fd)
        except OSError as error:
            losses = self._sync_files(paths)
            if not losses:  # the system has forgotten whose error it was; directories have just been synced
                losses = {path: error for path in paths if not os.path.isdir(path)}
                self.lost |= losses
            return losses
        finally:
            _close(watch_fd)
        is_certain, self._must_ask_each_file = is_certain and not self._must_ask_each_file, False
        return {} if is_certain else disk_sync.find_failed_writes(paths, self.lost)

    def _sync_files(self, paths: Sequence[str]) -> Losses:
        """Sync files and the directories that they are in."""
        losses: Losses = {}
        directories = dict.fromkeys(map(os.path.dirname, paths))
        for some in batched((path for path in paths if path not in directories), _FEW):
            losses |= disk_sync.sync_each(some, self.lost)
        for some in batched(directories, _FEW):
            disk_sync.sync_each(some, self._lost_directories)
        if self._lost_directories:  # the files may be whole, but their names are not safe
            for path in paths:
                error = self._lost_directories.get(os.path.dirname(path))
                if error is not None:
                    losses[path] = error
            self.lost |= losses
            self._lost_directories.clear()
        return losses

    def _use_up_errors(self) -> None:
        """Let the file system report the errors of files that are known to be lost, so that none counts twice.

        Some of these errors may come from files that were written meanwhile, so those are asked one by one.
        """
        _close(self._watch_with(-1))
        self._must_ask_each_file = True
        if disk_sync.HAS_SYNCFS:
            with suppress(OSError):
                fd = os.open(self._root, os.O_RDONLY)
                try:
                    disk_sync.syncfs(fd)
                finally:
                    os.close(fd)

    def _flush_in_background(self) -> None:
        """Flush. Failures stay on the list of losses, where the next caller of flush finds them."""
        try:
            with suppress(OSError):
                self.flush()
        finally:
            self._is_flushing_soon = False

    def _open_watch(self) -> None:
        with suppress(OSError):  # the folder may not exist yet
            fd = os.open(self._root, os.O_RDONLY)
            _close(self._watch_with(fd) if self._watch_fd < 0 else fd)

    def _watch_with(self, fd: int) -> int:
        """Replace the descriptor that watches, by -1 for none, and return the one before."""
        oldest = -1
        with _watching:
            previous, self._watch_fd = self._watch_fd, fd
            _watched.pop(previous, None)
            if fd >= 0:
                if len(_watched) >= _WATCHED_FOLDERS:
                    oldest = next(iter(_watched))
                    _watched.pop(oldest)._watch_fd = -1
                _watched[fd] = self
        _close(oldest)
        return previous


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


_watching = memory_lock()
_watched: dict[int, UnsyncedFiles] = {}
_by_root: dict[str, UnsyncedFiles] = {}
_background = forget_in_child(disk_sync.Threads(1, "icechunk-flush"))


def unsynced_files(root: str) -> UnsyncedFiles:
    """Return the record of a folder. The process has one for each, so a commit covers what other storages wrote."""
    found = _by_root.get(root)
    return found if found is not None else forget_in_child(_by_root.setdefault(root, UnsyncedFiles(root)))
