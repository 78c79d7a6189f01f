"""The groups and arrays of a reference set, from its metadata keys. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from icechunk_engine import paths
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.chunk_keys import Grid
from icechunk_engine.importers.metadata_v2 import array_document, v3_array_document
from icechunk_engine.zarr_metadata import ArrayShape, parse_node_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class SetArray:
    """One array of a reference set.

    Attributes
    ----------
    path
        In the set, e.g. ``/group/air``.
    content
        Its v3 document.
    shape
        Extent in elements and chunks.
    chunk_bytes
        Encoded length of every chunk, None if not fixed or not known.
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
        """What chunk keys must fit."""
        return Grid(self.shape.num_chunks, self.key_has_c)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetHierarchy:
    """Nodes of a reference set by path; every ancestor of a node is among the groups unless it is the root array.

    Attributes
    ----------
    groups
        Attributes by path, parents before children.
    arrays
        Arrays by path.
    skipped
        Paths of arrays left out on demand.
    """

    groups: dict[str, dict[str, Any]]
    arrays: dict[str, SetArray]
    skipped: tuple[str, ...]


def build_hierarchy(
    metadata: Mapping[str, Any], *, skip: Collection[str] = (), fill_value_as_mask: bool = True
) -> SetHierarchy:
    """Convert all metadata documents of a set.

    Parameters
    ----------
    metadata
        Values of the metadata keys: JSON text, bytes or parsed.
    skip
        Arrays to leave out: paths, or names.
    fill_value_as_mask
        See :func:`~icechunk_engine.importers.metadata_v2.array_document`.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``: a document is damaged, or the nodes contradict each other. ``invalid-array-metadata``: an
        array has no v3 form. The message names the node.
    """
    documents = _documents(metadata)
    wanted = {paths.normalize(item) if item[:1] == "/" else item for item in skip}
    groups: dict[str, dict[str, Any]] = {}
    arrays: dict[str, SetArray] = {}
    skipped = []
    for path in sorted(documents, key=paths.tree_order):
        names = documents[path]
        if not _is_array(names):
            groups[path] = _group_attributes(names)
        elif path in wanted or paths.name(path) in wanted:
            skipped.append(path)
        else:
            arrays[path] = _array(path, names, fill_value_as_mask=fill_value_as_mask)
    implied = {above for path in (*arrays, *groups, *skipped) for above in paths.ancestors(path)}
    for path in implied:
        if path in arrays:
            raise _bad(path, "it is an array, but other nodes lie below it")
        groups.setdefault(path, {})
    if not arrays and not groups:
        raise InvalidInputError(
            "the reference set has no Zarr metadata (.zgroup, .zarray or zarr.json keys): there is nothing to import",
            ErrorKind.BAD_METADATA,
        )
    ordered = {path: groups[path] for path in sorted(groups, key=paths.tree_order)}
    return SetHierarchy(groups=ordered, arrays=arrays, skipped=tuple(skipped))


def _bad(path: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"the metadata of {path} in the reference set: {reason}", ErrorKind.BAD_METADATA)


def _documents(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Parsed documents by node path and name; a consolidated copy counts only where there are no single ones."""
    consolidated = metadata.get(".zmetadata")
    single = {key: value for key, value in metadata.items() if _name(key) != ".zmetadata"}
    if not single and consolidated is not None:
        single = _parse(".zmetadata", consolidated).get("metadata") or {}
    found: dict[str, dict[str, Any]] = {}
    for key, value in single.items():
        path = paths.normalize(key.rpartition("/")[0])
        found.setdefault(path, {})[_name(key)] = _parse(key, value)
    return found


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _parse(key: str, value: Any) -> dict[str, Any]:
    """A metadata document; bare NaN and Infinity are read, as kerchunk writes them."""
    if isinstance(value, list):
        raise _bad(key, "it is a reference to a file; put the document itself into the set")
    try:
        document = json.loads(value) if isinstance(value, str | bytes) else value
    except (ValueError, RecursionError) as error:
        raise _bad(key, f"it is no JSON ({error})") from None
    if not isinstance(document, dict):
        raise _bad(key, f"it must be a JSON object, not {document!r}")
    return document


def _is_array(names: Mapping[str, Any]) -> bool:
    return ".zarray" in names or names.get("zarr.json", {}).get("node_type") == "array"


def _group_attributes(names: Mapping[str, Any]) -> dict[str, Any]:
    attributes = names["zarr.json"].get("attributes") if "zarr.json" in names else names.get(".zattrs")
    return dict(attributes or {})


def _array(path: str, names: Mapping[str, Any], *, fill_value_as_mask: bool) -> SetArray:
    v3 = names.get("zarr.json")
    if v3 is not None:
        document = v3_array_document(v3)
    else:
        document = array_document(
            path, names[".zarray"], names.get(".zattrs", {}), fill_value_as_mask=fill_value_as_mask
        )
    _, shape = parse_node_metadata(document.content, for_write=True, path=path)
    assert shape is not None
    return SetArray(
        path=path,
        content=document.content,
        shape=shape,
        chunk_bytes=document.chunk_bytes,
        key_has_c=v3 is not None and _has_c(v3),
    )


def _has_c(document: Mapping[str, Any]) -> bool:
    encoding = document.get("chunk_key_encoding", "default")
    name = encoding.get("name") if isinstance(encoding, Mapping) else encoding
    return name == "default"
