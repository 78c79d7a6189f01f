"""Plain system calls on the files of a folder: read, write, copy, list, and clean up after writers that died.

An object is written to a temporary file and then renamed, so a reader sees a whole version or none. Names of temporary
files end in ``#`` and digits. Official lists no such names either.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from icechunk_engine._runtime.locks import run_in_child
from icechunk_engine.storage.base import ObjectInfo
from icechunk_engine.storage.local.commit_queue import QUEUE_NAME
from icechunk_engine.storage.local.file_lock import LOCK_NAME

_TEMPORARY_SUFFIX = re.compile(r"#[0-9]+\Z")
_find_suffix = _TEMPORARY_SUFFIX.search

# Unique among all processes that ever wrote here: counts up from 63 random bits, other ones in every forked child.
_serials = itertools.count(random.SystemRandom().getrandbits(63))


@run_in_child
def _begin_other_serials() -> None:
    global _serials
    _serials = itertools.count(random.SystemRandom().getrandbits(63))


# --- temporary files -------------------------------------------------------------------------------------------------


def temporary_for(path: str) -> str:
    """Return a new name beside a path."""
    return f"{path}#{next(_serials)}"


def is_temporary(name: str) -> bool:
    """Return True for the names of temporary files."""
    return "#" in name and _find_suffix(name) is not None


def without_temporary_suffix(name: str) -> str:
    """Return the name that a temporary file is meant for."""
    return _TEMPORARY_SUFFIX.sub("", name)


@contextmanager
def removed_on_error(temporary: str) -> Iterator[None]:
    """Remove a temporary file if the block fails."""
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def rename(temporary: str, path: str) -> None:
    """Give a finished file its name. If that fails, remove it."""
    with removed_on_error(temporary):
        os.replace(temporary, path)


def sweep(directory: str, older_than_s: float) -> int:
    """Remove old temporary files from a directory. Returns how many."""
    n_removed = 0
    before = time.time() - older_than_s
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if is_temporary(entry.name) and entry.name not in (LOCK_NAME, QUEUE_NAME):
                with suppress(OSError):
                    if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before:
                        os.unlink(entry.path)
                        n_removed += 1
    return n_removed


# --- contents --------------------------------------------------------------------------------------------------------


def read(fd: int, size_bytes: int) -> bytes:
    """Read that many bytes, or up to the end. The system may return fewer at a time (2 GiB on Linux)."""
    data = os.read(fd, size_bytes)
    if len(data) == size_bytes:
        return data
    parts = [data]
    missing = size_bytes - len(data)
    while missing and (data := os.read(fd, missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def read_at(fd: int, size_bytes: int, offset: int) -> bytes:
    """Read that many bytes from an offset, or up to the end."""
    data = os.pread(fd, size_bytes, offset)
    if len(data) == size_bytes or not data:
        return data
    os.lseek(fd, offset + len(data), os.SEEK_SET)
    return data + read(fd, size_bytes - len(data))


def write_new(path: str, data: bytes | memoryview, *, sync: bool) -> None:
    """Write a file that does not exist yet. Leaves nothing behind after a failure. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            _write(fd, data)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(path)
        raise


def _write(fd: int, data: bytes | memoryview) -> None:
    written = os.write(fd, data)
    rest = memoryview(data).cast("B")[written:]
    while rest:
        rest = rest[os.write(fd, rest) :]


def copy(source: str, temporary: str, target: str) -> None:
    """Copy a file by way of a temporary one."""
    with removed_on_error(temporary):
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


# --- listing ---------------------------------------------------------------------------------------------------------


def walk(directory: str, parent: str, start: str) -> Iterator[ObjectInfo]:
    """List objects below a directory. Keys begin with ``parent``; names in the directory itself with ``start``."""
    pending = [(directory, parent, start)]
    followed: set[tuple[int, int]] = set()
    while pending:
        directory, parent, start = pending.pop()
        try:
            entries = os.scandir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                name = entry.name
                if not name.startswith(start) or name[0] == ".":
                    continue
                try:
                    if entry.is_dir():
                        if not entry.is_symlink() or _is_first_visit(entry.path, followed):
                            pending.append((entry.path, f"{parent}{name}/", ""))
                    elif entry.is_file() and not is_temporary(name):
                        found = entry.stat()
                        yield ObjectInfo(parent + name, found.st_size, found.st_mtime_ns // 1000)
                except FileNotFoundError:
                    continue  # deleted since


def _is_first_visit(link: str, followed: set[tuple[int, int]]) -> bool:
    """Follow each linked directory once, so that a loop of links ends."""
    found = os.stat(link)
    place = found.st_dev, found.st_ino
    if place in followed:
        return False
    followed.add(place)
    return True
