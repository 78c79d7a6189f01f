"""The two libraries that workloads run on: the official one and this one. Both have the same API."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import xarray as xr

ENGINES = ("official", "ours")


@dataclass(frozen=True, slots=True)
class Engine:
    """One library, and how its users write and open xarray datasets."""

    name: str
    ic: ModuleType
    to_icechunk: Callable[..., None]
    open_dataset: Callable[[str, Any], xr.Dataset]
    """Takes (path, repository). Each library uses one of them."""


def load(name: str) -> Engine:
    """Import one library, and nothing from the other."""
    if name == "official":
        writer = importlib.import_module("icechunk.xarray")
        return Engine(name, importlib.import_module("icechunk"), writer.to_icechunk, _open_through_store)
    if name == "ours":
        writer = importlib.import_module("xarray_icechunk")
        return Engine(name, importlib.import_module("icechunk_engine"), writer.to_icechunk, _open_through_engine)
    raise ValueError(f"no engine named {name!r}: choose one of {ENGINES}")


def _open_through_store(path: str, repository: Any) -> xr.Dataset:
    store = repository.readonly_session("main").store
    return xr.open_dataset(store, engine="zarr", chunks=None, consolidated=False, zarr_format=3)


def _open_through_engine(path: str, repository: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="icechunk", chunks=None)


def bytes_on_disk(path: Path) -> int:
    """Return the total size of all files below a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
