"""Typed, collision-resistant object ids and their Crockford base32 spelling (spec, *Object IDs*).

Twelve random bytes make a collision among 2**40 objects of one kind less likely than 2**-16; the eight bytes of a node
id serve within one hierarchy. Each kind of id has a type of its own, so that a manifest id never passes for a
snapshot id. In columns an id is a row of bytes: ``uint8`` with shape ``(n, SIZE)``.
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
    """Crockford base32, most significant bits first, the last group padded with zero bits, no ``=``."""
    n_bits = len(raw) * 8
    n_chars = -(-n_bits // 5)
    value = int.from_bytes(raw) << (n_chars * 5 - n_bits)
    return "".join([_ALPHABET[(value >> shift) & 31] for shift in range((n_chars - 1) * 5, -1, -5)])


def decode_base32(text: str, size: int) -> bytes:
    """Inverse of :func:`encode_base32` for exactly ``size`` bytes; raises ``ValueError`` on anything else."""
    n_chars = -(-size * 8 // 5)
    if len(text) != n_chars:
        raise ValueError(f"expected {n_chars} characters, got {len(text)}")
    value = 0
    for char in text:
        digit = _VALUES.get(char)
        if digit is None:
            raise ValueError(f"{char!r} is not a Crockford base32 digit")
        value = value << 5 | digit
    padding = n_chars * 5 - size * 8
    if value & ((1 << padding) - 1):
        raise ValueError("the padding bits are not zero")
    return (value >> padding).to_bytes(size)


@total_ordering
class ObjectId:
    """Base of the id types: immutable bytes, ordered bytewise, printed in base32."""

    __slots__ = ("raw",)
    SIZE: ClassVar[int] = 12
    WHAT: ClassVar[str] = "object id"

    raw: bytes

    def __init__(self, raw: bytes) -> None:
        if len(raw) != self.SIZE:
            raise InvalidInputError(
                f"a {type(self).__name__} has {self.SIZE} bytes, not {len(raw)}", ErrorKind.INVALID_SNAPSHOT_ID
            )
        object.__setattr__(self, "raw", bytes(raw))

    @classmethod
    def random(cls) -> Self:
        """A fresh id from the operating system's random source."""
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Parse the base32 spelling; raises InvalidInputError (``invalid-snapshot-id``)."""
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
        """The id in one row of an id column."""
        return cls(row.tobytes())

    def to_row(self) -> NDArray[np.uint8]:
        """``uint8`` array of shape ``(SIZE,)``."""
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
"""The first snapshot of every repository has this same id (spec, *Initial snapshot*)."""


def random_id_rows(n: int, size: int = 12) -> NDArray[np.uint8]:
    """``n`` fresh ids as a ``uint8`` column of shape ``(n, size)``."""
    return np.frombuffer(os.urandom(n * size), np.uint8).reshape(n, size)


def base32_of_rows(rows: NDArray[np.uint8]) -> list[str]:
    """Crockford base32 of each row of an id column ``uint8 (n, size)``, as :func:`encode_base32` spells it."""
    n_rows, size = rows.shape
    n_chars, n_groups = -(-size * 8 // 5), -(-size // 5)
    # Five bytes are eight digits; they are shifted out of the upper end of eight bytes.
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
