"""Find out where the options of a container send requests, and whether that is the cloud's own address. Pure.

Someone else wrote the options of a stored container. Such options can choose the endpoint, a proxy, trusted
certificates, or files with keys. Invariant: an option that is not known to be harmless counts as one that decides
about requests, so an option that a client adds later is refused until someone has judged it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from icechunk_engine.config import ObjectStoreConfig, virtual_urls
from icechunk_engine.storage.object_store.buckets import split_options
from icechunk_engine.virtual.client_options import HARMLESS_OPTIONS

_HARMLESS = HARMLESS_OPTIONS | {
    "account",
    "account_name",  # `account` takes precedence
    "disable_tagging",
    "skip_signature",
}
"""Harmless options of clients and clouds, by their names without the prefix of the cloud."""

_FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that choose a host on the server, or that mark the end of a request."""

_REGION = r"[a-z]{2}(-[a-z]+)+-[0-9]+"
_AMAZON = re.compile(
    rf"https://(s3|s3-accelerate|s3[.-]{_REGION}|s3(-fips)?(\.dualstack)?\.{_REGION})\.amazonaws\.com(\.cn)?"
)
_GOOGLE = re.compile(r"https://storage\.googleapis\.com")
_MICROSOFT = re.compile(r"https://[a-z0-9-]+\.(blob|dfs)\.core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)")
_TIGRIS = re.compile(r"https://(t3\.storage\.dev|fly\.storage\.tigris\.dev)")


class Route(NamedTuple):
    """Where a container's options send its requests.

    Attributes
    ----------
    endpoint
        Origin of the server. None means the cloud's own server, or the one in the URL prefix.
    options
        Names of other options that are not harmless.
    """

    endpoint: str | None
    options: tuple[str, ...]


def route_of(store: ObjectStoreConfig) -> Route:
    """Return where requests go, and which other options decide about them.

    Raises
    ------
    ValueError
        The endpoint is not the address of a web server.
    """
    match store:
        case ObjectStoreConfig.S3(options) | ObjectStoreConfig.S3Compatible(options):
            return Route(_foreign(options.endpoint_url, _AMAZON), ())
        case ObjectStoreConfig.Tigris(options):
            return Route(_foreign(options.endpoint_url, _TIGRIS), ())
        case ObjectStoreConfig.Gcs(opts):
            cloud, client = split_options(opts, "google_")
            endpoint = _foreign(cloud.pop("base_url", None), _GOOGLE)
            return Route(endpoint, _others(cloud, client))
        case ObjectStoreConfig.Azure(opts):
            cloud, client = split_options(opts, "azure_", "storage_")
            endpoint = _foreign(cloud.pop("endpoint", None), _MICROSOFT)
            return Route(endpoint, _others(cloud, client))
        case ObjectStoreConfig.Http(opts, headers):
            framing = (f"header {name!r}" for name in headers or {} if name.lower() in _FRAMING)
            return Route(None, (*_others(opts or {}), *framing))
    return Route(None, ())


def is_safe_without_secrets(endpoint: str) -> bool:
    """Return True if requests without secrets may go to an origin that only the repository names.

    The connection must be encrypted, and the host must be public. Then the server proves that it has this name. A
    service in the reader's own network, which outsiders must not reach through the reader, has no such certificate.
    """
    return endpoint.startswith("https://") and virtual_urls.is_public_host(virtual_urls.host_of(endpoint))


def _foreign(endpoint: str | None, own: re.Pattern[str]) -> str | None:
    if not endpoint:
        return None
    origin = virtual_urls.origin_of(endpoint)
    return None if own.fullmatch(origin) else origin


def _others(*options: object) -> tuple[str, ...]:
    return tuple(
        name for group in options if isinstance(group, dict) for name in group if name.lower() not in _HARMLESS
    )
