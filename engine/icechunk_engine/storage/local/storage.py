"""A repository in a local folder: :class:`LocalStorage` keeps the storage contract with files.

**What is always true.** A reader, who takes no lock, sees an object whole in one of its versions, or not at all. Of
several writers that replace one version, exactly one succeeds. What was published survives a crash of the machine.

**Why it holds.** Every object is written to a temporary file and renamed (:mod:`.files`). Conditional writes compare
and rename under a lock on the folder (:mod:`.file_lock`). Files are synced before anything that refers to them is
published (:mod:`.durability`).

**What would break it.** Modifying a file in place: official keeps backups as hard links, which would change too.
Another program that replaces objects without taking the lock. Official does that, and its local commits are not safe
against each other either. We notice such a write up to the moment of our rename, not after."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property, partial

from icechunk_engine.config import StorageSettings, default_storage_settings
from icechunk_engine.errors import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    StorageError,
    VersionMismatchError,
)
from icechunk_engine.storage.base import FlushPromise, ObjectInfo, Storage, Version
from icechunk_engine.storage.local import disk_sync, files
from icechunk_engine.storage.local.commit_queue import commit_queue
from icechunk_engine.storage.local.durability import unsynced_files
from icechunk_engine.storage.local.file_lock import locked
from icechunk_engine.storage.local.flush_domain import flush_domain, is_alive
from icechunk_engine.storage.local.platform import require_posix
from icechunk_engine.storage.ranges import check_range, too_short
from icechunk_engine.storage.store_clock import StoreClock

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_STALE_AFTER_S = 3600.0
_MAX_ATTEMPTS = 100
"""How often a write makes its directory while others remove it."""
_NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.EINVAL}
)

_PROMISE = re.compile(r"(?P<domain>[0-9a-f]{16})/(?P<pid>[0-9]{1,9})/(?P<given>[0-9a-f]{8}\.[0-9]{1,9}\.[0-9]{1,9})")


class LocalStorage(Storage):
    """A folder of a local file system, or of a network file system that can lock files.

    Parameters
    ----------
    path
        The folder. The first write makes it. A relative path is resolved at once.
    durable
        True: what a commit refers to is on the disk before the commit is, and the commit is on the disk when it
        returns. A crash of the machine loses nothing that was committed. :meth:`put` does not wait for the disk, so a
        process must :meth:`flush` what it put before another process commits it. What the disk refused counts as lost
        until it is written again (:meth:`not_durable`).
        False: nothing waits for the disk. Commits survive the death of a process, but not a crash of the machine.
    """

    def __init__(self, path: str | os.PathLike[str], *, durable: bool = True) -> None:
        self._root = os.path.abspath(os.fspath(path))
        require_posix(self._root)
        self._durable = durable
        self._prefix = os.path.join(self._root, "")
        self._unsynced = unsynced_files(self._root)
        self._is_swept = False
        self._clock = StoreClock()
        self._last_version: tuple[bytes, Version] | None = None

    @property
    def root(self) -> str:
        """The folder as an absolute path."""
        return self._root

    @cached_property
    def identity(self) -> str:
        return "file://" + os.path.realpath(self._root)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self._root, self._durable)

    # --- reading -----------------------------------------------------------------------------------------------

    def default_settings(self) -> StorageSettings:
        return default_storage_settings("local")

    def get(self, key: str) -> bytes:
        path = self._prefix + key if ".." not in key else self._checked(key)
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                return files.read(fd, os.fstat(fd).st_size)
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            raise self._failure(error, "read", key) from error

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        path = self._prefix + key if ".." not in key else self._checked(key)
        try:
            fd = os.open(path, os.O_RDONLY)
            try:
                data = files.read_at(fd, stop - start, start)
                if len(data) != stop - start or start == stop:
                    size_bytes = os.fstat(fd).st_size
                    if size_bytes < stop:
                        raise too_short(f"{key!r} in {self.identity}", size_bytes, stop)
                return data
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            raise self._failure(error, "read", key) from error

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        data = self.get(key)
        return data, self._version_of(data)

    def info(self, key: str) -> ObjectInfo | None:
        path = self._prefix + key if ".." not in key else self._checked(key)
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise self._failure(error, "look at", key) from error
        return ObjectInfo(key, found.st_size, found.st_mtime_ns // 1000) if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        directory, slash, start = prefix.rpartition("/")
        if prefix.startswith("/") or "//" in prefix:
            return
        self._checked(directory)
        try:
            yield from files.walk(self._prefix + directory, directory + slash, start)
        except OSError as error:
            raise self._failure(error, "list", prefix) from error

    # --- writing -----------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        path = self._new_path(key)
        if self._durable:
            self._unsynced.watch()
        try:
            if atomic:
                files.rename(self._write_temporary(path, data, sync=False), path)
            else:
                # Renaming would take as long as writing a small chunk.
                try:
                    self._write_file(path, data, sync=False)
                except FileExistsError:
                    files.rename(self._write_temporary(path, data, sync=False), path)
        except OSError as error:
            raise self._failure(error, "write", key) from error
        if self._durable:
            self._unsynced.add(path)

    def create(self, key: str, data: bytes) -> Version:
        path = self._new_path(key)
        self._sync_written()
        try:
            if os.path.lexists(path):
                raise self._exists(key)
            temporary = self._write_temporary(path, data, sync=self._durable)
            try:
                self._link_new(temporary, path, key)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            self._sync_parent(path)
        except OSError as error:
            raise self._failure(error, "create", key) from error
        return self._version_of(data)

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        path = self._new_path(key)

        mismatch = VersionMismatchError(
            f"{key!r} in {self.identity} is not the version that was read. Read it again and decide again"
        )

        def compare() -> None:
            if self._version_at(path) != version:
                raise mismatch

        compare()
        try:
            temporary = self._write_temporary(path, data, sync=False)
            with self._removed_and_discarded_on_error(temporary):
                # The new version reaches the disk with what it refers to, before the lock makes others wait.
                if self._durable:
                    self._unsynced.add(temporary)
                self._sync_written()
                with locked(os.path.dirname(path), give_up=compare):
                    compare()
                    os.replace(temporary, path)
            self._sync_parent(path)
            self._sweep_once(os.path.dirname(path))
        except FileNotFoundError:  # the directory was removed, and the object with it
            raise mismatch from None
        except OSError as error:
            raise self._failure(error, "replace", key) from error
        except KeyboardInterrupt:  # it may have come between the rename and the sync of the directory
            if self._durable:
                self._unsynced.add_again(path)
            raise
        return self._version_of(data)

    def copy(self, source: str, target: str) -> None:
        """Make a hard link if possible, which is safe because no object is ever modified in place."""
        old, new = self._checked(source), self._new_path(target)
        try:
            os.stat(old)  # else a missing source would look like a missing directory
            try:
                self._with_parents(new, lambda: os.link(old, new))
            except OSError as error:
                if error.errno != errno.EEXIST and error.errno not in _NO_HARD_LINKS:
                    raise
                temporary = files.temporary_for(new)
                self._with_parents(new, lambda: files.copy(old, temporary, new))
        except OSError as error:
            raise self._failure(error, "copy", source) from error
        if self._durable:
            self._unsynced.add(new)

    def delete(self, keys: Iterable[str]) -> int:
        n_deleted = 0
        directories: set[str] = set()
        for key in keys:
            path = self._checked(key)
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                continue
            except OSError as error:
                raise self._failure(error, "delete", key) from error
            n_deleted += 1
            self._unsynced.discard(path)
            directories.add(os.path.dirname(path))
        for directory in {self._without_empty(directory) for directory in directories}:
            if self._durable:
                self._unsynced.add_again(directory)
        return n_deleted

    def _without_empty(self, directory: str) -> str:
        """Remove a directory that is empty now, and its parents, but none at the top. Returns the one that changed.

        Otherwise each session that collects reports would leave a directory behind. A writer that is about to make a
        file there makes the directory again.
        """
        while os.sep in directory.removeprefix(self._prefix):
            try:
                os.rmdir(directory)
            except OSError:  # usually it is not empty
                break
            directory = os.path.dirname(directory)
        return directory

    def flush(self) -> None:
        """Wait until everything that this process wrote here is on the disk. Free if there is nothing to sync.

        Raises
        ------
        StorageError
            ``not-durable``: the disk refused something, now or in an earlier call, and it was not written again since.
            Everything else is on the disk. :meth:`not_durable` lists the rest.
        """
        self._sync_written()
        if self._durable and self._unsynced.lost:
            raise self._not_durable(self._unsynced.lost)

    def not_durable(self) -> Mapping[str, str]:
        record = self._unsynced
        if not self._durable or not (record.lost or record.of_parent):
            return {}
        lost = {self._key_of(path): error.strerror or str(error) for path, error in record.lost.copy().items()}
        theirs = "written by the process that this one was forked from"
        return dict.fromkeys(map(self._key_of, record.of_parent), theirs) | lost

    def promise_flush(self) -> FlushPromise | None:
        domain = flush_domain(self._root) if self._durable else None
        given = self._unsynced.promise() if domain is not None else None
        return FlushPromise(f"{domain}/{os.getpid()}/{given}") if given is not None else None

    def leaves_flush_to(self, promise: FlushPromise) -> bool:
        record, words = self._unsynced, _PROMISE.fullmatch(promise)
        if words is None or words["domain"] != flush_domain(self._root) or record.gave(words["given"]):
            return False
        return is_alive(int(words["pid"])) and not record.wrote_elsewhere()

    def keep_promises(self, promised: Mapping[FlushPromise, Callable[[], Iterable[str]]]) -> None:
        if not self._durable:
            return
        record, here = self._unsynced, flush_domain(self._root)
        from_here = dict[str, Callable[[], Iterable[str]]]()
        for promise, keys in promised.items():
            words = _PROMISE.fullmatch(promise)  # it may come from a stored file
            if words is not None and words["domain"] == here:
                from_here[words["given"]] = partial(self._paths_of, keys)
            else:
                error = OSError(errno.EIO, "written on another machine or before a restart, and never flushed")
                record.lost.update(dict.fromkeys(self._paths_of(keys), error))
        try:
            record.flush_promised(from_here)
        except OSError as error:
            raise self._failure(error, "flush writes to", "") from error

    def _paths_of(self, keys: Callable[[], Iterable[str]]) -> Iterator[str]:
        return (self._prefix + key for key in keys())

    def clock_lower_bound_us(self) -> int | None:
        return self._clock.lower_bound_us()

    def commit_queue(self) -> AbstractContextManager[None]:
        return commit_queue(self._root)

    def sweep_temporaries(self, older_than_s: float = _STALE_AFTER_S) -> int:
        """Remove files that dead writers left behind, in all directories. Returns how many."""
        return sum(files.sweep(directory, older_than_s) for directory, _, _ in os.walk(self._root))

    # --- parts -------------------------------------------------------------------------------------------------

    def _checked(self, key: str) -> str:
        """Return the path of a key, which must not lead out of the folder."""
        if ".." in key and ".." in key.split("/"):
            raise _bad_key(key)
        return self._prefix + key

    def _new_path(self, key: str) -> str:
        """Return the path of a key to write. Only keys that listings, also official's, will show are valid."""
        if not key.isascii() or "\0" in key or files.is_temporary(key):
            raise _bad_key(key)
        for part in key.split("/"):
            if not part or part[0] == ".":
                raise _bad_key(key)
        return self._prefix + key

    def _write_temporary(self, path: str, data: bytes | memoryview, *, sync: bool) -> str:
        temporary = files.temporary_for(path)
        self._write_file(temporary, data, sync=sync)
        with suppress(OSError):  # on a file server, the time is by its clock
            self._clock.observe(os.stat(temporary).st_mtime_ns // 1000)
        return temporary

    def _write_file(self, path: str, data: bytes | memoryview, *, sync: bool) -> None:
        """Write a file that does not exist yet, in a directory that may not exist yet."""
        self._with_parents(path, lambda: files.write_new(path, data, sync=sync))

    def _link_new(self, temporary: str, path: str, key: str) -> None:
        """Give a finished file its name, if the name is free."""
        try:
            os.link(temporary, path)
        except OSError as error:
            if os.stat(temporary).st_nlink == 2:
                return  # a network file system has done it and lost the reply
            if error.errno == errno.EEXIST:
                raise self._exists(key) from None
            if error.errno not in _NO_HARD_LINKS:
                raise
            self._rename_new(temporary, path, key)

    def _rename_new(self, temporary: str, path: str, key: str) -> None:
        """:meth:`_link_new` for file systems without hard links: exclusive among those who take the lock."""

        def compare() -> None:
            if os.path.lexists(path):
                raise self._exists(key)

        with locked(os.path.dirname(path), give_up=compare):
            compare()
            os.replace(temporary, path)

    def _with_parents[R](self, path: str, function: Callable[[], R]) -> R:
        """Call a function. If directories are missing, make them and call again; others may remove them meanwhile."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                return function()
            except FileNotFoundError:
                self._make_directory(os.path.dirname(path))
        return function()

    def _make_directory(self, path: str) -> None:
        try:
            os.mkdir(path)
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make_directory(os.path.dirname(path))
            with suppress(FileExistsError):
                os.mkdir(path)
        if self._durable:
            self._unsynced.add(path)

    @contextmanager
    def _removed_and_discarded_on_error(self, temporary: str) -> Iterator[None]:
        try:
            with files.removed_on_error(temporary):
                yield
        except BaseException:
            self._unsynced.discard(temporary)
            raise

    def _sync_parent(self, path: str) -> None:
        """Sync the directory after an object got its name. If that fails, the object counts as lost."""
        if self._durable:
            try:
                disk_sync.sync_directory(os.path.dirname(path))
            except OSError as error:
                self._unsynced.mark_lost(path, error)
                raise self._not_durable({path: error}) from error
            self._unsynced.discard(path)
            self._sync_written()  # directories that were made for it

    def _sync_written(self) -> None:
        """:meth:`flush`, without a word on what was known to be lost before."""
        if self._durable:
            try:
                losses = self._unsynced.flush()
            except OSError as error:
                raise self._failure(error, "flush writes to", "") from error
            if losses:
                raise self._not_durable(losses) from next(iter(losses.values()))

    def _not_durable(self, losses: Mapping[str, OSError]) -> StorageError:
        errors = dict(losses)
        keys = [self._key_of(path) or "the whole folder" for path in errors]
        error = next(iter(errors.values()))
        shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        remedy = "free some space" if error.errno in _FULL else "check the disk or the mount"
        return StorageError(
            f"the disk refused what was written to {shown} in {self._root} ({error.strerror or error}). A crash of "
            f"the machine may damage or remove it. First {remedy}, then write it again",
            ErrorKind.NOT_DURABLE,
        )

    def _key_of(self, path: str) -> str:
        """Return the key of a file; for a directory, the beginning of all keys below it."""
        relative = path.removeprefix(self._prefix) if path != self._root else ""
        if os.path.isdir(path):
            return relative and relative + "/"
        return files.without_temporary_suffix(relative)

    def _version_of(self, data: bytes) -> Version:
        """Return a hash of the content. The last one is kept: a commit asks several times, and comparing is faster."""
        known = self._last_version
        if known is None or known[0] != data:
            known = self._last_version = bytes(data), Version(hashlib.sha256(data).hexdigest())
        return known[1]

    def _version_at(self, path: str) -> Version | None:
        try:
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return self._version_of(files.read(fd, os.fstat(fd).st_size))
        finally:
            os.close(fd)

    def _sweep_once(self, directory: str) -> None:
        """Remove old temporary files, once in the life of a storage, from the small directory of mutable objects."""
        if not self._is_swept:
            self._is_swept = True
            files.sweep(directory, _STALE_AFTER_S)

    def _exists(self, key: str) -> VersionMismatchError:
        return VersionMismatchError(f"{key!r} already exists in {self.identity}. Read it and decide again")

    def _failure(self, error: OSError | ValueError, action: str, key: str) -> IcechunkError:
        """Return our error for an error of the operating system, with the remedy."""
        if not isinstance(error, OSError):  # the key has a null character or a lone surrogate
            return _bad_key(key)
        path = self._prefix + key
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if os.path.lexists(self._root) and not os.path.isdir(self._root):
                return StorageError(
                    f"cannot {action} {path}: {self._root} is a file. Pass the directory of a repository", ErrorKind.IO
                )
            return ObjectNotFoundError(f"no object {key!r} in {self.identity}")
        if isinstance(error, IsADirectoryError):
            remedy = "it is a directory, not an object. Use the key of an object"
        elif isinstance(error, PermissionError):
            remedy = f"check the owner and the permissions of {self._root} and everything below it"
        elif error.errno == errno.EROFS:
            remedy = "the file system is mounted read-only. Only read from the repository, or copy it"
        elif error.errno in _FULL:
            remedy = "the disk or the quota is full. Nothing was changed: free some space and try again"
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "too many files are open. Close some or raise the limit (ulimit -n)"
        else:
            remedy = "check the disk or the mount, then try again"
        return StorageError(f"cannot {action} {path}: {error.strerror or error}; {remedy}", ErrorKind.IO)


def _restore(cls: type[LocalStorage], root: str, durable: bool) -> LocalStorage:
    return cls(root, durable=durable)


def _bad_key(key: str) -> InvalidInputError:
    return InvalidInputError(
        f"{key!r} is not a valid key of a local storage. Keys are relative and ASCII, with single '/' between parts. "
        f"No part is empty or starts with '.', and the last does not end in '#' and digits",
        ErrorKind.INVALID_KEY,
    )
