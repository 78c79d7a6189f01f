"""Damaged files: decoding any bytes must return an object or raise FormatError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from icechunk_engine.errors import FormatError
from icechunk_engine.format import header
from icechunk_engine.format.header import FileType


def body_of(file: bytes, file_type: FileType) -> bytes:
    """Return the decompressed flatbuffer of a file."""
    return header.unpack(file, file_type).body.tobytes()


def damaged_bodies(body: bytes, seed: int, n_flips: int = 400, most_cuts: int = 300) -> Iterator[bytes]:
    """Yield the body truncated at evenly spaced lengths (all, if it is short), and with one to four bytes changed."""
    yield from (body[:length] for length in range(0, len(body), -(-len(body) // most_cuts)))
    random = np.random.default_rng(seed)
    for _ in range(n_flips):
        changed = bytearray(body)
        for position in random.integers(0, len(body), random.integers(1, 5)):
            # Mostly values that are likely to mislead: zero, ones, small numbers.
            changed[position] = random.choice([0, 1, 2, 4, 0x7F, 0x80, 0xFF, int(random.integers(256))])
        yield bytes(changed)


def assert_survives(
    decode: Callable[[Any], Any], use: Callable[[Any], None], body: bytes, file_type: FileType, seed: int
) -> None:
    """Assert that each damaged body can be decoded and used, or raises FormatError, and that both happen."""
    n_refused = n_read = 0
    for damaged in damaged_bodies(body, seed):
        try:
            use(decode(header.pack(file_type, 2, damaged, level=1)))
            n_read += 1
        except FormatError:
            n_refused += 1
    assert n_refused > 100
    assert n_read > 10
