"""A proxy before a real server that breaks chosen requests once, before or after the server has served them.

It also keeps a list of the requests, which is what goes over the wire whatever a client says of itself.
"""

from __future__ import annotations

import http.client
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

type Damage = Literal[
    "drop before",  # the connection ends, the server has heard nothing
    "503 before",
    "429 before",
    "409 before",
    "drop after",  # the server has done it, the answer is lost
    "503 after",
    "500 after",
    "truncate",  # half of the answer, then the connection ends
    "delay",  # an answer that comes after a second
    "hang",  # the server has done it, and nothing comes for a long time
]


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a method on a path."""

    damage: Damage
    method: str
    path: str
    times: int = 1


@dataclass(frozen=True)
class Seen:
    """A request that was answered."""

    method: str
    path: str
    sent_bytes: int
    """Of the request's body."""
    received_bytes: int
    """Of the answer's body."""


class FaultProxy(ThreadingHTTPServer):
    """Forwards to a port of the loopback interface."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.faults: list[Fault] = []
        self.toxicity = 0.0
        """Share of all requests that meet some damage, whatever they are."""
        self.toxins: tuple[Damage, ...] = ()
        self.random = random.Random(0)
        self.applied: Counter[str] = Counter()
        self.closing = threading.Event()
        self.seen: list[Seen] = []
        self.wants_bare_etags = False
        """Like Ceph: a condition on an etag in quotes never holds."""
        self.ignores: set[str] = set()
        """Headers that the server does not get to see."""
        self.lacks_conditions = False
        """Says of conditional writes that they are not implemented."""
        self.n_requests = 0
        self.headers_seen: set[str] = set()
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, method: str, path: str) -> str:
        with self._lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    self.applied[fault.damage] += 1
                    return fault.damage
            if self.toxicity and self.random.random() < self.toxicity:
                damage = self.random.choice(self.toxins)
                self.applied[damage] += 1
                return damage
        return ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, length: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        given = next((value for name, value in headers if name.lower() == "content-length"), None)
        bodiless = self.command == "HEAD" and given is not None
        self.send_header(
            "Content-Length", given if bodiless and given else str(len(body) if length is None else length)
        )
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int) -> None:
        code = {
            409: "ConditionalRequestConflict",
            412: "PreconditionFailed",
            429: "TooManyRequests",
            501: "NotImplemented",
            503: "SlowDown",
        }.get(status, "InternalError")
        self.answer(status, [], f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.n_requests += 1
        self.server.headers_seen.update(name.lower() for name in self.headers)
        damage = self.server.take(self.command, self.path)
        if self.server.wants_bare_etags and self.headers.get("If-Match", "").startswith('"'):
            self.refuse(412)
            return
        if self.server.lacks_conditions and ("If-Match" in self.headers or "If-None-Match" in self.headers):
            self.refuse(501)
            return
        for name in self.server.ignores:
            del self.headers[name]
        if damage == "drop before":
            self.drop()
            return
        if damage.endswith("before"):
            self.refuse(int(damage[:3]))
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=60)
        try:
            behind.request(self.command, self.path, body, dict(self.headers.items()))
            response = behind.getresponse()
            data, headers, status = response.read(), response.getheaders(), response.status
        finally:
            behind.close()
        if damage == "hang":
            self.server.closing.wait(60)
        if damage in ("drop after", "hang"):
            self.drop()
        elif damage.endswith("after"):
            self.refuse(int(damage[:3]))
        elif damage == "truncate":
            self.answer(status, headers, data[: len(data) // 2], length=len(data))
            self.wfile.flush()
            self.drop()
        else:
            received = 0 if self.command == "HEAD" else len(data)
            self.server.seen.append(Seen(self.command, self.path, len(body), received))
            if damage == "delay":
                time.sleep(1)
            self.answer(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any


@contextmanager
def proxied(port: int) -> Iterator[FaultProxy]:
    """A proxy that runs in threads of this process."""
    proxy = FaultProxy(port)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)
