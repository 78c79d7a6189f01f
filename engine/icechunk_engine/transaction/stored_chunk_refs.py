"""The chunk references that an array's manifests hold, before any edit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icechunk_engine.assets import AssetManager
from icechunk_engine.columns.chunk_refs import ChunkRefs, concat
from icechunk_engine.columns.tables import U32
from icechunk_engine.format.nodes import ManifestRef, Node


def extents_of(manifests: Sequence[ManifestRef], ndim: int) -> U32:
    """Return the extents of several manifests as ``uint32 (m, ndim, 2)``."""
    return np.array([ref.extents for ref in manifests], np.uint32).reshape(len(manifests), ndim, 2)


def load_chunk_refs(node: Node, assets: AssetManager) -> ChunkRefs:
    """Fetch an array's manifests and return the references that lie inside its current grid, sorted by index."""
    assert node.shape is not None
    ndim = node.shape.ndim
    if not node.manifests:
        return ChunkRefs.empty(ndim)
    loaded = assets.manifests([ref.manifest_id for ref in node.manifests])
    refs = concat([manifest.refs(node.node_id, ndim) for manifest in loaded])
    if any(
        stop > n for ref in node.manifests for (_, stop), n in zip(ref.extents, node.shape.num_chunks, strict=False)
    ):
        refs = refs.take(refs.within((0,) * ndim, node.shape.num_chunks))
    return refs.latest()
