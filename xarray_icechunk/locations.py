"""From what a user names (path, URL, repository, session, store; and a ref) to a session to read from."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import ErrorKind, InvalidInputError, RepositoryNotFoundError
from icechunk_engine.errors.foreign import describe, official_class
from icechunk_engine.errors.redaction import redacted
from icechunk_engine.repository import Repository, open_readonly
from icechunk_engine.session import Session
from icechunk_engine.storage.from_url import scheme_of, storage_from_url
from icechunk_engine.store import IcechunkStore

__all__ = ["Located", "locate", "open_or_create_repository", "open_repository", "split_pipeline"]

_PIPELINE = "|icechunk:"


@dataclass(frozen=True, slots=True)
class Located:
    """A session and where it was found."""

    session: Session
    location: str | None
    """The repository's absolute path or URL; None when a session or store was passed."""
    path: str = ""
    """Of the group that the URL names inside the repository; empty for the root."""

    @property
    def source(self) -> str:
        """Names the state that is read: equal for two reads of one snapshot, different for any two states.

        What a writable session reads may change, so each opening of one gets a name of its own.
        """
        state = self.session.snapshot_id
        if not self.session.read_only:
            state = f"{state}+{uuid4().hex}"
        return f"{self.location or 'icechunk'}@{state}"


def locate(
    source: Any,
    *,
    branch: str | None = None,
    tag: str | None = None,
    snapshot_id: str | None = None,
    as_of: dt.datetime | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
) -> Located:
    """Find the repository and the snapshot to read.

    Parameters
    ----------
    source : str, os.PathLike, Repository, Session or IcechunkStore
        A session or store is used as it is: a writable one shows its uncommitted changes. A URL may go on with
        ``|icechunk:@branch.main/group``, ``|icechunk:@tag.v1/group`` or ``|icechunk:@SNAPSHOT/group``.
    branch, tag, snapshot_id
        At most one of them; by default the branch ``main``.
    as_of
        What the branch was at that time: an aware datetime, or ISO 8601 text with an offset.
    storage_options, config, authorize_virtual_chunk_access
        For a path or URL only; as in :func:`open_repository`.

    Raises
    ------
    InvalidInputError
        Conflicting or inapplicable arguments, a location of a kind that is not supported.
    RepositoryNotFoundError
        No repository there.
    RefNotFoundError, SnapshotNotFoundError
        No such branch, tag or snapshot.
    """
    given = {"branch": branch, "tag": tag, "snapshot_id": snapshot_id, "as_of": as_of}
    refs = {name: value for name, value in given.items() if value is not None}
    settings: dict[str, Any] = {
        "storage_options": storage_options or None,
        "config": config,
        "authorize_virtual_chunk_access": authorize_virtual_chunk_access,
    }
    opening = [name for name, value in settings.items() if value is not None]

    if isinstance(source, IcechunkStore | Session):
        _refuse(
            [*refs, *opening], f"a {type(source).__name__} is on its snapshot already", "the repository's path or URL"
        )
        return Located(source if isinstance(source, Session) else source.session, None)

    if isinstance(source, Repository):
        _refuse(opening, "a Repository is open already", "Repository.open")
        return Located(source.readonly_session(**_checked(refs)), source.storage.identity)

    if isinstance(source, str | os.PathLike):
        place, named, path = split_pipeline(source)
        if named and refs:
            raise InvalidInputError(
                f"{os.fspath(source)!r} says which snapshot to read, and so does {', '.join(refs)}: leave one out",
                ErrorKind.INVALID_REF_TYPE,
            )
        chosen = _checked(named or refs)
        storage, authorized = storage_from_url(place, storage_options), _as_dict(authorize_virtual_chunk_access)
        try:
            session = open_readonly(storage, config, authorized, **chosen)
        except RepositoryNotFoundError as error:
            raise _not_found(place) from error
        return Located(session, _normal_location(place), path)

    if official_class(source) is not None:
        raise InvalidInputError(
            f"cannot open {describe(source)}. A path or URL does as well", ErrorKind.CANNOT_PARSE_URL
        )
    raise InvalidInputError(
        f"cannot open a {type(source).__module__}.{type(source).__qualname__} as an Icechunk repository. Pass a path, "
        f"a URL, or a Repository, Session or IcechunkStore of icechunk_engine",
        ErrorKind.CANNOT_PARSE_URL,
    )


def split_pipeline(location: str | os.PathLike[str]) -> tuple[str, dict[str, str], str]:
    """The repository's location, the ref and the group of a URL pipeline ``location|icechunk:@ref/group``.

    A ref is ``branch.NAME``, ``tag.NAME`` or a snapshot id; ``%2F`` stands for a ``/`` in a name.

    Raises
    ------
    InvalidInputError
        ``cannot-parse-url``: an empty ref, or a further step behind it.
    """
    text = os.fspath(location)
    place, found, rest = text.partition(_PIPELINE)
    if not found:
        return text, {}, ""
    ref, _, path = rest.removeprefix("//").partition("/")
    kind, dot, name = ref.removeprefix("@").partition(".")
    if "|" in rest or (ref and not ref.startswith("@")) or (ref and not (name if dot else kind)):
        raise InvalidInputError(
            f"{text!r}: behind '|icechunk:' goes '@branch.NAME', '@tag.NAME' or '@SNAPSHOT', then '/group', and "
            f"nothing else",
            ErrorKind.CANNOT_PARSE_URL,
        )
    if not ref:
        return place, {}, path
    if not dot:
        return place, {"snapshot_id": kind}, path
    if kind not in ("branch", "tag"):
        raise InvalidInputError(
            f"{text!r}: {kind!r} is not a kind of ref; write '@branch.{name}' or '@tag.{name}'",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return place, {kind: unquote(name)}, path


def _repository_only(location: str | os.PathLike[str]) -> str:
    place, named, path = split_pipeline(location)
    if named or path:
        raise InvalidInputError(
            f"{os.fspath(location)!r} names a snapshot or group, not a repository: write {place!r}",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return place


def open_repository(
    location: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
) -> Repository:
    """Open the repository at a path or URL.

    Parameters
    ----------
    location
        A local path, ``file:///absolute/path``, ``memory://name`` (which lives as long as this process),
        ``s3://bucket/prefix``, ``gs://…``, ``az://container/prefix``, ``https://host/path``, or a URL of any other
        installed fsspec file system, for reading.
    storage_options
        Options of the storage, as fsspec's file systems take them: ``anon``, ``key``, ``secret``, ``endpoint_url``, …
    config
        Merged over the configuration saved in the repository.
    authorize_virtual_chunk_access
        URL prefixes of virtual chunks that may be read, each with its credentials. A place that the repository's
        stored configuration leads to, such as another endpoint, must be named too (``credentials.access_at``).

    Raises
    ------
    RepositoryNotFoundError
        No repository there.
    InvalidInputError
        A location of a kind that is not supported, or unknown storage options.
    """
    location = _repository_only(location)
    storage = storage_from_url(location, storage_options)
    try:
        return Repository.open(
            storage,
            config=config,
            authorize_virtual_chunk_access=_as_dict(authorize_virtual_chunk_access),
        )
    except RepositoryNotFoundError as error:
        raise _not_found(location) from error


def open_or_create_repository(
    location: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Mapping[str, Any] | None = None,
) -> Repository:
    """Open the repository at a path or URL, or create one there; parameters as for :func:`open_repository`."""
    return Repository.open_or_create(
        storage_from_url(_repository_only(location), storage_options),
        config=config,
        authorize_virtual_chunk_access=_as_dict(authorize_virtual_chunk_access),
    )


def _checked(refs: dict[str, Any]) -> dict[str, Any]:
    """What a read-only session is asked for: a time as a datetime, and by default the branch ``main``."""
    named = [name for name in ("branch", "tag", "snapshot_id") if name in refs]
    if len(named) > 1:
        raise InvalidInputError(
            f"{' and '.join(named)} both say which snapshot to read: pass one of them", ErrorKind.INVALID_REF_TYPE
        )
    if "as_of" in refs:
        if named and named != ["branch"]:
            raise InvalidInputError(
                f"as_of asks what a branch was at a time, {named[0]} names one snapshot: pass one of them, or as_of "
                f"with branch",
                ErrorKind.INVALID_REF_TYPE,
            )
        refs = {**refs, "as_of": _aware_time(refs["as_of"])}
    if not named:
        refs = {"branch": "main", **refs}
    return refs


def _aware_time(value: Any) -> dt.datetime:
    time = value
    if isinstance(value, str):
        try:
            time = dt.datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidInputError(
                f"as_of={value!r} is not an ISO 8601 time: write it like 2026-01-31T12:00:00+00:00",
                ErrorKind.INVALID_REF_TYPE,
            ) from error
    if not isinstance(time, dt.datetime) or time.tzinfo is None:
        raise InvalidInputError(
            f"as_of={value!r} must be a datetime with a time zone, or ISO 8601 text with an offset, like "
            f"2026-01-31T12:00:00+00:00",
            ErrorKind.INVALID_REF_TYPE,
        )
    return time


def _refuse(names: list[str], reason: str, instead: str) -> None:
    if names:
        raise InvalidInputError(
            f"{', '.join(names)} cannot be used here: {reason}. Leave it out, or pass it with {instead}",
            ErrorKind.INVALID_REF_TYPE,
        )


def _normal_location(location: str | os.PathLike[str]) -> str:
    text = os.fspath(location)
    return redacted(text) if scheme_of(text) else str(Path(text).expanduser().absolute())


def _not_found(location: str | os.PathLike[str]) -> RepositoryNotFoundError:
    text = _normal_location(location)
    return RepositoryNotFoundError(
        f"there is no Icechunk repository at {text!r}: neither a file 'repo' nor directories 'refs' and 'snapshots'. "
        f"Check the location (it is the directory that holds these), or create a repository with "
        f"xarray_icechunk.open_or_create_repository({text!r})"
    )


def _as_dict(mapping: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if mapping is None else dict(mapping)
