"""From a path or URL, and options as users of fsspec know them, to a storage.

Options are translated one by one; one that is not understood is refused by name, since leaving it out could mean the
wrong place or the wrong person.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.from_keywords import azure_storage, gcs_storage, http_storage, s3_storage
from icechunk_engine.storage.fsspec_files import FsspecStorage, is_known_protocol
from icechunk_engine.storage.local.storage import LocalStorage
from icechunk_engine.storage.memory import MemoryStorage
from icechunk_engine.storage.object_store.aws_profiles import FromProfile, endpoint_of_profile, region_of_profile

SUPPORTED = (
    "a local path, file:///absolute/path, memory://name, s3://bucket/prefix, gs://bucket/prefix, "
    "az://container/prefix, https://host/path"
)

type Options = dict[str, Any]


def storage_from_url(location: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Storage:
    """The storage at a path or URL.

    Parameters
    ----------
    location
        A local path; ``file://``, ``memory://name``; ``s3://`` (also ``s3a://``), ``gs://`` or ``gcs://``, ``az://``,
        ``abfs://`` or ``abfss://`` (``container@account.dfs.core.windows.net`` too), ``http(s)://``; any protocol of
        an installed fsspec file system, for reading.
    storage_options
        Options as fsspec's file systems take them: ``anon``, ``key``, ``secret``, ``token``, ``endpoint_url``,
        ``client_kwargs``, ``account_name``, …; for other protocols they go to fsspec as they are.

    Raises
    ------
    InvalidInputError
        ``cannot-parse-url``: no kind of location that is known. ``storage-config``: options that do not fit it.
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
            f"{text!r}: there is no storage for {scheme!r} locations. Supported are {SUPPORTED}, and for reading the "
            f"protocols of fsspec file systems that are installed",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return make(text, options)


def as_storage(place: Storage | str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Storage:
    """The storage that a user means: one of ours as it is, or that at a path or URL.

    Raises
    ------
    InvalidInputError
        As for :func:`storage_from_url`. ``storage-config``: options for a storage that is made already.
    TypeError
        ``place`` is none of these.
    """
    if isinstance(place, Storage):
        if storage_options:
            raise InvalidInputError(
                "storage_options go with a path or URL. This storage was made with its options: leave them out",
                ErrorKind.STORAGE_CONFIG,
            )
        return place
    if isinstance(place, str | os.PathLike):
        return storage_from_url(place, storage_options)
    raise TypeError(f"storage must be a Storage, a path or a URL, not {describe(place)}")


def scheme_of(location: str) -> str:
    """The part before ``://`` or ``::`` in lower case, empty for a path."""
    for mark in ("::", "://"):
        scheme, found, _ = location.partition(mark)
        if found and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum() and scheme[0].isalpha():
            return scheme.lower()
    return ""


def _local_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidInputError(
            f"{url!r} names no absolute local path: write file:///absolute/path, or the path alone",
            ErrorKind.CANNOT_PARSE_URL,
        )
    return url2pathname(parts.path)


def _s3(url: str, options: Options) -> Storage:
    bucket, prefix = _bucket(url)
    client = options.pop("client_kwargs", None) or {}
    if not isinstance(client, Mapping):
        raise _refused(url, ["client_kwargs"], "it must be a mapping")
    client = dict(client)
    endpoint = _first(options, "endpoint_url", "endpoint") or client.pop("endpoint_url", None)
    given: Options = {
        "endpoint_url": endpoint,
        "region": _first(options, "region", "region_name") or client.pop("region_name", None),
        "access_key_id": _first(options, "key", "access_key_id", "aws_access_key_id", "username"),
        "secret_access_key": _first(options, "secret", "secret_access_key", "aws_secret_access_key", "password"),
        "session_token": _first(options, "token", "session_token", "aws_session_token"),
        "requester_pays": bool(_first(options, "requester_pays")),
        "get_credentials": _first(options, "get_credentials"),
    }
    for name, parameter in (
        ("aws_access_key_id", "access_key_id"),
        ("aws_secret_access_key", "secret_access_key"),
        ("aws_session_token", "session_token"),
    ):
        if name in client:
            given[parameter] = client.pop(name)
    anonymous = _first(options, "anon", "anonymous")
    if anonymous:
        given["anonymous"] = True
    profile = _first(options, "profile")
    if profile is not None and not anonymous and given["access_key_id"] is None and given["get_credentials"] is None:
        given["get_credentials"] = FromProfile(profile)
        given["region"] = given["region"] or region_of_profile(profile)
        given["endpoint_url"] = endpoint = endpoint or endpoint_of_profile(profile)
    additional = options.pop("s3_additional_kwargs", None) or {}
    if not isinstance(additional, Mapping):
        raise _refused(url, ["s3_additional_kwargs"], "it must be a mapping")
    additional = dict(additional)
    given["write_headers"] = {
        header: str(value).lower() if isinstance(value, bool) else str(value)
        for name, header in _ENCRYPTION.items()
        if (value := additional.pop(name, None)) is not None
    }
    if _first(options, "use_ssl") is False and endpoint is None:
        raise _refused(url, ["use_ssl"], "without encryption an endpoint_url is needed")
    # The URL says it; fsspec's users know no second switch for it.
    given["allow_http"] = bool(_first(options, "allow_http")) or str(endpoint or "").startswith("http://")
    unknown = [f"client_kwargs[{name!r}]" for name in client]
    _refuse_rest(url, [*options, *unknown, *(f"s3_additional_kwargs[{name!r}]" for name in additional)])
    return s3_storage(bucket=bucket, prefix=prefix, **given)


_ENCRYPTION = {
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "BucketKeyEnabled": "x-amz-server-side-encryption-bucket-key-enabled",
}


def _gcs(url: str, options: Options) -> Storage:
    bucket, prefix = _bucket(url)
    token = options.pop("token", None)
    given: Options = {}
    if token == "anon" or _first(options, "anon", "anonymous"):
        given["anonymous"] = True
    elif isinstance(token, str) and token not in ("google_default", "cloud"):
        given["service_account_file"] = token
    elif isinstance(token, Mapping):
        import json

        given["service_account_key"] = json.dumps(dict(token))
    elif token is not None and not isinstance(token, str):
        raise _refused(url, ["token"], "pass the path or the content of a service account file, or 'anon'")
    for name in ("service_account_file", "service_account_key", "bearer_token", "get_credentials"):
        if name in options:
            given[name] = options.pop(name)
    endpoint = _first(options, "endpoint_url", "endpoint")
    options.pop("project", None)  # needed by those only who make or list buckets
    _refuse_rest(url, options)
    return gcs_storage(bucket=bucket, prefix=prefix, config={"base_url": endpoint} if endpoint else None, **given)


def _azure(url: str, options: Options) -> Storage:
    container, prefix = _bucket(url)
    connection = _connection_string(options.pop("connection_string", None) or "")
    container, _, host = container.partition("@")  # abfss://container@account.dfs.core.windows.net/prefix
    account = _first(options, "account_name", "account") or host.partition(".")[0] or connection.get("accountname")
    account = account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise InvalidInputError(
            f"{url!r} does not say which account: pass storage_options={{'account_name': …}}", ErrorKind.STORAGE_CONFIG
        )
    given: Options = {
        "access_key": _first(options, "account_key", "access_key") or connection.get("accountkey"),
        "sas_token": _first(options, "sas_token") or connection.get("sharedaccesssignature"),
        "bearer_token": _first(options, "bearer_token"),
    }
    if not any(given.values()) and _first(options, "anon", "anonymous"):
        given["anonymous"] = True
    else:
        _first(options, "anon", "anonymous")  # False, or overruled by a key
    endpoint = _first(options, "account_host", "endpoint_url", "endpoint") or connection.get("blobendpoint")
    config = {"endpoint": endpoint if "://" in endpoint else f"https://{endpoint}"} if endpoint else {}
    for name in ("client_id", "client_secret", "tenant_id"):
        if name in options:
            config[name] = options.pop(name)
    _refuse_rest(url, options)
    return azure_storage(account=account, container=container, prefix=prefix, config=config, **given)


def _connection_string(text: str) -> dict[str, str]:
    parts = (part.partition("=") for part in text.split(";") if part.strip())
    return {name.strip().lower(): value.strip() for name, _, value in parts}


def _http(url: str, options: Options) -> Storage:
    client = dict(options.pop("client_kwargs", None) or {})
    headers = {**(client.pop("headers", None) or {}), **(options.pop("headers", None) or {})}
    _refuse_rest(url, [*options, *(f"client_kwargs[{name!r}]" for name in client)])
    return http_storage(url, headers=headers)


_MAKERS: dict[str, Callable[[str, Options], Storage]] = {
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


def _bucket(url: str) -> tuple[str, str]:
    """Bucket and prefix; nothing in a prefix is decoded, as nothing is by other tools."""
    rest = url.partition("://")[2]
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise InvalidInputError(f"{url!r} names no bucket: write scheme://bucket/prefix", ErrorKind.CANNOT_PARSE_URL)
    return bucket, prefix


def _first(options: Options, *names: str) -> Any:
    """Take all spellings of one option; the first that is set counts."""
    values = [options.pop(name, None) for name in names]
    return next((value for value in values if value is not None), None)


def _refuse_rest(url: str, names: Any) -> None:
    left = list(names)
    if left:
        raise _refused(
            url,
            left,
            "they are not known here. Leave them out, or make the storage yourself, with "
            "icechunk_engine.s3_storage(…) and the like, and open it with Repository.open",
        )


def _refused(url: str, names: list[str], why: str) -> InvalidInputError:
    return InvalidInputError(f"storage_options {', '.join(names)} for {url!r}: {why}", ErrorKind.STORAGE_CONFIG)
