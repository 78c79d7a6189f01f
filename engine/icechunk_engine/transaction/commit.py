"""From a change set to a new snapshot, and the only compare-and-swap loop of the engine.

A commit writes manifests, then the snapshot and its transaction log, and last swaps ``repo``. Until the swap nothing
that exists is touched; after it everything is there. What a failed commit leaves behind are unreferenced files, which
garbage collection removes.

Requests of a commit that changed ``a`` arrays into ``m`` manifests: one GET a stale manifest that is not cached, ``m``
PUTs, 2 PUTs (snapshot, log), and 1 GET + 1 COPY + 1 conditional PUT of ``repo``; a lost swap repeats the last three.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icechunk_engine._observe import request
from icechunk_engine._sync import map_heavy, start_heavy
from icechunk_engine.assets import AssetManager, WrittenManifest
from icechunk_engine.chunk_refs import DELETED, ChunkRefs, concat
from icechunk_engine.config import ResolvedConfig
from icechunk_engine.errors import (
    ConflictError,
    ErrorKind,
    RebaseFailedError,
    SessionStateError,
    VersionMismatchError,
)
from icechunk_engine.format import layout
from icechunk_engine.format.locations import LocationCompression
from icechunk_engine.format.manifest import Manifest, encode_manifest
from icechunk_engine.format.nodes import ManifestRef, Node
from icechunk_engine.format.repo_info import RepoInfo, SnapshotInfo, encode_repo_info
from icechunk_engine.format.snapshot import ManifestFiles, Snapshot, encode_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, encode_transaction_log
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ManifestId, NodeId, ObjectId, SnapshotId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.chunks import extents_array, stored_refs
from icechunk_engine.transaction.conflicts import Conflict, ConflictSolver, detect, rebased
from icechunk_engine.transaction.splitting import cut, overlapping, split_rule, stale_manifests
from icechunk_engine.transaction.updates import Update, advance, branch_tip, snapshot_row

_LOG = logging.getLogger(__name__)

IMMEDIATE_RETRIES = 5

_HEAVY_NUM_REFS = 4096
"""References from which a manifest is encoded on another thread (some milliseconds of work)."""


def now_us() -> int:
    """Wall clock in Unix microseconds."""
    return time.time_ns() // 1000


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
    snapshot_id, level = SnapshotId.random(), assets.config.compression_level
    log = transaction_log(snapshot_id, changes)
    log_file = start_heavy(lambda: encode_transaction_log(log, level=level), log.num_chunks >= _HEAVY_NUM_REFS)
    nodes, written = _write_manifests(assets, base, changes, {} if memo is None else memo)
    table = base.nodes.replace(_gone_rows(base, changes, nodes), nodes)
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        parent_id=None,
        flushed_at_us=max(now_us(), base.flushed_at_us + 1),  # strictly later than the parent, whatever the clock says
        message=message,
        metadata=dict(metadata),
        manifest_files=_manifest_files(base.manifest_files, written, table.used_manifest_ids()),
        nodes=table,
        spec_version=2,
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
        Naming the commit and the conflicts that the solver could not settle.
    """
    info, _ = assets.repo_info()
    tip = branch_tip(info, branch)
    if tip == base_id:
        return base_id, changes
    rows = info.snapshots.ancestry_rows(snapshot_row(info, tip)).tolist()
    base_row = info.snapshots.find(base_id)
    missed = rows[: rows.index(base_row)] if base_row in rows else rows
    base_nodes = assets.snapshot(base_id).nodes
    for row in reversed(missed):
        theirs = info.snapshots.info(row)
        tree = assets.snapshot(theirs.id).nodes
        found: list[Conflict] = []
        for log_id in (*theirs.pruned, theirs.id):
            log = assets.transaction_log(log_id)
            if log is None:
                if log_id == INITIAL_SNAPSHOT_ID:
                    continue  # migrated repositories have no log of the first snapshot, which changed nothing
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


def _rebase_failure(theirs: SnapshotInfo, conflicts: Sequence[Conflict]) -> str:
    return (
        f"cannot rebase over snapshot {theirs.id} ({theirs.message!r}): "
        + "; ".join(map(str, conflicts))
        + ". The session is unchanged: choose another solver, or redo the change in a new session"
    )


# --- publishing --------------------------------------------------------------------------------------------------


def publish(assets: AssetManager, update: Update) -> RepoInfo:
    """Apply one update to the present repo info and swap it in; retried while others win the swap.

    Every try starts from the object as it then is, so preconditions (the branch's tip, a free name) are checked anew.

    Raises
    ------
    IcechunkError
        The update's own precondition failed; nothing was changed.
    ConflictError
        ``update-attempts-exhausted``.
    """
    storage, config = assets.storage, assets.config
    storage.flush()
    for attempt in range(config.repo_update_max_tries):
        info, version = assets.repo_info()
        time_us = now_us()
        backup = layout.backup_name(time_us // 1000, str(ObjectId.random()))
        changed = advance(
            info,
            update,
            now_us=time_us,
            backup_name=backup,
            max_updates=config.num_updates_per_repo_info_file,
        )
        data = encode_repo_info(changed, level=config.compression_level)
        storage.copy(layout.REPO, layout.overwritten_key(backup))
        try:
            with request(_LOG, "replace", layout.REPO):
                version = storage.replace(layout.REPO, data, version)
        except VersionMismatchError:
            storage.delete([layout.overwritten_key(backup)])
            time.sleep(_backoff_s(attempt, config.repo_update_initial_backoff_ms, config.repo_update_max_backoff_ms))
            continue
        assets.remember_repo_info(changed, version)
        return changed
    raise ConflictError(
        message=f"the repository was changed by others during each of {config.repo_update_max_tries} tries. Try "
        f"again, or raise RepositoryConfig.repo_update_retries",
        kind=ErrorKind.UPDATE_ATTEMPTS_EXHAUSTED,
    )


def _backoff_s(attempt: int, initial_ms: int, maximum_ms: int) -> float:
    """Nothing for the first retries, then exponential with jitter."""
    if attempt < IMMEDIATE_RETRIES:
        return 0.0
    ceiling_ms = min(maximum_ms, initial_ms * 2 ** min(attempt - IMMEDIATE_RETRIES, 20))
    return random.uniform(ceiling_ms / 2, ceiling_ms) / 1000
