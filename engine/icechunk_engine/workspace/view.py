"""Reading the hierarchy: one snapshot with edits on top of it.

Every lookup takes one :class:`~.state.WorkspaceState`, fetches what it needs without the lock, and looks it up under
the lock. Once the snapshot and the manifests are in memory, nothing waits. All views of one place in a process share
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from icechunk_engine import paths
from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRef, ChunkRefs
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.errors import ErrorKind, FormatError, NodeNotFoundError
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.zarr_metadata import require_shallow
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction.diff import Diff, diff_of_changes
from icechunk_engine.transaction.hierarchy import child_names, children, find_node, get_array, subtree
from icechunk_engine.virtual import containers as container_rules
from icechunk_engine.workspace.array_reader import ArrayReader, refs_with_edits
from icechunk_engine.workspace.chunk_bytes import chunk_is_remote, fetch_chunk
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.exchange import Exchange
from icechunk_engine.workspace.state import WorkspaceState

_BATCH_NODES = 256
_BATCH_REFS = 2**18


class SnapshotView:
    """Lookups in one snapshot with edits on top. Thread-safe; fetches files without holding the lock.

    Attributes
    ----------
    context
        The repository.
    state
        The current base and edits. Take it once for each lookup: another thread may replace it.
    exchange
        What is exchanged with other processes; None if nothing is.
    lock
        Guards the state and its edits. Never hold it across I/O (:mod:`icechunk_engine._runtime.locks`).
    """

    def __init__(self, context: RepositoryContext, state: WorkspaceState) -> None:
        self.context = context
        self.state = state
        self.lock = memory_lock()
        self.exchange: Exchange | None = None

    @property
    def snapshot_id(self) -> str:
        """Id of the base snapshot."""
        return str(self.state.snapshot_id)

    @property
    def config(self) -> RepositoryConfig:
        """Configuration of the repository."""
        return self.context.config

    @property
    def storage_is_remote(self) -> bool:
        """True if reading native chunks waits for a network."""
        return self.context.assets.storage.is_remote

    @property
    def storage_identity(self) -> str:
        """Where the repository is."""
        return self.context.assets.storage.identity

    @property
    def has_changes(self) -> bool:
        """True if a commit would change something."""
        return not self.state.changes.is_empty

    # --- other processes ---------------------------------------------------------------------------------------

    def look(self, *, for_chunks: bool = True) -> None:
        """Bring in the edits of other processes, if there are any to expect. Call it before an operation that reads.

        Do not call this on an event loop if the storage is remote.
        """
        if self.exchange is not None:
            self.exchange.look(for_chunks=for_chunks)

    def look_again(self) -> bool:
        """Bring in the edits of other processes after something was missing. Returns True if there were any."""
        return self.exchange is not None and self.exchange.look_again()

    def report(self) -> None:
        """Tell other processes about the edits, if they must know. Call it after an operation that edits."""
        if self.exchange is not None:
            self.exchange.report()

    # --- the base ----------------------------------------------------------------------------------------------

    def loaded_state(self) -> WorkspaceState:
        """Return the current state with its base fetched. Do not call this under the lock."""
        state = self.state
        if state.base is None:
            state.base = self.context.assets.snapshot(state.snapshot_id)
        return state

    def copy_state(self) -> WorkspaceState:
        """Return a copy of the current state; later edits do not change it. The base may not be fetched yet."""
        with self.lock:
            return self.state.copy()

    async def fetch_remote_snapshot(self) -> None:
        """Fetch the base for an event loop, if looking up a node would otherwise wait for a network."""
        state = self.state
        if state.base is None and self.context.assets.storage.is_remote:
            state.base = await self.context.assets.snapshot_async(state.snapshot_id)

    # --- nodes -------------------------------------------------------------------------------------------------

    def get_node(self, path: str) -> Node | None:
        """Return the group or array at a canonical path, or None."""
        state = self.loaded_state()
        with self.lock:
            return find_node(state.nodes, state.changes, path)

    def children(self, path: str) -> list[Node]:
        """Return the nodes directly below a path, by name."""
        state = self.loaded_state()
        with self.lock:
            return children(state.nodes, state.changes, path)

    def child_names(self, path: str) -> list[str]:
        """Return the sorted names directly below a path, including groups that have members but no document."""
        state = self.loaded_state()
        with self.lock:
            return child_names(state.nodes, state.changes, path)

    def list_nodes(self, path: str = paths.ROOT) -> Iterator[Node]:
        """Return the node at a path and all nodes below it, parents first, siblings by name."""
        state = self.loaded_state()
        with self.lock:
            return subtree(state.nodes, state.changes, path)

    def read_metadata(self, path: str) -> bytes | None:
        """Return the metadata document of a node, or None. Raises FormatError if parsing it would be unsafe."""
        node = self.get_node(path)
        if node is None:
            return None
        try:
            require_shallow(node.user_data)
        except ValueError as error:
            raise FormatError(
                f"the zarr.json of {path} is nested so deeply that parsing it would exhaust the stack: {error}. Go "
                f"back to an earlier snapshot, or delete the node",
                ErrorKind.BAD_METADATA,
            ) from None
        if self.exchange is not None:
            self.exchange.note_document_read(node)
        return node.user_data

    def diff(self) -> Diff:
        """Return the uncommitted edits."""
        state = self.loaded_state()
        with self.lock:
            return diff_of_changes(state.changes, state.nodes)

    # --- chunks ------------------------------------------------------------------------------------------------

    def array_reader(self, path: str) -> ArrayReader | None:
        """Return the reader of the array at a canonical path; None if there is no array.

        It is valid until the next edit of a node. Ask for it again in each operation.
        """
        state = self.state
        reader = state.readers.get(path)
        return self._new_reader(self.loaded_state(), path) if reader is None else reader

    def _new_reader(self, state: WorkspaceState, path: str) -> ArrayReader | None:
        """Return the reader of an array and keep it with the state, whose base must be loaded."""
        with self.lock:
            reader = state.readers.get(path)
            if reader is None:
                node = find_node(state.nodes, state.changes, path)
                if node is None or not node.is_array:
                    return None
                reader = ArrayReader(node, self.context.assets, state.changes, self.lock)
                state.readers[path] = reader
            return reader

    def require_array_reader(self, path: str) -> ArrayReader:
        """Return the reader of an array. Raises NodeNotFoundError, or InvalidInputError for a group."""
        reader = self.array_reader(path)
        if reader is None:
            state = self.loaded_state()
            with self.lock:
                get_array(state.nodes, state.changes, path)  # raises the error that fits
            raise NodeNotFoundError(f"no array at {path!r}")
        return reader

    def locate_chunk(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        """Return the reference of a chunk; None if it was never written. May fetch one manifest."""
        reader = self.array_reader(path)
        return None if reader is None else self._noted(reader, index, reader.locate(index))

    def _noted(self, reader: ArrayReader, index: ChunkIndex, ref: ChunkRef | None) -> ChunkRef | None:
        if self.exchange is not None:
            self.exchange.note_chunk_read(reader.node, index, ref)
        return ref

    async def locate_chunk_async(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        """Async twin of :meth:`locate_chunk`."""
        if self.state.base is None:
            await self.fetch_remote_snapshot()
        reader = self.array_reader(path)
        return None if reader is None else self._noted(reader, index, await reader.locate_async(index))

    def fetch_chunk(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        """Return bytes ``start:stop`` of a chunk; ``0 <= start <= stop <= ref.length``."""
        return fetch_chunk(ref, start, stop, self.context.assets, self.context.resolver)

    @property
    def chunks_may_be_remote(self) -> bool:
        """True if reading some chunk, native or virtual, may wait for a network."""
        return self.storage_is_remote or self.context.resolver.may_be_remote

    def chunk_is_remote(self, ref: ChunkRef) -> bool:
        """Return True if :meth:`fetch_chunk` would wait for a network."""
        return chunk_is_remote(ref, self.context.assets, self.context.resolver)

    def absolute_location(self, location: str) -> str:
        """Return the URL of a virtual location, with ``vcc://name/`` replaced by the prefix of that container."""
        if not location.startswith("vcc://"):
            return location
        return container_rules.resolve_location(location, self.context.resolver.containers)[0]

    def chunk_refs(self, path: str) -> ChunkRefs:
        """Return all references of an array, edits included, sorted by index. Raises NodeNotFoundError."""
        state = self.loaded_state()
        with self.lock:
            node = get_array(state.nodes, state.changes, paths.normalize(path))
            edits = state.changes.chunks.get(node.node_id)
            columns = edits.collapse() if edits else None
        return refs_with_edits(node, columns, self.context.assets)

    def virtual_locations(self) -> list[str]:
        """Return the distinct URLs of all virtual chunks, ordered by array path and first chunk."""
        containers = self.context.resolver.containers
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

    def batches(self, nodes: Iterable[Node]) -> Iterator[list[Node]]:
        """Group nodes into batches for :meth:`load_manifests`. Each holds a bounded number of nodes and references."""
        base = self.loaded_state().base
        assert base is not None
        counts = base.manifest_files.counts()
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
        """Fetch the manifests of several arrays at once, so that :meth:`chunk_refs` finds them in memory."""
        wanted = {ref.manifest_id: None for node in nodes for ref in node.manifests}
        self.context.assets.manifests(list(wanted))
