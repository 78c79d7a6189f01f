"""Storages in object stores and on web servers from keyword arguments, with official's names and parameters.

None of these functions makes a request. All storages can be pickled, static credentials included. Credentials of the
environment are looked up where the storage is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from icechunk_engine.config import ChecksumAlgorithm, S3Options
from icechunk_engine.credentials import azure_credentials, gcs_credentials, s3_credentials
from icechunk_engine.credentials.types import GcsBearerCredential, S3StaticCredentials
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
    """Return a storage in a bucket of S3 or of a compatible store.

    Parameters
    ----------
    bucket, prefix
        The bucket, and the directory of the repository in it.
    region, endpoint_url, allow_http
        Of the store. The default endpoint is ``AWS_ENDPOINT_URL``, else that of the AWS profile, else Amazon's. The
        default region is that of the environment, else of the profile.
    access_key_id, secret_access_key, session_token, expires_after, anonymous, from_env
        As for :func:`s3_credentials`. Default: the environment, else ``~/.aws/credentials``.
    get_credentials, scatter_initial_credentials
        As for :func:`s3_refreshable_credentials`.
    force_path_style
        Has no effect: requests are always path style.
    network_stream_timeout_seconds
        A request fails after this many seconds without a byte; 0 for never.
    requester_pays
        You pay for the requests.
    checksum_algorithm
        Only ``Sha256`` is supported.
    legacy_rooted_keys
        True (keys that begin with ``/``) is not supported.
    read_headers, write_headers, headers
        HTTP headers for requests that read, for those that write, and for all. The only supported headers that need
        signing (``x-amz-…``) are those of server-side encryption and requester pays.

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
    """Return the same as :func:`s3_storage`. Official has two different clients for them."""
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
    """Return a storage in Cloudflare R2.

    Pass ``account_id`` or ``endpoint_url``. The other parameters are those of :func:`s3_storage`.
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
    """Return a storage in Tigris. Parameters that are not listed are those of :func:`s3_storage`.

    Parameters
    ----------
    use_weak_consistency
        Read from the nearest region, which may not have the newest objects. The storage is then read-only.
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
    """Raise InvalidInputError: Hugging Face buckets are not supported. The error says what to do instead."""
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
    """Return a storage in a bucket of Google Cloud Storage.

    Parameters
    ----------
    bucket, prefix
        The bucket, and the directory of the repository in it.
    service_account_file, service_account_key, application_credentials, bearer_token, anonymous, from_env
        As for :func:`gcs_credentials`. Default: the environment.
    get_credentials, scatter_initial_credentials
        As for :func:`gcs_refreshable_credentials`.
    config
        Options of the client, under object_store's names.
    read_headers, write_headers, headers
        HTTP headers for requests that read, for those that write, and for all.
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
    """Return a storage in a container of Azure Blob Storage.

    Parameters
    ----------
    account, container, prefix
        The account, the container, and the directory of the repository in it.
    access_key, sas_token, bearer_token, from_env, anonymous
        As for :func:`azure_credentials`. Default: the environment.
    config
        Options of the client, under object_store's names.
    """
    credential = azure_credentials(
        access_key=access_key, sas_token=sas_token, bearer_token=bearer_token, from_env=from_env, anonymous=anonymous
    )
    return new_azure_blob(account, container, prefix, credential, config=config)


def http_storage(base_url: str, opts: Mapping[str, str] | None = None, headers: Headers | None = None) -> Storage:
    """Return a read-only storage on a web server that supports byte ranges.

    Parameters
    ----------
    base_url
        URL of the directory of the repository.
    opts
        Transport options, under object_store's names.
    headers
        Sent with every request. If the server redirects to another host, that host gets them too, except
        ``Authorization`` and ``Cookie``.
    """
    return new_http(base_url, opts, headers)
