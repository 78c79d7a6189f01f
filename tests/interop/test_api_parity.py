"""Every public name, signature and member of the official package is here, or in the table of differences.

The table in ``docs/reference/differences.md`` must be exact: it lists every missing name, and no name that exists.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import icechunk as official
import pytest

import icechunk_engine as ours

DIFFERENCES = Path(__file__).parents[2] / "docs" / "reference" / "differences.md"

# Constructors that take handles of the official extension module: how official is built, not its API.
INTERNAL_CONSTRUCTORS = {"Repository", "Session", "ForkSession", "IcechunkStore"}

# How errors are made, to look at what instances have.
ERROR_ARGUMENTS: dict[str, tuple[Any, ...]] = {"RebaseFailedError": ("1CECHNKREP0F1RSTCMT0", [])}


def modules() -> dict[str, ModuleType]:
    """Return official's public modules by name, without private and vendored ones."""
    found = [info.name for info in pkgutil.walk_packages(official.__path__, "icechunk.")]
    named = ["icechunk", *(name for name in found if not re.search(r"\._|\.vendor", name))]
    return {name: importlib.import_module(name) for name in named}


def counterpart(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name.replace("icechunk", "icechunk_engine", 1))
    except ModuleNotFoundError:
        return None


def exported(module: ModuleType) -> list[str]:
    """Return the names that a module exports: its ``__all__``, or the names that it defines."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
    things = [name for name in names if not isinstance(getattr(module, name), ModuleType)]
    return [name for name in things if not name.startswith("_")]


def public(thing: Any) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def parameters(function: Any) -> list[inspect.Parameter] | None:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [parameter for parameter in found if parameter.name != "self"]


def positional(found: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [one for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]


def differing_parameters(name: str, theirs: Any, own: Any) -> Iterator[str]:
    """Return calls that official accepts and we refuse or interpret differently."""
    wanted, got = parameters(theirs), parameters(own)
    if wanted is None or got is None:
        return
    known = {parameter.name: parameter for parameter in got}
    takes_any = {parameter.kind for parameter in got} & {inspect.Parameter.VAR_KEYWORD}
    for parameter in wanted:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            if parameter.kind not in {one.kind for one in got}:
                yield f"{name}(*{parameter.name})"
        elif parameter.name.startswith("_"):  # only its position counts
            continue
        elif parameter.name not in known:
            if not takes_any:
                yield f"{name}({parameter.name}=)"
        elif parameter.default not in (
            parameter.empty,
            ...,
        ):  # official's signatures have "..." for values that are not literals
            default = known[parameter.name].default
            if default is parameter.empty or repr(default) != repr(parameter.default):
                yield f"{name}({parameter.name}={parameter.default!r})"
    places = zip(positional(wanted), [*positional(got), *[None] * len(wanted)], strict=False)
    for one, other in places:
        if one.name in known and (other is None or other.name != one.name):
            yield f"{name}({one.name}) by position"
        elif one.name.startswith("_") and other is None:
            yield f"{name}() of {len(positional(wanted))} arguments"
    required = [
        one for one in got if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    extra = [one.name for one in required if one.name not in {p.name for p in wanted} and not one.name.startswith("_")]
    if len(required) > len(wanted):
        yield f"{name}() needs {extra}"


def can_be_made(cls: type) -> bool:
    """Return False for official's classes without a constructor, which only the library makes."""
    if parameters(cls):
        return True
    try:
        cls()
    except TypeError:
        return False
    return True


def differing_members(name: str, theirs: type, own: type) -> Iterator[str]:
    if issubclass(theirs, BaseException):
        arguments = ERROR_ARGUMENTS.get(name, ("message",))
        made = [cls(*arguments) for cls in (theirs, own)]
        missing = {member for member in public(made[0]) if not hasattr(made[1], member)}
        yield from sorted(f"{name}.{member}" for member in missing)
        return
    if name not in INTERNAL_CONSTRUCTORS and not issubclass(own, Enum) and can_be_made(theirs):
        yield from differing_parameters(name, theirs, own)
    for member in public(theirs):
        one = getattr(theirs, member)
        other = getattr(own, member, None)
        if not hasattr(own, member):
            yield f"{name}.{member}"
        elif inspect.isclass(one):
            yield from differing_parameters(f"{name}.{member}", one, other)
        elif callable(one) and not isinstance(one, theirs):
            if inspect.isfunction(one) and not isinstance(inspect.getattr_static(theirs, member), staticmethod):
                one = one.__get__(object())  # the name of its first parameter does not matter
                other = other.__get__(object()) if inspect.isfunction(other) else other
            yield from differing_parameters(f"{name}.{member}", one, other)
            if inspect.iscoroutinefunction(one) != inspect.iscoroutinefunction(other):
                yield f"{name}.{member} awaited"


def differences() -> Iterator[str]:
    seen = set()
    for name, module in modules().items():
        mine = counterpart(name)
        if mine is None:
            yield name
            continue
        for thing in exported(module):
            theirs, own = getattr(module, thing), getattr(mine, thing, None)
            label = thing if hasattr(official, thing) else f"{name}.{thing}".removeprefix("icechunk.")
            if not hasattr(mine, thing):
                yield label
            elif id(theirs) not in seen and inspect.isclass(theirs):
                assert own is not None
                yield from differing_members(label, theirs, own)
            elif id(theirs) not in seen and callable(theirs):
                yield from differing_parameters(label, theirs, own)
            seen.add(id(theirs))


def names_in_table(heading: str) -> set[str]:
    """Names in the first column of the table under a heading."""
    section = DIFFERENCES.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    assert all(len(row) == 2 and row[1] for row in rows), "each row says why, or what it is for"
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


def documented() -> set[str]:
    """Names that the table lists as missing."""
    return names_in_table("Not there")


def additions() -> set[str]:
    """Names that the table lists as added, such as `Class.method`."""
    return {name.partition("(")[0] for name in names_in_table("Additions")}


def test_the_table_tells_what_differs() -> None:
    assert sorted(set(differences())) == sorted(documented())


@pytest.mark.parametrize("name", ["Session", "ForkSession", "Repository", "IcechunkStore"])
def test_users_see_official_methods_and_listed_additions_only(name: str) -> None:
    """What the engine's own modules need of a session is in its workspace, not among the methods of users."""
    cls = "Session" if name == "ForkSession" else name
    listed = {addition.removeprefix(f"{cls}.") for addition in additions() if addition.startswith(f"{cls}.")}
    added = set(public(getattr(ours, name))) - set(public(getattr(official, name)))
    assert added == listed, f"list the additions of {cls} in {DIFFERENCES.name}"


def test_modules_are_found() -> None:
    """The walk finds official's modules, including new ones of a later release."""
    assert {"icechunk.xarray", "icechunk.dask", "icechunk.testing", "icechunk.storage"} <= set(modules())
    assert len(modules()) > 15


def test_nothing_is_exported_by_accident() -> None:
    names = {name for name, thing in vars(ours).items() if not isinstance(thing, ModuleType)}
    assert {name for name in names if not name.startswith("_")} | {"__version__"} == set(ours.__all__)


@pytest.mark.parametrize("module", ["xarray", "dask", "distributed", "testing", "conflicts", "snapshots"])
def test_submodules_by_the_usual_import(module: str) -> None:
    mine = importlib.import_module(f"icechunk_engine.{module}")
    for name in exported(importlib.import_module(f"icechunk.{module}")):
        assert getattr(mine, name) is not None
        assert name in dir(mine)


def test_defaults_are_evaluated_the_same() -> None:
    """The walk must find this difference. Otherwise a broken walk would look like parity."""

    def theirs(a: int, b: int = 1, *, c: int = 2) -> None: ...

    def moved(b: int = 1, a: int = 0, *, c: int = 2) -> None: ...

    def other_default(a: int, b: int = 3, *, c: int = 2) -> None: ...

    def without(a: int, b: int = 1) -> None: ...

    def keyword_only(a: int, *, b: int = 1, c: int = 2) -> None: ...

    def wanting(a: int, d: int, b: int = 1, *, c: int = 2) -> None: ...

    def same(a: int, b: int = 1, *, c: int = 2, ours: int = 3) -> None: ...

    for own, found in (
        (moved, {"f(a) by position", "f(b) by position"}),
        (other_default, {"f(b=1)"}),
        (without, {"f(c=)"}),
        (keyword_only, {"f(b) by position"}),
        (wanting, {"f(b) by position"}),
        (same, set()),
    ):
        assert set(differing_parameters("f", theirs, own)) == found


async def test_async_twins_can_be_awaited(tmp_path: Path) -> None:
    """Every method that official has as a coroutine is a coroutine here."""
    repo = ours.Repository.create(tmp_path)
    theirs = official.Repository.create(official.in_memory_storage())
    for mine, other in ((repo, theirs), (repo.writable_session("main"), theirs.writable_session("main"))):
        for name in public(other):
            if name.endswith("_async") and hasattr(mine, name):
                assert asyncio.iscoroutinefunction(getattr(mine, name)) == asyncio.iscoroutinefunction(
                    getattr(other, name)
                ), name
