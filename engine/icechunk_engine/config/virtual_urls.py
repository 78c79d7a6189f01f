"""Parse and normalise URLs of virtual chunks. Pure.

Invariant: :func:`normalize` is idempotent, never changes which object a URL names, and agrees with official unless it
refuses the URL.

- A ``file:`` URL gets the form of the WHATWG URL standard, which resolves ``.`` and ``..``. So a location cannot leave
  the prefix of its container.
- Other URLs stay as they are, except for the case of the scheme. Keys of object stores can contain anything, and two
  spellings can name two objects.

The invariant would break if file URLs were compared before they are normalised, or if dot segments of other schemes
were resolved.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, unquote_to_bytes

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_NOT_IN_AUTHORITY = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}/?#]")
_AUTHORITY = re.compile(r"(?:[^@\[\]]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^:@\[\]]+)(?::([0-9]*))?")
_TRIMMED = "".join(map(chr, range(0x21)))
_REMOVED = str.maketrans("", "", "\t\n\r")
# Characters that are not percent-encoded.
_SAFE_IN_PATH = "/!$%&'()*+,:;=@[]^_|~-."
_SAFE_IN_QUERY = "/!$%&()*+,:;=@[]^_|~-.?`{}\\"
_SAFE_IN_FRAGMENT = "/!$%&'()*+,:;=@[]^_|~-.?#{}\\"
_DOT = {".", "%2e", "%2E"}
_DOT_DOT = {first + second for first in _DOT for second in _DOT}
_DRIVE = re.compile("[A-Za-z]:")
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_LOCAL_DOMAINS = frozenset({"localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp"})
_LIKE_A_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""If the last label looks like this, browsers and HTTP clients read the host as an IPv4 address."""
_NOT_IN_WINDOWS_NAMES = re.compile(r'[\x00-\x1f<>:"|?*\\]|[. ]$')
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)


def scheme_of(url: str) -> str | None:
    """Return the scheme in lower case, or None if the URL has none."""
    match = _SCHEME.match(url)
    return None if match is None else match[1].lower()


def with_trailing_slash(prefix: str) -> str:
    """Return the prefix with a trailing ``/``."""
    return prefix if prefix.endswith("/") else prefix + "/"


def authority_of(url: str) -> str:
    """Return the bucket, container or host (with port) of a URL with ``://``."""
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]


def path_of(url: str) -> str:
    """Return the path of a URL with ``://`` as written, without the leading ``/``, query and fragment."""
    rest = url.partition("://")[2]
    return re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")[2]


def after_authority(url: str) -> str:
    """Return everything after the ``/`` that ends the authority, including query and fragment."""
    return url.partition("://")[2].partition("/")[2]


def decoded_path(url: str) -> bytes:
    """Return the percent-decoded :func:`path_of`."""
    return unquote_to_bytes(path_of(url))


def is_authority(text: str) -> bool:
    """Return True for a syntactically valid, non-empty authority."""
    match = _AUTHORITY.fullmatch(text)
    return match is not None and _NOT_IN_AUTHORITY.search(text) is None and int(match[1] or 0) < 65536


def origin_of(url: str) -> str:
    """Return scheme, host and port of a web address, in lower case and without the default port.

    Raises
    ------
    ValueError
        The URL is not the address of a web server, or clients would rewrite its host before they connect.
    """
    scheme, whole = scheme_of(url), authority_of(url)
    # Parsers disagree about URLs such as "https:/a/://b" and "https://a\@b", so they have no origin.
    if not re.match("https?://", url, re.IGNORECASE) or not whole.isascii() or _NOT_IN_AUTHORITY.search(whole):
        scheme = None
    authority = whole.rpartition("@")[2].lower()
    host, _, port = authority.rpartition(":") if re.search(r":[0-9]*$", authority) else (authority, "", "")
    if scheme not in _DEFAULT_PORTS or not _HOST.fullmatch(host) or int(port or 0) > 65535:
        raise ValueError("it is not an address of a web server; write https://host or https://host:port")
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS[scheme] else "")


def host_of(origin: str) -> str:
    """Return the host of an origin, without the port."""
    return re.sub(r":[0-9]+$", "", authority_of(origin))


def is_public_host(host: str) -> bool:
    """Return False for names and addresses of this machine or its network."""
    if host.startswith("["):
        host = host[1:-1]
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        labels = host.removesuffix(".").split(".")
        return len(labels) > 1 and labels[-1] not in _LOCAL_DOMAINS and not _LIKE_A_NUMBER.fullmatch(labels[-1])


def normalize(url: str) -> str:
    """Return the canonical form of a location or prefix. Raises ValueError with the reason and the remedy."""
    scheme = scheme_of(url)
    if scheme is None:
        raise ValueError(
            "it is not an absolute URL; write s3://bucket/key, https://host/path or file:///absolute/path "
            "(percent-encode special characters of file names)"
        )
    if scheme == "file":
        return _normalize_file(url)
    rest = url[len(scheme) + 1 :]
    if not rest.startswith("//"):
        raise ValueError(f"'{scheme}:' must be followed by '//', as in {scheme}://bucket/key")
    if not authority_of(url):
        raise ValueError(f"it has no bucket or host; write {scheme}://bucket/key")
    return f"{scheme}:{rest}"


def _normalize_file(url: str) -> str:
    # The reference implementation takes all text before the first "://" for the scheme. It reads "file:C://x" as a
    # URL with the scheme "file:c", which no container can have.
    if "://" in url and url.index("://") != len("file"):
        raise ValueError("it has '://' in its path; write file:///absolute/path")
    text = url.strip(_TRIMMED).translate(_REMOVED)[len("file:") :]
    text, number, fragment = text.partition("#")
    text, question, query = text.partition("?")
    text = text.replace("\\", "/")
    if text.startswith("//"):
        host, slash, path = text[2:].partition("/")
        if _DRIVE.fullmatch(host):  # file://C:/… usually means file:///C:/…
            host, slash, path = "", "/", f"{host}{slash}{path}"
        if host.lower() not in ("", "localhost"):
            raise ValueError(f"a file URL cannot have a host, but this one has {host!r}; write file:///absolute/path")
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
    """Return the absolute path of a canonical ``file:`` URL. Raises ValueError for an encoded NUL."""
    path = unquote_to_bytes(path_of(url))
    if b"\0" in path:
        raise ValueError("a file name cannot contain NUL; correct the percent-encoding (%00)")
    return b"/" + path


def windows_path(path: bytes) -> str:
    """Return a path of :func:`file_path_bytes` in Windows form, ``C:/folder/file``.

    Windows gives some names a special meaning: ``\\`` separates, ``:`` opens a stream, trailing dots and blanks
    vanish, and some names are devices in every folder. Each of these could lead out of a container.

    Raises
    ------
    ValueError
        The path has no drive, or Windows gives a name in it a special meaning.
    """
    drive, *names = path[1:].decode("utf-8", "surrogateescape").split("/")
    if not _DRIVE.fullmatch(drive) or not names:
        raise ValueError("it has no drive; write file:///C:/folder/file")
    for name in names:
        if _NOT_IN_WINDOWS_NAMES.search(name) or _WINDOWS_DEVICES.fullmatch(name):
            raise ValueError(f"Windows cannot have a file named {name!r}; correct the name")
    return "/".join((drive, *names))


def has_dot_segments(key: bytes) -> bool:
    """Return True if a decoded key has ``.`` or ``..`` segments, which some systems resolve."""
    return not {b".", b".."}.isdisjoint(key.split(b"/"))


def is_addressable(key: bytes) -> bool:
    """Return False if a decoded key has dot segments or empty segments except the last. Only S3 supports these."""
    return (not has_dot_segments(key) and b"" not in key.removesuffix(b"/").split(b"/")) or key == b""
