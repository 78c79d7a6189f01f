"""Expand the ``gen`` items of a reference set to references, in blocks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from icechunk_engine.importers.kerchunk import templates as rendering
from icechunk_engine.importers.kerchunk.json_members import bad_json
from icechunk_engine.importers.limits import Budget
from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.types import Json

BLOCK_ROWS = 4096
MAX_DIMENSIONS = 32

_TEXTS = ("key", "url")


@dataclass(frozen=True, slots=True)
class _Item:
    """A checked ``gen`` item."""

    key: str
    url: str
    sizes: tuple[str | int, ...]
    dimensions: dict[str, Sequence[str | int | float]]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.dimensions.values()))


def generated(items: object, templates: Mapping[str, str], budget: Budget) -> Iterator[Mapping[str, Json]]:
    """Yield blocks of store keys with their references. If a key occurs twice, the later one counts.

    Parameters
    ----------
    items
        The value of ``gen``.
    templates
        Templates by name.
    budget
        Charged for the references of all items before the first one is made.

    Raises
    ------
    InvalidInputError
        ``deserialization``: an item is damaged, or there are too many references. ``invalid-virtual-ref``: a template
        cannot be rendered.
    """
    if not isinstance(items, list | None):
        raise bad_json("'gen' must be a list")
    checked = [_checked(item, budget) for item in items or ()]
    for item in checked:
        budget.charge_items(math.prod(item.shape), f"'gen' makes references like {short_repr(item.key)}")
    for item in checked:
        yield from _blocks(item, templates, budget)


def _checked(item: object, budget: Budget) -> _Item:
    key, url = (item.get("key"), item.get("url")) if isinstance(item, Mapping) else (None, None)
    if not isinstance(item, Mapping) or not isinstance(key, str) or not isinstance(url, str):
        raise bad_json(f"an item of 'gen' needs 'key', 'url' and 'dimensions', not {short_repr(item)}")
    if ("offset" in item) != ("length" in item):
        raise bad_json(f"the item of 'gen' for {short_repr(key)} needs both 'offset' and 'length', or neither")
    sizes = tuple(_checked_size(item[name]) for name in ("offset", "length") if name in item)
    dimensions = item.get("dimensions")
    if not isinstance(dimensions, Mapping) or len(dimensions) > MAX_DIMENSIONS:
        raise bad_json(f"an item of 'gen' needs 'dimensions', an object with at most {MAX_DIMENSIONS} members")
    values = {name: _dimension_values(name, value, budget) for name, value in dimensions.items()}
    return _Item(key, url, sizes, values)


def _checked_size(size: object) -> str | int:
    if isinstance(size, str) or type(size) is int:
        return size
    raise bad_json(f"offset and length of 'gen' must be strings or integers, not {short_repr(size)}")


def _dimension_values(name: str, value: object, budget: Budget) -> Sequence[str | int | float]:
    if isinstance(value, Mapping):
        found = [value.get("start", 0), value.get("stop"), value.get("step", 1)]
        bounds = [bound for bound in found if type(bound) is int]
        if len(bounds) < len(found) or bounds[2] == 0:
            raise bad_json(
                f"dimension {short_repr(name)} of 'gen' needs integers start, stop and step, not {short_repr(value)}"
            )
        rendering.require_small(f"dimension {short_repr(name)} of 'gen'", *bounds)
        # Slice first: len() of a range beyond 2**63 raises OverflowError.
        values = range(*bounds)[: budget.limits.items + 1]
        if len(values) > budget.limits.items:
            budget.charge_items(len(values), f"dimension {short_repr(name)} of 'gen' is long")
        return values
    if isinstance(value, list):
        items = [item for item in value if type(item) in (str, int, float) and isinstance(item, str | int | float)]
        if len(items) == len(value):
            rendering.require_small(f"dimension {short_repr(name)} of 'gen'", *items)
            return items
    raise bad_json(f"dimension {short_repr(name)} of 'gen' must be a list of strings or numbers, or start/stop/step")


def _blocks(item: _Item, templates: Mapping[str, str], budget: Budget) -> Iterator[Mapping[str, Json]]:
    """Yield the Cartesian product of the dimensions in C order: the last one varies fastest."""
    shape = item.shape
    total = math.prod(shape)
    for start in range(0, total, BLOCK_ROWS):
        numbers = np.arange(start, min(start + BLOCK_ROWS, total))
        variables = {}
        if shape:
            for (name, values), codes in zip(item.dimensions.items(), np.unravel_index(numbers, shape), strict=True):
                variables[name] = rendering.object_column(list(map(values.__getitem__, codes.tolist())))
        scope = rendering.Scope(templates, variables, len(numbers), budget)
        columns: list[Sequence[Json]] = [rendering.render(item.url, scope)]
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
        return [_integer(template, text) for text in texts]  # this raises an error that names the bad text


def _integer(template: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise rendering.bad_template(template, f"{short_repr(text)} is not an integer") from None
