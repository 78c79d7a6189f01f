"""Uploads may take longer than a store may be silent."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from icechunk_engine.config import StorageRetriesSettings, StorageSettings, StorageTimeoutSettings
from icechunk_engine.errors import StorageError
from icechunk_engine.storage import Storage, s3_storage

SETTINGS = StorageSettings(
    retries=StorageRetriesSettings(max_tries=1),
    timeouts=StorageTimeoutSettings(read_timeout_ms=200),
    unsafe_use_conditional_create=False,
    unsafe_use_conditional_update=False,
)


class _Slow(BaseHTTPRequestHandler):
    """Takes the body of a request late, or never."""

    protocol_version = "HTTP/1.1"
    pause_s = 1.5
    goes_on: threading.Event

    def do_PUT(self) -> None:
        self.goes_on.wait(self.pause_s)
        size = int(self.headers["Content-Length"])
        if len(self.rfile.read(size)) == size:
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[Storage]:
    handler = type("Handler", (_Slow,), {"goes_on": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield s3_storage(
            bucket="bucket",
            prefix="p",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            allow_http=True,
            access_key_id="key",
            secret_access_key="secret",
        ).with_settings(SETTINGS)
        handler.goes_on.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def test_a_large_body_has_time(slow: Storage) -> None:
    slow.put("chunks/A", bytes(2**20))


def test_a_store_that_is_silent_about_little_has_failed(slow: Storage) -> None:
    with pytest.raises(StorageError):
        slow.put("repo", bytes(100))
