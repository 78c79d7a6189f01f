"""Secrets do not appear in reprs, pages, errors, logs or names."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import xarray as xr
import zarr

import icechunk_engine as icechunk
from icechunk_engine import (
    ObjectStoreConfig,
    Repository,
    RepositoryConfig,
    S3Options,
    VirtualChunkContainer,
    VirtualChunkSpec,
)
from icechunk_engine import credentials as creds
from icechunk_engine._runtime.observing import operation
from icechunk_engine.credentials.types import Credential
from icechunk_engine.errors import IcechunkError, StorageError
from icechunk_engine.errors.redaction import masked, redacted, without_values
from icechunk_engine.storage import FsspecStorage, Storage, storage_from_url
from xarray_icechunk import open_or_create_repository
from xarray_icechunk.locations import _normal_location, split_pipeline

SECRET = "c4n4ry"
KEY_ID = f"AKIA{SECRET}EXAMPLE"
LOGIN = f"me:{SECRET}@"
WEB = f"https://{LOGIN}host.invalid/x"
DEAD = f"http://{LOGIN}127.0.0.1:1"
OPTIONS = {"proxy_url": f"http://{LOGIN}proxy", "client_secret": SECRET, "sas_key": SECRET, "base_url": WEB}
HEADERS = {"authorization": f"Bearer {SECRET}", "x-any": SECRET}
LATER = dt.datetime(2100, 1, 1, tzinfo=dt.UTC)


def static() -> creds.S3StaticCredentials:
    return creds.S3StaticCredentials(KEY_ID, SECRET, SECRET, LATER)


def returns_keys() -> creds.S3StaticCredentials:
    return static()


CREDENTIALS: list[Any] = [
    static(),
    creds.s3_credentials(access_key_id=KEY_ID, secret_access_key=SECRET, session_token=SECRET),
    creds.s3_credentials(get_credentials=returns_keys, scatter_initial_credentials=True),
    creds.S3Credentials.Refreshable(SECRET.encode(), static()),
    creds.GcsBearerCredential(SECRET),
    creds.gcs_credentials(bearer_token=SECRET),
    creds.gcs_credentials(service_account_key=f'{{"private_key": "{SECRET}"}}'),
    creds.GcsCredentials.Refreshable(SECRET.encode(), creds.GcsBearerCredential(SECRET)),
    creds.azure_credentials(access_key=SECRET),
    creds.azure_credentials(sas_token=SECRET),
    creds.azure_credentials(bearer_token=SECRET),
    creds.AzureRefreshableCredential.AccessKey(SECRET),
    creds.AzureRefreshableCredential.SasToken(SECRET),
    creds.AzureCredentials.Refreshable(
        SECRET.encode(), creds.AzureRefreshableCredential.BearerToken(SECRET, expires_after=LATER)
    ),
]
CREDENTIALS += [creds.access_at(CREDENTIALS[1], f"https://{LOGIN}h")]
CREDENTIALS += [creds.containers_credentials({"s3://b/": CREDENTIALS[1]})]

STORES: list[Any] = [
    icechunk.s3_store(endpoint_url=WEB),
    icechunk.s3_store(endpoint_url=WEB, s3_compatible=True),
    ObjectStoreConfig.Tigris(S3Options(endpoint_url=WEB)),
    icechunk.gcs_store(OPTIONS),
    icechunk.azure_store(account="a", config=OPTIONS),
    icechunk.http_store(OPTIONS, HEADERS),
]


def config() -> RepositoryConfig:
    containers = [VirtualChunkContainer(f"https://{LOGIN}h{n}/", store) for n, store in enumerate(STORES)]
    return RepositoryConfig(virtual_chunk_containers={each.url_prefix: each for each in containers})


STORAGES: list[Callable[[], Storage]] = [
    lambda: icechunk.http_storage(WEB, {"proxy_url": f"http://{LOGIN}proxy"}, HEADERS),
    lambda: icechunk.s3_storage(
        bucket="b",
        prefix="p",
        endpoint_url=WEB,
        access_key_id=KEY_ID,
        secret_access_key=SECRET,
        session_token=SECRET,
        headers={"x-any": SECRET},
    ),
    lambda: icechunk.r2_storage(bucket="b", prefix="p", endpoint_url=WEB, access_key_id=KEY_ID, secret_access_key="s"),
    lambda: icechunk.gcs_storage(bucket="b", prefix="p", bearer_token=SECRET, config=OPTIONS, headers=HEADERS),
    lambda: icechunk.azure_storage(account="a", container="c", prefix="p", sas_token=SECRET, config={"endpoint": WEB}),
    lambda: FsspecStorage(f"ftp://{LOGIN}host/x", {"password": SECRET}),
    lambda: storage_from_url(f"sftp://{LOGIN}host/x"),
    lambda: storage_from_url("s3://b/p", {"key": KEY_ID, "secret": SECRET, "endpoint_url": WEB}),
]


def texts_of(thing: Any) -> Iterator[str]:
    yield repr(thing)
    yield str(thing)
    yield f"{thing}"
    for name in ("_repr_html_", "__dask_tokenize__"):
        if hasattr(thing, name):
            yield str(getattr(thing, name)())


def test_credentials_and_containers_show_no_secret() -> None:
    things = [*CREDENTIALS, *STORES, config(), VirtualChunkSpec([0], WEB, 0, 1), S3Options(endpoint_url=WEB)]
    things += [VirtualChunkContainer(f"https://{LOGIN}h/", store, "n") for store in STORES]
    for thing in things:
        for text in texts_of(thing):
            assert SECRET not in text, text
    assert "AKIA****" in repr(static())


@pytest.mark.parametrize("make", STORAGES)
def test_storages_show_no_secret(make: Callable[[], Storage]) -> None:
    storage = make()
    inside: list[Any] = [storage, getattr(storage, "inner", storage)]
    inside += [each.bucket for each in inside if hasattr(each, "bucket")]
    inside += [icechunk.storage.PrefixStorage(storage, "x"), icechunk.storage.ReadOnlyStorage(storage)]
    for thing in inside:
        for text in (*texts_of(thing), getattr(thing, "identity", "")):
            assert SECRET not in text, text
    assert "<table" in storage._repr_html_()


def test_repositories_show_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    storage = icechunk.in_memory_storage()
    with caplog.at_level(logging.DEBUG):
        repo = Repository.create(storage, config(), creds.containers_credentials({"s3://b/": CREDENTIALS[1]}))
        session = repo.writable_session("main")
        zarr.create_array(session.store, name="a", shape=(1,), chunks=(1,), dtype="i1")
        session.commit("an array")
        repo = Repository.open(storage)
        things: list[Any] = [repo, session, session.store, repo.config, repo.inspect_repo_info()]
        things += [repo.inspect_snapshot(session.snapshot_id), list(repo.ops_log()), icechunk.doctor("memory://x")]
        for thing in things:
            for text in texts_of(thing):
                assert SECRET not in text, text
    assert SECRET not in caplog.text


def dead_virtual_chunk() -> None:
    prefix = f"{DEAD}/data/"
    container = VirtualChunkContainer(prefix, icechunk.http_store(headers=HEADERS))
    repo = Repository.create(
        icechunk.in_memory_storage(),
        RepositoryConfig(virtual_chunk_containers={prefix: container}),
        {prefix: creds.HttpAccess},
    )
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(1,), chunks=(1,), dtype="i1")
    session.store.set_virtual_ref("a/c/0", f"{prefix}x?sig={SECRET}", offset=0, length=1)
    array[:]


def refused_location() -> None:
    session = Repository.create(icechunk.in_memory_storage()).writable_session("main")
    zarr.create_array(session.store, name="a", shape=(1,), chunks=(1,), dtype="i1")
    session.store.set_virtual_ref("a/c/0", f"{WEB}/a?X-Amz-Signature={SECRET}", offset=0, length=1)


FAILURES: dict[str, Callable[[], object]] = {
    "a dead web server": lambda: icechunk.http_storage(f"{DEAD}/x", headers=HEADERS).get("repo"),
    "a proxy that is none": lambda: icechunk.http_storage("http://h/x", {"proxy_url": f"nonsense://{LOGIN}p"}).get(
        "x"
    ),
    "a dead redirect": lambda: icechunk.redirect_storage(f"{DEAD}/x?token={SECRET}"),
    "a redirect to an odd port": lambda: icechunk.redirect_storage(f"http://{LOGIN}host:port/x"),
    "no URL of a web server": lambda: icechunk.http_storage(f"ftp://{LOGIN}h/x"),
    "a URL with a signature": lambda: icechunk.http_storage(f"https://h/x?sig={SECRET}"),
    "an endpoint without encryption": lambda: icechunk.s3_storage(bucket="b", prefix="", endpoint_url=DEAD),
    "an endpoint of another kind": lambda: icechunk.s3_storage(
        bucket="b", prefix="", endpoint_url=f"ftp://{LOGIN}host"
    ),
    "a dead S3": lambda: icechunk.s3_storage(
        bucket="b", prefix="", endpoint_url=DEAD, allow_http=True, access_key_id=KEY_ID, secret_access_key=SECRET
    ).get("repo"),
    "a wrong service account": lambda: icechunk.gcs_storage(
        bucket="b", prefix="", service_account_key=f'{{"private_key": "{SECRET}", "client_email": 3}}'
    ).get("repo"),
    "a protocol without a storage": lambda: storage_from_url(f"nonsense://{LOGIN}host/x"),
    "unknown storage options": lambda: storage_from_url(f"https://{LOGIN}host/x", {"nonsense": SECRET}),
    "a file system that is not installed": lambda: storage_from_url(f"sftp://{LOGIN}host/x").get("repo"),
    "a host that is none": lambda: storage_from_url(f"ftp://{LOGIN}127.0.0.1:1/x", {"password": SECRET}).get("repo"),
    "no repository": lambda: Repository.open(storage_from_url("memory://nothing"), config()),
    "a pipeline": lambda: split_pipeline(f"https://{LOGIN}h/x|icechunk:branch"),
    "a plugin's place": lambda: open_or_create_repository(f"https://{LOGIN}h/x|icechunk:@tag.v1"),
    "a dataset": lambda: xr.open_dataset(f"nonsense://{LOGIN}h/x?sig={SECRET}", engine="icechunk"),
    "an unusable container": lambda: RepositoryConfig().set_virtual_chunk_container(
        VirtualChunkContainer(f"https://{LOGIN}h/", icechunk.s3_store())
    ),
    "a virtual chunk on a dead server": dead_virtual_chunk,
    "a location in no container": refused_location,
}


@pytest.mark.parametrize("name", FAILURES)
def test_errors_show_no_secret(name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from icechunk_engine.storage.object_store import buckets
    from icechunk_engine.virtual import http_servers

    monkeypatch.setattr(http_servers, "_MAX_RETRY_S", -1)
    with_settings = buckets.with_settings
    once = icechunk.StorageSettings(retries=icechunk.StorageRetriesSettings(max_tries=1))
    monkeypatch.setattr(
        "icechunk_engine.storage.object_store.storage.with_settings", lambda bucket, _: with_settings(bucket, once)
    )
    with caplog.at_level(logging.DEBUG), pytest.raises(IcechunkError) as caught:
        FAILURES[name]()
    shown = "".join(traceback.format_exception(caught.value))
    # Tracebacks show lines of this file. They contain the name of the secret, not the secret.
    assert SECRET not in shown
    assert SECRET not in repr(caught.value)
    assert SECRET not in caplog.text


def test_every_kind_of_credential_is_tried() -> None:
    def all_kinds(cls: type[Any]) -> Iterator[type]:
        for below in cls.__subclasses__():
            yield below
            yield from all_kinds(below)

    def inside(thing: Any) -> Iterator[Any]:
        yield thing
        for name in getattr(thing, "__dataclass_fields__", ()):
            yield from inside(getattr(thing, name))

    def has_secrets(cls: Any) -> bool:
        return any(not item.repr for item in getattr(cls, "__dataclass_fields__", {}).values())

    tried = {type(part).__name__ for thing in CREDENTIALS for part in inside(thing)}
    missing = {cls.__name__ for cls in all_kinds(Credential) if has_secrets(cls)} - tried
    assert missing == set()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing", "nothing"),
        ("https://h/a", "https://h/a"),
        ("https://tok@h/a", "https://****@h/a"),
        ("(https://u:p@h:8/a, s3://b/k?x=1)", "(https://****@h:8/a, s3://b/k?x=1)"),
        ("s3://b/k?X-Amz-Signature=s&region=eu", "s3://b/k?X-Amz-Signature=****&region=eu"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("abfss://u:p@account/x", "abfss://****@account/x"),
        ("s3+https://u:p@minio/b", "s3+https://****@minio/b"),
        ("https://h/a?b=1&c=2#d", "https://h/a?b=****&c=****#d"),
        ("https://h/a@b", "https://h/a@b"),
        ("Authorization: Bearer abc def", "Authorization: **** def"),
        ('{"x-amz-security-token": "abc"}', '{"x-amz-security-token": "****"}'),
    ],
)
def test_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


def test_options_are_masked_by_name() -> None:
    assert masked({"Sas_Key": "x", "proxy_url": "http://u:p@h", "timeout": "1s"}) == {
        "Sas_Key": "****",
        "proxy_url": "http://****@h",
        "timeout": "1s",
    }
    assert without_values("login pw1 failed at http://u:p@h", {"password": "pw1"}) == (
        "login **** failed at http://****@h"
    )


def test_errors_are_redacted_when_they_are_made() -> None:
    error = StorageError(f"cannot open {WEB}")
    assert error.args == (error.message,)
    assert error.message == "cannot open https://****@host.invalid/x"


def test_trails_of_errors_and_places_of_datasets_are_redacted(caplog: pytest.LogCaptureFixture) -> None:
    @operation(lambda place: f"opening {place}")
    def fail(place: str) -> None:
        raise StorageError("no")

    with caplog.at_level(logging.DEBUG), pytest.raises(StorageError) as caught:
        fail(WEB)
    assert caught.value.__notes__ == ["while opening https://****@host.invalid/x"]
    assert SECRET not in caplog.text
    assert _normal_location(WEB) == "https://****@host.invalid/x"


def test_places_that_differ_in_their_login_are_not_shared() -> None:
    """This name is the key of their caches."""
    places = {FsspecStorage(f"ftp://{login}host/x").identity for login in ("", "a:b@", "a:c@")}
    assert len(places) == 3


def test_nothing_is_shown_of_an_event_loop() -> None:
    async def fail() -> None:
        await Repository.open_async(icechunk.http_storage(f"{DEAD}/x", {"connect_timeout": "1ns"}))

    with pytest.raises(IcechunkError) as caught:
        asyncio.run(asyncio.wait_for(fail(), 60))
    assert SECRET not in "".join(traceback.format_exception(caught.value))
