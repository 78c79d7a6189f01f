"""Decompress bytes that nobody trusts.

The danger: 4 bytes of zstd can stand for 128 KiB, and the header of a frame can announce any size. A file of some KiB
could so exhaust the memory of every reader.

Invariant: *memory grows with the bytes that really come out, and stops at the caller's limit.*

- An announced size above the limit is refused before anything is decompressed.
- An announced size within the limit is allocated at once only if it is small, or in proportion to the compressed
  bytes. Otherwise it is only a claim, and memory is allocated as bytes come out.
- Input is fed in slices so small that one slice cannot expand to more than 16 MiB, and the limit is checked after
  each. With larger slices, the check would come too late.

So do not decompress stored bytes with the one-call functions of zlib and zstandard, which have no such limit. (For the
many tiny frames of compressed locations, :mod:`icechunk_engine.format.locations` checks the limit itself.)
"""

from __future__ import annotations

import zlib
from collections.abc import Buffer

import zstandard

_TRUSTED_RATIO = 64
"""A zstd frame that announces up to this many times its own length is decompressed at once."""

_TRUSTED_SIZE = 2**20
"""A zstd frame that announces up to this many bytes is decompressed at once, too."""

_ZSTD_SLICE = 2**9
"""Input bytes fed at once. A block of 4 bytes can give 128 KiB, so one slice gives at most 16 MiB."""

_GZIP_SLICE = 2**14
"""Input bytes fed at once. Deflate expands at most 1 032 times, so one slice gives at most 16 MiB."""

_GZIP_FORMAT = 31
"""Value of zlib's ``wbits`` for a gzip header and trailer."""

_EXPANSION = 256
"""A file may hold this many times its own length. The most regular manifests reach 61."""

_always_allowed = 2**24
"""A file may hold at least this many bytes, whatever its own length."""


def set_decompression_limit(nbytes: int) -> None:
    """Allow files of a repository to decompress to at least this many bytes.

    A small file can be made to decompress to gigabytes. So a file may hold 16 MiB, or 256 times its own length if that
    is more. If you trust a repository whose files hold more, call this before you open it. The limit applies to the
    whole process; call this in each worker, too.

    Parameters
    ----------
    nbytes
        The number of bytes that a file may always hold, whatever its own length.

    Raises
    ------
    ValueError
        The number is negative.
    """
    global _always_allowed
    if nbytes < 0:
        raise ValueError(f"nbytes is {nbytes}; give the number of bytes that a file may hold, for example 2**32")
    _always_allowed = nbytes


def decompressed_limit(compressed_size: int) -> int:
    """Return how many bytes a file of this length may hold: see :func:`set_decompression_limit`."""
    return max(_always_allowed, _EXPANSION * compressed_size)


class DamagedError(ValueError):
    """The compressed bytes are damaged, truncated, or of another format; the text says which."""


class TooLargeError(ValueError):
    """The compressed bytes hold, or announce, more than the caller allows.

    Attributes
    ----------
    limit
        Number of bytes that were allowed.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"it holds more than {limit} bytes")
        self.limit = limit


def decompress_zstd(data: Buffer, limit: int) -> bytes | bytearray:
    """Decompress one or several zstd frames in a row.

    Parameters
    ----------
    data
        Any contiguous buffer.
    limit
        Maximum number of decompressed bytes.

    Raises
    ------
    DamagedError
        The bytes are not whole, intact zstd frames.
    TooLargeError
        The frames hold or announce more than ``limit`` bytes.
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
                pass  # There may be several frames. If not, decompressing in slices says what is damaged.
        return _decompress_zstd_in_slices(frames, limit)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DamagedError(str(error) or "out of memory") from None


def _decompress_zstd_in_slices(frames: memoryview, limit: int) -> bytearray:
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
        at -= len(stream.unused_data)  # the next frame begins here
        if announced >= 0 and len(found) - start != announced:
            raise DamagedError(f"it holds {len(found) - start} bytes, not the {announced} it claims")
    return found


def decompress_gzip(data: Buffer, limit: int) -> bytearray:
    """Decompress one or several gzip members in a row. Zero bytes after the last one are ignored.

    Parameters
    ----------
    data
        Any contiguous buffer.
    limit
        Maximum number of decompressed bytes.

    Raises
    ------
    DamagedError
        The bytes are not whole, intact gzip members.
    TooLargeError
        The members hold more than ``limit`` bytes.
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
