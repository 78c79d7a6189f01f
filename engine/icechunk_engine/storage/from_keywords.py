"""Constructors of storages in object stores and on web servers, named and called as official's.

None makes a request, but :func:`redirect_storage`. All storages pickle, static credentials included; those from the
environment are looked up where the storage is used.
"""

from __future__ import annotations

import base64
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime
from http.client import HTTPException
from typing import Any

from icechunk_engine.config import ChecksumAlgorithm, S3Options
from icechunk_engine.credentials import azure_credentials, gcs_credentials, s3_credentials
from icechunk_engine.credentials.types import GcsBearerCredential, S3StaticCredentials
from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.from_credentials import (
    Headers,
    new_azure_blob,
    new_gcs,
    new_hf,
    new_http,
    new_r2,
    new_s3,
    new_tigris,
)
from icechunk_engine.storage.wrappers import ReadOnlyStorage

_MAX_REDIRECTS = 10


def s3_storage(
    *,
    bucket: str,
    prefix: str | None,
    region: str | None = None,
    endpoint_url: str | None = None,
    allow_http: bool = False,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
    force_path_style: bool = False,
    network_stream_timeout_seconds: int = 60,
    requester_pays: bool = False,
    checksum_algorithm: ChecksumAlgorithm | None = None,
    legacy_rooted_keys: bool | None = None,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """A storage in a bucket of S3, or of a store with its interface.

    Parameters
    ----------
    bucket, prefix
        Where; the prefix is the repository's directory.
    region, endpoint_url, allow_http
        Of the store. Without an endpoint that of ``AWS_ENDPOINT_URL`` is taken, then the AWS profile's, then Amazon's;
        without a region that of the environment or the profile.
    access_key_id, secret_access_key, session_token, expires_after, anonymous, from_env
        As for :func:`s3_credentials`; from the environment or ``~/.aws/credentials`` when nothing is given.
    get_credentials, scatter_initial_credentials
        As for :func:`s3_refreshable_credentials`.
    force_path_style
        Accepted; requests are path style always.
    network_stream_timeout_seconds
        Give up a request after so long a silence; 0 for never.
    requester_pays
        You pay for the requests.
    checksum_algorithm
        Only ``Sha256`` is supported.
    legacy_rooted_keys
        True (keys that begin with ``/``) is not supported.
    read_headers, write_headers, headers
        HTTP headers for requests that read, that write, and for all. Of those that need signing (``x-amz-…``) only
        the ones of server-side encryption and requester pays.

    Raises
    ------
    InvalidInputError
        ``storage-config``, ``invalid-credentials``.
    """
    credential = s3_credentials(
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        session_token=session_token,
        expires_after=expires_after,
        anonymous=anonymous,
        from_env=from_env,
        get_credentials=get_credentials,
        scatter_initial_credentials=scatter_initial_credentials,
    )
    options = S3Options(
        region=region,
        endpoint_url=endpoint_url,
        allow_http=allow_http,
        anonymous=bool(anonymous),
        force_path_style=force_path_style,
        network_stream_timeout_seconds=network_stream_timeout_seconds,
        requester_pays=requester_pays,
        checksum_algorithm=checksum_algorithm,
    )
    return new_s3(
        options,
        bucket,
        prefix,
        credential,
        legacy_rooted_keys,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def s3_object_store_storage(
    *,
    bucket: str,
    prefix: str | None,
    region: str | None = None,
    endpoint_url: str | None = None,
    allow_http: bool = False,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    force_path_style: bool = False,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """The same as :func:`s3_storage`, which official serves by two different clients."""
    return s3_storage(
        bucket=bucket,
        prefix=prefix,
        region=region,
        endpoint_url=endpoint_url,
        allow_http=allow_http,
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        session_token=session_token,
        expires_after=expires_after,
        anonymous=anonymous,
        from_env=from_env,
        force_path_style=force_path_style,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def r2_storage(
    *,
    bucket: str | None = None,
    prefix: str | None = None,
    account_id: str | None = None,
    endpoint_url: str | None = None,
    region: str | None = None,
    allow_http: bool = False,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
    network_stream_timeout_seconds: int = 60,
    checksum_algorithm: ChecksumAlgorithm | None = None,
    legacy_rooted_keys: bool | None = None,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """A storage in Cloudflare R2: ``account_id`` or ``endpoint_url``, the rest as for :func:`s3_storage`."""
    credential = s3_credentials(
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        session_token=session_token,
        expires_after=expires_after,
        anonymous=anonymous,
        from_env=from_env,
        get_credentials=get_credentials,
        scatter_initial_credentials=scatter_initial_credentials,
    )
    options = S3Options(
        region=region,
        endpoint_url=endpoint_url,
        allow_http=allow_http,
        anonymous=bool(anonymous),
        network_stream_timeout_seconds=network_stream_timeout_seconds,
        checksum_algorithm=checksum_algorithm,
    )
    return new_r2(
        options,
        bucket,
        prefix,
        account_id,
        credential,
        legacy_rooted_keys,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def tigris_storage(
    *,
    bucket: str,
    prefix: str | None,
    region: str | None = None,
    endpoint_url: str | None = None,
    use_weak_consistency: bool = False,
    allow_http: bool = False,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
    network_stream_timeout_seconds: int = 60,
    checksum_algorithm: ChecksumAlgorithm | None = None,
    legacy_rooted_keys: bool | None = None,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """A storage in Tigris; parameters as for :func:`s3_storage`.

    Parameters
    ----------
    use_weak_consistency
        Read from the nearest region, which may not have the newest objects; the storage is then read-only.
    """
    credential = s3_credentials(
        access_key_id=access_key_id,
        secret_access_key=secret_access_key,
        session_token=session_token,
        expires_after=expires_after,
        anonymous=anonymous,
        from_env=from_env,
        get_credentials=get_credentials,
        scatter_initial_credentials=scatter_initial_credentials,
    )
    options = S3Options(
        region=region,
        endpoint_url=endpoint_url,
        allow_http=allow_http,
        anonymous=bool(anonymous),
        network_stream_timeout_seconds=network_stream_timeout_seconds,
        checksum_algorithm=checksum_algorithm,
    )
    return new_tigris(
        options,
        bucket,
        prefix,
        use_weak_consistency,
        credential,
        legacy_rooted_keys,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def hf_storage(
    *,
    bucket: str,
    prefix: str | None,
    namespace: str,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    expires_after: datetime | None = None,
    from_env: bool | None = None,
    get_credentials: Callable[[], S3StaticCredentials] | None = None,
    scatter_initial_credentials: bool = False,
    network_stream_timeout_seconds: int = 60,
    legacy_rooted_keys: bool | None = None,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """Hugging Face buckets are not supported; raises InvalidInputError with what to do instead."""
    return new_hf(S3Options(), bucket, prefix, namespace)


def gcs_storage(
    *,
    bucket: str,
    prefix: str | None,
    service_account_file: str | None = None,
    service_account_key: str | None = None,
    application_credentials: str | None = None,
    bearer_token: str | None = None,
    anonymous: bool | None = None,
    from_env: bool | None = None,
    config: Mapping[str, str] | None = None,
    get_credentials: Callable[[], GcsBearerCredential] | None = None,
    scatter_initial_credentials: bool = False,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """A storage in a bucket of Google Cloud Storage.

    Parameters
    ----------
    bucket, prefix
        Where; the prefix is the repository's directory.
    service_account_file, service_account_key, application_credentials, bearer_token, anonymous, from_env
        As for :func:`gcs_credentials`; from the environment when nothing is given.
    get_credentials, scatter_initial_credentials
        As for :func:`gcs_refreshable_credentials`.
    config
        Options of the client, by object_store's names.
    read_headers, write_headers, headers
        HTTP headers for requests that read, that write, and for all.
    """
    credential = gcs_credentials(
        service_account_file=service_account_file,
        service_account_key=service_account_key,
        application_credentials=application_credentials,
        bearer_token=bearer_token,
        from_env=from_env,
        anonymous=anonymous,
        get_credentials=get_credentials,
        scatter_initial_credentials=scatter_initial_credentials,
    )
    return new_gcs(
        bucket,
        prefix,
        credential,
        config=config,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def azure_storage(
    *,
    account: str,
    container: str,
    prefix: str,
    access_key: str | None = None,
    sas_token: str | None = None,
    bearer_token: str | None = None,
    from_env: bool | None = None,
    anonymous: bool | None = None,
    config: Mapping[str, str] | None = None,
) -> Storage:
    """A storage in a container of Azure Blob Storage.

    Parameters
    ----------
    account, container, prefix
        Where; the prefix is the repository's directory.
    access_key, sas_token, bearer_token, from_env, anonymous
        As for :func:`azure_credentials`; from the environment when nothing is given.
    config
        Options of the client, by object_store's names.
    """
    credential = azure_credentials(
        access_key=access_key, sas_token=sas_token, bearer_token=bearer_token, from_env=from_env, anonymous=anonymous
    )
    return new_azure_blob(account, container, prefix, credential, config=config)


def http_storage(base_url: str, opts: Mapping[str, str] | None = None, headers: Headers | None = None) -> Storage:
    """A repository on a web server that honours byte ranges; read-only.

    Parameters
    ----------
    base_url
        Of the repository's directory.
    opts
        Transport options, by object_store's names.
    headers
        Sent with every request; to other hosts too, when the server redirects there, but for ``Authorization`` and
        ``Cookie``.
    """
    return new_http(base_url, opts, headers)


def redirect_storage(base_url: str) -> Storage:
    """The storage that a web server names by an HTTP redirect to its URL; read-only, without credentials.

    The redirects are followed now, ten at most, until one leads to ``s3://bucket/prefix?region=…``, ``gs://``,
    ``gcs://``, ``tigris://`` or ``http(s)+icechunk://``.

    Raises
    ------
    StorageError
        ``bad-redirect``.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    url = base_url
    for _ in range(_MAX_REDIRECTS):
        location = _redirect_of(opener, url)
        target = urllib.parse.urljoin(url, location)
        storage = _storage_of_redirect(target)
        if storage is not None:
            return storage
        url = target
    raise _bad_redirect(base_url, f"more than {_MAX_REDIRECTS} redirects")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _redirect_of(opener: urllib.request.OpenerDirector, url: str) -> str:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _bad_redirect(url, "its kind is not known")
    request = _request_of(url)
    try:
        with opener.open(request, timeout=60) as answer:
            raise _bad_redirect(url, f"the server answered {answer.status}, not a redirect")
    except urllib.error.HTTPError as error:
        location = error.headers.get("Location")
        error.close()
        if not 300 <= error.code < 400 or not location:
            raise _bad_redirect(url, f"the server answered {error.code}, not a redirect") from None
        return str(location)
    except (OSError, HTTPException, ValueError) as error:
        raise _bad_redirect(url, str(error)) from None


def _request_of(url: str) -> urllib.request.Request:
    """A request for a URL, with the login in it as a header, where servers look for it."""
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))
    if at:
        encoded = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def _storage_of_redirect(url: str) -> Storage | None:
    """A storage for the URLs that end a chain of redirects, None for others."""
    parts = urllib.parse.urlsplit(url)
    query = {name: values[-1] for name, values in urllib.parse.parse_qs(parts.query).items()}
    bucket, prefix = parts.netloc, urllib.parse.unquote(parts.path)
    match parts.scheme:
        case "s3":
            if "region" not in query:
                raise _bad_redirect(url, "it names no region, as s3://bucket/prefix?region=… does")
            storage = s3_storage(
                bucket=bucket,
                prefix=prefix,
                region=query["region"],
                endpoint_url=query.get("endpoint_url"),
                anonymous=True,
            )
        case "gs" | "gcs":
            storage = gcs_storage(bucket=bucket, prefix=prefix, anonymous=True)
        case "tigris":
            storage = tigris_storage(bucket=bucket, prefix=prefix, anonymous=True, use_weak_consistency=True)
        case "http+icechunk" | "https+icechunk" | "http+ic" | "https+ic":
            storage = http_storage(f"{parts.scheme.partition('+')[0]}://{parts.netloc}{parts.path}")
        case _:
            return None
    return storage if storage.read_only else ReadOnlyStorage(storage)


def _bad_redirect(url: str, why: str) -> StorageError:
    return StorageError(
        f"{url} leads to no repository: {why}. It must redirect to s3://, gs://, tigris:// or https+icechunk://; or "
        f"open the repository at its own place",
        ErrorKind.BAD_REDIRECT,
    )
