"""What the texts of a client's errors become."""

from __future__ import annotations

import pytest

from icechunk_engine.errors import ErrorKind, IcechunkError, InvalidInputError, ObjectNotFoundError, StorageError
from icechunk_engine.storage.object_store.store_errors import (
    RefusedError,
    UnsatisfiableRangeError,
    short_text,
    translated,
)

GenericError = type("GenericError", (Exception,), {})
PreconditionError = type("PreconditionError", (Exception,), {})
PermissionDeniedError = type("PermissionDeniedError", (Exception,), {})
NotSupportedError = type("NotSupportedError", (Exception,), {})


def answered(status: int, code: str = "Code", url: str = "https://h/b/k") -> str:
    return (
        f"Generic S3 error: Error performing GET {url} in 1ms - Server returned non-2xx status code: {status} Text: "
        f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>What happened</Message></Error>\n\n'
        f"Debug source:\nGeneric {{ secret }}"
    )


@pytest.mark.parametrize(
    ("error", "kind", "cls", "remedy"),
    [
        (FileNotFoundError(answered(404, "NoSuchKey")), ErrorKind.OBJECT_NOT_FOUND, ObjectNotFoundError, "no object"),
        (FileNotFoundError(answered(404, "NoSuchBucket")), ErrorKind.STORAGE_CONFIG, StorageError, "create it"),
        (PreconditionError(answered(412)), ErrorKind.OBJECT_STORE, RefusedError, "Try again"),
        (GenericError(answered(416)), ErrorKind.INVALID_OBJECT_SIZE, UnsatisfiableRangeError, "What happened"),
        (PermissionDeniedError(answered(403)), ErrorKind.OBJECT_STORE, StorageError, "Check the credentials"),
        (GenericError(answered(301)), ErrorKind.STORAGE_CONFIG, StorageError, "region"),
        (GenericError(answered(503, "SlowDown")), ErrorKind.THROTTLED, StorageError, "fewer workers"),
        (GenericError(answered(500)), ErrorKind.OBJECT_STORE, StorageError, "try again"),
        (
            GenericError("Generic S3 error: Received non-partial response when range requested"),
            ErrorKind.STORAGE_CONFIG,
            StorageError,
            "byte ranges",
        ),
        (NotSupportedError("no"), ErrorKind.STORAGE_CONFIG, StorageError, "does not support this"),
        (ValueError('Could not parse path: Path "a//b"'), ErrorKind.INVALID_KEY, InvalidInputError, "parts"),
        (
            GenericError("Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: timeout"),
            ErrorKind.OBJECT_STORE,
            StorageError,
            "anonymous=True",
        ),
    ],
)
def test_translations(error: Exception, kind: ErrorKind, cls: type[IcechunkError], remedy: str) -> None:
    found = translated(error, "'k' in s3://b/p", "s3://b")
    assert type(found) is cls
    assert found.kind is kind
    assert remedy in str(found)
    assert "s3://b" in str(found)
    assert "secret" not in str(found)


def test_texts_are_short_and_without_signatures() -> None:
    text = short_text(GenericError(answered(500, url="https://h/b?sig=hunter2&x=1")))
    assert "hunter2" not in text
    assert text.endswith("Code: What happened")
    assert "\n" not in text
    assert len(short_text(GenericError("x" * 5000))) <= 600
