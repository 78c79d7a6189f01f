"""Decompression of stored bytes that nobody trusts: what a file announces costs nothing before it is there.

A few bytes can stand for gigabytes (a zstd block of 4 bytes for 128 KiB), and a frame can announce any size.
So callers say how much a file may hold, memory grows with what comes out, and the first byte too many ends the work.
"""

from __future__ import annotations

import zlib
from typing import Any

import zstandard

_TRUSTED_RATIO = 64
"""A zstd frame that announces up to this times its own length is decompressed at once: it costs in proportion."""

_TRUSTED_SIZE = 2**20
"""So is one that announces no more than this."""

_ZSTD_SLICE = 2**9
"""Input bytes fed at once. A block of 4 bytes gives up to 128 KiB, so one slice gives at most 16 MiB."""

_GZIP_SLICE = 2**14
"""Deflate expands at most 1 032 times, so one slice gives at most 16 MiB."""

_GZIP_FORMAT = 31
"""The ``wbits`` of zlib that stand for a gzip header and trailer."""


_EXPANSION = 256
"""Larger files may hold this many times their own length. The most regular manifests reach 61."""

_always_allowed = 2**24


def set_decompression_limit(nbytes: int) -> None:
    """Allow files of a repository to decompress to at least this many bytes.

    A small file can be made to decompress to gigabytes. A file therefore may hold 16 MiB, or 256 times its own length
    if that is more. Call this before you open a repository that you trust and whose files hold more. It is valid for
    the whole process; call it in each worker too.

    Parameters
    ----------
    nbytes
        The number of bytes that a file may always hold, whatever its own length.

    Raises
    ------
    ValueError
        For a negative number.
    """
    global _always_allowed
    if nbytes < 0:
        raise ValueError(f"nbytes is {nbytes}; give the number of bytes that a file may hold, for example 2**32")
    _always_allowed = nbytes


def fair_limit(compressed_size: int) -> int:
    """How much a file of this length may hold; see :func:`set_decompression_limit`."""
    return max(_always_allowed, _EXPANSION * compressed_size)


class DamagedError(ValueError):
    """The compressed bytes are damaged, cut off, or of another format; the text says which."""


class TooLargeError(ValueError):
    """The compressed bytes hold, or announce, more than the caller allows.

    Attributes
    ----------
    limit
        How many bytes were allowed.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"it holds more than {limit} bytes")
        self.limit = limit


def unzstd(data: Any, limit: int) -> bytes | bytearray:
    """What zstd frames hold, one or several in a row.

    Parameters
    ----------
    data
        Any contiguous buffer.
    limit
        The most bytes that may come out.

    Raises
    ------
    DamagedError
        For bytes that are not whole, intact zstd frames.
    TooLargeError
        When they hold or announce more than ``limit`` bytes.
    """
    frames = memoryview(data).cast("B")
    try:
        announced = zstandard.frame_content_size(frames)
        if announced > limit:
            raise TooLargeError(limit)
        if 0 < announced <= max(_TRUSTED_SIZE, _TRUSTED_RATIO * len(frames)):
            try:
                return zstandard.ZstdDecompressor().decompress(frames, allow_extra_data=False)
            except zstandard.ZstdError:
                pass  # Several frames, perhaps. If not, reading in steps names the damage.
        return _unzstd_in_steps(frames, limit)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedError(str(error) or "out of memory") from None


def _unzstd_in_steps(frames: memoryview, limit: int) -> bytearray:
    decompressor = zstandard.ZstdDecompressor()
    found = bytearray()
    at = 0
    while at < len(frames):
        start = len(found)
        announced = zstandard.frame_content_size(frames[at:])
        if announced > limit - start:
            raise TooLargeError(limit)
        stream = decompressor.decompressobj()
        while not stream.eof:
            piece = frames[at : at + _ZSTD_SLICE]
            if not piece:
                raise DamagedError("it is truncated")
            found += stream.decompress(piece)
            at += len(piece)
            if len(found) > limit:
                raise TooLargeError(limit)
        at -= len(stream.unused_data)
        if announced >= 0 and len(found) - start != announced:
            raise DamagedError(f"it holds {len(found) - start} bytes, not the {announced} it claims")
    return found


def gunzip(data: Any, limit: int) -> bytearray:
    """What gzip members hold, one or several in a row; zero bytes after the last one are ignored.

    Parameters
    ----------
    data
        Any contiguous buffer.
    limit
        The most bytes that may come out.

    Raises
    ------
    DamagedError
        For bytes that are not whole, intact gzip members.
    TooLargeError
        When they hold more than ``limit`` bytes.
    """
    members = memoryview(data).cast("B")
    found = bytearray()
    at = 0
    try:
        while at == 0 or (at < len(members) and any(members[at:])):
            stream = zlib.decompressobj(_GZIP_FORMAT)
            while not stream.eof:
                piece = members[at : at + _GZIP_SLICE]
                if not piece:
                    raise DamagedError("it is truncated")
                found += stream.decompress(piece)
                at += len(piece)
                if len(found) > limit:
                    raise TooLargeError(limit)
            at -= len(stream.unused_data)
    except (zlib.error, MemoryError) as error:
        raise DamagedError(str(error) or "out of memory") from None
    return found
