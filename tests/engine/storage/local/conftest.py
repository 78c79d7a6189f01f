"""A local storage for each test, a record of what was synced, and no descriptors that stay open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.local import disk_sync, durability


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


@pytest.fixture(autouse=True)
def no_leaked_files(tmp_path: Path) -> Iterator[None]:
    """Only files of this test count: other threads of the process, such as those of a cluster, open files too."""
    yield
    leaked = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of this listing
            if int(name) not in durability._watched:  # one for each place with unflushed files
                leaked.append(os.readlink(f"/proc/self/fd/{name}"))
    assert not [path for path in leaked if path.startswith(str(tmp_path))]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced or renamed, in order: base names, ``*`` for a whole file system."""
    events: list[str] = []
    fsync, syncfs, replace, link = os.fsync, disk_sync.syncfs, os.replace, os.link

    def name_of(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).split("#")[0]

    def recorded_fsync(fd: int) -> None:
        events.append(name_of(fd))
        fsync(fd)

    def recorded_syncfs(fd: int) -> bool:
        events.append("*")
        return syncfs(fd)

    def recorded_replace(source: str, target: str) -> None:
        events.append(f"> {os.path.basename(target)}")
        replace(source, target)

    def recorded_link(source: str, target: str) -> None:
        events.append(f"> {os.path.basename(target)}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(disk_sync, "syncfs", recorded_syncfs)
    monkeypatch.setattr(os, "replace", recorded_replace)
    monkeypatch.setattr(os, "link", recorded_link)
    return events
