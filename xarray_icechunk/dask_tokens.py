"""Tell dask how to name arrays in an Icechunk store: by location and path, without pickling.

To name a zarr array, dask pickles its store several times. The session would take each pickle for a copy that may
write elsewhere, and prepare for reports that never arrive. The engine loads this module in processes that have
imported dask (:mod:`icechunk_engine._runtime.cluster_support`).
"""

from __future__ import annotations

from dask.base import normalize_token
from zarr.storage import StorePath

from icechunk_engine.session import IcechunkStore

__all__: list[str] = []

_normalize_object = normalize_token.dispatch(object)


def _normalize_store_path(place: StorePath) -> object:
    if isinstance(place.store, IcechunkStore):
        return "icechunk-path", *place.store.__dask_tokenize__(), place.path
    return _normalize_object(place)


normalize_token.register(StorePath, _normalize_store_path)
