"""Check that HTTP headers can be sent (RFC 9110 §5). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")


def problem_of_headers(headers: Mapping[str, str]) -> str | None:
    """Describe the problem of some headers without showing their values. Return None if they can be sent."""
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            return f"{name!r} is not an HTTP header name; use letters, digits and '-'"
        if not _VALUE.fullmatch(value):
            return f"the value of the HTTP header {name!r} has line breaks, control or non-ASCII characters"
    return None
