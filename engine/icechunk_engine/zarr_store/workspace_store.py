"""The Zarr store of a workspace, put together from its parts.

Keys are strict (:mod:`icechunk_engine.keys`): ``zarr.json`` documents are nodes, ``…/c/0/1`` are chunks. The names of
Zarr v2 documents are valid but never exist. Every other key is an error.
"""

from __future__ import annotations

from icechunk_engine.zarr_store.listing import ListingStore
from icechunk_engine.zarr_store.reading import ReadingStore
from icechunk_engine.zarr_store.virtual_references import VirtualReferences
from icechunk_engine.zarr_store.writing import WritingStore


class WorkspaceStore(ReadingStore, WritingStore, ListingStore, VirtualReferences):
    """A Zarr store that reads and edits a workspace. Each base class does one job."""

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True
    supports_consolidated_metadata: bool = False
