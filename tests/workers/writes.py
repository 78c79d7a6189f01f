"""The ways to write from workers. Each leaves the same values behind; workers import the functions from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr

from icechunk_engine.session import ForkSession

from .executors import Executor

type Values = Mapping[str, np.ndarray[Any, Any]]
"""Values by the path of their array."""

N_Y, N_X = 24, 30
CHUNKS = {"y": 6, "x": 15}
"""The chunks of ``large`` become objects. Those of the other arrays are small enough for the manifest."""

PARTS = [slice(start, start + CHUNKS["y"]) for start in range(0, N_Y, CHUNKS["y"])]
"""Rows of chunks: one for each task of an executor that takes functions."""


def dataset() -> xr.Dataset:
    y, x = np.arange(N_Y), np.arange(N_X)
    large = y[:, None] * 1000.0 + x
    return xr.Dataset(
        {"large": (("y", "x"), large), "small": (("y", "x"), (large % 101).astype("i1")), "line": ("y", y / 2)},
        coords={"y": y, "x": x},
    )


def lazy() -> xr.Dataset:
    return dataset().chunk(CHUNKS)


def values(ds: xr.Dataset, prefix: str = "") -> Values:
    return {prefix + str(name): variable.to_numpy() for name, variable in ds.variables.items()}


def require_values(group: zarr.Group, expected: Values) -> None:
    """Check every value of a hierarchy, and that it has no other arrays."""
    found = {path: member for path, member in group.members(max_depth=None) if isinstance(member, zarr.Array)}
    assert set(found) == set(expected)
    for path, array in found.items():
        np.testing.assert_array_equal(array[:], expected[path], err_msg=path)


# --- one call writes a whole dask array or dataset -------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"zarr_format": 3, "consolidated": False}


def to_zarr(store: Any) -> Values:
    lazy().to_zarr(store, **OPTIONS)
    return values(dataset())


def to_zarr_later(store: Any) -> Values:
    lazy().to_zarr(store, compute=False, **OPTIONS).compute()
    return values(dataset())


def append(store: Any) -> Values:
    half = N_Y // 2
    lazy().isel(y=slice(0, half)).to_zarr(store, **OPTIONS)
    lazy().isel(y=slice(half, None)).drop_vars("x").to_zarr(store, append_dim="y", **OPTIONS)
    return values(dataset())


def region(store: Any) -> Values:
    """Overwrite the inner rows."""
    lazy().to_zarr(store, **OPTIONS)
    rows = {"y": slice(PARTS[1].start, PARTS[2].stop)}
    changed = (lazy().isel(rows) + 1).drop_vars(["y", "x"])
    changed.to_zarr(store, region=rows, consolidated=False)
    expected = dataset()
    for name in changed:
        expected[name][rows] += 1
    return values(expected)


def dask_store(store: Any) -> Values:
    ds = lazy().drop_vars(["y", "x"])
    targets: list[Any] = [_create(store, str(name), variable) for name, variable in ds.items()]
    dask.array.store([variable.data for variable in ds.values()], targets, lock=False)
    return values(ds.compute())


def dask_to_zarr(store: Any) -> Values:
    ds = lazy().drop_vars(["y", "x"])
    for name, variable in ds.items():
        dask.array.to_zarr(variable.data, store, component=str(name))
    return values(ds.compute())


def tree(store: Any) -> Values:
    tree = xr.DataTree.from_dict({"/": lazy(), "/inner/leaf": lazy() + 1})
    tree.to_zarr(store, **OPTIONS)
    # A child inherits the coordinates of the root: they are stored once.
    return {**values(dataset()), **values((dataset() + 1).drop_vars(["y", "x"]), "inner/leaf/")}


WHOLE: dict[str, Callable[[Any], Values]] = {
    "to_zarr": to_zarr,
    "to_zarr(compute=False)": to_zarr_later,
    "to_zarr(append_dim)": append,
    "to_zarr(region)": region,
    "dask.array.store": dask_store,
    "dask.array.to_zarr": dask_to_zarr,
    "DataTree.to_zarr": tree,
}

# --- Cubed -----------------------------------------------------------------------------------------------------------


def cubed_store(store: Any, spec: Any) -> Values:
    """Store into arrays that this process created."""
    ds = dataset().drop_vars(["y", "x"])
    targets = [_create(store, str(name), variable) for name, variable in lazy().data_vars.items()]
    _cubed().store([_cubed_array(variable, spec) for variable in ds.values()], targets)
    return values(ds)


def cubed_to_zarr(store: Any, spec: Any) -> Values:
    """Let a worker create each array, which other workers then open and fill."""
    ds = dataset().drop_vars(["y", "x"])
    for name, variable in ds.items():
        _cubed().to_zarr(_cubed_array(variable, spec), store, path=str(name))
    return values(ds)


def cubed_region(store: Any, spec: Any) -> Values:
    large = dataset().large
    target = _create(store, "large", lazy().large)
    rows = slice(PARTS[1].start, PARTS[2].stop)
    _cubed().store(_cubed_array(large[rows], spec), target, regions=(rows, slice(0, N_X)))
    expected = np.zeros_like(large)
    expected[rows] = large[rows]
    return {"large": expected}


def _cubed() -> Any:
    # Workers of other executors import this module, and importing Cubed takes them half a second.
    import cubed

    return cubed


def _cubed_array(variable: xr.DataArray, spec: Any) -> Any:
    chunks = tuple(CHUNKS[str(dim)] for dim in variable.dims)
    return _cubed().from_array(variable.to_numpy(), chunks=chunks, spec=spec)


CUBED: dict[str, Callable[[Any, Any], Values]] = {
    "cubed.store": cubed_store,
    "cubed.to_zarr": cubed_to_zarr,
    "cubed.store(regions)": cubed_region,
}


# --- functions that workers run --------------------------------------------------------------------------------------


def _create(store: Any, name: str, variable: xr.DataArray) -> zarr.Array[Any]:
    dims = [str(dim) for dim in variable.dims]
    chunks = tuple(CHUNKS[dim] for dim in dims)
    return zarr.create_array(
        store, name=name, shape=variable.shape, chunks=chunks, dtype=variable.dtype, dimension_names=dims
    )


def write_rows(store: Any, rows: slice) -> None:
    group = zarr.open_group(store, mode="r+")
    for name in ("large", "small", "line"):
        group[name][rows] = dataset()[name][rows].to_numpy()


def write_region(store: Any, rows: slice) -> None:
    part = dataset().isel(y=rows).drop_vars(["y", "x"])
    part.to_zarr(store, region={"y": rows}, consolidated=False)


FUNCTIONS: dict[str, Callable[[Any, slice], None]] = {"zarr": write_rows, "to_zarr(region)": write_region}


def through_store(write: Callable[[Any, slice], None], session: Any, executor: Executor) -> Values:
    """Workers write through the session's store."""
    lazy().to_zarr(session.store, compute=False, **OPTIONS)
    executor.map(write, [session.store] * len(PARTS), PARTS)
    return values(dataset())


def _in_fork(write: Callable[[Any, slice], None], fork: ForkSession, rows: slice) -> ForkSession:
    write(fork.store, rows)
    return fork


def through_forks(write: Callable[[Any, slice], None], session: Any, executor: Executor) -> Values:
    """Workers write through forks and return them."""
    lazy().to_zarr(session.store, compute=False, **OPTIONS)
    n = len(PARTS)
    session.merge(*executor.map(_in_fork, [write] * n, [session.fork() for _ in PARTS], PARTS))
    return values(dataset())


WAYS_BACK: dict[str, Callable[[Callable[[Any, slice], None], Any, Executor], Values]] = {
    "store": through_store,
    "forks": through_forks,
}
