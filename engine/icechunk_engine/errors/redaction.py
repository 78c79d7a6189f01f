"""What is secret in texts, and how it is shown. Pure; the one home of that rule.

Errors, reprs, logs and pages show where something is, never what lets others in: neither the login in a URL, nor the
signature in its query, nor the values of headers and options that have the name of a secret. Errors pass through
:func:`redacted` when they are made, so that no message has to think of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "****"

_SECRET_NAME = re.compile(r"key|token|secret|passw|sas|sig|credential|authorization|x-auth|cookie", re.IGNORECASE)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^\s'\"<>|]+)")
_CONTAINER_BEFORE_AT = frozenset({"abfs", "abfss", "az", "azure", "wasb", "wasbs"})
"""Schemes of URLs such as ``abfss://container@account.dfs.core.windows.net/key``."""
_PARAMETER = re.compile(r"([?&;])([^=&;#]*)=([^&;#]*)")
_HEADER = re.compile(
    r"\b(authorization|proxy-authorization|cookie|x-amz-security-token)\b(['\"]?\s*[:=]\s*['\"]?)"
    r"((?:basic|bearer|aws4-hmac-sha256)\s+)?[^\s'\",;]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text without the logins and signatures of the URLs in it, and without the headers that hold secrets.

    >>> redacted("cannot open https://me:pw@host/a?sig=x&n=1")
    'cannot open https://****@host/a?sig=****&n=****'
    """
    if "://" in text:
        text = _URL.sub(_without_secrets, text)
    return _HEADER.sub(rf"\1\2{MASK}", text)


def _without_secrets(url: re.Match[str]) -> str:
    scheme, rest = url[1].lower(), url[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, host = authority.rpartition("@")
    if at and (":" in login or scheme not in _CONTAINER_BEFORE_AT):
        rest = f"{MASK}@{host}{rest[len(authority) :]}"
    path, question, query = rest.partition("?")
    if question:
        everything = scheme.endswith(("http", "https"))
        query = _PARAMETER.sub(
            lambda found: f"{found[1]}{found[2]}={MASK}" if everything or _SECRET_NAME.search(found[2]) else found[0],
            f"?{query}",
        )
        rest = path + query
    return f"{url[1]}://{rest}"


def masked(options: Mapping[str, str]) -> dict[str, str]:
    """Options without the values of those that have the name of a secret, and without logins in the URLs of others."""
    return {name: MASK if _SECRET_NAME.search(name) else redacted(value) for name, value in options.items()}


def without_values(text: str, options: Mapping[str, object]) -> str:
    """Another library's text, :func:`redacted`, and without the values of options that have the name of a secret."""
    for name, value in options.items():
        if isinstance(value, str) and value and _SECRET_NAME.search(name):
            text = text.replace(value, MASK)
    return redacted(text)


def shortened(identifier: str) -> str:
    """Enough of an access key's id to know it again.

    >>> shortened("AKIAIOSFODNN7EXAMPLE")
    'AKIA****'
    """
    return identifier[:4] + MASK if len(identifier) > 8 else MASK
