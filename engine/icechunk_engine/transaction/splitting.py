"""Which chunk references go into which manifest. Pure.

Two rules. Where the user configured splitting, a uniform grid of boxes (spec-neutral, official's rules). Otherwise
manifests are cut by size: an array's references share one manifest until there are more than
``AUTO_TARGET_REFS``; then boxes are cut along the first axes, and a later commit rewrites only manifests that hold a
changed chunk plus, for chunks outside all of them, the last manifest that is not full. So an append costs the same
whatever the array's length, and manifests stay far below what official readers accept.

Manifests of one array never overlap: readers take the first whose extents contain a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import INLINE, ChunkRefs
from icechunk_engine.columns.tables import U32, column_bounds
from icechunk_engine.config import ManifestSplittingConfig
from icechunk_engine.format.manifest import MAX_APPARENT_SIZE, apparent_size
from icechunk_engine.format.zarr_metadata import ArrayShape

AUTO_TARGET_REFS = 1 << 17
"""References in one manifest when nothing is configured: about 1.5 MB on disk, some 20 ms to read."""

_MAX_NUMBERED = 2**63 - 1

MAX_MANIFEST_REFS = 4_000_000
"""Cut even inside configured boxes: official refuses manifests above 2 GiB or 4 GiB of apparent size."""


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Edge lengths of the split boxes along each axis, in chunks; None = cut by size."""

    edges: tuple[int, ...] | None

    @property
    def max_refs(self) -> int:
        """References at most in one manifest."""
        return AUTO_TARGET_REFS if self.edges is None else MAX_MANIFEST_REFS


def split_rule(path: str, shape: ArrayShape, splitting: ManifestSplittingConfig | None) -> SplitRule:
    """The rule for one array: the configured one, else cutting by size."""
    if splitting is None:
        return SplitRule(None)
    return SplitRule(splitting.edges_for(path, shape.ndim, shape.dimension_names))


def box_numbers(indices: U32, edges: Sequence[int], grid: Sequence[int]) -> NDArray[np.int64]:
    """Number of the split box that each chunk lies in, C order over the boxes.

    Where there are more boxes than 64 bits can number, only those that hold a chunk are numbered.
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


def stale_manifests(
    extents: NDArray[np.uint32], num_refs: Sequence[int], changed: U32, rule: SplitRule, grid: Sequence[int]
) -> NDArray[np.bool_]:
    """Which of an array's manifests must be rewritten for a set of changed chunks.

    Parameters
    ----------
    extents
        ``uint32 (m, ndim, 2)`` of the present manifests.
    num_refs
        References in each of them.
    changed
        ``uint32 (n, ndim)``, sorted: chunks set or deleted.
    rule, grid
        Splitting in force and the array's chunk grid.

    Returns
    -------
    Boolean mask ``(m,)``.
    """
    m, ndim = len(extents), extents.shape[1]
    outside_grid = (extents[:, :, 1] > np.asarray(grid, np.uint32)).any(axis=1) if ndim else np.zeros(m, np.bool_)
    if len(changed) == 0 or m == 0:
        return outside_grid
    if rule.edges is not None:
        starts, stops = _touched_boxes(changed, rule.edges, grid)
        stale = np.zeros(m, np.bool_)
        for i in range(m):
            stale[i] = _intersects_any(extents[i], starts, stops)
        return stale | outside_grid
    found = np.zeros(len(changed), np.bool_)
    stale = np.zeros(m, np.bool_)
    for i, inside in _hits(extents, changed):
        stale[i] = inside.any()
        found |= inside
    if not found.all():
        roomy = np.flatnonzero(np.asarray(num_refs) < rule.max_refs // 2)
        stale[roomy[-1:]] = True
    return stale | outside_grid


def covered(extents: NDArray[np.uint32], indices: U32) -> NDArray[np.bool_]:
    """Which chunks lie in the extents of some manifest: a mask ``(n,)``."""
    mask = np.zeros(len(indices), np.bool_)
    for _, inside in _hits(extents, indices):
        mask |= inside
    return mask


def _hits(extents: NDArray[np.uint32], indices: U32) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Manifests that may hold some of the chunks, each with the mask of those in its extents."""
    if len(indices) == 0:
        return
    lowest, highest = column_bounds(indices)
    near = ((extents[:, :, 0] <= highest) & (extents[:, :, 1] > lowest)).all(axis=1)
    for i in np.flatnonzero(near).tolist():
        yield i, ((indices >= extents[i, :, 0]) & (indices < extents[i, :, 1])).all(axis=1)


def _touched_boxes(changed: U32, edges: Sequence[int], grid: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
    """Bounds of the distinct split boxes that hold changed chunks."""
    _, first = np.unique(box_numbers(changed, edges, grid), return_index=True)
    edge = np.minimum(np.asarray(edges, np.int64), np.maximum(np.asarray(grid, np.int64), 1))
    starts = changed[first].astype(np.int64) // edge * edge
    return starts, starts + edge


def _intersects_any(extents: NDArray[np.uint32], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> bool:
    return bool(((extents[:, 0] < stops) & (extents[:, 1] > starts)).all(axis=1).any())


def overlapping(extents: NDArray[np.uint32], pieces: Sequence[ChunkRefs]) -> NDArray[np.bool_]:
    """Which manifests overlap the bounding box of any of the new pieces, and so must be rewritten too."""
    mask = np.zeros(len(extents), np.bool_)
    for piece in pieces:
        box = piece.extents()
        mask |= ((extents[:, :, 0] < box[:, 1]) & (extents[:, :, 1] > box[:, 0])).all(axis=1)
    return mask


def cut(refs: ChunkRefs, rule: SplitRule, grid: Sequence[int]) -> list[ChunkRefs]:
    """Sorted references → the sorted, non-overlapping pieces that become manifests, none empty."""
    if len(refs) == 0:
        return []
    if refs.ndim == 0:
        return [refs]
    pieces = [refs]
    if rule.edges is not None:
        numbers = box_numbers(refs.indices, rule.edges, grid)
        order = np.argsort(numbers, kind="stable")
        borders = np.flatnonzero(np.diff(numbers[order])) + 1
        if len(borders):
            pieces = [refs.take(rows) for rows in np.split(order, borders)]
    counted = [small for piece in pieces for small in _cut_to_size(piece, rule.max_refs, axis=0)]
    return [small for piece in counted for small in _cut_to_bytes(piece)]


def _cut_to_bytes(refs: ChunkRefs) -> list[ChunkRefs]:
    """Halve until official readers accept the manifests, however long inline chunks and locations are."""
    if len(refs) < 2 or _is_small(refs) or apparent_size(refs) <= MAX_APPARENT_SIZE:
        return [refs]
    return [small for half in _cut_to_size(refs, len(refs) // 2, axis=0) for small in _cut_to_bytes(half)]


def _is_small(refs: ChunkRefs) -> bool:
    """True when even the longest strings everywhere would not make the manifest too large."""
    longest = int(refs.locations.lengths.max(initial=0)) + int(refs.etags.lengths.max(initial=0))
    inline = int(refs.lengths[refs.kinds == INLINE].sum())
    return len(refs) * (256 + 4 * refs.ndim + longest) + inline <= MAX_APPARENT_SIZE


def _cut_to_size(refs: ChunkRefs, limit: int, axis: int) -> list[ChunkRefs]:
    """Cut along one axis between chunk coordinates, so that pieces stay boxes; slabs that are too full go on."""
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
        rows = slice(start, stop) if order is None else np.sort(order[start:stop])
        pieces.extend(_cut_to_size(refs.take(rows), limit, axis + 1) if stop - start > limit else [refs.take(rows)])
        start = stop
    return pieces
