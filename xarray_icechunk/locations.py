"""Turn what a user passes (a path, URL, repository, session or store, and a ref) into a session to read from."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast
from urllib.parse import unquote
from uuid import uuid4

from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import ErrorKind, InvalidInputError, RepositoryNotFoundError
from icechunk_engine.errors.foreign import describe, official_class
from icechunk_engine.errors.redaction import redacted
from icechunk_engine.repository import Authorizations, Repository, open_readonly
from icechunk_engine.session import Session
from icechunk_engine.storage.from_url import scheme_of, storage_from_url
from icechunk_engine.store import IcechunkStore

__all__ = ["Located", "Where", "locate", "open_or_create_repository", "open_repository", "split_pipeline"]

_PIPELINE = "|icechunk:"


type Source = str | os.PathLike[str] | Repository | Session | IcechunkStore


class _SnapshotChoice(TypedDict, total=False):
    """Arguments of :meth:`Repository.readonly_session`."""

    branch: str
    tag: str
    snapshot_id: str
    as_of: dt.datetime


class Where(TypedDict, total=False):
    """The arguments of :func:`locate` that say what to open."""

    branch: str | None
    tag: str | None
    snapshot_id: str | None
    as_of: dt.datetime | str | None
    storage_options: Mapping[str, object] | None
    config: RepositoryConfig | None
    authorize_virtual_chunk_access: Authorizations | None


@dataclass(frozen=True, slots=True)
class Located:
    """A session and where it was found."""

    session: Session
    location: str | None
    """Absolute path or URL of the repository; None if a session or store was passed."""
    path: str = ""
    """Path of the group that the URL names; empty for the root."""

    @property
    def source(self) -> str:
        """A name for the data that are read: equal for one snapshot, different for any two snapshots.

        Each opening of a writable session gets a new name, because the session's edits can change the data.
        """
        state = self.session.snapshot_id
        if not self.session.read_only:
            state = f"{state}+{uuid4().hex}"
        return f"{self.location or 'icechunk'}@{state}"


def locate(
    source: object,
    *,
    branch: str | None = None,
    tag: str | None = None,
    snapshot_id: str | None = None,
    as_of: dt.datetime | str | None = None,
    storage_options: Mapping[str, object] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorizations | None = None,
) -> Located:
    """Find the repository and the snapshot to read.

    Parameters
    ----------
    source : str, os.PathLike, Repository, Session or IcechunkStore
        A session or store is used as it is: a writable one shows its uncommitted changes. A URL may end in
        ``|icechunk:@branch.main/group``, ``|icechunk:@tag.v1/group`` or ``|icechunk:@SNAPSHOT/group``.
    branch, tag, snapshot_id
        At most one of them; by default the branch ``main``.
    as_of
        Read the branch as it was at this time: an aware datetime, or ISO 8601 text with an offset.
    storage_options, config, authorize_virtual_chunk_access
        For a path or URL only; as in :func:`open_repository`.

    Raises
    ------
    InvalidInputError
        Arguments that contradict each other or do not apply, or an unsupported kind of location.
    RepositoryNotFoundError
        The location holds no repository.
    RefNotFoundError, SnapshotNotFoundError
        The branch, tag or snapshot does not exist.
    """
    refs = _given(branch=branch, tag=tag, snapshot_id=snapshot_id, as_of=as_of)
    settings = _given(
        storage_options=storage_options or None,
        config=config,
        authorize_virtual_chunk_access=authorize_virtual_chunk_access,
    )

    if isinstance(source, IcechunkStore | Session):
        _refuse(
            [*refs, *settings],
            f"a {type(source).__name__} already has its snapshot",
            "the repository's path or URL",
        )
        return Located(source if isinstance(source, Session) else source.session, None)

    if isinstance(source, Repository):
        _refuse(settings, "a Repository is already open", "Repository.open")
        return Located(source.readonly_session(**_snapshot_choice(refs)), source.storage.identity)

    if isinstance(source, str | os.PathLike):
        place, named, path = split_pipeline(source)
        if named and refs:
            raise InvalidInputError(
                f"{os.fspath(source)!r} says which snapshot to read, and so does {', '.join(refs)}: leave one out",
                ErrorKind.INVALID_REF_TYPE,
            )
        storage, choice = storage_from_url(place, storage_options), _snapshot_choice(named or refs)
        try:
            session = open_readonly(storage, config, authorize_virtual_chunk_access, **choice)
        except RepositoryNotFoundError as error:
            raise _not_found(place) from error
        return Located(session, _normal_location(place), path)

    if official_class(source) is not None:
        raise InvalidInputError(
            f"cannot open {describe(source)}. You can also pass a path or URL", ErrorKind.CANNOT_PARSE_URL
        )
    raise InvalidInputError(
        f"cannot open a {type(source).__module__}.{type(source).__qualname__} as an Icechunk repository. Pass a path, "
        f"a URL, or a Repository, Session or IcechunkStore of icechunk_engine",
        ErrorKind.CANNOT_PARSE_URL,
    )


def split_pipeline(location: str | os.PathLike[str]) -> tuple[str, dict[str, str], str]:
    """Split a URL ``location|icechunk:@ref/group`` into the repository's location, the ref and the group.

    A ref is ``branch.NAME``, ``tag.NAME`` or a snapshot id. Write ``%2F`` for a ``/`` in a name.

    Raises
    ------
    InvalidInputError
        ``cannot-parse-url``: the ref is empty or malformed, or another ``|`` step follows.
    """
    text = os.fspath(location)
    place, found, rest = text.partition(_PIPELINE)
    if not found:
        return text, {}, ""
    ref, _, path = rest.removeprefix("//").partition("/")
    kind, dot, name = ref.removeprefix("@").partition(".")
    if "|" in rest or (ref and not ref.startswith("@")) or (ref and not (name if dot else kind)):
        raise InvalidInputError(
            f"cannot parse {text!r}: after '|icechunk:' write '@branch.NAME', '@tag.NAME' or '@SNAPSHOT', then "
            f"'/group'",
            ErrorKind.CANNOT_PARSE_URL,
        )
    if not ref:
        return place, {}, path
    if not dot:
        return place, {"snapshot_id": kind}, path
    if kind not in ("branch", "tag"):
        raise InvalidInputError(
            f"cannot parse {text!r}: {kind!r} is not a kind of ref. Write '@branch.{name}' or '@tag.{name}'",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return place, {kind: unquote(name)}, path


def _repository_only(location: str | os.PathLike[str]) -> str:
    place, named, path = split_pipeline(location)
    if named or path:
        raise InvalidInputError(
            f"{os.fspath(location)!r} names a snapshot or group, not a repository. Write {place!r}",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return place


def open_repository(
    location: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorizations | None = None,
) -> Repository:
    """Open the repository at a path or URL.

    Parameters
    ----------
    location
        A local path, ``file:///absolute/path``, ``memory://name`` (which lives as long as this process),
        ``s3://bucket/prefix``, ``gs://…``, ``az://container/prefix`` or ``https://host/path``. For reading, also a URL
        of any other installed fsspec file system.
    storage_options
        Options for the storage, named as in fsspec: ``anon``, ``key``, ``secret``, ``endpoint_url``, …
    config
        Settings that override the configuration stored in the repository.
    authorize_virtual_chunk_access
        URL prefixes of virtual chunks that may be read, each with its credentials. If the stored configuration leads
        to another place, such as another endpoint, name that place too (``credentials.access_at``).

    Raises
    ------
    RepositoryNotFoundError
        The location holds no repository.
    InvalidInputError
        The kind of location is not supported, or a storage option is unknown.
    """
    location = _repository_only(location)
    storage = storage_from_url(location, storage_options)
    try:
        return Repository.open(
            storage,
            config=config,
            authorize_virtual_chunk_access=authorize_virtual_chunk_access,
        )
    except RepositoryNotFoundError as error:
        raise _not_found(location) from error


def open_or_create_repository(
    location: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, object] | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorizations | None = None,
) -> Repository:
    """Open the repository at a path or URL, or create it. The parameters are those of :func:`open_repository`."""
    return Repository.open_or_create(
        storage_from_url(_repository_only(location), storage_options),
        config=config,
        authorize_virtual_chunk_access=authorize_virtual_chunk_access,
    )


def _given(**arguments: object) -> dict[str, object]:
    return {name: value for name, value in arguments.items() if value is not None}


def _snapshot_choice(refs: Mapping[str, object]) -> _SnapshotChoice:
    """Return the arguments of a read-only session: by default the branch ``main``, and a time as a datetime."""
    named = [name for name in ("branch", "tag", "snapshot_id") if name in refs]
    if len(named) > 1:
        raise InvalidInputError(
            f"{' and '.join(named)} both say which snapshot to read: pass one of them", ErrorKind.INVALID_REF_TYPE
        )
    if "as_of" in refs and named not in ([], ["branch"]):
        raise InvalidInputError(
            f"as_of needs a branch, but {named[0]} names one snapshot. Pass {named[0]} alone, or as_of with branch",
            ErrorKind.INVALID_REF_TYPE,
        )
    choice = cast(_SnapshotChoice, dict(refs))
    if "as_of" in refs:
        choice["as_of"] = _aware_time(refs["as_of"])
    if not named:
        choice["branch"] = "main"
    return choice


def _aware_time(value: object) -> dt.datetime:
    time = value
    if isinstance(value, str):
        try:
            time = dt.datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidInputError(
                f"as_of={value!r} is not an ISO 8601 time. Write it like 2026-01-31T12:00:00+00:00",
                ErrorKind.INVALID_REF_TYPE,
            ) from error
    if not isinstance(time, dt.datetime) or time.tzinfo is None:
        raise InvalidInputError(
            f"as_of={value!r} must be a datetime with a time zone, or ISO 8601 text with an offset, like "
            f"2026-01-31T12:00:00+00:00",
            ErrorKind.INVALID_REF_TYPE,
        )
    return time


def _refuse(names: Collection[str], reason: str, instead: str) -> None:
    if names:
        raise InvalidInputError(
            f"you cannot use {', '.join(names)} here, because {reason}. Leave it out, or use it with {instead}",
            ErrorKind.INVALID_REF_TYPE,
        )


def _normal_location(location: str | os.PathLike[str]) -> str:
    text = os.fspath(location)
    return redacted(text) if scheme_of(text) else str(Path(text).expanduser().absolute())


def _not_found(location: str | os.PathLike[str]) -> RepositoryNotFoundError:
    text = _normal_location(location)
    return RepositoryNotFoundError(
        f"no Icechunk repository at {text!r}: it has neither a file 'repo' nor folders 'refs' and 'snapshots'. Check "
        f"the location (the folder that holds these), or create a repository with "
        f"xarray_icechunk.open_or_create_repository({text!r})"
    )
