"""Read virtual chunks in local files, inside authorised folders only.

Invariant: bytes come only from regular files whose real path is inside an authorised folder. The file is opened first,
and the checks use what the system says about the *open* file. So swapping links and files at that moment has no
effect. Checking the path before opening it would break the invariant. Opening never blocks, not even on a pipe.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Sequence

from icechunk_engine.columns.chunk_refs import ChunkRef
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError
from icechunk_engine.virtual.error_remedies import grant

_FLAGS = os.O_RDONLY
for _name in ("O_CLOEXEC", "O_BINARY", "O_NOCTTY", "O_NONBLOCK"):  # O_NONBLOCK: do not wait for a pipe
    _FLAGS |= getattr(os, _name, 0)

_OPEN_FILES = "/proc/self/fd"
_SYSTEM: str = sys.platform
_HAS_PREAD = hasattr(os, "pread")
_F_GETPATH = 50
"""macOS: return the path of an open file."""


class LocalFile:
    """Reads ranges of one local file.

    Parameters
    ----------
    path
        Absolute path. Its text begins with one of the folders.
    folders
        Absolute paths of the folders that symbolic links may lead to.
    prefix
        URL prefix of the container, for error messages.
    """

    __slots__ = ("_folders", "_inside", "_path", "_prefix")

    def __init__(self, path: str, folders: Sequence[str], prefix: str) -> None:
        self._path = path
        self._folders = folders
        self._prefix = prefix
        self._inside: tuple[int, int, int] | None = None

    def __call__(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        """Read bytes ``start:stop``.

        Raises
        ------
        StorageError
            ``virtual-chunk-fetch``, ``invalid-object-size``, ``virtual-chunk-modified``.
        InvalidInputError
            ``unauthorized-virtual-chunk-container``: a link leads out of the folders.
        """
        path = self._path
        try:
            fd = os.open(path, _FLAGS)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket
                raise _no_file(path) from None
            raise StorageError(
                f"error fetching virtual reference: cannot open file {path} of a virtual chunk: {error.strerror}. "
                f"Put the file back, or correct the chunk reference",
                ErrorKind.VIRTUAL_CHUNK_FETCH,
            ) from error
        try:
            status = os.fstat(fd)
            # The same file with the same status change time needs no second check. Even renaming it changes the time.
            state = status.st_dev, status.st_ino, status.st_ctime_ns
            if state != self._inside:
                if not stat.S_ISREG(status.st_mode):
                    raise _no_file(path)
                _require_inside(fd, status, path, self._folders, self._prefix)
                self._inside = state
            if ref.etag is not None or ref.last_modified:
                _require_unchanged(path, status, ref)
            # Check before reading, because os.pread allocates the requested size.
            if stop > status.st_size:
                raise _too_short(path, stop, has_some=start < status.st_size)
            data = _read_exactly(fd, start, stop)
        except OSError as error:
            raise StorageError(
                f"error fetching virtual reference: cannot read {path}: {error.strerror}",
                ErrorKind.VIRTUAL_CHUNK_FETCH,
            ) from error
        finally:
            os.close(fd)
        return require_length(path, data, start, stop)


def require_length(where: str, data: bytes, start: int, stop: int) -> bytes:
    """Return the data if it is complete."""
    if len(data) != stop - start:
        raise _too_short(where, stop, has_some=bool(data))
    return data


def _too_short(where: str, stop: int, *, has_some: bool) -> StorageError:
    return StorageError(
        f"error fetching virtual reference: {where} ends before byte {stop} of a virtual chunk: it was truncated or "
        f"replaced. Put the old file back, or set its chunk references again",
        ErrorKind.INVALID_OBJECT_SIZE if has_some else ErrorKind.VIRTUAL_CHUNK_FETCH,
    )


def _no_file(path: str) -> StorageError:
    return StorageError(
        f"{path} of a virtual chunk is not a file but a folder, pipe, socket or device. Put the file back, or correct "
        f"the chunk reference",
        ErrorKind.VIRTUAL_CHUNK_FETCH,
    )


def _require_inside(fd: int, status: os.stat_result, path: str, folders: Sequence[str], prefix: str) -> None:
    found = _path_of_open(fd, status, path)
    if found == path:  # no symbolic links
        return
    for folder in folders:
        real = os.path.join(_real_folder(folder), "")
        if os.path.normcase(found).startswith(os.path.normcase(real)):
            return
    target = f"file://{os.path.dirname(found).rstrip('/')}/"
    raise InvalidInputError(
        f"a symbolic link leads from {path} to {found}, outside the authorised folder. If you trust that folder, "
        f"name it:\n    Repository.open(storage, authorize_virtual_chunk_access={grant([prefix], target)})",
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
    )


def _path_of_open(fd: int, status: os.stat_result, path: str) -> str:
    """Return the real path of an open file. If the system cannot tell, resolve the path and compare the files."""
    try:
        if _SYSTEM == "linux":
            return os.readlink(f"{_OPEN_FILES}/{fd}").removesuffix(" (deleted)")
        if _SYSTEM == "darwin":
            import fcntl

            return os.fsdecode(fcntl.fcntl(fd, _F_GETPATH, bytes(1024)).rstrip(b"\0"))
    except OSError:
        pass
    found = os.path.realpath(path)
    if not os.path.samestat(os.stat(found), status):
        raise OSError(errno.ESTALE, "it was replaced while it was opened; try again")
    return found


def _real_folder(folder: str) -> str:
    """Return the real path of a folder, spelt as :func:`_path_of_open` spells the paths of its files."""
    if _SYSTEM == "darwin":
        try:
            fd = os.open(folder, os.O_RDONLY)
        except OSError:
            return folder
        try:
            return _path_of_open(fd, os.fstat(fd), folder)
        finally:
            os.close(fd)
    return os.path.realpath(folder)


def _read_exactly(fd: int, start: int, stop: int) -> bytes:
    data = _read_at(fd, stop - start, start)
    if len(data) == stop - start or not data:
        return data
    parts = [data]  # one read returns at most 2 GiB
    while (have := sum(map(len, parts))) < stop - start and (more := _read_at(fd, stop - start - have, start + have)):
        parts.append(more)
    return b"".join(parts)


def _read_at(fd: int, size: int, offset: int) -> bytes:
    if _HAS_PREAD:
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def _require_unchanged(path: str, status: os.stat_result, ref: ChunkRef) -> None:
    """Refuse a changed file. The etag comes first, as the format says. Times are compared in whole seconds."""
    if ref.etag is not None:
        etag = f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"
        same = ref.etag.strip('"') in (etag, "*")
    else:
        same = status.st_mtime_ns // 1_000_000_000 <= ref.last_modified
    if not same:
        raise StorageError(
            f"the checksum of the object owning the virtual chunk has changed: {path} was changed after the "
            f"chunk reference was set. Put the old file back, or set its chunk references again",
            ErrorKind.VIRTUAL_CHUNK_MODIFIED,
        )
