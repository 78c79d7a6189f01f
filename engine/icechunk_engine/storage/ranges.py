"""Byte ranges: the errors that all storages share, and the parts of large transfers. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from icechunk_engine.config import StorageSettings
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError


def check_range(key: str, start: int, stop: int) -> None:
    """Raise InvalidInputError (``invalid-byte-range``) if not ``0 <= start <= stop``."""
    if not 0 <= start <= stop:
        raise InvalidInputError(
            f"bytes {start}:{stop} of {key!r} are not a valid range: 0 <= start <= stop must hold",
            ErrorKind.INVALID_BYTE_RANGE,
        )


def too_short(shown: str, size_bytes: int, stop: int) -> StorageError:
    """Return the error for an object that ends before ``stop``; ``shown`` names it."""
    return StorageError(
        f"{shown} has only {size_bytes} of the {stop} bytes that are needed: the object was cut short or replaced. "
        f"Restore it, or write the data again",
        ErrorKind.INVALID_OBJECT_SIZE,
    )


class PartSizes(NamedTuple):
    """How large objects are transferred: ``StorageSettings.concurrency`` with its defaults."""

    ideal_bytes: int = 12 * 2**20
    most: int = 18

    @classmethod
    def of(cls, settings: StorageSettings) -> PartSizes:
        """Return the sizes that settings ask for."""
        given = settings.concurrency
        if given is None:
            return cls()
        return cls(
            cls().ideal_bytes if given.ideal_concurrent_request_size is None else given.ideal_concurrent_request_size,
            cls().most
            if given.max_concurrent_requests_for_object is None
            else min(given.max_concurrent_requests_for_object, _MOST_READ),
        )

    def cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Cut a range into parts of equal length (up to one byte) to read at the same time. A short one stays whole.

        >>> PartSizes(ideal_bytes=4, most=3).cut(0, 10)
        [(0, 3), (3, 6), (6, 10)]
        """
        size = max(stop - start, 0)
        count = max(min(-(-size // max(self.ideal_bytes, 1)), self.most), 1)
        bounds = [start + size * number // count for number in range(count + 1)]
        return list(pairwise(bounds))

    def upload_bytes(self, size: int) -> int:
        """Return the length of the parts of an upload, within the limits of the stores."""
        return max(self.ideal_bytes, _LEAST_UPLOADED, -(-size // _MOST_UPLOADED))


_MOST_READ = 256
"""A stored configuration must not make a reader cut a chunk into thousands of requests."""
_LEAST_UPLOADED = 5 * 2**20
_MOST_UPLOADED = 10_000
