"""The Zarr store of a session (:class:`IcechunkStore`)."""

from icechunk_engine.store.zarr_store import IcechunkStore

__all__ = ["IcechunkStore"]
