"""Objects in any file system that fsspec knows, for reading.

fsspec has no conditional writes, so two writers would silently lose each other's commits. Writing is therefore
refused, unless the user says that nobody else writes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal, Protocol, cast

import fsspec

from icechunk_engine.config import StorageSettings
from icechunk_engine.errors import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    ReadOnlyError,
    StorageError,
    VersionMismatchError,
)
from icechunk_engine.errors.redaction import redacted, without_values
from icechunk_engine.storage.base import ObjectInfo, Storage, Version
from icechunk_engine.storage.ranges import check_range, too_short
from icechunk_engine.storage.single_writer import SINGLE_WRITER_HINT, is_single_writer


class FileSystem(Protocol):
    """The part of an fsspec file system that the engine calls."""

    use_listings_cache: bool

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...

    def pipe_file(self, path: str, value: bytes) -> object: ...

    def rm_file(self, path: str) -> None: ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def find(self, path: str, *, detail: Literal[True]) -> Mapping[str, FileDetails]: ...

    def info(self, path: str) -> FileDetails: ...

    def invalidate_cache(self) -> None: ...


type FileDetails = Mapping[str, object]
"""``type``, ``size`` and times. The names and types of the times depend on the file system."""


def is_known_protocol(protocol: str) -> bool:
    """Return True if fsspec knows a file system of that name, installed or not."""
    return protocol in fsspec.available_protocols()


class FsspecStorage(Storage):
    """A directory of a file system of fsspec.

    Parameters
    ----------
    url
        A URL of fsspec. It may be chained.
    options
        Options of the file system.
    single_writer
        Allow writing. Pass True only if you are sure that nobody else writes to this repository at the same time:
        commits of two writers would silently overwrite each other. Settings that turn off conditional writes have the
        same effect.
    """

    is_remote = True

    def __init__(self, url: str, options: Mapping[str, object] | None = None, *, single_writer: bool = False) -> None:
        self.url = url
        self.options = dict(options or {})
        self.single_writer = single_writer
        self.read_only = not single_writer

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.url, self.options, self.single_writer)

    def with_settings(self, settings: StorageSettings) -> FsspecStorage:
        if self.single_writer or not is_single_writer(settings):
            return self
        return type(self)(self.url, self.options, single_writer=True)

    @property
    def identity(self) -> str:
        # Options may be part of the place (a host, a zip file) and may be secret. So may the login in a URL.
        shown = redacted(self.url)
        if not self.options and shown == self.url:
            return self.url
        text = json.dumps([self.url, self.options], sort_keys=True, default=repr)
        return f"{shown}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        try:
            system, root = fsspec.core.url_to_fs(self.url, **self.options)
        except Exception as error:
            said = without_values(str(error), self.options)
            raise StorageError(
                f"cannot open {self.url} with fsspec: {said}. Correct the URL or storage_options, or install the "
                f"packages that the file system needs",
                ErrorKind.STORAGE_CONFIG,
            ) from (error if said == str(error) else None)
        system.use_listings_cache = False
        return cast("FileSystem", system), str(root).rstrip("/")

    def get(self, key: str) -> bytes:
        system, root = self._opened
        try:
            return bytes(system.cat_file(f"{root}/{key}"))
        except Exception as error:
            raise self._failure(error, "read", key) from error

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        system, root = self._opened
        try:
            data = bytes(system.cat_file(f"{root}/{key}", start=start, end=stop)) if start < stop else b""
        except Exception as error:
            raise self._failure(error, "read", key) from error
        if len(data) != stop - start or start == stop:
            found = self.info(key)
            if found is None:
                raise self._missing(key)
            if found.size_bytes < stop:
                raise too_short(f"{key!r} in {self.identity}", found.size_bytes, stop)
            if len(data) != stop - start:
                raise StorageError(
                    f"{self.url} cannot read byte ranges: {len(data)} bytes came for {start}:{stop} of {key!r}. Copy "
                    f"the repository to another place",
                    ErrorKind.INVALID_OBJECT_SIZE,
                )
        return data

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        data = self.get(key)
        return data, _version_of(data)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix.startswith("/") or "//" in prefix:
            return
        system, root = self._opened
        directory = prefix.rpartition("/")[0]
        system.invalidate_cache()
        try:
            found = system.find(f"{root}/{directory}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failure(error, "list", prefix) from error
        for path, details in found.items():
            key = path[len(root) :].lstrip("/")
            if key.startswith(prefix):
                yield _info(key, details)

    def info(self, key: str) -> ObjectInfo | None:
        system, root = self._opened
        system.invalidate_cache()
        try:
            details = system.info(f"{root}/{key}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise self._failure(error, "look at", key) from error
        return None if details.get("type") == "directory" else _info(key, details)

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        self._require_single_writer()
        system, root = self._opened
        path = f"{root}/{key}"
        try:
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            system.pipe_file(path, bytes(data))
        except Exception as error:
            raise self._failure(error, "write", key) from error

    def create(self, key: str, data: bytes) -> Version:
        self._require_single_writer()
        if self.info(key) is not None:
            raise VersionMismatchError(f"{key!r} already exists in {self.identity}. Read it and decide again")
        self.put(key, data)
        return _version_of(data)

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        self._require_single_writer()
        try:
            present: Version | None = self.get_versioned(key)[1]
        except ObjectNotFoundError:
            present = None
        if present != version:
            raise VersionMismatchError(f"{key!r} in {self.identity} is not the version that was read. Read it again")
        self.put(key, data)
        return _version_of(data)

    def copy(self, source: str, target: str) -> None:
        self.put(target, self.get(source))

    def delete(self, keys: Iterable[str]) -> int:
        self._require_single_writer()
        system, root = self._opened
        n_deleted = 0
        for key in keys:
            if self.info(key) is None:
                continue
            try:
                system.rm_file(f"{root}/{key}")
            except Exception as error:
                raise self._failure(error, "delete", key) from error
            n_deleted += 1
        return n_deleted

    def _require_single_writer(self) -> None:
        if not self.single_writer:
            raise ReadOnlyError(
                f"{self.url} is read through fsspec, which cannot keep two writers from overwriting each other's "
                f"commits. Use a local path, s3://, gs:// or az://. {SINGLE_WRITER_HINT}",
                ErrorKind.READ_ONLY_STORAGE,
            )

    def _missing(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(f"no object {key!r} in {self.identity}")

    def _failure(self, error: Exception, action: str, key: str) -> IcechunkError:
        if isinstance(error, IcechunkError):
            return error
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | KeyError):
            return self._missing(key)
        if isinstance(error, ValueError) and "\0" in key:
            return InvalidInputError(f"{key!r} is not a valid key", ErrorKind.INVALID_KEY)
        return StorageError(
            f"cannot {action} {key!r} in {self.identity}: {type(error).__name__}: "
            f"{without_values(str(error), self.options)}. Check the network and "
            f"storage_options, then try again",
            ErrorKind.OBJECT_STORE,
        )


def _restore(url: str, options: dict[str, object], single_writer: bool) -> FsspecStorage:
    return FsspecStorage(url, options, single_writer=single_writer)


def _version_of(data: bytes) -> Version:
    return Version(hashlib.sha256(data).hexdigest())


def _info(key: str, details: FileDetails) -> ObjectInfo:
    times = (
        details.get(name) for name in ("mtime", "LastModified", "last_modified", "modified", "updated", "created")
    )
    size = cast("int", details.get("size") or 0)  # some file systems return numbers of numpy, or text
    return ObjectInfo(key, int(size), next((us for us in map(_us, times) if us is not None), 0))


def _us(time: object) -> int | None:
    """Convert what a file system calls a time to Unix microseconds; None if it is something else."""
    if isinstance(time, str):
        try:
            time = datetime.fromisoformat(time)
        except ValueError:
            return None
    if isinstance(time, datetime):
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return int(time * 1_000_000) if isinstance(time, int | float) else None
