"""A web server for a directory, with byte ranges, etags and dates. Run as a program, with the directory as argument.

Below ``/redirect/`` it redirects to what the query says. It prints its port first.
"""

from __future__ import annotations

import email.utils
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ranges = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.startswith("/redirect/"):
            self.answer(302, headers={"Location": unquote(parts.query)})
            return
        wants_ranges = not parts.path.startswith("/no-ranges/")
        path = os.path.join(sys.argv[1], unquote(parts.path.removeprefix("/no-ranges")).lstrip("/"))
        if not os.path.isfile(path):
            self.answer(404)
            return
        with open(path, "rb") as file:
            data, status = file.read(), os.fstat(file.fileno())
        headers = {
            "ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"',
            "Last-Modified": email.utils.formatdate(status.st_mtime, usegmt=True),
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or not wants_ranges:
            self.answer(200, data, headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
        if start >= len(data):
            self.answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
            return
        self.answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    do_HEAD = do_GET


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
