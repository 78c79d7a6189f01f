"""AWS profiles: keys that are written there, and those that a program gives."""

from __future__ import annotations

import json
import pickle
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from icechunk_engine.credentials.types import S3Refreshable, S3StaticCredentials
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.storage import s3_storage, storage_from_url
from icechunk_engine.storage.object_store.authentication import s3_access
from icechunk_engine.storage.object_store.aws_profiles import (
    FromProfile,
    default_profile,
    region_of_profile,
    written_keys,
)

EXPIRES = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def program(home: Path) -> str:
    """A program that gives keys which expire, as those of single sign-on do."""
    keys = {"Version": 1, "AccessKeyId": "fresh", "SecretAccessKey": "s", "SessionToken": "t"}
    (home / "keys.json").write_text(json.dumps({**keys, "Expiration": EXPIRES.isoformat()}))
    (home / "give.py").write_text(f"print(open({str(home / 'keys.json')!r}).read())")
    return f'credential_process = "{sys.executable}" "{home / "give.py"}"\n'


def found(options: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the client would be given."""
    storage: Any = storage_from_url("s3://bucket/prefix", options)
    provider = s3_access(storage.bucket.credential).provider
    assert provider is not None
    return pickle.loads(pickle.dumps(provider))()


def test_keys(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_profile() is None
    (home / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = %x\n"
        "[third]\naws_access_key_id = d\naws_secret_access_key = w\n"
        "[other]\naws_access_key_id = b\naws_secret_access_key = y\naws_session_token = t\n"
    )
    assert default_profile() == "default"
    assert found()["access_key_id"] == "a"
    assert found()["secret_access_key"] == "%x"
    assert found({"profile": "other"}) == {
        "access_key_id": "b",
        "secret_access_key": "y",
        "token": "t",
        "expires_at": None,
    }
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert found()["access_key_id"] == "b"
    assert found({"profile": "third"})["access_key_id"] == "d"
    assert found({"profile": "third", "key": "c", "secret": "z"})["access_key_id"] == "c"


@pytest.mark.parametrize("by", ["profile", "environment", "default"])
def test_a_program_gives_keys_that_expire(home: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    section = "default" if by == "default" else "profile sso"
    (home / "config").write_text(f"[{section}]\nregion = eu-north-1\n{program(home)}")
    if by == "environment":
        monkeypatch.setenv("AWS_PROFILE", "sso")
    options = {"profile": "sso"} if by == "profile" else None
    expected = {"access_key_id": "fresh", "secret_access_key": "s", "token": "t", "expires_at": EXPIRES}
    assert found(options) == expected
    storage: Any = storage_from_url("s3://bucket/prefix", options)
    assert dict(storage.bucket.options)["region"] == "eu-north-1"
    assert dict(storage_from_url("s3://b/p", {**(options or {}), "region": "x"}).bucket.options)["region"] == "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", ["config", "credentials"])
@pytest.mark.parametrize("setting", ["role_arn = arn:aws:iam::1:role/x", "sso_session = x", "sso_start_url = x"])
def test_keys_beside_a_role_are_not_used_as_they_are(home: Path, file: str, setting: str) -> None:
    (home / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = x\n")
    with (home / file).open("a") as written:
        written.write(setting if file == "credentials" else f"[default]\n{setting}\n")
    assert written_keys("default") is None
    assert default_profile() == "default"


def test_keys_beside_a_role_are_to_ask_for_the_role_with(home: Path) -> None:
    (home / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = x\nrole_arn = arn:aws:iam::1:role/x\n"
    )
    with pytest.raises(InvalidInputError, match="source_profile"):  # incomplete, so nobody is asked
        FromProfile("default")()


def test_keys_beside_a_program_go_first(home: Path) -> None:
    (home / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = x\n")
    (home / "config").write_text(f"[default]\n{program(home)}")
    assert found()["access_key_id"] == "a"


def test_keys_in_the_configuration(home: Path) -> None:
    (home / "config").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = x\n"
        "[profile own]\naws_access_key_id = b\naws_secret_access_key = y\n"
    )
    assert default_profile() == "default"
    assert FromProfile("default")() == S3StaticCredentials("a", "x")
    assert found({"profile": "own"})["access_key_id"] == "b"


def test_the_environment_goes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config").write_text(f"[default]\nregion = eu-north-1\n{program(home)}")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    storage: Any = s3_storage(bucket="b", prefix="p")
    assert region_of_profile() is None
    assert "region" not in dict(storage.bucket.options)
    assert s3_access(storage.bucket.credential).provider is None


def test_the_endpoint_of_a_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys belong there: elsewhere is the wrong place."""
    (home / "config").write_text(
        "[default]\nendpoint_url = https://a\n[profile b]\nendpoint_url = http://b:9000\n"
        "[profile c]\nservices = mine\nendpoint_url = https://x\n[services mine]\nec2 =\n  endpoint_url = https://y\n"
        "s3 =\n  max_attempts = 3\n  endpoint_url = https://c\n"
    )
    assert storage_from_url("s3://bucket/p").identity == "s3+https://a/bucket/p"
    assert storage_from_url("s3://bucket/p", {"profile": "b"}).identity == "s3+http://b:9000/bucket/p"
    assert storage_from_url("s3://bucket/p", {"profile": "c"}).identity == "s3+https://c/bucket/p"
    given = {"profile": "c", "endpoint_url": "https://d"}
    assert storage_from_url("s3://bucket/p", given).identity == "s3+https://d/bucket/p"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://e")
    assert storage_from_url("s3://bucket/p", {"profile": "c"}).identity == "s3+https://e/bucket/p"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert storage_from_url("s3://bucket/p").identity == "s3://bucket/p"


@pytest.mark.parametrize("value", [True, "true", "True"])
def test_headers_of_encryption_as_users_write_them(value: bool | str) -> None:
    storage: Any = storage_from_url("s3://bucket/p", {"s3_additional_kwargs": {"BucketKeyEnabled": value}})
    assert dict(storage.bucket.options)["sse_bucket_key_enabled"] is True
    with pytest.raises(InvalidInputError, match="s3_additional_kwargs"):
        storage_from_url("s3://bucket/p", {"s3_additional_kwargs": "ServerSideEncryption"})


def test_what_gives_nothing_is_named(home: Path) -> None:
    (home / "config").write_text("[profile empty]\nregion = x\n[profile broken]\ncredential_process = false\n")
    for name in ("empty", "broken", "nowhere"):
        with pytest.raises(InvalidInputError, match=f"'{name}'") as caught:
            FromProfile(name)()
        assert caught.value.kind is ErrorKind.INVALID_CREDENTIALS


def test_without_botocore(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "config").write_text(f"[default]\n{program(home)}")
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(InvalidInputError, match="pip install botocore"):
        FromProfile("default")()
    (home / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = x\n")
    assert FromProfile("default")() == S3StaticCredentials("a", "x")


def test_unreadable_files_are_no_profiles(home: Path) -> None:
    (home / "credentials").write_bytes(b"\xff\xfe[[[")
    (home / "config").write_text("no section\n")
    assert default_profile() is None
    assert isinstance(
        storage_from_url("s3://b/p", {"profile": "x"}).bucket.credential,  # type: ignore[attr-defined]
        S3Refreshable,
    )
