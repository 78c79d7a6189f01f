"""Servers on the loopback interface, started once a test process (Ceph: once a test run) and ended by process ids.

Where a server is not installed its tests are skipped with the reason; in continuous integration (``CI`` is set) that
is a failure.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import fcntl
import hmac
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from icechunk_engine.storage import Storage, azure_storage, gcs_storage, s3_storage

from . import ceph_server as ceph_server_program

HERE = Path(__file__).parent
BUCKET = "bucket"
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_START_S = 120
_RUN_S = 1800

# Debian has nginx there, where the shells of users do not look.
os.environ["PATH"] += f"{os.pathsep}/usr/sbin"


def unavailable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def running(command: list[str], port_in_output: str = r"^(\d+)$", *, ends_itself: bool = False) -> Iterator[Running]:
    """Start a program that says its port, and end it. What it prints later is read, so that it never blocks."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout
    lines: list[str] = []

    def read() -> None:
        lines.extend(iter(output.readline, ""))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + _START_S
        while not (found := [match for line in list(lines) if (match := re.search(port_in_output, line))]):
            assert process.poll() is None, f"{command[0]} ended: {''.join(lines)}"
            assert time.monotonic() < deadline, f"{command[0]} does not listen: {''.join(lines)}"
            time.sleep(0.01)
        yield Running(int(found[0][1]))
        if ends_itself:
            process.wait(_RUN_S)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(10)
        output.close()


def shared(command: list[str], users_path: Path) -> Iterator[Running]:
    """One server for all processes of a test run: the first to want it starts it, and it ends when the last is gone.

    All hold a lock on the file, which says the port; the program, whose last argument it is, waits for that lock.
    """
    with contextlib.ExitStack() as started, open(users_path, "a+") as users:
        with open(users_path.with_suffix(".starting"), "w") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)
            users.seek(0)
            port = users.read()
            if not port:
                start = contextlib.contextmanager(running)
                port = str(started.enter_context(start([*command, str(users_path)], ends_itself=True)).port)
                users.write(port)
                users.flush()
        yield Running(int(port))


def of_node(program: str, package: str) -> str:
    """The path of a program from a package of npm."""
    place = Path(sys.prefix, package)
    installed = Path(place, "node_modules", ".bin", program)
    found = str(installed) if installed.exists() else shutil.which(program)
    if found is None or shutil.which("node") is None:
        unavailable(f"{program} is not installed: npm install --prefix {place} {package}")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Running]:
    """S3, with a bucket."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        unavailable("moto is not installed: pip install 'moto[s3]' flask flask-cors")
    yield from running([sys.executable, str(HERE / "s3_server.py"), BUCKET])


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The S3 of Ceph, with a bucket."""
    if missing := [program for program in ceph_server_program.PROGRAMS if shutil.which(program) is None]:
        unavailable(f"{', '.join(missing)} not installed: apt-get install ceph-mon ceph-osd ceph-common radosgw")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    yield from shared([sys.executable, ceph_server_program.__file__, BUCKET], folder / "ceph")


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Running]:
    """Google Cloud Storage, as far as :mod:`gcs_server` plays it, with a bucket."""
    yield from running([sys.executable, str(HERE / "gcs_server.py")])


@pytest.fixture(scope="session")
def azure_server() -> Iterator[Running]:
    """Azure Blob Storage, with a container."""
    program = of_node("azurite-blob", "azurite")
    options = ["--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", "0", *options]
    for server in running(command, r"listens on http://127\.0\.0\.1:(\d+)"):
        make_container(server)
        yield server


def make_container(server: Running) -> None:
    """What clients of objects cannot do: one request, signed with the account's key."""
    path = f"/{AZURITE_ACCOUNT}/{BUCKET}"
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in headers.items())
    signed += f"/{AZURITE_ACCOUNT}{path}\nrestype:container"
    digest = hmac.digest(base64.b64decode(AZURITE_KEY), signed.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(f"{server.url}{path}?restype=container", method="PUT", headers=headers)
    with urllib.request.urlopen(request, timeout=_START_S) as answer:
        assert answer.status == 201


@pytest.fixture(scope="session")
def web_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="session")
def web_server(web_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A web server for a directory, as :mod:`web_server` sets it up."""
    if shutil.which("nginx") is None:
        unavailable("nginx is not installed: apt-get install nginx-light")
    place = tmp_path_factory.mktemp("nginx")
    yield from running([sys.executable, str(HERE / "web_server.py"), str(web_root), str(place)])


def s3_at(server: Running, prefix: str, **options: object) -> Storage:
    given: dict[str, Any] = {"access_key_id": "key", "secret_access_key": "secret", **options}
    return s3_storage(
        bucket=BUCKET, prefix=prefix, region="us-east-1", endpoint_url=server.url, allow_http=True, **given
    )


def gcs_at(server: Running, prefix: str) -> Storage:
    return gcs_storage(bucket=BUCKET, prefix=prefix, anonymous=True, config={"base_url": server.url})


def azure_at(server: Running, prefix: str) -> Storage:
    return azure_storage(
        account=AZURITE_ACCOUNT,
        container=BUCKET,
        prefix=prefix,
        access_key=AZURITE_KEY,
        config={"endpoint": f"{server.url}/{AZURITE_ACCOUNT}"},
    )


Maker = Callable[[Running, str], Storage]
MAKERS: dict[str, Maker] = {"s3": s3_at, "ceph": s3_at, "gcs": gcs_at, "azure": azure_at}


@pytest.fixture
def place() -> str:
    """A prefix of its own for each test."""
    return f"tests/{uuid.uuid4().hex}"


@pytest.fixture(params=list(MAKERS))
def store(request: pytest.FixtureRequest, place: str) -> Storage:
    """An empty storage on each kind of server."""
    server = request.getfixturevalue(f"{request.param}_server")
    return MAKERS[request.param](server, place)
