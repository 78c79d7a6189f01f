"""Editing the hierarchy: metadata, chunks, chunk references and moves go into the change set.

A large chunk is stored as an object before the call returns. Everything else stays in memory until a commit. No edit
touches committed files.

The invariant: an edit is made to the state that was checked for it, while edits are allowed. Each edit therefore has
three steps. It fetches what it needs without the lock. Under the lock it checks the permissions again, and that the
state (or the reader of the array) is still the one it looked at. Then it makes the edit, still under the lock. If
another thread was faster, it starts again. An edit that skipped the second check could land in a commit that has
already copied the edits, or in a base that a rebase has replaced.

An interrupt (Ctrl-C) can arrive after any call. So an edit of nodes drops the readers before it changes anything, and
a move changes a copy of the state that replaces the original in one step.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import paths
from icechunk_engine._runtime.locks import forget_in_child
from icechunk_engine._runtime.task_names import current_task
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, ChunkRef, ChunkRefs
from icechunk_engine.errors import AlreadyExistsError, ErrorKind, IcechunkError, InvalidInputError, SessionStateError
from icechunk_engine.format import layout
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.zarr_metadata import parse_node_metadata, regular_chunk_lengths
from icechunk_engine.ids import ChunkId, NodeId
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction import node_moves
from icechunk_engine.transaction.change_set import ChangeSet, ChunkEdits
from icechunk_engine.transaction.edit_sources import EditSource
from icechunk_engine.transaction.hierarchy import find_node, placement_problem, subtree
from icechunk_engine.transaction.reindex import IndexMap, reindexed, shifted
from icechunk_engine.virtual import containers as container_rules
from icechunk_engine.workspace.array_reader import ArrayReader
from icechunk_engine.workspace.context import RepositoryContext
from icechunk_engine.workspace.exchange import Edit
from icechunk_engine.workspace.permissions import Permissions, SessionMode
from icechunk_engine.workspace.state import WorkspaceState
from icechunk_engine.workspace.view import SnapshotView

type EditsToken = tuple[str, int]
"""Lineage and revision of some edits. Two states with equal tokens have the same edits, across processes too."""

_NO_CHUNK = ChunkRef(kind=DELETED)

_MAX_REARRANGE_ATTEMPTS = 100
"""Attempts to move chunks while other threads keep writing to the same array."""


class Workspace(SnapshotView):
    """A view that takes edits, as far as its permissions allow.

    Attributes
    ----------
    permissions
        What may be edited now.
    unchanged_writes
        Paths of nodes whose document was written again without a change. An error message names them.
    """

    def __init__(
        self,
        context: RepositoryContext,
        state: WorkspaceState,
        permissions: Permissions,
        *,
        edits_token: EditsToken | None = None,
    ) -> None:
        """Make a workspace; with ``edits_token`` it is a copy of another one, which had this token."""
        super().__init__(context, state)
        self.permissions = permissions
        self.unchanged_writes: dict[str, None] = {}
        # A copy keeps the token until its first edit, which begins a new lineage: the original may be edited, too.
        self._is_copy = edits_token is not None
        self._lineage, self._revision = edits_token or (_new_lineage(permissions), 0)
        self._epoch = 0
        self._source: EditSource | None = None  # of edits that are made now, if one was made
        self._names_tasks = self._is_copy and permissions.is_fork
        self._is_inherited = False
        if not permissions.read_only:
            forget_in_child(self)

    def forget(self) -> None:
        """Become a copy. Called in a forked child: its edits must not have the same sources as its parent's."""
        self._is_copy = True
        self._is_inherited = not self.permissions.is_fork
        self._source = None

    def _warn_if_inherited(self) -> None:
        """Warn a child of os.fork before its first edit. Not under the lock: the user may handle warnings."""
        if self._is_inherited:
            warnings.warn(
                "this process inherited a writable session from its parent by os.fork, and now edits it. The parent "
                "will not see these edits: commit them in this process. To bring them to the parent, pass "
                "session.store to this process as an argument",
                UserWarning,
                stacklevel=3,
            )
            self._is_inherited = False

    @property
    def read_only(self) -> bool:
        """True if nothing can be edited, or no longer."""
        return self.permissions.mode is SessionMode.readonly

    @property
    def edits_token(self) -> EditsToken:
        """Identifies the current edits."""
        return self._lineage, self._revision

    def edit(self, make_edit: Callable[[WorkspaceState], None], require: Callable[[], None] | None = None) -> None:
        """Call ``make_edit`` under the lock, with the current state and its base. It must not wait.

        Parameters
        ----------
        require
            Raises unless this kind of edit is allowed; by default edits of metadata and chunks.
        """
        # Not a context manager made from a generator: an interrupt on entry or exit would leave the lock taken.
        require = require or self.permissions.require_writable
        require()
        self._warn_if_inherited()
        while True:
            state = self.loaded_state()
            with self.lock:
                require()
                if state is self.state:
                    try:
                        make_edit(state)
                    except BaseException as error:
                        if not isinstance(error, Exception):
                            state.changes.rebuild_placement()
                        raise
                    return

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """Undo all edits since the start of the block if the block raises, unless the session was committed.

        This includes the edits of other threads, and those that copies in other processes have reported.
        """
        return _AllOrNothing(self)

    def discard_edits(self) -> None:
        """Drop all edits."""
        with self.lock:
            self.permissions.require_editable()
            self.unchanged_writes.clear()
            self.replace_state(WorkspaceState(self.state.snapshot_id, ChangeSet(), self.state.base))

    def undo_edits(self, before: WorkspaceState) -> None:
        """Go back to an earlier state, unless the session was committed since."""
        with self.lock:
            if not self.read_only:
                self.replace_state(before)

    # Call the next three methods under the lock.

    def replace_state(self, state: WorkspaceState) -> None:
        """Put another base and its edits in place."""
        self.state = state
        self._advance_token()

    @property
    def current_epoch(self) -> tuple[str, int]:
        """Writer and epoch of the source of present edits."""
        return self._lineage, self._epoch

    @property
    def has_unshared_edits(self) -> bool:
        """True if somebody edited this workspace since the last epoch ended."""
        sources = self.state.changes.sources.entries
        return bool(sources) and sources[-1][:2] == self.current_epoch

    @property
    def _is_private(self) -> bool:
        """True if nobody else has or had these edits: no fork, no copy."""
        return self._epoch == 0 and not self.permissions.is_fork

    def end_epoch(self) -> None:
        """Call this when somebody else gets the edits: later ones must have another source."""
        self._epoch += 1
        self._source = None

    def _advance_token(self) -> None:
        if self._is_copy:
            self._lineage, self._is_copy = _new_lineage(self.permissions), False
            self._source = None
        self._revision += 1

    def _apply(self, state: WorkspaceState, edit: Edit) -> None:
        """Make an edit."""
        self._advance_token()
        source = self._current_source()
        edit(state.changes, state.changes.sources.number(source))
        if self.exchange is not None:
            self.exchange.record(edit, source)

    def _current_source(self) -> EditSource:
        task = current_task() if self._names_tasks else None
        source = self._source
        if source is None or source.task != task:
            source = self._source = EditSource(self._lineage, self._epoch, task)
        return source

    def _apply_to_nodes(self, state: WorkspaceState, edit: Edit) -> None:
        """Make an edit of nodes."""
        # The readers go before the edit, not after it: an interrupt in between must not leave stale readers.
        state.readers.clear()
        self._apply(state, edit)

    def _apply_to_chunks(self, array: Node, edit: Callable[[ChunkEdits, int], None]) -> None:
        """Make an edit of an array's chunks."""
        self._apply(self.state, lambda changes, source: edit(changes.edits_of(array), source))

    # --- nodes -------------------------------------------------------------------------------------------------

    def set_metadata(self, path: str, data: bytes) -> None:
        """Create a node, or change the metadata of an existing one.

        Raises
        ------
        InvalidInputError
            ``bad-metadata`` and related kinds: the format cannot hold this document as a Zarr v3 group or array.
        AlreadyExistsError
            ``node-already-exists``: the existing node has the other type. Delete it first.
        """
        node_type, shape = parse_node_metadata(data, for_write=True, path=path)
        if shape is not None and not shape.regular:
            open_catalog(self.context.assets).require_irregular_chunks(path)

        def set_node(state: WorkspaceState) -> None:
            base, changes = state.nodes, state.changes
            node = find_node(base, changes, path)
            if node is None:
                refusal = placement_problem(base, changes, path, is_array=shape is not None)
                if refusal is not None:
                    raise InvalidInputError(f"cannot create {path!r}: {refusal}", ErrorKind.NOT_A_GROUP)
                created = Node(node_id=NodeId.random(), path=path, user_data=data, shape=shape)
                self._apply_to_nodes(state, lambda changes, source: changes.add_node(created, source))
            elif node.is_array != (shape is not None):
                kind = "array" if node.is_array else "group"
                raise AlreadyExistsError(
                    f"there is a node of type {kind} at {path!r}; delete it before creating one of type {node_type}",
                    ErrorKind.NODE_ALREADY_EXISTS,
                )
            elif node.user_data == data:
                self.unchanged_writes[path] = None
            elif shape is not None and node.shape is not None and shape.ndim != node.shape.ndim:
                # The old chunks have indices of another rank, so this must be a new array with a new id.
                replacement = Node(node_id=NodeId.random(), path=path, user_data=data, shape=shape)

                def replace_array(changes: ChangeSet, source: int) -> None:
                    changes.delete_node(node, source)
                    changes.add_node(replacement, source)

                self._apply_to_nodes(state, replace_array)
            else:
                updated = replace(node, user_data=data, shape=shape)
                self._apply_to_nodes(state, lambda changes, source: changes.update_node(updated, source, before=node))

        self.edit(set_node)

    def delete_node(self, path: str) -> None:
        """Delete a node, if it exists: a group with all its members, an array with its chunks."""

        def delete(state: WorkspaceState) -> None:
            node = find_node(state.nodes, state.changes, path)
            if node is not None:
                self._delete(state, [node] if node.is_array else subtree(state.nodes, state.changes, path))

        self.edit(delete)

    def delete_directory(self, path: str) -> None:
        """Delete everything at and below a path, even if no node is at the path itself."""
        self.edit(lambda state: self._delete(state, subtree(state.nodes, state.changes, path)))

    def _delete(self, state: WorkspaceState, nodes: Iterable[Node]) -> None:
        doomed = list(nodes)

        def delete_nodes(changes: ChangeSet, source: int) -> None:
            for node in doomed:
                changes.delete_node(node, source)

        if doomed:
            self._apply_to_nodes(state, delete_nodes)

    def delete_all(self) -> None:
        """Delete all nodes."""
        self.delete_directory(paths.ROOT)

    def move(self, from_path: str, to_path: str) -> None:
        """Move a node and all nodes below it to another path."""
        source, target = node_moves.require_absolute(from_path), node_moves.require_absolute(to_path)

        def move(state: WorkspaceState) -> None:
            moved = state.copy()  # an interrupt in the middle of a move would lose nodes
            node_moves.move(state.nodes, moved.changes, source, target)
            self.replace_state(moved)

        self.edit(move, self.permissions.require_rearranging)

    # --- chunks ------------------------------------------------------------------------------------------------

    def set_chunk(self, path: str, index: ChunkIndex, data: bytes | memoryview) -> None:
        """Write one chunk. A small one goes into the manifest; a large one is stored as an object before this returns.

        Raises
        ------
        InvalidInputError
            ``zero-length-chunk``, ``invalid-chunk-index``, ``not-an-array``.
        NodeNotFoundError
            The array does not exist.
        """
        ref = self.new_chunk(path, index, data)
        self.store_chunk(ref, data)
        self.put_chunk(path, index, ref)

    def new_chunk(self, path: str, index: ChunkIndex, data: bytes | memoryview) -> ChunkRef:
        """Return the reference that a chunk will have.

        This is the first step of :meth:`set_chunk`; it makes no request once the array's reader is in memory. The
        others are :meth:`store_chunk`, one request for a native chunk and none for an inline one, and
        :meth:`put_chunk`.
        """
        self.permissions.require_writable()
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if size == 0:
            raise InvalidInputError(
                f"zero-length chunk {index} of {path!r}; delete the chunk instead of writing it empty",
                ErrorKind.ZERO_LENGTH_CHUNK,
            )
        self.require_array_reader(path).require(index)
        if size <= self.context.assets.config.inline_chunk_threshold_bytes:
            return ChunkRef(kind=INLINE, length=size, inline=bytes(data))
        return ChunkRef(kind=NATIVE, length=size, chunk_id=ChunkId.random())

    def store_chunk(self, ref: ChunkRef, data: bytes | memoryview) -> None:
        """Store the object of a native chunk."""
        if ref.kind == NATIVE:
            assert ref.chunk_id is not None
            key = layout.chunk_key(ref.chunk_id)
            self.context.assets.storage.put(key, data, atomic=False)

    def put_chunk(self, path: str, index: ChunkIndex, ref: ChunkRef) -> None:
        """Set the reference of one chunk. Raises as :meth:`set_chunk` does."""
        self._edit_array(
            path, lambda reader: reader.require(index), lambda edits, source: edits.set(index, ref, source)
        )

    def _edit_array(
        self, path: str, require: Callable[[ArrayReader], None], edit: Callable[[ChunkEdits, int], None]
    ) -> None:
        """Edit the chunks of an array under the lock. ``require`` raises if the array does not allow the edit."""
        self._warn_if_inherited()
        while True:
            reader = self.state.readers.get(path)
            if reader is None:
                self.permissions.require_writable()  # fail before the first request
                reader = self.require_array_reader(path)
            require(reader)
            with self.lock:
                self.permissions.require_writable()
                if self.state.readers.get(path) is reader:  # else another thread changed the array or the state
                    self._apply_to_chunks(reader.node, edit)
                    return

    def set_chunk_ref(self, path: str, index: ChunkIndex, ref: ChunkRef, *, validate_container: bool = True) -> None:
        """Point one chunk at a virtual location. Raises as :meth:`set_chunk` does, and ``invalid-virtual-ref``."""
        self.permissions.require_writable()
        self.require_array_reader(path).require(index)
        location = container_rules.normalize_location(ref.location or "")
        if validate_container:
            container_rules.require_container(location, self.context.resolver.containers)
        if ref.length == 0:
            raise InvalidInputError(
                f"zero-length chunk {index} of {path!r}: the reference has length 0; leave the chunk out instead",
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
            Columns. Locations of virtual references are absolute URLs or begin with ``vcc://``.
        validate_containers
            Leave out references whose location lies in no container.

        Returns
        -------
        None if all were set; otherwise a mask ``(n,)`` of the rows that were left out.

        Raises
        ------
        InvalidInputError
            ``zero-length-chunk``, ``invalid-chunk-index``, ``invalid-virtual-ref``; nothing was set.
        """
        self.permissions.require_writable()
        if bool((refs.lengths[refs.kinds != DELETED] == 0).any()):
            raise InvalidInputError(
                f"zero-length chunk: some references for {path!r} have length 0; leave those chunks out instead",
                ErrorKind.ZERO_LENGTH_CHUNK,
            )
        _require_in_grid(self.require_array_reader(path), refs)
        refused: NDArray[np.bool_] | None = None
        if len(refs.locations):
            refs, refused = container_rules.checked_refs(
                refs, self.context.resolver.containers, validate=validate_containers
            )
        self._put_refs(path, refs)
        return refused

    def _put_refs(self, path: str, refs: ChunkRefs) -> None:
        self._edit_array(path, lambda reader: _require_in_grid(reader, refs), partial(_set_many, refs=refs))

    def delete_chunk(self, path: str, index: ChunkIndex) -> None:
        """Delete a chunk, so that it reads as the fill value. Does nothing outside arrays and their grids.

        Deleting a chunk that is not stored is an edit too, because zarr writes a chunk of fill values by deleting it.
        The edit conflicts with a chunk that another commit wrote there, and overrides the chunk of an earlier fork.
        """
        self.permissions.require_writable()
        reader = self.array_reader(path)
        if reader is None or not reader.contains(index):
            return
        if self._is_private and path in self.state.changes.new_nodes and reader.locate(index) is None:
            return  # nobody else has this array, so a sparse one needs no edit for each empty chunk
        self.put_chunk(path, index, _NO_CHUNK)

    def delete_chunks_under(self, path: str, index_prefix: ChunkIndex) -> None:
        """Delete all chunks whose index starts with a prefix; the empty prefix deletes all chunks of the array."""
        self.permissions.require_writable()
        if self.array_reader(path) is None:
            return
        indices = self.chunk_refs(path).indices
        doomed = indices[(indices[:, : len(index_prefix)] == np.asarray(index_prefix, np.uint32)).all(axis=1)]
        if len(doomed):
            self._put_refs(path, ChunkRefs.build(doomed, DELETED))

    def shift_array(self, array_path: str, chunk_offset: Iterable[int]) -> None:
        """Move all chunks of an array by a number of chunks along each axis."""
        offset = np.asarray(list(chunk_offset), np.int64)

        def shift(reader: ArrayReader, refs: ChunkRefs) -> ChunkRefs:
            if len(offset) != reader.ndim:
                raise InvalidInputError(
                    f"invalid chunk index: array {reader.node.path!r} has rank {reader.ndim}, but the offset is "
                    f"{tuple(offset.tolist())}",
                    ErrorKind.INVALID_CHUNK_INDEX,
                )
            return shifted(refs, offset, reader.grid) if offset.any() else ChunkRefs.empty(reader.ndim)

        self._rearrange_chunks(array_path, shift)

    def reindex_array(self, array_path: str, forward: IndexMap, backward: IndexMap | None = None) -> None:
        """Move the chunks of an array to the indices that ``forward`` returns."""
        self._rearrange_chunks(array_path, lambda reader, refs: reindexed(refs, forward, backward, reader.require))

    def _rearrange_chunks(self, array_path: str, rearranged: Callable[[ArrayReader, ChunkRefs], ChunkRefs]) -> None:
        """Replace references of an array by what ``rearranged`` makes of all of them, as one edit."""
        path = paths.normalize(array_path)
        self.permissions.require_writable()
        self._warn_if_inherited()
        for _ in range(_MAX_REARRANGE_ATTEMPTS):
            reader = self.require_array_reader(path)
            _require_regular(reader.node)
            before = self.state.changes.revision_of(reader.node)
            edits = rearranged(reader, self.chunk_refs(path))  # can call a user's function: not under the lock
            with self.lock:
                self.permissions.require_writable()
                changes = self.state.changes
                if self.state.readers.get(path) is reader and changes.revision_of(reader.node) == before:
                    if len(edits):
                        self._apply_to_chunks(reader.node, partial(_set_many, refs=edits))
                    return
        raise SessionStateError(
            f"cannot move the chunks of {path!r}: other threads kept writing to the array. Nothing was moved; wait "
            f"for these threads to finish, then try again",
            ErrorKind.CONCURRENCY,
        )


class _AllOrNothing:
    """Not made from a generator: one that an interrupt abandons would undo edits whenever it is garbage collected."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def __enter__(self) -> None:
        self._workspace.look()
        self._before = self._workspace.copy_state()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if kind is None:
            return
        self._workspace.undo_edits(self._before)
        if self._workspace.exchange is not None:
            try:
                self._workspace.exchange.forget()
            except IcechunkError as failure:
                assert error is not None
                error.add_note(f"Edits that other processes reported may come back: {failure}")


def _set_many(edits: ChunkEdits, source: int, *, refs: ChunkRefs) -> None:
    edits.set_many(refs, source)


def _new_lineage(permissions: Permissions) -> str:
    """Return a new random lineage. A session that never takes edits has none, so equal ones have equal pickles."""
    return "" if permissions.read_only else uuid.uuid4().hex


def _require_regular(node: Node) -> None:
    # Only the document says: snapshots hold the number of chunks, not their sizes.
    if regular_chunk_lengths(node.user_data) is None:
        raise InvalidInputError(
            f"array {node.path!r} has chunks of different sizes (a rectilinear grid), and a chunk can only move to a "
            f"place of its own size. Read the array and write the data again",
            ErrorKind.INVALID_ARRAY_METADATA,
        )


def _require_in_grid(reader: ArrayReader, refs: ChunkRefs) -> None:
    if refs.ndim != reader.ndim:
        raise InvalidInputError(
            f"invalid chunk index: array {reader.node.path!r} has rank {reader.ndim}, but the references have "
            f"{refs.ndim} coordinates",
            ErrorKind.INVALID_CHUNK_INDEX,
        )
    inside = refs.within((0,) * reader.ndim, reader.grid)
    if not inside.all():
        reader.require(tuple(refs.indices[int(np.argmin(inside))].tolist()))
