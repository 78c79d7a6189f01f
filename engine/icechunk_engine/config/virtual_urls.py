"""The text of virtual chunk URLs: schemes, authorities, the canonical form of ``file:`` URLs. Pure.

Locations of all other schemes are stored as written, only the scheme in lower case: keys of object stores may hold
anything, and two spellings may be two objects. ``file:`` URLs are brought to the WHATWG URL standard's form, which
resolves ``.`` and ``..``, so that a container's prefix cannot be left.
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
# What stays as it is in paths; everything else in ASCII, and all beyond, is percent-encoded.
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
"""Last labels that make browsers and HTTP clients read a host as an IPv4 address, whatever the rest looks like."""
_NOT_IN_WINDOWS_NAMES = re.compile(r'[\x00-\x1f<>:"|?*\\]|[. ]$')
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)


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


def origin_of(url: str) -> str:
    """Scheme, host and port of a web address, in lower case and without the scheme's own port.

    Raises
    ------
    ValueError
        It is not an address of a web server, or its host has characters that clients rewrite before they connect.
    """
    scheme, whole = scheme_of(url), authority_of(url)
    # What parsers disagree about, such as "https:/a/://b" and "https://a\@b", has no origin.
    if not re.match("https?://", url, re.IGNORECASE) or not whole.isascii() or _NOT_IN_AUTHORITY.search(whole):
        scheme = None
    authority = whole.rpartition("@")[2].lower()
    host, _, port = authority.rpartition(":") if re.search(r":[0-9]*$", authority) else (authority, "", "")
    if scheme not in _DEFAULT_PORTS or not _HOST.fullmatch(host) or int(port or 0) > 65535:
        raise ValueError("it is not an address of a web server; write https://host or https://host:port")
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS[scheme] else "")


def host_of(origin: str) -> str:
    """Host of an :func:`origin_of`, without its port."""
    return re.sub(r":[0-9]+$", "", authority_of(origin))


def is_public_host(host: str) -> bool:
    """False for names and addresses that mean this machine or its network."""
    if host.startswith("["):
        host = host[1:-1]
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        labels = host.removesuffix(".").split(".")
        return len(labels) > 1 and labels[-1] not in _LOCAL_DOMAINS and not _LIKE_A_NUMBER.fullmatch(labels[-1])


def normalize(url: str) -> str:
    """Canonical form of a location or prefix; raises ValueError with the reason and the remedy."""
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
        raise ValueError(f"it names no bucket or host; write {scheme}://bucket/key")
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
    path = unquote_to_bytes(path_of(url))
    if b"\0" in path:
        raise ValueError("a file name cannot hold NUL; correct the percent-encoding (%00)")
    return b"/" + path


def windows_path(path: bytes) -> str:
    """A path of :func:`file_path_bytes` as Windows wants it, ``C:/folder/file``.

    Windows reads more into names than other systems: ``\\`` separates, ``:`` opens a stream, dots and blanks at the
    end vanish, and some names are devices in every folder. A container could be left through each of these.

    Raises
    ------
    ValueError
        The path has no drive, or a name that Windows would read as another one.
    """
    drive, *names = path[1:].decode("utf-8", "surrogateescape").split("/")
    if not _DRIVE.fullmatch(drive) or not names:
        raise ValueError("it has no drive; write file:///C:/folder/file")
    for name in names:
        if _NOT_IN_WINDOWS_NAMES.search(name) or _WINDOWS_DEVICES.fullmatch(name):
            raise ValueError(f"Windows has no file named {name!r}; correct the name")
    return "/".join((drive, *names))


def has_dot_segments(key: bytes) -> bool:
    """True when a decoded key has ``.`` or ``..`` segments, which some would resolve."""
    return not {b".", b".."}.isdisjoint(key.split(b"/"))


def is_addressable(key: bytes) -> bool:
    """False when a decoded key has dot segments or empty ones (the last may be empty), as only S3 knows them."""
    return (not has_dot_segments(key) and b"" not in key.removesuffix(b"/").split(b"/")) or key == b""
