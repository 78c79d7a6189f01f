"""Which HTTP client options a container may set, and which of them are harmless. Pure.

A stored container was written by someone else. Harmless options do not change where requests go, how safely, or in
whose name, so :mod:`.container_endpoints` accepts them without asking the reader.
"""

from __future__ import annotations

TIMING_OPTIONS = frozenset({"connect_timeout", "read_timeout", "timeout", "user_agent"})
"""Harmless options that every client applies."""

OBSTORE_OPTIONS = frozenset(
    {
        "allow_http",  # harmless because it matters only for endpoints that are not encrypted anyway
        "default_content_type",
        "http1_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "randomize_addresses",
    }
)
"""Harmless options of obstore's client. :mod:`.http_servers` accepts and ignores them."""

HARMLESS_OPTIONS = TIMING_OPTIONS | OBSTORE_OPTIONS

HTTP_OPTIONS = TIMING_OPTIONS | {
    "allow_invalid_certificates",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "root_certificate",
}
"""Options that :mod:`.http_servers` applies."""
