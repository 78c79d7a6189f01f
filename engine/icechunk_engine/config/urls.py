"""The text of virtual chunk URLs: schemes, authorities, the canonical form of ``file:`` URLs. Pure.

Locations of all other schemes are stored as written, only the scheme in lower case: keys of object stores may hold
anything, and two spellings may be two objects. ``file:`` URLs are brought to the WHATWG URL standard's form, which
resolves ``.`` and ``..``, so that a container's prefix cannot be left.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote_to_bytes

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_NOT_IN_AUTHORITY = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}/?#]")
_AUTHORITY = re.compile(r"(?:[^@\[\]]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^:@\[\]]+)(?::([0-9]*))?")
_TRIMMED = "".join(map(chr, range(0x21)))
_REMOVED = str.maketrans("", "", "\t\n\r")
# What stays as it is in paths; everything else in ASCII, and all beyond, is percent-encoded.
_SAFE_IN_PATH = "/!$%&'()*+,:;=@[]^_|~-."
_SAFE_IN_QUERY = "/!$%&()*+,:;=@[]^_|~-.?`{}\\"
_SAFE_IN_FRAGMENT = "/!$%&'()*+,:;=@[]^_|~-.?#{}\\"
_DOT = {".", "%2e", "%2E"}
_DOT_DOT = {first + second for first in _DOT for second in _DOT}
_DRIVE = re.compile("[A-Za-z]:")
_FORBIDDEN_ESCAPES = re.compile("%(2f|00)", re.IGNORECASE)


def scheme_of(url: str) -> str | None:
    """Scheme in lower case; None when there is none."""
    match = _SCHEME.match(url)
    return None if match is None else match[1].lower()


def with_trailing_slash(prefix: str) -> str:
    """The prefix, ending in ``/``."""
    return prefix if prefix.endswith("/") else prefix + "/"


def authority_of(url: str) -> str:
    """Bucket, container or host (with port) of a URL with ``://``."""
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]


def path_of(url: str) -> str:
    """Path of a URL with ``://`` as written, without its leading ``/``, query and fragment."""
    rest = url.partition("://")[2]
    return re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")[2]


def after_authority(url: str) -> str:
    """All of a URL behind the ``/`` that ends its authority, query and fragment included."""
    return url.partition("://")[2].partition("/")[2]


def decoded_path(url: str) -> bytes:
    """Percent-decoded :func:`path_of`."""
    return unquote_to_bytes(path_of(url))


def is_authority(text: str) -> bool:
    """True for a syntactically valid, non-empty authority."""
    match = _AUTHORITY.fullmatch(text)
    return match is not None and _NOT_IN_AUTHORITY.search(text) is None and int(match[1] or 0) < 65536


def normalize(url: str) -> str:
    """Canonical form of a location or prefix; raises ValueError with the reason and the remedy."""
    scheme = scheme_of(url)
    if scheme is None:
        raise ValueError(
            "it is no absolute URL; write s3://bucket/key, https://host/path or file:///absolute/path "
            "(percent-encode special characters of file names)"
        )
    if scheme == "file":
        return _normalize_file(url)
    rest = url[len(scheme) + 1 :]
    if not rest.startswith("//"):
        raise ValueError(f"'{scheme}:' must be followed by '//', as in {scheme}://bucket/key")
    if not authority_of(url):
        raise ValueError(f"it names no bucket or host; write {scheme}://bucket/key")
    return f"{scheme}:{rest}"


def _normalize_file(url: str) -> str:
    text = url.strip(_TRIMMED).translate(_REMOVED)[len("file:") :]
    text, number, fragment = text.partition("#")
    text, question, query = text.partition("?")
    text = text.replace("\\", "/")
    if text.startswith("//"):
        host, slash, path = text[2:].partition("/")
        if _DRIVE.fullmatch(host):  # file://C:/… is often meant as file:///C:/…
            host, slash, path = "", "/", f"{host}{slash}{path}"
        if host.lower() not in ("", "localhost"):
            raise ValueError(f"file URLs name no host, but this one names {host!r}; write file:///absolute/path")
        text = slash + path
    path = "/".join(_resolved(text.lstrip("/").split("/"))).lstrip("/")
    return (
        f"file:///{quote(path, _SAFE_IN_PATH)}{question}{quote(query, _SAFE_IN_QUERY)}"
        f"{number}{quote(fragment, _SAFE_IN_FRAGMENT)}"
    )


def _resolved(segments: list[str]) -> list[str]:
    kept: list[str] = []
    last = len(segments) - 1
    for position, segment in enumerate(segments):
        if segment in _DOT_DOT:
            if kept and not (len(kept) == 1 and _DRIVE.fullmatch(kept[0])):
                kept.pop()
            if position == last:
                kept.append("")
        elif segment in _DOT:
            if position == last:
                kept.append("")
        else:
            kept.append(segment)
    return kept


def file_path_bytes(url: str) -> bytes:
    """Absolute path that a canonical ``file:`` URL names; raises ValueError for one that no URL should name."""
    path = path_of(url)
    if _FORBIDDEN_ESCAPES.search(path):
        raise ValueError("a file name cannot hold '/' or NUL; correct the percent-encoding (%2F, %00)")
    return b"/" + unquote_to_bytes(path)


def has_dot_segments(key: bytes) -> bool:
    """True when a decoded key has ``.`` or ``..`` segments, which some would resolve."""
    return not {b".", b".."}.isdisjoint(key.split(b"/"))


def is_addressable(key: bytes) -> bool:
    """False when a decoded key has dot segments or empty ones (the last may be empty), as only S3 knows them."""
    return (not has_dot_segments(key) and b"" not in key.removesuffix(b"/").split(b"/")) or key == b""
