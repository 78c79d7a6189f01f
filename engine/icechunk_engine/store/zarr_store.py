"""IcechunkStore: the Zarr store of a session.

Keys are strict (:mod:`icechunk_engine.keys`): ``zarr.json`` documents are nodes, ``…/c/0/1`` are chunks, Zarr v2 names
are never there, anything else is an error. Reading a chunk is two steps: *locate* its reference, which is arithmetic
on columns, and *fetch* its bytes. What needs no network is done in place, without an event loop or a thread: metadata,
inline chunks, small local reads. What does goes to the engine's pool (:mod:`icechunk_engine._runtime.pools`).

Directories in listings and deletions are whole components: ``a`` covers ``a/b``, not ``ab``.

Deleting removes what was named and no more. The key of a node's document stands for the node: a group goes with its
members, an array with its chunks. A directory stands for all that lies at and below it. What is not there deletes
nothing: ``g/zarr.json`` leaves the members of a ``g`` that has no document, where the directory ``g`` takes them.
"""

from __future__ import annotations

import asyncio
import builtins
import html
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from icechunk_engine import keys, paths
from icechunk_engine._runtime.observing import add_step
from icechunk_engine._runtime.pools import in_thread, request
from icechunk_engine.columns.chunk_refs import NATIVE, VIRTUAL, ChunkRef, ChunkRefs
from icechunk_engine.errors import (
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    NodeNotFoundError,
    ReadOnlyError,
    SessionStateError,
)
from icechunk_engine.errors.foreign import describe
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.session import Session
from icechunk_engine.store import key_listing
from icechunk_engine.store.byte_ranges import Piece, coalesce, cut, deal, resolve
from icechunk_engine.store.joint_reads import JointReads
from icechunk_engine.store.virtual_references import Target, VirtualReferences

if TYPE_CHECKING:
    from icechunk_engine.format.snapshot import Node

IN_PLACE_BYTES = 256 * 1024
"""Local reads up to this size block the event loop for less time than a hop to a thread takes."""

LOCAL_GAP_BYTES = 32 * 1024
"""On local storage, ranges closer than this are read as one; an extra read costs about as much as these bytes."""

DEFAULT_CONCURRENCY = 10
"""Values fetched at a time by :meth:`IcechunkStore.get_partial_values` where the configuration says nothing."""

_CACHED_PREFIXES = 4096


class _MissingKeyError(NodeNotFoundError, FileNotFoundError):
    """No such key; also the FileNotFoundError that zarr expects of ``getsize``."""


class IcechunkStore(VirtualReferences, Store):
    """Zarr store over a session; ``session.store`` makes it.

    Parameters
    ----------
    session
        The session that is read and written.
    read_only
        True refuses writes even if the session takes them. By default the session decides.

    Notes
    -----
    Closing a store leaves its session as it is. Stores pickle when their session does: read-only sessions and forks.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True
    supports_consolidated_metadata: bool = False

    def __init__(self, session: Session, read_only: bool | None = None) -> None:
        if not isinstance(session, Session):
            raise TypeError(f"an IcechunkStore is made from a Session, not from {describe(session)}")
        if read_only is False and session.read_only:
            raise ReadOnlyError(
                "a read-only session has no writable store; use repo.writable_session(branch).store",
                ErrorKind.READ_ONLY_SESSION,
            )
        super().__init__(read_only=bool(read_only))
        self._session = session
        self._paths: dict[str, str] = {}
        self._joint_reads = JointReads(session.fetch_chunk)

    # --- identity ----------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """The session behind this store."""
        return self._session

    @property
    def read_only(self) -> bool:
        """True when writes are refused: by this store, or by its session (which a commit makes read-only)."""
        return self._read_only or self._session.read_only

    def with_read_only(self, read_only: bool = False) -> IcechunkStore:
        """A store over the same session that refuses writes, or takes them; not opened yet, as zarr wants.

        Raises
        ------
        ReadOnlyError
            A writable store was asked of a read-only session.
        """
        return type(self)(self._session, read_only)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IcechunkStore):
            return NotImplemented
        return self._session == other._session and self.read_only == other.read_only

    def __hash__(self) -> int:
        return hash(self._session)

    def __repr__(self) -> str:
        return f"<IcechunkStore read_only={self.read_only} session={self._session!r}>"

    def _repr_html_(self) -> str:
        return f"<div><b>{html.escape(type(self).__name__)}</b></div>{self._session._repr_html_()}"

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return "icechunk-store", self._session.__dask_tokenize__()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._session, self._read_only or None), {"_is_open": self._is_open}

    def __copy__(self) -> IcechunkStore:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> IcechunkStore:
        # Copies of arrays read and write the one session; its edits must not split in two.
        return self

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError(
                "cannot write to read-only store; use session.store, or store.with_read_only(False)",
                ErrorKind.READ_ONLY_STORE,
            )
        if self._session.read_only:
            raise ReadOnlyError(
                "cannot write to read-only store: its session is read-only. Write through "
                "repo.writable_session(branch).store; after a commit, start a new session to go on",
                ErrorKind.READ_ONLY_STORE,
            )

    async def set_partial_values(self, key_start_values: Iterable[tuple[str, int, bytes]]) -> None:
        """Not implemented, here as in official's package: write whole chunks. Raises SessionStateError."""
        raise SessionStateError(
            "store method `set_partial_values` is not implemented by Icechunk; set the whole chunk",
            ErrorKind.UNIMPLEMENTED,
        )

    # --- keys --------------------------------------------------------------------------------------------------

    def _target(self, key: str) -> Target | None:
        """What a key addresses; None for Zarr v2 names. Chunk keys of nested arrays take the short way."""
        head, separator, tail = key.rpartition("/c/")
        if separator and tail.isascii() and tail.replace("/", "").isdecimal():
            path = self._paths.get(head)
            components = tail.split("/")
            if path is not None and "" not in components and len(max(components, key=len)) < 10:
                return Target(path, tuple(map(int, components)))
        parsed = keys.parse(key)
        if isinstance(parsed, keys.ChunkKey):
            if separator and keys.chunk_prefix(parsed.path) == f"{head}/c":
                if len(self._paths) >= _CACHED_PREFIXES:
                    self._paths.clear()
                self._paths[head] = parsed.path
            return Target(parsed.path, parsed.index)
        return Target(parsed.path, None) if isinstance(parsed, keys.MetadataKey) else None

    # --- reading -----------------------------------------------------------------------------------------------

    @property
    def _supports_sync_io(self) -> bool:
        """Zarr's synchronous pipeline reads with a handful of threads: right for disks, far too few for a network."""
        return not self._session.chunks_may_be_remote

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The value of a key, or a range of it; None when it is not there. Ranges are cut at the value's end.

        Raises
        ------
        InvalidInputError
            ``invalid-key``, or ``invalid-byte-range`` for something that is no byte request.
        StorageError
            The chunk's object is missing, too short, or was modified.
        """
        target = self._target(key)
        if target is None:
            return None
        if target.chunk_index is None:
            await self._ready()
            document = self._session.read_metadata(target.path)
            return None if document is None else prototype.buffer.from_bytes(cut(document, byte_range))
        try:
            ref = await self._locate(target.path, target.chunk_index)
            if ref is None:
                return None
            start, stop = resolve(byte_range, ref.length)
            return prototype.buffer.from_bytes(await self._fetch(ref, start, stop))
        except IcechunkError as error:
            add_step(error, self._reading(target.path, target.chunk_index))
            raise

    async def _ready(self) -> None:
        """Fetch what nodes are looked up in, where that would make the event loop wait for a network."""
        if self._session.nodes_are_remote:
            await self._session.load_nodes()

    async def _locate(self, path: str, index: ChunkIndex) -> ChunkRef | None:
        if self._session.storage_is_remote:
            return await self._session.locate_chunk_async(path, index)
        return self._session.locate_chunk(path, index)

    async def _fetch(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        if self._session.chunk_is_remote(ref):
            if ref.kind == VIRTUAL and start < stop:
                return await self._joint_reads.read(ref, start, stop)
            return await request(self._session.fetch_chunk, ref, start, stop)
        if stop - start <= IN_PLACE_BYTES:
            return self._session.fetch_chunk(ref, start, stop)
        return await in_thread(self._session.fetch_chunk, ref, start, stop)

    def _read_chunk(self, path: str, index: ChunkIndex, byte_range: ByteRequest | None) -> bytes | None:
        try:
            ref = self._session.locate_chunk(path, index)
            if ref is None:
                return None
            start, stop = resolve(byte_range, ref.length)
            return self._session.fetch_chunk(ref, start, stop)
        except IcechunkError as error:
            add_step(error, self._reading(path, index))
            raise

    def _reading(self, path: str, index: ChunkIndex) -> str:
        """What an error is told to have happened in."""
        where = f"snapshot {self._session.snapshot_id} of {self._session.storage_identity}"
        return f"reading chunk {index} of array {path} in {where}"

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Synchronous twin of :meth:`get`."""
        target = self._target(key)
        if target is None:
            return None
        if target.chunk_index is None:
            document = self._session.read_metadata(target.path)
            data = None if document is None else cut(document, byte_range)
        else:
            data = self._read_chunk(target.path, target.chunk_index, byte_range)
        if data is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> builtins.list[Buffer | None]:
        """Values or ranges of several keys, in their order; None for each that is not there."""
        wanted = list(key_ranges)
        if not self._session.chunks_may_be_remote:
            return [await self.get(key, prototype, byte_range) for key, byte_range in wanted]
        return await _gather(
            [_Call(self.get, (key, prototype, byte_range)) for key, byte_range in wanted],
            self._session.config.get_partial_values_concurrency or DEFAULT_CONCURRENCY,
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
        """Many ranges of one value, neighbouring ones read together.

        Yields
        ------
        ``(position among byte_ranges, bytes)`` of the ranges that one read served, in order of completion.

        Raises
        ------
        BaseExceptionGroup
            Holds the reads' errors; a FileNotFoundError when the key is not there.
        """
        if not byte_ranges:
            return
        try:
            source = await self._source(key)
            groups = self._plan(source, byte_ranges, max_gap_bytes, max_coalesced_bytes)
            if isinstance(source, bytes) or not self._session.chunk_is_remote(source):
                for group in groups:
                    start, stop = group[0].start, max(piece.stop for piece in group)
                    data = source[start:stop] if isinstance(source, bytes) else await self._fetch(source, start, stop)
                    yield deal(data, group, prototype)
                return
            reads = [
                _Call(self._fetch, (source, group[0].start, max(piece.stop for piece in group))) for group in groups
            ]
            async for position, data in _as_completed(reads, max_concurrency):
                yield deal(data, groups[position], prototype)
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
        """Synchronous twin of :meth:`get_ranges`, all results at once."""
        if not byte_ranges:
            return []
        results: builtins.list[tuple[int, Buffer | None]] = []
        try:
            source = self._source_sync(key)
            for group in self._plan(source, byte_ranges, max_gap_bytes, max_coalesced_bytes):
                start, stop = group[0].start, max(piece.stop for piece in group)
                data = (
                    source[start:stop] if isinstance(source, bytes) else self._session.fetch_chunk(source, start, stop)
                )
                results.extend(deal(data, group, prototype))
        except Exception as error:
            raise ExceptionGroup(f"reading ranges of {key!r} failed", [error]) from None
        return results

    async def _source(self, key: str) -> bytes | ChunkRef:
        """A node's document or a chunk's reference; raises _MissingKeyError when there is none."""
        target = self._present_target(key)
        if target.chunk_index is None:
            await self._ready()
            return self._document(target.path)
        return _require_chunk(target, await self._locate(target.path, target.chunk_index))

    def _source_sync(self, key: str) -> bytes | ChunkRef:
        target = self._present_target(key)
        if target.chunk_index is None:
            return self._document(target.path)
        return _require_chunk(target, self._session.locate_chunk(target.path, target.chunk_index))

    def _present_target(self, key: str) -> Target:
        target = self._target(key)
        if target is None:
            raise _MissingKeyError(f"no key {key!r}: Zarr v2 documents do not exist here", ErrorKind.KEY_NOT_FOUND)
        return target

    def _document(self, path: str) -> bytes:
        document = self._session.read_metadata(path)
        if document is None:
            raise _MissingKeyError(f"no group or array at {path!r}", ErrorKind.NODE_NOT_FOUND)
        return document

    def _plan(
        self,
        source: bytes | ChunkRef,
        byte_ranges: Sequence[ByteRequest | None],
        max_gap_bytes: int,
        max_coalesced_bytes: int,
    ) -> builtins.list[builtins.list[Piece]]:
        if isinstance(source, bytes):
            length, waits = len(source), False
        else:
            length, waits = source.length, self._session.chunk_is_remote(source)
        pieces = [Piece(*resolve(byte_range, length), position) for position, byte_range in enumerate(byte_ranges)]
        gap = max_gap_bytes if waits else min(max_gap_bytes, LOCAL_GAP_BYTES)
        return coalesce(pieces, gap, max_coalesced_bytes)

    async def exists(self, key: str) -> bool:
        """True when the key has a value. Raises InvalidInputError (``invalid-key``)."""
        try:
            await self._source(key)
        except _MissingKeyError:
            return False
        return True

    async def getsize(self, key: str) -> int:
        """Length of a key's value in bytes, from the manifest; nothing is read.

        Raises
        ------
        NodeNotFoundError
            No such key (also a FileNotFoundError).
        """
        source = await self._source(key)
        return len(source) if isinstance(source, bytes) else source.length

    async def getsize_prefix(self, prefix: str) -> int:
        """Length in bytes of all values in a directory, from manifests; nothing else is read."""
        total = 0
        await self._ready()
        async for node, refs in self._with_refs(self._nodes_in(prefix)):
            total += len(node.user_data) + (0 if refs is None else int(refs.lengths.sum()))
        found = self._chunk_directory(prefix)
        if found is not None:
            of_array = await self._refs(found.path)
            total += int(of_array.lengths[key_listing.rows_under(of_array.indices, found.index_prefix)].sum())
        return total

    # --- writing -----------------------------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Store a value: a node's document, or a chunk's bytes, which are durable when this returns.

        Raises
        ------
        ReadOnlyError
            ``read-only-store``, ``read-only-session``.
        InvalidInputError
            ``invalid-key``, ``invalid-chunk-index``, ``zero-length-chunk``, ``not-an-array``, ``bad-metadata``.
        NodeNotFoundError
            The chunk's array does not exist.
        SessionStateError
            ``unimplemented``: a Zarr v2 document.
        """
        target = self._writable_target(key, value)
        if target.chunk_index is None:
            await self._ready()
            self._session.set_metadata(target.path, value.to_bytes())
            return
        data = _payload(value)
        if self._session.storage_is_remote:
            await self._ready()
            ref = self._session.new_chunk(target.path, target.chunk_index, data)
            if ref.kind == NATIVE:
                await request(self._session.store_chunk, ref, data)
            self._session.put_chunk(target.path, target.chunk_index, ref)
        elif len(data) <= IN_PLACE_BYTES:
            self._session.set_chunk(target.path, target.chunk_index, data)
        else:
            await in_thread(self._session.set_chunk, target.path, target.chunk_index, data)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Synchronous twin of :meth:`set`."""
        target = self._writable_target(key, value)
        if target.chunk_index is None:
            self._session.set_metadata(target.path, value.to_bytes())
        else:
            self._session.set_chunk(target.path, target.chunk_index, _payload(value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store a value unless the key has one."""
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
                f"cannot store {key!r}: only Zarr format 3 is held here. Create arrays with zarr_format=3",
                ErrorKind.UNIMPLEMENTED,
            )
        return target

    async def delete(self, key: str) -> None:
        """Remove what a key stands for, if it is there.

        A node's document stands for the node: a group goes with all its members, an array with its chunks.
        """
        self._check_writable()
        target = self._target(key)
        if target is not None and self._session.storage_is_remote:
            await in_thread(self._delete, target)
        elif target is not None:
            self._delete(target)

    def delete_sync(self, key: str) -> None:
        """Synchronous twin of :meth:`delete`."""
        self._check_writable()
        target = self._target(key)
        if target is not None:
            self._delete(target)

    def _delete(self, target: Target) -> None:
        if target.chunk_index is None:
            self._session.delete_node(target.path)
        else:
            self._session.delete_chunk(target.path, target.chunk_index)

    async def delete_dir(self, prefix: str) -> None:
        """Remove everything in a directory: the nodes at and below a path, or the chunks in ``array/c/0``."""
        self._check_writable()
        await self._ready()
        path = _node_path(prefix)
        if path is not None:
            self._session.delete_directory(path)
        found = self._chunk_directory(prefix)
        if found is not None and self._session.storage_is_remote:
            await in_thread(self._session.delete_chunks_under, found.path, found.index_prefix)
        elif found is not None:
            self._session.delete_chunks_under(found.path, found.index_prefix)

    async def clear(self) -> None:
        """Remove every group and array from the session; the repository's history keeps them."""
        await self._ready()
        self.sync_clear()

    def sync_clear(self) -> None:
        """Synchronous twin of :meth:`clear`."""
        self._check_writable()
        self._session.delete_all()

    # --- listing -----------------------------------------------------------------------------------------------

    def _nodes_in(self, prefix: str) -> builtins.list[Node]:
        path = _node_path(prefix)
        return [] if path is None else list(self._session.list_nodes(path))

    def _chunk_directory(self, prefix: str) -> _ChunkDirectory | None:
        """The array and index prefix of ``array/c`` or ``array/c/0``, None for all other directories."""
        found = key_listing.parse_chunk_directory(prefix.strip("/"))
        if found is None:
            return None
        path, index = found
        reader = self._session.array_reader(path)
        return _ChunkDirectory(path, index) if reader is not None and len(index) < reader.ndim else None

    async def _refs(self, path: str) -> ChunkRefs:
        if self._session.storage_is_remote:
            return await in_thread(self._session.chunk_refs, path)
        return self._session.chunk_refs(path)

    async def _with_refs(self, nodes: builtins.list[Node]) -> AsyncIterator[tuple[Node, ChunkRefs | None]]:
        """Nodes with the references of those that are arrays; manifests are fetched for some of them at once."""
        for batch in self._session.batches(nodes):
            if self._session.storage_is_remote:
                await in_thread(self._session.load_manifests, batch)
            else:
                self._session.load_manifests(batch)
            for node in batch:
                yield node, await self._refs(node.path) if node.is_array else None

    async def is_empty(self, prefix: str) -> bool:
        """True when no key lies in a directory."""
        await self._ready()
        path = _node_path(prefix)
        if path is not None and (self._session.get_node(path) is not None or self._session.child_names(path)):
            return False
        found = self._chunk_directory(prefix)
        if found is None:
            return True
        return not key_listing.rows_under((await self._refs(found.path)).indices, found.index_prefix).any()

    def list(self) -> AsyncIterator[str]:
        """All keys: each node's document followed by the chunks of arrays in order of their indices."""
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys in a directory, and the key itself if ``prefix`` is one."""
        await self._ready()
        async for node, refs in self._with_refs(self._nodes_in(prefix)):
            yield keys.metadata_key(node.path)
            if refs is not None:
                for batch in key_listing.chunk_keys(node.path, refs.indices):
                    for key in batch:
                        yield key
        found = self._chunk_directory(prefix)
        if found is not None:
            indices = (await self._refs(found.path)).indices
            for batch in key_listing.chunk_keys(
                found.path, indices[key_listing.rows_under(indices, found.index_prefix)]
            ):
                for key in batch:
                    yield key
        elif await self._is_key(prefix):
            yield prefix.lstrip("/")

    async def _is_key(self, text: str) -> bool:
        try:
            return await self.exists(text)
        except InvalidInputError:
            return False

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names of the keys and directories directly in a directory: each once, documents and groups by name."""
        await self._ready()
        path = _node_path(prefix)
        names: dict[str, None] = {}
        if path is not None:
            node = self._session.get_node(path)
            if node is not None:
                names[keys.METADATA_NAME] = None
                if node.is_array and len(await self._refs(path)):
                    names["c"] = None
            names.update(dict.fromkeys(self._session.child_names(path)))
        found = self._chunk_directory(prefix)
        ordered = sorted(names)
        if found is not None:
            indices = (await self._refs(found.path)).indices
            ordered.extend(n for n in key_listing.next_components(indices, found.index_prefix) if n not in names)
        for name in ordered:
            yield name


def open_store(session: Session) -> IcechunkStore:
    """The store of a session, open as zarr means it; one that the class makes is opened by zarr."""
    store = IcechunkStore(session)
    store._is_open = True
    return store


class _ChunkDirectory(NamedTuple):
    """``array/c/0``: the chunks of the array at ``path`` whose longer index starts with ``index_prefix``."""

    path: str
    index_prefix: ChunkIndex


def _require_chunk(target: Target, ref: ChunkRef | None) -> ChunkRef:
    if ref is None:
        raise _MissingKeyError(f"no chunk {target.chunk_index} in {target.path!r}", ErrorKind.CHUNK_NOT_FOUND)
    return ref


class _Call(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


async def _as_completed(calls: Sequence[_Call], limit: int) -> AsyncIterator[tuple[int, Any]]:
    """Results of asynchronous calls with their positions, in order of completion, at most ``limit`` at a time."""
    semaphore = asyncio.Semaphore(limit)

    async def run(position: int, call: _Call) -> tuple[int, Any]:
        async with semaphore:
            return position, await call.function(*call.arguments)

    tasks = [asyncio.create_task(run(position, call)) for position, call in enumerate(calls)]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gather(calls: Sequence[_Call], limit: int) -> list[Any]:
    results: list[Any] = [None] * len(calls)
    async for position, result in _as_completed(calls, limit):
        results[position] = result
    return results


def _payload(value: Buffer) -> bytes | memoryview:
    view = value.as_buffer_like()
    return view if isinstance(view, bytes) or (isinstance(view, memoryview) and view.contiguous) else bytes(view)


def _node_path(prefix: str) -> str | None:
    """Path of the node that a directory would belong to, None if no node can have it."""
    try:
        return paths.normalize(prefix.strip("/"))
    except InvalidInputError:
        return None
