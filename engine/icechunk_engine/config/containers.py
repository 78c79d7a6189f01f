"""Virtual chunk containers: URL prefixes for the virtual chunks of a repository, and how to reach them."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from icechunk_engine.config import virtual_urls
from icechunk_engine.config.base import U32, Choice, Flag, Kind, Settings, Text, required_setting, setting
from icechunk_engine.config.http_headers import problem_of_headers
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.errors.redaction import MASK, masked, redacted
from icechunk_engine.types import IntegerEnum, Json, JsonObject


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
    """How to reach S3 or a compatible object store."""

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

    Do not put credentials here. The configuration is stored in the repository, where every reader can see it.
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
    """Name in the stored form."""
    schemes: ClassVar[frozenset[str]]
    """Schemes of the URL prefixes that this kind of store serves."""

    def to_plain(self) -> Json:
        """Return the stored form."""
        raise NotImplementedError

    @staticmethod
    def from_plain(plain: Json) -> ObjectStoreConfig:
        """Invert :meth:`to_plain`. Raises ValueError."""
        if plain == InMemoryStore.name:
            return InMemoryStore()
        if isinstance(plain, Mapping) and len(plain) == 1:
            ((name, options),) = plain.items()
            if name in _S3_STORES:
                return _S3_STORES[name](S3Options.from_plain(options))
            if name == LocalFileSystemStore.name and isinstance(options, str):
                return LocalFileSystemStore(options)
            if name in _MAP_STORES and isinstance(options, Mapping):
                return _MAP_STORES[name](_checked_options(options, name))
            if name == HttpStore.name and isinstance(options, Mapping):
                opts = {key: value for key, value in options.items() if key != "headers"}
                headers = options.get("headers")
                return HttpStore(_checked_options(opts, "Http"), _checked_options(headers, "Http"))
        raise ValueError("must be an object store such as 'in_memory' or {'s3': {…}}")

    def _repr_html_(self) -> str:
        return _Shown(self)._repr_html_()


@dataclass(slots=True, repr=False)
class InMemoryStore(ObjectStoreConfig):
    """A named memory storage of this process, at ``memory://name/``. Official cannot read from it."""

    name = "in_memory"
    schemes = frozenset({"memory"})

    def to_plain(self) -> Json:
        return self.name

    def __repr__(self) -> str:
        return "ObjectStoreConfig.InMemory()"


@dataclass(slots=True, repr=False)
class LocalFileSystemStore(ObjectStoreConfig):
    """Local files. The URL prefix of the container says which files. The path here is stored but not used."""

    name = "local_file_system"
    schemes = frozenset({"file"})

    path: str | os.PathLike[str]

    def __post_init__(self) -> None:
        self.path = os.fspath(self.path)

    def to_plain(self) -> Json:
        return {self.name: os.fspath(self.path)}

    def __repr__(self) -> str:
        return f"ObjectStoreConfig.LocalFileSystem({self.path!r})"


@dataclass(slots=True, repr=False)
class _S3Family(ObjectStoreConfig):
    variant: ClassVar[str]

    options: S3Options

    def __post_init__(self) -> None:
        if not isinstance(self.options, S3Options):
            raise TypeError(f"ObjectStoreConfig.{self.variant} needs S3Options, not {describe(self.options)}")

    def to_plain(self) -> Json:
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
    """S3-compatible object stores: MinIO, Ceph, R2, …"""

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

    def to_plain(self) -> Json:
        return {self.name: {**(self.opts or {})}}

    def __repr__(self) -> str:
        return f"ObjectStoreConfig.{self.variant}({masked(self.opts or {})})"


class GcsStore(_OptionsStore):
    """Google Cloud Storage."""

    __slots__ = ()
    name = "gcs"
    variant = "Gcs"
    schemes = frozenset({"gs", "gcs"})


class AzureStore(_OptionsStore):
    """Azure Blob Storage. ``opts`` must contain the ``account``."""

    __slots__ = ()
    name = "azure"
    variant = "Azure"
    schemes = frozenset({"az", "azure", "abfs"})


@dataclass(slots=True, repr=False)
class HttpStore(ObjectStoreConfig):
    """A web server. The repository stores the headers in clear text, where every reader can see them."""

    name = "http"
    schemes = frozenset({"http", "https"})

    opts: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self.opts = _checked_options(self.opts, "Http")
        self.headers = _checked_options(self.headers, "Http")

    def to_plain(self) -> Json:
        headers: JsonObject = {"headers": {**self.headers}} if self.headers else {}
        return {self.name: {**(self.opts or {}), **headers}}

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


def _checked_options(options: object, variant: str) -> dict[str, str]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(text, str) for pair in options.items() for text in pair):
        raise TypeError(f"ObjectStoreConfig.{variant} needs a mapping from strings to strings")
    return dict(options)


@dataclass(frozen=True, slots=True)
class _StoreKind(Kind[ObjectStoreConfig]):
    def check(self, value: object) -> ObjectStoreConfig:
        if not isinstance(value, ObjectStoreConfig):
            raise TypeError("must be an ObjectStoreConfig, e.g. ObjectStoreConfig.S3(S3Options())")
        return value

    def to_plain(self, value: ObjectStoreConfig) -> Json:
        return value.to_plain()

    def from_plain(self, plain: Json) -> ObjectStoreConfig:
        return ObjectStoreConfig.from_plain(plain)


@dataclass(slots=True, repr=False)
class _Shown(Settings):
    """Prints a store like a configuration."""

    store: ObjectStoreConfig = required_setting(_StoreKind())


class _OfUnknownOrigin(Settings):
    """Remembers who wrote a container, because a stored one must not decide where the reader's credentials go."""

    __slots__ = ("is_stored",)


@dataclass(slots=True, repr=False)
class VirtualChunkContainer(_OfUnknownOrigin):
    """A URL prefix of virtual chunks, and the store that serves it.

    Parameters
    ----------
    url_prefix
        Prefix such as ``s3://bucket/prefix/``. It must end in ``/``.
    store
        Kind and options of the object store.
    name
        Optional name. Locations ``vcc://name/rest`` follow the prefix of the container if it changes.

    Attributes
    ----------
    is_stored
        True if the container comes from the stored configuration of a repository and you have not set its prefix or
        store since. It is not part of the container's value.
    """

    url_prefix: str = required_setting(Text())
    store: ObjectStoreConfig = required_setting(_StoreKind())
    name: str | None = setting(Text())

    def __setattr__(self, name: str, value: object) -> None:
        Settings.__setattr__(self, name, value)
        if name in ("url_prefix", "store"):
            self.is_stored = False

    def __reduce__(self) -> tuple[object, ...]:
        # The mark decides which credentials may be used, so a copy in another process needs it, too.
        function, arguments = Settings.__reduce__(self)
        return function, arguments, (None, {"is_stored": self.is_stored})


def validate_container(container: VirtualChunkContainer) -> None:
    """Refuse an invalid container, through which no chunk could be read (spec, *Virtual chunk containers*).

    Raises
    ------
    InvalidInputError
        ``invalid-config``. The message says what to write instead.
    """
    problem = _container_problem(container)
    if problem is not None:
        raise InvalidInputError(
            f"the virtual chunk container at {container.url_prefix!r} is invalid: {problem}", ErrorKind.INVALID_CONFIG
        )


def is_valid_container(container: VirtualChunkContainer) -> bool:
    """Return True if :func:`validate_container` accepts it. Invalid stored containers are ignored."""
    return _container_problem(container) is None


def _container_problem(container: VirtualChunkContainer) -> str | None:
    prefix, store = container.url_prefix, container.store
    if container.name is not None and (not container.name or "/" in container.name):
        return "its name must not be empty or contain '/'"
    if not prefix.endswith("/"):
        return f"the prefix must end in '/'; write {prefix + '/'!r}"
    scheme = virtual_urls.scheme_of(prefix)
    if scheme not in store.schemes:
        known = " or ".join(f"{name}://" for name in sorted(store.schemes))
        return f"{store!r} only serves {known}; use a store for the scheme of the prefix"
    if isinstance(store, HttpStore) and (problem := problem_of_headers(store.headers or {})) is not None:
        return problem
    try:
        canonical = virtual_urls.normalize(prefix)
    except ValueError as error:
        return str(error)
    if "?" in prefix or "#" in prefix:
        return "the prefix must not contain '?' or '#'; write %3F and %23 for these characters in a key"
    if scheme == "file":
        return None if virtual_urls.path_of(canonical) else "give a directory, such as file:///data/, not the root"
    authority = virtual_urls.authority_of(canonical)
    return None if virtual_urls.is_authority(authority) else f"{authority!r} is not a valid bucket or host"


@dataclass(frozen=True, slots=True, repr=False)
class VirtualChunkSpec:
    """One virtual chunk reference for ``IcechunkStore.set_virtual_refs``.

    Attributes
    ----------
    index
        Coordinates in the chunk grid.
    location
        Absolute URL of the object.
    offset, length
        Byte range in the object.
    etag_checksum
        Reading fails if the object no longer has this etag.
    last_updated_at_checksum
        Reading fails if the object was modified after this time.
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
    """Return the store of a container on S3, or on an S3-compatible store with ``s3_compatible=True``."""
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
    """Return the store of a container on Google Cloud Storage."""
    return GcsStore(opts)


def azure_store(*, account: str, config: Mapping[str, str] | None = None) -> AzureStore:
    """Return the store of a container on Azure Blob Storage."""
    return AzureStore({"account": account, **(config or {})})


def http_store(opts: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None) -> HttpStore:
    """Return the store of a container on a web server. Headers are sent with every request.

    Raises
    ------
    InvalidInputError
        ``invalid-config``: the headers cannot be sent.
    """
    store = HttpStore(opts, headers)
    problem = problem_of_headers(store.headers or {})
    if problem is not None:
        raise InvalidInputError(problem, ErrorKind.INVALID_CONFIG)
    return store


def local_filesystem_store(path: str | os.PathLike[str]) -> LocalFileSystemStore:
    """Return the store of a container of local files."""
    return LocalFileSystemStore(path)
