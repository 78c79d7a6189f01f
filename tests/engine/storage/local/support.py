"""Faults of disks, names of files, and programs in other processes, for tests of the local storage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.local.file_lock import LOCK_NAME


def names(storage: LocalStorage) -> set[str]:
    """Every file that is there, hidden ones included, but for the lock."""
    return {
        os.path.relpath(os.path.join(directory, name), storage.root)
        for directory, _, files in os.walk(storage.root)
        for name in files
        if name != LOCK_NAME
    }


def failing(code: int) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def failing_for(ending: str, code: int) -> Callable[[int], None]:
    """An fsync that fails for files whose path ends so."""
    fsync = os.fsync

    def fail(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(ending):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    return fail


def half_copied(source: str, target: str) -> None:
    Path(target).touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run(code: str, *arguments: str) -> str:
    """Output of a Python process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
