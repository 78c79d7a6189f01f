"""Finding the references of an array's chunks: in the edits first, then in the manifests.

The extents of an array's manifests do not overlap, so at most one manifest can hold a chunk. Once that manifest is in
memory, a lookup is arithmetic on columns.
"""

from __future__ import annotations

import numpy as np

from icechunk_engine._runtime.locks import MemoryLock
from icechunk_engine.assets import AssetManager, LoadedManifest
from icechunk_engine.columns.chunk_refs import DELETED, ChunkRef, ChunkRefs, concat
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.format.nodes import ManifestRef, Node
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.stored_chunk_refs import extents_of, load_chunk_refs


class ArrayReader:
    """Looks up chunk references of one array. Valid until the next edit of a node.

    Parameters
    ----------
    node
        The array, with its current metadata.
    assets
        Fetches manifests.
    changes, lock
        The edits, consulted at each lookup, and the lock that guards them.
    """

    __slots__ = ("_assets", "_changes", "_extents", "_lock", "_manifests", "grid", "ndim", "node")

    def __init__(self, node: Node, assets: AssetManager, changes: ChangeSet, lock: MemoryLock) -> None:
        assert node.shape is not None
        self.node = node
        self.grid = node.shape.num_chunks
        self.ndim = len(self.grid)
        self._assets = assets
        self._changes = changes
        self._lock = lock
        self._manifests = node.manifests
        self._extents = extents_of(node.manifests, self.ndim) if len(node.manifests) > 4 else None

    def contains(self, index: ChunkIndex) -> bool:
        """Return True if an index has the rank of the array and lies inside its chunk grid."""
        if len(index) != self.ndim:
            return False
        for position, n_chunks in zip(index, self.grid, strict=True):  # noqa: SIM110 (twice as fast as all())
            if not 0 <= position < n_chunks:
                return False
        return True

    def require(self, index: ChunkIndex) -> None:
        """Raise InvalidInputError (``invalid-chunk-index``) unless the array has a chunk at this index."""
        if not self.contains(index):
            raise InvalidInputError(
                f"invalid chunk index: chunk {index} is not in the chunk grid {self.grid} of array "
                f"{self.node.path!r}; resize the array first, or correct the index",
                ErrorKind.INVALID_CHUNK_INDEX,
            )

    def locate(self, index: ChunkIndex) -> ChunkRef | None:
        """Return the reference of a chunk; None if it does not exist, and so reads as the fill value."""
        found = self._edited_or_manifest(index)
        if not isinstance(found, ManifestRef):
            return found
        return self._stored(self._assets.manifest(found.manifest_id), index)

    async def locate_async(self, index: ChunkIndex) -> ChunkRef | None:
        """Async twin of :meth:`locate`. Suspends only to fetch a manifest."""
        found = self._edited_or_manifest(index)
        if not isinstance(found, ManifestRef):
            return found
        manifest = self._assets.cached_manifest(found.manifest_id)
        return self._stored(manifest or await self._assets.manifest_async(found.manifest_id), index)

    def _edited_or_manifest(self, index: ChunkIndex) -> ChunkRef | ManifestRef | None:
        """Return the edited reference of a chunk, or the manifest that may hold it; None if neither exists."""
        if not self.contains(index):
            return None
        if self.node.node_id in self._changes.chunks:
            with self._lock:
                edits = self._changes.chunks.get(self.node.node_id)
                edited = None if edits is None else edits.find(index)
            if edited is not None:
                return None if edited.kind == DELETED else edited
        return self._manifest_of(index)

    def _stored(self, manifest: LoadedManifest, index: ChunkIndex) -> ChunkRef | None:
        refs, finder = manifest.finder(self.node.node_id, self.ndim)
        row = finder.find(index)
        return refs.row(row) if row >= 0 else None

    def _manifest_of(self, index: ChunkIndex) -> ManifestRef | None:
        if self._extents is not None:
            point = np.asarray(index, np.int64)
            hits = ((self._extents[:, :, 0] <= point) & (self._extents[:, :, 1] > point)).all(axis=1)
            first = int(hits.argmax())
            return self._manifests[first] if hits[first] else None
        for manifest_ref in self._manifests:
            for position, (start, stop) in zip(index, manifest_ref.extents, strict=False):
                if not start <= position < stop:
                    break
            else:
                return manifest_ref
        return None


def refs_with_edits(node: Node, edits: ChunkRefs | None, assets: AssetManager) -> ChunkRefs:
    """Return all references of an array, edits included, sorted by index.

    Parameters
    ----------
    edits
        Edits of the array as columns, one row per chunk; None if there are none.
    """
    refs = load_chunk_refs(node, assets)
    if edits is None:
        return refs
    assert node.shape is not None
    edits = edits.take(edits.within((0,) * edits.ndim, node.shape.num_chunks))
    merged = concat([refs, edits]).latest()
    return merged.take(merged.kinds != DELETED)
