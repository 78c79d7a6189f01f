"""The methods of a session that look at nodes and chunks, and move them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from icechunk_engine import paths
from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.columns.chunk_refs import ChunkType
from icechunk_engine.errors import NodeNotFoundError
from icechunk_engine.transaction.diff import Diff
from icechunk_engine.transaction.reindex import IndexMap
from icechunk_engine.workspace.workspace import Workspace


class HierarchyMethods:
    """The methods of :class:`Session` that look at nodes and chunks, and move them."""

    _workspace: Workspace

    # --- reading -----------------------------------------------------------------------------------------------

    def status(self) -> Diff:
        """Return the uncommitted edits."""
        self._workspace.look()
        return self._workspace.diff()

    def get_node_id(self, path: str) -> str:
        """Return the id of a group or array. It never changes, even if the node moves.

        Raises
        ------
        NodeNotFoundError
            No node at this path.
        """
        self._workspace.look()
        node = self._workspace.get_node(paths.normalize(path))
        if node is None:
            raise NodeNotFoundError(f"no group or array at {path!r}")
        return str(node.node_id)

    get_node_id_async = async_twin(get_node_id)

    async def chunk_coordinates(self, array_path: str, batch_size: int = 1000) -> AsyncIterator[tuple[int, ...]]:
        """Iterate over the indices of all stored chunks of an array, in order.

        Parameters
        ----------
        batch_size
            Number of indices that are turned into tuples at a time.
        """
        await async_twin(self._workspace.look)()
        indices = (await async_twin(self._workspace.chunk_refs)(array_path)).indices
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            # zip makes the tuples quickest, but makes none if there are no columns.
            for index in zip(*batch.T.tolist(), strict=True) if batch.shape[1] else [()] * len(batch):
                yield index

    def chunk_type(self, array_path: str, chunk_coordinates: Sequence[int]) -> ChunkType:
        """Return where the bytes of a chunk are: inline, native, virtual, or uninitialized if it is not stored.

        Raises
        ------
        NodeNotFoundError
            The array does not exist.
        """
        self._workspace.look()
        reader = self._workspace.require_array_reader(paths.normalize(array_path))
        ref = reader.locate(tuple(chunk_coordinates))
        return ChunkType.uninitialized if ref is None else ChunkType(ref.kind)

    chunk_type_async = async_twin(chunk_type)

    def all_virtual_chunk_locations(self) -> list[str]:
        """Return the distinct URLs of all virtual chunks, ordered by array path and first chunk."""
        self._workspace.look()
        return self._workspace.virtual_locations()

    all_virtual_chunk_locations_async = async_twin(all_virtual_chunk_locations)

    # --- moving ------------------------------------------------------------------------------------------------

    @operation(lambda self, from_path, to_path: f"moving {from_path} to {to_path}")
    def move(self, from_path: str, to_path: str) -> None:
        """Move a group or array, with everything below it, to another path. Copies no data; nodes keep their ids.

        Needs a session made by :meth:`Repository.rearrange_session`.

        Parameters
        ----------
        from_path, to_path
            Absolute paths; a trailing slash is ignored. The parent of the new path must be a group, and the new path
            must be free.

        Raises
        ------
        SessionStateError
            ``non-rearrange-session``; ``move-into-self-or-descendant``, also for the root;
            ``move-destination-parent-missing``, ``move-destination-parent-not-group``.
        NodeNotFoundError
            No node at ``from_path``.
        AlreadyExistsError
            ``move-wont-overwrite``.
        """
        self._workspace.move(from_path, to_path)

    move_async = async_twin(move)

    def shift_array(self, array_path: str, chunk_offset: Iterable[int]) -> None:
        """Move all chunks of an array by a number of chunks along each axis. Copies no data.

        Chunks that would leave the grid are dropped. Positions left empty read as the fill value.

        Raises
        ------
        InvalidInputError
            ``invalid-array-metadata``: the chunk grid is not regular. ``invalid-chunk-index``: the offset has the
            wrong rank.
        """
        self._workspace.look()
        self._workspace.shift_array(array_path, chunk_offset)
        self._workspace.report()

    def reindex_array(self, array_path: str, forward: IndexMap, backward: IndexMap | None = None) -> None:
        """Move chunks of an array to the indices that a function returns. Copies no data.

        Parameters
        ----------
        forward
            Called with the index of each stored chunk as a list. Returns the new index, within the grid, or None to
            leave the chunk where it is.
        backward
            Inverse of ``forward``. With it, a position whose source is None or empty is cleared. Without it, a
            position that a chunk moved away from keeps the old chunk, unless another chunk arrives.

        Raises
        ------
        InvalidInputError
            ``invalid-array-metadata``: the chunk grid is not regular. ``invalid-chunk-index``: an index outside the
            grid.
        """
        self._workspace.look()
        self._workspace.reindex_array(array_path, forward, backward)
        self._workspace.report()
