"""Repositories on servers: used from both libraries, pickled, with all kinds of credentials, refused with a reason."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk_engine as ours
from icechunk_engine import Repository
from icechunk_engine.errors import (
    ErrorKind,
    InvalidInputError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
)
from icechunk_engine.storage import LocalStorage, Storage, storage_from_url
from icechunk_engine.storage.wrappers import PrefixStorage

from .conftest import AZURITE_ACCOUNT, AZURITE_KEY, BUCKET, MAKERS, Running, s3_at

DATA = np.arange(24, dtype="f4").reshape(4, 6)


def fill(repo: Any, name: str = "a", message: str = "fill") -> str:
    """The same with either library."""
    session = repo.writable_session("main")
    array = zarr.create_array(
        session.store, name=name, shape=DATA.shape, chunks=(2, 3), dtype=DATA.dtype, dimension_names=("y", "x")
    )
    array[:] = DATA
    snapshot_id: str = session.commit(message)
    return snapshot_id


def values(repo: Any, name: str = "a") -> Any:
    return zarr.open_array(repo.readonly_session("main").store, path=name, mode="r")[:]


@pytest.mark.parametrize("threshold", [0, 512])
def test_a_repository_on_every_server(store: Storage, threshold: int) -> None:
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(store)
    repo = Repository.create(store, ours.RepositoryConfig(inline_chunk_threshold_bytes=threshold))
    fill(repo)
    again = pickle.loads(pickle.dumps(Repository.open(store)))
    np.testing.assert_array_equal(values(again), DATA)
    np.testing.assert_array_equal(values(Repository.open(pickle.loads(pickle.dumps(store)))), DATA)
    repo.create_tag("v1", repo.lookup_branch("main"))
    assert again.list_tags() == {"v1"}
    with pytest.raises(InvalidInputError, match="already"):
        Repository.create(store)


def official_s3(server: Running, place: str) -> icechunk.Storage:
    return icechunk.s3_storage(
        bucket=BUCKET,
        prefix=place,
        region="us-east-1",
        endpoint_url=server.url,
        allow_http=True,
        force_path_style=True,
        access_key_id="key",
        secret_access_key="secret",
    )


def official_gcs(server: Running, place: str) -> icechunk.Storage:
    # The only way to name a server: with `anonymous` and an endpoint in `config` it asks Google for a token first.
    account = {"gcs_base_url": server.url, "disable_oauth": True, "client_email": ""}
    account |= {"private_key": "", "private_key_id": ""}
    return icechunk.gcs_storage(bucket=BUCKET, prefix=place, service_account_key=json.dumps(account))


def official_azure(server: Running, place: str) -> icechunk.Storage:
    return icechunk.azure_storage(
        account=AZURITE_ACCOUNT,
        container=BUCKET,
        prefix=place,
        access_key=AZURITE_KEY,
        config={"azure_storage_endpoint": f"{server.url}/{AZURITE_ACCOUNT}", "allow_http": "true"},
    )


OFFICIAL: dict[str, Callable[[Running, str], icechunk.Storage]] = {
    "s3": official_s3,
    "ceph": official_s3,
    "gcs": official_gcs,
    "azure": official_azure,
}


@pytest.mark.parametrize("kind", list(OFFICIAL))
def test_both_libraries_on_one_server(request: pytest.FixtureRequest, kind: str, place: str) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    official = OFFICIAL[kind]
    mine = MAKERS[kind](server, place)
    fill(Repository.create(mine, ours.RepositoryConfig(inline_chunk_threshold_bytes=0)), "a", "ours")
    theirs = icechunk.Repository.open(official(server, place))
    np.testing.assert_array_equal(values(theirs, "a"), DATA)
    fill(theirs, "b", "theirs")
    repo = Repository.open(mine)
    np.testing.assert_array_equal(values(repo, "b"), DATA)
    fill(repo, "c", "ours again")
    assert [info.message for info in theirs.ancestry(branch="main")][:3] == ["ours again", "theirs", "ours"]
    np.testing.assert_array_equal(values(theirs, "c"), DATA)

    made = MAKERS[kind](server, place + "-theirs")
    fill(icechunk.Repository.create(official(server, place + "-theirs")), "a", "theirs")
    np.testing.assert_array_equal(values(Repository.open(made)), DATA)


@pytest.mark.parametrize("kind", list(OFFICIAL))
def test_conditional_writes_exclude_both_libraries(request: pytest.FixtureRequest, kind: str, place: str) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    storage = MAKERS[kind](server, place)
    repo = Repository.create(storage)
    fill(repo, "first")
    theirs = icechunk.Repository.open(OFFICIAL[kind](server, place))
    mine, other = repo.writable_session("main"), theirs.writable_session("main")
    late = theirs.writable_session("main")
    for session, name in ((mine, "mine"), (other, "other"), (late, "late")):
        zarr.open_group(session.store, mode="r+").create_group(name)
    other.commit("other")
    with pytest.raises(ours.ConflictError):
        mine.commit("mine")
    mine.commit("mine", rebase_with=ours.ConflictDetector())
    with pytest.raises(icechunk.ConflictError):
        late.commit("late")
    late.commit("late", rebase_with=icechunk.ConflictDetector())
    messages = [info.message for info in Repository.open(storage).ancestry(branch="main")]
    assert messages[:3] == ["late", "mine", "other"]


# --- credentials -----------------------------------------------------------------------------------------------------


def short_lived() -> ours.S3StaticCredentials:
    with open(os.environ["TEST_CALLS"], "a") as file:
        file.write("x")
    return ours.S3StaticCredentials("key", "secret", None, datetime.now(UTC) + timedelta(hours=1))


def expired() -> ours.S3StaticCredentials:
    with open(os.environ["TEST_CALLS"], "a") as file:
        file.write("x")
    return ours.S3StaticCredentials("key", "secret", None, datetime.now(UTC) - timedelta(seconds=1))


def broken() -> ours.S3StaticCredentials:
    raise LookupError("no token in the vault")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("TEST_CALLS", str(path))
    return path


def refreshable(server: Running, place: str, function: Any, **options: Any) -> Storage:
    return s3_at(server, place, access_key_id=None, secret_access_key=None, get_credentials=function, **options)


def test_refreshable_credentials_are_fetched_once(s3_server: Running, place: str, calls: Path) -> None:
    for n in range(3):
        # Another header, another client: what is fetched once is not the client's doing.
        storage = refreshable(s3_server, place, short_lived, headers={"x-n": str(n)})
        storage = pickle.loads(pickle.dumps(storage))
        storage.put("a", b"1")
        assert storage.get("a") == b"1"
    assert calls.read_text() == "x"


def test_expired_credentials_are_fetched_again(s3_server: Running, place: str, calls: Path) -> None:
    storage = refreshable(s3_server, place, expired)
    assert calls.read_text() == ""
    storage.put("a", b"1")
    storage.get("a")
    assert len(calls.read_text()) >= 2


def test_scattered_credentials_spare_the_call(s3_server: Running, place: str, calls: Path) -> None:
    storage = refreshable(s3_server, place, short_lived, scatter_initial_credentials=True)
    assert calls.read_text() == "x"
    pickle.loads(pickle.dumps(storage)).put("a", b"1")
    assert calls.read_text() == "x"


def test_a_function_that_fails_is_quoted(s3_server: Running, place: str) -> None:
    with pytest.raises(StorageError, match="no token in the vault"):
        refreshable(s3_server, place, broken).get("a")


@pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
def test_wrong_credentials_are_named(ceph_server: Running, place: str, wrong: str) -> None:
    right = s3_at(ceph_server, place)
    fill(Repository.create(right))
    storage = s3_at(ceph_server, place, **{wrong: "hunter2"})
    calls: list[Callable[[], object]] = [
        lambda: Repository.open(storage),
        lambda: Repository.create(s3_at(ceph_server, f"{place}/new", **{wrong: "hunter2"})),
        lambda: list(storage.list()),
        lambda: storage.put("a", b"1"),
        lambda: storage.create("a", b"1"),
        lambda: storage.delete(["repo"]),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="credentials") as caught:
            call()
        assert "hunter2" not in str(caught.value)
    np.testing.assert_array_equal(values(Repository.open(right)), DATA)
    assert not [info.key for info in right.list() if info.key == "a" or info.key.startswith("new")]


def test_environment_and_profile(
    s3_server: Running, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    profile = tmp_path / "credentials"
    profile.write_text("[other]\naws_access_key_id = key\naws_secret_access_key = secret%x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_PROFILE", "other")
    storage = ours.s3_storage(bucket=BUCKET, prefix=f"{place}/1", region="us-east-1")
    assert s3_server.url in storage.identity
    storage.put("a", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_PROFILE")
    ours.s3_storage(bucket=BUCKET, prefix=f"{place}/2", region="us-west-2", from_env=True).put("a", b"1")


def test_no_secret_is_shown(s3_server: Running, azure_server: Running, place: str) -> None:
    storage = s3_at(s3_server, place, secret_access_key="hunter2", headers={"authorization": "hunter2"})
    shown = [repr(storage), storage.identity, repr(PrefixStorage(storage, "a"))]
    for call in (lambda: storage.get("missing"), lambda: s3_at(Running(9), place).with_settings(ONCE).get("a")):
        with pytest.raises(StorageError) as caught:
            call()
        shown.append(str(caught.value))
    assert not any("hunter2" in text or "Signature" in text for text in shown)
    assert all(len(text) < 700 for text in shown)


ONCE = ours.StorageSettings(retries=ours.StorageRetriesSettings(max_tries=1))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_bucket_that_does_not_exist(store: Storage) -> None:
    kind: Any = type(store)
    other = kind(_other_bucket(store), "x")
    for call in (lambda: other.get("a"), lambda: list(other.list()), lambda: other.create("a", b"")):
        with pytest.raises(StorageError, match="does not exist") as caught:
            call()
        assert caught.value.kind is ErrorKind.STORAGE_CONFIG


def _other_bucket(store: Any) -> Any:
    import dataclasses

    return dataclasses.replace(store.bucket, name="nobucket", url=store.bucket.url + "-nobucket")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"endpoint_url": "http://host"}, "allow_http"),
        ({"endpoint_url": "host:9000"}, "endpoint_url"),
        ({"checksum_algorithm": ours.ChecksumAlgorithm.Crc32}, "Crc32"),
        ({"legacy_rooted_keys": True}, "legacy_rooted_keys"),
        ({"headers": {"X-Amz-Acl": "private"}}, "X-Amz-Acl"),
        ({"bucket": "s3://bucket"}, "s3://bucket"),
        ({"bucket": ""}, "bucket"),
        ({"prefix": "a/../b"}, "a/../b"),
        ({"anonymous": True, "access_key_id": "a", "secret_access_key": "b"}, "Conflicting"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        ours.s3_storage(**{"bucket": "bucket", "prefix": "p", **options})


def test_presets() -> None:
    r2 = ours.r2_storage(prefix="bucket/a/b", account_id="abc", anonymous=True)
    assert r2.identity == "s3+https://abc.r2.cloudflarestorage.com/bucket/a/b"
    with pytest.raises(StorageError, match="account_id"):
        ours.r2_storage(bucket="bucket")
    tigris = ours.tigris_storage(bucket="bucket", prefix="a", region="iad", anonymous=True)
    assert tigris.identity == "s3+https://t3.storage.dev/bucket/a"
    assert not tigris.read_only
    assert ours.tigris_storage(bucket="b", prefix="a", use_weak_consistency=True).read_only
    with pytest.raises(InvalidInputError, match="region"):
        ours.tigris_storage(bucket="bucket", prefix="a")
    with pytest.raises(InvalidInputError, match="s3_storage"):
        ours.hf_storage(bucket="bucket", prefix="a", namespace="me")


def test_a_forked_child_is_refused(s3_server: Running, place: str) -> None:
    s3_at(s3_server, place).put("a", b"1")
    code = (
        "import os, sys\n"
        "import icechunk_engine as ours\n"
        "from icechunk_engine.errors import StorageError\n"
        "storage = ours.s3_storage(bucket='bucket', prefix=sys.argv[2], endpoint_url=sys.argv[1], allow_http=True,\n"
        "                          access_key_id='key', secret_access_key='secret')\n"
        "unused = os.fork()\n"
        "if unused == 0:\n"
        "    os._exit(storage.get('a') != b'1')\n"
        "assert os.waitpid(unused, 0)[1] == 0\n"
        "assert storage.get('a') == b'1'\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        storage.get('a')\n"
        "    except StorageError as error:\n"
        "        os._exit('spawn' not in str(error))\n"
        "    os._exit(1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert storage.get('a') == b'1'\n"
        "print('fine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, s3_server.url, place],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "fine\n", done.stderr


def boto_client(server: Running) -> Any:
    import boto3

    return boto3.client(
        "s3", endpoint_url=server.url, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )


def test_storage_classes(s3_server: Running, place: str) -> None:
    storage = s3_at(s3_server, place).with_settings(ours.StorageSettings(chunks_storage_class="STANDARD_IA"))
    storage.put("chunks/A", b"1")
    storage.put("manifests/A", b"1")
    client = boto_client(s3_server)
    assert client.head_object(Bucket=BUCKET, Key=f"{place}/chunks/A")["StorageClass"] == "STANDARD_IA"
    assert "StorageClass" not in client.head_object(Bucket=BUCKET, Key=f"{place}/manifests/A")


def test_encryption_keys_are_named(s3_server: Running, place: str) -> None:
    """Also of large objects and copies; the headers are signed, which the real store insists on."""
    headers = {"x-amz-server-side-encryption": "aws:kms", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "key1"}
    options = {
        "key": "key",
        "secret": "secret",
        "endpoint_url": s3_server.url,
        "s3_additional_kwargs": {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key1"},
    }
    by_url = storage_from_url(f"s3://{BUCKET}/{place}/url", options)
    for n, storage in enumerate((s3_at(s3_server, f"{place}/function", headers=headers), by_url)):
        storage = storage.with_settings(ours.StorageSettings(minimum_size_for_multipart_upload=2**20))
        version = storage.create("repo", b"1")
        storage.replace("repo", b"2", version)
        storage.copy("repo", "copied")
        storage.put("chunks/A", bytes(2**21))
        assert storage.get("repo") == b"2"
        for key in ("repo", "copied", "chunks/A"):
            head = boto_client(s3_server).head_object(Bucket=BUCKET, Key=f"{place}/{('function', 'url')[n]}/{key}")
            assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "key1"), key
    with pytest.raises(InvalidInputError, match="x-amz-acl"):
        s3_at(s3_server, place, write_headers={"x-amz-acl": "private"})


def test_large_objects_go_in_parts(store: Storage) -> None:
    data = os.urandom(30 * 2**20)
    storage = store.with_settings(ours.StorageSettings(minimum_size_for_multipart_upload=2**20))
    storage.put("chunks/A", data)
    assert store.get("chunks/A") == data
    assert store.get_range("chunks/A", 13 * 2**20, 13 * 2**20 + 5) == data[13 * 2**20 :][:5]


# --- the web ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(web_root: Path, place: str) -> str:
    """Path of a repository below the web server's root."""
    fill(Repository.create(LocalStorage(web_root / place), ours.RepositoryConfig(inline_chunk_threshold_bytes=0)))
    return place


def test_the_web_is_read(web_server: Running, published: str) -> None:
    storage = ours.http_storage(f"{web_server.url}/{published}")
    repo = Repository.open(pickle.loads(pickle.dumps(storage)))
    np.testing.assert_array_equal(values(repo), DATA)
    np.testing.assert_array_equal(
        values(icechunk.Repository.open(icechunk.http_storage(f"{web_server.url}/{published}"))), DATA
    )
    np.testing.assert_array_equal(
        values(Repository.open(ours.http_storage(f"{web_server.url}/no-etags/{published}"))), DATA
    )
    with pytest.raises(ReadOnlyError):
        repo.create_tag("v1", repo.lookup_branch("main"))
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(ours.http_storage(f"{web_server.url}/nowhere"))
    with pytest.raises(StorageError):
        list(storage.list())
    with pytest.raises(StorageError, match="range"):
        values(Repository.open(ours.http_storage(f"{web_server.url}/no-ranges/{published}")))


def test_redirects_lead_to_a_storage(web_server: Running, published: str) -> None:
    target = f"http+icechunk://127.0.0.1:{web_server.port}/{published}"
    storage = ours.redirect_storage(f"{web_server.url}/redirect/?{target}")
    np.testing.assert_array_equal(values(Repository.open(storage)), DATA)
    storage = ours.redirect_storage(f"{web_server.url}/redirect/?/redirect/?{target}")
    assert storage.read_only
    for location in ("ftp://host/x", "s3://bucket/without/region", f"{web_server.url}/nowhere", "/redirect/?loop"):
        with pytest.raises(StorageError) as caught:
            ours.redirect_storage(f"{web_server.url}/redirect/?{location}")
        assert caught.value.kind is ErrorKind.BAD_REDIRECT


def test_xarray_by_url(s3_server: Running, web_server: Running, published: str, place: str) -> None:
    import xarray_icechunk as xi

    options = {"key": "key", "secret": "secret", "client_kwargs": {"endpoint_url": s3_server.url}}
    dataset = xr.Dataset({"t": ("x", DATA[0])})
    url = f"s3://{BUCKET}/{place}/xarray"
    repo = xi.open_or_create_repository(url, storage_options=options)
    session = repo.writable_session("main")
    xi.to_icechunk(dataset, session)
    session.commit("data")
    opened = xr.open_dataset(url + "|icechunk:@branch.main", engine="icechunk", storage_options=options, chunks={})
    xr.testing.assert_identical(opened.load(), dataset)
    web = xr.open_dataset(f"{web_server.url}/{published}", engine="icechunk")
    np.testing.assert_array_equal(web["a"].values, DATA)
