"""Virtual references: chunks that are byte ranges of objects outside the repository. Not part of Zarr's interface."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icechunk_engine import paths
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.config import VirtualChunkSpec
from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError, SessionStateError
from icechunk_engine.virtual.virtual_refs import (
    Checksum,
    ReferenceBatch,
    reference_batches,
    refs_of_grid,
    refs_of_specs,
    single_reference,
    split_checksum,
)
from icechunk_engine.workspace.array_reader import ArrayReader
from icechunk_engine.zarr_store.base import BaseStore


class VirtualReferences(BaseStore):
    """Sets and lists chunk references in bulk."""

    def set_virtual_ref(
        self,
        key: str,
        location: str,
        *,
        offset: int,
        length: int,
        checksum: Checksum = None,
        validate_container: bool = True,
    ) -> None:
        """Point one chunk at a byte range of an object outside the repository.

        Parameters
        ----------
        key
            The store key of the chunk, ``array/c/0/0``.
        location
            Absolute URL of the object, or ``vcc://<container name>/<rest>``. Percent-encode characters of the object's
            key that are reserved in URLs (``?`` as ``%3F``, ``#`` as ``%23``, ``%`` as ``%25``).
        offset, length
            Byte range of the chunk in the object.
        checksum
            Etag or last modification time. Reading fails if the object no longer has it.
        validate_container
            Refuse locations that lie in no virtual chunk container of the repository.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref``, ``no-container-for-virtual-chunk``, ``zero-length-chunk``,
            ``invalid-chunk-index``, ``invalid-key``.
        NodeNotFoundError
            The array does not exist.
        SessionStateError
            ``not-allowed``: the key belongs to a node's document.
        """
        self._check_writable()
        target = self._target(key)
        if target is None or target.chunk_index is None:
            raise SessionStateError(
                f"{key!r} is metadata, and only chunks can be references. Store documents with store.set",
                ErrorKind.NOT_ALLOWED,
            )
        etag, last_modified = split_checksum(checksum)
        ref = single_reference(location, offset, length, etag, last_modified)
        self._workspace.set_chunk_ref(target.path, target.chunk_index, ref, validate_container=validate_container)
        self._workspace.report()

    set_virtual_ref_async = async_twin(set_virtual_ref)

    def set_virtual_refs(
        self, array_path: str, chunks: builtins.list[VirtualChunkSpec], *, validate_containers: bool = True
    ) -> builtins.list[tuple[int, ...]] | None:
        """Set several virtual references of one array.

        Parameters
        ----------
        array_path
            Node path of the array.
        chunks
            Index, location, byte range and checksums of each. For many chunks, :meth:`set_virtual_refs_arr` is much
            faster.
        validate_containers
            Leave out references whose location lies in no virtual chunk container.

        Returns
        -------
        Indices of the references that were left out; None if all were set.

        Raises
        ------
        InvalidInputError, NodeNotFoundError
            As for :meth:`set_virtual_ref`. Nothing was set.
        """
        self._check_writable()
        reader = self._array(array_path)
        refs = refs_of_specs(reader.node.path, reader.ndim, chunks)
        return self._set_refs(reader.node.path, refs, validate_containers)

    set_virtual_refs_async = async_twin(set_virtual_refs)

    def set_virtual_refs_arr(
        self,
        array_path: str,
        chunk_grid_shape: tuple[int, ...],
        locations: Sequence[str] | NDArray[Any],
        offsets: ArrayLike,
        lengths: ArrayLike,
        *,
        validate_containers: bool = True,
        arr_offset: tuple[int, ...] | None = None,
        checksum: datetime | str | None = None,
    ) -> builtins.list[tuple[int, ...]] | None:
        """Set the virtual references of a box of chunks, given as columns in C order.

        Parameters
        ----------
        array_path
            Node path of the array.
        chunk_grid_shape
            Shape of the box in chunks. The columns have one entry for each of its chunks.
        locations
            URL of each chunk's object, as a list or numpy array of strings; ``""`` leaves a chunk unchanged.
        offsets, lengths
            Byte range of each chunk: unsigned integers ``(n,)``.
        validate_containers
            Leave out references whose location lies in no virtual chunk container.
        arr_offset
            Chunk index of the first chunk of the box; the origin by default.
        checksum
            One etag or last modification time for all references.

        Returns
        -------
        Indices of the references that were left out; None if all were set.

        Raises
        ------
        InvalidInputError, NodeNotFoundError
            As for :meth:`set_virtual_ref`. Nothing was set.
        """
        self._check_writable()
        reader = self._array(array_path)
        refs = refs_of_grid(
            reader.node.path,
            reader.grid,
            chunk_grid_shape,
            locations,
            offsets,
            lengths,
            arr_offset=arr_offset,
            checksum=checksum,
        )
        return self._set_refs(reader.node.path, refs, validate_containers)

    set_virtual_refs_arr_async = async_twin(set_virtual_refs_arr)

    def _set_refs(
        self, path: str, refs: ChunkRefs, validate_containers: bool
    ) -> builtins.list[tuple[int, ...]] | None:
        if len(refs) == 0:
            return None
        refused = self._workspace.set_chunk_refs(path, refs, validate_containers=validate_containers)
        self._workspace.report()
        if refused is None or not refused.any():
            return None
        return list(map(tuple, refs.indices[np.flatnonzero(refused)].tolist()))

    async def array_chunk_iterator(self, array_path: str, batch_size: int = 100_000) -> AsyncIterator[ReferenceBatch]:
        """Iterate over the references of an array, as batches of columns sorted by chunk index.

        Parameters
        ----------
        array_path
            Node path of the array.
        batch_size
            Maximum number of rows in a batch.

        Yields
        ------
        Six columns of equal length:

        - ``uint32 (n, ndim)``: chunk indices.
        - ``uint8 (n,)``: values of :class:`~icechunk_engine.columns.chunk_refs.ChunkType`.
        - ``list[str]``: absolute URL of a virtual chunk, id of a native chunk, ``""`` for an inline chunk.
        - ``uint64 (n,)``: offset in the object; 0 for inline chunks.
        - ``uint64 (n,)``: length in bytes.
        - ``dict[int, bytes]``: bytes of the inline chunks by row of the batch.

        Raises
        ------
        NodeNotFoundError
            The array does not exist.
        InvalidInputError
            ``not-an-array``: the path belongs to a group.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        await self._prepare()
        refs = await self._chunk_refs(self._array(array_path).node.path)
        for batch in reference_batches(refs, batch_size, self._workspace.absolute_location):
            yield batch

    def _array(self, array_path: str) -> ArrayReader:
        path = paths.normalize(array_path)
        reader = self._workspace.array_reader(path)
        if reader is None and self._workspace.look_again():
            reader = self._workspace.array_reader(path)
        if reader is not None:
            return reader
        if self._workspace.get_node(path) is None:
            raise NodeNotFoundError(f"node not found at {path!r}. Create the array first", ErrorKind.NODE_NOT_FOUND)
        raise InvalidInputError(f"there is not an array at {path!r}, but a group", ErrorKind.NOT_AN_ARRAY)
