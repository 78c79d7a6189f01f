"""Manifests that are worth fetching before anybody asks for a chunk (``RepositoryConfig.manifest.preload``).

Opening a dataset reads the snapshot, and soon after it coordinates, each through a manifest. On a network these
requests can be made while the reader is still busy with metadata. Local files are read when they are needed.
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
"""Name of the threads that fetch them."""


def chosen_manifests(snapshot: Snapshot, preload: ResolvedPreload) -> list[ManifestId]:
    """Manifests to fetch: of the first arrays in path order, those that the condition holds for. Pure.

    The sum of their references stays within ``max_total_refs``; the first that does not fit ends the list.
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
    """Warm the caches for a new session in the background; does nothing where reading does not wait."""
    if not assets.storage.is_remote or not assets.begin_preload(snapshot_id):
        return None
    # A thread of its own, because it waits for requests, which no pool thread may do.
    thread = threading.Thread(target=_preload, args=(assets, snapshot_id), name=PRELOAD_THREAD, daemon=True)
    thread.start()
    return thread


def _preload(assets: AssetManager, snapshot_id: SnapshotId) -> None:
    with suppress(IcechunkError):  # whoever needs these files will be told
        assets.manifests(chosen_manifests(assets.snapshot(snapshot_id), assets.config.preload))
