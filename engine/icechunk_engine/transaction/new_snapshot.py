"""Write the files of a new snapshot from a change set. Nothing refers to them yet.

Invariant: *a commit only adds files until one conditional PUT publishes it.* First come the manifests, the snapshot
and its transaction log, all under new random names. Then :mod:`icechunk_engine.catalog` swaps ``repo``, or in spec 1
the branch's file. So readers see the old state or the new one, and a commit that fails or dies leaves files that
nothing refers to, which garbage collection removes. Two mistakes would break this: publishing before all files are
durable, and reusing the name of a file that exists.

Which manifests a commit writes, and when a second try of the commit may use those of the first, is decided in
:mod:`icechunk_engine.transaction.manifest_plans`.

Requests of a commit that writes ``m`` manifests: 1 GET of ``repo``, one GET for each stale manifest that is not
cached, ``m`` PUTs, 2 PUTs (snapshot, log), then 1 COPY and 1 conditional PUT of ``repo``. If another branch's commit
wins the swap, the GET, COPY and PUT of ``repo`` are repeated. If a commit of the same branch wins, the PUTs of
snapshot and log are repeated, too, and those of the manifests that the other commit replaced. In spec 1, the branch's
file takes the place of ``repo``: GET, HEAD and conditional PUT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import batched
from typing import NamedTuple

from icechunk_engine._runtime.pools import map_heavy, start_heavy
from icechunk_engine.assets import AssetManager, WrittenManifest
from icechunk_engine.catalog.clock_check import now_us, require_right_clock
from icechunk_engine.catalog.dates import require_date
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.columns.sorted_parts import SortedParts
from icechunk_engine.columns.tables import U8
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
from icechunk_engine.transaction.manifest_plans import ArrayMemo, ArrayPlan, ManifestInputs, ManifestMemo
from icechunk_engine.types import Json

_HEAVY_NUM_REFS = 4096
"""From this number of references on, a manifest is encoded on another thread: it takes some milliseconds."""

_MAX_PARALLEL_EDITS = 1 << 22

_WAITING_BYTES = 1 << 25
"""Bytes of encoded manifests that wait to be written together with others, behind a network."""

_REMEMBERED_BYTES = 1 << 24
"""Bytes of new manifests that a commit leaves in the cache for its readers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot whose files are written, ready to be published."""

    snapshot: Snapshot
    info: SnapshotRecord


def write_snapshot(
    assets: AssetManager,
    base: Snapshot,
    changes: ChangeSet,
    *,
    message: str,
    metadata: Mapping[str, Json],
    memo: ManifestMemo | None = None,
    amended: TransactionLog | None = None,
    is_final: bool = True,
) -> NewSnapshot:
    """Write all files of a new snapshot whose parent is ``base``. Nothing refers to them yet.

    Parameters
    ----------
    memo
        What earlier tries of this commit wrote. Manifests that are still right are not written again.
    amended
        The transaction log of ``base``, if the new snapshot is to replace it.
    is_final
        The snapshot will be published. Make it, and the chunks that it refers to, durable before returning.

    Raises
    ------
    StorageError
        ``not-durable``: the disk refused one of these files, now or earlier.
    FormatError
        ``snapshot-timestamp``: the clock of this machine differs from that of the storage.
    """
    snapshot_id, level, spec_version = SnapshotId.random(), assets.config.compression_level, assets.spec_version
    require_date(base.flushed_at_us, f"snapshot {base.snapshot_id}")
    began_us = now_us()
    # Strictly later than the parent, even if the clock went back: a search by time relies on this order.
    flushed_at_us = max(began_us, base.flushed_at_us + 1)

    def make_log() -> Callable[[], bytes]:
        log = log_of_changes(snapshot_id, changes)
        if amended is not None:
            log = amended_log(amended, log)
        return partial(encode_transaction_log, log, level=level, spec_version=spec_version)

    # The log of many edits is encoded on another thread while the manifests are made. That of very many is made after
    # them, so that its columns and theirs are not in memory together.
    num_edits = sum(map(len, changes.chunks.values()))
    log_file = start_heavy(make_log(), num_edits >= _HEAVY_NUM_REFS) if num_edits <= _MAX_PARALLEL_EDITS else None
    files = _Files(assets)
    nodes, written = _make_manifests(assets, base, changes, {} if memo is None else memo, files)
    table = base.nodes.replace(_gone_rows(base, changes, nodes), nodes)
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        parent_id=open_catalog(assets).parent_in_file(base.snapshot_id),
        flushed_at_us=flushed_at_us,
        message=message,
        metadata=dict(metadata),
        manifest_files=_manifest_files(base.manifest_files, written, table.used_manifest_ids()),
        nodes=table,
        spec_version=spec_version,
    )
    files.add(layout.snapshot_key(snapshot_id), encode_snapshot(snapshot, level=level))
    files.add(layout.transaction_log_key(snapshot_id), make_log()() if log_file is None else log_file.result())
    files.write()
    if is_final:
        require_right_clock(assets.storage, layout.snapshot_key(snapshot_id), began_us, now_us())
        make_durable(assets.storage, changes, lambda: base.nodes, files.keys)
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


class _Files:
    """Writes new files, many at once behind a network, and holds few bytes of those that are still to be written."""

    def __init__(self, assets: AssetManager) -> None:
        self.keys: list[str] = []
        self._assets = assets
        self._waiting: dict[str, bytes] = {}
        self._nbytes = 0
        self._max_waiting = _WAITING_BYTES if assets.storage.is_remote else 0

    def add(self, key: str, data: bytes) -> None:
        """Add a file. It is written now or later."""
        self.keys.append(key)
        self._waiting[key] = data
        self._nbytes += len(data)
        if self._nbytes > self._max_waiting:
            self.write()

    def write(self) -> None:
        """Write all files that wait."""
        self._assets.write(self._waiting)
        self._waiting, self._nbytes = {}, 0


def _make_manifests(
    assets: AssetManager, base: Snapshot, changes: ChangeSet, memo: ManifestMemo, files: _Files
) -> tuple[list[Node], list[WrittenManifest]]:
    """Encode the manifests of all changed arrays, and add them to ``files``.

    Returns
    -------
    The changed, new and moved nodes in their final form, and their new manifests.
    """
    counts = base.manifest_files.counts()
    touched = _touched_nodes(base, changes)
    new: dict[NodeId, _NewManifests] = {}

    def plans() -> Iterator[ArrayPlan]:
        for node in touched:
            if node.shape is None:
                continue
            edits = changes.chunks.get(node.node_id)
            inputs = ManifestInputs(node.user_data, (edits.lineage, edits.revision) if edits else None)
            parts = edits.sorted_parts() if edits else SortedParts(node.shape.ndim, ())
            plan = ArrayPlan(node, parts, counts, assets.config)
            known = memo.get(node.node_id)
            if known is None or known.inputs != inputs or not plan.allows(known):
                new[node.node_id] = _NewManifests(inputs, [], [])
                yield plan

    def pieces() -> Iterator[tuple[NodeId, ChunkRefs]]:
        for plan in _with_manifests_fetched(plans(), assets):
            for piece in plan.pieces(assets):
                yield plan.node.node_id, piece
            new[plan.node.node_id].replaced = plan.replaced

    remembered_bytes = 0
    for made in map_heavy(
        lambda item: _encode_piece(*item, assets), pieces(), lambda item: len(item[1]) >= _HEAVY_NUM_REFS
    ):
        remembered_bytes += made.manifest.nbytes
        if remembered_bytes <= _REMEMBERED_BYTES:
            assets.remember_manifest(made.manifest)
        files.add(layout.manifest_key(made.ref.manifest_id), made.data)
        of_array = new[made.node_id]
        of_array.refs.append(made.ref)
        of_array.written.append(WrittenManifest(made.ref.manifest_id, len(made.data), made.manifest.num_chunk_refs))
    # If a file cannot be written, the whole commit fails, and nobody uses the memo.
    memo |= {
        node_id: ArrayMemo(of_array.inputs, of_array.replaced, tuple(of_array.refs), tuple(of_array.written))
        for node_id, of_array in new.items()
    }
    arrays = [(node, memo[node.node_id]) for node in touched if node.shape is not None]
    nodes = [node for node in touched if node.shape is None]
    nodes += [replace(node, manifests=_manifests_after(node, known)) for node, known in arrays]
    nodes += changes.moved_nodes.values()
    return nodes, [file for _, known in arrays for file in known.written]


def _manifests_after(node: Node, known: ArrayMemo) -> tuple[ManifestRef, ...]:
    return (*(ref for ref in node.manifests if ref not in known.replaced), *known.manifests)


@dataclass(slots=True)
class _NewManifests:
    """The manifests of one array while they are made."""

    inputs: ManifestInputs
    refs: list[ManifestRef]
    written: list[WrittenManifest]
    replaced: frozenset[ManifestRef] = frozenset()


def _with_manifests_fetched(plans: Iterator[ArrayPlan], assets: AssetManager) -> Iterator[ArrayPlan]:
    """Yield the plans. On a network, fetch the stale manifests of several arrays together first."""
    if not assets.storage.is_remote:
        yield from plans
        return
    for some in batched(plans, assets.config.max_concurrent_manifest_fetches):
        assets.manifests(list({ref.manifest_id: None for plan in some for ref in plan.replaced}))
        yield from some


def _touched_nodes(base: Snapshot, changes: ChangeSet) -> list[Node]:
    """Return new and changed nodes, and arrays of which only chunks changed, with the manifests of the base."""
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


class _EncodedManifest(NamedTuple):
    """A manifest of one array, and its file."""

    node_id: NodeId
    ref: ManifestRef
    manifest: Manifest
    data: bytes


def _encode_piece(node_id: NodeId, piece: ChunkRefs, assets: AssetManager) -> _EncodedManifest:
    manifest_id = ManifestId.random()
    manifest = Manifest(manifest_id=manifest_id, arrays=((node_id, piece.compact()),))
    data = encode_manifest(
        manifest,
        level=assets.config.compression_level,
        location_compression=_location_compression(assets.config),
        spec_version=assets.spec_version,
    )
    extents = piece.extents().tolist() if piece.ndim else []
    ref = ManifestRef(manifest_id, tuple((start, stop) for start, stop in extents))
    return _EncodedManifest(node_id, ref, manifest, data)


def _location_compression(config: ResolvedConfig) -> LocationCompression | None:
    configured = config.location_compression
    if configured is None:  # compressing each location makes our files larger, so it is off by default
        return None
    return LocationCompression(
        min_num_chunks=configured.min_num_chunks,
        max_training_samples=configured.max_training_samples,
        dictionary_max_size_bytes=configured.dictionary_max_size_bytes,
        level=configured.level,
    )


def _gone_rows(base: Snapshot, changes: ChangeSet, nodes: Sequence[Node]) -> list[int]:
    """Return the rows of the base that are deleted or replaced."""
    ids = {*changes.deleted_nodes, *(node.node_id for node in nodes)}
    return [row for node_id in ids if (row := base.nodes.row_of_id(node_id)) >= 0]


def _manifest_files(base: ManifestFiles, written: Sequence[WrittenManifest], used: U8) -> ManifestFiles:
    """List exactly the manifests that nodes refer to, with sizes and counts."""
    added = ManifestFiles.of([(file.manifest_id, file.size_bytes, file.num_refs) for file in written])
    return base.union(added).restrict(used)
