"""Small public types that several parts share: spec version, repository status, feature flags, attribution.

Enumerations behave as those of the official extension module do.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, IntEnum
from numbers import Integral
from typing import Literal

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe


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


type Json = bool | int | float | str | list[Json] | dict[str, Json] | None
"""A parsed JSON document, or a part of one."""

type JsonObject = dict[str, Json]
"""A parsed JSON document whose outermost value is an object."""

CommitMethod = Literal["new_commit", "amend"]
"""How an operation that must commit does so: a new snapshot, or in place of the branch's last one."""


class SpecVersion(IntEnum):
    """Version of the format. 2 also stands for 2.1, which only adds optional fields."""

    v1 = 1
    v2 = 2

    def __repr__(self) -> str:
        return f"SpecVersion.{self.name}"

    def __str__(self) -> str:
        return f"{self!r} (current)" if self is SpecVersion.current() else repr(self)

    def __format__(self, format_spec: str) -> str:
        return format(int(self), format_spec) if format_spec else str(self)

    @staticmethod
    def current() -> SpecVersion:
        """The version that new repositories get."""
        return SpecVersion.v2


class RepoAvailability(IntegerEnum):
    """What a repository may be used for."""

    online = 0
    read_only = 1
    offline = 2
    """Neither reading nor writing. Official does not know it and takes it for ``online``."""


@dataclass(frozen=True, slots=True, init=False)
class RepoStatus:
    """Availability of a repository, since when and why.

    Attributes
    ----------
    set_at
        Time zone aware; now when not given.
    """

    availability: RepoAvailability
    set_at: datetime
    limited_availability_reason: str | None

    def __init__(
        self,
        availability: RepoAvailability,
        set_at: datetime | None = None,
        limited_availability_reason: str | None = None,
    ) -> None:
        if not isinstance(availability, RepoAvailability):
            raise TypeError(f"RepoStatus.availability must be a RepoAvailability, not {describe(availability)}")
        if set_at is not None and getattr(set_at, "tzinfo", None) is None:
            raise TypeError(
                f"RepoStatus.set_at must be a datetime with a time zone, e.g. datetime.now(timezone.utc), not "
                f"{set_at!r}"
            )
        object.__setattr__(self, "availability", availability)
        object.__setattr__(self, "set_at", datetime.now(UTC) if set_at is None else set_at)
        object.__setattr__(self, "limited_availability_reason", limited_availability_reason)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


@dataclass(frozen=True, slots=True)
class FeatureFlag:
    """A switch for an operation of the repository.

    Attributes
    ----------
    setting
        What the repository says: on, off, or None for nothing.
    """

    id: int
    name: str
    default_enabled: bool
    setting: bool | None = None

    @property
    def enabled(self) -> bool:
        """True when the operation is allowed."""
        return self.default_enabled if self.setting is None else self.setting

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


FEATURE_FLAGS = (
    FeatureFlag(3, "move_node", True),
    FeatureFlag(4, "create_tag", True),
    FeatureFlag(5, "delete_tag", True),
)
"""The flags that this library knows, without settings (spec, *Feature flags*)."""


def feature_flags(enabled_ids: Iterable[int], disabled_ids: Iterable[int]) -> list[FeatureFlag]:
    """The known flags with the settings of a repository; unknown ids are left out."""
    settings = dict.fromkeys(enabled_ids, True) | dict.fromkeys(disabled_ids, False)
    return [FeatureFlag(flag.id, flag.name, flag.default_enabled, settings.get(flag.id)) for flag in FEATURE_FLAGS]


def feature_flag_id(name: str) -> int:
    """Id of a flag; raises InvalidInputError (``invalid-feature-flag``)."""
    for flag in FEATURE_FLAGS:
        if flag.name == name:
            return flag.id
    known = ", ".join(flag.name for flag in FEATURE_FLAGS)
    raise InvalidInputError(
        f"invalid feature flag name: {name!r}; the flags are {known}", ErrorKind.INVALID_FEATURE_FLAG
    )


_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_CLIENT = re.compile(f"{_TOKEN}(/{_TOKEN})?")
_COMMENT = re.compile(r"[ !#-'*-:<>-\[\]-~]*")  # what may stand in the comment of a User-Agent header
_ATTRIBUTION_MAX_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who makes the requests, for the logs of the storage.

    Attributes
    ----------
    client
        ``name`` or ``name/version`` of the program.
    workload, principal
        Free text in printable ASCII without ``"``, ``(``, ``)``, ``;``, ``=`` and backslashes.
    """

    client: str | None = None
    workload: str | None = None
    principal: str | None = None

    def __post_init__(self) -> None:
        for name, pattern, rule in (
            ("client", _CLIENT, "`name` or `name/version` in token characters (letters, digits and -._~)"),
            ("workload", _COMMENT, 'printable ASCII without any of "();=\\'),
            ("principal", _COMMENT, 'printable ASCII without any of "();=\\'),
        ):
            value = getattr(self, name)
            if value is not None and (len(value) > _ATTRIBUTION_MAX_LENGTH or not pattern.fullmatch(value)):
                raise InvalidInputError(
                    f"attribution `{name}` must be {rule}, of at most {_ATTRIBUTION_MAX_LENGTH} characters, "
                    f"not {value!r}",
                    ErrorKind.INVALID_CONFIG,
                )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"
