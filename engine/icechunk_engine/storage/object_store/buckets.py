"""Buckets of object stores as data: where they are, how requests are authenticated and made. Pure.

A :class:`Bucket` is hashable, picklable and cheap. :mod:`.client` turns it into a client when it is first used.
Repositories and virtual chunk containers use the same description.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from urllib.parse import urlsplit

from icechunk_engine.config import ChecksumAlgorithm, S3Options, StorageSettings
from icechunk_engine.config.http_headers import problem_of_headers
from icechunk_engine.credentials.types import AnyAzureCredential, AnyGcsCredential, AnyS3Credential, S3Anonymous
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError
from icechunk_engine.errors.redaction import redacted

AnyStoreCredential = AnyS3Credential | AnyGcsCredential | AnyAzureCredential

_NEVER = timedelta(days=1)
"""Timeout of one request as a whole, which may take long. The read timeout notices a store that sends nothing."""
_SILENCE = timedelta(seconds=60)
"""Default read timeout: a request fails after so long without a byte. Uploads have more time."""


class StoreKind(StrEnum):
    """Protocols of stores."""

    S3 = "s3"
    GCS = "gs"
    AZURE = "az"
    HTTP = "http"


type OptionValue = str | bytes | bool | int | timedelta | tuple[tuple[str, timedelta], ...]
"""The last form is the back-off of retries."""

type Options = tuple[tuple[str, OptionValue], ...]
type Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One bucket, container or web server.

    Attributes
    ----------
    url
        Names the place, without secrets. Equal for equal places.
    name
        The name of the bucket; for HTTP the base URL.
    options
        Options of the protocol's client, under obstore's names.
    client, retry
        Options of HTTP requests, under obstore's names.
    read_headers, write_headers
        Headers added to requests that read and that write.
    """

    kind: StoreKind
    url: str
    name: str = field(repr=False)
    options: Options = field(default=(), repr=False)
    credential: AnyStoreCredential | None = field(default=None, repr=False)
    client: Options = field(default=(), repr=False)
    retry: Options = ()
    read_headers: Headers = field(default=(), repr=False)
    write_headers: Headers = field(default=(), repr=False)

    @property
    def is_of_a_cloud(self) -> bool:
        """True for the cloud providers' own stores, False if the user gave an endpoint."""
        return self.url.startswith(f"{self.kind}://")


def s3_bucket(
    options: S3Options,
    bucket: str,
    credential: AnyS3Credential | None,
    *,
    read_headers: Mapping[str, str] | None = None,
    write_headers: Mapping[str, str] | None = None,
) -> Bucket:
    """Describe a bucket of S3 or of a compatible store. Requests are path style.

    Raises
    ------
    InvalidInputError
        ``storage-config``: the options contradict each other or are not supported.
    """
    endpoint = options.endpoint_url.rstrip("/") if options.endpoint_url else None
    config: dict[str, OptionValue] = {"virtual_hosted_style_request": False}
    if endpoint is not None:
        if urlsplit(endpoint).scheme not in ("http", "https"):
            raise _bad(f"endpoint_url={options.endpoint_url!r} is not a URL; write https://host[:port]")
        if endpoint.startswith("http://") and not options.allow_http:
            raise _bad(f"endpoint_url={endpoint!r} is not encrypted; pass allow_http=True if that is meant")
        config["endpoint"] = endpoint
    if options.region is not None or endpoint is not None:
        config["region"] = _checked_region(options.region or "us-east-1")
    if options.requester_pays:
        config["request_payer"] = True
    if options.checksum_algorithm is not None:
        if options.checksum_algorithm is not ChecksumAlgorithm.Sha256:
            raise _bad(
                f"checksum_algorithm={options.checksum_algorithm.name} is not supported; use Sha256, or leave it out"
            )
        config["checksum_algorithm"] = "sha256"
    if options.anonymous and credential is None:
        credential = S3Anonymous()
    read_headers, write_headers = dict(read_headers or {}), dict(write_headers or {})
    for header, (name, convert) in _SIGNED_HEADERS.items():
        for headers in (read_headers, write_headers):
            for spelt in [spelt for spelt in headers if spelt.lower() == header]:
                config[name] = convert(headers.pop(spelt))
    # A redirect of an encrypted endpoint must not lead to an unencrypted one.
    client: dict[str, OptionValue] = {"allow_http": options.allow_http and not (endpoint or "").startswith("https://")}
    stream_timeout = options.network_stream_timeout_seconds
    if stream_timeout is not None:
        client["read_timeout"] = timedelta(seconds=stream_timeout) if stream_timeout else _NEVER
    return Bucket(
        kind=StoreKind.S3,
        url=f"s3://{bucket}" if endpoint is None else redacted(f"s3+{endpoint}/{bucket}"),
        name=_checked_name(bucket, "bucket"),
        options=_frozen(config),
        credential=credential,
        client=_frozen(client),
        read_headers=_headers(read_headers, "x-amz-"),
        write_headers=_headers(write_headers, "x-amz-"),
    )


def gcs_bucket(
    bucket: str,
    credential: AnyGcsCredential | None,
    config: Mapping[str, str] | None = None,
    *,
    read_headers: Mapping[str, str] | None = None,
    write_headers: Mapping[str, str] | None = None,
) -> Bucket:
    """Describe a bucket of Google Cloud Storage.

    ``config`` holds object_store's options, with or without the prefix ``google_``.
    """
    options, client = split_options(config, "google_")
    base = options.get("base_url", "").rstrip("/")
    return Bucket(
        kind=StoreKind.GCS,
        url=redacted(f"gs+{base}/{bucket}") if base else f"gs://{bucket}",
        name=_checked_name(bucket, "bucket"),
        options=_frozen(options),
        credential=credential,
        client=_frozen(client),
        read_headers=_headers(read_headers),
        write_headers=_headers(write_headers),
    )


def azure_bucket(
    account: str, container: str, credential: AnyAzureCredential | None, config: Mapping[str, str] | None = None
) -> Bucket:
    """Describe a container of Azure Blob Storage.

    ``config`` holds object_store's options, with or without the prefix ``azure_``.
    """
    options, client = split_options(config, "azure_", "storage_")
    endpoint = options.get("endpoint", "").rstrip("/")
    if not _ACCOUNT.fullmatch(_checked_name(account, "account")):
        raise _bad(f"{account!r} is not a valid account name; give it without scheme and domain")
    return Bucket(
        kind=StoreKind.AZURE,
        url=redacted(f"az+{endpoint}/{container}") if endpoint else f"az://{account}/{container}",
        name=_checked_name(container, "container"),
        options=_frozen({**options, "account_name": account}),
        credential=credential,
        client=_frozen(client),
    )


def web_server(url: str, opts: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None) -> Bucket:
    """Describe a web server; ``opts`` holds object_store's transport options."""
    require_text(url, "the URL of a web server")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise StorageError(
            f"error parsing URL {url!r}: it is not the URL of a web server. Write https://host/path",
            ErrorKind.CANNOT_PARSE_URL,
        )
    if parts.query or parts.fragment:
        raise InvalidInputError(
            f"{url!r} has a query or fragment. Objects below it could not have that; leave it out",
            ErrorKind.CANNOT_PARSE_URL,
        )
    base = f"{parts.scheme}://{parts.netloc}"
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    for name, value in (opts or {}).items():
        require_text(value, f"the option {name}")
    client: dict[str, OptionValue] = {**(opts or {}), "allow_http": parts.scheme == "http"}
    return Bucket(kind=StoreKind.HTTP, url=shown, name=base, client=_frozen(client), read_headers=_headers(headers))


def with_settings(bucket: Bucket, settings: StorageSettings) -> Bucket:
    """Return the bucket with the retries and timeouts of some settings. Unset ones stay as they are."""
    timeouts, retries = settings.timeouts, settings.retries
    client: dict[str, OptionValue] = {"timeout": _NEVER, "read_timeout": _SILENCE, **dict(bucket.client)}
    retry: dict[str, OptionValue] = dict(bucket.retry)
    if timeouts is not None:
        for name, value in (
            ("connect_timeout", timeouts.connect_timeout_ms),
            ("read_timeout", timeouts.read_timeout_ms),
            ("timeout", timeouts.operation_attempt_timeout_ms),
        ):
            if value is not None:
                client[name] = timedelta(milliseconds=value)
        if timeouts.operation_timeout_ms is not None:
            retry["retry_timeout"] = timedelta(milliseconds=timeouts.operation_timeout_ms)
    if retries is not None:
        if retries.max_tries is not None:
            retry["max_retries"] = max(retries.max_tries, 1) - 1
        backoff = {
            name: timedelta(milliseconds=value)
            for name, value in (("init_backoff", retries.initial_backoff_ms), ("max_backoff", retries.max_backoff_ms))
            if value  # the client cannot wait for no time at all
        }
        if backoff:
            retry["backoff"] = tuple(sorted(backoff.items()))
    return replace(bucket, client=_frozen(client), retry=_frozen(retry))


_SIGNED_HEADERS: dict[str, tuple[str, Callable[[str], str | bool]]] = {
    "x-amz-request-payer": ("request_payer", lambda value: value.lower() == "requester"),
    "x-amz-server-side-encryption": ("server_side_encryption", str),
    "x-amz-server-side-encryption-aws-kms-key-id": ("sse_kms_key_id", str),
    "x-amz-server-side-encryption-bucket-key-enabled": (
        "sse_bucket_key_enabled",
        lambda value: value.lower() == "true",
    ),
}
"""Headers that the client can sign, the options that make it send them, and how their values are converted."""


def s3_endpoint_of_environment() -> str | None:
    """Return the endpoint that AWS's own tools would use.

    It is looked up when a storage is made, so that pickled copies use the same one.
    """
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _frozen(options: Mapping[str, OptionValue]) -> Options:
    return tuple(sorted(options.items()))


def split_options(config: Mapping[str, str] | None, *prefixes: str) -> tuple[dict[str, str], dict[str, OptionValue]]:
    """Split a mapping into options of the store and of its HTTP client, and remove prefixes from the names."""
    options: dict[str, str] = {}
    client: dict[str, OptionValue] = {}
    for name, value in (config or {}).items():
        require_text(name, "the name of an option")
        require_text(value, f"the option {name}")
        plain = name.lower()
        for prefix in prefixes:
            plain = plain.removeprefix(prefix)
        if plain in _CLIENT_OPTIONS:
            client[plain] = value
        else:
            options[plain] = value
    endpoint = (options.get("endpoint") or options.get("base_url") or "").lower()
    if endpoint.startswith("http://"):
        client.setdefault("allow_http", True)
    elif endpoint.startswith("https://"):
        client.pop("allow_http", None)  # a redirect must not lead to an unencrypted server
    return options, client


_CLIENT_OPTIONS = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "http1_only",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_url",
        "proxy_ca_certificate",
        "proxy_excludes",
        "randomize_addresses",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    }
)


def _headers(headers: Mapping[str, str] | None, signed: str | None = None) -> Headers:
    for name, value in (headers or {}).items():
        require_text(name, "the name of a header")
        require_text(value, f"the header {name}")
    problem = problem_of_headers(headers or {})
    if problem is not None:
        raise _bad(problem)
    for name in headers or {}:
        if signed is not None and name.lower().startswith(signed):
            raise _bad(
                f"the header {name!r} would have to be signed, which is supported only for "
                f"{', '.join(_SIGNED_HEADERS)}; leave it out (storage classes: StorageSettings(storage_class=…))"
            )
    return tuple(sorted((name.lower(), value) for name, value in (headers or {}).items()))


def require_text(value: object, what: str) -> None:
    """Raise TypeError if the value is not a string. It may be secret, so it is not shown."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a string, not {type(value).__name__}")


def _checked_name(name: str, what: str) -> str:
    require_text(name, f"the name of a {what}")
    if not name or any(character in name for character in "/?#@ \\"):
        raise _bad(f"{name!r} is not a valid {what} name; give it without scheme and path")
    return name


_ACCOUNT = re.compile("[A-Za-z0-9-]+")
_REGION = re.compile("[A-Za-z0-9._-]+")


def _checked_region(region: str) -> str:
    """Check a region. It becomes a part of the host name."""
    if not _REGION.fullmatch(region):
        raise _bad(f"{region!r} is not a valid region name")
    return region


def _bad(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.STORAGE_CONFIG)
