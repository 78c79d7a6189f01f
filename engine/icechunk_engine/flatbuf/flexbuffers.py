"""FlexBuffers: values without a schema inside flatbuffers (https://flatbuffers.dev/internals/, *FlexBuffers*).

The reader accepts every encoding that the specification allows. The writer chooses the one that the official library
chooses, byte for byte:

- the smallest widths that hold the values;
- floats in 32 bits if that loses nothing;
- each key once a buffer, and maps sorted by key;
- typed vectors for numbers and booleans, without a length if there are two to four numbers.

Children come before their parents, so offsets point backwards from where they are stored. The last bytes are the
root's value, its packed type and its width. A packed type is ``type << 2 | log2(width)``.

Offsets may also lead to a place that another value uses. So a small hostile buffer can describe a huge value, and even
one that contains itself. Three limits stop the reader early: :data:`MAX_DEPTH`, :data:`MAX_VALUES`, and a budget that
grows with the size of the buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError

MAX_DEPTH = 128
"""Deepest nesting of vectors and maps that is written or read."""

MAX_VALUES = 2**20
"""Maximum number of values that are read, nested ones included. An empty map takes 1 byte here and 64 in memory."""

_BUDGET_BASE, _BUDGET_FACTOR = 1 << 16, 16
"""From a buffer of ``n`` bytes, at most ``_BUDGET_BASE + _BUDGET_FACTOR * n`` elements and bytes of text are read."""

type FlexValue = bool | int | float | str | bytes | list[FlexValue] | dict[str, FlexValue] | None
"""What a FlexBuffer can hold: a JSON value, or bytes."""


class FlexType(IntEnum):
    """Type codes. The codes of typed vectors that have no name here follow from :func:`_element_type`."""

    NULL = 0
    INT = 1
    UINT = 2
    FLOAT = 3
    KEY = 4
    STRING = 5
    INDIRECT_INT = 6
    INDIRECT_UINT = 7
    INDIRECT_FLOAT = 8
    MAP = 9
    VECTOR = 10
    VECTOR_INT = 11
    VECTOR_UINT = 12
    VECTOR_FLOAT = 13
    VECTOR_KEY = 14
    VECTOR_STRING = 15
    VECTOR_INT2 = 16
    VECTOR_FLOAT4 = 24
    BLOB = 25
    BOOL = 26
    VECTOR_BOOL = 36


def dumps(value: object) -> bytes:
    """Encode a JSON-like value (None, bool, int, float, str, list or tuple, dict with str keys).

    Numpy scalars are stored as the numbers that they hold, and ``bytes`` as a list of integers, because JSON has no
    blobs.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``: another type, an integer beyond 64 bits, a key with NUL, a lone surrogate, or nesting deeper
        than :data:`MAX_DEPTH`.
    """
    return _Writer().finish(value)


def loads(data: bytes, left: list[int] | None = None) -> FlexValue:
    """Decode one value. Blobs become ``bytes``.

    Parameters
    ----------
    left
        A list of one number: how many values may still be read, nested ones included. Each value decreases it, so
        several calls can share one limit.

    Raises
    ------
    FormatError
        ``deserialization``: the bytes are not a FlexBuffer.
    """
    return _Reader(bytes(data), [MAX_VALUES] if left is None else left).root()


class NotStorableError(InvalidInputError, TypeError):
    """The type of a value cannot be stored. Handlers of TypeError catch this, too."""


def _not_storable(what: str, kind: type[InvalidInputError] = InvalidInputError) -> InvalidInputError:
    return kind(
        f"{what} cannot be stored. Use JSON values: None, bool, int (64 bits), float, str, list, dict with str keys",
        ErrorKind.BAD_METADATA,
    )


# ---------------------------------------------------------------------------------------------------------- writing


class _Value(NamedTuple):
    """An encoded value, as its parent stores it."""

    type: int
    scalar: int | float
    """The value itself if ``is_inline``, else the position where it was written."""
    width: int
    """Bytes of a scalar, or the width of the value that was written."""
    is_inline: bool

    def width_at(self, end: int, slot: int) -> int:
        """Return the bytes needed to store this in slot ``slot`` of a vector that starts, once aligned, after ``end``.

        The offset to a value depends on the alignment, and that on the width: so the widths are tried in order.
        """
        if self.is_inline:
            return self.width
        for width in (1, 2, 4):
            if _aligned(end, width) + slot * width - int(self.scalar) < 1 << 8 * width:
                return width
        return 8

    def packed_type(self, parent_width: int) -> int:
        return self.type << 2 | (parent_width if self.is_inline else self.width).bit_length() - 1


_SCALAR_TYPES = {FlexType.INT: "bhiq", FlexType.UINT: "BHIQ", FlexType.FLOAT: " efd"}
_TYPED_VECTORS: dict[int, FlexType] = {
    FlexType.INT: FlexType.VECTOR_INT,
    FlexType.UINT: FlexType.VECTOR_UINT,
    FlexType.FLOAT: FlexType.VECTOR_FLOAT,
    FlexType.BOOL: FlexType.VECTOR_BOOL,
}


def _aligned(position: int, width: int) -> int:
    return position + -position % width


def _uint_width(value: int) -> int:
    return 1 if value < 1 << 8 else 2 if value < 1 << 16 else 4 if value < 1 << 32 else 8


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.keys: dict[bytes, _Value] = {}

    def finish(self, value: object) -> bytes:
        root = self.value(value, 0)
        width = root.width_at(len(self.out), 0)
        self.align(width)
        self.put(root, width)
        self.out += bytes([root.packed_type(width), width])
        return bytes(self.out)

    def value(self, value: object, depth: int) -> _Value:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None:
            return _Value(FlexType.NULL, 0, 1, True)
        if isinstance(value, bool):
            return _Value(FlexType.BOOL, int(value), 1, True)
        if isinstance(value, int):
            return _integer(value)
        if isinstance(value, float):
            return _Value(FlexType.FLOAT, value, 4 if _fits_float32(value) else 8, True)
        if isinstance(value, str):
            return self.string(_utf8(value))
        if depth >= MAX_DEPTH:
            raise _not_storable(f"a value nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            return self.map(value, depth + 1)
        if isinstance(value, list | tuple | bytes):
            return self.vector([self.value(item, depth + 1) for item in value])
        raise _not_storable(f"a value of type {type(value).__name__}", NotStorableError)

    def string(self, data: bytes) -> _Value:
        width = _uint_width(len(data))
        self.align(width)
        self.out += len(data).to_bytes(width, "little")
        start = len(self.out)
        self.out += data + b"\0"
        return _Value(FlexType.STRING, start, width, False)

    def key(self, key: object) -> _Value:
        if not isinstance(key, str):
            raise _not_storable(f"a key of type {type(key).__name__}", NotStorableError)
        data = _utf8(key)
        if b"\0" in data:
            raise _not_storable(f"the key {key!r}, which holds NUL,")
        if data not in self.keys:
            self.keys[data] = _Value(FlexType.KEY, len(self.out), 1, False)
            self.out += data + b"\0"
        return self.keys[data]

    def map(self, items: Mapping[object, object], depth: int) -> _Value:
        pairs = [(self.key(key), self.value(items[key], depth)) for key in sorted(items, key=_key_order)]
        keys = self.vector([key for key, _ in pairs], keys_only=True)
        return self.vector([value for _, value in pairs], keys=keys)

    def vector(self, values: list[_Value], keys: _Value | None = None, keys_only: bool = False) -> _Value:
        """Write a vector, the key vector of a map (``keys_only``), or the values of a map whose keys are ``keys``."""
        n = len(values)
        kinds = {value.type for value in values}
        kind = FlexType.MAP if keys is not None else FlexType.VECTOR_KEY if keys_only else FlexType.VECTOR
        if kind is FlexType.VECTOR and len(kinds) == 1:
            kind = _TYPED_VECTORS.get(kinds.pop(), FlexType.VECTOR)
        is_tuple = kind in (FlexType.VECTOR_INT, FlexType.VECTOR_UINT, FlexType.VECTOR_FLOAT) and 2 <= n <= 4
        type_code = kind + 5 + 3 * (n - 2) if is_tuple else int(kind)
        n_before = 0 if is_tuple else 1 if keys is None else 3

        end = len(self.out)
        width = 1 if is_tuple else _uint_width(n)
        if keys is not None:
            width = max(width, keys.width_at(end, 0))
        width = max([width, *[value.width_at(end, n_before + i) for i, value in enumerate(values)]])

        self.align(width)
        if keys is not None:
            self.put(keys, width)
            self.out += keys.width.to_bytes(width, "little")
        if not is_tuple:
            self.out += n.to_bytes(width, "little")
        start = len(self.out)
        for value in values:
            self.put(value, width)
        if kind in (FlexType.VECTOR, FlexType.MAP):
            self.out += bytes([value.packed_type(width) for value in values])
        return _Value(type_code, start, width, False)

    def align(self, width: int) -> None:
        """Pad the output to a multiple of ``width``."""
        self.out += bytes(-len(self.out) % width)

    def put(self, value: _Value, width: int) -> None:
        """Store a value, or the offset to it, in ``width`` bytes."""
        if not value.is_inline:
            self.out += (len(self.out) - int(value.scalar)).to_bytes(width, "little")
        elif value.type == FlexType.FLOAT:
            self.out += struct.pack("<f" if width == 4 else "<d", value.scalar)
        else:
            self.out += int(value.scalar).to_bytes(width, "little", signed=value.type == FlexType.INT)


def _integer(value: int) -> _Value:
    if value >= 0:
        if value >= 1 << 64:
            raise _not_storable(f"the integer {value}")
        return _Value(FlexType.UINT, value, _uint_width(value), True)
    if value < -(1 << 63):
        raise _not_storable(f"the integer {value}")
    return _Value(FlexType.INT, value, _uint_width((~value) << 1), True)


def _fits_float32(value: float) -> bool:
    try:
        return bool(struct.unpack("<f", struct.pack("<f", value))[0] == value)
    except OverflowError:
        return False


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _not_storable(f"the text {text!r}, which is not valid Unicode,") from None


def _key_order(key: object) -> bytes:
    if not isinstance(key, str):
        raise _not_storable(f"a key of type {type(key).__name__}", NotStorableError)
    return _utf8(key)


# ---------------------------------------------------------------------------------------------------------- reading


class _Damaged(Exception):
    """The buffer is not a FlexBuffer; the text says why."""


class _Reader:
    def __init__(self, data: bytes, left: list[int]) -> None:
        self.data = data
        self.left = left
        self.budget = _BUDGET_BASE + _BUDGET_FACTOR * len(data)

    def root(self) -> FlexValue:
        try:
            if len(self.data) < 3:
                raise _Damaged("it is too short")
            width = self.data[-1]
            if width not in (1, 2, 4, 8):
                raise _Damaged("the width of its root is not 1, 2, 4 or 8")
            return self.value(len(self.data) - 2 - width, width, self.data[-2], 0)
        except (_Damaged, UnicodeDecodeError) as error:
            raise FormatError(
                f"a FlexBuffers value is damaged: {error}. Restore the file that holds it from a copy",
                ErrorKind.DESERIALIZATION,
            ) from None

    def value(self, position: int, parent_width: int, packed_type: int, depth: int) -> FlexValue:
        """Read the value stored at ``position`` in ``parent_width`` bytes."""
        kind, width = packed_type >> 2, 1 << (packed_type & 3)
        self.count(1)
        if kind == FlexType.NULL:
            return None
        if kind in _SCALAR_TYPES:
            return self.scalar(position, parent_width, kind)
        if kind == FlexType.BOOL:
            return self.uint(position, parent_width) != 0
        target = self.target(position, parent_width)
        if kind in (FlexType.INDIRECT_INT, FlexType.INDIRECT_UINT, FlexType.INDIRECT_FLOAT):
            return self.scalar(target, width, kind - FlexType.INDIRECT_INT + FlexType.INT)
        if kind == FlexType.KEY:
            return self.key(target)
        if kind in (FlexType.STRING, FlexType.BLOB):
            raw = self.slice(target, self.uint(target - width, width))
            return raw.decode() if kind == FlexType.STRING else raw
        if depth >= MAX_DEPTH:
            raise _Damaged(f"it is nested deeper than {MAX_DEPTH}")
        if kind == FlexType.MAP:
            return self.map(target, width, depth + 1)
        if kind == FlexType.VECTOR:
            return self.vector(target, width, self.uint(target - width, width), depth + 1)
        return self.typed_vector(target, width, kind)

    def map(self, start: int, width: int, depth: int) -> dict[str, FlexValue]:
        n = self.uint(start - width, width)
        keys_start = self.target(start - 3 * width, width)
        keys_width = self.uint(start - 2 * width, width)
        if keys_width not in (1, 2, 4, 8) or self.uint(keys_start - keys_width, keys_width) != n:
            raise _Damaged("a map's keys do not fit its values")
        values = self.vector(start, width, n, depth)
        keys = [self.key(self.target(keys_start + i * keys_width, keys_width)) for i in range(n)]
        return dict(zip(keys, values, strict=True))

    def vector(self, start: int, width: int, n: int, depth: int) -> list[FlexValue]:
        kinds = self.slice(start + n * width, n)
        return [self.value(start + i * width, width, packed, depth) for i, packed in enumerate(kinds)]

    def typed_vector(self, start: int, width: int, kind: int) -> list[FlexValue]:
        if FlexType.VECTOR_INT2 <= kind <= FlexType.VECTOR_FLOAT4:
            n, element = (kind - FlexType.VECTOR_INT2) // 3 + 2, (kind - FlexType.VECTOR_INT2) % 3 + FlexType.INT
        else:
            element = _element_type(kind)
            n = self.uint(start - width, width)
        if element in (FlexType.KEY, FlexType.STRING):  # strings in typed vectors have lengths of one byte
            self.slice(start, n * width)  # checks that all items are there before the loop trusts n
            return [self.value(start + i * width, width, element << 2, MAX_DEPTH) for i in range(n)]
        raw = self.slice(start, n * width)
        self.count(n)
        if element == FlexType.BOOL:
            return [item != 0 for item in np.frombuffer(raw, f"<u{width}").tolist()]
        return list(struct.unpack(f"<{n}{_scalar_code(element, width)}", raw))

    def scalar(self, position: int, width: int, kind: int) -> int | float:
        number: int | float = struct.unpack("<" + _scalar_code(kind, width), self.slice(position, width))[0]
        return number

    def key(self, position: int) -> str:
        end = self.data.find(b"\0", position)
        if end < 0:
            raise _Damaged("a key does not end")
        return self.slice(position, end - position).decode()

    def target(self, position: int, width: int) -> int:
        target = position - self.uint(position, width)
        if target < 0:
            raise _Damaged("an offset leaves the buffer")
        return target

    def uint(self, position: int, width: int) -> int:
        if position < 0 or position + width > len(self.data):
            raise _Damaged("a value lies outside the buffer")
        return int.from_bytes(self.data[position : position + width], "little")

    def slice(self, start: int, length: int) -> bytes:
        if start < 0 or start + length > len(self.data):
            raise _Damaged("a value lies outside the buffer")
        self.spend(length)
        return self.data[start : start + length]

    def count(self, n: int) -> None:
        """Count values that are read."""
        self.left[0] -= n
        if self.left[0] < 0:
            raise _Damaged(f"it stands for more than {MAX_VALUES} values")
        self.spend(n)

    def spend(self, amount: int) -> None:
        """Pay for elements and bytes that are read, shared ones each time."""
        self.budget -= amount
        if self.budget < 0:
            raise _Damaged("it describes far more data than it holds")


def _element_type(kind: int) -> int:
    if FlexType.VECTOR_INT <= kind <= FlexType.VECTOR_STRING:
        return kind - FlexType.VECTOR_INT + FlexType.INT
    if kind == FlexType.VECTOR_BOOL:
        return FlexType.BOOL
    raise _Damaged(f"type {kind} is unknown")


def _scalar_code(kind: int, width: int) -> str:
    code = _SCALAR_TYPES[FlexType(kind)][width.bit_length() - 1]
    if code == " ":
        raise _Damaged("a float has 8 bits")
    return code
