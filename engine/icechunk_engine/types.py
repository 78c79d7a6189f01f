"""Small public types that several modules share: spec version, repository status, feature flags, attribution.

Enumerations behave like those of the official package.
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

    Yet members are not integers: you cannot add them, and all of them are true.
    """

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Enum):  # an IntEnum is an integer, but means something else
            return self is other
        # After "not implemented", numpy compares element by element.
        return bool(self._value_ == other) if isinstance(other, Integral) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value_)


type Json = bool | int | float | str | list[Json] | dict[str, Json] | None
"""A parsed JSON document, or a part of one."""

type JsonObject = dict[str, Json]
"""A parsed JSON document whose outermost value is an object."""

CommitMethod = Literal["new_commit", "amend"]
"""How an operation commits: as a new snapshot, or in place of the last one of the branch."""


class SpecVersion(IntEnum):
    """Version of the format. 2 includes 2.1, which only adds optional fields."""

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
        """Return the version of new repositories."""
        return SpecVersion.v2


class RepoAvailability(IntegerEnum):
    """What you can do with a repository."""

    online = 0
    read_only = 1
    offline = 2
    """Neither read nor write. Official does not know this value and treats it as ``online``."""


@dataclass(frozen=True, slots=True, init=False)
class RepoStatus:
    """The availability of a repository, since when, and why.

    Attributes
    ----------
    set_at
        With a time zone. Default: now.
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
    """A switch that allows or forbids an operation of the repository.

    Attributes
    ----------
    setting
        The setting of the repository: True, False, or None if it has none.
    """

    id: int
    name: str
    default_enabled: bool
    setting: bool | None = None

    @property
    def enabled(self) -> bool:
        """True if the operation is allowed."""
        return self.default_enabled if self.setting is None else self.setting

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


FEATURE_FLAGS = (
    FeatureFlag(3, "move_node", True),
    FeatureFlag(4, "create_tag", True),
    FeatureFlag(5, "delete_tag", True),
)
"""The flags that this library knows, without a setting (spec, *Feature flags*)."""


def feature_flags(enabled_ids: Iterable[int], disabled_ids: Iterable[int]) -> list[FeatureFlag]:
    """Return the known flags with the settings of a repository. Unknown ids are ignored."""
    settings = dict.fromkeys(enabled_ids, True) | dict.fromkeys(disabled_ids, False)
    return [FeatureFlag(flag.id, flag.name, flag.default_enabled, settings.get(flag.id)) for flag in FEATURE_FLAGS]


def feature_flag_id(name: str) -> int:
    """Return the id of a flag. Raises InvalidInputError (``invalid-feature-flag``)."""
    for flag in FEATURE_FLAGS:
        if flag.name == name:
            return flag.id
    known = ", ".join(flag.name for flag in FEATURE_FLAGS)
    raise InvalidInputError(
        f"invalid feature flag name: {name!r}; the flags are {known}", ErrorKind.INVALID_FEATURE_FLAG
    )


_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_CLIENT = re.compile(f"{_TOKEN}(/{_TOKEN})?")
_COMMENT = re.compile(r"[ !#-'*-:<>-\[\]-~]*")  # what the comment of a User-Agent header may contain
_ATTRIBUTION_MAX_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Who makes the requests, for the logs of the object store.

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
