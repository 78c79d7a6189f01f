"""MessagePack, in which spec version 1 stores metadata values.

The reader accepts all of MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md) except extension types.
The writer writes the same bytes as the official library: the shortest integers, 64-bit floats, maps sorted by key.

Lengths in a file are claims. A list of a million items may announce them in 5 bytes, so the reader counts values as it
reads them (``left``), and never allocates for an announced length.
"""

from __future__ import annotations

import struct
from typing import cast

import numpy as np

from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.flatbuf.flexbuffers import MAX_VALUES, FlexValue

MAX_DEPTH = 128
"""Deepest nesting of arrays and maps that is written or read."""


def dumps(value: object) -> bytes:
    """Encode a JSON-like value (None, bool, int, float, str, list or tuple, dict with str keys).

    Raises
    ------
    InvalidInputError
        ``bad-metadata``: another type, an integer beyond 64 bits, or nesting deeper than :data:`MAX_DEPTH`.
    """
    out = bytearray()
    try:
        _write(out, value, 0)
    except (UnicodeEncodeError, struct.error, TypeError) as error:
        raise InvalidInputError(
            f"a metadata value cannot be stored ({error}). Use JSON values: None, bool, int (64 bits), float, str, "
            f"list, dict with str keys",
            ErrorKind.BAD_METADATA,
        ) from None
    return bytes(out)


def loads(data: bytes, left: list[int] | None = None) -> FlexValue:
    """Decode one value. The type *bin* becomes ``bytes``.

    Parameters
    ----------
    left
        As in :func:`icechunk_engine.flatbuf.flexbuffers.loads`.

    Raises
    ------
    FormatError
        ``deserialization``: the bytes are not exactly one value.
    """
    reader = _Reader(bytes(data), [MAX_VALUES] if left is None else left)
    try:
        value = reader.value(0)
        if reader.position != len(data):
            raise ValueError("bytes follow the value")
    except (ValueError, TypeError) as error:  # UnicodeDecodeError is a ValueError; TypeError: unhashable map keys
        raise FormatError(
            f"a MessagePack value is damaged: {error}. Restore the file that holds it from a copy",
            ErrorKind.DESERIALIZATION,
        ) from None
    return value


def _write(out: bytearray, value: object, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TypeError(f"it is nested deeper than {MAX_DEPTH}")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        out.append(0xC0)
    elif isinstance(value, bool):
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, int):
        _write_int(out, value)
    elif isinstance(value, float):
        out += struct.pack(">Bd", 0xCB, value)
    elif isinstance(value, str):
        raw = value.encode()
        _write_head(out, len(raw), 0xA0, 32, (0xD9, 0xDA, 0xDB))
        out += raw
    elif isinstance(value, dict):
        _write_head(out, len(value), 0x80, 16, (None, 0xDE, 0xDF))
        for key in sorted(value):
            if not isinstance(key, str):
                raise TypeError(f"a key is of type {type(key).__name__}")
            _write(out, key, depth)
            _write(out, value[key], depth + 1)
    elif isinstance(value, list | tuple | bytes):
        _write_head(out, len(value), 0x90, 16, (None, 0xDC, 0xDD))
        for item in value:
            _write(out, item, depth + 1)
    else:
        raise TypeError(f"it is of type {type(value).__name__}")


def _write_int(out: bytearray, value: int) -> None:
    if -32 <= value < 128:
        out.append(value & 0xFF)
        return
    codes, fits = ("BHIQ", 1) if value >= 0 else ("bhiq", 2)
    for step in range(4):
        bits = 8 << step
        if -(1 << bits) <= value * fits < 1 << bits or step == 3:
            out += struct.pack(">B" + codes[step], (0xCC if value >= 0 else 0xD0) + step, value)
            return


def _write_head(out: bytearray, n: int, short: int, n_short: int, long: tuple[int | None, int, int]) -> None:
    """Write a type and a length: in one byte if the length is below ``n_short``, else with the shortest code."""
    if n < n_short:
        out.append(short | n)
    elif n < 1 << 8 and long[0] is not None:
        out += struct.pack(">BB", long[0], n)
    elif n < 1 << 16:
        out += struct.pack(">BH", long[1], n)
    else:
        out += struct.pack(">BI", long[2], n)


_SCALARS = dict(zip(range(0xCA, 0xD4), ("f", "d", "B", "H", "I", "Q", "b", "h", "i", "q"), strict=True))
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_BIN, _STR, _ARRAY, _MAP = range(4)
_LONG = {
    **{0xC4 + i: (_BIN, 1 << i) for i in range(3)},
    **{0xD9 + i: (_STR, 1 << i) for i in range(3)},
    **{0xDC + i: (_ARRAY, 2 << i) for i in range(2)},
    **{0xDE + i: (_MAP, 2 << i) for i in range(2)},
}


class _Reader:
    def __init__(self, data: bytes, left: list[int]) -> None:
        self.data = data
        self.left = left
        self.position = 0

    def value(self, depth: int) -> FlexValue:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        self.left[0] -= 1
        if self.left[0] < 0:
            raise ValueError(f"it stands for more than {MAX_VALUES} values")
        head = self.take(1)[0]
        if head < 0x80:
            return head
        if head >= 0xE0:
            return head - 256
        if head < 0xC0:
            kind = _MAP if head < 0x90 else _ARRAY if head < 0xA0 else _STR
            return self.sized(kind, head & (31 if kind == _STR else 15), depth)
        if head in _CONSTANTS:
            return _CONSTANTS[head]
        if head in _SCALARS:
            code = ">" + _SCALARS[head]
            number: int | float = struct.unpack(code, self.take(struct.calcsize(code)))[0]
            return number
        if head in _LONG:
            kind, width = _LONG[head]
            return self.sized(kind, int.from_bytes(self.take(width)), depth)
        raise ValueError(f"type byte {head:#x} is not used")

    def sized(self, kind: int, n: int, depth: int) -> FlexValue:
        if kind == _STR:
            return self.take(n).decode()
        if kind == _BIN:
            return self.take(n)
        if kind == _ARRAY:
            return [self.value(depth + 1) for _ in range(n)]
        # Keys of metadata are strings. Others are read as they are; unhashable ones raise TypeError, see loads.
        return {cast(str, self.value(depth + 1)): self.value(depth + 1) for _ in range(n)}

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.position:
            raise ValueError("it is truncated")
        self.position += n
        return self.data[self.position - n : self.position]
