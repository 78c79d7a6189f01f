"""Decide which chunk references go into which manifest. Pure.

Invariant: *the extents of an array's manifests do not overlap.* Readers look for a chunk in the first manifest whose
extents contain it, and nowhere else. If two overlapped, a chunk that only the second one holds would read as fill
value, in our reader and in the official one. Nothing would raise. So:

- References are split between two coordinates of an axis, never simply after a number of rows in C order. After row
  ``(1, 3)``, say, both boxes would contain coordinate 1 of axis 0 and overlap. If one coordinate alone holds too many
  references, they are split along the next axis.
- A commit writes new manifests for the references of the manifests that it replaces, together with its edits. The box
  of a new manifest may then touch a manifest that was to stay. That one must be replaced, too, and so on:
  :func:`overlapping_manifests` is called until it finds nothing more. This ends, because the set only grows.

Two rules decide where to split:

- *A configured splitting* is a uniform grid of boxes, with the rules of the official library. A commit rewrites the
  manifests that intersect the box of a changed chunk.
- *Without one, manifests are split by size.* References of an array share one manifest until there are more than
  :data:`AUTO_TARGET_REFS`. A commit rewrites the manifests whose extents contain a changed chunk. Chunks outside all
  extents, such as those of an append, join the last manifest that is less than half full. So an append rewrites at
  most one manifest, however long the array is.

Manifests that extend beyond the grid are rewritten in both cases. The array was made smaller, and if it grew again,
the old chunks would reappear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from icechunk_engine.columns.chunk_refs import INLINE, ChunkRefs
from icechunk_engine.columns.sorted_parts import SortedParts
from icechunk_engine.columns.tables import I64, U32, Mask, column_bounds
from icechunk_engine.config import ManifestSplittingConfig
from icechunk_engine.format.manifest import MAX_APPARENT_SIZE, apparent_size
from icechunk_engine.format.zarr_metadata import ArrayShape

AUTO_TARGET_REFS = 1 << 17
"""Most references in one manifest if nothing is configured: about 1.5 MB on disk and 20 ms to read."""

_MAX_NUMBERED = 2**63 - 1

MAX_MANIFEST_REFS = 4_000_000
"""Most references in one manifest, even inside a configured box. The official library refuses larger files (2 GiB, or
4 GiB of apparent size)."""


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How to split one array: edge lengths of the boxes along each axis, in chunks; None to split by size."""

    edges: tuple[int, ...] | None

    @property
    def max_refs(self) -> int:
        """Maximum number of references in one manifest."""
        return AUTO_TARGET_REFS if self.edges is None else MAX_MANIFEST_REFS


def split_rule(path: str, shape: ArrayShape, splitting: ManifestSplittingConfig | None) -> SplitRule:
    """Return the rule for one array."""
    if splitting is None:
        return SplitRule(None)
    return SplitRule(splitting.edges_for(path, shape.ndim, shape.dimension_names))


def box_numbers(indices: U32, edges: Sequence[int], grid: Sequence[int]) -> I64:
    """Number the split box of each chunk, in C order of the boxes.

    If 64 bits cannot number all boxes, only those that hold one of the chunks are numbered.
    """
    counts = [max(1, -(-n_chunks // edge)) for edge, n_chunks in zip(edges, grid, strict=True)]
    if math.prod(counts) > _MAX_NUMBERED:
        boxes = indices // np.minimum(np.asarray(edges, np.uint64), 2**32 - 1).astype(np.uint32)
        return np.unique(boxes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64, copy=False)
    numbers = np.zeros(len(indices), np.int64)
    for axis, (edge, n_chunks) in enumerate(zip(edges, grid, strict=True)):
        numbers *= counts[axis]
        if edge < n_chunks:
            numbers += indices[:, axis].astype(np.int64) // edge
    return numbers


def manifests_to_rewrite(
    extents: U32, num_refs: Sequence[int], changed: U32, rule: SplitRule, grid: Sequence[int]
) -> Mask:
    """Find the manifests of an array that a commit must rewrite.

    Parameters
    ----------
    extents
        ``uint32 (m, ndim, 2)`` of the array's manifests.
    num_refs
        Number of references in each manifest.
    changed
        ``uint32 (n, ndim)``, sorted: chunks set or deleted.
    rule, grid
        The split rule in force and the array's chunk grid.

    Returns
    -------
    Mask ``(m,)``.
    """
    m, ndim = len(extents), extents.shape[1]
    outside_grid = (extents[:, :, 1] > np.asarray(grid, np.uint32)).any(axis=1) if ndim else np.zeros(m, np.bool_)
    if len(changed) == 0 or m == 0:
        return outside_grid
    if rule.edges is not None:
        starts, stops = _boxes_of(changed, rule.edges, grid)
        rewritten = np.zeros(m, np.bool_)
        for i in range(m):  # all pairs at once would take m times the boxes in memory
            rewritten[i] = _intersects_any(extents[i], starts, stops)
        return rewritten | outside_grid
    found = np.zeros(len(changed), np.bool_)
    rewritten = np.zeros(m, np.bool_)
    for i, inside in _chunks_by_manifest(extents, changed):
        rewritten[i] = inside.any()
        found |= inside
    if not found.all():
        # Half empty, not merely not full: so an append rewrites at most half of the largest manifest.
        half_empty = np.flatnonzero(np.asarray(num_refs) < rule.max_refs // 2)
        rewritten[half_empty[-1:]] = True
    return rewritten | outside_grid


def inside_extents(extents: U32, indices: U32) -> Mask:
    """Return the mask ``(n,)`` of the chunks that lie in the extents of some manifest."""
    mask = np.zeros(len(indices), np.bool_)
    for _, inside in _chunks_by_manifest(extents, indices):
        mask |= inside
    return mask


def _chunks_by_manifest(extents: U32, indices: U32) -> Iterator[tuple[int, Mask]]:
    """Yield the manifests that may hold some of the chunks, each with the mask of the chunks in its extents."""
    if len(indices) == 0:
        return
    lowest, highest = column_bounds(indices)
    near = ((extents[:, :, 0] <= highest) & (extents[:, :, 1] > lowest)).all(axis=1)
    for i in np.flatnonzero(near).tolist():
        yield i, ((indices >= extents[i, :, 0]) & (indices < extents[i, :, 1])).all(axis=1)


def _boxes_of(changed: U32, edges: Sequence[int], grid: Sequence[int]) -> tuple[I64, I64]:
    """Return the bounds of the distinct split boxes that hold changed chunks."""
    _, first = np.unique(box_numbers(changed, edges, grid), return_index=True)
    edge = np.minimum(np.asarray(edges, np.int64), np.maximum(np.asarray(grid, np.int64), 1))
    starts = changed[first].astype(np.int64) // edge * edge
    return starts, starts + edge


def _intersects_any(extents: U32, starts: I64, stops: I64) -> bool:
    return bool(((extents[:, 0] < stops) & (extents[:, 1] > starts)).all(axis=1).any())


def overlapping_manifests(extents: U32, pieces: Iterable[ChunkRefs]) -> Mask:
    """Return the mask of the manifests that overlap the box of a new piece, and so must be rewritten, too."""
    mask = np.zeros(len(extents), np.bool_)
    for piece in pieces:
        box = piece.extents()
        mask |= ((extents[:, :, 0] < box[:, 1]) & (extents[:, :, 1] > box[:, 0])).all(axis=1)
    return mask


def independent_borders(refs: SortedParts, rule: SplitRule, live: Callable[[ChunkRefs], ChunkRefs]) -> U32:
    """Return borders of ranges that can be split one after another: :func:`split` makes the same pieces of all rows.

    Parameters
    ----------
    live
        Returns those rows of a block that go into manifests. The block has only indices and kinds.
    """
    if rule.edges is not None and refs.ndim:
        edge = min(rule.edges[0], 2**32 - 1)
        borders: U32 = np.unique(refs.borders() // np.uint32(edge) * np.uint32(edge))
        return borders[borders > 0]
    if refs.ndim == 0 or len(refs) <= rule.max_refs:
        return np.empty(0, np.uint32)
    bare = refs.without_places()
    columns = (live(block).indices[:, 0] for block in bare.blocks(bare.borders()))
    return np.array(_greedy_borders(columns, rule.max_refs), np.uint32)


def _greedy_borders(columns: Iterable[U32], limit: int) -> list[int]:
    """Return where :func:`_split_by_count` cuts axis 0, from the sorted coordinates of all rows.

    Parameters
    ----------
    columns
        The coordinates, in several arrays. No coordinate is in two of them.
    """
    borders: list[int] = []
    n_open = 0  # rows of the last piece so far, which the next slabs may join
    for column in columns:
        if len(column) == 0:
            continue
        slab_starts = np.append(0, np.flatnonzero(np.diff(column)) + 1)
        slab_stops = np.append(slab_starts[1:], len(column))
        first_row, slab = -n_open, 0
        while True:
            last = max(int(np.searchsorted(slab_stops, first_row + limit, "right")), slab)
            if last == slab and first_row == slab_starts[slab]:
                last += 1  # a piece has at least one slab
            if last == len(slab_stops):
                break
            first_row, slab = int(slab_starts[last]), last
            borders.append(int(column[first_row]))
        n_open = len(column) - first_row
    return borders


def split(refs: ChunkRefs, rule: SplitRule, grid: Sequence[int]) -> list[ChunkRefs]:
    """Split sorted references into the pieces that become manifests: sorted, not empty, and without overlaps."""
    if len(refs) == 0:
        return []
    if refs.ndim == 0:
        return [refs]
    pieces = [refs]
    if rule.edges is not None:
        numbers = box_numbers(refs.indices, rule.edges, grid)
        order = np.argsort(numbers, kind="stable")  # stable: references stay sorted by index inside each box
        borders = np.flatnonzero(np.diff(numbers[order])) + 1
        if len(borders):
            pieces = [refs.take(rows) for rows in np.split(order, borders)]
    counted = [small for piece in pieces for small in _split_by_count(piece, rule.max_refs, axis=0)]
    return [small for piece in counted for small in _split_by_size(piece)]


def _split_by_size(refs: ChunkRefs) -> list[ChunkRefs]:
    """Halve until official readers accept the manifests, however long inline chunks and locations are."""
    if len(refs) < 2 or _is_small(refs) or apparent_size(refs) <= MAX_APPARENT_SIZE:
        return [refs]
    return [small for half in _split_by_count(refs, len(refs) // 2, axis=0) for small in _split_by_size(half)]


def _is_small(refs: ChunkRefs) -> bool:
    """Return True if even the longest string in every row would not make the manifest too large: a cheap test."""
    longest = int(refs.locations.lengths.max(initial=0)) + int(refs.etags.lengths.max(initial=0))
    inline = int(refs.lengths[refs.kinds == INLINE].sum())
    return len(refs) * (256 + 4 * refs.ndim + longest) + inline <= MAX_APPARENT_SIZE


def _split_by_count(refs: ChunkRefs, limit: int, axis: int) -> list[ChunkRefs]:
    """Split between coordinates of one axis, so that boxes are disjoint. Split fuller slabs along the next axis."""
    if len(refs) <= limit or axis == refs.ndim:
        return [refs]
    coordinates = refs.indices[:, axis]
    order = np.argsort(coordinates, kind="stable") if axis else None  # sorted rows are sorted along axis 0 already
    ordered = coordinates if order is None else coordinates[order]
    slab_starts = np.append(0, np.flatnonzero(np.diff(ordered)) + 1)
    slab_stops = np.append(slab_starts[1:], len(ordered))
    pieces: list[ChunkRefs] = []
    start, stop = 0, 0
    while start < len(ordered):
        # The largest number of whole slabs within the limit, at least one.
        last = max(
            int(np.searchsorted(slab_stops, start + limit, "right")), int(np.searchsorted(slab_starts, start)) + 1
        )
        stop = int(slab_stops[last - 1])
        # The order along this axis mixed the rows. Sorted row numbers restore the order by index.
        rows = slice(start, stop) if order is None else np.sort(order[start:stop])
        pieces.extend(_split_by_count(refs.take(rows), limit, axis + 1) if stop - start > limit else [refs.take(rows)])
        start = stop
    return pieces
