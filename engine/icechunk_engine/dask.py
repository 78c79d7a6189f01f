"""Writing dask arrays, under official's module name. The code is in :mod:`xarray_icechunk`.

dask is imported when you call a function, so the engine works without it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from icechunk_engine.distributed import extract_session, merge_sessions
from icechunk_engine.session import ForkSession

__all__ = [
    "computing_meta",
    "extract_session",
    "merge_sessions",
    "merge_sessions_array_kwargs",
    "session_merge_reduction",
    "store_dask",
]

type SimpleGraph = Mapping[tuple[str, int], tuple[Any, ...]]


def store_dask(
    *,
    sources: list[Any],
    targets: list[Any],
    regions: list[tuple[slice, ...]] | None = None,
    split_every: int | None = None,
    **store_kwargs: Any,
) -> ForkSession:
    """Write dask arrays into Zarr arrays of a fork; see :func:`xarray_icechunk.store_dask`."""
    fork: ForkSession = _plugin().store_dask(
        sources=sources, targets=targets, regions=regions, split_every=split_every, **store_kwargs
    )
    return fork


def session_merge_reduction(arrays: Any, *, split_every: int | None, **store_kwargs: Any) -> ForkSession:
    """Compute the results of ``dask.array.store``, and merge the forks of the arrays that it wrote.

    Parameters
    ----------
    arrays
        One or several arrays from ``dask.array.store(…, return_stored=True, load_stored=False, compute=False)``. Their
        targets belong to forks.
    split_every
        Number of forks that one task merges.
    **store_kwargs
        Passed to :func:`dask.compute`.
    """
    fork: ForkSession = _plugin().session_merge_reduction(arrays, split_every=split_every, **store_kwargs)
    return fork


def computing_meta[**P, R](func: Callable[P, R]) -> Callable[P, Any]:
    """Wrap a function of a dask reduction. It returns a placeholder while dask finds out what it returns."""

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
        if kwargs.get("computing_meta", False):
            return np.array([object()], dtype=object)
        return func(*args, **kwargs)

    return wrapper


def merge_sessions_array_kwargs(*sessions: Any, axis: Any = None, keepdims: Any = None) -> ForkSession:
    """Call :func:`merge_sessions`, and ignore the other arguments that a dask reduction passes."""
    return merge_sessions(*sessions)


def _plugin() -> Any:
    return importlib.import_module("xarray_icechunk.dask_writer")
