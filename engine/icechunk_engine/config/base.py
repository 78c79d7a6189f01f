"""What all configuration classes share: checked fields, the persisted form, merging, printing.

A configuration class is a plain slotted dataclass whose fields are made with :func:`setting`. None means "not set
here": the effective value then comes from another configuration (:meth:`Settings.merge`) or is the default that the
field names (``effective``). Fields are checked at every assignment.

The persisted form (spec, *Configuration*) is what JSON can hold: a map with every field, null for those not set.
"""

from __future__ import annotations

import dataclasses
import html
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Self

from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.errors.redaction import redacted


class Kind:
    """How the values of a field are checked, persisted and printed.

    Checks raise with the rule: TypeError for a value of another type, OverflowError for a number out of range,
    ValueError for everything else.
    """

    __slots__ = ()

    def check(self, value: Any) -> Any:
        """The value in canonical form."""
        return value

    def to_plain(self, value: Any) -> Any:
        """Persisted form of a checked value."""
        return value

    def from_plain(self, plain: Any) -> Any:
        """Inverse of :meth:`to_plain`; the result is checked afterwards."""
        return plain

    def merge(self, old: Any, new: Any) -> Any:
        """Combine two values that are both set."""
        return new


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """Integers from ``lowest`` to ``highest``."""

    lowest: int
    highest: int

    def check(self, value: Any) -> int:
        rule = f"must be an integer from {self.lowest} to {self.highest}"
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(rule) from None
        if isinstance(value, bool):
            raise TypeError(rule)
        if not self.lowest <= number <= self.highest:
            raise OverflowError(rule)
        return number


U8 = Integer(0, 2**8 - 1)
U16 = Integer(0, 2**16 - 1)
U32 = Integer(0, 2**32 - 1)
U64 = Integer(0, 2**64 - 1)
I32 = Integer(-(2**31), 2**31 - 1)


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """True or False."""

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError("must be True or False")
        return value


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """A string."""

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError("must be a string")
        return value


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """A member of an enumeration; persisted under the name given here."""

    enum: type[Enum]
    names: Mapping[Any, str]

    def check(self, value: Any) -> Enum:
        if not isinstance(value, self.enum):
            raise TypeError(f"must be one of {', '.join(map(repr, self.enum))}")
        return value

    def to_plain(self, value: Any) -> str:
        return self.names[value]

    def from_plain(self, plain: Any) -> Any:
        for member, name in self.names.items():
            if name == plain:
                return member
        raise ValueError(f"must be one of {', '.join(self.names.values())}")


@dataclass(frozen=True, slots=True)
class Part(Kind):
    """Another configuration class. Two set values are merged field by field unless ``whole``."""

    type: type[Settings]
    whole: bool = False

    def check(self, value: Any) -> Any:
        if not isinstance(value, self.type):
            raise TypeError(f"must be a {self.type.__name__}")
        return value

    def to_plain(self, value: Any) -> Any:
        return value.to_plain()

    def from_plain(self, plain: Any) -> Any:
        return self.type.from_plain(plain)

    def merge(self, old: Any, new: Any) -> Any:
        return new if self.whole else old.merge(new)


def setting(kind: Kind, *, default: Any = None, effective: Any = None, kw_only: bool = False) -> Any:
    """A dataclass field of a configuration class.

    Parameters
    ----------
    kind
        Rules for the values.
    default
        Of the constructor; None for "not set". ``dataclasses.MISSING`` for a field that must be given.
    effective
        What holds when no configuration sets the field.
    """
    return dataclasses.field(default=default, kw_only=kw_only, metadata={"kind": kind, "effective": effective})


class _Row(NamedTuple):
    depth: int
    name: str
    text: str
    is_default: bool


class OutOfRangeError(InvalidInputError, OverflowError):
    """A number that its field cannot hold; an OverflowError, too, as in official's package."""


class Settings:
    """Base of the configuration classes."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
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

    def to_plain(self) -> Any:
        """Persisted form: a map with every field, None for those not set."""
        plain = {}
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            plain[name] = None if value is None else field.metadata["kind"].to_plain(value)
        return plain

    @classmethod
    def from_plain(cls, plain: Any) -> Self:
        """Inverse of :meth:`to_plain`. Missing and null entries are not set; unknown ones are ignored.

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
        """A configuration in which what ``other`` sets goes before what this one sets."""
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
                part: Settings = kind.type() if value is None else value
                yield from part._rows(depth + 1, default)
            elif value is None:
                yield _Row(depth, name, str(default), default is not None)
            else:
                yield _Row(depth, name, redacted(repr(value)), False)


_FIELDS: dict[type[Settings], dict[str, dataclasses.Field[Any]]] = {}


def _fields(cls: type[Settings]) -> dict[str, dataclasses.Field[Any]]:
    fields = _FIELDS.get(cls)
    if fields is None:
        fields = _FIELDS[cls] = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return fields


def effective(settings: Settings | None, cls: type[Settings], name: str) -> Any:
    """Value of a field, or its default when nothing sets it."""
    value = None if settings is None else getattr(settings, name)
    return _fields(cls)[name].metadata["effective"] if value is None else value


def _unreadable(message: str) -> FormatError:
    return FormatError(
        f"the stored configuration cannot be read: {message}. Save a valid configuration with a library that can "
        f"open the repository, or restore an earlier 'repo' object",
        ErrorKind.CONFIG_DESERIALIZATION,
    )
