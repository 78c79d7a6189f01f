"""Every public name, method and parameter of the official module is here, or stands in the table of differences."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import icechunk as official

import icechunk_engine as ours

DIFFERENCES = Path(__file__).parents[2] / "docs" / "reference" / "differences.md"

# Constructors that take handles of the official extension module: how official is built, not its API. The same holds
# for the constructors of a union's variants.
INTERNAL_PARAMETERS = {
    ("Repository", "__init__"),
    ("Session", "__init__"),
    ("ForkSession", "__init__"),
    ("IcechunkStore", "__init__"),
}


def public(thing: Any) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def parameters(function: Any) -> list[inspect.Parameter]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    named = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p for p in named if p.name != "self" and not p.name.startswith("_")]


def missing_parameters(name: str, theirs: Any, own: Any) -> Iterator[str]:
    known = {parameter.name for parameter in parameters(own)}
    for parameter in parameters(theirs):
        if parameter.name not in known:
            yield f"{name}({parameter.name}=)"


def missing() -> Iterator[str]:
    for name in public(official):
        theirs, own = getattr(official, name), getattr(ours, name, None)
        if isinstance(theirs, ModuleType):
            continue
        if own is None:
            yield name
        elif inspect.isclass(theirs) and not issubclass(theirs, BaseException):
            yield from missing_members(name, theirs, own)
        elif callable(theirs) and not inspect.isclass(theirs):
            yield from missing_parameters(name, theirs, own)


def missing_members(name: str, theirs: type, own: type) -> Iterator[str]:
    for member in [*public(theirs), "__init__"]:
        if not hasattr(own, member):
            yield f"{name}.{member}"
        elif (name, member) not in INTERNAL_PARAMETERS and not inspect.isclass(getattr(theirs, member)):
            yield from missing_parameters(f"{name}.{member}", getattr(theirs, member), getattr(own, member))


def documented() -> set[str]:
    """Names in the first column of the table of what is not there."""
    section = DIFFERENCES.read_text(encoding="utf-8").split("## Not there\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_what_is_missing_is_documented() -> None:
    assert set(missing()) == documented()


def test_async_twins() -> None:
    """What can be awaited there can be awaited here, by the same name."""
    for name in public(official):
        theirs, own = getattr(official, name), getattr(ours, name, None)
        if not inspect.isclass(theirs) or own is None:
            continue
        for member in public(theirs):
            if inspect.iscoroutinefunction(getattr(theirs, member)) and hasattr(own, member):
                assert inspect.iscoroutinefunction(getattr(own, member)), f"{name}.{member}"


def test_defaults_are_the_same() -> None:
    """Of everything that both have: a default that differs would change what moved code does."""
    different = []
    for name in public(official):
        theirs, own = getattr(official, name), getattr(ours, name, None)
        members = [("", theirs, own)] if inspect.isfunction(theirs) else []
        if inspect.isclass(theirs) and own is not None:
            members = [(f".{m}", getattr(theirs, m), getattr(own, m, None)) for m in public(theirs)]
        for suffix, function, twin in members:
            known = {parameter.name: parameter for parameter in parameters(twin)} if twin is not None else {}
            for parameter in parameters(function):
                if parameter.default is parameter.empty or parameter.name not in known:
                    continue
                default = known[parameter.name].default
                if default is inspect.Parameter.empty or repr(default) != repr(parameter.default):
                    different.append(f"{name}{suffix}({parameter.name}={default!r}), not {parameter.default!r}")
    assert not different, "\n".join(different)
