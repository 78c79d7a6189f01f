"""Ranges of objects on web servers, asked for without following redirects to places that nobody authorised.

The client of object stores follows every redirect and cannot be told not to. A server could so make its readers fetch
from any address of their own network, with the headers that were meant for the server. Requests of virtual chunks are
therefore made here, by urllib3, and each redirect is judged before it is followed.
"""

from __future__ import annotations

import random
import re
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from icechunk_engine._runtime.locks import forget_in_child, memory_lock
from icechunk_engine._runtime.pools import POOL_SIZE
from icechunk_engine.config import virtual_urls
from icechunk_engine.errors import ErrorKind, InvalidInputError, ObjectNotFoundError, StorageError
from icechunk_engine.storage.object_store.buckets import Bucket
from icechunk_engine.storage.object_store.storage import Part
from icechunk_engine.storage.ranges import too_short
from icechunk_engine.virtual.error_remedies import grant

_MOST_REDIRECTS = 10
_MOST_TRIES = 10
_PATIENCE_S = 180.0
"""No request is repeated after so long."""
_LONGEST_PAUSE_S = 15.0
_CONNECT_S = 5.0
_SILENCE_S = 60.0

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAFE_IN_PATH = "/~!$&'()*+,;=:@-._"
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+|\*)")
_NO_DATE = datetime(1970, 1, 1, tzinfo=UTC)

_DURATION = re.compile(r"([0-9]+)\s*([a-z]+)\s*")
_SECONDS = {
    **dict.fromkeys(("nsec", "ns"), 1e-9),
    **dict.fromkeys(("usec", "us"), 1e-6),
    **dict.fromkeys(("msec", "ms"), 1e-3),
    **dict.fromkeys(("seconds", "second", "sec", "s"), 1.0),
    **dict.fromkeys(("minutes", "minute", "min", "m"), 60.0),
    **dict.fromkeys(("hours", "hour", "hr", "h"), 3600.0),
    **dict.fromkeys(("days", "day", "d"), 86400.0),
}

_OF_OTHER_CLIENTS = frozenset(
    {
        "allow_http",
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
"""Options that are accepted and mean nothing here."""


def read_part(
    bucket: Bucket, path: str, start: int, stop: int, shown: str, *, places: Sequence[str], prefix: str
) -> Part:
    """Bytes ``start:stop`` (at least one) of an object on a web server, by one request, or several when it fails.

    Parameters
    ----------
    bucket
        The server; its ``name`` is the base URL.
    path
        Of the object, percent-decoded.
    shown
        Names the object in errors.
    places
        Origins besides the server's own that it may redirect to.
    prefix
        URL prefix of the container, for errors.

    Raises
    ------
    ObjectNotFoundError
        No such object.
    InvalidInputError
        ``unauthorized-virtual-chunk-container``: the server redirects to another place.
    StorageError
        Whatever else goes wrong.
    """
    server = server_of(bucket)
    url = f"{server.base}/{quote(path, _SAFE_IN_PATH)}"
    may_go = _Authorised(virtual_urls.origin_of(server.base), places, shown, prefix)
    return with_patience(lambda: _range_of(server, url, start, stop, shown, may_go), shown)


def with_patience(ask: Callable[[], Part], shown: str) -> Part:
    """What a request gives, made again a few times when it fails in a way that may pass."""
    began, pause = time.monotonic(), 0.1
    for tries in range(1, _MOST_TRIES + 1):
        last = tries == _MOST_TRIES or time.monotonic() - began > _PATIENCE_S
        try:
            return ask()
        except _FailedError as error:
            if last:
                raise StorageError(
                    f"{shown}: {error}. Check the network and the server, then try again", error.kind
                ) from None
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _LONGEST_PAUSE_S)
    raise AssertionError("the last try returns or raises")


class _FailedError(Exception):
    """A request that may be made again."""

    def __init__(self, message: str, kind: ErrorKind = ErrorKind.OBJECT_STORE) -> None:
        super().__init__(message)
        self.kind = kind


class _Authorised(NamedTuple):
    """Where requests for one object may go."""

    origin: str
    places: Sequence[str]
    shown: str
    prefix: str

    def redirected(self, url: str, location: str | None) -> str:
        """The URL that an answer redirects to; raises when nobody said that it may be asked for."""
        if not location:
            raise StorageError(f"{self.shown}: the server redirects to nowhere", ErrorKind.VIRTUAL_CHUNK_FETCH)
        target = urljoin(url, location)
        try:
            origin = virtual_urls.origin_of(target)
        except ValueError:
            raise StorageError(
                f"{self.shown}: the server redirects to something that is not a web address",
                ErrorKind.VIRTUAL_CHUNK_FETCH,
            ) from None
        # A server may ask for encryption.
        if origin not in (self.origin, self.origin.replace("http://", "https://", 1), *self.places):
            raise InvalidInputError(
                f"{self.shown}: the server redirects to {origin}, which was not authorised. If you trust that "
                f"address, name it:\n    Repository.open(storage, authorize_virtual_chunk_access="
                f"{grant([self.prefix], origin)})",
                ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
            )
        return target


def _range_of(server: _Server, url: str, start: int, stop: int, shown: str, may_go: _Authorised) -> Part:
    for _ in range(_MOST_REDIRECTS + 1):
        with server.answer_for(url, start, stop) as answer:
            if answer.status not in REDIRECTS:
                return part_of(answer, start, stop, shown)
            url = may_go.redirected(url, answer.headers.get("location"))
    raise StorageError(
        f"{shown}: the server redirects more than {_MOST_REDIRECTS} times", ErrorKind.VIRTUAL_CHUNK_FETCH
    )


def part_of(answer: Any, start: int, stop: int, shown: str) -> Part:
    """What an answer gives of an object; errors as for :func:`read_part`."""
    status = answer.status
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip().lower())
    if status == HTTPStatus.PARTIAL_CONTENT and found is not None and found[1] == str(start):
        data = answer.read(stop - start)
        if len(data) == stop - start:
            return Part(data, answer.headers.get("etag"), _date(answer.headers.get("last-modified")))
        if found[2] != "*" and int(found[2]) < stop:
            raise too_short(shown, int(found[2]), stop)
        raise _FailedError("the answer was cut short")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        size_bytes = int(found[2]) if found is not None and found[2] != "*" else start
        raise too_short(shown, size_bytes, stop)
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise StorageError(
            f"{shown}: the server does not honour byte ranges, which virtual chunks need. Use a server that does, or "
            f"copy the objects",
            ErrorKind.STORAGE_CONFIG,
        )
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise ObjectNotFoundError(f"there is no object {shown}")
    said = f"the server answered {status}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise _FailedError(f"{said}: it asks for fewer requests", ErrorKind.THROTTLED)
    if status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT:
        raise _FailedError(said)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise StorageError(
            f"{shown}: access was denied ({said}). Check the credentials, or the headers of http_store",
            ErrorKind.VIRTUAL_CHUNK_FETCH,
        )
    raise StorageError(f"{shown}: {said}. Check the location", ErrorKind.VIRTUAL_CHUNK_FETCH)


def _date(text: str | None) -> datetime:
    """Of a header; where there is none, an object counts as old."""
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return _NO_DATE
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


# --- servers --------------------------------------------------------------------------------------------------------


class _Server:
    """Connections for the requests to one server, and to those that it redirects to."""

    def __init__(self, bucket: Bucket) -> None:
        urllib3 = _import_urllib3()
        options = _known_options(bucket)
        parts = urlsplit(bucket.name)
        self.base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._origin = virtual_urls.origin_of(self.base)
        self._failures = (urllib3.exceptions.HTTPError, OSError)
        self._headers = {"user-agent": "xarray-icechunk", "accept-encoding": "identity", **dict(bucket.read_headers)}
        if "user_agent" in options:
            self._headers["user-agent"] = options["user_agent"]
        if "@" in parts.netloc:
            login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            self._headers |= urllib3.util.make_headers(basic_auth=login)
        total = duration_s(options.get("timeout"), None)
        self._timeout = urllib3.Timeout(
            total=total if total is not None and total < timedelta(days=1).total_seconds() else None,
            connect=duration_s(options.get("connect_timeout"), _CONNECT_S),
            read=duration_s(options.get("read_timeout"), _SILENCE_S),
        )
        self._pools = {"maxsize": POOL_SIZE, "ssl_context": _tls(options)}
        self._direct = urllib3.PoolManager(**self._pools)
        self._proxies = _proxies(options)
        self._proxied: dict[str, Any] = {}
        self._options = options

    def answer_for(self, url: str, start: int, stop: int) -> AbstractContextManager[Any]:
        """The answer to one request, whose body is not read yet. No redirect is followed."""
        headers = self._headers
        if (
            virtual_urls.origin_of(url) != self._origin
        ):  # headers of the user are for the server that was named with them
            headers = {name: headers[name] for name in ("user-agent", "accept-encoding")}
        return self._answer(self._manager(url), url, headers, start, stop)

    def answer_for_path(
        self, origin: str, path: str, headers: Mapping[str, str], start: int, stop: int
    ) -> AbstractContextManager[Any]:
        """:meth:`answer_for` a path of the server itself, sent as it is: not even ``..`` is resolved."""
        pool = self._manager(origin).connection_from_url(origin)
        return self._answer(pool, path, {**self._headers, **headers}, start, stop)

    @contextmanager
    def _answer(
        self, connections: Any, target: str, headers: Mapping[str, str], start: int, stop: int
    ) -> Iterator[Any]:
        try:
            answer = connections.urlopen(
                "GET",
                target,
                headers={**headers, "range": f"bytes={start}-{stop - 1}"},
                timeout=self._timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except self._failures as error:
            raise _FailedError(f"no connection ({type(error).__name__})") from None
        try:
            yield answer
        except self._failures as error:
            raise _FailedError(f"the connection failed ({type(error).__name__})") from None
        finally:
            answer.close()
            answer.release_conn()

    def _manager(self, url: str) -> Any:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
        proxy = self._proxies.get(scheme) or self._proxies.get("all")
        if not proxy or urllib.request.proxy_bypass_environment(host, self._proxies):  # type: ignore[attr-defined]
            return self._direct
        manager = self._proxied.get(proxy)
        if manager is None:
            urllib3 = _import_urllib3()
            at = urlsplit(proxy)
            login = f"{unquote(at.username or '')}:{unquote(at.password or '')}" if "@" in at.netloc else None
            manager = self._proxied[proxy] = urllib3.ProxyManager(
                f"{at.scheme}://{at.netloc.rpartition('@')[2]}",
                proxy_headers=urllib3.util.make_headers(proxy_basic_auth=login) if login else None,
                proxy_ssl_context=_tls({"root_certificate": self._options.get("proxy_ca_certificate")}),
                **self._pools,
            )
        return manager


def duration_s(value: Any, otherwise: float | None) -> float | None:
    """Seconds of an option such as ``"1min 30s"``.

    Raises
    ------
    InvalidInputError
        ``storage-config``.
    """
    if value is None:
        return otherwise
    if isinstance(value, timedelta):
        return value.total_seconds()
    text = str(value).strip()
    spans = list(_DURATION.finditer(text))
    if not spans or "".join(span[0] for span in spans) != text or any(span[2] not in _SECONDS for span in spans):
        raise InvalidInputError(f"{value!r} is not a duration; write e.g. '30s' or '500ms'", ErrorKind.STORAGE_CONFIG)
    return sum(int(span[1]) * _SECONDS[span[2]] for span in spans)


_OPTIONS = frozenset(
    {
        "allow_invalid_certificates",
        "connect_timeout",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    }
)


def _known_options(bucket: Bucket) -> dict[str, Any]:
    options = {name.lower(): value for name, value in bucket.client}
    unknown = sorted(options.keys() - _OPTIONS - _OF_OTHER_CLIENTS)
    if unknown:
        raise InvalidInputError(
            f"http_store has no option {', '.join(unknown)}. It knows {', '.join(sorted(_OPTIONS))}",
            ErrorKind.STORAGE_CONFIG,
        )
    return options


def _tls(options: Mapping[str, Any]) -> ssl.SSLContext:
    if str(options.get("allow_invalid_certificates")).lower() == "true":
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        return trusting
    context: ssl.SSLContext = _import_truststore().SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificates = options.get("root_certificate")
    if certificates:
        text = certificates.decode() if isinstance(certificates, bytes) else certificates
        try:
            context.load_verify_locations(cadata=text)
        except (ValueError, OSError):
            raise InvalidInputError(
                "root_certificate holds no certificates in PEM form", ErrorKind.STORAGE_CONFIG
            ) from None
    return context


def _proxies(options: Mapping[str, Any]) -> dict[str, str]:
    """By scheme, and under ``no`` the hosts that are asked without one; from the environment if no option says."""
    if options.get("proxy_url"):
        return {"all": options["proxy_url"], "no": options.get("proxy_excludes") or ""}
    return urllib.request.getproxies()


def _import_urllib3() -> ModuleType:
    try:
        import urllib3
        import urllib3.exceptions
        import urllib3.util
    except ImportError as error:
        raise _not_installed("urllib3") from error
    return urllib3


def _import_truststore() -> ModuleType:
    try:
        import truststore
    except ImportError as error:
        raise _not_installed("truststore") from error
    return truststore


def _not_installed(package: str) -> StorageError:
    return StorageError(
        f"virtual chunks on web servers need the package {package}, which is not installed; install it with\n"
        f"    pip install 'xarray-icechunk[cloud]'",
        ErrorKind.STORAGE_CONFIG,
    )


class _Servers:
    """The process's connections. A forked child makes its own."""

    def __init__(self) -> None:
        self._lock = memory_lock()
        self._servers: dict[Bucket, _Server] = {}

    def of(self, bucket: Bucket) -> _Server:
        server = self._servers.get(bucket)
        if server is None:
            made = _Server(bucket)
            with self._lock:
                server = self._servers.setdefault(bucket, made)
        return server

    def forget(self) -> None:
        """In a forked child, whose parent goes on using the connections."""
        self._servers = {}


_SERVERS = forget_in_child(_Servers())


def server_of(bucket: Bucket) -> _Server:
    """The connections of this process for a server."""
    return _SERVERS.of(bucket)
