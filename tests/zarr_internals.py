"""The private names of zarr that tests use, in one place. zarr 3.1.6 to 3.4.2."""

from zarr.core.sync import _collect_aiterator as collect_aiterator
from zarr.core.sync import sync

__all__ = ["collect_aiterator", "sync"]
