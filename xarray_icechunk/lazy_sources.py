"""Find out whether lazily read data come from a session.

A session shows its edits at once. So lazy data from a session can change before they are read, if a call writes to
that session. Such a call writes to a fork instead, and the session and the data stay as they are until the end.

The search knows xarray's lazy arrays, Zarr arrays, and what dask keeps in graphs, including functions with their
closures and attributes. It does not look at global variables. It does not expand dask's symbolic layers, so a graph of
a million tasks costs no more than its layers.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr

from icechunk_engine.session import IcechunkStore, Session, workspace_of

__all__ = ["reads_from"]

_LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    slice,
    type(None),
    np.ndarray,
    np.generic,
    np.dtype,
    type,
    types.ModuleType,
)


def reads_from(datasets: Iterable[xr.Dataset], session: Session) -> bool:
    """Return whether data of the datasets will be read from this session.

    Other sessions of the same repository do not count: they do not show the edits of this one.
    """
    own = workspace_of(session)
    roots = [variable._data for dataset in datasets for variable in dataset.variables.values()]
    return any(workspace_of(found) is own for found in _sessions(roots))


def _sessions(roots: list[Any]) -> Iterator[Session]:
    pending = roots
    seen: dict[int, Any] = {}  # holds the objects, or others could get their ids
    while pending:
        item = pending.pop()
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Session):
            yield item
        elif isinstance(item, IcechunkStore):
            yield item.session
        else:
            pending.extend(_parts(item))


def _parts(item: Any) -> Iterable[Any]:
    """Return the objects in an object that can lead to a store."""
    if isinstance(item, zarr.Array | zarr.Group):
        return [item.store]
    if isinstance(item, list | tuple | set | frozenset):
        return item
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, types.MethodType):
        return [item.__func__, item.__self__]
    if isinstance(item, types.FunctionType):
        return [*_closure(item), *(item.__defaults__ or ()), *(item.__kwdefaults__ or {}).values()]
    module = type(item).__module__.partition(".")[0]
    if module == "xarray":
        return _parts_of_lazy_array(item)
    if module == "dask" or hasattr(type(item), "__dask_graph__"):
        return _parts_of_dask(item)
    if isinstance(item, Mapping):
        return item.values()
    return vars(item).values() if callable(item) and hasattr(item, "__dict__") else ()


def _parts_of_lazy_array(item: Any) -> Iterable[Any]:
    if isinstance(item, xr.Dataset):
        return [variable._data for variable in item.variables.values()]
    if isinstance(item, xr.Variable):
        return [item._data]
    if isinstance(item, xr.DataArray):
        return [item.variable._data]
    get_array = getattr(type(item), "get_array", None)  # the wrapper of a Zarr array
    if get_array is not None and type(item).__module__ == "xarray.backends.zarr":
        return [get_array(item)]
    return [getattr(item, name) for name in ("array", "func") if hasattr(item, name)]


def _parts_of_dask(item: Any) -> Iterable[Any]:
    """Return the parts of a collection, graph, layer or task."""
    if hasattr(type(item), "__dask_graph__"):
        return [item.__dask_graph__()]
    if hasattr(item, "layers"):
        return list(item.layers.values())
    if hasattr(item, "is_materialized"):
        if hasattr(item, "task") and hasattr(item, "indices"):  # symbolic: one task for all blocks
            return [item.task, *(part for part, index in item.indices if index is None)]
        return item.values() if item.is_materialized() else ()
    if hasattr(item, "args"):
        return [*item.args, *getattr(item, "kwargs", {}).values(), getattr(item, "func", None)]
    return [item.value] if hasattr(item, "value") else ()


def _closure(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
