"""Our errors for those of obstore, each with a remedy. Pure: obstore's errors are recognised by name and text."""

from __future__ import annotations

import re

from icechunk_engine.errors import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    StorageError,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_CREDENTIAL_SERVERS = ("//169.254.169.254/", "//metadata.google.internal", "//metadata/", "//169.254.170.2")
"""Servers that give credentials to machines of a cloud. The client asks them if it finds no other credentials."""
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "FilesystemNotFound"})
_THROTTLED = frozenset({"SlowDown", "ServerBusy", "TooManyRequests", "RequestLimitExceeded"})


class RefusedError(StorageError):
    """The store refused a conditional write: its condition did not hold, or seemed not to hold."""


class CutShortError(StorageError):
    """The connection ended before the answer was complete."""


class UnsatisfiableRangeError(StorageError):
    """The range starts after the end of the object."""


def translated(error: Exception, where: str, bucket_url: str) -> IcechunkError:
    """Return our error for an error of obstore about the object ``where``."""
    name, text = type(error).__name__, str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    code = found[1] if (found := _CODE.search(text)) else ""
    said = short_text(error)
    if code in _NO_BUCKET:
        return StorageError(
            f"{bucket_url}: the bucket or container does not exist ({code}). Check its name, region and "
            f"endpoint, or create it",
            ErrorKind.STORAGE_CONFIG,
        )
    if name in ("AlreadyExistsError", "PreconditionError"):
        return RefusedError(f"{where}: refused because of another request ({said}). Try again", ErrorKind.OBJECT_STORE)
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"no object {where}")
    if status == 416 or "Wanted range starting at" in text:
        return UnsatisfiableRangeError(f"{where}: {said}", ErrorKind.INVALID_OBJECT_SIZE)
    if any(host in text for host in _CREDENTIAL_SERVERS):
        return StorageError(
            f"{where}: no credentials were found, and this machine gets none from a cloud provider. Pass credentials, "
            f"set them in the environment, or pass anonymous=True (storage_options={{'anon': True}}) if the bucket is "
            f"public",
            ErrorKind.OBJECT_STORE,
        )
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return StorageError(
            f"{where}: access was denied ({said}). Check the credentials and their permissions. Public buckets need "
            f"anonymous=True. If you may not list the bucket, S3 answers the same for objects that do not exist",
            ErrorKind.OBJECT_STORE,
        )
    if status in (301, 307) or "redirect" in text[:300]:
        return StorageError(
            f"{where}: the bucket is in another region ({said}). Pass the right region", ErrorKind.STORAGE_CONFIG
        )
    if status == 429 or code in _THROTTLED:
        return StorageError(
            f"{where}: the store throttles requests ({said}). Try again later, use fewer workers, or raise "
            f"StorageSettings.retries",
            ErrorKind.THROTTLED,
        )
    if name in ("NotSupportedError", "NotImplementedError") or status in (405, 501) or "non-partial" in text[:300]:
        return StorageError(
            f"{where}: the store does not support this ({said}). Reading needs byte ranges. Writing needs conditional "
            f"puts, listing and copying. Use a store that supports them, or copy the repository",
            ErrorKind.STORAGE_CONFIG,
        )
    if isinstance(error, ValueError) and "path" in text[:40].lower():
        return InvalidInputError(
            f"{where} is not a valid key of an object ({said}). Keys have no empty, '.' or '..' parts",
            ErrorKind.INVALID_KEY,
        )
    kind = CutShortError if "response body error" in text else StorageError
    return kind(f"{where}: {said}. Check the network and the endpoint, then try again", ErrorKind.OBJECT_STORE)


def short_text(error: Exception) -> str:
    """Return what an error of obstore says, without request dumps and XML."""
    text = str(error).partition("Debug source")[0]
    message = found[1] if (found := _MESSAGE.search(text)) else ""
    code = found[1] if (found := _CODE.search(text)) else ""
    text = " ".join(text.partition("<?xml")[0].partition("<Error>")[0].split()).rstrip(": ")
    text = re.sub(r"https?://\S+\?\S*", "…", text)  # the query may contain a signature
    detail = f": {code}: {message}".rstrip(": ") if code else ""
    return f"{text[:300]}{detail[:300]}"
