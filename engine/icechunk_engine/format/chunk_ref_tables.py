"""Convert chunk references between columns and the ``ChunkRef`` tables of a manifest (spec, *Manifest*).

References are read in slabs whose columns fit into the cache, because gathering from main memory would dominate the
time. Each slab has its own tables of distinct strings, which are merged at the end.

Inline payloads are not copied while they are read: their offsets count in the body of the file. At the end, the body
is either kept as ``inline_data``, or the payloads are copied so that it can be freed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import INLINE, NATIVE, NO_CODE, VIRTUAL, ChunkRefs, concat
from icechunk_engine.columns.tables import (
    I64,
    U8,
    BytesTable,
    Integers,
    Mask,
    broadcast_column,
    concat_tables,
    gather_ranges,
    ragged_positions,
    starts_of,
)
from icechunk_engine.flatbuf.blocks import BlockTables
from icechunk_engine.flatbuf.distinct import distinct_ranges
from icechunk_engine.flatbuf.reader import Buffer, Tables, Vectors, is_utf8
from icechunk_engine.flatbuf.writer import Arena, Positions
from icechunk_engine.format import locations
from icechunk_engine.format.schema import MAX_NDIM, OBJECT_ID_SIZE
from icechunk_engine.format.schema import ChunkRef as Slot

Codes = NDArray[np.int32]

MIN_REF_BYTES = 16
"""The fewest bytes that a reference takes in a file: its offset, its table, and the place of its chunk."""

_SLAB_ROWS = 2**14
"""References that are read at once. The arrays gathered on the way then stay in the cache."""


def place_refs(arena: Arena, refs: ChunkRefs, frames: BytesTable | None) -> Positions:
    """Reserve the tables of references that are sorted by index; return their positions.

    Parameters
    ----------
    frames
        The compressed locations, to write instead of ``refs.locations``.
    """
    inline, native, virtual = (refs.kinds == kind for kind in (INLINE, NATIVE, VIRTUAL))
    tables = BlockTables(len(refs))
    tables.row_vectors(Slot.INDEX, refs.indices)
    if not bool(inline.all()):
        if bool(refs.offsets[~inline].any()):
            # Zeros where a chunk is inline: a file must not depend on where payloads lay in memory.
            offsets = np.where(inline, np.uint64(0), refs.offsets) if bool(inline.any()) else refs.offsets
            tables.numbers(Slot.OFFSET, offsets, ~inline)
        tables.numbers(Slot.LENGTH, refs.lengths, ~inline)
    if bool(native.any()):
        tables.structs(Slot.CHUNK_ID, refs.chunk_ids, native)
    if bool(virtual.any()):
        codes = _only(refs.location_codes, virtual)
        if frames is None:
            tables.shared(Slot.LOCATION, refs.locations, codes, terminated=True)
        else:
            tables.shared(Slot.COMPRESSED_LOCATION, frames, codes, terminated=False)
        etag_codes = _only(refs.etag_codes, virtual)
        if bool((etag_codes >= 0).any()):
            tables.shared(Slot.CHECKSUM_ETAG, refs.etags, etag_codes, terminated=True)
        dated = virtual & (refs.last_modified != 0)
        if bool(dated.any()):
            tables.numbers(Slot.CHECKSUM_LAST_MODIFIED, refs.last_modified, dated)
    if bool(inline.any()):
        lengths = refs.lengths[inline].astype(np.int64)
        payloads = BytesTable(_ranges(refs.inline_data, refs.offsets[inline], lengths), starts_of(lengths))
        codes = np.where(inline, np.cumsum(inline) - 1, NO_CODE).astype(np.int32)
        tables.shared(Slot.INLINE, payloads, codes, terminated=False)
    return tables.place(arena)


def _only(codes: Codes, mask: Mask) -> Codes:
    return codes if bool(mask.all()) else np.where(mask, codes, np.int32(NO_CODE))


def _ranges(data: U8, starts: Integers, lengths: I64) -> U8:
    starts = starts.astype(np.int64)
    if len(starts) and bool((starts[1:] == starts[:-1] + lengths[:-1]).all()):
        return data[int(starts[0]) : int(starts[-1] + lengths[-1])]
    return data[ragged_positions(starts, lengths)]


def apparent_sizes(refs: ChunkRefs) -> I64:
    """Return the bytes that the official verifier counts for each reference, ``int64 (n,)``, rounded up.

    The verifier counts a shared string each time that a table points to it. So the sum is also an upper bound of the
    bytes that the references take in a file.
    """
    n = len(refs)
    # Rounded up: as if each reference had all fields and a vtable of its own.
    n_slots, fields = Slot.COMPRESSED_LOCATION + 1, 8 + 8 + OBJECT_ID_SIZE + 4 * 5
    fixed = 4 + (4 + 2 * n_slots) + 2 * n_slots + fields + (4 + 4 * refs.ndim) + 4
    sizes = np.full(n, fixed, np.int64)
    padding = 4 + 1 + 3
    for codes, table in ((refs.location_codes, refs.locations), (refs.etag_codes, refs.etags)):
        sizes += np.append(table.lengths + padding, 0)[codes]
    inline = refs.kinds == INLINE
    sizes[inline] += refs.lengths[inline].astype(np.int64) + padding
    return sizes


def merge_equal_strings(refs: ChunkRefs) -> ChunkRefs:
    """Merge equal locations and etags, so that each is in its table once."""
    locations_, location_codes = _merge_equal(refs.locations, refs.location_codes)
    etags, etag_codes = _merge_equal(refs.etags, refs.etag_codes)
    return dataclasses.replace(
        refs, locations=locations_, location_codes=location_codes, etags=etags, etag_codes=etag_codes
    )


def _merge_equal(table: BytesTable, codes: Codes) -> tuple[BytesTable, Codes]:
    rows, merged = distinct_ranges(table.data, table.starts[:-1], table.lengths)
    if len(rows) == len(table):
        return table, codes
    return table.take(rows), np.append(merged, np.int32(NO_CODE))[codes]


def read_refs(buffer: Buffer, vector: int, n: int, dictionary: bytes | None) -> ChunkRefs:
    """Read the references of one array as columns, sorted by index.

    Parameters
    ----------
    vector, n
        Position and number of the items of a vector of offsets to ``ChunkRef`` tables.
    dictionary
        The dictionary of compressed locations; None if the manifest has none.

    Raises
    ------
    FormatError
        A table is damaged, or does not say where its chunk is.
    """
    if n == 0:
        return ChunkRefs.empty(0)
    slabs = []
    for first in range(0, n, _SLAB_ROWS):
        items = vector + 4 * np.arange(first, min(first + _SLAB_ROWS, n), dtype=np.int64)
        slabs.append(_read_slab(buffer.tables(buffer.follow(items)), dictionary))
        if slabs[-1].ndim != slabs[0].ndim:
            raise buffer.error("its chunk references differ in rank")
    refs = merge_equal_strings(concat(slabs)) if len(slabs) > 1 else slabs[0]
    inline = refs.kinds == INLINE
    if bool(inline.any()):
        refs = dataclasses.replace(refs, inline_data=buffer.data)
        # If payloads make up most of the file, or are shared, keep its body: copies would not save memory.
        if int(refs.lengths[inline].sum()) * 2 <= buffer.size:
            refs = refs.compact()
    return refs.latest()  # lookups need sorted references, and other writers may leave them unsorted


def read_few_refs(vectors: Vectors) -> list[ChunkRefs]:
    """Do the same as :func:`read_refs` for many arrays with few references each, at once.

    Parameters
    ----------
    vectors
        The vector of offsets to ``ChunkRef`` tables of each array.

    Raises
    ------
    FormatError
        As :func:`read_refs`, and for compressed locations.
    """
    starts = starts_of(vectors.lengths)
    tables = vectors.tables(MIN_REF_BYTES)
    ranks = tables.vectors(Slot.INDEX, 4, "the index of a chunk reference").lengths
    filled = vectors.lengths > 0
    if not np.array_equal(ranks, np.repeat(ranks[starts[:-1][filled]], vectors.lengths[filled])):
        raise vectors.buffer.error("its chunk references differ in rank")
    found = [ChunkRefs.empty(0)] * len(vectors)
    for rank in np.unique(ranks).tolist():  # a column holds indices of one rank
        of_rank = np.flatnonzero(filled)[ranks[starts[:-1][filled]] == rank]
        bounds = starts_of(vectors.lengths[of_rank])
        slab = _read_slab(tables.take(np.flatnonzero(ranks == rank)), None)
        for array, refs in zip(of_rank.tolist(), _divide(_copy_payloads(slab, tables.buffer), bounds), strict=True):
            found[array] = refs.latest()
    return found


def _copy_payloads(refs: ChunkRefs, buffer: Buffer) -> ChunkRefs:
    """Copy the inline payloads out of a file's body, in the order of the rows."""
    inline = refs.kinds == INLINE
    if not bool(inline.any()):
        return refs
    lengths = np.where(inline, refs.lengths, 0).astype(np.int64)
    buffer.spend(int(lengths.sum()))
    payloads = gather_ranges(buffer.data, refs.offsets[inline].astype(np.int64), lengths[inline])
    offsets = np.where(inline, starts_of(lengths)[:-1].astype(np.uint64), refs.offsets)
    return dataclasses.replace(refs, offsets=offsets, inline_data=payloads)


def _divide(refs: ChunkRefs, bounds: I64) -> Iterator[ChunkRefs]:
    """Yield copies of the rows between each bound and the next. Inline payloads must be in the order of the rows."""
    inline = refs.kinds == INLINE
    payloads = starts_of(np.where(inline, refs.lengths, 0))[bounds].tolist()
    first_payload = np.repeat(payloads[:-1], np.diff(bounds)).astype(np.uint64)
    refs = dataclasses.replace(refs, offsets=np.where(inline, refs.offsets - first_payload, refs.offsets))
    coded = len(refs.locations) > 0 or len(refs.etags) > 0
    for (start, stop), (first, last) in zip(pairwise(bounds.tolist()), pairwise(payloads), strict=True):
        part = refs.copy(slice(start, stop), refs.inline_data[first:last].copy())
        yield part.compact() if coded else part


def _read_slab(tables: Tables, dictionary: bytes | None) -> ChunkRefs:
    """Read some references as columns. Offsets of inline ones count in the file's body."""
    n = len(tables)
    index = tables.vectors(Slot.INDEX, 4, "the index of a chunk reference")
    ndim = int(index.lengths[0])
    if ndim > MAX_NDIM:
        raise tables.buffer.error(f"its chunk references have {ndim} dimensions")
    kinds, compressed = _kinds(tables)
    native, virtual, inline = (kinds == kind for kind in (NATIVE, VIRTUAL, INLINE))
    location_table, location_codes = _read_locations(tables, virtual, compressed, dictionary)
    etag_table, etag_codes = _read_texts(tables.vectors(Slot.CHECKSUM_ETAG, 1), virtual)
    offsets = tables.scalar(Slot.OFFSET, np.uint64)
    lengths = tables.scalar(Slot.LENGTH, np.uint64)
    if bool(inline.any()):
        payloads = tables.vectors(Slot.INLINE, 1)
        offsets = np.where(inline, payloads.starts.astype(np.uint64), offsets)
        lengths = np.where(inline, payloads.lengths.astype(np.uint64), lengths)
    modified = tables.scalar(Slot.CHECKSUM_LAST_MODIFIED, np.uint32)
    ids, _ = tables.struct(Slot.CHUNK_ID, OBJECT_ID_SIZE)
    return ChunkRefs(
        indices=index.matrix(np.uint32, ndim, "the index of chunk references"),
        kinds=kinds,
        chunk_ids=ids if bool(native.any()) else broadcast_column(np.zeros(OBJECT_ID_SIZE), n, np.uint8),
        offsets=offsets,
        lengths=lengths,
        location_codes=location_codes,
        etag_codes=etag_codes,
        last_modified=modified if bool(virtual.all()) else np.where(virtual, modified, np.uint32(0)),
        locations=location_table,
        etags=etag_table,
        inline_data=np.empty(0, np.uint8),
    )


def _kinds(tables: Tables) -> tuple[U8, Mask]:
    """Return the kind of each reference, and the mask of those with a compressed location.

    A table may name several places. The first one counts, in the order in which the official reader looks: native,
    compressed location, location, inline.
    """
    native = tables.present(Slot.CHUNK_ID)
    compressed = tables.present(Slot.COMPRESSED_LOCATION) & ~native
    located = tables.present(Slot.LOCATION)
    inline = tables.present(Slot.INLINE)
    if bool(native.all()):
        return broadcast_column(NATIVE, len(tables), np.uint8), compressed
    kinds = np.select([native, compressed | located, inline], [NATIVE, VIRTUAL, INLINE], 0).astype(np.uint8)
    if not bool(kinds.all()):
        raise tables.buffer.error("a chunk reference does not say where its chunk is")
    if bool((kinds == kinds[0]).all()):
        kinds = broadcast_column(kinds[0], len(tables), np.uint8)
    return kinds, compressed


def _read_locations(
    tables: Tables, virtual: Mask, compressed: Mask, dictionary: bytes | None
) -> tuple[BytesTable, Codes]:
    plain = virtual & ~compressed
    if not bool(compressed.any()):
        return _read_texts(tables.vectors(Slot.LOCATION, 1), plain)
    if dictionary is None:
        raise tables.buffer.error("it contains compressed locations but declares that it does not")
    frames, codes = _read_bytes(tables.vectors(Slot.COMPRESSED_LOCATION, 1), compressed)
    try:
        table = locations.decompress(frames, dictionary)
    except ValueError as error:
        raise tables.buffer.error(str(error)) from None
    if not is_utf8(table):
        raise tables.buffer.error("a location is not UTF-8")
    if not bool(plain.any()):
        return table, codes
    plain_table, plain_codes = _read_texts(tables.vectors(Slot.LOCATION, 1), plain)
    shifted = np.where(plain, plain_codes + np.int32(len(table)), codes)
    return concat_tables([table, plain_table]), shifted


def _read_texts(vectors: Vectors, wanted: Mask) -> tuple[BytesTable, Codes]:
    table, codes = _read_bytes(vectors, wanted)
    if not is_utf8(table):
        raise vectors.buffer.error("a string is not UTF-8")
    return table, codes


def _read_bytes(vectors: Vectors, wanted: Mask) -> tuple[BytesTable, Codes]:
    """Return the distinct contents of the wanted rows' vectors, and the code of each row."""
    n = len(vectors)
    if not bool((vectors.present & wanted).any()):
        return BytesTable.empty(), broadcast_column(NO_CODE, n, np.int32)
    if not bool(wanted.all()):
        starts = np.where(wanted, vectors.starts, -1)
        vectors = Vectors(vectors.buffer, starts, np.where(wanted, vectors.lengths, 0), vectors.item_size)
    places, codes = vectors.distinct()
    rows, place_codes = distinct_ranges(vectors.buffer.data, places.starts, places.lengths)
    table = Vectors(vectors.buffer, places.starts[rows], places.lengths[rows], 1).bytes_table()
    return table, np.append(place_codes, np.int32(NO_CODE))[codes]
