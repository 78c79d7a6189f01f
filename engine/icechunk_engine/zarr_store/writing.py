"""Writing values: a node's document is an edit of the node, a chunk's bytes are an edit of the chunk.

A deletion removes what the key names and nothing else. The key of a document stands for its node: a group goes with
its members, an array with its chunks. A directory stands for everything at and below it. So deleting ``g/zarr.json``
leaves the members of a ``g`` that has no document, and deleting the directory ``g`` removes them.
"""

from __future__ import annotations

from zarr.abc.buffer import Buffer

from icechunk_engine._runtime.pools import in_thread, request
from icechunk_engine.columns.chunk_refs import NATIVE
from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError, SessionStateError
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.zarr_store.base import MAX_IN_PLACE_BYTES, BaseStore, Target
from icechunk_engine.zarr_store.directories import chunk_directory, node_path


class WritingStore(BaseStore):
    """Sets and deletes values."""

    async def set(self, key: str, value: Buffer) -> None:
        """Store a node's document or the bytes of a chunk. A large chunk is in the storage when this returns.

        Raises
        ------
        ReadOnlyError
            ``read-only-store``, ``read-only-session``.
        InvalidInputError
            ``invalid-key``, ``invalid-chunk-index``, ``zero-length-chunk``, ``not-an-array``, ``bad-metadata``.
        NodeNotFoundError
            The chunk's array does not exist.
        SessionStateError
            ``unimplemented``: the document of a Zarr v2 node.
        """
        target = self._writable_target(key, value)
        if target.chunk_index is None:
            await self._prepare()
            self._workspace.set_metadata(target.path, value.to_bytes())
        else:
            data = _payload(value)
            try:
                await self._set_chunk(target.path, target.chunk_index, data)
            except (NodeNotFoundError, InvalidInputError):
                if not await self._look_again():
                    raise
                await self._set_chunk(target.path, target.chunk_index, data)  # another process has made the place
        await self._report()

    async def _set_chunk(self, path: str, index: ChunkIndex, data: bytes | memoryview) -> None:
        if self._workspace.storage_is_remote:
            await self._workspace.fetch_remote_snapshot()
            ref = self._workspace.new_chunk(path, index, data)
            if ref.kind == NATIVE:
                await request(self._workspace.store_chunk, ref, data)
            self._workspace.put_chunk(path, index, ref)
        elif len(data) <= MAX_IN_PLACE_BYTES:
            self._workspace.set_chunk(path, index, data)
        else:
            await in_thread(self._workspace.set_chunk, path, index, data)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Synchronous twin of :meth:`set`."""
        target = self._writable_target(key, value)
        if target.chunk_index is None:
            self._workspace.look(for_chunks=False)
            self._workspace.set_metadata(target.path, value.to_bytes())
        else:
            data = _payload(value)
            try:
                self._workspace.set_chunk(target.path, target.chunk_index, data)
            except (NodeNotFoundError, InvalidInputError):
                if not self._workspace.look_again():
                    raise
                self._workspace.set_chunk(target.path, target.chunk_index, data)
        self._workspace.report()

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store a value, unless the key already has one."""
        self._writable_target(key, value)
        if not await self.exists(key):
            await self.set(key, value)

    def _writable_target(self, key: str, value: Buffer) -> Target:
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(
                f"IcechunkStore.set(): `value` must be a Buffer instance. Got an instance of {type(value)} instead."
            )
        target = self._target(key)
        if target is None:
            raise SessionStateError(
                f"cannot store {key!r}: the store holds Zarr format 3 only. Create arrays with zarr_format=3",
                ErrorKind.UNIMPLEMENTED,
            )
        return target

    async def delete(self, key: str) -> None:
        """Delete what a key stands for, if it exists.

        The key of a document stands for its node: a group goes with all its members, an array with its chunks.
        """
        self._check_writable()
        target = self._target(key)
        if target is None:
            return
        await self._prepare()
        if self._workspace.storage_is_remote:
            await in_thread(self._delete, target)
        else:
            self._delete(target)
        await self._report()

    def delete_sync(self, key: str) -> None:
        """Synchronous twin of :meth:`delete`."""
        self._check_writable()
        target = self._target(key)
        if target is not None:
            self._workspace.look()
            self._delete(target)
            self._workspace.report()

    def _delete(self, target: Target) -> None:
        if target.chunk_index is None:
            self._workspace.delete_node(target.path)
        else:
            self._workspace.delete_chunk(target.path, target.chunk_index)

    async def delete_dir(self, prefix: str) -> None:
        """Delete everything in a directory: the nodes at and below a path, or the chunks in ``array/c/0``."""
        self._check_writable()
        await self._prepare()
        path = node_path(prefix)
        if path is not None:
            self._workspace.delete_directory(path)
        found = chunk_directory(self._workspace, prefix)
        if found is not None and self._workspace.storage_is_remote:
            await in_thread(self._workspace.delete_chunks_under, found.path, found.index_prefix)
        elif found is not None:
            self._workspace.delete_chunks_under(found.path, found.index_prefix)
        await self._report()

    async def clear(self) -> None:
        """Delete all groups and arrays of the session. The history of the repository keeps them."""
        self._check_writable()
        await self._prepare()
        self._workspace.delete_all()
        await self._report()

    def sync_clear(self) -> None:
        """Synchronous twin of :meth:`clear`."""
        self._check_writable()
        self._workspace.look()
        self._workspace.delete_all()
        self._workspace.report()


def _payload(value: Buffer) -> bytes | memoryview:
    view = value.as_buffer_like()
    return view if isinstance(view, bytes) or (isinstance(view, memoryview) and view.contiguous) else bytes(view)
