"""Virtual chunk containers: which URL prefixes a repository's virtual chunks may lie in, and how to reach them."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from icechunk_engine.config import virtual_urls
from icechunk_engine.config.base import U32, Choice, Flag, Kind, Settings, Text, setting
from icechunk_engine.config.http_headers import problem_of_headers
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.errors.redaction import MASK, masked, redacted
from icechunk_engine.types import IntegerEnum


class ChecksumAlgorithm(IntegerEnum):
    """Checksum that S3 verifies on upload."""

    Crc32 = 0
    Crc32c = 1
    Crc64Nvme = 2
    Sha1 = 3
    Sha256 = 4


_CHECKSUM_NAMES = {
    ChecksumAlgorithm.Crc32: "crc32",
    ChecksumAlgorithm.Crc32c: "crc32c",
    ChecksumAlgorithm.Crc64Nvme: "crc64_nvme",
    ChecksumAlgorithm.Sha1: "sha1",
    ChecksumAlgorithm.Sha256: "sha256",
}


@dataclass(slots=True, repr=False)
class S3Options(Settings):
    """Where and how to talk to S3 or a compatible object store."""

    region: str | None = setting(Text())
    endpoint_url: str | None = setting(Text())
    allow_http: bool = setting(Flag(), default=False)
    anonymous: bool = setting(Flag(), default=False)
    force_path_style: bool = setting(Flag(), default=False)
    network_stream_timeout_seconds: int | None = setting(U32)
    requester_pays: bool = setting(Flag(), default=False)
    checksum_algorithm: ChecksumAlgorithm | None = setting(Choice(ChecksumAlgorithm, _CHECKSUM_NAMES))


class ObjectStoreConfig:
    """Kind of object store and its options: ``ObjectStoreConfig.S3(options)``, ``.Gcs(opts)``, …

    Credentials have no place here: the configuration is stored in the repository, for every reader to see.
    """

    __slots__ = ()

    InMemory: ClassVar[type[InMemoryStore]]
    LocalFileSystem: ClassVar[type[LocalFileSystemStore]]
    S3: ClassVar[type[S3Store]]
    S3Compatible: ClassVar[type[S3CompatibleStore]]
    Tigris: ClassVar[type[TigrisStore]]
    Gcs: ClassVar[type[GcsStore]]
    Azure: ClassVar[type[AzureStore]]
    Http: ClassVar[type[HttpStore]]

    name: ClassVar[str]
    """In the persisted form."""
    schemes: ClassVar[frozenset[str]]
    """Of the URL prefixes that such a store can serve."""

    def to_plain(self) -> Any:
        """Persisted form."""
        raise NotImplementedError

    @staticmethod
    def from_plain(plain: Any) -> ObjectStoreConfig:
        """Inverse of :meth:`to_plain`; raises ValueError."""
        if plain == InMemoryStore.name:
            return InMemoryStore()
        if isinstance(plain, Mapping) and len(plain) == 1:
            ((name, options),) = plain.items()
            if name in _S3_STORES:
                return _S3_STORES[name](S3Options.from_plain(options))
            if name == LocalFileSystemStore.name and isinstance(options, str):
                return LocalFileSystemStore(options)
            if name in _MAP_STORES and isinstance(options, Mapping):
                return _MAP_STORES[name](dict(options))
            if name == HttpStore.name and isinstance(options, Mapping):
                opts = {key: value for key, value in options.items() if key != "headers"}
                return HttpStore(opts, options.get("headers"))
        raise ValueError("must be an object store such as 'in_memory' or {'s3': {…}}")

    def _repr_html_(self) -> str:
        return _Shown(self)._repr_html_()


@dataclass(slots=True, repr=False)
class InMemoryStore(ObjectStoreConfig):
    """A named memory storage of this process, at ``memory://name/``. Official knows it, but cannot read from it."""

    name = "in_memory"
    schemes = frozenset({"memory"})

    def to_plain(self) -> Any:
        return self.name

    def __repr__(self) -> str:
        return "ObjectStoreConfig.InMemory()"


@dataclass(slots=True, repr=False)
class LocalFileSystemStore(ObjectStoreConfig):
    """Local files. Only the container's URL prefix says which; the path here is kept but not used."""

    name = "local_file_system"
    schemes = frozenset({"file"})

    path: str | os.PathLike[str]

    def __post_init__(self) -> None:
        self.path = os.fspath(self.path)

    def to_plain(self) -> Any:
        return {self.name: self.path}

    def __repr__(self) -> str:
        return f"ObjectStoreConfig.LocalFileSystem({self.path!r})"


@dataclass(slots=True, repr=False)
class _S3Family(ObjectStoreConfig):
    variant: ClassVar[str]

    options: S3Options

    def __post_init__(self) -> None:
        if not isinstance(self.options, S3Options):
            raise TypeError(f"ObjectStoreConfig.{self.variant} needs S3Options, not {describe(self.options)}")

    def to_plain(self) -> Any:
        return {self.name: self.options.to_plain()}

    def __repr__(self) -> str:
        return f"ObjectStoreConfig.{self.variant}({self.options!r})"


class S3Store(_S3Family):
    """Amazon S3."""

    __slots__ = ()
    name = "s3"
    variant = "S3"
    schemes = frozenset({"s3"})


class S3CompatibleStore(_S3Family):
    """Object stores with the interface of S3: MinIO, Ceph, R2, …"""

    __slots__ = ()
    name = "s3_compatible"
    variant = "S3Compatible"
    schemes = frozenset({"s3"})


class TigrisStore(_S3Family):
    """Tigris."""

    __slots__ = ()
    name = "tigris"
    variant = "Tigris"
    schemes = frozenset({"s3", "tigris"})


@dataclass(slots=True, repr=False)
class _OptionsStore(ObjectStoreConfig):
    variant: ClassVar[str]

    opts: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self.opts = _checked_options(self.opts, self.variant)

    def to_plain(self) -> Any:
        return {self.name: dict(self.opts or {})}

    def __repr__(self) -> str:
        return f"ObjectStoreConfig.{self.variant}({masked(self.opts or {})})"


class GcsStore(_OptionsStore):
    """Google Cloud Storage."""

    __slots__ = ()
    name = "gcs"
    variant = "Gcs"
    schemes = frozenset({"gs", "gcs"})


class AzureStore(_OptionsStore):
    """Azure Blob Storage; ``opts`` must name the ``account``."""

    __slots__ = ()
    name = "azure"
    variant = "Azure"
    schemes = frozenset({"az", "azure", "abfs"})


@dataclass(slots=True, repr=False)
class HttpStore(ObjectStoreConfig):
    """A web server. Headers are stored in the repository's configuration in clear, for every reader to see."""

    name = "http"
    schemes = frozenset({"http", "https"})

    opts: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self.opts = _checked_options(self.opts, "Http")
        self.headers = _checked_options(self.headers, "Http")

    def to_plain(self) -> Any:
        headers = {"headers": dict(self.headers)} if self.headers else {}
        return {self.name: dict(self.opts or {}) | headers}

    def __repr__(self) -> str:
        headers = f", {dict.fromkeys(self.headers, MASK)}" if self.headers else ""
        return f"ObjectStoreConfig.Http({masked(self.opts or {})}{headers})"


ObjectStoreConfig.InMemory = InMemoryStore
ObjectStoreConfig.LocalFileSystem = LocalFileSystemStore
ObjectStoreConfig.S3 = S3Store
ObjectStoreConfig.S3Compatible = S3CompatibleStore
ObjectStoreConfig.Tigris = TigrisStore
ObjectStoreConfig.Gcs = GcsStore
ObjectStoreConfig.Azure = AzureStore
ObjectStoreConfig.Http = HttpStore

_S3_STORES: dict[str, type[_S3Family]] = {cls.name: cls for cls in (S3Store, S3CompatibleStore, TigrisStore)}
_MAP_STORES: dict[str, type[_OptionsStore]] = {cls.name: cls for cls in (GcsStore, AzureStore)}

AnyObjectStoreConfig = (
    InMemoryStore
    | LocalFileSystemStore
    | S3Store
    | S3CompatibleStore
    | TigrisStore
    | GcsStore
    | AzureStore
    | HttpStore
)


def _checked_options(options: Any, variant: str) -> dict[str, str]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(text, str) for pair in options.items() for text in pair):
        raise TypeError(f"ObjectStoreConfig.{variant} needs a mapping from strings to strings")
    return dict(options)


@dataclass(slots=True, repr=False)
class _Shown(Settings):
    """Prints one store as a configuration prints."""

    store: ObjectStoreConfig = setting(Kind(), default=dataclasses.MISSING)


@dataclass(frozen=True, slots=True)
class _StoreKind(Kind):
    def check(self, value: Any) -> Any:
        if not isinstance(value, ObjectStoreConfig):
            raise TypeError("must be an ObjectStoreConfig, e.g. ObjectStoreConfig.S3(S3Options())")
        return value

    def to_plain(self, value: Any) -> Any:
        return value.to_plain()

    def from_plain(self, plain: Any) -> Any:
        return ObjectStoreConfig.from_plain(plain)


class _OfUnknownOrigin(Settings):
    """Remembers who wrote a container: a stored one must not decide where its reader's credentials go."""

    __slots__ = ("is_stored",)


@dataclass(slots=True, repr=False)
class VirtualChunkContainer(_OfUnknownOrigin):
    """A URL prefix that virtual chunks may lie under, and the store that serves it.

    Parameters
    ----------
    url_prefix
        Such as ``s3://bucket/prefix/``; ends in ``/``.
    store
        Kind and options of the object store.
    name
        Allows locations ``vcc://name/rest``, which move with the container's prefix.

    Attributes
    ----------
    is_stored
        True when the container came with a repository's stored configuration, and you have not set its prefix or
        store since. It says who wrote it and is not part of its value.
    """

    url_prefix: str = setting(Text(), default=dataclasses.MISSING)
    store: ObjectStoreConfig = setting(_StoreKind(), default=dataclasses.MISSING)
    name: str | None = setting(Text())

    def __setattr__(self, name: str, value: Any) -> None:
        Settings.__setattr__(self, name, value)
        if name in ("url_prefix", "store"):
            self.is_stored = False


def validate_container(container: VirtualChunkContainer) -> None:
    """Refuse a container that no virtual chunk could be read through (spec, *Virtual chunk containers*).

    Raises
    ------
    InvalidInputError
        ``invalid-config``, with what to write instead.
    """
    problem = _container_problem(container)
    if problem is not None:
        raise InvalidInputError(
            f"the virtual chunk container at {container.url_prefix!r} is invalid: {problem}", ErrorKind.INVALID_CONFIG
        )


def is_valid_container(container: VirtualChunkContainer) -> bool:
    """True when :func:`validate_container` would accept it. Invalid ones in a stored configuration are ignored."""
    return _container_problem(container) is None


def _container_problem(container: VirtualChunkContainer) -> str | None:
    prefix, store = container.url_prefix, container.store
    if container.name is not None and (not container.name or "/" in container.name):
        return "its name must not be empty or hold '/'"
    if not prefix.endswith("/"):
        return f"the prefix must end in '/'; write {prefix + '/'!r}"
    scheme = virtual_urls.scheme_of(prefix)
    if scheme not in store.schemes:
        known = " or ".join(f"{name}://" for name in sorted(store.schemes))
        return f"{store!r} serves {known} only; use the store that fits the prefix"
    if isinstance(store, HttpStore) and (problem := problem_of_headers(store.headers or {})) is not None:
        return problem
    try:
        canonical = virtual_urls.normalize(prefix)
    except ValueError as error:
        return str(error)
    if "?" in prefix or "#" in prefix:
        return "the prefix must not hold '?' or '#'; write %3F and %23 for these characters in a key"
    if scheme == "file":
        return None if virtual_urls.path_of(canonical) else "give a directory, such as file:///data/, not the root"
    authority = virtual_urls.authority_of(canonical)
    return None if virtual_urls.is_authority(authority) else f"{authority!r} is not a valid bucket or host"


@dataclass(frozen=True, slots=True, repr=False)
class VirtualChunkSpec:
    """One chunk reference for ``IcechunkStore.set_virtual_refs``.

    Attributes
    ----------
    index
        Coordinates in the chunk grid.
    location
        Absolute URL of the object.
    offset, length
        Byte range in the object.
    etag_checksum
        The object must have this etag when it is read.
    last_updated_at_checksum
        The object must not have been modified after this time when it is read.
    """

    index: list[int]
    location: str
    offset: int
    length: int
    etag_checksum: str | None = None
    last_updated_at_checksum: datetime | None = None

    def __repr__(self) -> str:
        shown = (f"{item.name}={getattr(self, item.name)!r}" for item in dataclasses.fields(self))
        return redacted(f"VirtualChunkSpec({', '.join(shown)})")


def s3_store(
    region: str | None = None,
    endpoint_url: str | None = None,
    allow_http: bool = False,
    anonymous: bool = False,
    s3_compatible: bool = False,
    force_path_style: bool = False,
    network_stream_timeout_seconds: int = 60,
    requester_pays: bool = False,
    checksum_algorithm: ChecksumAlgorithm | None = None,
) -> S3Store | S3CompatibleStore:
    """Store of a container on S3, or with ``s3_compatible`` on a store with the same interface."""
    options = S3Options(
        region=region,
        endpoint_url=endpoint_url,
        allow_http=allow_http,
        anonymous=anonymous,
        force_path_style=force_path_style,
        network_stream_timeout_seconds=network_stream_timeout_seconds,
        requester_pays=requester_pays,
        checksum_algorithm=checksum_algorithm,
    )
    return S3CompatibleStore(options) if s3_compatible else S3Store(options)


def gcs_store(opts: Mapping[str, str] | None = None) -> GcsStore:
    """Store of a container on Google Cloud Storage."""
    return GcsStore(opts)


def azure_store(*, account: str, config: Mapping[str, str] | None = None) -> AzureStore:
    """Store of a container on Azure Blob Storage."""
    return AzureStore({"account": account, **(config or {})})


def http_store(opts: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None) -> HttpStore:
    """Store of a container on a web server; headers are sent with every request.

    Raises
    ------
    InvalidInputError
        ``invalid-config``: headers that cannot be sent.
    """
    store = HttpStore(opts, headers)
    problem = problem_of_headers(store.headers or {})
    if problem is not None:
        raise InvalidInputError(problem, ErrorKind.INVALID_CONFIG)
    return store


def local_filesystem_store(path: str | os.PathLike[str]) -> LocalFileSystemStore:
    """Store of a container of local files."""
    return LocalFileSystemStore(path)
