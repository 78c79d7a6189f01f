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

**A process can flush for others.** Workers on one host need not wait for the disk one by one. A process that gives a
*promise* (:meth:`UnsyncedFiles.promise`) keeps a descriptor that watches from then on. What other processes of its
flush domain (:mod:`.flush_domain`) write later, they may leave to it. :meth:`UnsyncedFiles.flush_promised` then brings
everything to the disk with one ``syncfs`` on that descriptor. Nobody knows whose page an error belongs to, so after
any error since the promise, all files written under it count as lost. If the descriptor was closed meanwhile, or if
the promise is that of another process, each file is synced and asked for its own error.

**What would break it.** Writing a file without ``watch`` before and ``add`` after. Syncing a failed file again and
believing the answer. Dropping a path from the record before its sync has ended, so that an interrupt loses it.
Returning from ``flush`` while another thread still syncs files that were added before (hence ``_flush_lock``).
Closing the watching descriptor before another one is open, without counting this as a gap: an error in between would
be reported to nobody. Learning of an error without counting it as a failure."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import batched, repeat, takewhile

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
        "_has_promised",
        "_id",
        "_is_asking",
        "_is_flushing_soon",
        "_last_checked",
        "_lost_directories",
        "_must_ask_each_file",
        "_n_failures",
        "_n_gaps",
        "_paths",
        "_root",
        "_watch_fd",
        "_wrote_elsewhere",
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
        # What a promise depends on. A promise holds for as long as none of the three changes.
        self._id = secrets.token_hex(4)
        self._n_gaps = 0  # times at which no descriptor watched
        self._n_failures = 0  # times at which the disk reported an error
        self._has_promised = False
        self._wrote_elsewhere = False
        self._last_checked: str | None = None
        self._is_asking = False  # a watching descriptor was taken away to be asked, and has not answered
        self.lost: Losses = {}
        self._lost_directories: Losses = {}
        self.of_parent: frozenset[str] = frozenset()

    def watch(self) -> None:
        """Call before a file is written. From then on, ``syncfs`` reports what goes wrong."""
        if self._watch_fd < 0 and disk_sync.HAS_SYNCFS:
            _close(self._watch_with(self._open_root(), if_none=True))

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
            return self._flush()

    def _flush(self, *, everything: bool = False) -> Losses:
        """Flush, under the lock. ``everything``: also what other processes wrote to this file system."""
        # Moved in one step, so that an interrupt leaves every path in one of the two lists.
        self._being_synced.extend(map(deque.popleft, repeat(self._paths, len(self._paths))))
        if not self._being_synced and not everything:
            return {}
        # After an interrupt, some may be in `lost` already. Syncing them again would hide their errors.
        n_failures = self._n_failures
        losses = self._sync([path for path in dict.fromkeys(self._being_synced) if path not in self.lost], everything)
        self._being_synced.clear()
        if losses or self._n_failures != n_failures:
            self._n_failures = n_failures + 1
            self._use_up_errors()
        if not self._paths and not self._has_promised:
            _close(self._watch_with(-1))
        return losses

    # --- for other processes -----------------------------------------------------------------------------------

    def promise(self) -> str | None:
        """Promise to flush what other processes write from now on. Returns the name of the promise, None if it fails.

        The watching descriptor then stays open as long as possible.
        """
        self._has_promised = True  # first: from here on, a flush by another thread keeps the descriptor
        self.watch()
        with _watching:
            return f"{self._id}.{self._n_gaps}.{self._n_failures}" if self._watch_fd >= 0 else None

    def gave(self, promise: str) -> bool:
        """Return True if this process gave the promise."""
        return promise.partition(".")[0] == self._id

    def flush_promised(self, promised: Mapping[str, Callable[[], Iterable[str]]]) -> Losses:
        """:meth:`flush`, for what this process wrote and what others wrote under promises.

        Parameters
        ----------
        promised
            For each promise, a function that returns the files written under it.
        """
        with self._flush_lock:
            losses = self._flush(everything=True)
            for promise, paths in promised.items():
                giver, n_gaps, n_failures = promise.split(".")
                if giver == self._id and int(n_failures) != self._n_failures:
                    error = next(iter(losses.values()), OSError(errno.EIO, os.strerror(errno.EIO)))
                    losses |= dict.fromkeys(paths(), error)
                elif giver != self._id or int(n_gaps) != self._n_gaps:
                    theirs = [path for path in paths() if path not in self.lost]
                    losses |= self._sync_files([*theirs, *set(map(os.path.dirname, theirs))])
            self.lost |= losses
            return losses

    def wrote_elsewhere(self) -> bool:
        """Return True if files of this process were on another file system than the folder, or if that is unknown."""
        last, paths = self._last_checked, self._paths.copy()
        new = list(takewhile(lambda path: path is not last, reversed(paths)))  # callers ask often
        try:
            device = os.stat(self._root).st_dev
            directories = set(map(os.path.dirname, new))
            self._wrote_elsewhere |= any(os.stat(directory).st_dev != device for directory in directories)
        except OSError:  # one was removed
            return True
        if new:
            self._last_checked = new[0]
        return self._wrote_elsewhere

    def mark_lost(self, path: str, error: OSError) -> None:
        """Note that a file, or the name of one, may not survive a crash."""
        self._n_failures += 1
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
        self._id = secrets.token_hex(4)  # the promises are those of the parent
        self._has_promised = self._is_asking = False
        _close(self._watch_with(-1))

    def _sync(self, paths: Sequence[str], everything: bool) -> Losses:
        if (len(paths) <= _FEW and not everything) or not disk_sync.HAS_SYNCFS:
            return self._sync_files(paths)
        if self._is_asking:  # an interrupt came before the answer
            self._count_gap()
        self._is_asking = True
        watch_fd = self._watch_with(self._open_root())  # in this order, one of the two always watches
        try:
            is_certain = disk_sync.sync_file_systems(set(map(os.path.dirname, paths)), watch_fd)
            if not is_certain:
                self._count_gap()
            self._is_asking = False
        except OSError as error:
            self._n_failures += 1
            self._is_asking = False
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

    def _open_root(self) -> int:
        with suppress(OSError):  # the folder may not exist yet
            return os.open(self._root, os.O_RDONLY)
        return -1

    def _watch_with(self, fd: int, *, if_none: bool = False) -> int:
        """Replace the descriptor that watches, by -1 for none, and return the one before.

        With ``if_none``, an existing one stays, and ``fd`` is returned.
        """
        oldest = -1
        with _watching:
            if if_none and self._watch_fd >= 0:
                return fd
            previous, self._watch_fd = self._watch_fd, fd
            _watched.pop(previous, None)
            if fd >= 0:
                if len(_watched) >= _WATCHED_FOLDERS:
                    oldest = next(iter(_watched))
                    unwatched = _watched.pop(oldest)
                    unwatched._watch_fd = -1
                    unwatched._count_gap()
                _watched[fd] = self
            elif previous >= 0:
                self._count_gap()
        _close(oldest)
        return previous

    def _count_gap(self) -> None:
        with _watching:
            self._n_gaps += 1


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
