"""Build the groups and arrays of a reference set from its metadata keys. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from icechunk_engine import paths
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.format.zarr_metadata import ArrayShape, parse_node_metadata
from icechunk_engine.importers.kerchunk.chunk_keys import Grid
from icechunk_engine.importers.kerchunk.reference_columns import METADATA_NAMES
from icechunk_engine.importers.limits import ITEMS_OF_A_GROUP, Budget
from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.importers.zarr_v2.metadata import array_document, group_document, v3_array_document
from icechunk_engine.types import Json, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class SetArray:
    """One array of a reference set.

    Attributes
    ----------
    path
        Path in the set, for example ``/group/air``.
    content
        The v3 document.
    shape
        Lengths in elements and in chunks.
    chunk_bytes
        Encoded length of every chunk, or None if it varies or is unknown.
    key_has_c
        True for chunk keys like ``a/c/0/1``.
    """

    path: str
    content: bytes
    shape: ArrayShape
    chunk_bytes: int | None
    key_has_c: bool

    @property
    def grid(self) -> Grid:
        """The grid that chunk keys must fit."""
        return Grid(self.shape.num_chunks, self.key_has_c)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHierarchy:
    """Nodes of a reference set by path. Every ancestor of a node is a group, except for an array at the root.

    Attributes
    ----------
    groups
        Attributes by path, parents before children.
    arrays
        Arrays by path.
    skipped
        Paths of the arrays that the caller left out.
    """

    groups: dict[str, JsonObject]
    arrays: dict[str, SetArray]
    skipped: tuple[str, ...]


def build_hierarchy(
    metadata: Mapping[str, object],
    *,
    skip: Collection[str] = (),
    fill_value_as_mask: bool = True,
    budget: Budget | None = None,
) -> SetHierarchy:
    """Convert all metadata documents of a set.

    Parameters
    ----------
    metadata
        Values of the metadata keys: JSON text, bytes or parsed.
    skip
        Arrays to leave out, as paths or names.
    fill_value_as_mask
        See :func:`~icechunk_engine.importers.zarr_v2.metadata.array_document`.
    budget
        Limits the depth of keys and documents. Charged for fill values, and for groups without metadata.

    Raises
    ------
    InvalidInputError
        ``deserialization``: the set exceeds the budget. ``bad-metadata``: a document is damaged, or the nodes
        contradict each other. ``invalid-array-metadata``: an array has no v3 form. The message names the node.
    """
    budget = budget if budget is not None else Budget()
    documents = _documents(metadata, budget)
    wanted = {paths.normalize(item) if item[:1] == "/" else item for item in skip}
    groups: dict[str, JsonObject] = {}
    arrays: dict[str, SetArray] = {}
    skipped = []
    for path in sorted(documents, key=paths.tree_order):
        names = documents[path]
        if ".zarray" in names and names.get("zarr.json", {}).get("node_type", "array") != "array":
            raise _bad(path, ".zarray says that it is an array, but zarr.json does not; remove one of them")
        if not _is_array(names):
            groups[path] = _group_attributes(path, names)
        elif path in wanted or paths.name(path) in wanted:
            skipped.append(path)
        else:
            arrays[path] = _array(path, names, budget, fill_value_as_mask=fill_value_as_mask)
    for path in _all_above([*arrays, *groups, *skipped]):
        if path in arrays:
            raise _bad(path, "it is an array, but other nodes are below it")
        if path not in groups:
            budget.charge_items(ITEMS_OF_A_GROUP, f"keys name groups like {short_repr(path)}")
            groups[path] = {}
    if not arrays and not groups:
        raise InvalidInputError(
            "the reference set has no Zarr metadata (.zgroup, .zarray or zarr.json keys), so nothing can be imported",
            ErrorKind.BAD_METADATA,
        )
    ordered = {path: groups[path] for path in sorted(groups, key=paths.tree_order)}
    return SetHierarchy(groups=ordered, arrays=arrays, skipped=tuple(skipped))


def _bad(path: str, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"the metadata of {short_repr(path)} in the reference set: {reason}", ErrorKind.BAD_METADATA
    )


def _all_above(found: list[str]) -> Iterator[str]:
    """Yield every ancestor of some paths once."""
    known: set[str] = set()
    for path in found:
        for above in paths.ancestors(path):
            if above in known:  # then all its ancestors are known too
                break
            known.add(above)
            yield above


def _documents(metadata: Mapping[str, object], budget: Budget) -> dict[str, dict[str, JsonObject]]:
    """Parse documents by node path and name. Consolidated metadata counts only if the set has no other metadata."""
    consolidated = metadata.get(".zmetadata")
    single = {key: value for key, value in metadata.items() if _name(key) != ".zmetadata"}
    if not single and consolidated is not None:
        copied = _parse(".zmetadata", consolidated, budget).get("metadata") or {}
        if not isinstance(copied, Mapping) or not all(isinstance(key, str) for key in copied):
            raise _bad(".zmetadata", f"its 'metadata' must be an object, not {short_repr(copied)}")
        single = {key: value for key, value in copied.items() if _name(key) in METADATA_NAMES}
    found: dict[str, dict[str, JsonObject]] = {}
    for key, value in single.items():
        found.setdefault(_node_path(key, budget), {})[_name(key)] = _parse(key, value, budget)
    return found


def _node_path(key: str, budget: Budget) -> str:
    """Return the path of the node that a metadata key belongs to."""
    budget.require_depth(key.count("/"), f"the key {short_repr(key)} is")
    if key.startswith("/"):
        # Chunks are assigned to paths without this slash, so the array would be empty.
        raise _bad(key, "keys must not begin with '/'; rename this key and the keys of the node's chunks")
    try:
        key.encode()
        return paths.normalize(key.rpartition("/")[0])
    except UnicodeEncodeError:
        raise _bad(key, "the key is not valid Unicode; rename it") from None
    except InvalidInputError:
        raise _bad(key, "the key is not a path: its components must not be empty, '.' or '..'; rename it") from None


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _parse(key: str, value: object, budget: Budget) -> JsonObject:
    """Parse a metadata document. NaN and Infinity are accepted, because kerchunk writes them."""
    if isinstance(value, list):
        raise _bad(key, "it refers to a file; put the document itself into the set")
    try:
        document = json.loads(value) if isinstance(value, str | bytes | bytearray) else value
    except json.JSONDecodeError as error:
        raise _bad(key, f"it is not valid JSON ({error})") from None
    except UnicodeDecodeError as error:
        raise _bad(key, f"it is not valid JSON in UTF-8 ({error})") from None
    except ValueError:
        raise _bad(key, "a number in it has thousands of digits") from None
    except RecursionError:
        raise _bad(key, "it is nested too deeply") from None
    if not isinstance(document, dict):
        raise _bad(key, f"it must be a JSON object, not {short_repr(document)}")
    _require_shallow(key, document, budget)
    return document


def _require_shallow(key: str, document: JsonObject, budget: Budget) -> None:
    """Refuse deep nesting. Goes level by level, because recursion would fail before it reaches the limit."""
    level: list[dict[str, Json] | list[Json] | tuple[Json, ...]] = [document]
    depth = 0
    while level:
        depth += 1
        budget.require_depth(depth, f"the metadata under {short_repr(key)} is nested")
        inner: list[Json] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value
        level = [value for value in inner if isinstance(value, dict | list | tuple)]


def _is_array(names: Mapping[str, JsonObject]) -> bool:
    return ".zarray" in names or names.get("zarr.json", {}).get("node_type") == "array"


def _group_attributes(path: str, names: Mapping[str, JsonObject]) -> JsonObject:
    key = next((name for name in ("zarr.json", ".zgroup") if name in names), None)
    document = names[key] if key is not None else {}
    if key == "zarr.json" and document.get("node_type") != "group":
        raise _bad(path, f"'node_type' must be 'group' or 'array', not {short_repr(document.get('node_type'))}")
    attributes = document.get("attributes") if key == "zarr.json" else names.get(".zattrs")
    if attributes is not None and not isinstance(attributes, dict):
        raise _bad(path, f"its attributes must be an object, not {short_repr(attributes)}")
    group_document(attributes or {}, path=path)  # raises if the attributes cannot be stored
    return dict(attributes or {})


def _array(path: str, names: Mapping[str, JsonObject], budget: Budget, *, fill_value_as_mask: bool) -> SetArray:
    v3 = names.get("zarr.json")
    if v3 is not None:
        document = v3_array_document(path, v3)
    else:
        document = array_document(
            path, names[".zarray"], names.get(".zattrs", {}), fill_value_as_mask=fill_value_as_mask, budget=budget
        )
    _, shape = parse_node_metadata(document.content, for_write=True, path=path)
    assert shape is not None
    if any(count == 0 < length for count, length in zip(shape.num_chunks, shape.lengths, strict=True)):
        raise _bad(path, f"a chunk edge is 0 where the array has elements: shape {short_repr(shape.lengths)}")
    return SetArray(
        path=path,
        content=document.content,
        shape=shape,
        chunk_bytes=document.chunk_bytes,
        key_has_c=v3 is not None and _has_c(v3),
    )


def _has_c(document: JsonObject) -> bool:
    encoding = document.get("chunk_key_encoding", "default")
    name = encoding.get("name") if isinstance(encoding, Mapping) else encoding
    return name == "default"
