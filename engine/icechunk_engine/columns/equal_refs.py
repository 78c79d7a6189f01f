"""Which chunk references of two sets name the same bytes, compared row by row as columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import DELETED, INLINE, NATIVE, VIRTUAL, ChunkRefs
from icechunk_engine.columns.tables import I64, U8, BytesTable, Integers, Mask, gather_ranges


def equal_rows(one: ChunkRefs, other: ChunkRefs) -> Mask:
    """Return a mask of the rows that say the same in both sets, ``bool (n,)``. The sets have equal lengths."""
    equal: Mask = (one.kinds == other.kinds) & (one.lengths == other.lengths)
    native = np.flatnonzero(equal & (one.kinds == NATIVE))
    same_object = (one.chunk_ids[native] == other.chunk_ids[native]).all(axis=1)
    equal[native] = same_object & (one.offsets[native] == other.offsets[native])
    inline = np.flatnonzero(equal & (one.kinds == INLINE))
    equal[inline] = _equal_ranges(
        one.inline_data, one.offsets[inline], other.inline_data, other.offsets[inline], one.lengths[inline]
    )
    virtual = np.flatnonzero(equal & (one.kinds == VIRTUAL))
    equal[virtual] = (
        (one.offsets[virtual] == other.offsets[virtual])
        & (one.last_modified[virtual] == other.last_modified[virtual])
        & _equal_texts(one.locations, one.location_codes[virtual], other.locations, other.location_codes[virtual])
        & _equal_texts(one.etags, one.etag_codes[virtual], other.etags, other.etag_codes[virtual])
    )
    equal[(one.kinds == DELETED) & (other.kinds == DELETED)] = True
    return equal


def _equal_texts(
    one: BytesTable, one_codes: NDArray[np.int32], other: BytesTable, other_codes: NDArray[np.int32]
) -> Mask:
    """Return where two codes name equal texts, or both name none."""
    has_text = (one_codes >= 0) & (other_codes >= 0)
    equal = (one_codes < 0) & (other_codes < 0)
    rows = np.flatnonzero(has_text)
    starts, lengths = _places(one, one_codes[rows])
    other_starts, other_lengths = _places(other, other_codes[rows])
    same_length = np.flatnonzero(lengths == other_lengths)
    equal[rows[same_length]] = _equal_ranges(
        one.data, starts[same_length], other.data, other_starts[same_length], lengths[same_length]
    )
    return equal


def _places(table: BytesTable, codes: NDArray[np.int32]) -> tuple[I64, I64]:
    return table.starts[codes], table.lengths[codes]


def _equal_ranges(one: U8, one_starts: Integers, other: U8, other_starts: Integers, lengths: Integers) -> Mask:
    """Return where two byte ranges of equal length hold the same bytes."""
    lengths = lengths.astype(np.int64)
    differs = gather_ranges(one, one_starts, lengths) != gather_ranges(other, other_starts, lengths)
    n_differing = np.concatenate([[0], np.cumsum(differs)])
    stops = np.cumsum(lengths)
    equal: Mask = n_differing[stops] == n_differing[stops - lengths]
    return equal
