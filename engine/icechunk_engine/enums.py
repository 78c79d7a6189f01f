"""Bases of the public enumerations, which behave as those of the official extension module do."""

from __future__ import annotations

from enum import Enum
from numbers import Integral


class NumberedEnum(Enum):
    """Each member has a number, ``int(member)``, and prints as ``Type.member``."""

    _value_: int

    def __int__(self) -> int:
        return self._value_

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __str__(self) -> str:
        return repr(self)


class IntegerEnum(NumberedEnum):
    """Each member also equals its number, so that ``column == ChunkType.inline`` works on a column of numbers.

    Members are not integers all the same: they do not add up, and all of them are true.
    """

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Enum):  # an IntEnum is an integer, but another subject
            return self is other
        # numpy asks element by element once an array has been told "not implemented".
        return bool(self._value_ == other) if isinstance(other, Integral) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value_)
