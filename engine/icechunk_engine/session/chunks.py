"""Find a chunk's reference, then fetch its bytes.

Finding is pure arithmetic on columns once the array's manifests are in memory: change set first, then the one
manifest whose extents contain the chunk. Fetching is one ranged read of a native or virtual object, or a slice of an
inline payload.
"""

from __future__ import annotations

import logging

import numpy as np

from icechunk_engine._runtime.locks import MemoryLock
from icechunk_engine.assets import AssetManager, LoadedManifest
from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, ChunkRef, ChunkRefs, concat
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError
from icechunk_engine.format import layout
from icechunk_engine.format.nodes import ManifestRef, Node
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.stored_chunk_refs import extents_of, load_chunk_refs
from icechunk_engine.virtual.resolver import VirtualResolver

_LOG = logging.getLogger(__name__)


class ArrayReader:
    """Chunk lookups in one array, with what does not change between two edits of its node prepared once.

    Parameters
    ----------
    node
        The array, in its present form.
    assets
        Where manifests come from.
    changes, lock
        The session's change set, asked at each lookup, and the lock that guards it.
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
        """True when the index has the array's rank and lies inside its chunk grid."""
        if len(index) != self.ndim:
            return False
        for position, n_chunks in zip(index, self.grid, strict=True):  # noqa: SIM110 (twice as fast as all())
            if not 0 <= position < n_chunks:
                return False
        return True

    def require(self, index: ChunkIndex) -> None:
        """Raise InvalidInputError (``invalid-chunk-index``) for an index of the wrong rank or outside the grid."""
        if not self.contains(index):
            raise InvalidInputError(
                f"invalid chunk index: chunk {index} is not in the chunk grid {self.grid} of array "
                f"{self.node.path!r}; resize the array first, or correct the index",
                ErrorKind.INVALID_CHUNK_INDEX,
            )

    def locate(self, index: ChunkIndex) -> ChunkRef | None:
        """The reference of a chunk, None if it is not there (reads as fill value) or outside the grid."""
        found = self._edited_or_manifest(index)
        if not isinstance(found, ManifestRef):
            return found
        return self._stored(self._assets.manifest(found.manifest_id), index)

    async def locate_async(self, index: ChunkIndex) -> ChunkRef | None:
        """:meth:`locate` for an event loop: in place, unless a manifest must be fetched."""
        found = self._edited_or_manifest(index)
        if not isinstance(found, ManifestRef):
            return found
        manifest = self._assets.cached_manifest(found.manifest_id)
        return self._stored(manifest or await self._assets.manifest_async(found.manifest_id), index)

    def _edited_or_manifest(self, index: ChunkIndex) -> ChunkRef | ManifestRef | None:
        """What the change set says of a chunk, else the manifest that may hold it; None if it is nowhere."""
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
    """All references of an array as a session sees it, sorted by index, no deletions.

    Parameters
    ----------
    edits
        Its edits as columns, one row a chunk; None when there are none.
    """
    refs = load_chunk_refs(node, assets)
    if edits is None:
        return refs
    assert node.shape is not None
    edits = edits.take(edits.within((0,) * edits.ndim, node.shape.num_chunks))
    merged = concat([refs, edits]).latest()
    return merged.take(merged.kinds != DELETED)


def fetch(ref: ChunkRef, start: int, stop: int, assets: AssetManager, resolver: VirtualResolver) -> bytes:
    """Bytes ``start:stop`` of a chunk, ``0 <= start <= stop <= ref.length``.

    Raises
    ------
    StorageError
        The object is missing, shorter than the reference says, or was changed since it was referenced.
    InvalidInputError
        No container for a virtual chunk, or one that was not authorised.
    """
    if start == stop:
        return b""
    if ref.kind == INLINE:
        assert ref.inline is not None
        return ref.inline if stop - start == ref.length else ref.inline[start:stop]
    try:
        return _read(ref, start, stop, assets, resolver)
    except (MemoryError, OverflowError) as error:
        # The file of the chunk may be short: what is stored here is only what somebody says of it.
        raise StorageError(
            f"{stop - start} bytes of a chunk from byte {ref.offset + start} on cannot be read ({error!r}): there is "
            f"not so much memory, or the reference is damaged. Read fewer chunks at a time; if it stays so, write the "
            f"chunk again",
            ErrorKind.INVALID_OBJECT_SIZE,
        ) from None


def _read(ref: ChunkRef, start: int, stop: int, assets: AssetManager, resolver: VirtualResolver) -> bytes:
    if ref.kind == NATIVE:
        assert ref.chunk_id is not None
        try:
            return assets.chunk(ref.chunk_id, ref.offset + start, ref.offset + stop)
        except StorageError as error:
            if error.kind is not ErrorKind.OBJECT_NOT_FOUND:
                raise
            raise StorageError(
                f"object not found: the chunk {layout.chunk_key(ref.chunk_id)} is missing. It was removed by "
                f"garbage collection with too late a cutoff, or the repository was copied incompletely. Restore it "
                f"from a copy",
                ErrorKind.OBJECT_NOT_FOUND,
            ) from None
    return resolver.fetch(ref, start, stop)


def chunk_is_remote(ref: ChunkRef, assets: AssetManager, resolver: VirtualResolver) -> bool:
    """True when :func:`fetch` would wait for a network."""
    if ref.kind == INLINE:
        return False
    return assets.storage.is_remote if ref.kind == NATIVE else resolver.is_remote(ref)
