"""Systems without POSIX file locks: local folders are refused, everything else works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage import LocalStorage, local_filesystem_storage, storage_from_url
from icechunk_engine.storage.local import disk_sync, platform


@pytest.mark.parametrize("open_storage", [LocalStorage, local_filesystem_storage, storage_from_url])
def test_local_folders_are_refused_without_posix_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_storage: Any
) -> None:
    monkeypatch.setattr(platform, "_HAS_FLOCK", False)
    with pytest.raises(StorageError, match="Use an object store") as caught:
        open_storage(str(tmp_path))
    assert caught.value.kind == ErrorKind.STORAGE_CONFIG
    assert str(tmp_path) in str(caught.value)


def test_the_engine_works_without_posix(tmp_path: Path) -> None:
    """Take away what Windows lacks before the engine is imported."""
    code = """
import ctypes, os, sys
import fsspec, numpy, opentelemetry.trace, zarr  # others decide on import what they can use, and have decided
sys.modules["fcntl"] = None
for name in ("fork", "pread", "register_at_fork", "sync", "uname"):
    delattr(os, name)
make = ctypes.CDLL.__init__
def no_own_library(self, name, *args, **kwargs):
    if name is None:
        raise TypeError("bad argument type for built-in operation")
    make(self, name, *args, **kwargs)
ctypes.CDLL.__init__ = no_own_library

import icechunk_engine as ic
repo = ic.Repository.create(ic.in_memory_storage())
with repo.transaction("main", message="one") as store:
    zarr.create_array(store, shape=4, chunks=2, dtype="i4", fill_value=0)[:] = 7
assert zarr.open_array(repo.readonly_session("main").store, mode="r")[3] == 7
ic.s3_storage(bucket="b", prefix="p", region="us-east-1", anonymous=True)
try:
    ic.local_filesystem_storage(sys.argv[1])
except ic.errors.StorageError as error:
    print(error.kind)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "repo")], capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.returncode) == ("storage-config\n", 0), done.stderr
    assert not os.listdir(tmp_path)


def test_drives_of_macos_are_told_to_write_out_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        disk_sync, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda fd, code: calls.append(code)), raising=True
    )
    (tmp_path / "a").write_bytes(b"1")
    assert disk_sync.sync_each([str(tmp_path / "a")], {}) == {}
    assert calls == [51]


def test_a_drive_that_refuses_to_write_out_its_memory_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, code: int) -> None:
        raise OSError(22, "not supported")

    monkeypatch.setattr(disk_sync, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=refuse))
    (tmp_path / "a").write_bytes(b"1")
    assert disk_sync.sync_each([str(tmp_path / "a")], {}) == {}
