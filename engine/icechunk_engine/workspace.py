"""Editing the hierarchy: node metadata, chunks, chunk references and moves go into the change set.

Large chunks are stored before the call returns; everything else stays in memory until a commit. No edit touches
what is committed.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import paths
from icechunk_engine._observe import operation, request
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.chunk_refs import DELETED, INLINE, NATIVE, ChunkRef, ChunkRefs
from icechunk_engine.errors import AlreadyExistsError, ErrorKind, InvalidInputError
from icechunk_engine.format import layout
from icechunk_engine.format.nodes import Node
from icechunk_engine.ids import ChunkId, NodeId, SnapshotId
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction import chunks as chunk_io
from icechunk_engine.transaction import moves
from icechunk_engine.transaction.hierarchy import find_node, misplaced, subtree
from icechunk_engine.transaction.reindex import IndexMap, reindexed, shifted
from icechunk_engine.view import RepositoryContext, SnapshotView
from icechunk_engine.virtual import containers as container_rules
from icechunk_engine.zarr_metadata import parse_node_metadata, regular_chunk_lengths

_LOG = logging.getLogger(__name__)


class Workspace(SnapshotView):
    """A view that takes edits or moves; which it may is for the session to say (the methods ``_require_…``)."""

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

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Take the edits back to where they were if the block raises."""
        before = self._changes.copy()
        try:
            yield
        except BaseException:
            with self._lock:
                self._changes = before
                self._touch_structure()
            raise

    def _edits_token(self) -> tuple[str, int]:
        return self._lineage, self._revision

    def _count_edit(self) -> None:
        if self._is_copy:
            self._lineage, self._is_copy = uuid.uuid4().hex, False
        self._revision += 1

    def _touch_structure(self) -> None:
        self._readers.clear()
        self._count_edit()

    # --- nodes -------------------------------------------------------------------------------------------------

    def set_metadata(self, path: str, data: bytes) -> None:
        """Create a node, or change the metadata of the one that is there.

        Raises
        ------
        InvalidInputError
            ``bad-metadata`` and its kin: the document is no Zarr v3 group or array that this format can hold.
        AlreadyExistsError
            ``node-already-exists``: there is a node of the other type; delete it first.
        """
        node_type, shape = parse_node_metadata(data, for_write=True, path=path)
        if shape is not None and not shape.regular and self._context.assets.spec_version == 1:
            raise InvalidInputError(
                f"array {path!r} has chunks of different sizes, which repositories of spec version 1 cannot hold. Use "
                f"a regular grid, or upgrade with icechunk.upgrade_icechunk_repository(repo, dry_run=False)",
                ErrorKind.BAD_METADATA,
            )
        with self._lock:
            self._require_writable()
            base = self._base().nodes
            node = find_node(base, self._changes, path)
            if node is None:
                refusal = misplaced(base, self._changes, path, is_array=shape is not None)
                if refusal is not None:
                    raise InvalidInputError(f"cannot create {path!r}: {refusal}", ErrorKind.NOT_A_GROUP)
                self._changes.add_node(Node(node_id=NodeId.random(), path=path, user_data=data, shape=shape))
            elif node.is_array != (shape is not None):
                kind = "array" if node.is_array else "group"
                raise AlreadyExistsError(
                    f"there is a node of type {kind} at {path!r}; delete it before creating one of type {node_type}",
                    ErrorKind.NODE_ALREADY_EXISTS,
                )
            elif node.user_data == data:
                self._set_again[path] = None
                return
            else:
                if shape is not None and node.shape is not None and shape.ndim != node.shape.ndim:
                    # Chunks of another rank mean nothing to the new array, so it is another array.
                    self._changes.delete_node(node)
                    self._changes.add_node(Node(node_id=NodeId.random(), path=path, user_data=data, shape=shape))
                else:
                    self._changes.update_node(replace(node, user_data=data, shape=shape))
            self._touch_structure()

    def delete_node(self, path: str) -> None:
        """Remove a node: a group with its members, an array with its chunks. Nothing happens when there is none."""
        with self._lock:
            self._require_writable()
            base = self._base().nodes
            node = find_node(base, self._changes, path)
            if node is not None:
                self._delete([node] if node.is_array else subtree(base, self._changes, path))

    def delete_directory(self, path: str) -> None:
        """Remove the node at a path and everything below it, whether or not there is a node at the path itself."""
        with self._lock:
            self._require_writable()
            self._delete(subtree(self._base().nodes, self._changes, path))

    def _delete(self, nodes: Iterable[Node]) -> None:
        doomed = list(nodes)
        for node in doomed:
            self._changes.delete_node(node)
        if doomed:
            self._touch_structure()

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
        source, target = moves.require_absolute(from_path), moves.require_absolute(to_path)
        with self._lock:
            self._require_rearranging()
            moves.move(self._base().nodes, self._changes, source, target)
            self._touch_structure()

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
        self._require_writable()
        size = len(data) if isinstance(data, bytes) else data.nbytes
        if size == 0:
            raise InvalidInputError(
                f"chunk {index} of {path!r} has no bytes; delete the chunk instead of writing it empty",
                ErrorKind.ZERO_LENGTH_CHUNK,
            )
        reader = self._array_reader(path)
        reader.require(index)
        if size <= self._context.assets.config.inline_chunk_threshold_bytes:
            ref = ChunkRef(kind=INLINE, length=size, inline=bytes(data))
        else:
            chunk_id = ChunkId.random()
            key = layout.chunk_key(chunk_id)
            with request(_LOG, "put", key):
                self._context.assets.storage.put(key, data, is_unknown=True)
            ref = ChunkRef(kind=NATIVE, length=size, chunk_id=chunk_id)
        self._edit_chunk(path, index, ref)

    def set_chunk_ref(self, path: str, index: ChunkIndex, ref: ChunkRef, *, validate_container: bool = True) -> None:
        """Point one chunk at a virtual location. Errors as for :meth:`set_chunk`, and ``invalid-virtual-ref``."""
        self._require_writable()
        self._array_reader(path).require(index)
        location = container_rules.normalize_location(ref.location or "")
        if validate_container:
            container_rules.require_container(location, self._context.resolver.containers)
        if ref.length == 0:
            raise InvalidInputError(
                f"chunk {index} of {path!r}: a reference of no bytes; leave the chunk out instead",
                ErrorKind.ZERO_LENGTH_CHUNK,
            )
        self._edit_chunk(path, index, replace(ref, location=location))

    def _edit_chunk(self, path: str, index: ChunkIndex, ref: ChunkRef) -> None:
        with self._lock:
            self._require_writable()
            node = self._array_reader(path).node
            self._changes.edits_of(node).set(index, ref)
            self._count_edit()

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
        with self._lock:
            self._require_writable()
            reader = self._array_reader(path)
            self._require_in_grid(reader, refs)
            if bool((refs.lengths[refs.kinds != DELETED] == 0).any()):
                raise InvalidInputError(
                    f"references of no bytes among those for {path!r}; leave those chunks out instead",
                    ErrorKind.ZERO_LENGTH_CHUNK,
                )
            refused: NDArray[np.bool_] | None = None
            if len(refs.locations):
                refs, refused = container_rules.checked_refs(
                    refs, self._context.resolver.containers, validate=validate_containers
                )
            self._edit_chunks(reader.node, refs)
            return refused

    @staticmethod
    def _require_in_grid(reader: chunk_io.ArrayReader, refs: ChunkRefs) -> None:
        if refs.ndim != reader.ndim:
            raise InvalidInputError(
                f"array {reader.node.path!r} has rank {reader.ndim}, the references have {refs.ndim} coordinates",
                ErrorKind.INVALID_CHUNK_INDEX,
            )
        inside = refs.within((0,) * reader.ndim, reader.grid)
        if not inside.all():
            reader.require(tuple(refs.indices[int(np.argmin(inside))].tolist()))

    def delete_chunk(self, path: str, index: ChunkIndex) -> None:
        """Remove a chunk, so that it reads as the fill value; nothing happens outside of arrays and their grids.

        Where no chunk is stored this is an edit all the same: zarr writes a chunk of fill values by deleting it. The
        edit conflicts with another commit's chunk there, and wins over an earlier fork's.
        """
        with self._lock:
            self._require_writable()
            reader = self.array_reader(path)
            if reader is None or not reader.contains(index):
                return
            if path in self._changes.new_nodes and reader.locate(index) is None:
                return  # an array that nobody else has: sparse ones are made without an edit for each empty chunk
            self._edit_chunk(path, index, ChunkRef(kind=DELETED))

    def delete_chunks_under(self, path: str, index_prefix: ChunkIndex) -> None:
        """Remove all chunks whose index starts with a prefix (empty: all of the array)."""
        with self._lock:
            self._require_writable()
            if self.array_reader(path) is None:
                return
            indices = self.chunk_refs(path).indices
            doomed = indices[(indices[:, : len(index_prefix)] == np.asarray(index_prefix, np.uint32)).all(axis=1)]
            if len(doomed):
                self._edit_chunks(self._array_reader(path).node, ChunkRefs.build(doomed, DELETED))

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
        with self._lock:
            self._require_writable()
            reader, refs = self._regular_array(array_path)
            if len(offset) != reader.ndim:
                raise InvalidInputError(
                    f"array {reader.node.path!r} has rank {reader.ndim}, the offset {tuple(offset.tolist())} does not",
                    ErrorKind.INVALID_CHUNK_INDEX,
                )
            if offset.any() and len(refs):
                self._edit_chunks(reader.node, shifted(refs, offset, reader.grid))

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
        with self._lock:
            self._require_writable()
            reader, refs = self._regular_array(array_path)
            self._edit_chunks(reader.node, reindexed(refs, forward, backward, reader.require))

    def _regular_array(self, array_path: str) -> tuple[chunk_io.ArrayReader, ChunkRefs]:
        path = paths.normalize(array_path)
        reader = self._array_reader(path)
        # The document decides: snapshots keep the number of chunks, and nothing of their sizes.
        if regular_chunk_lengths(reader.node.user_data) is None:
            raise InvalidInputError(
                f"array {path!r} has chunks of different sizes (a rectilinear grid), and a chunk that is moved must "
                f"have the size of its new place. Read the array and write it where it belongs",
                ErrorKind.INVALID_ARRAY_METADATA,
            )
        return reader, self.chunk_refs(path)

    def _edit_chunks(self, node: Node, edits: ChunkRefs) -> None:
        self._changes.edits_of(node).set_many(edits)
        self._count_edit()
