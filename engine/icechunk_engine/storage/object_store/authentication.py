"""From our credentials to what obstore asks for: options, or a function that it calls for fresh ones.

Refreshable credentials are asked for once a process and expiry, whatever number of storages and copies use them.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

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
from icechunk_engine.storage.object_store.buckets import AnyStoreCredential, StoreKind

Provider = Callable[[], dict[str, Any]]

_EARLY = timedelta(minutes=1)

# Without it the client asks the metadata server of a Google machine, for minutes where there is none.
_NO_GCS_ACCOUNT = (
    '{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": "", "gcs_base_url": %s}'
)


@dataclass(frozen=True, slots=True)
class Access:
    """How a client authenticates."""

    options: dict[str, Any]
    provider: Provider | None = None


def access(kind: StoreKind, credential: AnyStoreCredential | None, options: dict[str, Any]) -> Access:
    """Options to add to ``options``, and the function to call for credentials."""
    match credential:
        case S3Anonymous() | AzureAnonymous():
            return Access({"skip_signature": True})
        case GcsAnonymous():
            base = options.get("base_url", "https://storage.googleapis.com")
            return Access({"skip_signature": True, "service_account_key": _NO_GCS_ACCOUNT % json.dumps(base)})
        case S3Static(keys):
            # By a function, because keys given as options are completed from the environment (a session token there).
            return Access({}, Constant(_s3(keys)))
        case GcsStatic(GcsServiceAccount(path)):
            return Access({"service_account": path})
        case GcsStatic(GcsServiceAccountKey(key)):
            return Access({"service_account_key": key})
        case GcsStatic(GcsApplicationCredentials(path)):
            return Access({"application_credentials": path})
        case GcsStatic(GcsBearerToken(token)) | AzureStatic(AzureBearerToken(token)):
            return Access({}, Constant({"token": token, "expires_at": None}))
        case AzureStatic(AzureAccessKey(key)):
            return Access({"account_key": key})
        case AzureStatic(AzureSasToken(token)):
            return Access({"sas_key": token.removeprefix("?")})
        case S3Refreshable():
            return Access({}, Refreshing(credential, _s3))
        case GcsRefreshable():
            return Access({}, Refreshing(credential, _gcs))
        case AzureRefreshable():
            return Access({}, Refreshing(credential, _azure))
    if kind is StoreKind.S3 and "AWS_ACCESS_KEY_ID" not in os.environ:
        # The client itself knows the environment and machines, but not profiles.
        profile = default_profile()
        written = written_keys(profile) if profile is not None else None
        if written is not None:
            return Access({}, Constant(_s3(written)))
        if profile is not None:
            return Access({}, Refreshing(S3Refreshable(pickle.dumps(FromProfile(profile))), _s3))
    return Access({})


@dataclass(frozen=True, slots=True)
class Constant:
    """Gives the same credentials for ever."""

    credentials: dict[str, Any]

    def __call__(self) -> dict[str, Any]:
        return self.credentials


@dataclass(frozen=True, slots=True)
class Refreshing:
    """Calls the user's function when what it returned last expires."""

    credential: S3Refreshable | GcsRefreshable | AzureRefreshable
    convert: Callable[[Any], dict[str, Any]]

    def __call__(self) -> dict[str, Any]:
        return self.convert(_CALLED.current(self.credential.pickled_function, self.credential.current))


class _Called:
    """What users' functions returned, by their pickled form; shared by the process."""

    def __init__(self) -> None:
        self._returned: SharedLoads[bytes, tuple[Any, datetime | None]] = SharedLoads(0)

    def current(self, pickled: bytes, scattered: Any) -> Any:
        """What the function returned last, or what came with its pickle, if it has not expired; else a call's result.

        Threads that need new credentials at the same time wait for the first one's call, a while: these are tasks of
        a pool, and the user's function may need that pool.
        """
        known = self._returned.get(pickled) or (scattered, _stale_at(scattered))
        credentials, stale_at = known
        if credentials is not None and (stale_at is None or datetime.now(UTC) < stale_at):
            return credentials
        self._returned.drop(pickled, known)
        return self._returned.load(pickled, _call, patience_s=_PATIENCE_S)[0]


def _call(pickled: bytes) -> tuple[tuple[Any, datetime | None], int]:
    credentials = pickle.loads(pickled)()
    return (credentials, _stale_at(credentials)), 0


_CALLED = _Called()
_PATIENCE_S = 10.0


def _stale_at(credentials: Any) -> datetime | None:
    """A little before the expiry: a tenth of the time that is left, a minute at most."""
    expires = _utc(getattr(credentials, "expires_after", None))
    if expires is None:
        return None
    return expires - max(timedelta(), min(_EARLY, (expires - datetime.now(UTC)) / 10))


def _utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time


def _s3(credentials: Any) -> dict[str, Any]:
    if not hasattr(credentials, "secret_access_key"):
        raise _wrong(credentials, "S3StaticCredentials")
    return {
        "access_key_id": credentials.access_key_id,
        "secret_access_key": credentials.secret_access_key,
        "token": credentials.session_token,
        "expires_at": _utc(credentials.expires_after),
    }


def _gcs(credentials: Any) -> dict[str, Any]:
    if not hasattr(credentials, "bearer"):
        raise _wrong(credentials, "GcsBearerCredential")
    return {"token": credentials.bearer, "expires_at": _utc(credentials.expires_after)}


def _azure(credentials: Any) -> dict[str, Any]:
    expires_at = {"expires_at": _utc(getattr(credentials, "expires_after", None))}
    if isinstance(credentials, AzureRefreshableAccessKey | AzureAccessKey):
        return {"access_key": credentials.key, **expires_at}
    if isinstance(credentials, AzureRefreshableSasToken | AzureSasToken):
        return {"sas_token": credentials.token.removeprefix("?"), **expires_at}
    token = getattr(credentials, "bearer", None) or getattr(credentials, "token", None)
    if token is None:
        raise _wrong(credentials, "AzureRefreshableCredential")
    return {"token": token, **expires_at}


def _wrong(credentials: Any, wanted: str) -> InvalidInputError:
    return InvalidInputError(
        f"get_credentials returned a {type(credentials).__name__}; it must return {wanted}",
        ErrorKind.INVALID_CREDENTIALS,
    )
