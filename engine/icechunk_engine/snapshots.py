"""Views of snapshots, under the module name of the official package."""

from icechunk_engine.catalog.ancestry_graph import AncestryGraph
from icechunk_engine.catalog.history import ManifestFileInfo, SnapshotInfo
from icechunk_engine.transaction.diff import Diff

__all__ = ["AncestryGraph", "Diff", "ManifestFileInfo", "SnapshotInfo"]
