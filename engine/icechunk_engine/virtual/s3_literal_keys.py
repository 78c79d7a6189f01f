"""Read S3 objects whose keys have empty, ``.`` or ``..`` segments, or begin or end with a slash.

S3 takes keys literally. obstore refuses such keys, or strips slashes and reads the object of another key. So this
module signs and sends these requests itself.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage.object_store.authentication import s3_access
from icechunk_engine.storage.object_store.buckets import Bucket, StoreKind, s3_endpoint_of_environment
from icechunk_engine.storage.object_store.reading import Part
from icechunk_engine.virtual import http_servers

_NO_CONTENT = hashlib.sha256(b"").hexdigest()
_UNRESERVED = "-_.~"


class Keys(NamedTuple):
    """Keys that sign requests."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None


def is_literal(bucket: Bucket, key: str) -> bool:
    """Return True for an S3 object whose key obstore would change or refuse."""
    return bucket.kind is StoreKind.S3 and key != "" and not {"", ".", ".."}.isdisjoint(key.split("/"))


def read_part(bucket: Bucket, key: str, start: int, stop: int, object_name: str) -> Part:
    """Read bytes ``start:stop`` of an S3 object. Raises the errors of :func:`.http_servers.read_part`."""
    options = dict(bucket.options)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    region = str(options.get("region") or region)
    endpoint = urlsplit(
        str(options.get("endpoint") or s3_endpoint_of_environment() or f"https://s3.{region}.amazonaws.com")
    )
    origin = f"{endpoint.scheme}://{endpoint.netloc}"
    server = http_servers.server_of(replace(bucket, kind=StoreKind.HTTP, name=origin, options=(), credential=None))
    path = f"{endpoint.path.rstrip('/')}/{bucket.name}/{key}"
    extra = {"x-amz-request-payer": "requester"} if options.get("request_payer") else {}

    def request() -> Part:
        keys = _keys(bucket, object_name)
        headers = {"host": endpoint.netloc.rpartition("@")[2], **extra}
        if keys is not None:
            headers = signed(keys, region, path, headers, datetime.now(UTC))
        with server.answer_for_path(origin, quote(path, f"/{_UNRESERVED}"), headers, start, stop) as answer:
            if answer.status in http_servers.REDIRECTS or answer.status == 400:
                raise StorageError(
                    f"{object_name}: the server answered {answer.status}. If the bucket is in another region, pass "
                    f"its region in the container's s3_store",
                    ErrorKind.STORAGE_CONFIG,
                )
            return http_servers.part_of(answer, start, stop, object_name)

    return http_servers.with_retries(request, object_name)


def signed(keys: Keys, region: str, path: str, headers: Mapping[str, str], time: datetime) -> dict[str, str]:
    """Return headers with the signature of a ``GET`` request (AWS Signature Version 4).

    Parameters
    ----------
    path
        Absolute path, not encoded.
    headers
        Headers in lower case, including ``host``. All of them are signed.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    all_headers = {**headers, "x-amz-content-sha256": _NO_CONTENT, "x-amz-date": stamp}
    if keys.session_token:
        all_headers["x-amz-security-token"] = keys.session_token
    names = ";".join(sorted(all_headers))
    lines = "".join(f"{name}:{all_headers[name].strip()}\n" for name in sorted(all_headers))
    request = f"GET\n{quote(path, f'/{_UNRESERVED}')}\n\n{lines}\n{names}\n{_NO_CONTENT}"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in (stamp[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    all_headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return all_headers


def _keys(bucket: Bucket, object_name: str) -> Keys | None:
    """Return the current keys of the bucket's credential, or None for unsigned requests."""
    given = s3_access(bucket.credential)
    if given.options.get("skip_signature"):
        return None
    if given.provider is not None:
        found = given.provider()
        return Keys(found["access_key_id"], found["secret_access_key"], found["token"])
    try:
        return Keys(
            os.environ["AWS_ACCESS_KEY_ID"],
            os.environ["AWS_SECRET_ACCESS_KEY"],
            os.environ.get("AWS_SESSION_TOKEN"),
        )
    except KeyError:
        return _keys_of_machine(object_name)


def _keys_of_machine(object_name: str) -> Keys:
    try:
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session
    except ImportError:
        pass
    else:
        try:
            credentials = Session().get_credentials()
        except BotoCoreError:
            credentials = None
        if credentials is not None:
            keys = credentials.get_frozen_credentials()
            return Keys(keys.access_key, keys.secret_key, keys.token)
    raise StorageError(
        f"{object_name}: no credentials found. Pass keys (s3_credentials), or install botocore, which finds the "
        f"credentials of machines in the cloud: pip install botocore",
        ErrorKind.VIRTUAL_CHUNK_FETCH,
    )
