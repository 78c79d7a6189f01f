"""What a crash of the machine may leave of a directory: file operations are recorded, then replayed into such states.

The model is the weakest that POSIX allows. What was written to a file is there after a crash only if the file was
synced since; else it may be there, be missing, be cut anywhere, or read as zeros. A name that was made, moved or
removed is as it was before or after, until the directory that holds it was synced. Names are independent of each
other, and syncing a file says nothing of its name. A rename moves both its names at once.
"""

from __future__ import annotations

import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from icechunk_engine.storage.local import disk_sync

type Entries = dict[str, int]
"""Names in a directory, and the numbers of the files and directories that they name."""

ROOT = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes appended to a file."""

    file: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Rename:
    """Names that change in one step: in which directory, which name, what it names then (None: nothing)."""

    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """A file or a directory, or everything (None)."""

    number: int | None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """An operation of the repository returned."""

    number: int


type Event = Write | Rename | Sync | Acknowledged


class Recorder:
    """Notes what happens below a directory, which must be empty."""

    def __init__(self, root: Path) -> None:
        self.events: list[Event] = []
        self.directories = {ROOT}
        self._root = str(root)
        self._n_numbers = 1
        self._numbers = {os.stat(root).st_ino: ROOT}
        self._lock = threading.RLock()

    def acknowledge(self, number: int) -> None:
        self._note(Acknowledged(number))

    @contextmanager
    def recording(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "fsync", "mkdir", "replace", "link", "unlink"):
                patch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
            patch.setattr(disk_sync, "syncfs", self._syncfs(disk_sync.syncfs))
            yield

    def _note(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    def _has(self, path: Any) -> bool:
        return isinstance(path, str) and (path + os.sep).startswith(self._root + os.sep)

    def _place(self, path: str) -> tuple[int, str]:
        directory, name = os.path.split(path)
        return self._numbers[os.stat(directory).st_ino], name

    def _new(self, path: str) -> None:
        """A file or directory was made. The system may give the number of one that is gone."""
        found = os.lstat(path)
        with self._lock:
            number = self._numbers[found.st_ino] = self._n_numbers
            self._n_numbers += 1
            if stat.S_ISDIR(found.st_mode):
                self.directories.add(number)
        self._note(Rename(((*self._place(path), number),)))

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            with self._lock:
                is_new = self._has(path) and bool(flags & os.O_CREAT) and not os.path.lexists(path)
                fd = real(path, flags, *args, **kwargs)
                if is_new:
                    self._new(path)
                return fd

        return open_

    def _number_of(self, fd: int) -> int | None:
        return self._numbers.get(os.fstat(fd).st_ino) if self._has(os.readlink(f"/proc/self/fd/{fd}")) else None

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, data: Any) -> int:
            with self._lock:
                n = real(fd, data)
                number = self._number_of(fd)
                if number is not None:
                    self._note(Write(number, bytes(memoryview(data).cast("B")[:n])))
                return n

        return write

    def _fsync(self, real: Callable[..., None]) -> Callable[..., None]:
        def fsync(fd: int) -> None:
            with self._lock:  # what is written meanwhile is not synced by it
                real(fd)
                number = self._number_of(fd)
                if number is not None:
                    self._note(Sync(number))

        return fsync

    def _syncfs(self, real: Callable[[int], bool]) -> Callable[[int], bool]:
        def syncfs(fd: int) -> bool:
            with self._lock:
                told = real(fd)
                self._note(Sync(None))
                return told

        return syncfs

    def _mkdir(self, real: Callable[..., None]) -> Callable[..., None]:
        def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
            with self._lock:
                real(path, *args, **kwargs)
                if self._has(path):
                    self._new(path)

        return mkdir

    def _replace(self, real: Callable[..., None]) -> Callable[..., None]:
        def replace(source: Any, target: Any) -> None:
            with self._lock:
                if not self._has(target):
                    return real(source, target)
                number = self._numbers[os.stat(source).st_ino]
                real(source, target)
                return self._note(Rename(((*self._place(source), None), (*self._place(target), number))))

        return replace

    def _link(self, real: Callable[..., None]) -> Callable[..., None]:
        def link(source: Any, target: Any) -> None:
            with self._lock:
                real(source, target)
                if self._has(target):
                    self._note(Rename(((*self._place(target), self._numbers[os.stat(source).st_ino]),)))

        return link

    def _unlink(self, real: Callable[..., None]) -> Callable[..., None]:
        def unlink(path: Any, *args: Any, **kwargs: Any) -> None:
            with self._lock:
                real(path, *args, **kwargs)
                if self._has(path):
                    self._note(Rename(((*self._place(path), None),)))

        return unlink


@dataclass
class Disk:
    """What is surely on the disk, and what may be."""

    directories: set[int]
    synced: dict[int, Entries] = field(default_factory=dict)
    pending: list[Rename] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    n_synced: dict[int, int] = field(default_factory=dict)
    acknowledged: int = -1

    def apply(self, event: Event) -> None:
        match event:
            case Write(file, data):
                self.contents[file] = self.contents.get(file, b"") + data
            case Rename():
                self.pending.append(event)
            case Sync(None):
                for number in self.directories:
                    self._sync_directory(number)
                self.n_synced = {file: len(data) for file, data in self.contents.items()}
            case Sync(number) if number in self.directories:
                self._sync_directory(number)
            case Sync(number):
                assert number is not None
                self.n_synced[number] = len(self.contents.get(number, b""))
            case Acknowledged(number):
                self.acknowledged = number

    def _sync_directory(self, number: int) -> None:
        entries = self.synced.setdefault(number, {})
        left: list[Rename] = []
        for rename in self.pending:
            others = []
            for change in rename.changes:
                if change[0] == number:
                    _change(entries, change[1], change[2])
                else:
                    others.append(change)
            if others:
                left.append(Rename(tuple(others)))
        self.pending = left

    def states(self, rng: random.Random, n_random: int) -> Iterator[dict[str, bytes]]:
        """States that a crash may leave now, as files by path: the extremes, and some at random."""
        for keeps_names in (False, True):
            for leave in (_nothing, _everything, _zeros):
                yield self._state(partial(bool, keeps_names), leave)
        for _ in range(n_random):
            yield self._state(
                partial(_happens, rng, rng.random()),
                lambda data, n: rng.choice((_nothing, _everything, _zeros, _torn(rng)))(data, n),
            )

    def _state(self, keeps: Callable[[], bool], leave: Callable[[bytes, int], bytes]) -> dict[str, bytes]:
        entries = {number: known.copy() for number, known in self.synced.items()}
        for rename in self.pending:
            if keeps():
                for number, name, named in rename.changes:
                    _change(entries.setdefault(number, {}), name, named)
        # One inode may have several names, and one content.
        contents = {file: leave(data, self.n_synced.get(file, 0)) for file, data in self.contents.items()}
        files: dict[str, bytes] = {}
        below = [("", ROOT)]
        while below:
            path, number = below.pop()
            for name, named in entries.get(number, {}).items():
                if named in self.directories:
                    below.append((f"{path}{name}/", named))
                else:
                    files[path + name] = contents.get(named, b"")
        return files


def _change(entries: Entries, name: str, named: int | None) -> None:
    if named is None:
        entries.pop(name, None)
    else:
        entries[name] = named


def _happens(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def _nothing(data: bytes, n_synced: int) -> bytes:
    return data[:n_synced]


def _everything(data: bytes, n_synced: int) -> bytes:
    return data


def _zeros(data: bytes, n_synced: int) -> bytes:
    return data[:n_synced] + bytes(len(data) - n_synced)


def _torn(rng: random.Random) -> Callable[[bytes, int], bytes]:
    return lambda data, n_synced: data[: rng.randint(n_synced, len(data))]


@dataclass(frozen=True, slots=True)
class Crash:
    """A state, and how many operations had been acknowledged before."""

    n_events: int
    acknowledged: int
    files: dict[str, bytes]

    def build(self, root: Path) -> None:
        """Make the files below a directory that is not there yet."""
        for directory in {root / os.path.dirname(path) for path in self.files} | {root}:
            directory.mkdir(parents=True, exist_ok=True)
        for path, data in self.files.items():
            (root / path).write_bytes(data)


def crashes(recorder: Recorder, rng: random.Random, n_random: int) -> Iterator[Crash]:
    """States after each event, each different one once as long as the same operations were acknowledged."""
    disk = Disk(set(recorder.directories))
    seen: set[tuple[int, int]] = set()
    for n_events, event in enumerate(recorder.events, 1):
        disk.apply(event)
        for files in disk.states(rng, n_random):
            key = disk.acknowledged, hash(frozenset(files.items()))
            if key not in seen:
                seen.add(key)
                yield Crash(n_events, disk.acknowledged, files)
