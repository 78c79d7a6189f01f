"""The one place that says on which systems a local folder can hold a repository.

Two writers of a local folder exclude each other with ``flock``, which the kernel drops when its holder dies. Windows
has no such lock, and no way to sync a directory. So a local folder needs a POSIX system; everything else in the
engine, object stores included, works without one. Other modules of this folder call POSIX functions without asking.
"""

from __future__ import annotations

from importlib.util import find_spec

from icechunk_engine.errors import ErrorKind, StorageError

_HAS_FLOCK = find_spec("fcntl") is not None


def require_posix(path: str) -> None:
    """Raise StorageError (``storage-config``) if this system cannot lock files as a repository needs it."""
    if not _HAS_FLOCK:
        raise StorageError(
            f"cannot open {path} as a repository: a local folder needs the file locks of Linux or macOS, which this "
            f"system does not have. Use an object store (s3://, gs://, az://) or the Windows Subsystem for Linux",
            ErrorKind.STORAGE_CONFIG,
        )
