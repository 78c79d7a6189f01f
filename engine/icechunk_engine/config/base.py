"""Base of all configuration classes: checked fields, the stored form, merging, printing.

A configuration class is a slotted dataclass whose fields are made with :func:`setting`. None means "not set here": the
value comes from another configuration (:meth:`Settings.merge`), or it is the field's ``effective`` default.

Invariant: a field always has a checked value, because every assignment is checked, not only the constructor.

The stored form (spec, *Configuration*) is a JSON object with all fields. Fields that are not set are null.
"""

from __future__ import annotations

import dataclasses
import html
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, Self, SupportsIndex, overload

from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.errors.redaction import redacted
from icechunk_engine.types import Json, JsonObject


class Kind[T](ABC):
    """How the values of a field are checked, stored and merged.

    Errors contain the rule: TypeError for a wrong type, OverflowError for a number out of range, and ValueError for
    everything else.
    """

    __slots__ = ()

    @abstractmethod
    def check(self, value: object) -> T:
        """Return the value in canonical form. Raises if it is invalid."""

    @abstractmethod
    def to_plain(self, value: T) -> Json:
        """Return the stored form of a checked value."""

    def from_plain(self, plain: Json) -> object:
        """Invert :meth:`to_plain`. The caller checks the result."""
        return plain

    def merge(self, old: T, new: T) -> T:
        """Combine two values that are both set."""
        return new


@dataclass(frozen=True, slots=True)
class Integer(Kind[int]):
    """Integers from ``lowest`` to ``highest``."""

    lowest: int
    highest: int

    def check(self, value: object) -> int:
        rule = f"must be an integer from {self.lowest} to {self.highest}"
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError(rule)
        try:
            number = operator.index(value)
        except TypeError:  # an array of numpy
            raise TypeError(rule) from None
        if not self.lowest <= number <= self.highest:
            raise OverflowError(rule)
        return number

    def to_plain(self, value: int) -> int:
        return value


U8 = Integer(0, 2**8 - 1)
U16 = Integer(0, 2**16 - 1)
U32 = Integer(0, 2**32 - 1)
U64 = Integer(0, 2**64 - 1)
I32 = Integer(-(2**31), 2**31 - 1)


@dataclass(frozen=True, slots=True)
class Flag(Kind[bool]):
    """True or False."""

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise TypeError("must be True or False")
        return value

    def to_plain(self, value: bool) -> bool:
        return value


@dataclass(frozen=True, slots=True)
class Text(Kind[str]):
    """A string."""

    def check(self, value: object) -> str:
        if not isinstance(value, str):
            raise TypeError("must be a string")
        return value

    def to_plain(self, value: str) -> str:
        return value


@dataclass(frozen=True, slots=True)
class Choice[E: Enum](Kind[E]):
    """A member of an enumeration, stored under the name given here."""

    enum: type[E]
    names: Mapping[E, str]

    def check(self, value: object) -> E:
        if not isinstance(value, self.enum):
            raise TypeError(f"must be one of {', '.join(map(repr, self.enum))}")
        return value

    def to_plain(self, value: E) -> str:
        return self.names[value]

    def from_plain(self, plain: Json) -> E:
        for member, name in self.names.items():
            if name == plain:
                return member
        raise ValueError(f"must be one of {', '.join(self.names.values())}")


@dataclass(frozen=True, slots=True)
class Part[S: Settings](Kind[S]):
    """Another configuration class. Two values are merged field by field, unless ``whole`` is True."""

    settings_type: type[S]
    whole: bool = False

    def check(self, value: object) -> S:
        if not isinstance(value, self.settings_type):
            raise TypeError(f"must be a {self.settings_type.__name__}")
        return value

    def to_plain(self, value: S) -> JsonObject:
        return value.to_plain()

    def from_plain(self, plain: Json) -> S:
        return self.settings_type.from_plain(plain)

    def merge(self, old: S, new: S) -> S:
        return new if self.whole else old.merge(new)


@overload
def setting[T](kind: Kind[T], *, effective: T | None = None, kw_only: bool = False) -> T | None: ...
@overload
def setting[T](kind: Kind[T], *, default: T) -> T: ...
def setting[T](
    kind: Kind[T], *, default: T | None = None, effective: T | None = None, kw_only: bool = False
) -> T | None:
    """Make a dataclass field of a configuration class.

    Parameters
    ----------
    kind
        Rules for the values.
    default
        Default of the constructor. None means "not set".
    effective
        The value if no configuration sets the field.
    """
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"kind": kind, "effective": effective})


def required_setting[T](kind: Kind[T]) -> T:
    """Make a dataclass field that has no default."""
    value: T = dataclasses.field(metadata={"kind": kind, "effective": None})
    return value


class _Row(NamedTuple):
    depth: int
    name: str
    text: str
    is_default: bool


class OutOfRangeError(InvalidInputError, OverflowError):
    """A number is out of range for its field. This is also an OverflowError, which official raises here."""


class Settings:
    """Base of the configuration classes."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        field = _fields(type(self)).get(name)
        if field is not None and (value is not None or field.default is not None):
            try:
                value = field.metadata["kind"].check(value)
            except (TypeError, ValueError, OverflowError) as error:
                message = f"{type(self).__name__}.{name} {error}, not {describe(value)}"
                if isinstance(error, TypeError):
                    raise TypeError(redacted(message)) from None
                refusal = OutOfRangeError if isinstance(error, OverflowError) else InvalidInputError
                raise refusal(message, ErrorKind.INVALID_CONFIG) from None
        object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[object, ...]:
        values = {}
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            if value != field.default:
                values[name] = value
        return _unpickle, ((type(self), values) if values else (type(self),))

    def to_plain(self) -> JsonObject:
        """Return the stored form: an object with all fields, None for those not set."""
        plain: JsonObject = {}
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            plain[name] = None if value is None else field.metadata["kind"].to_plain(value)
        return plain

    @classmethod
    def from_plain(cls, plain: object) -> Self:
        """Invert :meth:`to_plain`. Missing and null fields are not set, and unknown fields are ignored.

        Raises
        ------
        FormatError
            ``config-deserialization``.
        """
        if not isinstance(plain, Mapping):
            raise _unreadable(f"{cls.__name__} must be a map, not {plain!r}")
        values = {}
        for name, field in _fields(cls).items():
            entry = plain.get(name)
            if entry is None:
                if field.default is dataclasses.MISSING:
                    raise _unreadable(f"{cls.__name__} needs {name!r}")
                continue
            try:
                values[name] = field.metadata["kind"].from_plain(entry)
            except (TypeError, ValueError, OverflowError) as error:
                raise _unreadable(f"{cls.__name__}.{name} {error}, not {entry!r}") from None
        try:
            return cls(**values)
        except (TypeError, InvalidInputError) as error:
            raise _unreadable(str(error)) from None

    def merge(self, other: Self) -> Self:
        """Return a configuration with the fields of both. Fields that ``other`` sets take precedence."""
        values = {}
        for name, field in _fields(type(self)).items():
            old, new = getattr(self, name), getattr(other, name)
            merged = old if new is None else new
            if old is not None and new is not None:
                merged = field.metadata["kind"].merge(old, new)
            values[name] = merged
        return type(self)(**values)

    def __repr__(self) -> str:
        parts = []
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            if field.default is dataclasses.MISSING or value != field.default:
                parts.append(f"{name}={value!r}")
        return redacted(f"{type(self).__name__}({', '.join(parts)})")

    def __str__(self) -> str:
        lines = [f"<{type(self).__name__}>"]
        lines += [
            f"{'    ' * row.depth}{row.name}: {row.text}{' (default)' if row.is_default else ''}".rstrip()
            for row in self._rows(0)
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left;padding-left:{row.depth * 1.5 + 0.5}em">{html.escape(row.name)}</td>'
            f'<td style="text-align:left">{html.escape(row.text)}{" <em>(default)</em>" * row.is_default}</td></tr>'
            for row in self._rows(0)
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"

    def _rows(self, depth: int, defaults: Settings | None = None) -> Iterator[_Row]:
        for name, field in _fields(type(self)).items():
            kind, value = field.metadata["kind"], getattr(self, name)
            default = field.metadata["effective"] if defaults is None else getattr(defaults, name)
            if isinstance(kind, Part):
                yield _Row(depth, name, "", False)
                part: Settings = kind.settings_type() if value is None else value
                yield from part._rows(depth + 1, default)
            elif value is None:
                yield _Row(depth, name, str(default), default is not None)
            else:
                yield _Row(depth, name, redacted(repr(value)), False)


_FIELDS: dict[type[Settings], dict[str, dataclasses.Field[object]]] = {}


def _fields(cls: type[Settings]) -> dict[str, dataclasses.Field[object]]:
    fields = _FIELDS.get(cls)
    if fields is None:
        fields = _FIELDS[cls] = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return fields


def _unpickle(cls: type[Settings], values: Mapping[str, object] = MappingProxyType({})) -> Settings:
    """Return settings with these values and defaults for the rest. The values were checked before."""
    settings = object.__new__(cls)
    for name, field in _fields(cls).items():
        object.__setattr__(settings, name, values.get(name, field.default))
    return settings


def effective[T](settings: Settings | None, cls: type[Settings], name: str, expected: type[T]) -> T:
    """Return the value of a field, or its effective default if nothing sets it."""
    value = None if settings is None else getattr(settings, name)
    found: object = _fields(cls)[name].metadata["effective"] if value is None else value
    assert isinstance(found, expected)
    return found


def _unreadable(message: str) -> FormatError:
    return FormatError(
        f"the stored configuration cannot be read: {message}. Save a valid configuration with a library that can "
        f"open the repository, or restore an earlier 'repo' object",
        ErrorKind.CONFIG_DESERIALIZATION,
    )
