"""Editing the hierarchy: node metadata, chunks, chunk references and moves go into the change set.

Large chunks are stored before the call returns; everything else stays in memory until a commit. No edit touches
what is committed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import paths
from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, ChunkRef, ChunkRefs
from icechunk_engine.errors import AlreadyExistsError, ErrorKind, InvalidInputError, SessionStateError
from icechunk_engine.format import layout
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.zarr_metadata import parse_node_metadata, regular_chunk_lengths
from icechunk_engine.ids import ChunkId, NodeId, SnapshotId
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.session import chunks as chunk_io
from icechunk_engine.session.view import RepositoryContext, SnapshotView, ViewState
from icechunk_engine.transaction import node_moves
from icechunk_engine.transaction.change_set import ChunkEdits
from icechunk_engine.transaction.hierarchy import find_node, placement_problem, subtree
from icechunk_engine.transaction.reindex import IndexMap, reindexed, shifted
from icechunk_engine.virtual import containers as container_rules

_NO_CHUNK = ChunkRef(kind=DELETED)


class Workspace(SnapshotView):
    """A view that takes edits or moves; which it may is for the session to say (the methods ``_require_…``).

    An edit is made in three steps: what it needs is fetched without the lock; under the lock it is checked that edits
    are allowed and that the state is still the one that was looked at; then the edit is made.
    """

    def __init__(self, context: RepositoryContext, snapshot_id: SnapshotId) -> None:
        super().__init__(context, snapshot_id)
        # Two states of edits never have one token, also not those of copies that a pickle made.
        self._lineage, self._revision, self._is_copy = uuid.uuid4().hex, 0, False
        self._set_again: dict[str, None] = {}  # nodes whose document was written as it was, for those who wonder

    def _require_writable(self) -> None:
        """Raise unless edits are allowed."""
        raise NotImplementedError

    def _require_rearranging(self) -> None:
        """Raise unless moves are allowed."""
        raise NotImplementedError

    @property
    def read_only(self) -> bool:
        """True when nothing can be written, or not any more."""
        raise NotImplementedError

    def _edit(self, edit: Callable[[ViewState], None], require: Callable[[], None] | None = None) -> None:
        """Call ``edit`` with the present state, its base there, under the lock; it may not wait.

        Not a context manager made of a generator: an interrupt as that is entered or left keeps the lock taken.
        """
        require = require or self._require_writable
        require()
        while True:
            state = self._loaded()
            with self._lock:
                require()
                if state is self._state:
                    try:
                        edit(state)
                    except BaseException as error:
                        if not isinstance(error, Exception):
                            state.changes.rebuild_placement()
                        raise
                    return

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """Take the edits back to where they were if the block raises, unless the session has ended meanwhile.

        What other threads edited since the block began is taken back, too.
        """
        return _AllOrNothing(self)

    def _take_back(self, before: ViewState) -> None:
        with self._lock:
            if not self.read_only:
                self._replace_state(before)

    def _edits_token(self) -> tuple[str, int]:
        return self._lineage, self._revision

    # The methods below are called under the lock.

    def _replace_state(self, state: ViewState) -> None:
        self._state = state
        self._count_edit()

    def _count_edit(self) -> None:
        if self._is_copy:
            self._lineage, self._is_copy = uuid.uuid4().hex, False
        self._revision += 1

    def _touch_structure(self) -> None:
        """Before an edit of nodes rather than after it: an interrupt between the two must not leave stale readers."""
        self._state.readers.clear()
        self._count_edit()

    # --- nodes -------------------------------------------------------------------------------------------------

    def set_metadata(self, path: str, data: bytes) -> None:
        """Create a node, or change the metadata of the one that is there.

        Raises
        ------
        InvalidInputError
            ``bad-metadata`` and its kin: the document is not a Zarr v3 group or array that this format can hold.
        AlreadyExistsError
            ``node-already-exists``: there is a node of the other type; delete it first.
        """
        node_type, shape = parse_node_metadata(data, for_write=True, path=path)
        if shape is not None and not shape.regular:
            open_catalog(self._context.assets).require_irregular_chunks(path)

        def set_node(state: ViewState) -> None:
            base, changes = state.nodes, state.changes
            node = find_node(base, changes, path)
            if node is None:
                refusal = placement_problem(base, changes, path, is_array=shape is not None)
                if refusal is not None:
                    raise InvalidInputError(f"cannot create {path!r}: {refusal}", ErrorKind.NOT_A_GROUP)
                self._touch_structure()
                changes.add_node(Node(node_id=NodeId.random(), path=path, user_data=data, shape=shape))
            elif node.is_array != (shape is not None):
                kind = "array" if node.is_array else "group"
                raise AlreadyExistsError(
                    f"there is a node of type {kind} at {path!r}; delete it before creating one of type {node_type}",
                    ErrorKind.NODE_ALREADY_EXISTS,
                )
            elif node.user_data == data:
                self._set_again[path] = None
            elif shape is not None and node.shape is not None and shape.ndim != node.shape.ndim:
                # Chunks of another rank mean nothing to the new array, so it is another array.
                self._touch_structure()
                changes.delete_node(node)
                changes.add_node(Node(node_id=NodeId.random(), path=path, user_data=data, shape=shape))
            else:
                self._touch_structure()
                changes.update_node(replace(node, user_data=data, shape=shape))

        self._edit(set_node)

    def delete_node(self, path: str) -> None:
        """Remove a node, if it is there: a group with all its members, an array with its chunks."""

        def delete(state: ViewState) -> None:
            node = find_node(state.nodes, state.changes, path)
            if node is not None:
                self._delete(state, [node] if node.is_array else subtree(state.nodes, state.changes, path))

        self._edit(delete)

    def delete_directory(self, path: str) -> None:
        """Remove the node at a path and everything below it, whether or not there is a node at the path itself."""
        self._edit(lambda state: self._delete(state, subtree(state.nodes, state.changes, path)))

    def _delete(self, state: ViewState, nodes: Iterable[Node]) -> None:
        doomed = list(nodes)
        if doomed:
            self._touch_structure()
        for node in doomed:
            state.changes.delete_node(node)

    def delete_all(self) -> None:
        """Remove every node."""
        self.delete_directory(paths.ROOT)

    @operation(lambda self, from_path, to_path: f"moving {from_path} to {to_path}")
    def move(self, from_path: str, to_path: str) -> None:
        """Give a group or array, with all below it, another path. No data is copied, and nodes keep their ids.

        Needs a session made by :meth:`Repository.rearrange_session`.

        Parameters
        ----------
        from_path, to_path
            Absolute paths; a slash at the end does not count. The group above the new path must exist, and nothing
            at the new path.

        Raises
        ------
        SessionStateError
            ``non-rearrange-session``; ``move-into-self-or-descendant``, also for the root;
            ``move-destination-parent-missing``, ``move-destination-parent-not-group``.
        NodeNotFoundError
            Nothing to move.
        AlreadyExistsError
            ``move-wont-overwrite``.
        """
        source, target = node_moves.require_absolute(from_path), node_moves.require_absolute(to_path)

        def move(state: ViewState) -> None:
            moved = state.copy()  # which an interrupt leaves alone: half a move would lose nodes
            node_moves.move(state.nodes, moved.changes, source, target)
            self._replace_state(moved)

        self._edit(move, self._require_rearranging)

    move_async = async_twin(move)

    # --- chunks ------------------------------------------------------------------------------------------------

    def set_chunk(self, path: str, index: ChunkIndex, data: bytes | memoryview) -> None:
        """Write one chunk: into the manifest when small, else as an object, which is stored before this returns.

        Raises
        ------
        InvalidInputError
            ``zero-length-chunk``, ``invalid-chunk-index``, ``not-an-array``.
        NodeNotFoundError
            No array there.
        """
        ref = self.new_chunk(path, index, data)
        self.store_chunk(ref, data)
        self.put_chunk(path, index, ref)

    def new_chunk(self, path: str, index: ChunkIndex, data: bytes | memoryview) -> ChunkRef:
        """The reference that a chunk will have; the first step of :meth:`set_chunk`, which waits for no request.

        The others are :meth:`store_chunk`, which makes one request for a native chunk and none for others, and
        :meth:`put_chunk`.
        """
        self._require_writable()
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if size == 0:
            raise InvalidInputError(
                f"zero-length chunk {index} of {path!r}; delete the chunk instead of writing it empty",
                ErrorKind.ZERO_LENGTH_CHUNK,
            )
        self._array_reader(path).require(index)
        if size <= self._context.assets.config.inline_chunk_threshold_bytes:
            return ChunkRef(kind=INLINE, length=size, inline=bytes(data))
        return ChunkRef(kind=NATIVE, length=size, chunk_id=ChunkId.random())

    def store_chunk(self, ref: ChunkRef, data: bytes | memoryview) -> None:
        """Store the object of a native chunk."""
        if ref.kind == NATIVE:
            assert ref.chunk_id is not None
            key = layout.chunk_key(ref.chunk_id)
            self._context.assets.storage.put(key, data, atomic=False)

    def put_chunk(self, path: str, index: ChunkIndex, ref: ChunkRef) -> None:
        """Let a chunk be what a reference says. Errors as for :meth:`set_chunk`."""
        self._edit_array(path, lambda reader: reader.require(index), lambda edits: edits.set(index, ref))

    def _edit_array(
        self, path: str, require: Callable[[chunk_io.ArrayReader], None], edit: Callable[[ChunkEdits], None]
    ) -> None:
        """Make an edit of chunks, under the lock; ``require`` raises where the array does not allow it."""
        while True:
            reader = self._state.readers.get(path)
            if reader is None:
                self._require_writable()  # before a request is made in vain
                reader = self._array_reader(path)
            require(reader)
            with self._lock:
                self._require_writable()
                if self._state.readers.get(path) is reader:  # else another thread changed the array or its session
                    edit(self._state.changes.edits_of(reader.node))
                    self._count_edit()
                    return

    def set_chunk_ref(self, path: str, index: ChunkIndex, ref: ChunkRef, *, validate_container: bool = True) -> None:
        """Point one chunk at a virtual location. Errors as for :meth:`set_chunk`, and ``invalid-virtual-ref``."""
        self._require_writable()
        self._array_reader(path).require(index)
        location = container_rules.normalize_location(ref.location or "")
        if validate_container:
            container_rules.require_container(location, self._context.resolver.containers)
        if ref.length == 0:
            raise InvalidInputError(
                f"zero-length chunk {index} of {path!r}: the reference is to no bytes; leave the chunk out instead",
                ErrorKind.ZERO_LENGTH_CHUNK,
            )
        self.put_chunk(path, index, replace(ref, location=location))

    def set_chunk_refs(
        self, path: str, refs: ChunkRefs, *, validate_containers: bool = True
    ) -> NDArray[np.bool_] | None:
        """Set many chunk references at once.

        Parameters
        ----------
        refs
            Columns; locations of virtual references are absolute URLs or ``vcc://`` ones.
        validate_containers
            Leave out references whose location is in no container.

        Returns
        -------
        None when all were set, else a mask ``(n,)`` of the rows that were left out.

        Raises
        ------
        InvalidInputError
            ``zero-length-chunk``, ``invalid-chunk-index``, ``invalid-virtual-ref``; nothing was set.
        """
        self._require_writable()
        if bool((refs.lengths[refs.kinds != DELETED] == 0).any()):
            raise InvalidInputError(
                f"zero-length chunk: there are references to no bytes among those for {path!r}; leave those chunks "
                f"out instead",
                ErrorKind.ZERO_LENGTH_CHUNK,
            )
        _require_in_grid(self._array_reader(path), refs)
        refused: NDArray[np.bool_] | None = None
        if len(refs.locations):
            refs, refused = container_rules.checked_refs(
                refs, self._context.resolver.containers, validate=validate_containers
            )
        self._put_refs(path, refs)
        return refused

    def _put_refs(self, path: str, refs: ChunkRefs) -> None:
        self._edit_array(path, lambda reader: _require_in_grid(reader, refs), lambda edits: edits.set_many(refs))

    def delete_chunk(self, path: str, index: ChunkIndex) -> None:
        """Remove a chunk, so that it reads as the fill value; nothing happens outside of arrays and their grids.

        Where no chunk is stored this is an edit all the same: zarr writes a chunk of fill values by deleting it. The
        edit conflicts with another commit's chunk there, and wins over an earlier fork's.
        """
        self._require_writable()
        reader = self.array_reader(path)
        if reader is None or not reader.contains(index):
            return
        if path in self._state.changes.new_nodes and reader.locate(index) is None:
            return  # an array that nobody else has: sparse ones are made without an edit for each empty chunk
        self.put_chunk(path, index, _NO_CHUNK)

    def delete_chunks_under(self, path: str, index_prefix: ChunkIndex) -> None:
        """Remove all chunks whose index starts with a prefix (empty: all of the array)."""
        self._require_writable()
        if self.array_reader(path) is None:
            return
        indices = self.chunk_refs(path).indices
        doomed = indices[(indices[:, : len(index_prefix)] == np.asarray(index_prefix, np.uint32)).all(axis=1)]
        if len(doomed):
            self._put_refs(path, ChunkRefs.build(doomed, DELETED))

    def shift_array(self, array_path: str, chunk_offset: Iterable[int]) -> None:
        """Move all chunks of an array by a number of chunks along each axis.

        Chunks that would leave the grid are dropped, positions left empty read as the fill value; no payload is
        copied.

        Raises
        ------
        InvalidInputError
            ``invalid-array-metadata``: the chunk grid is not regular. ``invalid-chunk-index``: an offset of the
            wrong rank.
        """
        offset = np.asarray(list(chunk_offset), np.int64)

        def shift(reader: chunk_io.ArrayReader, refs: ChunkRefs) -> ChunkRefs:
            if len(offset) != reader.ndim:
                raise InvalidInputError(
                    f"invalid chunk index: array {reader.node.path!r} has rank {reader.ndim}, the offset "
                    f"{tuple(offset.tolist())} does not",
                    ErrorKind.INVALID_CHUNK_INDEX,
                )
            return shifted(refs, offset, reader.grid) if offset.any() else ChunkRefs.empty(reader.ndim)

        self._rearrange_chunks(array_path, shift)

    def reindex_array(
        self,
        array_path: str,
        forward: IndexMap,
        backward: IndexMap | None = None,
    ) -> None:
        """Move chunks of an array to where ``forward`` says; None leaves a chunk where it is.

        Parameters
        ----------
        forward
            Called with each present chunk's index as a list, returns the new one within the grid.
        backward
            Inverse of ``forward``. With it, a position whose source is None or empty is cleared; without it, positions
            that chunks moved away from keep their old chunk unless another one arrives.

        Raises
        ------
        InvalidInputError
            ``invalid-array-metadata``: the chunk grid is not regular. ``invalid-chunk-index``: outside the grid.
        """
        self._rearrange_chunks(array_path, lambda reader, refs: reindexed(refs, forward, backward, reader.require))

    def _rearrange_chunks(
        self, array_path: str, rearranged: Callable[[chunk_io.ArrayReader, ChunkRefs], ChunkRefs]
    ) -> None:
        """Make edits that follow from all present references of an array, as one step."""
        path = paths.normalize(array_path)
        self._require_writable()
        for _ in range(_PATIENT_TRIES):
            reader = self._array_reader(path)
            _require_regular(reader.node)
            before = self._state.changes.revision_of(reader.node)
            edits = rearranged(reader, self.chunk_refs(path))  # may call users' functions: not under the lock
            with self._lock:
                self._require_writable()
                changes = self._state.changes
                if self._state.readers.get(path) is reader and changes.revision_of(reader.node) == before:
                    if len(edits):
                        changes.edits_of(reader.node).set_many(edits)
                        self._count_edit()
                    return
        raise SessionStateError(
            f"other threads wrote chunks of {path!r} all the time while they were to be moved; nothing was moved. Let "
            f"them end first",
            ErrorKind.CONCURRENCY,
        )


class _AllOrNothing:
    """A class, since a generator that an interrupt left behind would take edits back whenever it is collected."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def __enter__(self) -> None:
        with self._workspace._lock:
            self._before = self._workspace._state.copy()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._workspace._take_back(self._before)


_PATIENT_TRIES = 100
"""Moves of chunks that begin anew because another thread wrote to the same array."""


def _require_regular(node: Node) -> None:
    # The document decides: snapshots keep the number of chunks, and nothing of their sizes.
    if regular_chunk_lengths(node.user_data) is None:
        raise InvalidInputError(
            f"array {node.path!r} has chunks of different sizes (a rectilinear grid), and a chunk that is moved must "
            f"have the size of its new place. Read the array and write it where it belongs",
            ErrorKind.INVALID_ARRAY_METADATA,
        )


def _require_in_grid(reader: chunk_io.ArrayReader, refs: ChunkRefs) -> None:
    if refs.ndim != reader.ndim:
        raise InvalidInputError(
            f"invalid chunk index: array {reader.node.path!r} has rank {reader.ndim}, the references have "
            f"{refs.ndim} coordinates",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    inside = refs.within((0,) * reader.ndim, reader.grid)
    if not inside.all():
        reader.require(tuple(refs.indices[int(np.argmin(inside))].tolist()))
