"""Byte ranges: the two errors that every storage raises alike."""

from __future__ import annotations

from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError


def check_range(key: str, start: int, stop: int) -> None:
    """Raise InvalidInputError (``invalid-byte-range``) unless ``0 <= start <= stop``."""
    if not 0 <= start <= stop:
        raise InvalidInputError(
            f"bytes {start}:{stop} of {key!r} are no range: 0 <= start <= stop must hold", ErrorKind.INVALID_BYTE_RANGE
        )


def too_short(shown: str, size_bytes: int, stop: int) -> StorageError:
    """The error for an object, named for people, that ends before ``stop``."""
    return StorageError(
        f"{shown} has {size_bytes} bytes, bytes up to {stop} were asked for: the object was cut short or "
        f"replaced. Restore it, or write the data anew",
        ErrorKind.INVALID_OBJECT_SIZE,
    )
