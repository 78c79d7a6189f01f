"""What the errors of obstore mean here, with the remedy. Pure: they are known by their names and texts."""

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
"""Of machines in clouds; asked when there is nothing else."""
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "FilesystemNotFound"})
_THROTTLED = frozenset({"SlowDown", "ServerBusy", "TooManyRequests", "RequestLimitExceeded"})


class RefusedError(StorageError):
    """The store refused a conditional write: its condition did not hold, or so it seemed."""


class CutShortError(StorageError):
    """The connection ended within the answer."""


class UnsatisfiableRangeError(StorageError):
    """The range starts behind the object's end."""


def translated(error: Exception, where: str, bucket_url: str) -> IcechunkError:
    """Our error for one of obstore about the object ``where``, with the remedy."""
    name, text = type(error).__name__, str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else 0
    code = found[1] if (found := _CODE.search(text)) else ""
    said = short_text(error)
    if code in _NO_BUCKET:
        return StorageError(
            f"{bucket_url}: the bucket or container does not exist ({code}). Check its name, region and "
            f"endpoint, or make it",
            ErrorKind.STORAGE_CONFIG,
        )
    if name in ("AlreadyExistsError", "PreconditionError"):
        return RefusedError(f"{where}: refused because of another request ({said}). Try again", ErrorKind.OBJECT_STORE)
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"there is no object {where}")
    if status == 416 or "Wanted range starting at" in text:
        return UnsatisfiableRangeError(f"{where}: {said}", ErrorKind.INVALID_OBJECT_SIZE)
    if any(host in text for host in _CREDENTIAL_SERVERS):
        return StorageError(
            f"{where}: no credentials were found, and this machine is not one that its cloud gives some to. Pass "
            f"credentials, set them in the environment, or say anonymous=True (storage_options={{'anon': True}}) if "
            f"the bucket is public",
            ErrorKind.OBJECT_STORE,
        )
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403):
        return StorageError(
            f"{where}: access was denied ({said}). Check the credentials and what they allow; public buckets need "
            f"anonymous=True; S3 also says this of missing objects to those who may not list the bucket",
            ErrorKind.OBJECT_STORE,
        )
    if status in (301, 307) or "redirect" in text[:300]:
        return StorageError(
            f"{where}: the bucket is in another region ({said}). Pass its region", ErrorKind.STORAGE_CONFIG
        )
    if status == 429 or code in _THROTTLED:
        return StorageError(
            f"{where}: the store asks for fewer requests ({said}). Try again later, with fewer workers, or raise "
            f"StorageSettings.retries",
            ErrorKind.THROTTLED,
        )
    if name in ("NotSupportedError", "NotImplementedError") or status in (405, 501) or "non-partial" in text[:300]:
        return StorageError(
            f"{where}: the store cannot do that ({said}). Reading needs byte ranges, writing needs conditional puts, "
            f"listing and copying: use a store that has them, or copy the repository",
            ErrorKind.STORAGE_CONFIG,
        )
    if isinstance(error, ValueError) and "path" in text[:40].lower():
        return InvalidInputError(
            f"{where} cannot be the key of an object ({said}); keys have no empty, '.' or '..' parts",
            ErrorKind.INVALID_KEY,
        )
    kind = CutShortError if "response body error" in text else StorageError
    return kind(f"{where}: {said}. Check the network and the endpoint, then try again", ErrorKind.OBJECT_STORE)


def short_text(error: Exception) -> str:
    """What an error of obstore says, without request dumps and XML."""
    text = str(error).partition("Debug source")[0]
    message = found[1] if (found := _MESSAGE.search(text)) else ""
    code = found[1] if (found := _CODE.search(text)) else ""
    text = " ".join(text.partition("<?xml")[0].partition("<Error>")[0].split()).rstrip(": ")
    text = re.sub(r"https?://\S+\?\S*", "…", text)  # a signature may be in the query
    detail = f": {code}: {message}".rstrip(": ") if code else ""
    return f"{text[:300]}{detail[:300]}"
