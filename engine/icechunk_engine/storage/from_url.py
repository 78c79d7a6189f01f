"""Storages from paths and URLs, with the ``storage_options`` that users of fsspec know."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from icechunk_engine.credentials.types import GcsBearerCredential, S3StaticCredentials
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.from_keywords import azure_storage, gcs_storage, http_storage, s3_storage
from icechunk_engine.storage.fsspec_files import FsspecStorage, is_known_protocol
from icechunk_engine.storage.local.storage import LocalStorage
from icechunk_engine.storage.memory import MemoryStorage
from icechunk_engine.storage.object_store.aws_profiles import FromProfile, endpoint_of_profile, region_of_profile
from icechunk_engine.storage.storage_options import StorageOptions

SUPPORTED = (
    "a local path, file:///absolute/path, memory://name, s3://bucket/prefix, gs://bucket/prefix, "
    "az://container/prefix, https://host/path"
)


def storage_from_url(location: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None) -> Storage:
    """Return the storage at a path or URL.

    Parameters
    ----------
    location
        A local path, ``file://``, ``memory://name``, ``s3://`` or ``s3a://``, ``gs://`` or ``gcs://``, ``az://``,
        ``abfs://`` or ``abfss://`` (also with ``container@account.dfs.core.windows.net``), ``http(s)://``; for
        reading, any protocol of an installed fsspec file system.
    storage_options
        Options of fsspec's file systems: ``anon``, ``key``, ``secret``, ``token``, ``endpoint_url``,
        ``client_kwargs``, ``account_name``, …. For other protocols they are passed to fsspec unchanged.

    Raises
    ------
    InvalidInputError
        ``cannot-parse-url``: the protocol is not known. ``storage-config``: an option does not fit it.
    """
    text = os.fspath(location)
    scheme = scheme_of(text)
    options = dict(storage_options or {})
    if options and scheme in ("", "file", "memory"):
        raise InvalidInputError(
            f"storage_options {', '.join(map(repr, options))}: {'memory' if scheme == 'memory' else 'local'} "
            f"storage takes none. Leave storage_options out",
            ErrorKind.STORAGE_CONFIG,
        )
    if scheme == "":
        return LocalStorage(Path(text).expanduser().absolute())
    if scheme == "file":
        return LocalStorage(_local_path(text))
    if scheme == "memory":
        return MemoryStorage.named(text.partition("://")[2].strip("/"))
    make = _MAKERS.get(scheme)
    if make is None and is_known_protocol(scheme):
        return FsspecStorage(text, options)
    if make is None:
        raise InvalidInputError(
            f"cannot open {text!r}: {scheme!r} is not a known protocol. Supported are {SUPPORTED}, and for reading "
            f"the protocols of installed fsspec file systems",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return make(StorageOptions(text, options))


def as_storage(
    place: Storage | str | os.PathLike[str], storage_options: Mapping[str, object] | None = None
) -> Storage:
    """Return the storage that a user means: a storage itself, or the one at a path or URL.

    Raises
    ------
    InvalidInputError
        As for :func:`storage_from_url`. ``storage-config``: options for a storage that already exists.
    TypeError
        ``place`` is none of these.
    """
    if isinstance(place, Storage):
        if storage_options:
            raise InvalidInputError(
                "storage_options go with a path or URL. This storage already has its options: leave them out",
                ErrorKind.STORAGE_CONFIG,
            )
        return place
    if isinstance(place, str | os.PathLike):
        return storage_from_url(place, storage_options)
    raise TypeError(f"storage must be a Storage, a path or a URL, not {describe(place)}")


def scheme_of(location: str) -> str:
    """Return the part before ``://`` or ``::`` in lower case, empty for a path."""
    for mark in ("::", "://"):
        scheme, found, _ = location.partition(mark)
        if found and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum() and scheme[0].isalpha():
            return scheme.lower()
    return ""


def _local_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidInputError(
            f"{url!r} is not the URL of an absolute local path. Write file:///absolute/path, or only the path",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return url2pathname(parts.path)


def _s3(options: StorageOptions) -> Storage:
    bucket, prefix = _bucket_and_prefix(options.url)
    client = options.options("client_kwargs")
    endpoint = options.text("endpoint_url", "endpoint") or client.text("endpoint_url")
    region = options.text("region", "region_name") or client.text("region_name")
    key = options.text("key", "access_key_id", "aws_access_key_id", "username")
    secret = options.text("secret", "secret_access_key", "aws_secret_access_key", "password")
    token = options.text("token", "session_token", "aws_session_token")
    key = client.text("aws_access_key_id") or key
    secret = client.text("aws_secret_access_key") or secret
    token = client.text("aws_session_token") or token
    get_credentials: Callable[[], S3StaticCredentials] | None = options.function("get_credentials")
    anonymous = options.flag("anon", "anonymous")
    profile = options.text("profile")
    if profile is not None and not anonymous and key is None and get_credentials is None:
        get_credentials = FromProfile(profile)
        region = region or region_of_profile(profile)
        endpoint = endpoint or endpoint_of_profile(profile)
    requester_pays = options.flag("requester_pays")
    additional = options.options("s3_additional_kwargs")
    headers = {
        header: str(value).lower() if isinstance(value, bool) else str(value)
        for name, header in _ENCRYPTION.items()
        if (value := additional.take(name)) is not None
    }
    if options.take("use_ssl") is False and endpoint is None:
        raise options.refusal(["use_ssl"], "without encryption an endpoint_url is needed")
    # The URL says it. Users of fsspec know no second switch for it.
    allow_http = options.flag("allow_http") or (endpoint or "").startswith("http://")
    options.refuse_rest(client, additional)
    return s3_storage(
        bucket=bucket,
        prefix=prefix,
        region=region,
        endpoint_url=endpoint,
        allow_http=allow_http,
        access_key_id=key,
        secret_access_key=secret,
        session_token=token,
        anonymous=anonymous or None,
        get_credentials=get_credentials,
        requester_pays=requester_pays,
        write_headers=headers,
    )


_ENCRYPTION = {
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "BucketKeyEnabled": "x-amz-server-side-encryption-bucket-key-enabled",
}


def _gcs(options: StorageOptions) -> Storage:
    bucket, prefix = _bucket_and_prefix(options.url)
    anonymous = options.flag("anon", "anonymous")
    file, content = options.text("service_account_file"), options.text("service_account_key")
    match options.take("token"):
        case None | "google_default" | "cloud":
            pass
        case "anon":
            anonymous = True
        case str(path) if not anonymous:
            file = file or path
        case Mapping() as document if not anonymous:
            content = content or json.dumps(dict(document))
        case _ if not anonymous:
            raise options.refusal(["token"], "pass the path or the content of a service account file, or 'anon'")
    bearer_token = options.text("bearer_token")
    get_credentials: Callable[[], GcsBearerCredential] | None = options.function("get_credentials")
    endpoint = options.text("endpoint_url", "endpoint")
    options.take("project")  # needed only to make or list buckets
    options.refuse_rest()
    return gcs_storage(
        bucket=bucket,
        prefix=prefix,
        service_account_file=file,
        service_account_key=content,
        bearer_token=bearer_token,
        anonymous=anonymous or None,
        get_credentials=get_credentials,
        config={"base_url": endpoint} if endpoint else None,
    )


def _azure(options: StorageOptions) -> Storage:
    container, prefix = _bucket_and_prefix(options.url)
    connection = _connection_string(options.text("connection_string") or "")
    container, _, host = container.partition("@")  # abfss://container@account.dfs.core.windows.net/prefix
    account = options.text("account_name", "account") or host.partition(".")[0] or connection.get("accountname")
    account = account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise InvalidInputError(
            f"{options.url!r} does not say which account: pass storage_options={{'account_name': …}}",
            ErrorKind.STORAGE_CONFIG,
        )
    access_key = options.text("account_key", "access_key") or connection.get("accountkey")
    sas_token = options.text("sas_token") or connection.get("sharedaccesssignature")
    bearer_token = options.text("bearer_token")
    # A key overrules it.
    anonymous = options.flag("anon", "anonymous") and not (access_key or sas_token or bearer_token)
    endpoint = options.text("account_host", "endpoint_url", "endpoint") or connection.get("blobendpoint")
    config = {"endpoint": endpoint if "://" in endpoint else f"https://{endpoint}"} if endpoint else {}
    for name in ("client_id", "client_secret", "tenant_id"):
        value = options.text(name)
        if value is not None:
            config[name] = value
    options.refuse_rest()
    return azure_storage(
        account=account,
        container=container,
        prefix=prefix,
        access_key=access_key,
        sas_token=sas_token,
        bearer_token=bearer_token,
        anonymous=anonymous or None,
        config=config,
    )


def _connection_string(text: str) -> dict[str, str]:
    parts = (part.partition("=") for part in text.split(";") if part.strip())
    return {name.strip().lower(): value.strip() for name, _, value in parts}


def _http(options: StorageOptions) -> Storage:
    client = options.options("client_kwargs")
    headers = client.headers() | options.headers()
    options.refuse_rest(client)
    return http_storage(options.url, headers=headers)


_MAKERS: dict[str, Callable[[StorageOptions], Storage]] = {
    "s3": _s3,
    "s3a": _s3,
    "gs": _gcs,
    "gcs": _gcs,
    "az": _azure,
    "azure": _azure,
    "abfs": _azure,
    "abfss": _azure,
    "http": _http,
    "https": _http,
}


def _bucket_and_prefix(url: str) -> tuple[str, str]:
    """Split a URL. Nothing in the prefix is decoded: other tools do not decode it either."""
    rest = url.partition("://")[2]
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise InvalidInputError(f"{url!r} has no bucket. Write scheme://bucket/prefix", ErrorKind.CANNOT_PARSE_URL)
    return bucket, prefix
