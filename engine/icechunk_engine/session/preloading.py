"""Fetch manifests before anybody asks for a chunk (``RepositoryConfig.manifest.preload``).

Opening a dataset reads the snapshot, and soon afterwards the coordinates, each through a manifest. Over a network,
these manifests can arrive while the reader is still busy with metadata. Local files are fast enough without this.
"""

from __future__ import annotations

import threading
from contextlib import suppress

import numpy as np

from icechunk_engine.assets import AssetManager
from icechunk_engine.config.resolved import ResolvedPreload
from icechunk_engine.errors import IcechunkError
from icechunk_engine.format.snapshot import Snapshot
from icechunk_engine.ids import ManifestId, SnapshotId

PRELOAD_THREAD = "icechunk-preload"
"""Name of the threads that fetch manifests."""


def chosen_manifests(snapshot: Snapshot, preload: ResolvedPreload) -> list[ManifestId]:
    """Choose the manifests to fetch: those of the first arrays in path order that meet the condition. Pure.

    The list ends before its references would exceed ``max_total_refs``.
    """
    table, counts = snapshot.nodes, snapshot.manifest_files.counts()
    chosen: dict[ManifestId, None] = {}
    total = 0
    for row in np.flatnonzero(table.is_array)[: preload.max_arrays_to_scan].tolist():
        path = table.path(row)
        for i in range(int(table.manifest_starts[row]), int(table.manifest_starts[row + 1])):
            manifest_id = ManifestId(table.manifest_ids[i].tobytes())
            num_refs = counts.get(manifest_id.raw, 0)
            if manifest_id in chosen or not preload.preload_if.matches(path, num_refs):
                continue
            total += num_refs
            if total > preload.max_total_refs:
                return list(chosen)
            chosen[manifest_id] = None
    return list(chosen)


def start_preload(assets: AssetManager, snapshot_id: SnapshotId) -> threading.Thread | None:
    """Warm the caches for a new session in the background. Does nothing if the storage is local."""
    if not assets.storage.is_remote or not assets.begin_preload(snapshot_id):
        return None
    # Not a task of the pool: it waits for requests, and tasks of the pool must not wait for one another.
    thread = threading.Thread(target=_preload, args=(assets, snapshot_id), name=PRELOAD_THREAD, daemon=True)
    thread.start()
    return thread


def _preload(assets: AssetManager, snapshot_id: SnapshotId) -> None:
    with suppress(IcechunkError):  # code that needs these files gets the error
        assets.manifests(chosen_manifests(assets.snapshot(snapshot_id), assets.config.preload))
