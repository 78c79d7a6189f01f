"""How a client authenticates: from our credentials to the options of obstore, or to a function that it calls.

**What is always true.** A user's function that returns fresh credentials is called once for each expiry in a process,
no matter how many storages and copies of them use it. Threads that need credentials at the same time wait for the
first call, but not for ever: they are tasks of a pool, and the user's function may need that pool itself.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from icechunk_engine._runtime.shared_loads import SharedLoads
from icechunk_engine.credentials.types import (
    AzureAccessKey,
    AzureAnonymous,
    AzureBearerToken,
    AzureRefreshable,
    AzureRefreshableAccessKey,
    AzureRefreshableSasToken,
    AzureSasToken,
    AzureStatic,
    GcsAnonymous,
    GcsApplicationCredentials,
    GcsBearerToken,
    GcsRefreshable,
    GcsServiceAccount,
    GcsServiceAccountKey,
    GcsStatic,
    S3Anonymous,
    S3Refreshable,
    S3Static,
)
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.storage.object_store.aws_profiles import FromProfile, default_profile, written_keys
from icechunk_engine.storage.object_store.buckets import AnyStoreCredential

if TYPE_CHECKING:
    from icechunk_engine.storage.object_store.obstore_types import AzureCredential, GCSCredential, S3Credential

_EARLY = timedelta(minutes=1)

# Without it, the client asks the metadata server of a Google machine: for minutes, if there is none.
_NO_GCS_ACCOUNT = (
    '{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": "", "gcs_base_url": %s}'
)


@dataclass(frozen=True, slots=True)
class Access[C]:
    """How a client authenticates: options to add to its own, or a function to call for credentials."""

    options: dict[str, str | bool] = field(default_factory=dict)
    provider: Callable[[], C] | None = None


def s3_access(credential: AnyStoreCredential | None) -> Access[S3Credential]:
    """Return how to authenticate at S3; without a credential, as the environment and AWS's profiles say."""
    match credential:
        case S3Anonymous():
            return Access({"skip_signature": True})
        case S3Static(keys):
            # A function, because obstore completes keys given as options from the environment (a session token there).
            return Access(provider=Constant(_s3(keys)))
        case S3Refreshable():
            return Access(provider=Refreshing(credential, _s3))
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return Access()
    # The client itself knows the environment and machines of the cloud, but not profiles.
    profile = default_profile()
    if profile is None:
        return Access()
    written = written_keys(profile)
    if written is not None:
        return Access(provider=Constant(_s3(written)))
    return Access(provider=Refreshing(S3Refreshable(pickle.dumps(FromProfile(profile))), _s3))


def gcs_access(credential: AnyStoreCredential | None, base_url: str) -> Access[GCSCredential]:
    """Return how to authenticate at Google Cloud Storage; without a credential, as the environment says."""
    match credential:
        case GcsAnonymous():
            return Access({"skip_signature": True, "service_account_key": _NO_GCS_ACCOUNT % json.dumps(base_url)})
        case GcsStatic(GcsServiceAccount(path)):
            return Access({"service_account": path})
        case GcsStatic(GcsServiceAccountKey(key)):
            return Access({"service_account_key": key})
        case GcsStatic(GcsApplicationCredentials(path)):
            return Access({"application_credentials": path})
        case GcsStatic(GcsBearerToken(token)):
            bearer: GCSCredential = {"token": token, "expires_at": None}
            return Access(provider=Constant(bearer))
        case GcsRefreshable():
            return Access(provider=Refreshing(credential, _gcs))
    return Access()


def azure_access(credential: AnyStoreCredential | None) -> Access[AzureCredential]:
    """Return how to authenticate at Azure; without a credential, as the environment says."""
    match credential:
        case AzureAnonymous():
            return Access({"skip_signature": True})
        case AzureStatic(AzureBearerToken(token)):
            bearer: AzureCredential = {"token": token, "expires_at": None}
            return Access(provider=Constant(bearer))
        case AzureStatic(AzureAccessKey(key)):
            return Access({"account_key": key})
        case AzureStatic(AzureSasToken(token)):
            return Access({"sas_key": token.removeprefix("?")})
        case AzureRefreshable():
            return Access(provider=Refreshing(credential, _azure))
    return Access()


@dataclass(frozen=True, slots=True)
class Constant[C]:
    """Returns the same credentials for ever."""

    credentials: C

    def __call__(self) -> C:
        return self.credentials


@dataclass(frozen=True, slots=True)
class Refreshing[C]:
    """Calls the user's function when the credentials that it returned last expire."""

    credential: S3Refreshable | GcsRefreshable | AzureRefreshable
    convert: Callable[[object], C]

    def __call__(self) -> C:
        return self.convert(_RETURNED.current(self.credential.pickled_function, self.credential.current))


class _ReturnedCredentials:
    """Last results of users' functions, by the pickled form of the function. The process shares them."""

    def __init__(self) -> None:
        self._returned: SharedLoads[bytes, tuple[object, datetime | None]] = SharedLoads(0)

    def current(self, pickled: bytes, scattered: object) -> object:
        """Return what the function returned last, or what came with its pickle; if that has expired, call it."""
        known = self._returned.get(pickled) or (scattered, _stale_at(scattered))
        credentials, stale_at = known
        if credentials is not None and (stale_at is None or datetime.now(UTC) < stale_at):
            return credentials
        self._returned.drop(pickled, known)
        return self._returned.load(pickled, _call, patience_s=_PATIENCE_S)[0]


def _call(pickled: bytes) -> tuple[tuple[object, datetime | None], int]:
    credentials: object = pickle.loads(pickled)()
    return (credentials, _stale_at(credentials)), 0


_RETURNED = _ReturnedCredentials()
_PATIENCE_S = 10.0


def _stale_at(credentials: object) -> datetime | None:
    """Return a time shortly before the expiry: a tenth of the time that is left, a minute at most."""
    expires = _expiry(credentials)
    if expires is None:
        return None
    return expires - max(timedelta(), min(_EARLY, (expires - datetime.now(UTC)) / 10))


def _expiry(credentials: object) -> datetime | None:
    time: datetime | None = getattr(credentials, "expires_after", None)
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


# Users' functions may return objects of the official package, which have the same attributes as ours.


@runtime_checkable
class _Keys(Protocol):
    access_key_id: str
    secret_access_key: str
    session_token: str | None


@runtime_checkable
class _Bearer(Protocol):
    bearer: str


@runtime_checkable
class _Token(Protocol):
    token: str


def _s3(credentials: object) -> S3Credential:
    if not isinstance(credentials, _Keys):
        raise _wrong(credentials, "S3StaticCredentials")
    return {
        "access_key_id": credentials.access_key_id,
        "secret_access_key": credentials.secret_access_key,
        "token": credentials.session_token,
        "expires_at": _expiry(credentials),
    }


def _gcs(credentials: object) -> GCSCredential:
    if not isinstance(credentials, _Bearer):
        raise _wrong(credentials, "GcsBearerCredential")
    return {"token": credentials.bearer, "expires_at": _expiry(credentials)}


def _azure(credentials: object) -> AzureCredential:
    expires_at = _expiry(credentials)
    if isinstance(credentials, AzureRefreshableAccessKey | AzureAccessKey):
        return {"access_key": credentials.key, "expires_at": expires_at}
    if isinstance(credentials, AzureRefreshableSasToken | AzureSasToken):
        return {"sas_token": credentials.token.removeprefix("?"), "expires_at": expires_at}
    if isinstance(credentials, _Bearer):
        return {"token": credentials.bearer, "expires_at": expires_at}
    if isinstance(credentials, _Token):
        return {"token": credentials.token, "expires_at": expires_at}
    raise _wrong(credentials, "AzureRefreshableCredential")


def _wrong(credentials: object, wanted: str) -> InvalidInputError:
    return InvalidInputError(
        f"get_credentials returned a {type(credentials).__name__}; it must return {wanted}",
        ErrorKind.INVALID_CREDENTIALS,
    )
