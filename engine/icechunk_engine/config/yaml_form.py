"""Read and write ``config.yaml``, in which spec 1 stores a configuration.

A choice with a value is a map with one entry in the stored form, ``{"s3": {…}}``. In YAML it is a tag: ``!s3 {…}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.types import JsonObject

MAX_BYTES, MAX_NODES, MAX_DEPTH = 2**20, 50_000, 100
"""Limits on a file. Official's file has about a hundred values, and six more for each container."""

_STORES = frozenset({"s3", "s3_compatible", "tigris", "gcs", "azure", "http", "local_file_system"})
_CHOICES = _STORES | {
    *("and", "or", "path_matches", "name_matches", "num_refs"),
    *("Included", "Excluded", "Axis", "DimensionName"),
}
_STR, _INT, _BOOL, _NULL, _SEQ, _MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "bool", "null", "seq", "map")
)


class _Dumper(yaml.SafeDumper):
    def choose_scalar_style(self) -> str:
        event = self.event
        assert isinstance(event, yaml.ScalarEvent)
        if event.tag is not None and event.tag.startswith("!") and event.style is None:
            return ""  # a number; official would read `!Axis '1'` as text
        return super().choose_scalar_style()


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as in YAML 1.2: ``no`` and ``12:30`` are text."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(_NULL, re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))


def to_yaml(plain: object) -> bytes:
    """Return the file for the stored form of a configuration."""
    return bytes(yaml.serialize(_node(plain), Dumper=_Dumper, encoding="utf-8", allow_unicode=True, width=2**30))


def _node(value: object, tag: str | None = None, *, has_choices: bool = True, free_keys: bool = False) -> yaml.Node:
    if isinstance(value, Mapping):
        if has_choices and not free_keys and tag is None and len(value) == 1:
            (choice, inner), *_ = value.items()
            if choice in _CHOICES:
                # Users choose the names of a store's options, so an option can look like a choice.
                return _node(inner, f"!{choice}", has_choices=choice not in _STORES)
        pairs = [
            (_node(key), _node(entry, has_choices=has_choices, free_keys=key == "virtual_chunk_containers"))
            for key, entry in value.items()
        ]
        return yaml.MappingNode(tag or _MAP, pairs, flow_style=not pairs)
    if isinstance(value, list | tuple):
        items = [_node(item, has_choices=has_choices) for item in value]
        return yaml.SequenceNode(tag or _SEQ, items, flow_style=not items)
    if value is None:
        return yaml.ScalarNode(tag or _NULL, "null")
    if isinstance(value, bool):
        return yaml.ScalarNode(tag or _BOOL, "true" if value else "false")
    if isinstance(value, int):
        return yaml.ScalarNode(tag or _INT, str(value))
    # Only double quotes preserve every kind of line break.
    assert isinstance(value, str)
    has_breaks = bool(value) and value.splitlines() != [value]
    return yaml.ScalarNode(tag or _STR, value, style='"' if has_breaks else None if tag is None else "'")


def from_yaml(data: bytes) -> JsonObject:
    """Invert :func:`to_yaml`. Raises FormatError (``config-deserialization``)."""
    try:
        _require_small(data)
        plain = yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _damaged(str(error)) from None
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise _damaged("it is not a map")
    return plain


def _require_small(data: bytes) -> None:
    """Refuse a document that is larger than any configuration, before the loader builds it. Raises ValueError.

    Aliases of aliases can expand to any size. So an alias counts as many values as the node that it refers to.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes, more than {MAX_BYTES}")
    anchored: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and number of nodes before it
    n_nodes = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            anchored[anchor or ""] = n_nodes - before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchored:
                raise ValueError(f"the alias {event.anchor!r} is unknown, or contains itself")
            n_nodes += anchored[event.anchor]
        else:
            n_nodes += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, n_nodes - 1))
                anchored.pop(
                    event.anchor or "", None
                )  # an earlier node may have the same anchor; this one is not complete yet
            else:
                anchored[event.anchor or ""] = 1
        if n_nodes > MAX_NODES:
            raise ValueError(f"it expands to more than {MAX_NODES} values")
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _choice(loader: _Loader, name: str, node: yaml.Node) -> dict[str, object]:
    if isinstance(node, yaml.MappingNode):
        return {name: loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    # Resolve the value as if it had no tag: a plain scalar can be a number, a quoted one is text.
    assert isinstance(node, yaml.ScalarNode)
    tag = loader.resolve(yaml.ScalarNode, node.value, (node.style is None, True))  # type: ignore[no-untyped-call]
    return {name: loader.construct_object(yaml.ScalarNode(tag, node.value))}


_Loader.add_multi_constructor("!", _choice)


def _damaged(problem: str) -> FormatError:
    return FormatError(
        f"config.yaml cannot be read: {problem}. Correct it, or restore it from a copy under overwritten/",
        ErrorKind.CONFIG_DESERIALIZATION,
    )
