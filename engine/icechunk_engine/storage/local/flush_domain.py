"""Which processes can flush for each other: those of one kernel that see a folder on the same file system.

What a process writes is in the cache of its kernel. ``syncfs`` by any other process of that kernel brings it to the
disk and reports what went wrong, if the file system is of a kind that passes its errors on. Overlays, FUSE and file
servers do not, or not always. Where this is unknown, each process flushes what it wrote.
"""

from __future__ import annotations

import hashlib
import os
from functools import cache

from icechunk_engine.storage.local import disk_sync

_REPORT_ERRORS = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0xF2F52010,  # F2FS
        0x01021994,  # tmpfs, which has nothing to flush
    }
)
"""Kinds of file systems whose ``syncfs`` reports every page that could not be written, as ``statfs`` names them."""


def flush_domain(folder: str) -> str | None:
    """Return a short name of a folder's kernel and file system; None if each process must flush for itself."""
    boot_id = _boot_id()
    if boot_id is None or not disk_sync.SYNCFS_REPORTS_ERRORS:
        return None
    try:
        device = os.stat(folder).st_dev
    except OSError:
        return None
    return _domain(boot_id, device) if disk_sync.kind_of_file_system(folder) in _REPORT_ERRORS else None


def is_alive(pid: int) -> bool:
    """Return True if a process of this machine seems to run. In another container, ids mean other processes."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


@cache
def _boot_id() -> str | None:
    """Return the random name that the kernel chose when it started."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip() or None
    except OSError:
        return None


@cache
def _domain(boot_id: str, device: int) -> str:
    return hashlib.blake2b(f"{boot_id} {device}".encode(), digest_size=8).hexdigest()
