"""Convert the URLs of a reference set to locations of virtual chunks. Pure.

Invariant: a location names the file that fsspec would open for the URL, and is in the canonical form of the format.

A set has whatever was given to fsspec: paths, URLs with unquoted text after the host, several spellings of a scheme.
A location is a URL with a percent-encoded path. So a ``%`` or ``?`` of an object key must be quoted here, because
readers of the repository decode the path. URLs that could mean two things (queries, chained protocols, relative paths
without ``fs_root``) are refused and not guessed. Each distinct URL is converted once.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

import numpy as np

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.virtual import containers as rules
from icechunk_engine.virtual.error_remedies import container_lines

_SAFE = "/:@!$&'()*+,;=~-._[]|"
"""Characters of a path that are not quoted. URLs cannot have the others, or normalising file URLs changes them."""

_PLAIN = re.compile(r"(?:s3|gs|gcs|az|azure|abfs|tigris)://[^/@]+(?:/[A-Za-z0-9_:=,\-][A-Za-z0-9_:=,\-.]*)+")
"""The usual URL of an object, which is already a location."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(.*)", re.DOTALL)
_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_AZURE_ACCOUNT = re.compile(r"([^/@]+)@[^/]+(/.*)", re.DOTALL)

_OBJECT_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "s3n": "s3",
    "gs": "gs",
    "gcs": "gcs",
    "az": "az",
    "azure": "azure",
    "abfs": "abfs",
    "abfss": "az",
    "adl": "az",
    "tigris": "tigris",
}
_SPELLINGS = ({"gs", "gcs"}, {"az", "azure", "abfs"})
"""Schemes that mean the same. Prefixes are compared as text, so a location takes the spelling of its container."""

MAX_LISTED = 10
_NO_UNICODE = "the text is not valid Unicode"


class BadUrl(ValueError):
    """A URL cannot be a location. The message says why."""


def resolve_urls(urls: Iterable[str | None], *, target: str | None = None, fs_root: str | None = None) -> list[str]:
    """Convert distinct URLs to locations, in order.

    Parameters
    ----------
    urls
        URLs of the reference set. None means ``target``.
    target
        URL for references that have none.
    fs_root
        Directory, as path or URL, for relative paths.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: some URLs cannot be locations. The message lists them.
    """
    locations, refused = [], []
    for url in urls:
        if url is not None and _PLAIN.fullmatch(url):
            locations.append(url)
            continue
        try:
            locations.append(_location(url, target, fs_root))
        except BadUrl as error:
            refused.append(f"{short_repr(url)} ({error})")
    if refused:
        raise InvalidInputError(
            f"{len(refused)} of the URLs in the reference set cannot be locations of virtual chunks: "
            f"{listed(refused)}",
            ErrorKind.INVALID_VIRTUAL_REF,
        )
    return locations


def listed(items: Sequence[str]) -> str:
    """Join the first items for a message."""
    more = f", … and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more


def _location(url: str | None, target: str | None, fs_root: str | None) -> str:
    if url is None:
        if target is None:
            raise BadUrl("no URL; pass target=, the file that has these chunks")
        url = target
    if "::" in url:
        raise BadUrl("chained protocols are not supported; kerchunk.utils.dereference_archives may rewrite them")
    match = None if _WINDOWS_DRIVE.match(url) else _SCHEME.fullmatch(url)
    # `a:b` without slashes is a file name that contains a colon.
    if match is None or not (match[2].startswith("//") or match[1].lower() in ("file", "local")):
        return _path_location(url, fs_root)
    scheme, rest = match[1].lower(), match[2].removeprefix("//")
    if scheme in ("file", "local"):
        return _file_location(rest)
    if scheme in ("http", "https"):
        return _http_location(scheme, rest)
    if scheme in _OBJECT_SCHEMES:
        return _object_location(scheme, rest)
    raise BadUrl(f"virtual chunk containers do not support {scheme}://")


def _path_location(path: str, fs_root: str | None) -> str:
    if _WINDOWS_DRIVE.match(path):
        return _file_location("/" + path.replace("\\", "/"))
    if not path:
        raise BadUrl("the URL is empty")
    if path.startswith("/"):
        return _file_location(path)
    if fs_root is None:
        raise BadUrl("a relative path; pass fs_root=, the directory that it is relative to")
    if path.startswith("~"):
        raise BadUrl("paths below home directories are not expanded")
    root = fs_root if fs_root.endswith("/") else fs_root + "/"
    return _location(root + path, None, None)


def _file_location(path: str) -> str:
    if not path.startswith("/"):
        host, slash, rest = path.partition("/")
        if host != "localhost" or not slash:
            raise BadUrl("a file URL needs an absolute path: file:///…")
        path = "/" + rest
    if "\0" in path or path.endswith("/"):
        raise BadUrl("this is not a path of a file")
    # Two leading slashes are equivalent to one, but normpath keeps them.
    return "file://" + _quoted(posixpath.normpath("/" + path.lstrip("/")))


def _http_location(scheme: str, rest: str) -> str:
    rest = rest.partition("#")[0]
    if "?" in rest:
        raise BadUrl("the query after '?' (perhaps a signature) would not be sent when chunks are read")
    host, slash, path = rest.partition("/")
    if not host or not slash or not path:
        raise BadUrl("an http URL needs a host and a path")
    if "@" in host:
        raise BadUrl("URLs with a user name or password are not stored")
    _require_plain_segments(path)
    if _SURROGATE.search(rest):
        raise BadUrl(_NO_UNICODE)
    return f"{scheme}://{host}/{path}"


def _object_location(scheme: str, rest: str) -> str:
    account = _AZURE_ACCOUNT.fullmatch(rest) if scheme in ("az", "azure", "abfs", "abfss", "adl") else None
    if account is not None:
        scheme, rest = "az", account[1] + account[2]
    bucket, slash, key = rest.partition("/")
    if not bucket or not slash or not key:
        raise BadUrl(f"{scheme}:// URLs need a bucket and a key")
    if _OBJECT_SCHEMES[scheme] not in ("s3", "tigris"):
        _require_plain_segments(key)
    return f"{_OBJECT_SCHEMES[scheme]}://{bucket}/{_quoted(key)}"


def _require_plain_segments(key: str) -> None:
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise BadUrl("only S3 supports keys with empty, '.' or '..' components")


def _quoted(path: str) -> str:
    try:
        return quote(path, safe=_SAFE)
    except UnicodeEncodeError:
        raise BadUrl(_NO_UNICODE) from None


# --- containers --------------------------------------------------------------------------------------------------


def place_in_containers(locations: Sequence[str], containers: rules.Containers) -> list[str]:
    """Spell the scheme of each location as its container does.

    Raises
    ------
    InvalidInputError
        ``no-container-for-virtual-chunk``: some locations are in no container. The message has code that adds one.
    """
    placed = list(locations)
    outside = np.flatnonzero(rules.match_containers(placed, containers) == rules.NO_CONTAINER).tolist()
    candidates = [(row, other) for row in outside for other in _respelled(placed[row])]
    if candidates:
        fits = rules.match_containers([other for _, other in candidates], containers) != rules.NO_CONTAINER
        for (row, other), fit in zip(candidates, fits.tolist(), strict=True):
            if fit:
                placed[row] = other
    replaced = {row for row in outside if placed[row] != locations[row]}
    missing = [placed[row] for row in outside if row not in replaced]
    if missing:
        raise _no_container(missing, list(containers))
    return placed


def _respelled(location: str) -> list[str]:
    scheme, _, rest = location.partition("://")
    return [f"{other}://{rest}" for group in _SPELLINGS if scheme in group for other in sorted(group - {scheme})]


def suggested_prefixes(locations: Iterable[str]) -> list[str]:
    """Return URL prefixes of containers for the locations: buckets, hosts, and directories of files."""
    prefixes: dict[str, None] = {}
    directories: dict[str, None] = {}
    for location in locations:
        scheme, _, rest = location.partition("://")
        if scheme == "file":
            directories[posixpath.dirname(rest)] = None
        else:
            prefixes[f"{scheme}://{rest.partition('/')[0]}/"] = None
    if directories:
        common = posixpath.commonpath(directories)
        # "file:///" is not a valid container, because it would open the whole disk.
        for directory in [common] if common != "/" else sorted(directories):
            prefixes[f"file://{directory.rstrip('/')}/"] = None
    return list(prefixes)


def _no_container(missing: Sequence[str], prefixes: Sequence[str]) -> InvalidInputError:
    configured = f"the configured containers are {listed(prefixes)}" if prefixes else "no containers are configured"
    lines = "\n    ".join(container_lines(suggested_prefixes(missing)[:MAX_LISTED]))
    return InvalidInputError(
        f"{len(missing)} of the files in the reference set are in no virtual chunk container "
        f"(e.g. {missing[0]}); {configured}. Add what is missing, then import in a new session:\n    {lines}",
        ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK,
    )
