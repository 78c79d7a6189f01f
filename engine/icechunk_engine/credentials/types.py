"""Credentials for object stores, as data. Nothing here reads the environment or waits.

Each provider has a small tree of classes: where credentials come from (``FromEnv``, ``Anonymous``, ``Static``,
``Refreshable``) and which kinds of static credentials exist. Credentials are never stored in a repository, they
compare by value, and their ``repr`` hides secrets. A refreshable credential contains a pickled function, which each
worker calls for itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cache
from types import UnionType
from typing import ClassVar, get_type_hints

from icechunk_engine.errors.redaction import MASK, shortened


class Credential:
    """Base of all credentials: checks the types of fields, and hides secrets in its repr."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, wanted in _types(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if not isinstance(value, wanted):
                raise TypeError(f"{_NAMES[type(self)]}: {name} must be {_spelt(wanted)}, not {_spelt(type(value))}")

    def __repr__(self) -> str:
        shown = []
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is None or (item.repr and item.name != "access_key_id"):
                text = repr(value)
            elif isinstance(value, bytes):
                text = repr(MASK.encode())
            else:
                text = repr(MASK if not item.repr else shortened(value))
            shown.append(text if len(fields(self)) == 1 else f"{item.name}={text}")  # type: ignore[arg-type]
        return f"{_NAMES[type(self)]}({', '.join(shown)})"


@cache
def _types(cls: type[Credential]) -> dict[str, type | UnionType]:
    return {
        name: tuple if name == "places" else hint
        for name, hint in get_type_hints(cls).items()
        if name in {item.name for item in fields(cls)}  # type: ignore[arg-type]
    }


def _spelt(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("icechunk_engine.credentials.types.", "")


# S3


@dataclass(frozen=True, slots=True, repr=False)
class S3StaticCredentials(Credential):
    """A key pair, with an optional session token."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires_after: datetime | None = None


class S3Credentials(Credential):
    """How to authenticate to S3 and compatible stores."""

    __slots__ = ()

    FromEnv: ClassVar[type[S3FromEnv]]
    Anonymous: ClassVar[type[S3Anonymous]]
    Static: ClassVar[type[S3Static]]
    Refreshable: ClassVar[type[S3Refreshable]]


@dataclass(frozen=True, slots=True, repr=False)
class S3FromEnv(S3Credentials):
    """Credentials that the process finds in the environment, a profile, or instance metadata."""


@dataclass(frozen=True, slots=True, repr=False)
class S3Anonymous(S3Credentials):
    """Unsigned requests."""


@dataclass(frozen=True, slots=True, repr=False)
class S3Static(S3Credentials):
    """These keys."""

    credentials: S3StaticCredentials


@dataclass(frozen=True, slots=True, repr=False)
class S3Refreshable(S3Credentials):
    """Keys from a pickled function without arguments, which is called again when they expire."""

    pickled_function: bytes = field(repr=False)
    current: S3StaticCredentials | None = None


S3Credentials.FromEnv = S3FromEnv
S3Credentials.Anonymous = S3Anonymous
S3Credentials.Static = S3Static
S3Credentials.Refreshable = S3Refreshable

AnyS3Credential = S3Static | S3Anonymous | S3FromEnv | S3Refreshable


# Google Cloud Storage


@dataclass(frozen=True, slots=True, repr=False)
class GcsBearerCredential(Credential):
    """A bearer token that a refresh function returns."""

    bearer: str = field(repr=False)
    expires_after: datetime | None = field(default=None, kw_only=True)


class GcsStaticCredentials(Credential):
    """A service account, application credentials or a token."""

    __slots__ = ()

    ServiceAccount: ClassVar[type[GcsServiceAccount]]
    ServiceAccountKey: ClassVar[type[GcsServiceAccountKey]]
    ApplicationCredentials: ClassVar[type[GcsApplicationCredentials]]
    BearerToken: ClassVar[type[GcsBearerToken]]


@dataclass(frozen=True, slots=True, repr=False)
class GcsServiceAccount(GcsStaticCredentials):
    """Path of a service account file."""

    path: str


@dataclass(frozen=True, slots=True, repr=False)
class GcsServiceAccountKey(GcsStaticCredentials):
    """Content of a service account file."""

    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class GcsApplicationCredentials(GcsStaticCredentials):
    """Path of an application credentials file."""

    path: str


@dataclass(frozen=True, slots=True, repr=False)
class GcsBearerToken(GcsStaticCredentials):
    """A bearer token."""

    token: str = field(repr=False)


GcsStaticCredentials.ServiceAccount = GcsServiceAccount
GcsStaticCredentials.ServiceAccountKey = GcsServiceAccountKey
GcsStaticCredentials.ApplicationCredentials = GcsApplicationCredentials
GcsStaticCredentials.BearerToken = GcsBearerToken

AnyGcsStaticCredential = GcsServiceAccount | GcsServiceAccountKey | GcsApplicationCredentials | GcsBearerToken


class GcsCredentials(Credential):
    """How to authenticate to Google Cloud Storage."""

    __slots__ = ()

    Anonymous: ClassVar[type[GcsAnonymous]]
    FromEnv: ClassVar[type[GcsFromEnv]]
    Static: ClassVar[type[GcsStatic]]
    Refreshable: ClassVar[type[GcsRefreshable]]


@dataclass(frozen=True, slots=True, repr=False)
class GcsAnonymous(GcsCredentials):
    """Unsigned requests."""


@dataclass(frozen=True, slots=True, repr=False)
class GcsFromEnv(GcsCredentials):
    """Credentials that the process finds."""


@dataclass(frozen=True, slots=True, repr=False)
class GcsStatic(GcsCredentials):
    """These credentials."""

    credentials: AnyGcsStaticCredential


@dataclass(frozen=True, slots=True, repr=False)
class GcsRefreshable(GcsCredentials):
    """Tokens from a pickled function without arguments, which is called again when they expire."""

    pickled_function: bytes = field(repr=False)
    current: GcsBearerCredential | None = None


GcsCredentials.Anonymous = GcsAnonymous
GcsCredentials.FromEnv = GcsFromEnv
GcsCredentials.Static = GcsStatic
GcsCredentials.Refreshable = GcsRefreshable

AnyGcsCredential = GcsAnonymous | GcsFromEnv | GcsStatic | GcsRefreshable


# Azure Blob Storage


class AzureRefreshableCredential(Credential):
    """A credential that a refresh function returns."""

    __slots__ = ()

    AccessKey: ClassVar[type[AzureRefreshableAccessKey]]
    SasToken: ClassVar[type[AzureRefreshableSasToken]]
    BearerToken: ClassVar[type[AzureRefreshableBearerToken]]


@dataclass(frozen=True, slots=True, repr=False)
class AzureRefreshableAccessKey(AzureRefreshableCredential):
    """An account key."""

    key: str = field(repr=False)
    expires_after: datetime | None = None


@dataclass(frozen=True, slots=True, repr=False)
class AzureRefreshableSasToken(AzureRefreshableCredential):
    """A shared access signature."""

    token: str = field(repr=False)
    expires_after: datetime | None = None


@dataclass(frozen=True, slots=True, repr=False)
class AzureRefreshableBearerToken(AzureRefreshableCredential):
    """A bearer token."""

    bearer: str = field(repr=False)
    expires_after: datetime | None = None


AzureRefreshableCredential.AccessKey = AzureRefreshableAccessKey
AzureRefreshableCredential.SasToken = AzureRefreshableSasToken
AzureRefreshableCredential.BearerToken = AzureRefreshableBearerToken

AnyAzureRefreshableCredential = AzureRefreshableAccessKey | AzureRefreshableSasToken | AzureRefreshableBearerToken


class AzureStaticCredentials(Credential):
    """An account key, a shared access signature or a token."""

    __slots__ = ()

    AccessKey: ClassVar[type[AzureAccessKey]]
    SasToken: ClassVar[type[AzureSasToken]]
    BearerToken: ClassVar[type[AzureBearerToken]]


@dataclass(frozen=True, slots=True, repr=False)
class AzureAccessKey(AzureStaticCredentials):
    """An account key."""

    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class AzureSasToken(AzureStaticCredentials):
    """A shared access signature."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, repr=False)
class AzureBearerToken(AzureStaticCredentials):
    """A bearer token."""

    token: str = field(repr=False)


AzureStaticCredentials.AccessKey = AzureAccessKey
AzureStaticCredentials.SasToken = AzureSasToken
AzureStaticCredentials.BearerToken = AzureBearerToken

AnyAzureStaticCredential = AzureAccessKey | AzureSasToken | AzureBearerToken


class AzureCredentials(Credential):
    """How to authenticate to Azure Blob Storage."""

    __slots__ = ()

    Anonymous: ClassVar[type[AzureAnonymous]]
    FromEnv: ClassVar[type[AzureFromEnv]]
    Static: ClassVar[type[AzureStatic]]
    Refreshable: ClassVar[type[AzureRefreshable]]


@dataclass(frozen=True, slots=True, repr=False)
class AzureAnonymous(AzureCredentials):
    """Unsigned requests."""


@dataclass(frozen=True, slots=True, repr=False)
class AzureFromEnv(AzureCredentials):
    """Credentials that the process finds."""


@dataclass(frozen=True, slots=True, repr=False)
class AzureStatic(AzureCredentials):
    """These credentials."""

    credentials: AnyAzureStaticCredential


@dataclass(frozen=True, slots=True, repr=False)
class AzureRefreshable(AzureCredentials):
    """Credentials from a pickled function without arguments, which is called again when they expire."""

    pickled_function: bytes = field(repr=False)
    current: AnyAzureRefreshableCredential | None = None


AzureCredentials.Anonymous = AzureAnonymous
AzureCredentials.FromEnv = AzureFromEnv
AzureCredentials.Static = AzureStatic
AzureCredentials.Refreshable = AzureRefreshable

AnyAzureCredential = AzureAnonymous | AzureFromEnv | AzureStatic | AzureRefreshable


# Authorisation of virtual chunk containers


class Credentials(Credential):
    """Credential that authorises a virtual chunk container."""

    __slots__ = ()

    S3: ClassVar[type[S3Access]]
    Gcs: ClassVar[type[GcsAccess]]
    Azure: ClassVar[type[AzureAccess]]
    LocalFileSystemAccess: ClassVar[type[_LocalFileSystemAccess]]
    HttpAccess: ClassVar[type[_HttpAccess]]
    At: ClassVar[type[AccessAt]]


@dataclass(frozen=True, slots=True, repr=False)
class S3Access(Credentials):
    """Read S3 with these credentials."""

    credentials: AnyS3Credential


@dataclass(frozen=True, slots=True, repr=False)
class GcsAccess(Credentials):
    """Read Google Cloud Storage with these credentials."""

    credentials: AnyGcsCredential


@dataclass(frozen=True, slots=True, repr=False)
class AzureAccess(Credentials):
    """Read Azure Blob Storage with these credentials."""

    credentials: AnyAzureCredential


@dataclass(frozen=True, slots=True, repr=False)
class _LocalFileSystemAccess(Credentials):
    """Read local files."""


@dataclass(frozen=True, slots=True, repr=False)
class _HttpAccess(Credentials):
    """Read from a web server."""


@dataclass(frozen=True, slots=True, repr=False)
class AccessAt(Credentials):
    """A credential, and places outside the URL prefix of the container where it may be used.

    Attributes
    ----------
    places
        ``scheme://host[:port]`` for servers, ``file:///folder/`` for folders.
    """

    access: S3Access | GcsAccess | AzureAccess | _LocalFileSystemAccess | _HttpAccess
    places: tuple[str, ...]


Credentials.S3 = S3Access
Credentials.Gcs = GcsAccess
Credentials.Azure = AzureAccess
Credentials.LocalFileSystemAccess = _LocalFileSystemAccess
Credentials.HttpAccess = _HttpAccess
Credentials.At = AccessAt

AnyCredential = S3Access | GcsAccess | AzureAccess | _LocalFileSystemAccess | _HttpAccess | AccessAt

type ContainerCredential = AnyCredential | AnyS3Credential | AnyGcsCredential | AnyAzureCredential
"""A credential for a container, or one for an object store that :func:`.as_container_credential` wraps."""

LocalFileSystemAccess = _LocalFileSystemAccess()
"""Authorises a container of local files."""

HttpAccess = _HttpAccess()
"""Authorises a container on a web server."""

_NAMES: dict[type, str] = {
    S3StaticCredentials: "S3StaticCredentials",
    GcsBearerCredential: "GcsBearerCredential",
    S3FromEnv: "S3Credentials.FromEnv",
    S3Anonymous: "S3Credentials.Anonymous",
    S3Static: "S3Credentials.Static",
    S3Refreshable: "S3Credentials.Refreshable",
    GcsServiceAccount: "GcsStaticCredentials.ServiceAccount",
    GcsServiceAccountKey: "GcsStaticCredentials.ServiceAccountKey",
    GcsApplicationCredentials: "GcsStaticCredentials.ApplicationCredentials",
    GcsBearerToken: "GcsStaticCredentials.BearerToken",
    GcsAnonymous: "GcsCredentials.Anonymous",
    GcsFromEnv: "GcsCredentials.FromEnv",
    GcsStatic: "GcsCredentials.Static",
    GcsRefreshable: "GcsCredentials.Refreshable",
    AzureRefreshableAccessKey: "AzureRefreshableCredential.AccessKey",
    AzureRefreshableSasToken: "AzureRefreshableCredential.SasToken",
    AzureRefreshableBearerToken: "AzureRefreshableCredential.BearerToken",
    AzureAccessKey: "AzureStaticCredentials.AccessKey",
    AzureSasToken: "AzureStaticCredentials.SasToken",
    AzureBearerToken: "AzureStaticCredentials.BearerToken",
    AzureAnonymous: "AzureCredentials.Anonymous",
    AzureFromEnv: "AzureCredentials.FromEnv",
    AzureStatic: "AzureCredentials.Static",
    AzureRefreshable: "AzureCredentials.Refreshable",
    S3Access: "Credentials.S3",
    GcsAccess: "Credentials.Gcs",
    AzureAccess: "Credentials.Azure",
    _LocalFileSystemAccess: "Credentials.LocalFileSystemAccess",
    _HttpAccess: "Credentials.HttpAccess",
    AccessAt: "Credentials.At",
}
"""The public name of each class, for its repr."""
