"""The Zarr store of a session (:class:`IcechunkStore`)."""

from icechunk_engine.store.zarr_store import IcechunkStore, open_store

__all__ = ["IcechunkStore", "open_store"]
