"""Byte ranges: two errors that every storage raises alike, and the parts of large transfers. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from icechunk_engine.config import StorageSettings
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError


def check_range(key: str, start: int, stop: int) -> None:
    """Raise InvalidInputError (``invalid-byte-range``) unless ``0 <= start <= stop``."""
    if not 0 <= start <= stop:
        raise InvalidInputError(
            f"bytes {start}:{stop} of {key!r} are not a range: 0 <= start <= stop must hold",
            ErrorKind.INVALID_BYTE_RANGE,
        )


def too_short(shown: str, size_bytes: int, stop: int) -> StorageError:
    """The error for an object, named for people, that ends before ``stop``."""
    return StorageError(
        f"{shown} has {size_bytes} bytes, bytes up to {stop} were asked for: the object was cut short or "
        f"replaced. Restore it, or write the data anew",
        ErrorKind.INVALID_OBJECT_SIZE,
    )


class PartSizes(NamedTuple):
    """How large objects are transferred: ``StorageSettings.concurrency``, with the defaults where it says nothing."""

    ideal_bytes: int = 12 * 2**20
    most: int = 18

    @classmethod
    def of(cls, settings: StorageSettings) -> PartSizes:
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
        """Ranges of equal length, up to a byte, to be read at the same time; one if it is short, or empty.

        >>> PartSizes(ideal_bytes=4, most=3).cut(0, 10)
        [(0, 3), (3, 6), (6, 10)]
        """
        size = max(stop - start, 0)
        count = max(min(-(-size // max(self.ideal_bytes, 1)), self.most), 1)
        bounds = [start + size * number // count for number in range(count + 1)]
        return list(pairwise(bounds))

    def upload_bytes(self, size: int) -> int:
        """How long the parts of an upload are, within what stores allow."""
        return max(self.ideal_bytes, _LEAST_UPLOADED, -(-size // _MOST_UPLOADED))


_MOST_READ = 256
"""A stored configuration does not make a reader cut a chunk into thousands of requests."""
_LEAST_UPLOADED = 5 * 2**20
_MOST_UPLOADED = 10_000
