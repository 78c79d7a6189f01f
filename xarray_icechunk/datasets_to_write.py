"""What to write: the datasets of an xarray object, with their encodings and the part that each one writes.

These are checks and decisions only. Nothing is read or written.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import xarray as xr

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe

__all__ = ["DatasetToWrite", "Region", "XarrayObject", "ZarrWriteModes", "choose_mode", "datasets_to_write"]

type XarrayObject = xr.DataArray | xr.Dataset | xr.DataTree
type Region = Mapping[str, slice | Literal["auto"]] | Literal["auto"] | None
type ZarrWriteModes = Literal["w", "w-", "a", "a-", "r+"]

# xarray's names for a DataArray that has no name, or the name of a coordinate. xarray.open_dataarray knows them.
_DATAARRAY_NAME = "__xarray_dataarray_name__"
_DATAARRAY_VARIABLE = "__xarray_dataarray_variable__"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetToWrite:
    """A dataset and how to write it.

    Attributes
    ----------
    path
        Path of its group, relative to the group that is written to; empty for that group itself.
    encoding
        Encodings by name of variable.
    append_dim
        Dimension to append along; None if the dataset does not have it.
    region
        Part of the existing variables to write. A tree's datasets have only their own dimensions in it.
    new_only
        Write only variables that do not exist yet.
    """

    path: str
    dataset: xr.Dataset
    encoding: Mapping[Any, Any]
    append_dim: Hashable | None = None
    region: Region = None
    new_only: bool = False


def choose_mode(mode: ZarrWriteModes | None, append_dim: Hashable | None, region: Region) -> ZarrWriteModes:
    """Return the mode, or the default that fits ``append_dim`` and ``region``.

    Raises
    ------
    InvalidInputError
        The mode is unknown, or does not fit the other arguments.
    """
    if mode is None:
        mode = "a" if append_dim is not None else "r+" if region is not None else "w-"
    if mode not in ("w", "w-", "a", "a-", "r+"):
        raise _refusal(f"mode={mode!r} is not supported: choose 'w', 'w-', 'a', 'a-' or 'r+'")
    if append_dim is not None and mode not in ("a", "a-"):
        raise _refusal(f"append_dim needs mode 'a' or 'a-', not {mode!r}")
    if region is not None and mode not in ("a", "a-", "r+"):
        raise _refusal(f"region needs mode 'r+', 'a' or 'a-', not {mode!r}")
    return mode


def datasets_to_write(
    obj: XarrayObject,
    *,
    encoding: Mapping[Any, Any] | None,
    mode: ZarrWriteModes,
    append_dim: Hashable | None,
    region: Region,
    write_inherited_coords: bool,
) -> list[DatasetToWrite]:
    """Return the datasets of an object, parents first.

    Raises
    ------
    InvalidInputError
        The object is not of xarray, a name is not text, or the arguments do not fit the object.
    """
    encoding = encoding or {}
    if isinstance(region, Mapping):
        region = dict(region)  # xarray would change the caller's
    if isinstance(obj, xr.DataTree):
        found = _of_tree(obj, encoding, mode, append_dim, region, write_inherited_coords)
    elif isinstance(obj, xr.Dataset | xr.DataArray):
        dataset = obj if isinstance(obj, xr.Dataset) else _as_dataset(obj)
        found = [
            DatasetToWrite(path="", dataset=dataset, encoding=encoding, append_dim=append_dim, region=region)
        ]  # xarray checks append_dim and region
    else:
        raise _refusal(f"cannot write {describe(obj)}: pass a DataArray, Dataset or DataTree")
    for write in found:
        _check_names(write.dataset)
    return found


# --- trees -----------------------------------------------------------------------------------------------------------


def _of_tree(
    tree: xr.DataTree,
    encoding: Mapping[Any, Any],
    mode: ZarrWriteModes,
    append_dim: Hashable | None,
    region: Region,
    write_inherited_coords: bool,
) -> list[DatasetToWrite]:
    if unknown := set(encoding) - set(tree.groups):
        raise _refusal(
            f"encoding has groups that are not in the tree: {sorted(unknown)}. Use paths from {tree.groups}"
        )
    found = [
        DatasetToWrite(
            path="" if node is tree else path,
            dataset=node.to_dataset(inherit=write_inherited_coords or node is tree),
            encoding=encoding.get(node.path, {}),
        )
        for path, node in tree.subtree_with_keys
    ]
    if append_dim is not None and region is not None:
        raise _refusal("append_dim and region do not work together for a tree: write one after the other")
    if append_dim is not None:
        return list(_appended(found, append_dim, mode))
    if region is not None:
        return list(_regional(found, region))
    return found


def _appended(nodes: Sequence[DatasetToWrite], append_dim: Hashable, mode: ZarrWriteModes) -> Iterator[DatasetToWrite]:
    """Append to the nodes that have the dimension. Write the others as xarray writes variables without it."""
    _require_dimensions([append_dim], nodes, "append_dim")
    for node in nodes:
        has_it = append_dim in node.dataset.dims
        yield replace(node, append_dim=append_dim if has_it else None, new_only=not has_it and mode == "a-")


def _regional(nodes: Sequence[DatasetToWrite], region: Region) -> Iterator[DatasetToWrite]:
    """Give each node the part of the region that has its dimensions. Leave out nodes without variables."""
    if region != "auto":
        assert isinstance(region, Mapping)
        _require_dimensions(list(region), nodes, "region")
    for node in nodes:
        dims = node.dataset.dims
        own: Region = dict.fromkeys(map(str, dims), "auto")
        if isinstance(region, Mapping):
            own = {dim: part for dim, part in region.items() if dim in dims}
        if own:
            yield replace(node, region=own)
        elif node.dataset.variables:
            raise _refusal(
                f"the node {node.path or '/'!r} has no dimension of the region, so the region does not say where to "
                f"write {_listed(node.dataset.variables)}. Remove its variables from the tree"
            )


def _require_dimensions(wanted: Sequence[Hashable], nodes: Sequence[DatasetToWrite], argument: str) -> None:
    known = {dim for node in nodes for dim in node.dataset.dims}
    if unknown := [dim for dim in wanted if dim not in known]:
        raise _refusal(
            f"{argument} names {_listed(unknown)}, but no node of the tree has such a dimension. The tree has "
            f"{_listed(sorted(known, key=str)) or 'no dimensions'}"
        )


# --- datasets --------------------------------------------------------------------------------------------------------


def _as_dataset(array: xr.DataArray) -> xr.Dataset:
    if array.name is None:
        return array.to_dataset(name=_DATAARRAY_VARIABLE)
    if array.name in array.coords or array.name in array.dims:
        dataset = array.to_dataset(name=_DATAARRAY_VARIABLE)
        dataset.attrs[_DATAARRAY_NAME] = array.name
        return dataset
    return array.to_dataset()


def _check_names(dataset: xr.Dataset) -> None:
    for name in dataset.variables:
        if not isinstance(name, str) or not name:
            raise _refusal(
                f"cannot write a variable named {name!r}: names must be non-empty strings. Use Dataset.rename"
            )


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))


def _refusal(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.NOT_ALLOWED)
