"""Signatures of requests that the engine signs itself, compared with botocore."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from icechunk_engine.virtual.s3_literal_keys import Keys, signed


@pytest.mark.parametrize("token", [None, "session token"])
@pytest.mark.parametrize(
    ("path", "encoded"), [("/b/a//c", "/b/a//c"), ("/b/é +%~/../x", "/b/%C3%A9%20%2B%25~/../x"), ("/b//", "/b//")]
)
def test_signatures(path: str, encoded: str, token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: time.replace(tzinfo=None))
    request = AWSRequest("GET", f"https://host:9000{encoded}", headers={"x-amz-request-payer": "requester"})
    request.context["timestamp"] = time.strftime("%Y%m%dT%H%M%SZ")
    S3SigV4Auth(Credentials("key id", "secret", token), "s3", "eu-west-1").add_auth(request)
    headers = {"host": "host:9000", "x-amz-request-payer": "requester"}
    ours = signed(Keys("key id", "secret", token), "eu-west-1", path, headers, time)
    assert ours["authorization"] == request.headers["Authorization"]
    assert ours.get("x-amz-security-token") == token
