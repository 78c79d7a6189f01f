"""The part of the store that is not Zarr's: chunks that are byte ranges of other people's objects."""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icechunk_engine import paths
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError, SessionStateError
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.session import Session
from icechunk_engine.session.chunks import ArrayReader
from icechunk_engine.virtual.virtual_refs import (
    Checksum,
    ReferenceBatch,
    reference_batches,
    refs_of_grid,
    refs_of_specs,
    single_reference,
    split_checksum,
)

if TYPE_CHECKING:
    from icechunk_engine.config import VirtualChunkSpec


class Target(NamedTuple):
    """What a key addresses: the node's document (``chunk_index`` None) or one chunk."""

    path: str
    chunk_index: ChunkIndex | None


class VirtualReferences(ABC):
    """Setting and listing references, for the store to inherit."""

    _session: Session

    @abstractmethod
    def _check_writable(self) -> None: ...

    @abstractmethod
    def _target(self, key: str) -> Target | None: ...

    @abstractmethod
    async def _ready(self) -> None: ...

    @abstractmethod
    async def _refs(self, path: str) -> ChunkRefs: ...

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
        """Let one chunk be a range of bytes of somebody else's object.

        Parameters
        ----------
        key
            The chunk's store key, ``array/c/0/0``.
        location
            Absolute URL of the object, or ``vcc://<container name>/<rest>``. Characters that are reserved in URLs and
            belong to the object's key are percent-encoded (``?`` as ``%3F``, ``#`` as ``%23``, ``%`` as ``%25``).
        offset, length
            Bytes of the object that are the chunk.
        checksum
            Etag or time of last modification that the object must still have when it is read.
        validate_container
            Refuse locations that no virtual chunk container of the repository covers.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref``, ``no-container-for-virtual-chunk``, ``zero-length-chunk``,
            ``invalid-chunk-index``, ``invalid-key``.
        NodeNotFoundError
            The array does not exist.
        SessionStateError
            ``not-allowed``: the key is a node's document.
        """
        self._check_writable()
        target = self._target(key)
        if target is None or target.chunk_index is None:
            raise SessionStateError(
                f"{key!r} is metadata, only chunks can be references; store documents with store.set",
                ErrorKind.NOT_ALLOWED,
            )
        etag, last_modified = split_checksum(checksum)
        ref = single_reference(location, offset, length, etag, last_modified)
        self._session.set_chunk_ref(target.path, target.chunk_index, ref, validate_container=validate_container)

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
            Index, location, byte range and checksums of each. For many, :meth:`set_virtual_refs_arr` is far faster.
        validate_containers
            Leave out references that no virtual chunk container covers.

        Returns
        -------
        Indices of those that were left out; None when there are none.

        Raises
        ------
        InvalidInputError, NodeNotFoundError
            As for :meth:`set_virtual_ref`; nothing was set.
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
        """Set the virtual references of a box of chunks, given as columns that are flattened in C order.

        Parameters
        ----------
        array_path
            Node path of the array.
        chunk_grid_shape
            Shape of the box in chunks; its product is the length of the columns.
        locations
            URL of each chunk's object; ``""`` leaves the chunk as it is. A list or numpy array of strings.
        offsets, lengths
            Unsigned integers ``(n,)``: byte range of each chunk.
        validate_containers
            Leave out references that no virtual chunk container covers.
        arr_offset
            Chunk index where the box begins; the origin by default.
        checksum
            One etag or time of last modification for all.

        Returns
        -------
        Indices of the references that were left out; None when there are none.

        Raises
        ------
        InvalidInputError, NodeNotFoundError
            As for :meth:`set_virtual_ref`; nothing was set.
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
        refused = self._session.set_chunk_refs(path, refs, validate_containers=validate_containers)
        if refused is None or not refused.any():
            return None
        return list(map(tuple, refs.indices[np.flatnonzero(refused)].tolist()))

    async def array_chunk_iterator(self, array_path: str, batch_size: int = 100_000) -> AsyncIterator[ReferenceBatch]:
        """References of an array in columns, batch by batch, sorted by chunk index.

        Parameters
        ----------
        array_path
            Node path of the array.
        batch_size
            Rows a batch at most.

        Yields
        ------
        Six columns of equal length:

        - ``uint32 (n, ndim)``: chunk indices.
        - ``uint8 (n,)``: values of :class:`~icechunk_engine.columns.chunk_refs.ChunkType`.
        - ``list[str]``: absolute URL of a virtual chunk, id of a native one, ``""`` of an inline one.
        - ``uint64 (n,)``: offset in that object, 0 for inline chunks.
        - ``uint64 (n,)``: length in bytes.
        - ``dict[int, bytes]``: payloads of the inline chunks by row of the batch.

        Raises
        ------
        NodeNotFoundError
            There is no array. InvalidInputError (``not-an-array``) when there is a group.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        await self._ready()
        refs = await self._refs(self._array(array_path).node.path)
        for batch in reference_batches(refs, batch_size, self._session.absolute_location):
            yield batch

    def _array(self, array_path: str) -> ArrayReader:
        path = paths.normalize(array_path)
        reader = self._session.array_reader(path)
        if reader is not None:
            return reader
        if self._session.get_node(path) is None:
            raise NodeNotFoundError(f"node not found at {path!r}. Create the array first", ErrorKind.NODE_NOT_FOUND)
        raise InvalidInputError(f"there is not an array at {path!r}, but a group", ErrorKind.NOT_AN_ARRAY)
