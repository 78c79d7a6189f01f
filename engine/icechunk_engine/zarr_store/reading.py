"""Reading values: locate a chunk's reference, then fetch its bytes.

Locating is arithmetic on columns; fetching is one ranged read. Whatever needs no network runs in place, without a hop
to another thread: metadata, inline chunks, small local reads. Everything else goes to the engine's pool
(:mod:`icechunk_engine._runtime.pools`). A hop costs more than reading a small local chunk.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest
from zarr.buffer import default_buffer_prototype

from icechunk_engine._runtime.observing import add_step
from icechunk_engine._runtime.pools import in_thread, request
from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRef
from icechunk_engine.errors import ErrorKind, IcechunkError, NodeNotFoundError
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.workspace.workspace import Workspace
from icechunk_engine.zarr_store.base import MAX_IN_PLACE_BYTES, BaseStore, Target
from icechunk_engine.zarr_store.byte_ranges import Piece, bounds_of, coalesce, split_read, take_range
from icechunk_engine.zarr_store.concurrent_calls import as_completed, gather
from icechunk_engine.zarr_store.joint_reads import JointReads
from icechunk_engine.zarr_store.opened_arrays import OpenedArrays

LOCAL_GAP_BYTES = 32 * 1024
"""On local storage, ranges closer than this are read together; an extra read costs about as much as these bytes."""

DEFAULT_CONCURRENCY = 10
"""Values that :meth:`ReadingStore.get_partial_values` fetches at a time, unless the configuration says otherwise."""


class _MissingKeyError(NodeNotFoundError, FileNotFoundError):
    """The key does not exist. Also a FileNotFoundError, which zarr expects of ``getsize``."""


class ReadingStore(BaseStore):
    """Gets values, ranges of values, and their sizes."""

    def __init__(self, workspace: Workspace, *, read_only: bool) -> None:
        super().__init__(workspace, read_only=read_only)
        self._joint_reads = JointReads(workspace.fetch_chunk)
        self._opened_arrays = OpenedArrays() if read_only and not workspace.read_only else None

    @property
    def _supports_sync_io(self) -> bool:
        """Zarr reads synchronously with a handful of threads: enough for disks, far too few for a network."""
        return not self._workspace.chunks_may_be_remote

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the value of a key, or a range of it; None if the key does not exist.

        A range that goes past the end of the value is cut there.

        Raises
        ------
        InvalidInputError
            ``invalid-key``; ``invalid-byte-range``: not a byte request.
        StorageError
            The chunk's object is missing, too short, or was modified.
        """
        target = self._target(key)
        if target is None:
            return None
        if target.chunk_index is None:
            await self._prepare()
            document = self._workspace.read_metadata(target.path)
            if document is None and await self._look_again():
                document = self._workspace.read_metadata(target.path)
            self._note_opened(target.path)
            return None if document is None else prototype.buffer.from_bytes(take_range(document, byte_range))
        try:
            ref = await self._locate(target.path, target.chunk_index)
            if ref is None:
                return None
            start, stop = bounds_of(byte_range, ref.length)
            return prototype.buffer.from_bytes(await self._fetch(ref, start, stop))
        except IcechunkError as error:
            add_step(error, self._describe_read(target.path, target.chunk_index))
            raise

    async def _locate(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        if self._workspace.exchange is not None:
            await self._prepare(for_chunks=True)
        found = await self._locate_now(path, index)
        return await self._locate_now(path, index) if found is None and await self._look_again() else found

    async def _locate_now(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        if self._opened_arrays is not None:
            await self._workspace.fetch_remote_snapshot()
            self._opened_arrays.require_same(self._workspace, path)
        if self._workspace.storage_is_remote:
            return await self._workspace.locate_chunk_async(path, index)
        return self._workspace.locate_chunk(path, index)

    def _locate_sync(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        self._workspace.look()
        if self._opened_arrays is not None:
            self._opened_arrays.require_same(self._workspace, path)
        found = self._workspace.locate_chunk(path, index)
        return self._workspace.locate_chunk(path, index) if found is None and self._workspace.look_again() else found

    def _read_document(self, path: str) -> bytes | None:
        self._workspace.look(for_chunks=False)
        found = self._workspace.read_metadata(path)
        return self._workspace.read_metadata(path) if found is None and self._workspace.look_again() else found

    def _note_opened(self, path: str) -> None:
        if self._opened_arrays is not None:
            self._opened_arrays.add(self._workspace, path)

    async def _fetch(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        if self._workspace.chunk_is_remote(ref):
            if ref.kind == VIRTUAL and start < stop:
                return await self._joint_reads.read(ref, start, stop)
            return await request(self._workspace.fetch_chunk, ref, start, stop)
        if stop - start <= MAX_IN_PLACE_BYTES:
            return self._workspace.fetch_chunk(ref, start, stop)
        return await in_thread(self._workspace.fetch_chunk, ref, start, stop)

    def _read_chunk(self, path: str, index: ChunkIndex, byte_range: ByteRequest | None) -> bytes | None:
        try:
            ref = self._locate_sync(path, index)
            if ref is None:
                return None
            start, stop = bounds_of(byte_range, ref.length)
            return self._workspace.fetch_chunk(ref, start, stop)
        except IcechunkError as error:
            add_step(error, self._describe_read(path, index))
            raise

    def _describe_read(self, path: str, index: ChunkIndex) -> str:
        """Describe a read, for errors."""
        where = f"snapshot {self._workspace.snapshot_id} of {self._workspace.storage_identity}"
        return f"reading chunk {index} of array {path} in {where}"

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Synchronous twin of :meth:`get`."""
        target = self._target(key)
        if target is None:
            return None
        if target.chunk_index is None:
            document = self._read_document(target.path)
            self._note_opened(target.path)
            data = None if document is None else take_range(document, byte_range)
        else:
            data = self._read_chunk(target.path, target.chunk_index, byte_range)
        if data is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> builtins.list[Buffer | None]:
        """Return the values of several keys, or ranges of them, in order; None for each key that does not exist."""
        wanted = list(key_ranges)
        if not self._workspace.chunks_may_be_remote:
            return [await self.get(key, prototype, byte_range) for key, byte_range in wanted]
        return await gather(
            [partial(self.get, key, prototype, byte_range) for key, byte_range in wanted],
            self._workspace.config.get_partial_values_concurrency or DEFAULT_CONCURRENCY,
        )

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_concurrency: int = 10,
        max_gap_bytes: int = 1 << 20,
        max_coalesced_bytes: int = 16 << 20,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Read many ranges of one value. Neighbouring ranges share a read.

        Yields
        ------
        The results of one read each, in order of completion: pairs of position in ``byte_ranges`` and bytes.

        Raises
        ------
        BaseExceptionGroup
            Contains the errors of the reads; a FileNotFoundError if the key does not exist.
        """
        if not byte_ranges:
            return
        try:
            source = await self._source(key)
            groups = self._plan(source, byte_ranges, max_gap_bytes, max_coalesced_bytes)
            if isinstance(source, bytes) or not self._workspace.chunk_is_remote(source):
                for group in groups:
                    start, stop = group[0].start, max(piece.stop for piece in group)
                    data = source[start:stop] if isinstance(source, bytes) else await self._fetch(source, start, stop)
                    yield split_read(data, group, prototype)
                return
            reads = [
                partial(self._fetch, source, group[0].start, max(piece.stop for piece in group)) for group in groups
            ]
            async for position, data in as_completed(reads, max_concurrency):
                yield split_read(data, groups[position], prototype)
        except Exception as error:
            raise ExceptionGroup(f"reading ranges of {key!r} failed", [error]) from None

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_gap_bytes: int = 1 << 20,
        max_coalesced_bytes: int = 16 << 20,
    ) -> Sequence[tuple[int, Buffer | None]]:
        """Synchronous twin of :meth:`get_ranges`. Returns all results at once."""
        if not byte_ranges:
            return []
        results: builtins.list[tuple[int, Buffer | None]] = []
        try:
            source = self._source_sync(key)
            for group in self._plan(source, byte_ranges, max_gap_bytes, max_coalesced_bytes):
                start, stop = group[0].start, max(piece.stop for piece in group)
                data = (
                    source[start:stop]
                    if isinstance(source, bytes)
                    else self._workspace.fetch_chunk(source, start, stop)
                )
                results.extend(split_read(data, group, prototype))
        except Exception as error:
            raise ExceptionGroup(f"reading ranges of {key!r} failed", [error]) from None
        return results

    async def _source(self, key: str) -> bytes | ChunkRef:
        """Return a node's document or a chunk's reference. Raises _MissingKeyError if it does not exist."""
        target = self._require_target(key)
        if target.chunk_index is None:
            await self._prepare()
            document = self._workspace.read_metadata(target.path)
            if document is None and await self._look_again():
                document = self._workspace.read_metadata(target.path)
            return _require_document(target, document)
        return _require_chunk(target, await self._locate(target.path, target.chunk_index))

    def _source_sync(self, key: str) -> bytes | ChunkRef:
        target = self._require_target(key)
        if target.chunk_index is None:
            return _require_document(target, self._read_document(target.path))
        return _require_chunk(target, self._locate_sync(target.path, target.chunk_index))

    def _require_target(self, key: str) -> Target:
        target = self._target(key)
        if target is None:
            raise _MissingKeyError(f"no key {key!r}: the store holds Zarr format 3 only", ErrorKind.KEY_NOT_FOUND)
        return target

    def _plan(
        self,
        source: bytes | ChunkRef,
        byte_ranges: Sequence[ByteRequest | None],
        max_gap_bytes: int,
        max_coalesced_bytes: int,
    ) -> builtins.list[builtins.list[Piece]]:
        if isinstance(source, bytes):
            length, is_remote = len(source), False
        else:
            length, is_remote = source.length, self._workspace.chunk_is_remote(source)
        pieces = [Piece(*bounds_of(byte_range, length), position) for position, byte_range in enumerate(byte_ranges)]
        gap = max_gap_bytes if is_remote else min(max_gap_bytes, LOCAL_GAP_BYTES)
        return coalesce(pieces, gap, max_coalesced_bytes)

    async def exists(self, key: str) -> bool:
        """Return True if the key has a value. Raises InvalidInputError (``invalid-key``)."""
        try:
            await self._source(key)
        except _MissingKeyError:
            return False
        return True

    async def getsize(self, key: str) -> int:
        """Return the length of a value in bytes. Takes it from the manifest, without reading the chunk.

        Raises
        ------
        NodeNotFoundError
            The key does not exist (also a FileNotFoundError).
        """
        source = await self._source(key)
        return len(source) if isinstance(source, bytes) else source.length


def _require_document(target: Target, document: bytes | None) -> bytes:
    if document is None:
        raise _MissingKeyError(f"no group or array at {target.path!r}", ErrorKind.NODE_NOT_FOUND)
    return document


def _require_chunk(target: Target, ref: ChunkRef | None) -> ChunkRef:
    if ref is None:
        raise _MissingKeyError(f"no chunk {target.chunk_index} in {target.path!r}", ErrorKind.CHUNK_NOT_FOUND)
    return ref
