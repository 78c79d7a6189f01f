"""Object ids: random bytes with a type for each kind, and their spelling in Crockford base32 (spec, *Object IDs*).

Ids have twelve random bytes. With 2**40 objects of one kind, the probability of a collision is below 2**-16. Node ids
have eight bytes, because they must be unique only within one hierarchy. Each kind of id has its own type, so you
cannot pass a manifest id for a snapshot id. In columns, an id is a row of bytes: ``uint8`` with shape ``(n, SIZE)``.
"""

from __future__ import annotations

import os
from functools import total_ordering
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.errors import ErrorKind, InvalidInputError

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {c: v for v, c in enumerate(_ALPHABET)} | {c.lower(): v for v, c in enumerate(_ALPHABET)}


def encode_base32(raw: bytes) -> str:
    """Encode in Crockford base32: most significant bits first, zero bits as padding, no ``=``."""
    n_bits = len(raw) * 8
    n_chars = -(-n_bits // 5)
    value = int.from_bytes(raw) << (n_chars * 5 - n_bits)
    return "".join([_ALPHABET[(value >> shift) & 31] for shift in range((n_chars - 1) * 5, -1, -5)])


def decode_base32(text: str, size: int) -> bytes:
    """Decode exactly ``size`` bytes, the inverse of :func:`encode_base32`. Raises ValueError."""
    n_chars = -(-size * 8 // 5)
    if len(text) != n_chars:
        raise ValueError(f"expected {n_chars} characters, got {len(text)}")
    value = 0
    for char in text:
        digit = _VALUES.get(char)
        if digit is None:
            raise ValueError(f"{char!r} is not a digit of Crockford base32")
        value = value << 5 | digit
    padding = n_chars * 5 - size * 8
    if value & ((1 << padding) - 1):
        raise ValueError("the padding bits are not zero")
    return (value >> padding).to_bytes(size)


@total_ordering
class ObjectId:
    """Base class of ids: immutable bytes, ordered bytewise, printed in base32."""

    __slots__ = ("raw",)
    SIZE: ClassVar[int] = 12
    WHAT: ClassVar[str] = "object id"

    raw: bytes

    def __init__(self, raw: bytes) -> None:
        if len(raw) != self.SIZE:
            raise InvalidInputError(
                f"a {type(self).__name__} must have {self.SIZE} bytes, not {len(raw)}", ErrorKind.INVALID_SNAPSHOT_ID
            )
        object.__setattr__(self, "raw", bytes(raw))

    @classmethod
    def random(cls) -> Self:
        """Make a new id from the random source of the operating system."""
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse the base32 spelling. Raises InvalidInputError (``invalid-snapshot-id``)."""
        try:
            return cls(decode_base32(text, cls.SIZE))
        except (ValueError, TypeError) as error:
            n_chars = -(-cls.SIZE * 8 // 5)
            raise InvalidInputError(
                f"invalid {cls.WHAT}: {text!r} ({error}). Ids have {n_chars} characters of Crockford base32, "
                f"e.g. 1CECHNKREP0F1RSTCMT0",
                ErrorKind.INVALID_SNAPSHOT_ID,
            ) from None

    @classmethod
    def from_row(cls, row: NDArray[np.uint8]) -> Self:
        """Return the id in one row of an id column."""
        return cls(row.tobytes())

    def to_row(self) -> NDArray[np.uint8]:
        """Return a ``uint8`` array of shape ``(SIZE,)``."""
        return np.frombuffer(self.raw, np.uint8)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __str__(self) -> str:
        return encode_base32(self.raw)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({encode_base32(self.raw)!r})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.raw == other.raw

    def __lt__(self, other: Self) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.raw < other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (self.raw,)


class SnapshotId(ObjectId):
    """Identifies a snapshot and its transaction log."""

    __slots__ = ()
    WHAT: ClassVar[str] = "snapshot id"


class ManifestId(ObjectId):
    """Identifies a manifest file."""

    __slots__ = ()


class ChunkId(ObjectId):
    """Identifies a native chunk object."""

    __slots__ = ()


class NodeId(ObjectId):
    """Identifies a group or array for its whole life, across moves."""

    __slots__ = ()
    SIZE: ClassVar[int] = 8


INITIAL_SNAPSHOT_ID = SnapshotId.from_str("1CECHNKREP0F1RSTCMT0")
"""The id of the first snapshot of every repository (spec, *Initial snapshot*)."""


def base32_of_rows(rows: NDArray[np.uint8]) -> list[str]:
    """Encode each row of an id column, ``uint8`` of shape ``(n, size)``, as :func:`encode_base32` does."""
    n_rows, size = rows.shape
    n_chars, n_groups = -(-size * 8 // 5), -(-size // 5)
    # Five bytes make eight digits. They are shifted out of the upper end of eight bytes.
    padded = np.zeros((n_rows, n_groups * 5), np.uint8)
    padded[:, :size] = rows
    words = np.zeros((n_rows, n_groups, 8), np.uint8)
    words[:, :, 3:] = padded.reshape(n_rows, n_groups, 5)
    digits = words.view(">u8") >> np.arange(35, -1, -5, dtype=np.uint64) & np.uint64(31)
    letters = np.frombuffer(_ALPHABET.encode(), np.uint8)[
        digits.reshape(n_rows, 8 * n_groups)[:, :n_chars].astype(np.intp)
    ]
    text = letters.tobytes().decode()
    return [text[start : start + n_chars] for start in range(0, len(text), n_chars)]
