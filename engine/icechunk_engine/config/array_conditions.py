"""Conditions on arrays and their axes: which manifests to split, which to load ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any as AnyValue
from typing import ClassVar, Literal, Self

from icechunk_engine import paths
from icechunk_engine.config import rust_regex
from icechunk_engine.config.base import U32, Kind
from icechunk_engine.errors import ErrorKind, InvalidInputError

Bound = tuple[Literal["Included", "Excluded"], int] | Literal["Unbounded"]


class _Condition:
    """A tree of operators; immutable, hashable, combined with ``|`` and ``&``."""

    __slots__ = ("_arguments", "_operator")

    _operator: str
    _arguments: tuple[AnyValue, ...]
    _constants: ClassVar[dict[str, bool]] = {}

    def __init__(self) -> None:
        raise TypeError(f"make a {type(self).__name__} with its static methods, e.g. .path_matches('regex')")

    @classmethod
    def _of(cls, name: str, *arguments: AnyValue) -> Self:
        condition = object.__new__(cls)
        object.__setattr__(condition, "_operator", name)
        object.__setattr__(condition, "_arguments", arguments)
        return condition

    @classmethod
    def _combined(cls, name: str, conditions: Iterable[AnyValue]) -> Self:
        parts = tuple(conditions)
        if not all(isinstance(part, cls) for part in parts):
            raise TypeError(f"only conditions of type {cls.__name__} can be combined, got {list(parts)!r}")
        return cls._of(name, *parts)

    @classmethod
    def _matching(cls, name: str, regex: AnyValue) -> Self:
        return cls._of(name, _evaluable(regex))

    def __or__(self, other: Self) -> Self:
        return self._combined("or", (self, other)) if isinstance(other, type(self)) else NotImplemented

    def __and__(self, other: Self) -> Self:
        return self._combined("and", (self, other)) if isinstance(other, type(self)) else NotImplemented

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __getattr__(self, name: str) -> AnyValue:
        """The arguments by official's names: ``regex``, ``from``, ``to``, and ``_0`` of those that are combined."""
        if name == "_0" and self._operator in ("or", "and"):
            return list(self._arguments)
        if name == "regex" and self._operator in ("path_matches", "name_matches"):
            return self._arguments[0]
        if name in ("from", "to") and self._operator == "num_refs":
            return _python_bounds(*self._arguments)[name == "to"]
        raise AttributeError(f"{type(self).__name__} {self._operator} has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Condition) or type(self) is not type(other):
            return False
        return (self._operator, self._arguments) == (other._operator, other._arguments)

    def __hash__(self) -> int:
        return hash((self._operator, self._arguments))

    def __reduce__(self) -> tuple[AnyValue, ...]:
        return _unpickle, (type(self), self._operator, self._arguments)

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._operator in ("or", "and"):
            return f"{name}.{self._operator}_conditions([{', '.join(map(repr, self._arguments))}])"
        method = "AnyArray" if self._operator == "any_array" else self._operator
        return f"{name}.{method}({', '.join(map(repr, self._arguments))})"

    def _holds(self, path: str, num_refs: int) -> bool:
        match self._operator:
            case "or":
                return any(part._holds(path, num_refs) for part in self._arguments)
            case "and":
                return all(part._holds(path, num_refs) for part in self._arguments)
            case "path_matches":
                return rust_regex.search(self._arguments[0], path)
            case "name_matches":
                return path != paths.ROOT and rust_regex.search(self._arguments[0], paths.name(path))
            case "num_refs":
                lower, upper = self._arguments
                return _above(lower, num_refs) and _below(upper, num_refs)
            case constant:
                return self._constants[constant]

    def to_plain(self) -> AnyValue:
        """Persisted form: a string, or a map with one entry."""
        match self._operator:
            case "or" | "and":
                return {self._operator: [part.to_plain() for part in self._arguments]}
            case "path_matches" | "name_matches":
                return {self._operator: {"regex": self._arguments[0]}}
            case "num_refs":
                return {"num_refs": dict(zip(("from", "to"), map(_bound_to_plain, self._arguments), strict=True))}
            case constant:
                return constant

    @classmethod
    def from_plain(cls, plain: AnyValue) -> Self:
        """Inverse of :meth:`to_plain`; raises ValueError."""
        if isinstance(plain, str) and plain in cls._constants:
            return cls._of(plain)
        if isinstance(plain, dict) and len(plain) == 1:
            ((name, argument),) = plain.items()
            if name in ("or", "and") and isinstance(argument, list):
                return cls._of(name, *map(cls.from_plain, argument))
            if isinstance(argument, dict):
                if name in ("path_matches", "name_matches") and isinstance(argument.get("regex"), str):
                    return cls._of(name, argument["regex"])
                if name == "num_refs" and cls is ManifestPreloadCondition:
                    return cls._of(name, _parse_bound(argument.get("from")), _parse_bound(argument.get("to")))
        raise ValueError("must be a condition")


def _unpickle(cls: type[_Condition], name: str, arguments: tuple[AnyValue, ...]) -> _Condition:
    return cls._of(name, *arguments)


class ManifestSplitCondition(_Condition):
    """Which arrays a splitting rule is for.

    Regular expressions have Rust's syntax and match anywhere in the text; an invalid one matches nothing.
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

    # Official's classes for each kind of condition, below.
    AnyArray: ClassVar[AnyValue]
    And: ClassVar[AnyValue]
    Or: ClassVar[AnyValue]
    NameMatches: ClassVar[AnyValue]
    PathMatches: ClassVar[AnyValue]

    @staticmethod
    def any_array() -> ManifestSplitCondition:
        """Every array."""
        return ManifestSplitCondition._of("any_array")

    def matches(self, path: str) -> bool:
        """True when the condition holds for the array at ``path``."""
        return self._holds(path, 0)


class ManifestPreloadCondition(_Condition):
    """Which manifests are worth loading before anybody asks for a chunk.

    Regular expressions have Rust's syntax and match anywhere in the text; an invalid one matches nothing.
    """

    __slots__ = ()
    _constants: ClassVar[dict[str, bool]] = {"true": True, "false": False}

    # Official's classes for each kind of condition, below; ``True`` and ``False`` are among them.
    And: ClassVar[AnyValue]
    Or: ClassVar[AnyValue]
    NameMatches: ClassVar[AnyValue]
    PathMatches: ClassVar[AnyValue]
    NumRefs: ClassVar[AnyValue]

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
        """The manifest has at least ``from_refs`` and fewer than ``to_refs`` chunk references; None: no bound."""
        lower: Bound = "Unbounded" if from_refs is None else ("Included", U32.check(from_refs))
        upper: Bound = "Unbounded" if to_refs is None else ("Excluded", U32.check(to_refs))
        return ManifestPreloadCondition._of("num_refs", lower, upper)

    @staticmethod
    def true() -> ManifestPreloadCondition:
        """Every manifest."""
        return ManifestPreloadCondition._of("true")

    @staticmethod
    def false() -> ManifestPreloadCondition:
        """No manifest."""
        return ManifestPreloadCondition._of("false")

    def matches(self, path: str, num_refs: int) -> bool:
        """True when the condition holds for a manifest with ``num_refs`` references of the array at ``path``."""
        return self._holds(path, num_refs)

    def __repr__(self) -> str:
        if self._operator != "num_refs":
            return super().__repr__()
        start, stop = _python_bounds(*self._arguments)
        return f"ManifestPreloadCondition.num_refs({start}, {stop})"


def _python_bounds(lower: Bound, upper: Bound) -> tuple[int | None, int | None]:
    """Bounds as a range has them: the first number that belongs to it, and the first that does not."""
    start = None if lower == "Unbounded" else lower[1] + (lower[0] == "Excluded")
    stop = None if upper == "Unbounded" else upper[1] + (upper[0] == "Included")
    return start, stop


class _Kind(type):
    """Class of the classes that conditions seem to be instances of: calling one makes a condition of its kind.

    Official's conditions are instances of classes such as ``ManifestSplitCondition.Or``; here all are of one class.
    """

    _condition: type[_Condition]
    _operator: str
    _make: Callable[..., _Condition]

    def __call__(cls, *args: AnyValue, **kwargs: AnyValue) -> AnyValue:
        return cls._make(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls._condition) and instance._operator == cls._operator


def _make_kinds(condition: type[_Condition], kinds: dict[str, tuple[str, Callable[..., _Condition]]]) -> None:
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
        setattr(condition, name, _Kind(name, (), members))


_make_kinds(
    ManifestSplitCondition,
    {
        "AnyArray": ("any_array", ManifestSplitCondition.any_array),
        "And": ("and", ManifestSplitCondition.and_conditions),
        "Or": ("or", ManifestSplitCondition.or_conditions),
        "NameMatches": ("name_matches", ManifestSplitCondition.name_matches),
        "PathMatches": ("path_matches", ManifestSplitCondition.path_matches),
    },
)
_make_kinds(
    ManifestPreloadCondition,
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


def _evaluable(regex: AnyValue) -> str:
    """A regular expression that the user gives; one that is stored is taken as it is, and matches nothing."""
    if not isinstance(regex, str):
        raise TypeError(f"the regular expression must be a string, not {regex!r}")
    problem = rust_regex.problem(regex)
    if problem is not None:
        raise InvalidInputError(
            f"the regular expression {regex[:200]!r} cannot be evaluated here, and would match nothing: {problem}. "
            f"Write it without that, for example with a list of characters or with several conditions",
            ErrorKind.INVALID_CONFIG,
        )
    return regex


def _above(bound: Bound, number: int) -> bool:
    return bound == "Unbounded" or number > bound[1] or (bound[0] == "Included" and number == bound[1])


def _below(bound: Bound, number: int) -> bool:
    return bound == "Unbounded" or number < bound[1] or (bound[0] == "Included" and number == bound[1])


def _bound_to_plain(bound: Bound) -> AnyValue:
    return bound if isinstance(bound, str) else {bound[0]: bound[1]}


def _parse_bound(plain: AnyValue) -> Bound:
    if plain is None or plain == "Unbounded":
        return "Unbounded"
    if isinstance(plain, dict) and len(plain) == 1:
        ((name, number),) = plain.items()
        if name in ("Included", "Excluded"):
            return name, U32.check(number)
    raise ValueError("must have bounds such as 'Unbounded' or {'Included': 10}")


class ManifestSplitDimCondition:
    """Which axes of an array a split size is for: ``.Axis(0)``, ``.DimensionName(regex)`` or ``.Any()``."""

    __slots__ = ()

    Axis: ClassVar[type[_Axis]]
    DimensionName: ClassVar[type[_DimensionName]]
    Any: ClassVar[type[_AnyAxis]]

    def matches(self, axis: int, name: str | None) -> bool:
        """True when the condition holds for that axis."""
        raise NotImplementedError

    def to_plain(self) -> AnyValue:
        """Persisted form."""
        raise NotImplementedError

    @staticmethod
    def from_plain(plain: AnyValue) -> ManifestSplitDimCondition:
        """Inverse of :meth:`to_plain`; raises ValueError."""
        if plain == "Any":
            return _AnyAxis()
        if isinstance(plain, dict) and len(plain) == 1:
            ((name, argument),) = plain.items()
            if name == "Axis":
                return _Axis(argument)
            if name == "DimensionName" and isinstance(argument, str):
                return _DimensionName.of_stored(argument)
        raise ValueError("must hold {'Axis': n}, {'DimensionName': regex} or 'Any'")


@dataclass(frozen=True, slots=True, repr=False)
class _Axis(ManifestSplitDimCondition):
    axis: int

    def __post_init__(self) -> None:
        U32.check(self.axis)

    def matches(self, axis: int, name: str | None) -> bool:
        return axis == self.axis

    def to_plain(self) -> AnyValue:
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
        """With an expression that may be of any kind."""
        condition = object.__new__(cls)
        object.__setattr__(condition, "regex", regex)
        return condition

    def __reduce__(self) -> tuple[AnyValue, ...]:
        return type(self).of_stored, (self.regex,)

    def matches(self, axis: int, name: str | None) -> bool:
        return name is not None and rust_regex.search(self.regex, name)

    def to_plain(self) -> AnyValue:
        return {"DimensionName": self.regex}

    def __repr__(self) -> str:
        return f"ManifestSplitDimCondition.DimensionName({self.regex!r})"


@dataclass(frozen=True, slots=True, repr=False)
class _AnyAxis(ManifestSplitDimCondition):
    def matches(self, axis: int, name: str | None) -> bool:
        return True

    def to_plain(self) -> AnyValue:
        return "Any"

    def __repr__(self) -> str:
        return "ManifestSplitDimCondition.Any()"


ManifestSplitDimCondition.Axis = _Axis
ManifestSplitDimCondition.DimensionName = _DimensionName
ManifestSplitDimCondition.Any = _AnyAxis


@dataclass(frozen=True, slots=True)
class ConditionKind(Kind):
    """A field that holds a condition."""

    type: type[_Condition]

    def check(self, value: AnyValue) -> AnyValue:
        if not isinstance(value, self.type):
            raise TypeError(f"must be a {self.type.__name__}")
        return value

    def to_plain(self, value: AnyValue) -> AnyValue:
        return value.to_plain()

    def from_plain(self, plain: AnyValue) -> AnyValue:
        return self.type.from_plain(plain)


NEVER_SPLIT = 2**32 - 1
"""Split size of an axis that stays whole."""

SplitSizes = Sequence[tuple[ManifestSplitCondition, Sequence[tuple[ManifestSplitDimCondition, int]]]]
