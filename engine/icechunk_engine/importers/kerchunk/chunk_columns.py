"""Build chunk references from the references of a set and the facts about their URLs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import INLINE as INLINE_KIND
from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRefs
from icechunk_engine.columns.tables import I64, U32, U64, BytesTable, factorize, ragged_positions
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.kerchunk.chunk_keys import Assignment, assign
from icechunk_engine.importers.kerchunk.groups_and_arrays import SetArray, SetHierarchy
from icechunk_engine.importers.kerchunk.reference_columns import INLINE, RANGE, WHOLE_FILE, References
from icechunk_engine.importers.kerchunk.reference_set import ReferenceSet

UNKNOWN_SIZE = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkSources:
    """The chunks of every array of a set. Their URLs are not checked yet.

    Attributes
    ----------
    arrays
        By path in the set: chunk indices ``uint32 (k, ndim)`` and references of ``k`` chunks.
    used_urls
        Positions of the URLs that the references use, in the set's list of URLs.
    num_stray, stray
        Number of keys that belong to no array, and some of these keys.
    """

    arrays: dict[str, tuple[U32, References]]
    used_urls: I64
    num_stray: int = 0
    stray: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UrlTable:
    """Facts about the URLs of a set.

    Attributes
    ----------
    locations
        Distinct locations.
    codes
        ``int32``: for each URL of the set its row in ``locations``, -1 if no chunk uses it.
    sizes
        ``int64``: length in bytes of each location, -1 if unknown.
    last_modified
        ``uint32``: Unix seconds to store as checksum, 0 if there is none.
    """

    locations: BytesTable
    codes: NDArray[np.int32]
    sizes: I64
    last_modified: U32


def gather_sources(reference_set: ReferenceSet, hierarchy: SetHierarchy) -> ChunkSources:
    """Group the chunks of a set by array.

    Raises
    ------
    InvalidInputError
        ``invalid-chunk-index``: a chunk key does not fit its array.
    """
    keyed = reference_set.chunks
    found: Assignment = assign(
        keyed,
        {path[1:]: array.grid for path, array in hierarchy.arrays.items()},
        [path[1:] for path in hierarchy.skipped],
    )
    arrays = {f"/{path}": (indices, keyed.references.take(rows)) for path, (rows, indices) in found.arrays.items()}
    return ChunkSources(
        arrays=arrays,
        used_urls=used_urls(arrays, len(reference_set.urls)),
        num_stray=found.num_stray,
        stray=found.stray,
    )


def used_urls(arrays: Mapping[str, tuple[U32, References]], num_urls: int) -> I64:
    """Return the positions of the URLs that chunks use, in ascending order."""
    used = np.zeros(num_urls + 1, np.bool_)
    for _, references in arrays.values():
        used[references.url_codes] = True  # inline chunks have -1, which marks the extra cell
    return np.flatnonzero(used[:-1])


def url_table(
    num_urls: int,
    used: I64,
    locations: Sequence[str],
    sizes: Sequence[int],
    last_modified: Sequence[int],
) -> UrlTable:
    """Return the table of the used URLs. Facts are in the order of ``used``, and equal locations share a row."""
    table, rows = factorize(locations)
    codes = np.full(num_urls, -1, np.int32)
    codes[used] = rows
    size_column, time_column = np.full(len(table), UNKNOWN_SIZE, np.int64), np.zeros(len(table), np.uint32)
    size_column[rows] = np.fromiter(sizes, np.int64, len(sizes))
    time_column[rows] = np.fromiter(last_modified, np.int64, len(last_modified))
    return UrlTable(locations=table, codes=codes, sizes=size_column, last_modified=time_column)


def plan_refs(array: SetArray, indices: U32, references: References, urls: UrlTable) -> ChunkRefs:
    """Return the chunk references of one array, sorted by index, one for each chunk.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``: a range is empty or too long, the length of a whole file is unknown, or the length of
        a chunk contradicts the metadata of the array. The message names the array and the chunk.
    """
    if len(references) == 0:
        return ChunkRefs.empty(array.shape.ndim)
    is_inline = references.kinds == INLINE
    codes = np.full(len(references), -1, np.int32)
    outside = np.flatnonzero(~is_inline)
    codes[outside] = urls.codes[references.url_codes[outside]]
    offsets, lengths = _ranges(array, indices, references, codes, urls)
    refs = ChunkRefs.build(
        indices,
        np.where(is_inline, INLINE_KIND, VIRTUAL).astype(np.uint8) if bool(is_inline.any()) else VIRTUAL,
        offsets=offsets,
        lengths=lengths,
        location_codes=codes,
        last_modified=_last_modified(codes, urls),
        locations=urls.locations,
        inline_data=references.inline_data,
    )
    return _own_inline_data(refs.latest())


def _ranges(
    array: SetArray, indices: U32, references: References, codes: NDArray[np.int32], urls: UrlTable
) -> tuple[U64, U64]:
    """Return checked offsets and lengths. Whole files get their real length."""
    kinds, offsets, lengths = references.kinds, references.offsets, references.lengths

    def require(good: NDArray[np.bool_], reason: str) -> None:
        if not bool(good.all()):
            raise _bad_chunk(array, indices, references, codes, urls, int(np.argmin(good)), reason)

    sizes = np.where(codes >= 0, urls.sizes[codes], UNKNOWN_SIZE) if len(urls.locations) else None
    whole = kinds == WHOLE_FILE
    if bool(whole.any()):
        assert sizes is not None
        require(
            ~whole | (sizes != UNKNOWN_SIZE),
            "it refers to a whole file of unknown length. Pass file_sizes={location: bytes}",
        )
        lengths = np.where(whole, sizes, lengths.view(np.int64)).astype(np.uint64)
    require(lengths > 0, "it has no bytes. Leave the chunk out to read it as the fill value")
    if sizes is not None:
        ends = offsets + lengths  # both below 2**63
        require(
            (sizes == UNKNOWN_SIZE) | (kinds == INLINE) | (ends <= sizes.astype(np.uint64)),
            "the range goes past the end of the file. The file has changed, or the set is wrong",
        )
    if array.chunk_bytes is not None:
        require(
            lengths == array.chunk_bytes,
            f"according to its metadata, every chunk of this array has {array.chunk_bytes} bytes",
        )
    return offsets, lengths


def _last_modified(codes: NDArray[np.int32], urls: UrlTable) -> U32 | int:
    if not bool(urls.last_modified.any()):
        return 0
    return np.where(codes >= 0, urls.last_modified[codes], np.uint32(0))


def _own_inline_data(refs: ChunkRefs) -> ChunkRefs:
    """Reduce the inline data of the set to that of one array. All arrays share the table of locations."""
    inline = np.flatnonzero(refs.kinds == INLINE_KIND)
    offsets, data = refs.offsets, np.empty(0, np.uint8)
    if len(inline):
        lengths = refs.lengths[inline].astype(np.int64)
        data = refs.inline_data[ragged_positions(offsets[inline], lengths)]
        offsets = offsets.copy()
        offsets[inline] = (np.cumsum(lengths) - lengths).astype(np.uint64)
    return ChunkRefs.build(
        refs.indices,
        refs.kinds,
        offsets=offsets,
        lengths=refs.lengths,
        location_codes=refs.location_codes,
        last_modified=refs.last_modified,
        locations=refs.locations,
        inline_data=data,
    )


def _bad_chunk(
    array: SetArray,
    indices: U32,
    references: References,
    codes: NDArray[np.int32],
    urls: UrlTable,
    row: int,
    reason: str,
) -> InvalidInputError:
    kind, offset, length = int(references.kinds[row]), int(references.offsets[row]), int(references.lengths[row])
    if kind == INLINE:
        where = f"{length} inline bytes"
    else:
        location = urls.locations.text(int(codes[row]))
        size = int(urls.sizes[codes[row]])
        where = f"{length} bytes at {offset} of {location}" if kind == RANGE else f"all of {location}"
        where += f", which has {size} bytes" if size != UNKNOWN_SIZE else ""
    key = ".".join(map(str, indices[row].tolist())) or "0"
    return InvalidInputError(f"chunk {key} of array {array.path} ({where}): {reason}", ErrorKind.INVALID_VIRTUAL_REF)
