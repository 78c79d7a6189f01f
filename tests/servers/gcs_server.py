"""A strict stand-in for Google Cloud Storage, of the part of its XML interface that clients of buckets use.

Generations, preconditions on them, ranges, listings with pages, copies, multipart uploads. A precondition and the
write it guards are one step. Run as a program: it takes a free port of the loopback interface, prints it, and serves.
"""

from __future__ import annotations

import email.utils
import hashlib
import itertools
import re
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class Stored:
    data: bytes
    generation: int
    metadata: dict[str, str]
    modified: float = field(default_factory=time.time)

    @property
    def headers(self) -> dict[str, str]:
        return {
            "x-goog-generation": str(self.generation),
            "ETag": f'"{hashlib.md5(self.data + str(self.generation).encode()).hexdigest()}"',
            "Last-Modified": email.utils.formatdate(self.modified, usegmt=True),
            **self.metadata,
        }


LOCK = threading.Lock()
OBJECTS: dict[str, Stored] = {}
UPLOADS: dict[str, dict[int, bytes]] = {}
GENERATIONS = itertools.count(1_700_000_000_000_000)
PAGE = 100


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionResetError, BrokenPipeError):
            self.close_connection = True

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: answers are two writes

    @property
    def target(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        return bucket, unquote(key), dict(parse_qsl(parts.query, keep_blank_values=True))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.answer(
            status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}.</Message></Error>".encode()
        )

    def bucket_exists(self, bucket: str) -> bool:
        if bucket == "bucket":
            return True
        self.fail(404, "NoSuchBucket")
        return False

    def do_GET(self) -> None:
        bucket, key, query = self.target
        if not self.bucket_exists(bucket):
            return
        if not key:
            self.list(query)
            return
        with LOCK:
            found = OBJECTS.get(key)
        if found is None:
            self.fail(404, "NoSuchKey")
            return
        size = len(found.data)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(200, found.data, found.headers)
            return
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last) + 1, size) if first and last else size
        if start >= size:
            self.fail(416, "InvalidRange")
            return
        self.answer(
            206, found.data[start:stop], {**found.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def list(self, query: dict[str, str]) -> None:
        prefix, after = query.get("prefix", ""), query.get("continuation-token", query.get("start-after", ""))
        with LOCK:
            keys = sorted(key for key in OBJECTS if key.startswith(prefix) and key > after)
            rows = [(key, OBJECTS[key]) for key in keys[:PAGE]]
        text = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(found.data)}</Size>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(found.modified))}.000Z</LastModified>"
            f"<ETag>{escape(found.headers['ETag'])}</ETag></Contents>"
            for key, found in rows
        )
        token = f"<NextContinuationToken>{escape(keys[PAGE - 1])}</NextContinuationToken>" if len(keys) > PAGE else ""
        self.answer(
            200,
            f"<?xml version='1.0'?><ListBucketResult><IsTruncated>{str(len(keys) > PAGE).lower()}</IsTruncated>"
            f"{token}{text}</ListBucketResult>".encode(),
        )

    def do_PUT(self) -> None:
        bucket, key, query = self.target
        data = self.body()
        if not self.bucket_exists(bucket):
            return
        if "uploadId" in query:
            UPLOADS[query["uploadId"]][int(query["partNumber"])] = data
            self.answer(200, headers={"ETag": f'"{query["partNumber"]}"'})
            return
        metadata = {
            name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")
        }
        condition = self.headers.get("x-goog-if-generation-match")
        source = self.headers.get("x-goog-copy-source")
        with LOCK:
            present = OBJECTS.get(key)
            if condition is not None and int(condition) != (present.generation if present else 0):
                self.fail(412, "PreconditionFailed")
                return
            if source is not None:
                copied = OBJECTS.get(unquote(source).lstrip("/").partition("/")[2])
                if copied is None:
                    self.fail(404, "NoSuchKey")
                    return
                data, metadata = copied.data, copied.metadata
            stored = OBJECTS[key] = Stored(data, next(GENERATIONS), metadata)
        body = b"<?xml version='1.0'?><CopyObjectResult></CopyObjectResult>" if source is not None else b""
        self.answer(200, body, stored.headers)

    def do_POST(self) -> None:
        _, key, query = self.target
        self.body()
        if "uploads" in query:
            upload = uuid.uuid4().hex
            UPLOADS[upload] = {}
            self.answer(
                200,
                f"<?xml version='1.0'?><InitiateMultipartUploadResult><Bucket>bucket</Bucket>"
                f"<Key>{escape(quote(key))}</Key><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode(),
            )
            return
        parts = UPLOADS.pop(query["uploadId"])
        with LOCK:
            stored = OBJECTS[key] = Stored(b"".join(parts[n] for n in sorted(parts)), next(GENERATIONS), {})
        self.answer(
            200,
            f"<?xml version='1.0'?><CompleteMultipartUploadResult><ETag>{escape(stored.headers['ETag'])}</ETag>"
            f"</CompleteMultipartUploadResult>".encode(),
            {"x-goog-generation": str(stored.generation)},
        )

    def do_DELETE(self) -> None:
        bucket, key, _ = self.target
        if not self.bucket_exists(bucket):
            return
        with LOCK:
            gone = OBJECTS.pop(key, None)
        if gone is None:
            self.fail(404, "NoSuchKey")
        else:
            self.answer(204)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
