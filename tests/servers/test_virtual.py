"""Virtual chunks in object stores and on web servers."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr

import icechunk_engine as ours
from icechunk_engine import Repository, RepositoryConfig, VirtualChunkContainer, in_memory_storage
from icechunk_engine.errors import ErrorKind, IcechunkError, StorageError
from icechunk_engine.storage import Storage
from icechunk_engine.storage.object_store import reading
from icechunk_engine.virtual import remote

from .conftest import AZURITE_ACCOUNT, AZURITE_KEY, BUCKET, MAKERS, Running

DATA = np.arange(20, dtype="<i4")
KEYS = {"access_key_id": "key", "secret_access_key": "secret"}


@dataclass(frozen=True)
class Source:
    """Where virtual chunks are, and how to read there."""

    url_prefix: str
    store: Any
    credential: Any
    write: Callable[[str, bytes], Any]


def s3(server: Running, write: Callable[[str, bytes], Any], module: Any = ours) -> Source:
    options = module.S3Options(region="us-east-1", endpoint_url=server.url, allow_http=True, force_path_style=True)
    return Source(
        f"s3://{BUCKET}/", module.ObjectStoreConfig.S3Compatible(options), module.s3_credentials(**KEYS), write
    )


def gcs(server: Running, write: Callable[[str, bytes], Any]) -> Source:
    return Source(
        f"gs://{BUCKET}/", ours.gcs_store({"google_base_url": server.url}), ours.gcs_credentials(anonymous=True), write
    )


def azure(server: Running, write: Callable[[str, bytes], Any]) -> Source:
    endpoint = f"{server.url}/{AZURITE_ACCOUNT}"
    store = ours.azure_store(account=AZURITE_ACCOUNT, config={"azure_endpoint": endpoint})
    return Source(f"az://{BUCKET}/", store, ours.azure_credentials(access_key=AZURITE_KEY), write)


def web(server: Running, root: Path, below: str = "") -> Source:
    def write(key: str, data: bytes) -> None:
        path = Path(root, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return Source(f"{server.url}/{below}", ours.http_store(), ours.credentials.HttpAccess, write)


@pytest.fixture(params=["s3", "ceph", "gcs", "azure", "http"])
def source(request: pytest.FixtureRequest) -> Source:
    if request.param == "http":
        return web(request.getfixturevalue("web_server"), request.getfixturevalue("web_root"))
    server = request.getfixturevalue(f"{request.param}_server")
    storage = MAKERS[request.param](server, "")
    return {"s3": s3, "ceph": s3, "gcs": gcs, "azure": azure}[request.param](server, storage.put)


def virtual_repository(source: Source, url: str, *, storage: Storage | None = None, **checksum: Any) -> Repository:
    """One array of ten chunks of two numbers, side by side in one object."""
    container = VirtualChunkContainer(source.url_prefix, source.store)
    config = RepositoryConfig(virtual_chunk_containers={source.url_prefix: container})
    repo = Repository.create(storage or in_memory_storage(), config, {source.url_prefix: source.credential})
    session = repo.writable_session("main")
    zarr.create_array(
        session.store, name="a", shape=(20,), chunks=(2,), dtype="i4", compressors=None, filters=None, fill_value=-1
    )
    specs = [ours.VirtualChunkSpec([n], url, 4 + 8 * n, 8, **checksum) for n in range(10)]
    session.store.set_virtual_refs("a", specs)
    session.commit("virtual")
    return repo


def read(repo: Any) -> Any:
    return zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]


def failure(repo: Repository) -> IcechunkError:
    with pytest.raises(IcechunkError) as caught:
        read(repo)
    return caught.value


@pytest.mark.parametrize("name", ["data.bin", "with space & ü%25.bin"])
def test_values(source: Source, place: str, name: str) -> None:
    source.write(f"{place}/{name}", b"head" + DATA.tobytes())
    written = name.replace("%", "%25").replace(" ", "%20")
    repo = virtual_repository(source, f"{source.url_prefix}{place}/{written}")
    np.testing.assert_array_equal(read(repo), DATA)
    session = repo.readonly_session("main")
    assert not session.store._supports_sync_io
    reopened = Repository.open(repo.storage)
    assert failure(reopened).kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER


def test_sessions_travel_with_their_access(s3_server: Running, place: str, tmp_path: Path) -> None:
    source = s3(s3_server, MAKERS["s3"](s3_server, "").put)
    source.write(f"{place}/x", b"head" + DATA.tobytes())
    storage = ours.local_filesystem_storage(tmp_path)
    repo = virtual_repository(source, f"{source.url_prefix}{place}/x", storage=storage)
    session = pickle.loads(pickle.dumps(repo.readonly_session("main")))
    np.testing.assert_array_equal(zarr.open_array(session.store, path="a", mode="r")[:], DATA)

    theirs = s3(s3_server, source.write, icechunk)
    official = icechunk.Repository.open(
        icechunk.local_filesystem_storage(str(tmp_path)),
        authorize_virtual_chunk_access=icechunk.containers_credentials({source.url_prefix: theirs.credential}),
    )
    np.testing.assert_array_equal(read(official), DATA)


def test_changed_objects_are_noticed(source: Source, place: str) -> None:
    key = f"{place}/x"
    source.write(key, b"head" + DATA.tobytes())
    url = source.url_prefix + key
    now = datetime.now(UTC)
    np.testing.assert_array_equal(read(virtual_repository(source, url, etag_checksum="*")), DATA)
    later = virtual_repository(source, url, last_updated_at_checksum=now + timedelta(minutes=1))
    np.testing.assert_array_equal(read(later), DATA)
    for checksum in ({"etag_checksum": '"other"'}, {"last_updated_at_checksum": now - timedelta(days=1)}):
        assert failure(virtual_repository(source, url, **checksum)).kind is ErrorKind.VIRTUAL_CHUNK_MODIFIED


@pytest.mark.parametrize("quoted", ["{}", '"{}"'])
def test_etags_are_known_with_and_without_quotes(s3_server: Running, place: str, quoted: str) -> None:
    storage: Any = MAKERS["s3"](s3_server, "")
    source = s3(s3_server, storage.put)
    storage.put(f"{place}/x", b"head" + DATA.tobytes())
    _, version = storage.get_versioned(f"{place}/x")
    repo = virtual_repository(source, f"{source.url_prefix}{place}/x", etag_checksum=quoted.format(version))
    np.testing.assert_array_equal(read(repo), DATA)
    storage.put(f"{place}/x", b"HEAD" + DATA.tobytes())
    assert failure(repo).kind is ErrorKind.VIRTUAL_CHUNK_MODIFIED


def test_missing_and_short_objects(source: Source, place: str) -> None:
    repo = virtual_repository(source, f"{source.url_prefix}{place}/nothing")
    error = failure(repo)
    assert error.kind is ErrorKind.VIRTUAL_CHUNK_FETCH
    assert f"{place}/nothing" in str(error)
    source.write(f"{place}/short", b"head" + DATA.tobytes()[:12])
    error = failure(virtual_repository(source, f"{source.url_prefix}{place}/short"))
    assert isinstance(error, StorageError)
    assert error.kind is ErrorKind.INVALID_OBJECT_SIZE


def test_web_servers_without_ranges(web_server: Running, web_root: Path, place: str) -> None:
    source = web(web_server, web_root, "no-ranges/")
    source.write(f"{place}/x", b"head" + DATA.tobytes())
    error = failure(virtual_repository(source, f"{source.url_prefix}{place}/x"))
    assert error.kind is ErrorKind.STORAGE_CONFIG
    assert "byte ranges" in str(error)


def test_web_servers_without_etags(web_server: Running, web_root: Path, place: str) -> None:
    source = web(web_server, web_root, "no-etags/")
    source.write(f"{place}/x", b"head" + DATA.tobytes())
    url = f"{source.url_prefix}{place}/x"
    now = datetime.now(UTC)
    later = virtual_repository(source, url, last_updated_at_checksum=now + timedelta(minutes=1))
    np.testing.assert_array_equal(read(later), DATA)
    for checksum in ({"etag_checksum": '"any"'}, {"last_updated_at_checksum": now - timedelta(days=1)}):
        assert failure(virtual_repository(source, url, **checksum)).kind is ErrorKind.VIRTUAL_CHUNK_MODIFIED


def test_wrong_credentials_are_refused_before_any_request(source: Source, place: str) -> None:
    repo = virtual_repository(source, f"{source.url_prefix}{place}/x")
    wrong = Repository.open(repo.storage, None, {source.url_prefix: ours.credentials.LocalFileSystemAccess})
    assert failure(wrong).kind is ErrorKind.INVALID_CREDENTIALS


def test_a_container_has_one_client(s3_server: Running, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from icechunk_engine.storage.object_store import client

    source = s3(s3_server, MAKERS["s3"](s3_server, "").put)
    opened: list[Any] = []
    open_client = client._open
    monkeypatch.setattr(client, "_open", lambda *given: opened.append(given) or open_client(*given))
    monkeypatch.setattr(client, "_CLIENTS", client._Clients())
    for name in ("x", "y"):
        source.write(f"{place}/{name}", b"head" + DATA.tobytes())
        opened.clear() if name == "x" else None
        np.testing.assert_array_equal(read(virtual_repository(source, f"{source.url_prefix}{place}/{name}")), DATA)
    readers = {bucket for bucket, *_ in opened}
    assert len(readers) == 1


def test_ranges_of_one_chunk_are_read_together(
    s3_server: Running, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from zarr.abc.store import RangeByteRequest
    from zarr.buffer import default_buffer_prototype

    source = s3(s3_server, MAKERS["s3"](s3_server, "").put)
    source.write(f"{place}/x", b"head" + DATA.tobytes())
    repo = virtual_repository(source, f"{source.url_prefix}{place}/x")
    requested: list[tuple[int, int]] = []
    read_range = reading.read_range
    monkeypatch.setattr(
        remote,
        "read_range",
        lambda *given, **how: requested.append((given[2], given[3])) or read_range(*given, **how),
    )
    store = repo.readonly_session("main").store
    ranges = [RangeByteRequest(0, 2), RangeByteRequest(4, 8)]

    async def read_ranges() -> dict[int, bytes]:
        found = store.get_ranges("a/c/1", ranges, prototype=default_buffer_prototype())
        return {n: value.to_bytes() async for group in found for n, value in group}

    stored = DATA.tobytes()[8:16]
    assert asyncio.run(read_ranges()) == {0: stored[:2], 1: stored[4:]}
    assert requested == [(12, 20)]


@pytest.mark.parametrize("on_server", [False, True])
def test_neighbouring_chunks_are_read_together(
    s3_server: Running, place: str, monkeypatch: pytest.MonkeyPatch, on_server: bool
) -> None:
    source = s3(s3_server, MAKERS["s3"](s3_server, "").put)
    source.write(f"{place}/x", b"head" + DATA.tobytes())
    requested: list[tuple[int, int]] = []
    read_range = reading.read_range
    monkeypatch.setattr(
        remote,
        "read_range",
        lambda *given, **how: requested.append((given[2], given[3])) or read_range(*given, **how),
    )
    storage = MAKERS["s3"](s3_server, f"{place}/repo") if on_server else in_memory_storage()
    repo = virtual_repository(source, f"{source.url_prefix}{place}/x", storage=storage)
    np.testing.assert_array_equal(read(repo), DATA)
    if not on_server:  # there, chunks are located on threads, and so not all asked for in one turn
        assert requested == [(4, 84)]


LITERAL_KEYS = ["d/a//b", "d/a/./b", "d/a/../b", "d//", "a/", "/lead", "..", "./x", "//", "é /+%;/../x", "d/a/b"]


@pytest.mark.parametrize("server", ["s3", "ceph"])
def test_keys_that_only_s3_takes_as_they_are(server: str, request: pytest.FixtureRequest, place: str) -> None:
    """Each is an object of its own, and is read as official reads it."""
    import boto3
    from botocore.config import Config

    running = request.getfixturevalue(f"{server}_server")
    client = boto3.client(
        "s3",
        endpoint_url=running.url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["access_key_id"],
        aws_secret_access_key=KEYS["secret_access_key"],
        config=Config(s3={"addressing_style": "path"}),
    )
    for number, key in enumerate(LITERAL_KEYS):
        client.put_object(Bucket=BUCKET, Key=key, Body=bytes([number]) * 100)

    def remove() -> None:
        for key in LITERAL_KEYS:  # no listing of the whole bucket could be read by others
            client.delete_object(Bucket=BUCKET, Key=key)

    request.addfinalizer(remove)
    for module in (ours, icechunk):
        source = s3(running, client.put_object, module)
        config = module.RepositoryConfig()
        config.set_virtual_chunk_container(module.VirtualChunkContainer(source.url_prefix, source.store))
        access = module.containers_credentials({source.url_prefix: source.credential})
        repo = module.Repository.create(module.in_memory_storage(), config, access)
        session = repo.writable_session("main")
        array = zarr.create_array(
            session.store, name="a", shape=(len(LITERAL_KEYS),), chunks=(1,), dtype="u1", compressors=None
        )
        for number, key in enumerate(LITERAL_KEYS):
            url = source.url_prefix + key.replace("%", "%25")
            session.store.set_virtual_ref(f"a/c/{number}", url, offset=50, length=1)
        assert array[:].tolist() == list(range(len(LITERAL_KEYS)))


def test_literal_keys_without_credentials_and_with_wrong_ones(s3_server: Running, place: str) -> None:
    container = VirtualChunkContainer(f"s3://{BUCKET}/", s3(s3_server, print).store)
    bucket = remote.bucket_of(f"s3://{BUCKET}/x", container, ours.Credentials.S3(ours.s3_anonymous_credentials()))
    reader = remote.part_reader_of(bucket, f"{place}//nothing", "shown", (), container.url_prefix)
    assert reader is not None
    with pytest.raises(StorageError, match="object shown does not exist"):
        reader(0, 1)
    assert remote.part_reader_of(bucket, f"{place}/usual", "shown", (), container.url_prefix) is None
