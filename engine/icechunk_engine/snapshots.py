"""What is told of snapshots, where official's package has it."""

from icechunk_engine.catalog.ancestry_graph import AncestryGraph
from icechunk_engine.catalog.history import ManifestFileInfo, SnapshotInfo
from icechunk_engine.transaction.diff import Diff

__all__ = ["AncestryGraph", "Diff", "ManifestFileInfo", "SnapshotInfo"]
