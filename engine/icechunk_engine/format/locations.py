"""Compress and decompress locations of virtual chunks: one zstd frame a location, with a dictionary.

See *Manifest* in the spec. Our own files share locations instead (:mod:`icechunk_engine.flatbuf.blocks`), which is
smaller and faster. This module reads the files of other libraries, and writes such files if the user configured it.

All frames of a manifest are decompressed in one call, because a call for each would dominate the time. One call gives
one run of bytes, so the boundaries of locations come from the sizes that the frames announce. The announced sizes are
summed and limited first. Afterwards the length of the result must be that sum; otherwise a frame lied, and locations
would be cut in the wrong places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, BytesTable, starts_of
from icechunk_engine.format.decompression import decompressed_limit

MAX_COMPRESSIBLE_LOCATION = 1024
"""Size of the official reader's buffer. If one location is longer, the official library cannot read the manifest."""

_MAX_LOCATION = 2**20
_MIN_SAMPLE_SIZE = 8
_FRAME_MAGIC = 0xFD2FB528


@dataclass(frozen=True, slots=True)
class LocationCompression:
    """When and how manifests compress locations. The defaults are those of the official library.

    Attributes
    ----------
    min_num_chunks
        Smallest number of virtual references for which a manifest compresses locations.
    max_training_samples
        Maximum number of locations to train the dictionary with.
    dictionary_max_size_bytes
        Maximum size of the dictionary.
    level
        zstd level of the frames.
    """

    min_num_chunks: int = 1000
    max_training_samples: int = 100
    dictionary_max_size_bytes: int = 2048
    level: int = 3


def train_dictionary(samples: list[bytes], max_size: int) -> bytes | None:
    """Train a zstd dictionary for locations like ``samples``; None if it would gain nothing."""
    if not samples or sum(len(sample) < _MIN_SAMPLE_SIZE for sample in samples) * 2 >= len(samples):
        return None
    try:
        return zstandard.train_dictionary(max_size, list(samples)).as_bytes()
    except zstandard.ZstdError:  # too few or too uniform samples
        return None


def compress(locations: BytesTable, dictionary: bytes, level: int) -> BytesTable:
    """Compress each location to a frame."""
    compressor = zstandard.ZstdCompressor(level=level, dict_data=zstandard.ZstdCompressionDict(dictionary))
    return BytesTable.of(map(compressor.compress, locations.raws()))


def decompress(frames: BytesTable, dictionary: bytes) -> BytesTable:
    """Decompress frames to locations.

    Raises
    ------
    ValueError
        A frame is damaged, empty, or larger than a location can be.
    """
    if len(frames) == 0:
        return frames
    sizes = content_sizes(frames.data, frames.starts[:-1], frames.lengths)
    if bool((sizes == 0).any()) or int(sizes.max()) > _MAX_LOCATION:
        raise ValueError("a compressed location is empty or too long")
    limit = decompressed_limit(int(frames.lengths.sum()))
    try:
        decompressor = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionary))
        if bool((sizes < 0).any()):
            return BytesTable.of(_one_by_one(frames, decompressor, limit))
        total = int(sizes.sum())
        if total > limit:
            raise ValueError(f"the compressed locations claim to hold {total} bytes, more than {limit}")
        joined = np.ascontiguousarray(frames.data[frames.starts[0] : frames.starts[-1]])
        text = np.empty(total + 1, np.uint8)  # one byte more, to notice frames that hold more than they announce
        stream = decompressor.stream_reader(memoryview(joined), read_across_frames=True)
        n_read = stream.readinto(memoryview(text))
    except zstandard.ZstdError as error:
        raise ValueError(f"a compressed location is damaged ({error})") from None
    if n_read != total:
        raise ValueError("compressed locations do not have the length that they declare")
    return BytesTable(text[:total], starts_of(sizes))


def _one_by_one(frames: BytesTable, decompressor: zstandard.ZstdDecompressor, limit: int) -> Iterator[bytes]:
    total = 0
    for frame in frames.raws():
        location = decompressor.decompress(frame, max_output_size=_MAX_LOCATION)
        total += len(location)
        if total > limit:
            raise ValueError(f"the compressed locations hold more than {limit} bytes")
        yield location


def content_sizes(data: U8, starts: I64, lengths: I64) -> I64:
    """Return the sizes that zstd frames declare (RFC 8878 §3.1.1.1), -1 for frames that declare none.

    Raises
    ------
    ValueError
        A range does not begin with a frame header.
    """
    padded = np.concatenate([data, np.zeros(18, np.uint8)])

    def number(at: I64, n_bytes: int) -> I64:
        view: NDArray[np.uint64] = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
        return (view[at] & np.uint64(2 ** (8 * n_bytes) - 1)).astype(np.int64)

    if bool((lengths < 6).any()) or bool((number(starts, 4) != _FRAME_MAGIC).any()):
        raise ValueError("a compressed location is not a zstd frame")
    descriptor = padded[starts + 4]
    single_segment = (descriptor >> 5) & 1
    dictionary_id_size = np.array([0, 1, 2, 4])[descriptor & 3]
    at = starts + 5 + (1 - single_segment) + dictionary_id_size
    flag = descriptor >> 6
    one_byte = np.where(single_segment == 1, number(at, 1), -1)
    sizes = np.select([flag == 1, flag == 2, flag == 3], [number(at, 2) + 256, number(at, 4), number(at, 8)], one_byte)
    # An 8-byte size may be too large for int64.
    return np.where((flag == 3) & (sizes < 0), np.iinfo(np.int64).max, sizes)
