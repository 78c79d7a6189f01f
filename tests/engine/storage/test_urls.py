"""URLs and options of fsspec's users as storages; nothing here makes a request."""

from __future__ import annotations

import os
import pickle
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from icechunk_engine.config import StorageSettings, StorageTimeoutSettings
from icechunk_engine.credentials.types import (
    AzureAnonymous,
    AzureStatic,
    GcsAnonymous,
    GcsFromEnv,
    GcsStatic,
    S3Anonymous,
    S3FromEnv,
    S3Static,
)
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.storage import FsspecStorage, LocalStorage, MemoryStorage, storage_from_url


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)


S3_KEYS = {"key": "AK", "secret": "hunter2"}
CONNECTION = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=aHVudGVyMg==;EndpointSuffix=core.windows.net"


@pytest.mark.parametrize(
    ("url", "options", "identity", "credential"),
    [
        ("s3://b/p/q", {"anon": True}, "s3://b/p/q", S3Anonymous),
        ("s3://b", {}, "s3://b", S3FromEnv),
        ("S3://b/p/", {"anon": False}, "s3://b/p", S3FromEnv),
        ("s3a://b/p", S3_KEYS, "s3://b/p", S3Static),
        ("s3://b/p", {**S3_KEYS, "token": "t", "endpoint_url": "http://h:9"}, "s3+http://h:9/b/p", S3Static),
        (
            "s3://b/p",
            {"client_kwargs": {"endpoint_url": "https://h", "region_name": "x"}},
            "s3+https://h/b/p",
            S3FromEnv,
        ),
        (
            "s3://b/p",
            {"client_kwargs": {"aws_access_key_id": "AK", "aws_secret_access_key": "hunter2"}},
            "s3://b/p",
            S3Static,
        ),
        ("gs://b/p", {"token": "anon"}, "gs://b/p", GcsAnonymous),
        ("gcs://b/p", {"anon": True, "project": "x"}, "gs://b/p", GcsAnonymous),
        ("gs://b/p", {"token": "google_default"}, "gs://b/p", GcsFromEnv),
        ("gs://b/p", {"token": "/key.json"}, "gs://b/p", GcsStatic),
        ("gs://b/p", {"token": {"private_key": "hunter2"}}, "gs://b/p", GcsStatic),
        ("gs://b/p", {"bearer_token": "hunter2", "endpoint_url": "https://h"}, "gs+https://h/b/p", GcsStatic),
        ("az://c/p", {"account_name": "acc", "account_key": "hunter2"}, "az://acc/c/p", AzureStatic),
        ("abfs://c/p", {"connection_string": CONNECTION}, "az://acc/c/p", AzureStatic),
        ("abfss://c@acc.dfs.core.windows.net/p", {"sas_token": "?hunter2"}, "az://acc/c/p", AzureStatic),
        ("az://c/p", {"account_name": "acc", "anon": True}, "az://acc/c/p", AzureAnonymous),
        ("az://c/p", {"account_name": "acc", "account_host": "h"}, "az+https://h/c/p", object),
    ],
)
def test_object_stores(url: str, options: dict[str, Any], identity: str, credential: type[Any]) -> None:
    given = pickle.dumps(options)
    storage: Any = storage_from_url(url, options)
    assert storage.identity == identity
    assert isinstance(storage.bucket.credential, credential)
    assert "hunter2" not in repr(storage) + repr(storage.bucket)
    assert pickle.dumps(options) == given
    assert pickle.loads(pickle.dumps(storage)).bucket == storage.bucket
    assert storage.is_remote


def test_the_web() -> None:
    storage = storage_from_url("https://user:pw@host/a/b%20c", {"headers": {"authorization": "hunter2"}})
    assert storage.identity == "https://host/a/b c"
    assert storage.read_only
    assert "hunter2" not in repr(storage)


def test_places_without_options(tmp_path: Path) -> None:
    assert storage_from_url(tmp_path) == storage_from_url(tmp_path.as_uri()) == LocalStorage(tmp_path)
    assert storage_from_url("memory://some name") is MemoryStorage.named("some name")


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("s3://b/p", {"anonn": True}, "anonn"),
        ("s3://b/p", {"client_kwargs": {"verify": False}}, "verify"),
        ("s3://b/p", {"client_kwargs": "x"}, "client_kwargs"),
        ("s3://b/p", {"config_kwargs": {}}, "config_kwargs"),
        ("s3://b/p", {"use_ssl": False}, "use_ssl"),
        ("s3://b/p", {"key": "AK"}, "access_key_id"),
        ("s3://b/p", {**S3_KEYS, "anon": True}, "Conflicting"),
        ("s3:///p", {}, "no bucket"),
        ("gs://b/p", {"token": object()}, "token"),
        ("gs://b/p", {"consistency": "none"}, "consistency"),
        ("az://c/p", {"account_key": "x"}, "account_name"),
        ("az://c/p", {"account_name": "a", "credential": object()}, "credential"),
        ("https://h/p", {"anon": True}, "anon"),
        ("https://h/p?query=1", {}, "query"),
        ("nothing://h", {}, "Supported are"),
        ("/path", {"anon": True}, "anon"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(url: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named.replace("?", ".")) as caught:
        storage_from_url(url, options)
    assert caught.value.kind in (
        ErrorKind.STORAGE_CONFIG,
        ErrorKind.CANNOT_PARSE_URL,
        ErrorKind.INVALID_CREDENTIALS,
    )
    assert "hunter2" not in str(caught.value)


def test_other_protocols_go_to_fsspec() -> None:
    storage = storage_from_url("sftp://host/path", {"username": "me", "password": "hunter2"})
    assert isinstance(storage, FsspecStorage)
    assert storage.read_only
    assert "hunter2" not in storage.identity + repr(storage)
    assert storage != storage_from_url("sftp://host/path", {"username": "you"})


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://b/p", {"anon": True}),
        ("gs://b/p", {"anon": True}),
        ("az://c/p", {"account_name": "acc", "anon": True}),
        ("https://h/p", {}),
    ],
)
def test_silence_ends(url: str, options: dict[str, Any]) -> None:
    """No store is waited for without end, unless somebody says so."""
    storage: Any = storage_from_url(url, options)
    storage = getattr(storage, "inner", storage)
    assert dict(storage._place.bucket.client)["read_timeout"] == timedelta(seconds=60)
    hasty = storage.with_settings(StorageSettings(timeouts=StorageTimeoutSettings(read_timeout_ms=500)))
    assert dict(hasty._place.bucket.client)["read_timeout"] == timedelta(milliseconds=500)
