"""The Zarr store under official's module name; the class is in :mod:`icechunk_engine.session`."""

from icechunk_engine.session import IcechunkStore

__all__ = ["IcechunkStore"]
