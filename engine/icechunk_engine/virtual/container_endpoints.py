"""Where the options of a container send its requests, and whether that is the cloud's own address. Pure.

Options of a stored container were written by whoever wrote the repository. They choose the endpoint, a proxy, whose
certificates are believed, files to read keys from. Only options that are listed here as harmless are used without
asking the reader.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from icechunk_engine.config import ObjectStoreConfig, virtual_urls
from icechunk_engine.storage.object_store.buckets import split_options

_HARMLESS = frozenset(
    {
        "account",
        "account_name",  # overruled by account
        "allow_http",  # only where the endpoint is not encrypted anyway
        "connect_timeout",
        "default_content_type",
        "disable_tagging",
        "http1_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "randomize_addresses",
        "read_timeout",
        "skip_signature",
        "timeout",
        "user_agent",
    }
)
"""Options, by their names without a cloud's prefix, that do not say where requests go, or how safely."""

_FRAMING = frozenset(
    {"connection", "content-length", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say to which host of a server a request goes, or where it ends."""

_REGION = r"[a-z]{2}(-[a-z]+)+-[0-9]+"
_AMAZON = re.compile(
    rf"https://(s3|s3-accelerate|s3[.-]{_REGION}|s3(-fips)?(\.dualstack)?\.{_REGION})\.amazonaws\.com(\.cn)?"
)
_GOOGLE = re.compile(r"https://storage\.googleapis\.com")
_MICROSOFT = re.compile(r"https://[a-z0-9-]+\.(blob|dfs)\.core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)")
_TIGRIS = re.compile(r"https://(t3\.storage\.dev|fly\.storage\.tigris\.dev)")


class Route(NamedTuple):
    """What a container's options decide about its requests.

    Attributes
    ----------
    endpoint
        Origin of the server; None where the cloud's own, or the one in the URL prefix, is used.
    options
        Names of other options that have a say in it.
    """

    endpoint: str | None
    options: tuple[str, ...]


def route_of(store: ObjectStoreConfig) -> Route:
    """Where requests go, and what else decides about them.

    Raises
    ------
    ValueError
        The endpoint is not an address of a web server.
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
    """True for an origin to which requests that carry no secret may go although only the repository names it.

    The connection is encrypted and the server proves its name. A service of the reader's own network, which nobody
    outside should reach through the reader, cannot prove that it has a stranger's name.
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
