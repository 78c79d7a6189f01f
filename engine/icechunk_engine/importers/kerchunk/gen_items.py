"""References that the ``gen`` items of a reference set stand for, a block at a time. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from icechunk_engine.importers.kerchunk import templates as rendering
from icechunk_engine.importers.kerchunk.json_members import bad_json
from icechunk_engine.importers.limits import Budget
from icechunk_engine.importers.short_repr import short_repr

BLOCK_ROWS = 4096
MAX_DIMENSIONS = 32

_TEXTS = ("key", "url")


@dataclass(frozen=True, slots=True)
class _Item:
    """One checked item of ``gen``."""

    key: str
    url: str
    sizes: tuple[str | int, ...]
    dimensions: dict[str, list[Any] | range]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.dimensions.values()))


def generated(items: Any, templates: Mapping[str, str], budget: Budget) -> Iterator[dict[str, list[Any]]]:
    """Blocks of store keys with their references; a key may come twice, and the later one counts.

    Parameters
    ----------
    items
        As found under ``gen``.
    templates
        Texts by name.
    budget
        All references of all items are charged before the first is made.

    Raises
    ------
    InvalidInputError
        ``deserialization``: an item is damaged, or too much would be made. ``invalid-virtual-ref``: a template cannot
        be rendered.
    """
    if not isinstance(items, list | None):
        raise bad_json("'gen' must be a list")
    checked = [_checked(item, budget) for item in items or ()]
    for item in checked:
        budget.charge_items(math.prod(item.shape), f"'gen' makes references like {short_repr(item.key)}")
    for item in checked:
        yield from _blocks(item, templates, budget)


def _checked(item: Any, budget: Budget) -> _Item:
    if not isinstance(item, Mapping) or not all(isinstance(item.get(name), str) for name in _TEXTS):
        raise bad_json(f"an item of 'gen' needs 'key', 'url' and 'dimensions', not {short_repr(item)}")
    if ("offset" in item) != ("length" in item):
        raise bad_json(f"the item of 'gen' for {short_repr(item['key'])} needs both 'offset' and 'length', or neither")
    sizes = tuple(item[name] for name in ("offset", "length") if name in item)
    for size in sizes:
        if type(size) is not int and not isinstance(size, str):
            raise bad_json(f"offset and length of 'gen' must be texts or integers, not {short_repr(size)}")
    dimensions = item.get("dimensions")
    if not isinstance(dimensions, Mapping) or len(dimensions) > MAX_DIMENSIONS:
        raise bad_json(f"an item of 'gen' needs 'dimensions', an object with at most {MAX_DIMENSIONS} members")
    values = {name: _dimension_values(name, value, budget) for name, value in dimensions.items()}
    return _Item(item["key"], item["url"], sizes, values)


def _dimension_values(name: Any, value: Any, budget: Budget) -> list[Any] | range:
    if isinstance(value, Mapping):
        bounds = [value.get("start", 0), value.get("stop"), value.get("step", 1)]
        if not all(type(bound) is int for bound in bounds) or bounds[2] == 0:
            raise bad_json(
                f"dimension {short_repr(name)} of 'gen' needs integers start, stop and step, not {short_repr(value)}"
            )
        rendering.require_small(f"dimension {short_repr(name)} of 'gen'", *bounds)
        # Slicing first: len() of a range beyond 2**63 raises OverflowError.
        values = range(*bounds)[: budget.limits.items + 1]
        if len(values) > budget.limits.items:
            budget.charge_items(len(values), f"dimension {short_repr(name)} of 'gen' is long")
        return values
    if isinstance(value, list) and all(type(item) in (str, int, float) for item in value):
        rendering.require_small(f"dimension {short_repr(name)} of 'gen'", *value)
        return value
    raise bad_json(f"dimension {short_repr(name)} of 'gen' must be a list of texts or numbers, or start/stop/step")


def _blocks(item: _Item, templates: Mapping[str, str], budget: Budget) -> Iterator[dict[str, list[Any]]]:
    """The Cartesian product of the dimensions in C order: the last one varies fastest."""
    shape = item.shape
    total = math.prod(shape)
    for start in range(0, total, BLOCK_ROWS):
        numbers = np.arange(start, min(start + BLOCK_ROWS, total))
        variables = {}
        if shape:
            for (name, values), codes in zip(item.dimensions.items(), np.unravel_index(numbers, shape), strict=True):
                variables[name] = rendering.object_column(list(map(values.__getitem__, codes.tolist())))
        scope = rendering.Scope(templates, variables, len(numbers), budget)
        columns: list[list[Any]] = [rendering.render(item.url, scope)]
        columns += [_integers(size, scope) for size in item.sizes]
        keys = rendering.render(item.key, scope)
        yield dict(zip(keys, map(list, zip(*columns, strict=True)), strict=True))


def _integers(template: str | int, scope: rendering.Scope) -> list[int]:
    if isinstance(template, int):
        return [template] * scope.n
    if not rendering.is_template(template):
        return [_integer(template, template)] * scope.n
    texts = rendering.render(template, scope)
    try:
        return list(map(int, texts))
    except ValueError:
        return [_integer(template, text) for text in texts]  # which says what is wrong with one of them


def _integer(template: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise rendering.bad_template(template, f"{short_repr(text)} is not an integer") from None
