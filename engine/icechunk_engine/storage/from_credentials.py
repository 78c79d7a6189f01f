"""Storages in object stores and on web servers from options and credentials: official's ``Storage.new_…``.

The functions of :mod:`.from_keywords` call these.
"""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Mapping

from icechunk_engine.config import S3Options
from icechunk_engine.credentials import (
    azure_from_env_credentials,
    gcs_from_env_credentials,
    s3_anonymous_credentials,
    s3_from_env_credentials,
)
from icechunk_engine.credentials.types import AnyAzureCredential, AnyGcsCredential, AnyS3Credential
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.object_store.aws_profiles import endpoint_of_profile, region_of_profile
from icechunk_engine.storage.object_store.buckets import (
    azure_bucket,
    gcs_bucket,
    require_text,
    s3_bucket,
    s3_endpoint_of_environment,
    web_server,
)
from icechunk_engine.storage.object_store.storage import ObjectStorage
from icechunk_engine.storage.wrappers import ReadOnlyStorage

Headers = Mapping[str, str]


def new_s3(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """Return what :func:`~icechunk_engine.storage.s3_storage` returns. Default credentials: the environment's."""
    _refuse_rooted_keys(legacy_rooted_keys)
    if credentials is None:
        credentials = s3_anonymous_credentials() if config.anonymous else s3_from_env_credentials()
    endpoint_url, allow_http = config.endpoint_url, config.allow_http
    if endpoint_url is None:
        endpoint_url = s3_endpoint_of_environment() or endpoint_of_profile()
        allow_http = allow_http or endpoint_url is not None
    region = config.region if config.region is not None else region_of_profile()
    place = s3_bucket(
        dataclasses.replace(config, region=region, endpoint_url=endpoint_url, allow_http=allow_http),
        bucket,
        credentials,
        read_headers={**(headers or {}), **(read_headers or {})},
        write_headers={**(headers or {}), **(write_headers or {})},
    )
    return ObjectStorage(place, _prefix(prefix))


def new_s3_object_store(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    credentials: AnyS3Credential | None = None,
    *,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """Return the same as :func:`new_s3`. Official has two different clients for them."""
    return new_s3(
        config, bucket, prefix, credentials, read_headers=read_headers, write_headers=write_headers, headers=headers
    )


def new_r2(
    config: S3Options,
    bucket: str | None = None,
    prefix: str | None = None,
    account_id: str | None = None,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """Return what :func:`~icechunk_engine.storage.r2_storage` returns."""
    endpoint_url = config.endpoint_url
    if endpoint_url is None:
        if account_id is None:
            raise StorageError(
                "Either endpoint_url or account_id must be provided for a storage in R2", ErrorKind.STORAGE_CONFIG
            )
        endpoint_url = f"https://{account_id}.r2.cloudflarestorage.com"
    if bucket is None:  # it is the first part of the prefix, as in R2's own URLs
        bucket, _, prefix = (prefix or "").strip("/").partition("/")
    return new_s3(
        dataclasses.replace(config, endpoint_url=endpoint_url, region=config.region or "auto"),
        bucket,
        prefix,
        credentials,
        legacy_rooted_keys,
        read_headers=read_headers,
        write_headers=write_headers,
        headers=headers,
    )


def new_tigris(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    use_weak_consistency: bool,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """Return what :func:`~icechunk_engine.storage.tigris_storage` returns."""
    reading: dict[str, str] = {}
    writing: dict[str, str] = {}
    if not use_weak_consistency:
        if config.region is None:
            raise InvalidInputError(
                "Tigris is consistent only within one region: pass the region of the bucket, or "
                "use_weak_consistency=True for a read-only storage that may return old objects",
                ErrorKind.STORAGE_CONFIG,
            )
        writing = {"x-tigris-regions": config.region}
        reading = {"x-tigris-regions": config.region, "x-tigris-consistent": "true"}
    endpoint_url = config.endpoint_url or "https://t3.storage.dev"
    storage = new_s3(
        dataclasses.replace(config, region=config.region or "auto", endpoint_url=endpoint_url),
        bucket,
        prefix,
        credentials,
        legacy_rooted_keys,
        read_headers={**reading, **(read_headers or {})},
        write_headers={**writing, **(write_headers or {})},
        headers=headers,
    )
    return ReadOnlyStorage(storage) if use_weak_consistency else storage


def new_hf(
    config: S3Options,
    bucket: str,
    prefix: str | None,
    namespace: str,
    credentials: AnyS3Credential | None = None,
    legacy_rooted_keys: bool | None = None,
    *,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """Raise InvalidInputError: Hugging Face buckets are not supported. The error says what to do instead."""
    raise InvalidInputError(
        f"hf_storage is not supported: the gateway's rules for {namespace}/{bucket} are not known well enough to "
        f"promise safe commits. Use s3_storage with the gateway's endpoint_url at your own risk",
        ErrorKind.STORAGE_CONFIG,
    )


def new_gcs(
    bucket: str,
    prefix: str | None,
    credentials: AnyGcsCredential | None = None,
    *,
    config: Mapping[str, str] | None = None,
    read_headers: Headers | None = None,
    write_headers: Headers | None = None,
    headers: Headers | None = None,
) -> Storage:
    """Return what :func:`~icechunk_engine.storage.gcs_storage` returns. Default credentials: the environment's."""
    place = gcs_bucket(
        bucket,
        gcs_from_env_credentials() if credentials is None else credentials,
        config,
        read_headers={**(headers or {}), **(read_headers or {})},
        write_headers={**(headers or {}), **(write_headers or {})},
    )
    return ObjectStorage(place, _prefix(prefix))


def new_azure_blob(
    account: str,
    container: str,
    prefix: str,
    credentials: AnyAzureCredential | None = None,
    *,
    config: Mapping[str, str] | None = None,
) -> Storage:
    """Return what :func:`~icechunk_engine.storage.azure_storage` returns. Default credentials: the environment's."""
    credential = azure_from_env_credentials() if credentials is None else credentials
    return ObjectStorage(azure_bucket(account, container, credential, config), _prefix(prefix))


def new_http(base_url: str, config: Mapping[str, str] | None = None, headers: Headers | None = None) -> Storage:
    """Return what :func:`~icechunk_engine.storage.http_storage` returns."""
    server = web_server(base_url, config, headers)
    path = urllib.parse.unquote(urllib.parse.urlsplit(base_url).path)
    return ReadOnlyStorage(ObjectStorage(server, _prefix(path)))


def _refuse_rooted_keys(legacy_rooted_keys: bool | None) -> None:
    if legacy_rooted_keys:
        raise InvalidInputError(
            "legacy_rooted_keys=True: keys that begin with '/' are not supported. Copy the repository below a prefix "
            "first",
            ErrorKind.STORAGE_CONFIG,
        )


def _prefix(prefix: str | None) -> str:
    require_text(prefix or "", "the prefix")
    text = (prefix or "").strip("/")
    if text and not {"", ".", ".."}.isdisjoint(text.split("/")):
        raise InvalidInputError(
            f"the prefix {prefix!r} has empty, '.' or '..' parts; remove them", ErrorKind.STORAGE_CONFIG
        )
    return text
