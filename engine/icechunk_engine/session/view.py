"""Reading the hierarchy as a session sees it: one snapshot ⊕ a change set.

Everything is found in memory once the snapshot and the manifests concerned are there; both are shared by all views of
one place in a process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icechunk_engine import paths
from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.assets import AssetManager
from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRef, ChunkRefs, ChunkType
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import ErrorKind, FormatError, NodeNotFoundError
from icechunk_engine.format.nodes import Node, NodeTable
from icechunk_engine.format.snapshot import Snapshot
from icechunk_engine.format.zarr_metadata import require_shallow
from icechunk_engine.ids import SnapshotId
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.session import chunks as chunk_io
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


class ViewState:
    """A base snapshot and the edits on top of it. A rebase, merge or commit puts another state in its place.

    So whoever holds a state sees a base and edits that belong together, also while another thread rebases.

    Attributes
    ----------
    snapshot_id
        Of the base.
    changes
        Edits, made in place under the view's lock for as long as the view has this state.
    readers
        Of arrays by path, each valid until the next edit of a node.
    """

    __slots__ = ("base", "changes", "readers", "snapshot_id")

    def __init__(self, snapshot_id: SnapshotId, changes: ChangeSet, base: Snapshot | None = None) -> None:
        self.snapshot_id = snapshot_id
        self.changes = changes
        self.base = base
        self.readers: dict[str, chunk_io.ArrayReader] = {}

    @property
    def nodes(self) -> NodeTable:
        """Nodes of the base, once it is there."""
        assert self.base is not None
        return self.base.nodes

    def copy(self) -> ViewState:
        """The same base with a copy of the edits."""
        return ViewState(self.snapshot_id, self.changes.copy(), self.base)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.snapshot_id, self.changes)


class SnapshotView:
    """Lookups in one snapshot with edits on top. Thread-safe; files are fetched without the lock."""

    def __init__(self, context: RepositoryContext, snapshot_id: SnapshotId) -> None:
        self._context = context
        self._state = ViewState(snapshot_id, ChangeSet())
        self._lock = memory_lock()

    @property
    def snapshot_id(self) -> str:
        """Id of the base snapshot."""
        return str(self._state.snapshot_id)

    @property
    def config(self) -> RepositoryConfig:
        """Configuration of the repository; change it with :meth:`Repository.reopen`."""
        return self._context.config

    @property
    def storage_is_remote(self) -> bool:
        """True when reading native chunks waits for a network."""
        return self._context.assets.storage.is_remote

    @property
    def storage_identity(self) -> str:
        """Where the repository is."""
        return self._context.assets.storage.identity

    # --- the base ----------------------------------------------------------------------------------------------

    def _loaded(self) -> ViewState:
        """The present state, with its base fetched. Not to be called under the lock."""
        state = self._state
        if state.base is None:
            state.base = self._context.assets.snapshot(state.snapshot_id)
        return state

    def _base(self) -> Snapshot:
        base = self._loaded().base
        assert base is not None
        return base

    @property
    def nodes_are_remote(self) -> bool:
        """True when looking up a node would wait for a network."""
        return self._state.base is None and self._context.assets.storage.is_remote

    async def load_nodes(self) -> None:
        """Fetch what nodes are looked up in, unless it is there."""
        state = self._state
        if state.base is None:
            state.base = await self._context.assets.snapshot_async(state.snapshot_id)

    # --- nodes -------------------------------------------------------------------------------------------------

    def get_node(self, path: str) -> Node | None:
        """The group or array at a canonical path, None if there is none."""
        state = self._loaded()
        with self._lock:
            return find_node(state.nodes, state.changes, path)

    def get_node_id(self, path: str) -> str:
        """The id that a node keeps for its whole life, moves included. Raises NodeNotFoundError."""
        node = self.get_node(paths.normalize(path))
        if node is None:
            raise NodeNotFoundError(f"no group or array at {path!r}")
        return str(node.node_id)

    def children(self, path: str) -> list[Node]:
        """Nodes directly below a path, by name."""
        state = self._loaded()
        with self._lock:
            return children(state.nodes, state.changes, path)

    def child_names(self, path: str) -> list[str]:
        """Names of what lies directly below a path, by name; also of groups that have members but no document."""
        state = self._loaded()
        with self._lock:
            return child_names(state.nodes, state.changes, path)

    def list_nodes(self, path: str = paths.ROOT) -> Iterator[Node]:
        """The node at a path and all below it, parents first, siblings by name."""
        state = self._loaded()
        with self._lock:
            return subtree(state.nodes, state.changes, path)

    def read_metadata(self, path: str) -> bytes | None:
        """The metadata document of a node, None if there is no node. Raises FormatError where parsing it is unsafe."""
        node = self.get_node(path)
        if node is None:
            return None
        try:
            require_shallow(node.user_data)
        except ValueError as error:
            raise FormatError(
                f"the zarr.json of {path} would exhaust the stack of whoever parses it: {error}. Go back to an "
                f"earlier snapshot, or delete the node",
                ErrorKind.BAD_METADATA,
            ) from None
        return node.user_data

    # --- chunks ------------------------------------------------------------------------------------------------

    def array_reader(self, path: str) -> chunk_io.ArrayReader | None:
        """Chunk lookups of the array at a canonical path; None when there is no array.

        The reader is valid until the session's next edit of a node; ask again for each operation.
        """
        state = self._state
        reader = state.readers.get(path)
        return self._new_reader(self._loaded(), path) if reader is None else reader

    def _new_reader(self, state: ViewState, path: str) -> chunk_io.ArrayReader | None:
        """The reader of an array, kept with the state, which is loaded."""
        with self._lock:
            reader = state.readers.get(path)
            if reader is None:
                node = find_node(state.nodes, state.changes, path)
                if node is None or not node.is_array:
                    return None
                reader = chunk_io.ArrayReader(node, self._context.assets, state.changes, self._lock)
                state.readers[path] = reader
            return reader

    def _array_reader(self, path: str) -> chunk_io.ArrayReader:
        reader = self.array_reader(path)
        if reader is None:
            state = self._loaded()
            with self._lock:
                get_array(state.nodes, state.changes, path)  # raises the typed error
            raise NodeNotFoundError(f"no array at {path!r}")
        return reader

    def locate_chunk(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        """Reference of a chunk, None when it was never written. May fetch one manifest."""
        reader = self.array_reader(path)
        return None if reader is None else reader.locate(index)

    async def locate_chunk_async(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        """:meth:`locate_chunk` for an event loop."""
        if self.nodes_are_remote:
            await self.load_nodes()
        reader = self.array_reader(path)
        return None if reader is None else await reader.locate_async(index)

    def fetch_chunk(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        """Bytes ``start:stop`` of a chunk, within ``0 … ref.length``."""
        return chunk_io.fetch(ref, start, stop, self._context.assets, self._context.resolver)

    @property
    def chunks_may_be_remote(self) -> bool:
        """True when some chunk, native or virtual, may have to be read through a network."""
        return self.storage_is_remote or self._context.resolver.may_be_remote

    def chunk_is_remote(self, ref: ChunkRef) -> bool:
        """True when :meth:`fetch_chunk` would wait for a network."""
        return chunk_io.chunk_is_remote(ref, self._context.assets, self._context.resolver)

    def absolute_location(self, location: str) -> str:
        """URL of a virtual location: ``vcc://name/…`` with its container's prefix, any other as it is."""
        if not location.startswith("vcc://"):
            return location
        return container_rules.resolve_location(location, self._context.resolver.containers)[0]

    def chunk_refs(self, path: str) -> ChunkRefs:
        """All references of an array, sorted by index: manifests ⊕ edits. Raises NodeNotFoundError."""
        state = self._loaded()
        with self._lock:
            node = get_array(state.nodes, state.changes, paths.normalize(path))
            edits = state.changes.chunks.get(node.node_id)
            columns = edits.collapse() if edits else None
        return chunk_io.refs_with_edits(node, columns, self._context.assets)

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
        """Distinct URLs of all virtual chunks, in order of array path and first chunk."""
        containers = self._context.resolver.containers
        found: dict[str, None] = {}
        for batch in self.batches([node for node in self.list_nodes() if node.is_array]):
            self.load_manifests(batch)
            for node in batch:
                refs = self.chunk_refs(node.path)
                codes = refs.location_codes[refs.kinds == VIRTUAL]
                _, first = np.unique(codes, return_index=True)
                locations = refs.locations.take(codes[np.sort(first)])
                found.update(dict.fromkeys(container_rules.expand_names(locations, containers)))
        return list(found)

    all_virtual_chunk_locations_async = async_twin(all_virtual_chunk_locations)
    get_node_id_async = async_twin(get_node_id)
