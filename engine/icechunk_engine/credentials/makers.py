"""Functions that make credentials, and that authorise virtual chunk containers with them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from datetime import datetime

from icechunk_engine.config import virtual_urls
from icechunk_engine.credentials.types import (
    AccessAt,
    AnyAzureCredential,
    AnyAzureRefreshableCredential,
    AnyAzureStaticCredential,
    AnyCredential,
    AnyGcsCredential,
    AnyGcsStaticCredential,
    AnyS3Credential,
    AzureAccess,
    AzureAccessKey,
    AzureAnonymous,
    AzureBearerToken,
    AzureFromEnv,
    AzureRefreshable,
    AzureSasToken,
    AzureStatic,
    ContainerCredential,
    GcsAccess,
    GcsAnonymous,
    GcsApplicationCredentials,
    GcsBearerCredential,
    GcsBearerToken,
    GcsFromEnv,
    GcsRefreshable,
    GcsServiceAccount,
    GcsServiceAccountKey,
    GcsStatic,
    S3Access,
    S3Anonymous,
    S3FromEnv,
    S3Refreshable,
    S3Static,
    S3StaticCredentials,
)
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe, official_class


def _conflicting(function: str, advice: str) -> InvalidInputError:
    return InvalidInputError(f"Conflicting arguments to {function} function: {advice}", ErrorKind.INVALID_CREDENTIALS)


def _described(credential: object) -> str:
    # Do not use repr, which might show a secret.
    return describe(credential) if official_class(credential) else f"a {type(credential).__name__}"


def as_container_credential(credential: ContainerCredential | None) -> AnyCredential | None:
    """Convert any credential to one for a container. None stays None.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``.
    """
    if credential is None or isinstance(credential, AnyCredential):
        return credential
    if isinstance(credential, AnyS3Credential):
        return S3Access(credential)
    if isinstance(credential, AnyGcsCredential):
        return GcsAccess(credential)
    if isinstance(credential, AnyAzureCredential):
        return AzureAccess(credential)
    raise InvalidInputError(
        f"{_described(credential)} is not a credential; use s3_credentials(), gcs_credentials(), azure_credentials(), "
        f"LocalFileSystemAccess or HttpAccess",
        ErrorKind.INVALID_CREDENTIALS,
    )


def access_at(credential: ContainerCredential, *places: str) -> AccessAt:
    """Allow a credential of a virtual chunk container at other places, outside the container's URL prefix.

    The stored configuration of a repository can send requests to another endpoint, a web server can redirect to
    another host, and a symbolic link can lead to another folder. Such a place is used only if you name it.

    Parameters
    ----------
    credential
        Credential as in ``authorize_virtual_chunk_access``.
    places
        ``https://host`` or ``https://host:port`` for servers, ``file:///folder/`` for folders.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``: no place is given, or a place is neither kind of URL.

    Examples
    --------
    >>> access_at(s3_anonymous_credentials(), "https://minio.example:9000").places
    ('https://minio.example:9000',)
    """
    access = as_container_credential(credential)
    if isinstance(access, AccessAt):
        places = (*access.places, *places)
        access = access.access
    if access is None or not places:
        raise InvalidInputError(
            "access_at needs a credential and at least one place, e.g. "
            "access_at(s3_from_env_credentials(), 'https://minio.example:9000')",
            ErrorKind.INVALID_CREDENTIALS,
        )
    return AccessAt(access, tuple(dict.fromkeys(map(_canonical_place, places))))


def _canonical_place(place: str) -> str:
    if not isinstance(place, str):
        raise TypeError(f"a place must be a URL string, not {place!r}")
    try:
        if virtual_urls.scheme_of(place) == "file":
            return virtual_urls.normalize(virtual_urls.with_trailing_slash(place))
        return virtual_urls.origin_of(place)
    except ValueError as error:
        raise InvalidInputError(
            f"access_at: {place!r} is not a valid place: {error}", ErrorKind.INVALID_CREDENTIALS
        ) from None


def containers_credentials(m: Mapping[str, ContainerCredential | None]) -> dict[str, AnyCredential | None]:
    """Return credentials for virtual chunk containers by URL prefix.

    Examples
    --------
    >>> containers_credentials({"s3://bucket/": s3_anonymous_credentials(), "file:///data/": LocalFileSystemAccess})
    {'s3://bucket/': Credentials.S3(S3Credentials.Anonymous()), 'file:///data/': Credentials.LocalFileSystemAccess()}
    """
    return {prefix: as_container_credential(credential) for prefix, credential in m.items()}


def s3_refreshable_credentials(
    get_credentials: Callable[[], S3StaticCredentials], scatter_initial_credentials: bool = False
) -> S3Refreshable:
    """Return credentials from a picklable function, which is called again when they expire.

    With ``scatter_initial_credentials=True``, the function is also called now. Its result travels with pickled
    sessions, so that workers do not all call the function at the same time.
    """
    current = get_credentials() if scatter_initial_credentials else None
    return S3Refreshable(pickle.dumps(get_credentials), current)


def s3_static_credentials(
    *,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None = None,
    expires_after: datetime | None = None,
) -> S3Static:
    """Return a key pair, with an optional session token."""
    return S3Static(S3StaticCredentials(access_key_id, secret_access_key, session_token, expires_after))


def s3_anonymous_credentials() -> S3Anonymous:
    """Send unsigned requests."""
    return S3Anonymous()


def s3_from_env_credentials() -> S3FromEnv:
    """Use the credentials that the process finds in the environment, a profile, or instance metadata."""
    return S3FromEnv()


def s3_credentials(
    *,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
) -> AnyS3Credential:
    """Return credentials for S3: a key pair, ``anonymous`` or ``get_credentials``. The default is the environment.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``: the arguments mix several kinds of credentials.
    """
    has_keys = any(part is not None for part in (access_key_id, secret_access_key, session_token, expires_after))
    ways = [has_keys, bool(anonymous), get_credentials is not None, bool(from_env)]
    if sum(ways) <= 1:
        if access_key_id and secret_access_key:
            return s3_static_credentials(
                access_key_id=access_key_id,
                secret_access_key=secret_access_key,
                session_token=session_token,
                expires_after=expires_after,
            )
        if anonymous:
            return s3_anonymous_credentials()
        if get_credentials is not None:
            return s3_refreshable_credentials(get_credentials, scatter_initial_credentials)
        if not has_keys and from_env is not False:
            return s3_from_env_credentials()
    raise _conflicting(
        "s3_credentials",
        "give access_key_id and secret_access_key, or anonymous=True, or get_credentials, or from_env=True",
    )


def gcs_static_credentials(
    *,
    service_account_file: str | None = None,
    service_account_key: str | None = None,
    application_credentials: str | None = None,
    bearer_token: str | None = None,
) -> AnyGcsStaticCredential:
    """Return static credentials: a service account (file or key), application credentials, or a token."""
    given: list[AnyGcsStaticCredential] = []
    if service_account_file is not None:
        given.append(GcsServiceAccount(service_account_file))
    if service_account_key is not None:
        given.append(GcsServiceAccountKey(service_account_key))
    if application_credentials is not None:
        given.append(GcsApplicationCredentials(application_credentials))
    if bearer_token is not None:
        given.append(GcsBearerToken(bearer_token))
    if len(given) != 1:
        raise _conflicting("gcs_static_credentials", "give exactly one")
    return given[0]


def gcs_refreshable_credentials(
    get_credentials: Callable[[], GcsBearerCredential], scatter_initial_credentials: bool = False
) -> GcsRefreshable:
    """Return credentials from a picklable function. See :func:`s3_refreshable_credentials`."""
    current = get_credentials() if scatter_initial_credentials else None
    return GcsRefreshable(pickle.dumps(get_credentials), current)


def gcs_anonymous_credentials() -> GcsAnonymous:
    """Send unsigned requests."""
    return GcsAnonymous()


def gcs_from_env_credentials() -> GcsFromEnv:
    """Use the credentials that the process finds."""
    return GcsFromEnv()


def gcs_credentials(
    *,
    service_account_file: str | None = None,
    service_account_key: str | None = None,
    application_credentials: str | None = None,
    bearer_token: str | None = None,
    from_env: bool | None = None,
    anonymous: bool | None = None,
    get_credentials: Callable[[], GcsBearerCredential] | None = None,
    scatter_initial_credentials: bool = False,
) -> AnyGcsCredential:
    """Return credentials for Google Cloud Storage. The default is the environment.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``: the arguments mix several kinds of credentials.
    """
    static = (service_account_file, service_account_key, application_credentials, bearer_token)
    has_static = any(part is not None for part in static)
    ways = [has_static, bool(anonymous), get_credentials is not None, bool(from_env)]
    if sum(ways) <= 1:
        if has_static:
            return GcsStatic(
                gcs_static_credentials(
                    service_account_file=service_account_file,
                    service_account_key=service_account_key,
                    application_credentials=application_credentials,
                    bearer_token=bearer_token,
                )
            )
        if anonymous:
            return gcs_anonymous_credentials()
        if get_credentials is not None:
            return gcs_refreshable_credentials(get_credentials, scatter_initial_credentials)
        if from_env is not False:
            return gcs_from_env_credentials()
    raise _conflicting(
        "gcs_credentials", "give one static credential, or anonymous=True, or get_credentials, or from_env=True"
    )


def azure_static_credentials(
    *, access_key: str | None = None, sas_token: str | None = None, bearer_token: str | None = None
) -> AnyAzureStaticCredential:
    """Return static credentials: an account key, a shared access signature, or a token."""
    given: list[AnyAzureStaticCredential] = []
    if access_key is not None:
        given.append(AzureAccessKey(access_key))
    if sas_token is not None:
        given.append(AzureSasToken(sas_token))
    if bearer_token is not None:
        given.append(AzureBearerToken(bearer_token))
    if len(given) != 1:
        raise _conflicting("azure_static_credentials", "give exactly one")
    return given[0]


def azure_refreshable_credentials(
    get_credentials: Callable[[], AnyAzureRefreshableCredential], scatter_initial_credentials: bool = False
) -> AzureRefreshable:
    """Return credentials from a picklable function. See :func:`s3_refreshable_credentials`."""
    current = get_credentials() if scatter_initial_credentials else None
    return AzureRefreshable(pickle.dumps(get_credentials), current)


def azure_from_env_credentials() -> AzureFromEnv:
    """Use the credentials that the process finds."""
    return AzureFromEnv()


def azure_anonymous_credentials() -> AzureAnonymous:
    """Send unsigned requests."""
    return AzureAnonymous()


def azure_credentials(
    *,
    access_key: str | None = None,
    sas_token: str | None = None,
    bearer_token: str | None = None,
    from_env: bool | None = None,
    anonymous: bool | None = None,
    get_credentials: Callable[[], AnyAzureRefreshableCredential] | None = None,
    scatter_initial_credentials: bool = False,
) -> AnyAzureCredential:
    """Return credentials for Azure Blob Storage. The default is the environment.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials``: the arguments mix several kinds of credentials.
    """
    has_static = any(part is not None for part in (access_key, sas_token, bearer_token))
    ways = [has_static, bool(anonymous), get_credentials is not None, bool(from_env)]
    if sum(ways) <= 1:
        if has_static:
            return AzureStatic(
                azure_static_credentials(access_key=access_key, sas_token=sas_token, bearer_token=bearer_token)
            )
        if anonymous:
            return azure_anonymous_credentials()
        if get_credentials is not None:
            return azure_refreshable_credentials(get_credentials, scatter_initial_credentials)
        if from_env is not False:
            return azure_from_env_credentials()
    raise _conflicting(
        "azure_credentials", "give one static credential, or anonymous=True, or get_credentials, or from_env=True"
    )
