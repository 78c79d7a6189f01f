"""Virtual chunks on web servers: redirects, failures and options, with servers in this process."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import os
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zarr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import icechunk_engine as icechunk
from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRef
from icechunk_engine.config import VirtualChunkContainer, http_store
from icechunk_engine.credentials import HttpAccess, access_at
from icechunk_engine.errors import ErrorKind, IcechunkError, InvalidInputError
from icechunk_engine.virtual import http_servers
from icechunk_engine.virtual.resolver import VirtualResolver

DATA = bytes(range(100))


class Handler(BaseHTTPRequestHandler):
    """Sends the responses in the server's list one by one, and then the data."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self.server.answers.pop(0) if self.server.answers else self.range_asked_for()
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def range_asked_for(self) -> tuple[int, dict[str, str], bytes]:
        start, stop = map(int, self.headers["range"].removeprefix("bytes=").split("-"))
        if start >= len(DATA):
            return 416, {"content-range": f"bytes */{len(DATA)}"}, b""
        body = DATA[start : stop + 1]
        headers = {"content-range": f"bytes {start}-{start + len(body) - 1}/{len(DATA)}", "etag": '"e"'}
        return 206, {**headers, "last-modified": "Wed, 21 Oct 2015 07:28:00 GMT"}, body


class Server(ThreadingHTTPServer):
    daemon_threads = True
    scheme = "http"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def redirects_to(self, location: str, status: int = 302) -> None:
        self.answers.append((status, {"location": location}, b""))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running
        running.shutdown()


@pytest.fixture
def stranger() -> Iterator[Server]:
    with Server() as running:
        yield running
        running.shutdown()


def fetch(prefix: str, *places: str, store: Any = None, path: str = "a", start: int = 10, stop: int = 20) -> bytes:
    access = access_at(HttpAccess, *places) if places else HttpAccess
    container = VirtualChunkContainer(prefix, store or http_store())
    ref = ChunkRef(kind=VIRTUAL, location=f"{prefix}{path}", offset=start, length=stop - start)
    return VirtualResolver({prefix: container}, {prefix: access}).fetch(ref, 0, stop - start)


def failure(*given: Any, **options: Any) -> IcechunkError:
    with pytest.raises(IcechunkError) as caught:
        fetch(*given, **options)
    return caught.value


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_to_others_are_not_followed(server: Server, stranger: Server, status: int) -> None:
    server.redirects_to(f"{stranger.url}/internal", status)
    error = failure(f"{server.url}/")
    assert stranger.asked == []
    assert error.kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    assert f"credentials.access_at(credentials.HttpAccess, {stranger.url!r})" in str(error)


def test_redirects_to_named_places_are_followed_without_the_containers_headers(
    server: Server, stranger: Server
) -> None:
    server.redirects_to(f"{stranger.url}/elsewhere?signature=x")
    store = http_store(headers={"X-Api-Key": "secret", "Authorization": "secret", "Cookie": "secret"})
    assert fetch(f"{server.url}/", stranger.url, store=store) == DATA[10:20]
    ((path, headers),) = stranger.asked
    assert path == "/elsewhere?signature=x"
    assert "secret" not in str(headers)
    assert server.asked[0][1]["x-api-key"] == "secret"


def test_redirects_within_a_server_are_followed(server: Server) -> None:
    server.redirects_to("/b?x=1")
    server.redirects_to("c", 308)
    assert fetch(f"{server.url}/") == DATA[10:20]
    assert [path for path, _ in server.asked] == ["/a", "/b?x=1", "/c"]
    for _ in range(20):
        server.redirects_to("/b")
    assert failure(f"{server.url}/").kind is ErrorKind.VIRTUAL_CHUNK_FETCH
    assert len(server.asked) == 3 + 11


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "", "//169.254.169.254/latest", "http://localhost/", "gopher://x/", "http://[::1]/"]
    + ["http://127.0.0.1", "http://127.0.0.1:1/", "http://²27.0.0.1/", "http://u@127.0.0.2/", "https://127.0.0.1/"],
)
def test_redirects_to_hardly_anything(server: Server, location: str) -> None:
    server.redirects_to(location)
    assert failure(f"{server.url}/").kind in (
        ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER,
        ErrorKind.VIRTUAL_CHUNK_FETCH,
    )
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_failed_requests_are_made_again(server: Server, status: int) -> None:
    server.answers += [(status, {}, b"try again"), (206, {"content-range": "bytes 10-19/100"}, b"cut")]
    assert fetch(f"{server.url}/") == DATA[10:20]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((404, {}, b""), ErrorKind.VIRTUAL_CHUNK_FETCH),
        ((403, {}, b""), ErrorKind.VIRTUAL_CHUNK_FETCH),
        ((400, {}, b""), ErrorKind.VIRTUAL_CHUNK_FETCH),
        ((200, {}, DATA), ErrorKind.STORAGE_CONFIG),
        ((206, {}, DATA[:10]), ErrorKind.STORAGE_CONFIG),
        ((206, {"content-range": "bytes 0-9/100"}, DATA[:10]), ErrorKind.STORAGE_CONFIG),
        ((206, {"content-range": "bytes 10-14/15"}, DATA[10:15]), ErrorKind.INVALID_OBJECT_SIZE),
        ((416, {"content-range": "bytes */5"}, b""), ErrorKind.INVALID_OBJECT_SIZE),
        ((416, {}, b""), ErrorKind.INVALID_OBJECT_SIZE),
    ],
)
def test_answers_that_are_final(server: Server, answer: Any, kind: ErrorKind) -> None:
    server.answers.append(answer)
    assert failure(f"{server.url}/").kind is kind
    assert len(server.asked) == 1


@pytest.mark.parametrize(("status", "kind"), [(503, ErrorKind.VIRTUAL_CHUNK_FETCH), (429, ErrorKind.THROTTLED)])
def test_patience_ends(server: Server, status: int, kind: ErrorKind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_servers, "_MAX_RETRY_S", -1)
    server.answers.append((status, {}, b""))
    assert failure(f"{server.url}/").kind is kind
    server.server_close()
    assert failure("http://127.0.0.1:1/").kind is ErrorKind.VIRTUAL_CHUNK_FETCH


def test_what_is_asked_for(server: Server) -> None:
    prefix = f"http://us%40er:p%3Aw@127.0.0.1:{server.server_port}/"
    store = http_store({"user_agent": "me", "timeout": "1min 30s"}, {"X-Mine": "1"})
    assert fetch(prefix, store=store, path="a%20b/é+%25%3F[x]", start=0, stop=100) == DATA
    ((path, headers),) = server.asked
    assert path == "/a%20b/%C3%A9+%25%3F%5Bx%5D"
    login = base64.b64encode(b"us@er:p:w").decode()
    assert headers.items() >= {
        ("range", "bytes=0-99"),
        ("user-agent", "me"),
        ("x-mine", "1"),
        ("authorization", f"Basic {login}"),
        ("accept-encoding", "identity"),
    }


def test_proxies(server: Server, stranger: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"http://me:pw@127.0.0.1:{stranger.server_port}"
    assert fetch(f"{server.url}/", store=http_store({"proxy_url": proxy})) == DATA[10:20]
    ((path, headers),) = stranger.asked
    assert path == f"{server.url}/a"
    assert headers["proxy-authorization"] == f"Basic {base64.b64encode(b'me:pw').decode()}"
    assert server.asked == []
    excluded = http_store({"proxy_url": proxy, "proxy_excludes": "example.org,127.0.0.1"})
    assert fetch(f"{server.url}/", store=excluded) == DATA[10:20]
    assert (len(server.asked), len(stranger.asked)) == (1, 1)
    monkeypatch.setenv("http_proxy", stranger.url)
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch(f"{server.url}/", store=http_store({"user_agent": "another"})) == DATA[10:20]
    assert (len(server.asked), len(stranger.asked)) == (1, 2)


@pytest.mark.parametrize(
    ("store", "named"),
    [
        (http_store({"nonsense": "1"}), "nonsense"),
        (http_store({"timeout": "soon"}), "'soon'"),
        (http_store({"timeout": "10 parsecs"}), "parsecs"),
        (http_store({"root_certificate": "not PEM"}), "root_certificate"),
    ],
)
def test_options_that_mean_nothing(server: Server, store: Any, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        fetch(f"{server.url}/", store=store)
    assert server.asked == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1min 30s", 90), ("500ms", 0.5), ("2h", 7200), ("1 day", 86400), ("1h5m", 3900)],
)
def test_durations(text: str, seconds: float) -> None:
    assert http_servers.duration_s(text, None) == pytest.approx(seconds)


def test_large_ranges_are_read_in_parts_of_one_version(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from icechunk_engine.storage.object_store import reading
    from icechunk_engine.storage.ranges import PartSizes

    monkeypatch.setattr(reading.read_range, "__defaults__", (PartSizes(ideal_bytes=40, most=4),))
    assert fetch(f"{server.url}/", start=0, stop=100) == DATA
    assert sorted(headers["range"] for _, headers in server.asked) == ["bytes=0-32", "bytes=33-65", "bytes=66-99"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_connections_of_its_own(server: Server) -> None:
    assert fetch(f"{server.url}/") == DATA[10:20]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if fetch(f"{server.url}/") == DATA[10:20] else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert fetch(f"{server.url}/") == DATA[10:20]


def test_a_token_does_not_reach_the_address_that_a_repository_stores(stranger: Server) -> None:
    prefix, storage = "gs://public-data/", icechunk.in_memory_storage()
    config = icechunk.RepositoryConfig()
    store = icechunk.gcs_store({"google_base_url": stranger.url})
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, store))
    session = icechunk.Repository.create(storage, config).writable_session("main")
    zarr.create_array(session.store, name="a", shape=(1,), chunks=(1,), dtype="u1", compressors=None)
    session.store.set_virtual_ref("a/c/0", f"{prefix}a", offset=7, length=1)
    session.commit("hostile")

    def read(access: Any, config: Any = None) -> Any:
        repo = icechunk.Repository.open(storage, config, {prefix: access})
        return zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[0]

    token = icechunk.gcs_credentials(bearer_token="t0k3n")
    for access in (token, icechunk.gcs_credentials(anonymous=True)):
        with pytest.raises(InvalidInputError) as caught:
            read(icechunk.containers_credentials({prefix: access})[prefix])
        assert stranger.url in str(caught.value)
    assert stranger.asked == []
    assert read(access_at(token, stranger.url)) == DATA[7]
    assert read(token, config) == DATA[7]
    assert [headers["authorization"] for _, headers in stranger.asked] == ["Bearer t0k3n"] * 2


# --- TLS ------------------------------------------------------------------------------------------------------------


Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def signed_certificate(name: str, signer: Signed | None) -> Signed:
    """Return a certificate for this machine that ``signer`` signed, or a self-signed one of an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signing_key = key if signer is None else signer[1]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signer is None else signer[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(signer is None, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    return certificate, key


@pytest.fixture
def encrypted(server: Server, tmp_path: Path) -> Callable[[], str]:
    """Make the server speak TLS. Return the certificate of its authority, which nobody trusts."""

    def encrypt() -> str:
        authority = signed_certificate("authority", None)
        certificate, key = signed_certificate("server", authority)
        encoding = serialization.Encoding.PEM
        private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (tmp_path / "pem").write_bytes(certificate.public_bytes(encoding) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.scheme = "https"
        return authority[0].public_bytes(encoding).decode()

    return encrypt


def test_certificates_are_checked(
    server: Server, encrypted: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = encrypted()
    assert fetch(f"{server.url}/", store=http_store({"root_certificate": certificate})) == DATA[10:20]
    with pytest.warns(Warning, match="certificate verification"):
        fetch(f"{server.url}/", store=http_store({"allow_invalid_certificates": "true"}))
    monkeypatch.setattr(http_servers, "_MAX_RETRY_S", -1)
    assert failure(f"{server.url}/").kind is ErrorKind.VIRTUAL_CHUNK_FETCH
    assert len(server.asked) == 2


def test_encryption_is_not_given_up(server: Server, stranger: Server, encrypted: Callable[[], str]) -> None:
    store = http_store({"root_certificate": encrypted()})
    server.redirects_to(server.url.replace("https", "http"))
    assert failure(f"{server.url}/", store=store).kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER


def test_encrypted_endpoints_of_object_stores_lead_nowhere_unencrypted(
    server: Server, stranger: Server, encrypted: Callable[[], str]
) -> None:
    """obstore follows redirects, but only to servers that prove their names. Internal services cannot do that."""
    prefix, certificate = "gs://b/", encrypted()
    options = {"base_url": server.url, "root_certificate": certificate, "allow_http": "true"}
    container = VirtualChunkContainer(prefix, icechunk.gcs_store(options))
    access = icechunk.containers_credentials({prefix: icechunk.gcs_credentials(anonymous=True)})
    reader = VirtualResolver({prefix: container}, access)
    ref = ChunkRef(kind=VIRTUAL, location=f"{prefix}a", length=10)
    assert reader.fetch(ref, 0, 10) == DATA[:10]
    server.answers += [(302, {"location": f"{stranger.url}/internal"}, b"")] * 20
    with pytest.raises(IcechunkError):
        reader.fetch(ref, 0, 10)
    assert len(server.asked) > 1
    assert stranger.asked == []
