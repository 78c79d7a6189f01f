"""Read ranges of objects on web servers, and follow only redirects to authorised places.

obstore follows every redirect and has no option to stop it. So a server could make its readers send requests to any
address in their own network, with headers that are meant for the server. This module therefore requests virtual chunks
with urllib3 and checks each redirect before it follows it.
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
from typing import TYPE_CHECKING, NamedTuple, TypedDict
from urllib.parse import quote, unquote, urljoin, urlsplit

from icechunk_engine._runtime.locks import forget_in_child, memory_lock
from icechunk_engine._runtime.pools import POOL_SIZE
from icechunk_engine.config import virtual_urls
from icechunk_engine.errors import ErrorKind, InvalidInputError, ObjectNotFoundError, StorageError
from icechunk_engine.storage.object_store.buckets import Bucket, OptionValue
from icechunk_engine.storage.object_store.reading import Part
from icechunk_engine.storage.ranges import too_short
from icechunk_engine.virtual.client_options import HTTP_OPTIONS, OBSTORE_OPTIONS
from icechunk_engine.virtual.error_remedies import grant

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, PoolManager

_MAX_REDIRECTS = 10
_MAX_TRIES = 10
_MAX_RETRY_S = 180.0
"""A request is not repeated after this time."""
_MAX_PAUSE_S = 15.0
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 60.0

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


def read_part(
    bucket: Bucket, path: str, start: int, stop: int, object_name: str, *, places: Sequence[str], prefix: str
) -> Part:
    """Read bytes ``start:stop`` (at least one) of an object on a web server. Failed requests are repeated.

    Parameters
    ----------
    bucket
        The server. Its ``name`` is the base URL.
    path
        Path of the object, percent-decoded.
    object_name
        Name of the object in error messages.
    places
        Origins that the server may redirect to, besides its own.
    prefix
        URL prefix of the container, for error messages.

    Raises
    ------
    ObjectNotFoundError
        The object does not exist.
    InvalidInputError
        ``unauthorized-virtual-chunk-container``: the server redirects to another place.
    StorageError
        The request failed for any other reason.
    """
    server = server_of(bucket)
    url = f"{server.base}/{quote(path, _SAFE_IN_PATH)}"
    authorised = _Authorised(virtual_urls.origin_of(server.base), places, object_name, prefix)
    return with_retries(lambda: _range_of(server, url, start, stop, object_name, authorised), object_name)


def with_retries(request: Callable[[], Part], object_name: str) -> Part:
    """Make a request, and repeat it if it fails for a reason that may pass."""
    began, pause = time.monotonic(), 0.1
    for tries in range(1, _MAX_TRIES + 1):
        last = tries == _MAX_TRIES or time.monotonic() - began > _MAX_RETRY_S
        try:
            return request()
        except _PassingError as error:
            if last:
                raise StorageError(
                    f"{object_name}: {error}. Check the network and the server, then try again", error.kind
                ) from None
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, _MAX_PAUSE_S)
    raise AssertionError("the last try returns or raises")


class _PassingError(Exception):
    """A request failed, but may succeed if it is repeated."""

    def __init__(self, message: str, kind: ErrorKind = ErrorKind.OBJECT_STORE) -> None:
        super().__init__(message)
        self.kind = kind


class _Authorised(NamedTuple):
    """Where requests for one object may go."""

    origin: str
    places: Sequence[str]
    object_name: str
    prefix: str

    def redirected(self, url: str, location: str | None) -> str:
        """Return the URL that a response redirects to. Raises if that place is not authorised."""
        if not location:
            raise StorageError(
                f"{self.object_name}: the server redirects, but gives no location", ErrorKind.VIRTUAL_CHUNK_FETCH
            )
        target = urljoin(url, location)
        try:
            origin = virtual_urls.origin_of(target)
        except ValueError:
            raise StorageError(
                f"{self.object_name}: the server redirects to something that is not a web address",
                ErrorKind.VIRTUAL_CHUNK_FETCH,
            ) from None
        # A server may redirect from http to https.
        if origin not in (self.origin, self.origin.replace("http://", "https://", 1), *self.places):
            raise InvalidInputError(
                f"{self.object_name}: the server redirects to {origin}, which is not authorised. If you trust this "
                f"address, name it:\n    Repository.open(storage, authorize_virtual_chunk_access="
                f"{grant([self.prefix], origin)})",
                ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
            )
        return target


def _range_of(server: _Server, url: str, start: int, stop: int, object_name: str, authorised: _Authorised) -> Part:
    for _ in range(_MAX_REDIRECTS + 1):
        with server.answer_for(url, start, stop) as answer:
            if answer.status not in REDIRECTS:
                return part_of(answer, start, stop, object_name)
            url = authorised.redirected(url, answer.headers.get("location"))
    raise StorageError(
        f"{object_name}: the server redirects more than {_MAX_REDIRECTS} times", ErrorKind.VIRTUAL_CHUNK_FETCH
    )


def part_of(answer: BaseHTTPResponse, start: int, stop: int, object_name: str) -> Part:
    """Return the part of an object in a response. Raises the errors of :func:`read_part`."""
    status = answer.status
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip().lower())
    if status == HTTPStatus.PARTIAL_CONTENT and found is not None and found[1] == str(start):
        data = answer.read(stop - start)
        if len(data) == stop - start:
            return Part(data, answer.headers.get("etag"), _date(answer.headers.get("last-modified")))
        if found[2] != "*" and int(found[2]) < stop:
            raise too_short(object_name, int(found[2]), stop)
        raise _PassingError("the response was cut short")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        size_bytes = int(found[2]) if found is not None and found[2] != "*" else start
        raise too_short(object_name, size_bytes, stop)
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise StorageError(
            f"{object_name}: the server does not honour byte ranges, which virtual chunks need. Use a server that "
            f"does, or copy the objects",
            ErrorKind.STORAGE_CONFIG,
        )
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise ObjectNotFoundError(f"object {object_name} does not exist")
    said = f"the server answered {status}"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        raise _PassingError(f"{said}: it asks for fewer requests", ErrorKind.THROTTLED)
    if status >= 500 or status == HTTPStatus.REQUEST_TIMEOUT:
        raise _PassingError(said)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise StorageError(
            f"{object_name}: access was denied ({said}). Check the credentials, or the headers of http_store",
            ErrorKind.VIRTUAL_CHUNK_FETCH,
        )
    raise StorageError(f"{object_name}: {said}. Check the location", ErrorKind.VIRTUAL_CHUNK_FETCH)


def _date(text: str | None) -> datetime:
    """Parse a date header. An object without a date counts as old."""
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return _NO_DATE
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


# --- servers --------------------------------------------------------------------------------------------------------


class _Server:
    """Connections to one server, and to the servers that it redirects to."""

    def __init__(self, bucket: Bucket) -> None:
        urllib3 = _import_urllib3()
        options = _known_options(bucket)
        parts = urlsplit(bucket.name)
        self.base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._origin = virtual_urls.origin_of(self.base)
        self._failures = (urllib3.exceptions.HTTPError, OSError)
        self._headers = {"user-agent": "xarray-icechunk", "accept-encoding": "identity", **dict(bucket.read_headers)}
        if "user_agent" in options:
            self._headers["user-agent"] = str(options["user_agent"])
        if "@" in parts.netloc:
            login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            self._headers |= urllib3.util.make_headers(basic_auth=login)
        total = duration_s(options.get("timeout"), None)
        self._timeout = urllib3.Timeout(
            total=total if total is not None and total < timedelta(days=1).total_seconds() else None,
            connect=duration_s(options.get("connect_timeout"), _CONNECT_TIMEOUT_S),
            read=duration_s(options.get("read_timeout"), _READ_TIMEOUT_S),
        )
        self._pools = _PoolOptions(maxsize=POOL_SIZE, ssl_context=_tls(options))
        self._direct: PoolManager = urllib3.PoolManager(**self._pools)
        self._proxies = _proxies(options)
        self._proxied: dict[str, PoolManager] = {}
        self._options = options

    def answer_for(self, url: str, start: int, stop: int) -> AbstractContextManager[BaseHTTPResponse]:
        """Make one request without following a redirect. The body of the response is not read yet."""
        headers = self._headers
        # The user's headers are only for the server that the user named.
        if virtual_urls.origin_of(url) != self._origin:
            headers = {name: headers[name] for name in ("user-agent", "accept-encoding")}
        return self._answer(self._manager(url), url, headers, start, stop)

    def answer_for_path(
        self, origin: str, path: str, headers: Mapping[str, str], start: int, stop: int
    ) -> AbstractContextManager[BaseHTTPResponse]:
        """Request a path of the server literally. Not even ``..`` is resolved."""
        pool = self._manager(origin).connection_from_url(origin)
        return self._answer(pool, path, {**self._headers, **headers}, start, stop)

    @contextmanager
    def _answer(
        self,
        connections: PoolManager | HTTPConnectionPool,
        target: str,
        headers: Mapping[str, str],
        start: int,
        stop: int,
    ) -> Iterator[BaseHTTPResponse]:
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
            raise _PassingError(f"no connection ({type(error).__name__})") from None
        try:
            yield answer
        except self._failures as error:
            raise _PassingError(f"the connection failed ({type(error).__name__})") from None
        finally:
            answer.close()
            answer.release_conn()

    def _manager(self, url: str) -> PoolManager:
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


def duration_s(value: object, otherwise: float | None) -> float | None:
    """Return the seconds of an option such as ``"1min 30s"``, or ``otherwise`` if it is None.

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


type _Options = Mapping[str, OptionValue | None]


class _PoolOptions(TypedDict):
    maxsize: int
    ssl_context: ssl.SSLContext


def _known_options(bucket: Bucket) -> _Options:
    options = {name.lower(): value for name, value in bucket.client}
    unknown = sorted(options.keys() - HTTP_OPTIONS - OBSTORE_OPTIONS)
    if unknown:
        raise InvalidInputError(
            f"http_store has no option {', '.join(unknown)}. Its options are {', '.join(sorted(HTTP_OPTIONS))}",
            ErrorKind.STORAGE_CONFIG,
        )
    return options


def _tls(options: _Options) -> ssl.SSLContext:
    if str(options.get("allow_invalid_certificates")).lower() == "true":
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        return trusting
    context: ssl.SSLContext = _import_truststore().SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificates = options.get("root_certificate")
    if certificates:
        text = certificates.decode() if isinstance(certificates, bytes) else str(certificates)
        try:
            context.load_verify_locations(cadata=text)
        except (ValueError, OSError):
            raise InvalidInputError(
                "root_certificate has no certificate in PEM format", ErrorKind.STORAGE_CONFIG
            ) from None
    return context


def _proxies(options: _Options) -> dict[str, str]:
    """Return proxies by scheme, and under ``no`` the hosts without one. The environment is the default."""
    if options.get("proxy_url"):
        return {"all": str(options["proxy_url"]), "no": str(options.get("proxy_excludes") or "")}
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
    """Connections of this process. A forked child makes its own."""

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
        """Drop the connections in a forked child, because the parent still uses them."""
        self._servers = {}


_SERVERS = forget_in_child(_Servers())


def server_of(bucket: Bucket) -> _Server:
    """Return the connections of this process to a server."""
    return _SERVERS.of(bucket)
