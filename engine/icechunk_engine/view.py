"""Reading the hierarchy as a session sees it: one snapshot ⊕ a change set.

Everything is found in memory once the snapshot and the manifests concerned are there; both are shared by all views of
one place in a process.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icechunk_engine import paths
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.assets import AssetManager
from icechunk_engine.chunk_refs import VIRTUAL, ChunkRef, ChunkRefs, ChunkType
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import NodeNotFoundError
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.snapshot import Snapshot
from icechunk_engine.ids import SnapshotId
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction import chunks as chunk_io
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.hierarchy import child_names, children, find_node, get_array, subtree
from icechunk_engine.virtual import containers as container_rules
from icechunk_engine.virtual.resolver import VirtualResolver

if TYPE_CHECKING:
    from icechunk_engine.session import Session
    from icechunk_engine.store import IcechunkStore


_BATCH_NODES = 256
_BATCH_REFS = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryContext:
    """What every session of one opened repository shares."""

    assets: AssetManager
    config: RepositoryConfig
    resolver: VirtualResolver
    default_commit_metadata: Mapping[str, Any]
    make_store: Callable[[Session], IcechunkStore]
    """The store class; handed in because the store is built on the session, not the session on the store."""


class SnapshotView:
    """Lookups in one snapshot with the edits of ``_changes`` on top."""

    def __init__(self, context: RepositoryContext, snapshot_id: SnapshotId) -> None:
        self._context = context
        self._snapshot_id = snapshot_id
        self._changes = ChangeSet()
        self._reset_caches()

    def _reset_caches(self) -> None:
        self._lock = threading.RLock()
        self._readers: dict[str, chunk_io.ArrayReader] = {}

    @property
    def snapshot_id(self) -> str:
        """Id of the base snapshot."""
        return str(self._snapshot_id)

    @property
    def config(self) -> RepositoryConfig:
        """Configuration of the repository; change it with :meth:`Repository.reopen`."""
        return self._context.config

    @property
    def storage_waits(self) -> bool:
        """True when reading native chunks waits for a network."""
        return self._context.assets.storage.waits

    @property
    def storage_identity(self) -> str:
        """Where the repository is."""
        return self._context.assets.storage.identity

    @property
    def nodes_wait(self) -> bool:
        """True when looking up a node would wait for a network."""
        assets = self._context.assets
        return assets.storage.waits and not assets.has_snapshot(self._snapshot_id)

    def load_nodes(self) -> None:
        """Fetch what nodes are looked up in, unless it is there."""
        self._base()

    # --- nodes -------------------------------------------------------------------------------------------------

    def _base(self) -> Snapshot:
        return self._context.assets.snapshot(self._snapshot_id)

    def get_node(self, path: str) -> Node | None:
        """The group or array at a canonical path, None if there is none."""
        return find_node(self._base().nodes, self._changes, path)

    def get_node_id(self, path: str) -> str:
        """The id that a node keeps for its whole life, moves included. Raises NodeNotFoundError."""
        node = self.get_node(paths.normalize(path))
        if node is None:
            raise NodeNotFoundError(f"no group or array at {path!r}")
        return str(node.node_id)

    def children(self, path: str) -> list[Node]:
        """Nodes directly below a path, by name."""
        with self._lock:
            return children(self._base().nodes, self._changes, path)

    def child_names(self, path: str) -> list[str]:
        """Names of what lies directly below a path, by name; also of groups that have members but no document."""
        with self._lock:
            return child_names(self._base().nodes, self._changes, path)

    def list_nodes(self, path: str = paths.ROOT) -> Iterator[Node]:
        """The node at a path and all below it, parents first, siblings by name."""
        with self._lock:
            return subtree(self._base().nodes, self._changes, path)

    def read_metadata(self, path: str) -> bytes | None:
        """The metadata document of a node, None if there is no node."""
        node = self.get_node(path)
        return None if node is None else node.user_data

    # --- chunks ------------------------------------------------------------------------------------------------

    def array_reader(self, path: str) -> chunk_io.ArrayReader | None:
        """Chunk lookups of the array at a canonical path; None when there is no array.

        The reader is valid until the session's next edit of a node; ask again for each operation.
        """
        reader = self._readers.get(path)
        if reader is None:
            with self._lock:
                node = self.get_node(path)
                if node is None or not node.is_array:
                    return None
                reader = chunk_io.ArrayReader(node, self._context.assets, self._changes)
                self._readers[path] = reader
        return reader

    def _array_reader(self, path: str) -> chunk_io.ArrayReader:
        reader = self.array_reader(path)
        if reader is None:
            get_array(self._base().nodes, self._changes, path)  # raises the typed error
            raise NodeNotFoundError(f"no array at {path!r}")
        return reader

    def locate_chunk(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        """Reference of a chunk, None when it was never written. May fetch one manifest."""
        reader = self.array_reader(path)
        return None if reader is None else reader.locate(index)

    def fetch_chunk(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        """Bytes ``start:stop`` of a chunk, within ``0 … ref.length``."""
        return chunk_io.fetch(ref, start, stop, self._context.assets, self._context.resolver)

    @property
    def chunks_may_wait(self) -> bool:
        """True when some chunk, native or virtual, may have to be read through a network."""
        return self.storage_waits or self._context.resolver.may_wait

    def fetch_waits(self, ref: ChunkRef) -> bool:
        """True when :meth:`fetch_chunk` would wait for a network."""
        return chunk_io.fetch_waits(ref, self._context.assets, self._context.resolver)

    def absolute_location(self, location: str) -> str:
        """URL of a virtual location: ``vcc://name/…`` with its container's prefix, any other as it is."""
        if not location.startswith("vcc://"):
            return location
        return container_rules.resolve_location(location, self._context.resolver.containers)[0]

    def chunk_refs(self, path: str) -> ChunkRefs:
        """All references of an array, sorted by index: manifests ⊕ edits. Raises NodeNotFoundError."""
        with self._lock:
            node = self._array_reader(paths.normalize(path)).node
            return chunk_io.current_refs(node, self._context.assets, self._changes)

    def batches(self, nodes: Iterable[Node]) -> Iterator[list[Node]]:
        """The nodes, as many at a time as :meth:`load_manifests` should be given: those of few references."""
        counts = self._base().manifest_files.counts()
        batch: list[Node] = []
        num_refs = 0
        for node in nodes:
            added = sum([counts.get(ref.manifest_id.raw, 0) for ref in node.manifests])
            if batch and (len(batch) == _BATCH_NODES or num_refs + added > _BATCH_REFS):
                yield batch
                batch, num_refs = [], 0
            batch.append(node)
            num_refs += added
        if batch:
            yield batch

    def load_manifests(self, nodes: Iterable[Node]) -> None:
        """Fetch the manifests of some arrays together, so that :meth:`chunk_refs` finds them in memory."""
        wanted = {ref.manifest_id: None for node in nodes for ref in node.manifests}
        self._context.assets.manifests(list(wanted))

    async def chunk_coordinates(self, array_path: str, batch_size: int = 1000) -> AsyncIterator[tuple[int, ...]]:
        """Indices of all chunks that are there, in order.

        Parameters
        ----------
        batch_size
            How many are turned into tuples at a time.
        """
        indices = (await async_twin(self.chunk_refs)(array_path)).indices
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            # zip makes the tuples quickest, but of no columns it would make none.
            for index in zip(*batch.T.tolist(), strict=True) if batch.shape[1] else [()] * len(batch):
                yield index

    def chunk_type(self, array_path: str, chunk_coordinates: Sequence[int]) -> ChunkType:
        """Where a chunk's bytes are.

        Raises
        ------
        NodeNotFoundError
            No array there.
        """
        ref = self._array_reader(paths.normalize(array_path)).locate(tuple(chunk_coordinates))
        return ChunkType.uninitialized if ref is None else ChunkType(ref.kind)

    chunk_type_async = async_twin(chunk_type)

    def all_virtual_chunk_locations(self) -> list[str]:
        """Distinct locations of all virtual chunks, in order of array path and first chunk."""
        found: dict[str, None] = {}
        for batch in self.batches([node for node in self.list_nodes() if node.is_array]):
            self.load_manifests(batch)
            for node in batch:
                refs = self.chunk_refs(node.path)
                codes = refs.location_codes[refs.kinds == VIRTUAL]
                _, first = np.unique(codes, return_index=True)
                found.update(dict.fromkeys(refs.locations.take(codes[np.sort(first)]).texts()))
        return list(found)

    all_virtual_chunk_locations_async = async_twin(all_virtual_chunk_locations)
    get_node_id_async = async_twin(get_node_id)
