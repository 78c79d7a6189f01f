"""From a change set to a new snapshot, whose files are written but which nothing refers to yet; and rebasing.

A commit writes manifests, then the snapshot and its transaction log, and last swaps ``repo``, or in spec 1 the
branch's file (:mod:`.publishing`). Until the swap nothing that exists is touched; after it everything is there. What a
failed commit leaves behind are unreferenced files, which garbage collection removes.

Requests of a commit that changed ``a`` arrays into ``m`` manifests: one GET a stale manifest that is not cached, ``m``
PUTs, 2 PUTs (snapshot, log), and 1 GET + 1 COPY + 1 conditional PUT of ``repo`` (spec 1: GET, HEAD, conditional PUT);
a lost swap repeats the last three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icechunk_engine._sync import map_heavy, start_heavy
from icechunk_engine.assets import AssetManager, WrittenManifest
from icechunk_engine.chunk_refs import DELETED, ChunkRefs, concat
from icechunk_engine.config import ResolvedConfig
from icechunk_engine.errors import ErrorKind, RebaseFailedError, SessionStateError
from icechunk_engine.format import layout
from icechunk_engine.format.locations import LocationCompression
from icechunk_engine.format.manifest import Manifest, encode_manifest
from icechunk_engine.format.nodes import ManifestRef, Node
from icechunk_engine.format.repo_info import SnapshotInfo
from icechunk_engine.format.snapshot import ManifestFiles, Snapshot, encode_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, encode_transaction_log
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ManifestId, NodeId, SnapshotId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.chunks import extents_array, stored_refs
from icechunk_engine.transaction.conflicts import Conflict, ConflictSolver, detect, rebased
from icechunk_engine.transaction.publishing import references
from icechunk_engine.transaction.splitting import cut, overlapping, split_rule, stale_manifests
from icechunk_engine.transaction.swapping import now_us

_HEAVY_NUM_REFS = 4096
"""References from which a manifest is encoded on another thread (some milliseconds of work)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot whose files are written, ready to be published."""

    snapshot: Snapshot
    info: SnapshotInfo


@dataclass(frozen=True, slots=True)
class ArrayMemo:
    """Manifests written for one array by an earlier try of the same commit, and from which inputs."""

    inputs: tuple[Any, ...]
    manifests: tuple[ManifestRef, ...]
    written: tuple[WrittenManifest, ...]


ManifestMemo = dict[NodeId, ArrayMemo]


# --- one array ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ArrayManifests:
    """Manifests of one array after the commit: those kept and those to be written."""

    kept: tuple[ManifestRef, ...]
    pieces: tuple[ChunkRefs, ...]


def _rearrange_array(
    node: Node, edits: ChunkRefs, counts: Mapping[bytes, int], assets: AssetManager
) -> _ArrayManifests:
    """Decide which manifests of an array stay and cut the references of the others, and the edits, into new ones."""
    assert node.shape is not None
    grid, ndim = node.shape.num_chunks, node.shape.ndim
    edits = edits.take(edits.within((0,) * ndim, grid))
    rule = split_rule(node.path, node.shape, assets.config.splitting)
    extents = extents_array(node.manifests, ndim)
    if ndim == 0:
        stale = np.full(len(node.manifests), len(edits) > 0)
    else:
        num_refs = [counts.get(ref.manifest_id.raw, 0) for ref in node.manifests]
        stale = stale_manifests(extents, num_refs, edits.indices, rule, grid)
    while True:
        old = stored_refs(replace(node, manifests=_pick(node.manifests, stale)), assets)
        merged = concat([old, edits]).latest() if len(old) else edits
        pieces = cut(merged.take(merged.kinds != DELETED), rule, grid)
        more = overlapping(extents, pieces) & ~stale if ndim else np.zeros_like(stale)
        if not more.any():
            return _ArrayManifests(_pick(node.manifests, ~stale), tuple(pieces))
        stale |= more


def _pick(manifests: tuple[ManifestRef, ...], mask: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[ManifestRef, ...]:
    return tuple([manifests[i] for i in np.flatnonzero(mask)])


# --- the whole change set ----------------------------------------------------------------------------------------


def write_snapshot(
    assets: AssetManager,
    base: Snapshot,
    changes: ChangeSet,
    *,
    message: str,
    metadata: Mapping[str, Any],
    memo: ManifestMemo | None = None,
) -> NewSnapshot:
    """Write all files of a new snapshot with parent ``base``; nothing refers to them yet.

    Parameters
    ----------
    memo
        What earlier tries of this commit wrote; manifests whose inputs are the same are not written again.
    """
    snapshot_id, level, spec_version = SnapshotId.random(), assets.config.compression_level, assets.spec_version
    log = transaction_log(snapshot_id, changes)
    log_file = start_heavy(
        lambda: encode_transaction_log(log, level=level, spec_version=spec_version), log.num_chunks >= _HEAVY_NUM_REFS
    )
    nodes, written = _write_manifests(assets, base, changes, {} if memo is None else memo)
    table = base.nodes.replace(_gone_rows(base, changes, nodes), nodes)
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        parent_id=base.snapshot_id if spec_version == 1 else None,
        flushed_at_us=max(now_us(), base.flushed_at_us + 1),  # strictly later than the parent, whatever the clock says
        message=message,
        metadata=dict(metadata),
        manifest_files=_manifest_files(base.manifest_files, written, table.used_manifest_ids()),
        nodes=table,
        spec_version=spec_version,
    )
    assets.write(
        {
            layout.snapshot_key(snapshot_id): encode_snapshot(snapshot, level=level),
            layout.transaction_log_key(snapshot_id): log_file.result(),
        }
    )
    assets.remember_snapshot(snapshot)
    info = SnapshotInfo(
        id=snapshot_id,
        parent_id=base.snapshot_id,
        flushed_at_us=snapshot.flushed_at_us,
        message=message,
        metadata=dict(metadata),
        pruned=(),
    )
    return NewSnapshot(snapshot=snapshot, info=info)


def _write_manifests(
    assets: AssetManager, base: Snapshot, changes: ChangeSet, memo: ManifestMemo
) -> tuple[list[Node], list[WrittenManifest]]:
    """Changed and new nodes in their final form, and the manifests that were written for them."""
    counts = base.manifest_files.counts()
    touched = _touched_nodes(base, changes)
    new: dict[NodeId, _NewManifests] = {}

    def pieces() -> Iterator[tuple[NodeId, ChunkRefs]]:
        for node in touched:
            if node.shape is None:
                continue
            edits = changes.chunks.get(node.node_id)
            inputs = (node.manifests, node.user_data, (edits.lineage, edits.revision) if edits else None)
            known = memo.get(node.node_id)
            if known is not None and known.inputs == inputs:
                continue
            columns = edits.collapse() if edits else ChunkRefs.empty(node.shape.ndim)
            plan = _rearrange_array(node, columns, counts, assets)
            new[node.node_id] = _NewManifests(inputs, list(plan.kept), [])
            for piece in plan.pieces:
                yield node.node_id, piece

    files: dict[str, bytes] = {}
    encoded = map_heavy(
        lambda item: _encode_piece(*item, assets), pieces(), lambda item: len(item[1]) >= _HEAVY_NUM_REFS
    )
    for node_id, ref, file, data in encoded:
        files[layout.manifest_key(ref.manifest_id)] = data
        new[node_id].refs.append(ref)
        new[node_id].written.append(file)
    assets.write(files)
    memo |= {node_id: ArrayMemo(made.inputs, tuple(made.refs), tuple(made.written)) for node_id, made in new.items()}
    arrays = [(node, memo[node.node_id]) for node in touched if node.shape is not None]
    nodes = [node for node in touched if node.shape is None]
    nodes += [replace(node, manifests=known.manifests) for node, known in arrays]
    return nodes, [file for _, known in arrays for file in known.written]


@dataclass(frozen=True, slots=True)
class _NewManifests:
    """What is being written for one array."""

    inputs: tuple[Any, ...]
    refs: list[ManifestRef]
    written: list[WrittenManifest]


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


def transaction_log(snapshot_id: SnapshotId, changes: ChangeSet) -> TransactionLog:
    """What a change set did, by node id (spec, *Transaction log*)."""
    new, updated, deleted = changes.new_nodes.values(), changes.updated_nodes.values(), changes.deleted_nodes.values()
    return TransactionLog(
        snapshot_id=snapshot_id,
        new_groups=_sorted_ids([node.node_id for node in new if not node.is_array]),
        new_arrays=_sorted_ids([node.node_id for node in new if node.is_array]),
        deleted_groups=_sorted_ids([node.node_id for node in deleted if not node.is_array]),
        deleted_arrays=_sorted_ids([node.node_id for node in deleted if node.is_array]),
        updated_arrays=_sorted_ids([node.node_id for node in updated if node.is_array]),
        updated_groups=_sorted_ids([node.node_id for node in updated if not node.is_array]),
        updated_chunks={node_id: edits.collapse().indices for node_id, edits in changes.chunks.items() if edits},
        moved_nodes=(),
    )


def _sorted_ids(ids: Sequence[NodeId]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    raws = sorted(node_id.raw for node_id in ids)
    return np.frombuffer(b"".join(raws), np.uint8).reshape(len(raws), NodeId.SIZE)


# --- rebasing ------------------------------------------------------------------------------------------------------


def rebase_changes(
    assets: AssetManager, branch: str, base_id: SnapshotId, changes: ChangeSet, solver: ConflictSolver
) -> tuple[SnapshotId, ChangeSet]:
    """The branch's tip and our edits on top of it; ``changes`` itself is left as it was.

    Every commit since the base is looked at, oldest first, pruned logs included.

    Raises
    ------
    RebaseFailedError
        Naming the commit and the conflicts that the solver could not settle; or the branch was reset to another line.
    """
    refs = references(assets)
    tip = refs.branch_tip(branch)
    if tip == base_id:
        return base_id, changes
    missed = _commits_since(base_id, refs.ancestry(tip), branch)
    base_nodes = assets.snapshot(base_id).nodes
    for theirs, log_ids in missed:
        tree = assets.snapshot(theirs.id).nodes
        found: list[Conflict] = []
        for log_id in log_ids:
            log = assets.transaction_log(log_id)
            if log is None:
                if log_id == INITIAL_SNAPSHOT_ID:
                    continue  # in spec 1 there is none of the first snapshot, which changed nothing
                raise SessionStateError(
                    f"cannot rebase over snapshot {theirs.id}: its transaction log {log_id} is gone (expired and "
                    f"collected). Redo the change in a new session",
                    ErrorKind.REBASE_TX_LOG_PRUNED,
                )
            found.extend(detect(changes, base_nodes, log, tree))
        unsettled = solver.settle(found)
        if unsettled:
            raise RebaseFailedError(str(theirs.id), unsettled, _rebase_failure(theirs, unsettled))
        changes, base_nodes = rebased(changes, found, solver, tree), tree
    return tip, changes


def _commits_since(
    base_id: SnapshotId, line: Iterable[SnapshotInfo], branch: str
) -> list[tuple[SnapshotInfo, Sequence[SnapshotId]]]:
    """Commits of a line, newest first, that came after the base: oldest first, with the logs of what they changed."""
    missed: list[tuple[SnapshotInfo, Sequence[SnapshotId]]] = []
    for info in line:
        if info.id == base_id:
            return missed[::-1]
        log_ids = (*info.pruned, info.id)
        if base_id in info.pruned:  # the base has expired
            missed.append((info, log_ids[log_ids.index(base_id) + 1 :]))
            return missed[::-1]
        missed.append((info, log_ids))
    raise RebaseFailedError(
        str(missed[0][0].id),
        [],
        f"cannot rebase: branch {branch!r} no longer holds snapshot {base_id}, on which this session is based; the "
        f"branch was reset, or the snapshot has expired. The session is unchanged: redo the change in a new session",
    )


def _rebase_failure(theirs: SnapshotInfo, conflicts: Sequence[Conflict]) -> str:
    return (
        f"cannot rebase over snapshot {theirs.id} ({theirs.message!r}): "
        + "; ".join(map(str, conflicts))
        + ". The session is unchanged: choose another solver, or redo the change in a new session"
    )
