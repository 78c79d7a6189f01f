"""A fast S3 server in memory that simulates distance: ``python -m benchmarks.object_server FOLDER LATENCY_MS``.

It serves the files of a folder as the objects of one bucket, prints its port, and runs until you end it. It delays
each answer by the latency, but does not limit the number of requests in flight. So it measures how well a client hides
latency. It knows just enough of the protocol for the clients that are compared, and checks no signatures.
``GET /-/requests`` returns the number of requests of each method since the last such call.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

BUCKET = "bucket"
_KEPT = ("content-type", "x-amz-storage-class")


@dataclass(frozen=True, slots=True)
class Object:
    """One version of an object."""

    data: bytes
    etag: str
    headers: dict[str, str]
    modified_s: float


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was sent, with header names in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        return self.path.removeprefix(f"/{BUCKET}").removeprefix("/")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and body. ``length`` is the size of a body that is not sent."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None

    def to_bytes(self) -> list[bytes]:
        lines = [f"HTTP/1.1 {self.status} ."]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.status != 204:
            lines.append(f"content-length: {len(self.body) if self.length is None else self.length}")
        return ["\r\n".join([*lines, "", ""]).encode("latin-1"), self.body]


class Bucket:
    """The objects, and the effect of requests on them. One thread runs it, so a condition and its write are atomic."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self._uploads: dict[str, dict[int, bytes]] = {}
        self._numbers = itertools.count()

    def load(self, folder: Path) -> None:
        for file in folder.rglob("*"):
            if file.is_file():
                self._store(file.relative_to(folder).as_posix(), file.read_bytes(), {})

    def handle(self, request: Request) -> Answer:
        match request.method:
            case "GET" | "HEAD":
                return self._read(request) if request.key else self._list(request.query)
            case "PUT" if "uploadId" in request.query:
                data = _body(request)
                self._uploads[request.query["uploadId"]][int(request.query["partNumber"])] = data
                return Answer(200, headers={"etag": _etag(data)})
            case "PUT":
                return self._write(request)
            case "POST" if "delete" in request.query:
                for key in re.findall(r"<Key>(.*?)</Key>", request.body.decode()):
                    self.objects.pop(unescape(key), None)
                return _xml(200, "<DeleteResult></DeleteResult>")
            case "POST" if "uploads" in request.query:
                upload = str(next(self._numbers))
                self._uploads[upload] = {}
                inner = f"<Bucket>{BUCKET}</Bucket><Key>{escape(request.key)}</Key><UploadId>{upload}</UploadId>"
                return _xml(200, f"<InitiateMultipartUploadResult>{inner}</InitiateMultipartUploadResult>")
            case "POST" if "uploadId" in request.query:
                parts = self._uploads.pop(request.query["uploadId"])
                made = self._store(request.key, b"".join(parts[number] for number in sorted(parts)), {})
                inner = f"<Bucket>{BUCKET}</Bucket><Key>{escape(request.key)}</Key><ETag>{escape(made.etag)}</ETag>"
                return _xml(200, f"<CompleteMultipartUploadResult>{inner}</CompleteMultipartUploadResult>")
            case "DELETE":
                self._uploads.pop(request.query.get("uploadId", ""), None)
                self.objects.pop(request.key, None)
                return Answer(204)
        return _error(400, "NotImplemented")

    def _store(self, key: str, data: bytes, headers: dict[str, str]) -> Object:
        kept = {name: value for name, value in headers.items() if name in _KEPT or name.startswith("x-amz-meta-")}
        made = self.objects[key] = Object(data, _etag(data), kept, time.time())
        return made

    def _read(self, request: Request) -> Answer:
        found = self.objects.get(request.key)
        if found is None:
            return Answer(404) if request.method == "HEAD" else _error(404, "NoSuchKey")
        wanted = request.headers.get("if-match")
        if wanted is not None and wanted.strip('"') != found.etag.strip('"'):
            return _error(412, "PreconditionFailed")
        modified = formatdate(found.modified_s, usegmt=True)
        headers = {"etag": found.etag, "last-modified": modified, "accept-ranges": "bytes", **found.headers}
        status, data = 200, found.data
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if asked is not None:
            size = len(data)
            start = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
            stop = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
            if start >= size:
                return _error(416, "InvalidRange")
            status, data = 206, data[start:stop]
            headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
        return Answer(status, b"" if request.method == "HEAD" else data, headers, len(data))

    def _write(self, request: Request) -> Answer:
        found = self.objects.get(request.key)
        wanted = request.headers.get("if-match")
        if wanted is not None and (found is None or wanted.strip('"') != found.etag.strip('"')):
            return _error(412 if found else 404, "PreconditionFailed" if found else "NoSuchKey")
        if "if-none-match" in request.headers and found is not None:
            return _error(412, "PreconditionFailed")
        source = request.headers.get("x-amz-copy-source")
        if source is None:
            return Answer(200, headers={"etag": self._store(request.key, _body(request), request.headers).etag})
        copied = self.objects.get(unquote(source).removeprefix("/").removeprefix(f"{BUCKET}/"))
        if copied is None:
            return _error(404, "NoSuchKey")
        made = self._store(request.key, copied.data, copied.headers)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(made.modified_s))
        inner = f"<ETag>{escape(made.etag)}</ETag><LastModified>{stamp}</LastModified>"
        return _xml(200, f"<CopyObjectResult>{inner}</CopyObjectResult>")

    def _list(self, query: dict[str, str]) -> Answer:
        prefix = query.get("prefix", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        page = keys[: int(query.get("max-keys", "1000"))]
        inner = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
        inner += f"<MaxKeys>1000</MaxKeys><IsTruncated>{str(len(page) < len(keys)).lower()}</IsTruncated>"
        for key in page:
            item = self.objects[key]
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(item.modified_s))
            inner += f"<Contents><Key>{escape(key)}</Key><LastModified>{stamp}</LastModified>"
            inner += f"<ETag>{escape(item.etag)}</ETag><Size>{len(item.data)}</Size></Contents>"
        if len(page) < len(keys):
            inner += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
        return _xml(200, f"<ListBucketResult>{inner}</ListBucketResult>")


def _body(request: Request) -> bytes:
    """Return the body without the frames that some clients put around it."""
    if "aws-chunked" not in request.headers.get("content-encoding", ""):
        return request.body
    parts: list[bytes] = []
    at = 0
    while True:
        end = request.body.index(b"\r\n", at)
        size = int(request.body[at:end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(request.body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _xml(status: int, text: str) -> Answer:
    return Answer(status, b'<?xml version="1.0"?>' + text.encode(), {"content-type": "application/xml"})


def _error(status: int, code: str) -> Answer:
    return _xml(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")


class Connection(asyncio.Protocol):
    """The requests of one client. It answers each one, after the latency, before it looks at the next."""

    def __init__(self, bucket: Bucket, latency_s: float, counts: Counter[str]) -> None:
        self._bucket, self._latency_s, self._counts = bucket, latency_s, counts
        self._received = bytearray()
        self._is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._go_on()

    def _go_on(self) -> None:
        if self._is_answering:
            return
        request = self._next()
        if request is None:
            return
        if request.path == "/-/requests":
            self._transport.writelines(Answer(200, json.dumps(self._counts).encode()).to_bytes())
            self._counts.clear()
            return
        self._counts[request.method] += 1
        self._is_answering = True
        asyncio.get_running_loop().call_later(self._latency_s, self._answer, request)

    def _answer(self, request: Request) -> None:
        self._transport.writelines(self._bucket.handle(request).to_bytes())
        self._is_answering = False
        self._go_on()

    def _next(self) -> Request | None:
        """Return the first request if it has arrived completely."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stop = end + 4 + int(headers.get("content-length", "0"))
        if len(self._received) < stop:
            return None
        body = bytes(memoryview(self._received)[end + 4 : stop])
        del self._received[:stop]
        method, target, _ = first.split(" ")
        parts = urlsplit(target)
        return Request(
            method, unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True)), headers, body
        )


async def serve(folder: Path, latency_s: float) -> None:
    """Serve until cancelled."""
    bucket, counts = Bucket(), Counter[str]()
    bucket.load(folder)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(bucket, latency_s, counts), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2]) / 1000))
