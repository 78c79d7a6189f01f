"""The envelope of every file: 39 bytes of header, then one zstd frame (spec, *File format*).

======== ====================================================================
bytes    content
======== ====================================================================
0 .. 12  magic ``ICE🧊CHUNK``
12 .. 36 name of the writer, UTF-8, padded with spaces
36       spec version: 1 or 2
37       :class:`FileType`
38       compression: 0 none (no longer written), 1 zstd
39 ..    body
======== ====================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Buffer, Iterable
from dataclasses import dataclass
from enum import IntEnum

import zstandard

from icechunk_engine._version import __version__
from icechunk_engine.columns.tables import U8, as_u8
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.format.decompression import (
    DamagedError,
    TooLargeError,
    decompress_zstd,
    decompressed_limit,
)

MAGIC = "ICE🧊CHUNK".encode()
HEADER_SIZE = 39
SPEC_VERSIONS = (1, 2)
COMPRESSION_NONE = 0
COMPRESSION_ZSTD = 1

MAX_BODY_SIZE = 2**31 - 1
"""The largest flatbuffer: its signed offsets have 32 bits."""

_MIN_WINDOW_LOG = 23
"""How far back the compressor looks in large files: 8 MiB, which every decoder must accept (RFC 8878 §3.1.1.1.2).
Level 3 alone would look back 2 MiB, and miss repetitions from block to block."""

_SMALL_BODY = 2**20
"""Up to this size, a body is compressed in one call, which is faster than feeding it piece by piece."""

_WRITER_NAME_SIZE = 24
_HEADER = struct.Struct(f"<12s{_WRITER_NAME_SIZE}sBBB")


def writer_name(version: str) -> str:
    """Return the name that files carry for a version of this package: ``xi-0.1.0``.

    The field holds 24 bytes. The local part of a version (after ``+``) is left out, and what is still too long is cut.
    """
    public, _, _ = version.partition("+")
    return f"xi-{public}"[:_WRITER_NAME_SIZE]


class FileType(IntEnum):
    """Byte 37 of the header. ATTRIBUTES and CHUNK are reserved, never written."""

    SNAPSHOT = 1
    MANIFEST = 2
    ATTRIBUTES = 3
    TRANSACTION_LOG = 4
    CHUNK = 5
    REPO_INFO = 6


WRITER_NAME = writer_name(__version__)
"""The name in the header of every file that this library writes."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A file without its envelope.

    Attributes
    ----------
    body
        The flatbuffer, ``uint8``, read-only.
    spec_version
        1 or 2.
    written_by
        Name of the writer, without the padding.
    """

    body: U8
    spec_version: int
    written_by: str


def pack(file_type: FileType, spec_version: int, body: Buffer, level: int = 3) -> bytes:
    """Make a file from its flatbuffer, which may be any contiguous buffer."""
    size = memoryview(body).nbytes
    return pack_blocks(file_type, spec_version, [body], size, level)


def pack_blocks(file_type: FileType, spec_version: int, blocks: Iterable[Buffer], size: int, level: int = 3) -> bytes:
    """Make a file from the pieces of its flatbuffer. They are compressed one by one and may be made on demand.

    Parameters
    ----------
    blocks
        Contiguous buffers of ``size`` bytes in all.
    """
    header = _HEADER.pack(
        MAGIC, WRITER_NAME.encode().ljust(_WRITER_NAME_SIZE), spec_version, file_type, COMPRESSION_ZSTD
    )
    if size <= _SMALL_BODY:
        return header + zstandard.ZstdCompressor(level=level).compress(b"".join(blocks))
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=size)
    if size > 2**parameters.window_log:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, source_size=size, window_log=max(parameters.window_log, _MIN_WINDOW_LOG)
        )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    stream = compressor.compressobj(size=size)
    out = [header]
    out.extend(stream.compress(memoryview(block)) for block in blocks)
    out.append(stream.flush())
    return b"".join(out)


def unpack(data: Buffer, expected: FileType, name: str = "") -> Unpacked:
    """Check a file's header and decompress its body.

    Parameters
    ----------
    data
        The whole object.
    expected
        The kind of file that this must be.
    name
        Object name for messages.

    Raises
    ------
    FormatError
        ``invalid-file-format``: the header is damaged or belongs to another kind of file.
        ``unsupported-spec-version``: a newer version of the format.
        ``deserialization``: the body is damaged.
    """
    raw = memoryview(data).cast("B")
    name = name or f"this {expected.name.lower().replace('_', ' ')} file"
    if len(raw) < HEADER_SIZE:
        raise FormatError(
            f"invalid icechunk header size: {name} is only {len(raw)} bytes long, less than the {HEADER_SIZE} bytes "
            f"of a header. It is truncated, or not an Icechunk file. Restore the object from a backup, or check that "
            f"the storage points to a repository",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    magic, writer, spec_version, file_type, compression = _HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise FormatError(
            f"invalid magic numbers in file: {name} does not begin with Icechunk's. It is damaged, or not an Icechunk "
            f"file. Restore the object from a backup, or check that the storage points to a repository",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    if spec_version not in SPEC_VERSIONS:
        raise FormatError(
            f"{name} has Icechunk spec version {spec_version}; this library knows {SPEC_VERSIONS}. Upgrade it to "
            f"read this repository",
            ErrorKind.UNSUPPORTED_SPEC_VERSION,
        )
    if file_type != expected:
        raise FormatError(
            f"{name} has file type {file_type} instead of {expected.value} ({expected.name.lower()}): another object "
            f"was stored under this name. Restore it from a backup",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    frame = raw[HEADER_SIZE:]
    if compression == COMPRESSION_ZSTD:
        body = _decompress(frame, name)
    elif compression == COMPRESSION_NONE:
        body = as_u8(frame)
    else:
        raise FormatError(
            f"{name} uses compression {compression}, which this library does not know. Upgrade it to read this file",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    written_by = writer.rstrip(b" \0").decode("utf-8", "replace")
    return Unpacked(body, spec_version, written_by)


def _damaged(name: str, reason: str) -> FormatError:
    return FormatError(
        f"the compressed body of {name} is damaged ({reason}). Fetch the object again. If the error stays, restore "
        f"the object from a backup, or reset the branch to a snapshot that does not need it",
        ErrorKind.DESERIALIZATION,
    )


def _decompress(frame: memoryview, name: str) -> U8:
    limit = decompressed_limit(len(frame))
    try:
        body = decompress_zstd(frame, min(limit, MAX_BODY_SIZE))
    except TooLargeError as error:
        if error.limit == MAX_BODY_SIZE:
            raise _damaged(name, f"{error}, the maximum for a file of this format") from None
        raise FormatError(
            f"{name} has {len(frame)} compressed bytes that stand for more than {limit}: it is damaged, or made to "
            f"exhaust your memory. If you trust its author, call icechunk_engine.set_decompression_limit(nbytes) "
            f"with a higher limit and try again",
            ErrorKind.DESERIALIZATION,
        ) from None
    except DamagedError as error:
        raise _damaged(name, str(error)) from None
    if not body:
        raise _damaged(name, "it is empty")
    return as_u8(memoryview(body).toreadonly())
