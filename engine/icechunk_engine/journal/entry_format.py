"""One journal entry as bytes: some edits of one writer. Pure.

An entry is a head of 32 bytes, a JSON header, descriptors, and a body of columns, paths and documents. All numbers
are little-endian. Columns are stored as they are in memory, so neither side makes an object for each reference.

======== =================================================================
bytes    content
======== =================================================================
0 .. 8   magic ``XIJOURNL``
8        version of this layout: 1
9        compression of the body: 0 none, 1 zstd
12 .. 16 CRC-32 of everything from byte 16
16 .. 24 size of the body, decompressed
24 .. 28 size of the header, padded with spaces to a multiple of 8
32 ..    header; descriptors of arrays, of nodes that were set, and of nodes
         that were deleted; body
======== =================================================================

The body holds the columns and strings of each array, then the texts of each node. The sizes in the descriptors add up
to it exactly.

Anybody who can write to the storage can write an entry, so :func:`decode_entry` trusts nothing. The invariant: *the
entry that it returns is as safe to use as edits made in this process, and the size of the object bounds its memory.*
These rules keep it:

- The descriptors are never compressed. So the number of Python objects is bounded by the bytes of the object.
- A body is compressed only if it shrinks at most 128 times. So the reader can refuse any other without a setting.
- The body holds one index for each row of an array. So a few bytes cannot become millions of rows, although a column
  of equal values is stored as one value.
- Inline payloads do not overlap. So their lengths add up to no more than the body.
- Documents and paths are parsed by the functions that check those of users.

The receiver checks the rest: whether a node exists, and whether an index is in its grid.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Buffer, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
import zstandard
from numpy.typing import NDArray

from icechunk_engine import paths
from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NO_CODE, VIRTUAL, ChunkRefs
from icechunk_engine.columns.tables import BytesTable, gather_ranges
from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.flatbuf.reader import is_utf8
from icechunk_engine.format.decompression import DamagedError, TooLargeError, decompress_zstd
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.schema import MAX_NDIM
from icechunk_engine.format.zarr_metadata import parse_node_metadata
from icechunk_engine.ids import NodeId, SnapshotId
from icechunk_engine.journal.entries import ArrayEdits, JournalEntry, NodeDeleted, NodeSet
from icechunk_engine.transaction.edit_sources import EditSource

_MAGIC = b"XIJOURNL"
_VERSION = 1
_PLAIN, _ZSTD = 0, 1
_HEAD = struct.Struct("<8sBB2xI")
_SIZES = struct.Struct("<QI4x")
_HEADER_START = _HEAD.size + _SIZES.size

_MAX_HEADER_SIZE = 2**22
"""Room for tens of thousands of sources. As Python objects they take some thirty times as much memory as here."""
_MAX_NUMBER = 2**63 - 1
_MAX_TASK_NAME = 2**16

_COMPRESS_FROM = 2**12
"""A smaller body is stored plain: a request costs more time than these bytes."""
_MAX_EXPANSION = 128
"""A body that would shrink more is stored plain."""

_WRITER = re.compile(r"[0-9a-f]{8,64}")
_ORIGIN = re.compile(r"[0-9a-f]{24}")
_FORK = re.compile(r"[0-9A-Za-z_-]{1,64}")

# One descriptor each. An array: id, rank, mask of constant columns, number of rows, number and size of locations and
# of etags, size of inline data, size of the path. A node that was set: id, source, flags, sizes of path and document.
# One that was deleted: id, source, size of the path.
_ARRAY = struct.Struct("<8sIIQQQQQQQ")
_NODE_SET = struct.Struct("<8siIQQ")
_IS_UPDATE, _IS_RESIZED = 1, 2  # flags of a node that was set
_NODE_DELETED = struct.Struct("<8siI")

_U1, _U4, _U8, _I4, _I8 = map(np.dtype, ("u1", "<u4", "<u8", "<i4", "<i8"))
_NO_STARTS = np.zeros(1, _I8)
_CHUNK_ID_SIZE = 12

_ENCODER = json.JSONEncoder(separators=(",", ":"))


# --- encoding --------------------------------------------------------------------------------------------------------


def encode_entry(entry: JournalEntry) -> bytes:
    """Return an entry as bytes.

    An array of rank 0 has one chunk, so only the last of its rows is kept.

    Raises
    ------
    InvalidInputError
        The entry has too many sources to be stored.
    """
    header = _ENCODER.encode(
        {
            "writer": entry.writer,
            "seq": entry.seq,
            "lamport": entry.lamport,
            "origin": entry.origin_id.raw.hex(),
            "fork": entry.fork,
            "sources": entry.sources,
            "flush_promise": entry.flush_promise,
            "seen": entry.seen,
            "overwrites": entry.overwrites,
            "seen_up_to": entry.seen_up_to,
            "counts": (len(entry.arrays), len(entry.nodes_set), len(entry.nodes_deleted)),
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _MAX_HEADER_SIZE:
        raise InvalidInputError(
            f"cannot report edits of {len(entry.sources)} tasks at once. Merge fewer forks before you write through "
            f"this copy, or merge them in the process that commits",
            ErrorKind.SERIALIZATION,
        )
    columns: list[Buffer] = []
    texts: list[bytes] = []
    descriptors = [_place_array(array, columns) for array in entry.arrays]
    for node, is_update, is_resized, source in entry.nodes_set:
        path, flags = node.path.encode(), _IS_UPDATE * is_update | _IS_RESIZED * is_resized
        descriptors.append(_NODE_SET.pack(node.node_id.raw, source, flags, len(path), len(node.user_data)))
        texts += path, node.user_data
    for path_text, node_id, source in entry.nodes_deleted:
        path = path_text.encode()
        descriptors.append(_NODE_DELETED.pack(node_id.raw, source, len(path)))
        texts.append(path)
    body = b"".join([*columns, *texts])
    compression, stored = _compress(body)
    checked = b"".join([_SIZES.pack(len(body), len(header)), header, *descriptors, stored])
    return _HEAD.pack(_MAGIC, _VERSION, compression, zlib.crc32(checked)) + checked


def _compress(body: bytes) -> tuple[int, bytes]:
    if len(body) >= _COMPRESS_FROM:
        compressed = zstandard.ZstdCompressor(level=1).compress(body)
        if len(compressed) < 0.9 * len(body) and len(body) <= _MAX_EXPANSION * len(compressed):
            return _ZSTD, compressed
    return _PLAIN, body


def _place_array(array: ArrayEdits, out: list[Buffer]) -> bytes:
    """Append the columns and strings of an array; return its descriptor."""
    refs, sources = array.refs, array.source_numbers
    if refs.ndim == 0 and len(refs) > 1:
        refs, sources = refs.take(slice(-1, None)), sources[-1:]
    refs = _apart(refs.compact())  # strings and payloads that no row uses stay here
    n, constant = len(refs), 0
    start = len(out)
    columns: tuple[tuple[NDArray[Any], np.dtype[Any]], ...] = (  # in the order of their bits
        (refs.offsets, _U8),
        (refs.lengths, _U8),
        (refs.location_codes, _I4),
        (refs.etag_codes, _I4),
        (refs.last_modified, _U4),
        (sources, _I4),
        (refs.chunk_ids, _U1),
        (refs.kinds, _U1),
    )
    for bit, (column, dtype) in enumerate(columns):
        if n > 1 and column.strides[0] == 0:
            constant |= 1 << bit
            column = column[:1]
        out.append(_raw(column, dtype))
    locations, etags = _rebased(refs.locations), _rebased(refs.etags)
    # The order is that of the widths of the items, so all columns are aligned.
    out[start + 2 : start + 2] = (*_starts(locations), *_starts(etags), _raw(refs.indices, _U4))
    path = array.path.encode()
    tail: list[Buffer] = [locations.data, etags.data, np.ascontiguousarray(refs.inline_data), path]
    out += tail
    size = sum(memoryview(part).nbytes for part in out[start:])
    out.append(bytes(-size % 8))
    return _ARRAY.pack(
        array.node_id.raw,
        refs.ndim,
        constant,
        n,
        len(locations),
        len(locations.data),
        len(etags),
        len(etags.data),
        len(refs.inline_data),
        len(path),
    )


def _apart(refs: ChunkRefs) -> ChunkRefs:
    """Return the references with payloads that do not overlap, which a reader requires."""
    rows = np.flatnonzero(refs.kinds == INLINE)
    if len(rows) < 2 or not _overlap(refs.offsets[rows], refs.lengths[rows]):
        return refs
    lengths = refs.lengths[rows]
    offsets = refs.offsets.copy()
    offsets[rows] = lengths.cumsum() - lengths
    return replace(refs, offsets=offsets, inline_data=gather_ranges(refs.inline_data, refs.offsets[rows], lengths))


def _overlap(offsets: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> bool:
    """Return True if two of some ranges overlap. The sum of an offset and its length must fit 64 bits."""
    if bool((offsets[1:] >= (offsets + lengths)[:-1]).all()):
        return False
    order = offsets.argsort(kind="stable")
    offsets, lengths = offsets[order], lengths[order]
    return bool((offsets[1:] < (offsets + lengths)[:-1]).any())


def _raw(column: NDArray[Any], dtype: np.dtype[Any]) -> Buffer:
    column = column.astype(dtype, copy=False)
    return column.tobytes() if column.size < 64 else np.ascontiguousarray(column).data.cast("B")


def _rebased(table: BytesTable) -> BytesTable:
    """Return the table with its data from the first string to the last."""
    first, last = int(table.starts[0]), int(table.starts[-1])
    if first == 0 and last == len(table.data):
        return BytesTable(np.ascontiguousarray(table.data), table.starts)
    return BytesTable(np.ascontiguousarray(table.data[first:last]), table.starts - first)


def _starts(table: BytesTable) -> tuple[Buffer, ...]:
    return (_raw(table.starts, _I8),) if len(table) else ()


# --- decoding --------------------------------------------------------------------------------------------------------


class _DamagedEntryError(Exception):
    """The bytes break a rule of the layout. :func:`decode_entry` turns this into the error that users see."""


class _NoEntryError(Exception):
    """The object is something else, or of a newer version."""

    def __init__(self, reason: str, kind: ErrorKind) -> None:
        super().__init__(reason)
        self.kind = kind


def decode_entry(data: bytes, name: str = "") -> JournalEntry:
    """Return the entry that :func:`encode_entry` wrote. Its columns are read-only views of the bytes.

    Parameters
    ----------
    data
        The whole object.
    name
        Its key, for messages.

    Raises
    ------
    FormatError
        ``deserialization``: the entry is damaged, or made to do harm. ``invalid-file-format``: it is not an entry.
        ``unsupported-spec-version``: a newer version of this library wrote it.
    """
    try:
        return _decode(data)
    except _NoEntryError as error:
        raise FormatError(
            f"{name or 'an object'} of {len(data)} bytes is not a journal entry that this library can read: {error}",
            error.kind,
        ) from None
    except (_DamagedEntryError, InvalidInputError) as error:
        raise FormatError(
            f"the journal entry {name or 'of a worker'} is damaged ({error}). The edits in it cannot be read, so do "
            f"not commit this session. Restore the object from a backup, or repeat the work in a new session",
            ErrorKind.DESERIALIZATION,
        ) from None


def _refuse(reason: str) -> NoReturn:
    raise _DamagedEntryError(reason)


def _decode(data: bytes) -> JournalEntry:
    header, start, compression, body_size = _read_header(data)
    descriptors = _Body(memoryview(data)[start:])
    n_arrays, n_set, n_deleted = header.counts
    arrays = descriptors.records(_ARRAY, n_arrays)
    sets = descriptors.records(_NODE_SET, n_set)
    deletions = descriptors.records(_NODE_DELETED, n_deleted)
    body = _Body(_decompress(descriptors.rest(), compression, body_size))
    n_sources = len(header.sources)
    entry = JournalEntry(
        writer=header.writer,
        seq=header.seq,
        lamport=header.lamport,
        origin_id=header.origin_id,
        fork=header.fork,
        sources=header.sources,
        flush_promise=header.flush_promise,
        seen=header.seen,
        overwrites=header.overwrites,
        seen_up_to=header.seen_up_to,
        arrays=[_read_array(body, fields, n_sources) for fields in arrays],
        nodes_set=[_read_node(body, fields, n_sources) for fields in sets],
        nodes_deleted=[_read_deletion(body, fields, n_sources) for fields in deletions],
    )
    if len(body.rest()):
        _refuse(f"{len(body.rest())} bytes follow its edits")
    return entry


def _read_header(data: bytes) -> tuple[_Header, int, int, int]:
    """Return the header, its end, the compression of the body and its decompressed size."""
    if len(data) < _HEADER_START or data[: len(_MAGIC)] != _MAGIC:
        raise _NoEntryError(
            "it is another kind of object, or was cut off. Remove it if no process of yours wrote it; otherwise "
            "repeat the work in a new session",
            ErrorKind.INVALID_FILE_FORMAT,
        )
    _, version, compression, crc = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise _NoEntryError(
            f"it has version {version}, and this is version {_VERSION}. Use one version of the library in all "
            f"processes of a session",
            ErrorKind.UNSUPPORTED_SPEC_VERSION,
        )
    if zlib.crc32(memoryview(data)[_HEAD.size :]) != crc:
        _refuse("its checksum is wrong")
    body_size, header_size = _SIZES.unpack_from(data, _HEAD.size)
    stop = _HEADER_START + header_size
    if header_size > min(_MAX_HEADER_SIZE, len(data) - _HEADER_START):
        _refuse(f"its header claims {header_size} bytes")
    return _Header.parse(data[_HEADER_START:stop]), stop, compression, body_size


def _decompress(stored: memoryview, compression: int, size: int) -> memoryview:
    if compression == _PLAIN and size == len(stored):
        return stored
    if compression != _ZSTD or size > _MAX_EXPANSION * len(stored):
        _refuse(f"{len(stored)} bytes of its body stand for {size} by compression {compression}")
    try:
        body = memoryview(decompress_zstd(stored, size)).toreadonly()
    except (DamagedError, TooLargeError) as error:
        _refuse(str(error))
    if len(body) != size:
        _refuse(f"its body holds {len(body)} bytes, not {size}")
    return body


class _Header(NamedTuple):
    writer: str
    seq: int
    lamport: int
    origin_id: SnapshotId
    fork: str | None
    sources: tuple[EditSource, ...]
    flush_promise: str | None
    seen: tuple[EditSource, ...]
    overwrites: tuple[tuple[str, int], ...]
    seen_up_to: tuple[tuple[str, int], ...]
    counts: tuple[int, int, int]

    @classmethod
    def parse(cls, data: bytes) -> _Header:
        try:
            found = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            _refuse(f"its header is not JSON: {error}")
        if not isinstance(found, dict):
            _refuse("its header is not an object")
        origin, fork, counts = found.get("origin"), found.get("fork"), found.get("counts")
        if not isinstance(origin, str) or not _ORIGIN.fullmatch(origin):
            _refuse("its origin is not an id")
        if fork is not None and not (isinstance(fork, str) and _FORK.fullmatch(fork)):
            _refuse("its fork is not an id")
        if not isinstance(counts, list) or len(counts) != 3:
            _refuse("it does not say how many edits it holds")
        n_arrays, n_set, n_deleted = map(_number, counts)
        return cls(
            writer=_writer(found.get("writer")),
            seq=_number(found.get("seq")),
            lamport=_number(found.get("lamport")),
            origin_id=SnapshotId(bytes.fromhex(origin)),
            fork=fork,
            sources=_sources(found.get("sources")),
            flush_promise=_name(found.get("flush_promise")),
            seen=_sources(found.get("seen")),
            overwrites=_epochs(found.get("overwrites")),
            seen_up_to=_epochs(found.get("seen_up_to")),
            counts=(n_arrays, n_set, n_deleted),
        )


def _epochs(value: object) -> tuple[tuple[str, int], ...]:
    return tuple([(_writer(writer), _number(epoch)) for writer, epoch in _rows(value, 2)])


def _sources(value: object) -> tuple[EditSource, ...]:
    return tuple([EditSource(_writer(w), _number(e), _name(t)) for w, e, t in _rows(value, 3)])


def _rows(value: object, width: int) -> list[list[object]]:
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == width for row in value):
        _refuse("its sources are not a table")
    return value


def _writer(value: object) -> str:
    if not isinstance(value, str) or not _WRITER.fullmatch(value):
        _refuse("a writer is not a hexadecimal number")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        _refuse("a number is not between 0 and 2**63")
    return value


def _name(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > _MAX_TASK_NAME:
        _refuse("a name is not a text of sensible length")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse("a name is not text")
    return value


class _Body:
    """Reads bytes from front to back. Nothing is read beyond its end, and nothing is copied."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def require(self, size: int) -> None:
        """Refuse the entry if fewer bytes follow."""
        if size > len(self._data) - self._at:
            _refuse("it claims more edits than it holds")

    def rest(self) -> memoryview:
        """Return what has not been read."""
        return self._data[self._at :]

    def skip(self, size: int) -> int:
        """Pass over some bytes; return where they begin."""
        self.require(size)
        start = self._at
        self._at += size
        return start

    def records(self, layout: struct.Struct, n: int) -> Iterator[tuple[Any, ...]]:
        start = self.skip(n * layout.size)
        return layout.iter_unpack(self._data[start : self._at])

    def raw(self, size: int) -> bytes:
        start = self.skip(size)
        return self._data[start : self._at].tobytes()

    def path(self, size: int) -> str:
        """Read a node path, which must be in its canonical form."""
        try:
            path = self.raw(size).decode()
        except UnicodeDecodeError:
            _refuse("a path is not UTF-8")
        if paths.normalize(path) != path:
            _refuse(f"{path!r} is not the canonical form of a path")
        return path

    def column(self, dtype: np.dtype[Any], n: int, width: int = 0, *, constant: bool = False) -> NDArray[Any]:
        """Read ``n`` rows, or one row that holds for all."""
        item = dtype.itemsize
        stride = item * (width or 1)
        start = self.skip(stride if constant else n * stride)
        shape, strides = ((n, width), (stride, item)) if width else ((n,), (stride,))
        if constant:
            strides = (0, *strides[1:])
        return np.ndarray(shape, dtype, self._data, start, strides)

    def matrix(self, n: int, width: int) -> NDArray[np.uint32]:
        """Read chunk indices."""
        return np.ndarray((n, width), _U4, self._data, self.skip(4 * n * width))

    def starts(self, n: int) -> NDArray[np.int64]:
        """Read where the strings of a table begin. Only :meth:`table` checks them."""
        return self.column(_I8, n + 1) if n else _NO_STARTS

    def table(self, starts: NDArray[np.int64], size: int) -> BytesTable:
        """Read the strings of a table."""
        table = BytesTable(self.column(_U1, size), starts)
        if len(table) == size == 0:
            return table
        if int(starts[0]) != 0 or int(starts[-1]) != size or (len(table) and int(table.lengths.min()) < 0):
            _refuse("its strings do not follow each other")
        if not is_utf8(table):
            _refuse("a string is not UTF-8")
        return table


def _read_array(body: _Body, fields: tuple[Any, ...], n_sources: int) -> ArrayEdits:
    raw_id, ndim, mask, n, n_locations, locations_size, n_etags, etags_size, inline_size, path_size = fields
    if ndim > MAX_NDIM:
        _refuse(f"an array has {ndim} dimensions")
    if ndim == 0 and n > 1:
        _refuse(f"an array of rank 0 has {n} chunks")
    # Each row has its own index, so the number of rows is bounded before any column is made.
    body.require(n * ndim * 4 + n_locations * 8 + n_etags * 8)
    began = body.skip(0)
    offsets = body.column(_U8, n, constant=bool(mask & 1))
    lengths = body.column(_U8, n, constant=bool(mask & 2))
    location_starts, etag_starts = body.starts(n_locations), body.starts(n_etags)
    indices = body.matrix(n, ndim)
    location_codes = body.column(_I4, n, constant=bool(mask & 4))
    etag_codes = body.column(_I4, n, constant=bool(mask & 8))
    last_modified = body.column(_U4, n, constant=bool(mask & 16))
    sources = body.column(_I4, n, constant=bool(mask & 32))
    chunk_ids = body.column(_U1, n, _CHUNK_ID_SIZE, constant=bool(mask & 64))
    kinds = body.column(_U1, n, constant=bool(mask & 128))
    refs = ChunkRefs(
        indices=indices,
        kinds=kinds,
        chunk_ids=chunk_ids,
        offsets=offsets,
        lengths=lengths,
        location_codes=location_codes,
        etag_codes=etag_codes,
        last_modified=last_modified,
        locations=body.table(location_starts, locations_size),
        etags=body.table(etag_starts, etags_size),
        inline_data=body.column(_U1, inline_size),
    )
    path = body.path(path_size)
    body.skip(-(body.skip(0) - began) % 8)
    if n:
        _check_refs(refs, mask)
        if int(_few(sources, mask & 32).view(_U4).max()) >= n_sources:
            _refuse("a chunk names a source that does not exist")
    return ArrayEdits(NodeId(raw_id), path, refs, sources)


def _few(column: NDArray[Any], constant: int) -> NDArray[Any]:
    """Return the distinct part of a column: one value if it is constant."""
    return column[:1] if constant else column


def _check_refs(refs: ChunkRefs, mask: int) -> None:
    """Refuse references that no writer makes. Constant columns are checked as one value where possible."""
    kinds = _few(refs.kinds, mask & 128)
    offsets, lengths = (_few(refs.offsets, mask & 1), _few(refs.lengths, mask & 2))
    location_codes = _few(refs.location_codes, mask & 4)
    if int(kinds.max()) > INLINE:
        _refuse("a chunk is of an unknown kind")
    for codes, table in ((location_codes, refs.locations), (_few(refs.etag_codes, mask & 8), refs.etags)):
        if int((codes.view(_U4) + np.uint32(1)).max()) > len(table):  # NO_CODE becomes 0
            _refuse("a chunk names a string that does not exist")
    if bool(((kinds == VIRTUAL) & (location_codes == NO_CODE)).any()):
        _refuse("a virtual chunk has no location")
    if bool(((kinds != DELETED) & (lengths == 0)).any()):
        _refuse("a chunk has length 0")
    inline = kinds == INLINE
    if bool((offsets > ~lengths).any()):  # their sum does not fit 64 bits
        _refuse("a chunk ends beyond 2**64")
    if bool(inline.any()):
        inline = np.broadcast_to(inline, (len(refs),))
        offsets, lengths = refs.offsets[inline], refs.lengths[inline]
        if int((offsets + lengths).max()) > len(refs.inline_data):
            _refuse("an inline chunk ends beyond its data")
        if _overlap(offsets, lengths):
            _refuse("inline chunks overlap")


def _read_node(body: _Body, fields: tuple[Any, ...], n_sources: int) -> NodeSet:
    raw_id, source, flags, path_size, document_size = fields
    if not 0 <= source < n_sources:
        _refuse("a node names a source that does not exist")
    if flags & ~(_IS_UPDATE | _IS_RESIZED):
        _refuse(f"a node has unknown flags {flags}")
    path = body.path(path_size)
    document = body.raw(document_size)
    _, shape = parse_node_metadata(document, for_write=True, path=path)
    node = Node(node_id=NodeId(raw_id), path=path, user_data=document, shape=shape)
    return NodeSet(node, bool(flags & _IS_UPDATE), bool(flags & _IS_RESIZED), source)


def _read_deletion(body: _Body, fields: tuple[Any, ...], n_sources: int) -> NodeDeleted:
    raw_id, source, path_size = fields
    if not 0 <= source < n_sources:
        _refuse("a node names a source that does not exist")
    return NodeDeleted(body.path(path_size), NodeId(raw_id), source)
