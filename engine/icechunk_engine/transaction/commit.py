"""From a change set to a new snapshot, whose files are written but which nothing refers to yet.

A commit writes manifests, the snapshot and its transaction log, and last swaps ``repo``, or in spec 1 the
branch's file (:mod:`icechunk_engine.catalog`). Until the swap nothing that exists is touched; after it everything is
there. What a failed commit leaves behind are unreferenced files, which garbage collection removes.

Requests of a commit that changed ``a`` arrays into ``m`` manifests: 1 GET of ``repo``, one GET a stale manifest that
is not cached, ``m`` PUTs, 2 PUTs (snapshot, log), and 1 COPY + 1 conditional PUT of ``repo``. A swap that is lost to
another branch's commit repeats the GET, COPY and PUT of ``repo``; one that is lost to a commit of this branch, after a
rebase, also the PUTs of snapshot, log, and of those manifests that the other commit replaced. (Spec 1: GET, HEAD and
conditional PUT of the branch's file, which is looked at once more before.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import batched
from typing import Any

import numpy as np

from icechunk_engine._runtime.pools import map_heavy, start_heavy
from icechunk_engine.assets import AssetManager, WrittenManifest
from icechunk_engine.catalog.clock_check import now_us, require_right_clock
from icechunk_engine.catalog.history import require_date
from icechunk_engine.columns.chunk_refs import DELETED, ChunkRefs, concat
from icechunk_engine.config import ResolvedConfig
from icechunk_engine.format import layout
from icechunk_engine.format.locations import LocationCompression
from icechunk_engine.format.manifest import Manifest, encode_manifest
from icechunk_engine.format.nodes import ManifestRef, Node
from icechunk_engine.format.repo_info import SnapshotRecord
from icechunk_engine.format.snapshot import ManifestFiles, Snapshot, encode_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, encode_transaction_log
from icechunk_engine.ids import ManifestId, NodeId, SnapshotId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.commit_logs import amended_log, log_of_changes
from icechunk_engine.transaction.durable_chunks import make_durable
from icechunk_engine.transaction.splitting import SplitRule, covered, cut, overlapping, split_rule, stale_manifests
from icechunk_engine.transaction.stored_refs import extents_array, stored_refs

_HEAVY_NUM_REFS = 4096
"""References from which a manifest is encoded on another thread (some milliseconds of work)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot whose files are written, ready to be published."""

    snapshot: Snapshot
    info: SnapshotRecord


@dataclass(frozen=True, slots=True)
class ArrayMemo:
    """Manifests written for one array by an earlier try of the same commit.

    Attributes
    ----------
    inputs
        Metadata and edits that they were made from.
    replaced
        Manifests of the base whose references went into them.
    manifests, written
        The new ones.
    """

    inputs: tuple[Any, ...]
    replaced: frozenset[ManifestRef]
    manifests: tuple[ManifestRef, ...]
    written: tuple[WrittenManifest, ...]


ManifestMemo = dict[NodeId, ArrayMemo]


# --- one array ---------------------------------------------------------------------------------------------------


class _ArrayPlan:
    """Which manifests of an array stay, and what goes into new ones."""

    def __init__(self, node: Node, edits: ChunkRefs, counts: Mapping[bytes, int], config: ResolvedConfig) -> None:
        assert node.shape is not None
        self.node = node
        self.grid = node.shape.num_chunks
        self.ndim = node.shape.ndim
        self.edits = edits.take(edits.within((0,) * self.ndim, self.grid))
        self.rule: SplitRule = split_rule(node.path, node.shape, config.splitting)
        self.extents = extents_array(node.manifests, self.ndim)
        if self.ndim == 0:
            self.stale = np.full(len(node.manifests), len(self.edits) > 0)
        else:
            num_refs = [counts.get(ref.manifest_id.raw, 0) for ref in node.manifests]
            # Deletions outside all manifests delete nothing.
            counted = (self.edits.kinds != DELETED) | covered(self.extents, self.edits.indices)
            changed = self.edits.indices[counted]
            self.stale = stale_manifests(self.extents, num_refs, changed, self.rule, self.grid)

    def allows(self, known: ArrayMemo) -> bool:
        """True when what an earlier try wrote, in place of the same manifests, still holds and fits."""
        replaced = np.array([ref in known.replaced for ref in self.node.manifests], np.bool_)
        if int(replaced.sum()) < len(known.replaced) or bool((self.stale & ~replaced).any()):
            return False
        kept = self.extents[~replaced]
        new = extents_array(known.manifests, self.ndim)
        overlaps = (kept[:, None, :, 0] < new[None, :, :, 1]) & (kept[:, None, :, 1] > new[None, :, :, 0])
        return not bool(overlaps.all(axis=2).any())

    def pieces(self, assets: AssetManager) -> list[ChunkRefs]:
        """References of the stale manifests with the edits, cut into new manifests; more may turn out to be stale."""
        while True:
            old = stored_refs(replace(self.node, manifests=self._pick(self.stale)), assets)
            merged = concat([old, self.edits]).latest() if len(old) else self.edits
            pieces = cut(merged.take(merged.kinds != DELETED), self.rule, self.grid)
            more = overlapping(self.extents, pieces) & ~self.stale if self.ndim else np.zeros_like(self.stale)
            if not more.any():
                return pieces
            self.stale |= more

    @property
    def replaced(self) -> frozenset[ManifestRef]:
        """The stale manifests."""
        return frozenset(self._pick(self.stale))

    def _pick(self, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[ManifestRef, ...]:
        return tuple([self.node.manifests[i] for i in np.flatnonzero(mask)])


# --- the whole change set ----------------------------------------------------------------------------------------


def write_snapshot(
    assets: AssetManager,
    base: Snapshot,
    changes: ChangeSet,
    *,
    message: str,
    metadata: Mapping[str, Any],
    memo: ManifestMemo | None = None,
    amended: TransactionLog | None = None,
    is_final: bool = True,
) -> NewSnapshot:
    """Write all files of a new snapshot with parent ``base``; nothing refers to them yet.

    Parameters
    ----------
    memo
        What earlier tries of this commit wrote; manifests whose inputs are the same are not written again.
    amended
        Log of ``base``, when the new snapshot is to take its place.
    is_final
        The snapshot is to be published: it, and the chunks that it refers to, are made durable first.

    Raises
    ------
    StorageError
        ``not-durable``: the disk refused one of these files, now or before.
    FormatError
        ``snapshot-timestamp``: the clock of this machine is not that of the storage.
    """
    snapshot_id, level, spec_version = SnapshotId.random(), assets.config.compression_level, assets.spec_version
    require_date(base.flushed_at_us, f"snapshot {base.snapshot_id}")
    began_us = now_us()
    flushed_at_us = max(began_us, base.flushed_at_us + 1)  # strictly later than the parent, whatever the clock says
    log = log_of_changes(snapshot_id, changes)
    if amended is not None:
        log = amended_log(amended, log)
    log_file = start_heavy(
        lambda: encode_transaction_log(log, level=level, spec_version=spec_version), log.num_chunks >= _HEAVY_NUM_REFS
    )
    nodes, written, files = _make_manifests(assets, base, changes, {} if memo is None else memo)
    table = base.nodes.replace(_gone_rows(base, changes, nodes), nodes)
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        parent_id=base.snapshot_id if spec_version == 1 else None,
        flushed_at_us=flushed_at_us,
        message=message,
        metadata=dict(metadata),
        manifest_files=_manifest_files(base.manifest_files, written, table.used_manifest_ids()),
        nodes=table,
        spec_version=spec_version,
    )
    files[layout.snapshot_key(snapshot_id)] = encode_snapshot(snapshot, level=level)
    files[layout.transaction_log_key(snapshot_id)] = log_file.result()
    assets.write(files)
    if is_final:
        require_right_clock(assets.storage, layout.snapshot_key(snapshot_id), began_us, now_us())
        make_durable(assets.storage, changes, lambda: base.nodes, files.keys())
    assets.remember_snapshot(snapshot)
    info = SnapshotRecord(
        id=snapshot_id,
        parent_id=base.snapshot_id,
        flushed_at_us=snapshot.flushed_at_us,
        message=message,
        metadata=dict(metadata),
        pruned=(),
    )
    return NewSnapshot(snapshot=snapshot, info=info)


def _make_manifests(
    assets: AssetManager, base: Snapshot, changes: ChangeSet, memo: ManifestMemo
) -> tuple[list[Node], list[WrittenManifest], dict[str, bytes]]:
    """Changed, new and moved nodes in their final form, the manifests made for them, and the files to be written."""
    counts = base.manifest_files.counts()
    touched = _touched_nodes(base, changes)
    new: dict[NodeId, _NewManifests] = {}

    def plans() -> Iterator[_ArrayPlan]:
        for node in touched:
            if node.shape is None:
                continue
            edits = changes.chunks.get(node.node_id)
            inputs = (node.user_data, (edits.lineage, edits.revision) if edits else None)
            columns = edits.collapse() if edits else ChunkRefs.empty(node.shape.ndim)
            plan = _ArrayPlan(node, columns, counts, assets.config)
            known = memo.get(node.node_id)
            if known is None or known.inputs != inputs or not plan.allows(known):
                new[node.node_id] = _NewManifests(inputs, [], [])
                yield plan

    def pieces() -> Iterator[tuple[NodeId, ChunkRefs]]:
        for plan in _with_manifests_fetched(plans(), assets):
            for piece in plan.pieces(assets):
                yield plan.node.node_id, piece
            new[plan.node.node_id].replaced = plan.replaced

    files: dict[str, bytes] = {}
    encoded = map_heavy(
        lambda item: _encode_piece(*item, assets), pieces(), lambda item: len(item[1]) >= _HEAVY_NUM_REFS
    )
    for node_id, ref, file, data in encoded:
        files[layout.manifest_key(ref.manifest_id)] = data
        new[node_id].refs.append(ref)
        new[node_id].written.append(file)
    memo |= {
        node_id: ArrayMemo(made.inputs, made.replaced, tuple(made.refs), tuple(made.written))
        for node_id, made in new.items()
    }
    arrays = [(node, memo[node.node_id]) for node in touched if node.shape is not None]
    nodes = [node for node in touched if node.shape is None]
    nodes += [replace(node, manifests=_manifests_after(node, known)) for node, known in arrays]
    nodes += changes.moved_nodes.values()
    return nodes, [file for _, known in arrays for file in known.written], files


def _manifests_after(node: Node, known: ArrayMemo) -> tuple[ManifestRef, ...]:
    return (*(ref for ref in node.manifests if ref not in known.replaced), *known.manifests)


@dataclass(slots=True)
class _NewManifests:
    """What is being written for one array."""

    inputs: tuple[Any, ...]
    refs: list[ManifestRef]
    written: list[WrittenManifest]
    replaced: frozenset[ManifestRef] = frozenset()


def _with_manifests_fetched(plans: Iterator[_ArrayPlan], assets: AssetManager) -> Iterator[_ArrayPlan]:
    """The plans; on a network the manifests that some of them replace are fetched together."""
    if not assets.storage.is_remote:
        yield from plans
        return
    for some in batched(plans, assets.config.max_concurrent_manifest_fetches):
        assets.manifests(list({ref.manifest_id: None for plan in some for ref in plan.replaced}))
        yield from some


def _touched_nodes(base: Snapshot, changes: ChangeSet) -> list[Node]:
    """New and changed nodes, and arrays of which only chunks changed; manifests are those of the base."""
    table = base.nodes
    touched = list(changes.new_nodes.values())
    new_ids = {node.node_id for node in touched}
    touched.extend(
        replace(node, manifests=table.node(table.row_of_id(node.node_id)).manifests)
        for node in changes.updated_nodes.values()
    )
    for node_id, edits in changes.chunks.items():
        if edits and node_id not in new_ids and node_id not in changes.updated_nodes:
            touched.append(table.node(table.row_of_id(node_id)))
    return touched


def _encode_piece(
    node_id: NodeId, piece: ChunkRefs, assets: AssetManager
) -> tuple[NodeId, ManifestRef, WrittenManifest, bytes]:
    manifest_id = ManifestId.random()
    manifest = Manifest(manifest_id=manifest_id, arrays=((node_id, piece.compact()),))
    data = encode_manifest(
        manifest,
        level=assets.config.compression_level,
        location_compression=_location_compression(assets.config),
        spec_version=assets.spec_version,
    )
    assets.remember_manifest(manifest)
    extents = piece.extents().tolist() if piece.ndim else []
    ref = ManifestRef(manifest_id, tuple((start, stop) for start, stop in extents))
    return node_id, ref, WrittenManifest(manifest_id, len(data), len(piece)), data


def _location_compression(config: ResolvedConfig) -> LocationCompression | None:
    """Compressing each location makes files larger, not smaller, so it is done only where it was asked for."""
    asked = config.location_compression
    if asked is None:
        return None
    return LocationCompression(
        min_num_chunks=asked.min_num_chunks,
        max_training_samples=asked.max_training_samples,
        dictionary_max_size_bytes=asked.dictionary_max_size_bytes,
        level=asked.level,
    )


def _gone_rows(base: Snapshot, changes: ChangeSet, nodes: Sequence[Node]) -> list[int]:
    """Rows of the base that are deleted or come back in a new form."""
    ids = {*changes.deleted_nodes, *(node.node_id for node in nodes)}
    return [row for node_id in ids if (row := base.nodes.row_of_id(node_id)) >= 0]


def _manifest_files(
    base: ManifestFiles, written: Sequence[WrittenManifest], used: np.ndarray[Any, np.dtype[np.uint8]]
) -> ManifestFiles:
    """List of exactly the manifests that the nodes refer to, with sizes and counts."""
    added = ManifestFiles.of([(file.manifest_id, file.size_bytes, file.num_refs) for file in written])
    return base.union(added).restrict(used)
