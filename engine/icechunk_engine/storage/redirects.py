"""Repositories whose place a web server names with an HTTP redirect."""

from __future__ import annotations

import base64
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException

from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.from_keywords import gcs_storage, http_storage, s3_storage, tigris_storage
from icechunk_engine.storage.wrappers import ReadOnlyStorage

_MAX_REDIRECTS = 10


def redirect_storage(base_url: str) -> Storage:
    """Follow the redirects of a web server to a storage. It is read-only and uses no credentials.

    At most ten redirects are followed, at once, until one leads to ``s3://bucket/prefix?region=…``, ``gs://``,
    ``gcs://``, ``tigris://`` or ``http(s)+icechunk://``.

    Raises
    ------
    StorageError
        ``bad-redirect``.
    """
    opener = urllib.request.build_opener(_NoRedirects)
    url = base_url
    for _ in range(_MAX_REDIRECTS):
        location = _redirect_of(opener, url)
        target = urllib.parse.urljoin(url, location)
        storage = _storage_of_redirect(target)
        if storage is not None:
            return storage
        url = target
    raise _bad_redirect(base_url, f"more than {_MAX_REDIRECTS} redirects")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


def _redirect_of(opener: urllib.request.OpenerDirector, url: str) -> str:
    """Return where a URL redirects to."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _bad_redirect(url, "its scheme is not supported")
    request = _request_of(url)
    try:
        with opener.open(request, timeout=60) as answer:
            raise _bad_redirect(url, f"the server answered {answer.status}, not a redirect")
    except urllib.error.HTTPError as error:
        location = error.headers.get("Location")
        error.close()
        if not 300 <= error.code < 400 or not location:
            raise _bad_redirect(url, f"the server answered {error.code}, not a redirect") from None
        return str(location)
    except (OSError, HTTPException, ValueError) as error:
        raise _bad_redirect(url, str(error)) from None


def _request_of(url: str) -> urllib.request.Request:
    """Make a request. The login in the URL becomes a header, where servers look for it."""
    parts = urllib.parse.urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))
    if at:
        encoded = base64.b64encode(urllib.parse.unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def _storage_of_redirect(url: str) -> Storage | None:
    """Return the storage for a URL that ends a chain of redirects, None for other URLs."""
    parts = urllib.parse.urlsplit(url)
    query = {name: values[-1] for name, values in urllib.parse.parse_qs(parts.query).items()}
    bucket, prefix = parts.netloc, urllib.parse.unquote(parts.path)
    match parts.scheme:
        case "s3":
            if "region" not in query:
                raise _bad_redirect(url, "it has no region, as in s3://bucket/prefix?region=…")
            storage = s3_storage(
                bucket=bucket,
                prefix=prefix,
                region=query["region"],
                endpoint_url=query.get("endpoint_url"),
                anonymous=True,
            )
        case "gs" | "gcs":
            storage = gcs_storage(bucket=bucket, prefix=prefix, anonymous=True)
        case "tigris":
            storage = tigris_storage(bucket=bucket, prefix=prefix, anonymous=True, use_weak_consistency=True)
        case "http+icechunk" | "https+icechunk" | "http+ic" | "https+ic":
            storage = http_storage(f"{parts.scheme.partition('+')[0]}://{parts.netloc}{parts.path}")
        case _:
            return None
    return storage if storage.read_only else ReadOnlyStorage(storage)


def _bad_redirect(url: str, why: str) -> StorageError:
    return StorageError(
        f"{url} does not lead to a repository: {why}. It must redirect to s3://, gs://, tigris:// or "
        f"https+icechunk://. If you know where the repository is, open it there",
        ErrorKind.BAD_REDIRECT,
    )
