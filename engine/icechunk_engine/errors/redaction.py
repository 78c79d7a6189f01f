"""How secrets are removed from texts. Pure, and the only place that knows the rule.

**What is always true.** Errors, reprs, logs and HTML show where something is, but nothing that gives access to it.
They do not show the login in a URL, the signature in its query, or the values of headers and options whose name
suggests a secret.

**Why it holds.** Every error passes through :func:`redacted` when it is made, so no message has to take care of it.

**What would break it.** Printing the text of another library's exception without :func:`without_values`: it may
contain options that the user passed.
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
    """Return a text without logins and signatures of URLs, and without headers that hold secrets.

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
    """Return options without the values whose name suggests a secret, and without logins in the URLs of others."""
    return {name: MASK if _SECRET_NAME.search(name) else redacted(value) for name, value in options.items()}


def without_values(text: str, options: Mapping[str, object]) -> str:
    """Return the text of another library :func:`redacted`, and without the values of options that may be secret."""
    for name, value in options.items():
        if isinstance(value, str) and value and _SECRET_NAME.search(name):
            text = text.replace(value, MASK)
    return redacted(text)


def shortened(identifier: str) -> str:
    """Return enough of the id of an access key to recognise it.

    >>> shortened("AKIAIOSFODNN7EXAMPLE")
    'AKIA****'
    """
    return identifier[:4] + MASK if len(identifier) > 8 else MASK
