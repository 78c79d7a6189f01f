"""Conditions on arrays and their axes: which manifests to split, and which to preload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import ClassVar, Literal, Self

from icechunk_engine import paths
from icechunk_engine.config import rust_regex
from icechunk_engine.config.base import U32, Kind
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.types import Json

Bound = tuple[Literal["Included", "Excluded"], int] | Literal["Unbounded"]


class _Condition:
    """A tree of operators. It is immutable and hashable, and ``|`` and ``&`` combine it."""

    __slots__ = ("_bounds", "_operator", "_parts", "_regex")

    _operator: str
    _parts: tuple[Self, ...]
    _regex: str
    _bounds: tuple[Bound, Bound]
    _constants: ClassVar[dict[str, bool]] = {}

    def __init__(self) -> None:
        raise TypeError(f"make a {type(self).__name__} with its static methods, e.g. .path_matches('regex')")

    @classmethod
    def _of(
        cls,
        name: str,
        parts: Iterable[Self] = (),
        regex: str = "",
        bounds: tuple[Bound, Bound] = ("Unbounded", "Unbounded"),
    ) -> Self:
        condition = object.__new__(cls)
        object.__setattr__(condition, "_operator", name)
        object.__setattr__(condition, "_parts", tuple(parts))
        object.__setattr__(condition, "_regex", regex)
        object.__setattr__(condition, "_bounds", bounds)
        return condition

    @classmethod
    def _combined(cls, name: str, conditions: Iterable[object]) -> Self:
        found = list(conditions)
        parts = [part for part in found if isinstance(part, cls)]
        if len(parts) < len(found):
            raise TypeError(f"only conditions of type {cls.__name__} can be combined, got {found!r}")
        return cls._of(name, parts)

    @classmethod
    def _matching(cls, name: str, regex: str) -> Self:
        return cls._of(name, regex=_evaluable(regex))

    def __or__(self, other: Self) -> Self:
        return self._combined("or", (self, other)) if isinstance(other, type(self)) else NotImplemented

    def __and__(self, other: Self) -> Self:
        return self._combined("and", (self, other)) if isinstance(other, type(self)) else NotImplemented

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __getattr__(self, name: str) -> list[Self] | str | int | None:
        """Return an argument by official's name: ``regex``, ``from``, ``to``, or ``_0`` for combined conditions."""
        if name == "_0" and self._operator in ("or", "and"):
            return list(self._parts)
        if name == "regex" and self._operator in ("path_matches", "name_matches"):
            return self._regex
        if name in ("from", "to") and self._operator == "num_refs":
            return _python_bounds(*self._bounds)[name == "to"]
        raise AttributeError(f"{type(self).__name__} {self._operator} has no attribute {name!r}")

    def _value(self) -> tuple[str, tuple[Self, ...], str, tuple[Bound, Bound]]:
        return self._operator, self._parts, self._regex, self._bounds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Condition) and type(self) is type(other) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (type(self), *self._value())

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._operator in ("or", "and"):
            return f"{name}.{self._operator}_conditions([{', '.join(map(repr, self._parts))}])"
        if self._operator in ("path_matches", "name_matches"):
            return f"{name}.{self._operator}({self._regex!r})"
        return f"{name}.{'AnyArray' if self._operator == 'any_array' else self._operator}()"

    def _holds(self, path: str, num_refs: int) -> bool:
        match self._operator:
            case "or":
                return any(part._holds(path, num_refs) for part in self._parts)
            case "and":
                return all(part._holds(path, num_refs) for part in self._parts)
            case "path_matches":
                return rust_regex.search(self._regex, path)
            case "name_matches":
                return path != paths.ROOT and rust_regex.search(self._regex, paths.name(path))
            case "num_refs":
                lower, upper = self._bounds
                return _above(lower, num_refs) and _below(upper, num_refs)
            case constant:
                return self._constants[constant]

    def to_plain(self) -> Json:
        """Return the stored form: a string, or a map with one entry."""
        match self._operator:
            case "or" | "and":
                return {self._operator: [part.to_plain() for part in self._parts]}
            case "path_matches" | "name_matches":
                return {self._operator: {"regex": self._regex}}
            case "num_refs":
                return {"num_refs": dict(zip(("from", "to"), map(_bound_to_plain, self._bounds), strict=True))}
            case constant:
                return constant

    @classmethod
    def from_plain(cls, plain: Json) -> Self:
        """Invert :meth:`to_plain`. Raises ValueError."""
        match plain:
            case str() if plain in cls._constants:
                return cls._of(plain)
            case {"or": [*parts], **others} if not others:
                return cls._of("or", map(cls.from_plain, parts))
            case {"and": [*parts], **others} if not others:
                return cls._of("and", map(cls.from_plain, parts))
            case {"path_matches": {"regex": str() as regex}, **others} if not others:
                return cls._of("path_matches", regex=regex)
            case {"name_matches": {"regex": str() as regex}, **others} if not others:
                return cls._of("name_matches", regex=regex)
            case {"num_refs": dict() as bounds, **others} if not others and cls is ManifestPreloadCondition:
                return cls._of("num_refs", bounds=(_parse_bound(bounds.get("from")), _parse_bound(bounds.get("to"))))
        raise ValueError("must be a condition")


def _unpickle(
    cls: type[_Condition], name: str, parts: tuple[_Condition, ...], regex: str, bounds: tuple[Bound, Bound]
) -> _Condition:
    return cls._of(name, parts, regex, bounds)


class ManifestSplitCondition(_Condition):
    """Which arrays a splitting rule applies to.

    Regular expressions have Rust's syntax and match anywhere in the text. An invalid expression matches nothing.
    """

    __slots__ = ()
    _constants: ClassVar[dict[str, bool]] = {"any_array": True}

    @staticmethod
    def or_conditions(conditions: list[ManifestSplitCondition]) -> ManifestSplitCondition:
        """At least one of them holds."""
        return ManifestSplitCondition._combined("or", conditions)

    @staticmethod
    def and_conditions(conditions: list[ManifestSplitCondition]) -> ManifestSplitCondition:
        """All of them hold."""
        return ManifestSplitCondition._combined("and", conditions)

    @staticmethod
    def path_matches(regex: str) -> ManifestSplitCondition:
        """The array's absolute path matches."""
        return ManifestSplitCondition._matching("path_matches", regex)

    @staticmethod
    def name_matches(regex: str) -> ManifestSplitCondition:
        """The last component of the array's path matches; never for an array at the root."""
        return ManifestSplitCondition._matching("name_matches", regex)

    # Official's classes for each kind of condition, set below.
    AnyArray: ClassVar[_SplitVariant]
    And: ClassVar[_SplitVariant]
    Or: ClassVar[_SplitVariant]
    NameMatches: ClassVar[_SplitVariant]
    PathMatches: ClassVar[_SplitVariant]

    @staticmethod
    def any_array() -> ManifestSplitCondition:
        """Every array."""
        return ManifestSplitCondition._of("any_array")

    def matches(self, path: str) -> bool:
        """Return True if the condition holds for the array at ``path``."""
        return self._holds(path, 0)


class ManifestPreloadCondition(_Condition):
    """Which manifests to load before they are needed.

    Regular expressions have Rust's syntax and match anywhere in the text. An invalid expression matches nothing.
    """

    __slots__ = ()
    _constants: ClassVar[dict[str, bool]] = {"true": True, "false": False}

    # Official's classes for each kind of condition, set below. ``True`` and ``False`` are also set.
    And: ClassVar[_PreloadVariant]
    Or: ClassVar[_PreloadVariant]
    NameMatches: ClassVar[_PreloadVariant]
    PathMatches: ClassVar[_PreloadVariant]
    NumRefs: ClassVar[_PreloadVariant]

    @staticmethod
    def or_conditions(conditions: list[ManifestPreloadCondition]) -> ManifestPreloadCondition:
        """At least one of them holds."""
        return ManifestPreloadCondition._combined("or", conditions)

    @staticmethod
    def and_conditions(conditions: list[ManifestPreloadCondition]) -> ManifestPreloadCondition:
        """All of them hold."""
        return ManifestPreloadCondition._combined("and", conditions)

    @staticmethod
    def path_matches(regex: str) -> ManifestPreloadCondition:
        """The array's absolute path matches."""
        return ManifestPreloadCondition._matching("path_matches", regex)

    @staticmethod
    def name_matches(regex: str) -> ManifestPreloadCondition:
        """The last component of the array's path matches; never for an array at the root."""
        return ManifestPreloadCondition._matching("name_matches", regex)

    @staticmethod
    def num_refs(from_refs: int | None, to_refs: int | None) -> ManifestPreloadCondition:
        """The manifest has at least ``from_refs`` and fewer than ``to_refs`` chunk references. None means no bound."""
        lower: Bound = "Unbounded" if from_refs is None else ("Included", U32.check(from_refs))
        upper: Bound = "Unbounded" if to_refs is None else ("Excluded", U32.check(to_refs))
        return ManifestPreloadCondition._of("num_refs", bounds=(lower, upper))

    @staticmethod
    def true() -> ManifestPreloadCondition:
        """Every manifest."""
        return ManifestPreloadCondition._of("true")

    @staticmethod
    def false() -> ManifestPreloadCondition:
        """No manifest."""
        return ManifestPreloadCondition._of("false")

    def matches(self, path: str, num_refs: int) -> bool:
        """Return True if the condition holds for a manifest with ``num_refs`` references of the array at ``path``."""
        return self._holds(path, num_refs)

    def __repr__(self) -> str:
        if self._operator != "num_refs":
            return super().__repr__()
        start, stop = _python_bounds(*self._bounds)
        return f"ManifestPreloadCondition.num_refs({start}, {stop})"


def _python_bounds(lower: Bound, upper: Bound) -> tuple[int | None, int | None]:
    """Return the bounds of a range: the first number in it, and the first number after it."""
    start = None if lower == "Unbounded" else lower[1] + (lower[0] == "Excluded")
    stop = None if upper == "Unbounded" else upper[1] + (upper[0] == "Included")
    return start, stop


class _Variant(type):
    """Metaclass of classes such as ``ManifestSplitCondition.Or``. Calling one makes a condition.

    Official's conditions are instances of these classes. Ours all have one class, which only claims to be these.
    """

    _condition: type[_Condition]
    _operator: str

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls._condition) and instance._operator == cls._operator


class _SplitVariant(_Variant):
    _make: Callable[..., ManifestSplitCondition]

    def __call__(cls, *args: object, **kwargs: object) -> ManifestSplitCondition:
        return cls._make(*args, **kwargs)


class _PreloadVariant(_Variant):
    _make: Callable[..., ManifestPreloadCondition]

    def __call__(cls, *args: object, **kwargs: object) -> ManifestPreloadCondition:
        return cls._make(*args, **kwargs)


def _set_variants(
    condition: type[_Condition], variant: type[_Variant], kinds: dict[str, tuple[str, Callable[..., _Condition]]]
) -> None:
    for name, (operator, make) in kinds.items():
        names = {"regex": ("regex",), "conditions": ("_0",), "from_refs": ("from", "to")}
        first = next(iter(signature(make).parameters), None)
        members = {
            "_condition": condition,
            "_operator": operator,
            "_make": staticmethod(make),
            "__doc__": make.__doc__,
            "__module__": __name__,
            "__qualname__": f"{condition.__name__}.{name}",
            "__signature__": signature(make),
            "__match_args__": names.get(first or "", ()),
        }
        setattr(condition, name, variant(name, (), members))


_set_variants(
    ManifestSplitCondition,
    _SplitVariant,
    {
        "AnyArray": ("any_array", ManifestSplitCondition.any_array),
        "And": ("and", ManifestSplitCondition.and_conditions),
        "Or": ("or", ManifestSplitCondition.or_conditions),
        "NameMatches": ("name_matches", ManifestSplitCondition.name_matches),
        "PathMatches": ("path_matches", ManifestSplitCondition.path_matches),
    },
)
_set_variants(
    ManifestPreloadCondition,
    _PreloadVariant,
    {
        "True": ("true", ManifestPreloadCondition.true),
        "False": ("false", ManifestPreloadCondition.false),
        "And": ("and", ManifestPreloadCondition.and_conditions),
        "Or": ("or", ManifestPreloadCondition.or_conditions),
        "NameMatches": ("name_matches", ManifestPreloadCondition.name_matches),
        "PathMatches": ("path_matches", ManifestPreloadCondition.path_matches),
        "NumRefs": ("num_refs", ManifestPreloadCondition.num_refs),
    },
)


def _evaluable(regex: object) -> str:
    """Refuse a user's regular expression that cannot be evaluated. A stored one is accepted, but matches nothing."""
    if not isinstance(regex, str):
        raise TypeError(f"the regular expression must be a string, not {regex!r}")
    problem = rust_regex.problem(regex)
    if problem is not None:
        raise InvalidInputError(
            f"the regular expression {regex[:200]!r} cannot be evaluated here, so it would match nothing: {problem}. "
            f"Write it differently, for example with a list of characters or with several conditions",
            ErrorKind.INVALID_CONFIG,
        )
    return regex


def _above(bound: Bound, number: int) -> bool:
    return bound == "Unbounded" or number > bound[1] or (bound[0] == "Included" and number == bound[1])


def _below(bound: Bound, number: int) -> bool:
    return bound == "Unbounded" or number < bound[1] or (bound[0] == "Included" and number == bound[1])


def _bound_to_plain(bound: Bound) -> Json:
    return bound if isinstance(bound, str) else {bound[0]: bound[1]}


def _parse_bound(plain: Json) -> Bound:
    match plain:
        case None | "Unbounded":
            return "Unbounded"
        case {"Included": number, **others} if not others:
            return "Included", U32.check(number)
        case {"Excluded": number, **others} if not others:
            return "Excluded", U32.check(number)
    raise ValueError("must have bounds such as 'Unbounded' or {'Included': 10}")


class ManifestSplitDimCondition:
    """Which axes of an array a split size applies to: ``.Axis(0)``, ``.DimensionName(regex)`` or ``.Any()``."""

    __slots__ = ()

    Axis: ClassVar[type[_Axis]]
    DimensionName: ClassVar[type[_DimensionName]]
    Any: ClassVar[type[_AnyAxis]]

    def matches(self, axis: int, name: str | None) -> bool:
        """Return True if the condition holds for the axis."""
        raise NotImplementedError

    def to_plain(self) -> Json:
        """Return the stored form."""
        raise NotImplementedError

    @staticmethod
    def from_plain(plain: Json) -> ManifestSplitDimCondition:
        """Invert :meth:`to_plain`. Raises ValueError."""
        match plain:
            case "Any":
                return _AnyAxis()
            case {"Axis": number, **others} if not others:
                return _Axis(U32.check(number))
            case {"DimensionName": str() as regex, **others} if not others:
                return _DimensionName.of_stored(regex)
        raise ValueError("must hold {'Axis': n}, {'DimensionName': regex} or 'Any'")


@dataclass(frozen=True, slots=True, repr=False)
class _Axis(ManifestSplitDimCondition):
    axis: int

    def __post_init__(self) -> None:
        U32.check(self.axis)

    def matches(self, axis: int, name: str | None) -> bool:
        return axis == self.axis

    def to_plain(self) -> Json:
        return {"Axis": self.axis}

    def __repr__(self) -> str:
        return f"ManifestSplitDimCondition.Axis({self.axis})"


@dataclass(frozen=True, slots=True, repr=False)
class _DimensionName(ManifestSplitDimCondition):
    regex: str

    def __post_init__(self) -> None:
        _evaluable(self.regex)

    @classmethod
    def of_stored(cls, regex: str) -> Self:
        """Make a condition from a stored expression, which may be invalid."""
        condition = object.__new__(cls)
        object.__setattr__(condition, "regex", regex)
        return condition

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).of_stored, (self.regex,)

    def matches(self, axis: int, name: str | None) -> bool:
        return name is not None and rust_regex.search(self.regex, name)

    def to_plain(self) -> Json:
        return {"DimensionName": self.regex}

    def __repr__(self) -> str:
        return f"ManifestSplitDimCondition.DimensionName({self.regex!r})"


@dataclass(frozen=True, slots=True, repr=False)
class _AnyAxis(ManifestSplitDimCondition):
    def matches(self, axis: int, name: str | None) -> bool:
        return True

    def to_plain(self) -> Json:
        return "Any"

    def __repr__(self) -> str:
        return "ManifestSplitDimCondition.Any()"


ManifestSplitDimCondition.Axis = _Axis
ManifestSplitDimCondition.DimensionName = _DimensionName
ManifestSplitDimCondition.Any = _AnyAxis


@dataclass(frozen=True, slots=True)
class ConditionKind[C: _Condition](Kind[C]):
    """A field whose value is a condition."""

    condition_type: type[C]

    def check(self, value: object) -> C:
        if not isinstance(value, self.condition_type):
            raise TypeError(f"must be a {self.condition_type.__name__}")
        return value

    def to_plain(self, value: C) -> Json:
        return value.to_plain()

    def from_plain(self, plain: Json) -> C:
        return self.condition_type.from_plain(plain)


NEVER_SPLIT = 2**32 - 1
"""Split size of an axis that is not split."""

SplitSizes = Sequence[tuple[ManifestSplitCondition, Sequence[tuple[ManifestSplitDimCondition, int]]]]
