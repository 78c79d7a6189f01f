"""Plan the manifests that a commit writes for one array, and decide when an earlier try already wrote them.

A manifest is *stale* if it must be replaced: because it holds a changed chunk, or because a new manifest would
overlap it (:mod:`icechunk_engine.transaction.splitting`). All other manifests are taken over as they are, so a small
edit costs little in a large array.

If a commit loses the swap to another one, the session rebases and tries again. A :data:`ManifestMemo` then saves the
manifests that the earlier try wrote. Reusing them is sound under three conditions:

- The array's metadata and edits are the same. :class:`ManifestInputs` holds the lineage and revision of the edits,
  which change with every edit, instead of the edits themselves.
- The manifests that went into the new ones are still the array's. If the other commit replaced one of them, the new
  manifests lack its changes.
- The new manifests overlap none that stays, the other commit's included.

The commit compares the inputs, and :meth:`ArrayPlan.allows` checks the rest. A memo must not outlive the commit call:
the configuration (splitting, compression) also shapes manifests, and only within one call is it sure to be the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from icechunk_engine.assets import AssetManager, WrittenManifest
from icechunk_engine.columns.chunk_refs import DELETED, ChunkRefs
from icechunk_engine.columns.sorted_parts import SortedParts
from icechunk_engine.columns.tables import U32, Mask
from icechunk_engine.config import ResolvedConfig
from icechunk_engine.format.nodes import ManifestRef, Node
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.splitting import (
    SplitRule,
    independent_borders,
    inside_extents,
    manifests_to_rewrite,
    overlapping_manifests,
    split,
    split_rule,
)
from icechunk_engine.transaction.stored_chunk_refs import extents_of, load_chunk_refs

_BYTES_AT_ONCE = 1 << 24
"""Columns that are joined at once, to be split into manifests. A manifest's worth is joined even if it is larger."""


class ManifestInputs(NamedTuple):
    """The inputs of an array's new manifests, besides the stale ones."""

    user_data: bytes
    edits: tuple[object, int] | None
    """Lineage and revision of the chunk edits."""


@dataclass(frozen=True, slots=True)
class ArrayMemo:
    """Manifests that an earlier try of the same commit wrote for one array.

    Attributes
    ----------
    inputs
        Metadata and edits that they were made from.
    replaced
        Manifests of the base whose references went into them.
    manifests, written
        The new manifests, as the array refers to them and as files.
    """

    inputs: ManifestInputs
    replaced: frozenset[ManifestRef]
    manifests: tuple[ManifestRef, ...]
    written: tuple[WrittenManifest, ...]


ManifestMemo = dict[NodeId, ArrayMemo]
"""The manifests that earlier tries of one commit wrote, by array."""


class ArrayPlan:
    """The plan for one array: which manifests stay, and what goes into new ones."""

    def __init__(self, node: Node, edits: SortedParts, counts: Mapping[bytes, int], config: ResolvedConfig) -> None:
        assert node.shape is not None
        self.node = node
        self.grid = node.shape.num_chunks
        self.ndim = node.shape.ndim
        self.edits = edits
        self.rule: SplitRule = split_rule(node.path, node.shape, config.splitting)
        self.extents = extents_of(node.manifests, self.ndim)
        if self.ndim == 0:
            self.stale = np.full(len(node.manifests), len(self.edits) > 0)
        else:
            self.stale = self._stale([counts.get(ref.manifest_id.raw, 0) for ref in node.manifests])

    def _stale(self, num_refs: list[int]) -> Mask:
        """Return the mask of the manifests that the edits make stale."""
        unchanged = np.empty((0, self.ndim), np.uint32)
        stale = manifests_to_rewrite(self.extents, num_refs, unchanged, self.rule, self.grid)
        if len(stale) == 0:
            return stale
        edits = self.edits.without_places()
        for block in edits.blocks(edits.borders()):
            refs = self._inside_grid(block)
            # A deletion outside all manifests deletes nothing. As a change, it would rewrite the last manifest.
            counted = (refs.kinds != DELETED) | inside_extents(self.extents, refs.indices)
            stale |= manifests_to_rewrite(self.extents, num_refs, refs.indices[counted], self.rule, self.grid)
        return stale

    def _inside_grid(self, refs: ChunkRefs) -> ChunkRefs:
        return refs.take(refs.within((0,) * self.ndim, self.grid))

    def _live(self, refs: ChunkRefs) -> ChunkRefs:
        """Return the references that a manifest may hold."""
        inside = self._inside_grid(refs)
        return inside.take(inside.kinds != DELETED)

    def allows(self, known: ArrayMemo) -> bool:
        """Return True if the manifests of an earlier try are still right. See the module for the conditions."""
        replaced = np.array([ref in known.replaced for ref in self.node.manifests], np.bool_)
        if int(replaced.sum()) < len(known.replaced) or bool((self.stale & ~replaced).any()):
            return False
        kept = self.extents[~replaced]
        new = extents_of(known.manifests, self.ndim)
        overlaps = (kept[:, None, :, 0] < new[None, :, :, 1]) & (kept[:, None, :, 1] > new[None, :, :, 0])
        return not bool(overlaps.all(axis=2).any())

    def pieces(self, assets: AssetManager) -> Iterator[ChunkRefs]:
        """Yield the references that go into new manifests: those of the stale manifests, with the edits.

        New manifests may overlap others. Then these become stale, too, and the references are split anew.
        """
        while True:
            old = load_chunk_refs(replace(self.node, manifests=self._pick(self.stale)), assets)
            refs = SortedParts(self.ndim, [old, *self.edits.parts])
            borders = refs.thinned(independent_borders(refs, self.rule, self._live), _rows_at_once(refs))
            if self.ndim == 0 or bool(self.stale.all()):
                yield from self._split(refs, borders)
                return
            # Large edits are read twice, because their pieces do not fit into memory together.
            known = list(self._split(refs, borders)) if len(borders) == 0 else None
            more = overlapping_manifests(self.extents, known or self._split(refs, borders)) & ~self.stale
            if not more.any():
                yield from known if known is not None else self._split(refs, borders)
                return
            self.stale |= more

    def _split(self, refs: SortedParts, borders: U32) -> Iterator[ChunkRefs]:
        for block in refs.blocks(borders):
            yield from split(self._live(block), self.rule, self.grid)

    @property
    def replaced(self) -> frozenset[ManifestRef]:
        """The stale manifests."""
        return frozenset(self._pick(self.stale))

    def _pick(self, mask: Mask) -> tuple[ManifestRef, ...]:
        return tuple([self.node.manifests[i] for i in np.flatnonzero(mask)])


def _rows_at_once(refs: SortedParts) -> int:
    return _BYTES_AT_ONCE * len(refs) // max(refs.nbytes, 1)
