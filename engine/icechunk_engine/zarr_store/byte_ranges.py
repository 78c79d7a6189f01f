"""Zarr's byte requests: their positions in a value, and which of them share a read. Pure."""

from __future__ import annotations

from typing import NamedTuple

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from icechunk_engine.errors import ErrorKind, InvalidInputError


class Piece(NamedTuple):
    """A requested range of a value, and its position among the requests."""

    start: int
    stop: int
    position: int


def bounds_of(byte_range: ByteRequest | None, length: int) -> tuple[int, int]:
    """Return start and stop of a request in a value of ``length`` bytes, cut at the end of the value."""
    match byte_range:
        case None:
            return 0, length
        case RangeByteRequest(start, stop) if start >= 0:
            stop = min(stop, length)
            return (start, stop) if start < stop else (0, 0)
        case OffsetByteRequest(offset) if offset >= 0:
            return min(offset, length), length
        case SuffixByteRequest(suffix) if suffix >= 0:
            return max(0, length - suffix), length
    raise InvalidInputError(
        f"Unexpected byte_range, got {byte_range}. Use a RangeByteRequest, OffsetByteRequest or SuffixByteRequest of "
        f"zarr.abc.store, without negative numbers",
        ErrorKind.INVALID_BYTE_RANGE,
    )


def take_range(data: bytes, byte_range: ByteRequest | None) -> bytes:
    """Return the requested part of a value."""
    if byte_range is None:
        return data
    start, stop = bounds_of(byte_range, len(data))
    return data[start:stop]


def coalesce(pieces: list[Piece], max_gap_bytes: int, max_coalesced_bytes: int) -> list[list[Piece]]:
    """Return groups of pieces that share a read, ordered by start. A single piece may exceed the limit."""
    groups: list[list[Piece]] = []
    group_start = group_stop = 0
    for piece in sorted(pieces):
        stop = max(group_stop, piece.stop)
        if groups and piece.start - group_stop <= max_gap_bytes and stop - group_start <= max_coalesced_bytes:
            groups[-1].append(piece)
            group_stop = stop
        else:
            groups.append([piece])
            group_start, group_stop = piece.start, piece.stop
    return groups


def split_read(data: bytes, group: list[Piece], prototype: BufferPrototype) -> list[tuple[int, Buffer | None]]:
    """Return the part of each piece, from what was read for its group."""
    first = group[0].start
    view = memoryview(data)
    make = prototype.buffer.from_bytes
    return [(piece.position, make(view[piece.start - first : piece.stop - first])) for piece in group]
