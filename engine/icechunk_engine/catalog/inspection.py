"""The content of a repository's files as plain documents, to read or to write as JSON. Pure.

The keys are those of the official ``inspect_…`` methods. A document leaves out what its file does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.catalog.dates import utc_of_us
from icechunk_engine.errors import FormatError
from icechunk_engine.format import header
from icechunk_engine.format.header import FileType
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.repo_info import (
    RepoInfo,
    SnapshotRecord,
    Status,
    UpdateKind,
    UpdateRecord,
    decode_repo_info,
)
from icechunk_engine.format.snapshot import decode_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, decode_transaction_log
from icechunk_engine.ids import ManifestId, NodeId, SnapshotId

Document = dict[str, object]

_COMPRESSION = {header.COMPRESSION_NONE: "none", header.COMPRESSION_ZSTD: "zstd"}


def _header(data: bytes, file_type: FileType) -> Document:
    unpacked = header.unpack(data, file_type)
    app_name, _, app_version = unpacked.written_by.partition("-")
    return {
        "written_by": unpacked.written_by,
        "app_name": app_name,
        "app_version": app_version,
        "spec_version": f"{unpacked.spec_version}.0",
        "file_type": file_type.name.lower().replace("_", "-"),
        "compression": _COMPRESSION[data[header.HEADER_SIZE - 1]],
    }


def official_time(unix_us: int) -> str:
    """Return a time in RFC 3339 as official writes it: with zero, three or six decimals, as few as it takes.

    A number that is not a valid date is returned as a number.
    """
    try:
        moment = utc_of_us(unix_us)
    except FormatError:
        return f"{unix_us} µs"
    unit = "seconds" if unix_us % 1_000_000 == 0 else "milliseconds" if unix_us % 1000 == 0 else "microseconds"
    return moment.isoformat(timespec=unit).replace("+00:00", "Z")


# --- repo info -----------------------------------------------------------------------------------------------------


def repo_info_document(data: bytes) -> Document:
    """Return the refs, snapshots, metadata and latest updates of a ``repo`` object. Raises FormatError."""
    info = decode_repo_info(data)
    return {
        "header": _header(data, FileType.REPO_INFO),
        "spec_version": f"{info.spec_version}.0",
        "branches": _refs(info.branches),
        "tags": _refs(info.tags),
        "deleted_tags": sorted(info.deleted_tags),
        "snapshots": [_snapshot_record(info.snapshots.record(row)) for row in range(len(info.snapshots))],
        "metadata": info.metadata,
        "latest_updates": list(_updates(info)),
    }


def _refs(refs: Mapping[str, object]) -> Document:
    return {name: str(snapshot_id) for name, snapshot_id in sorted(refs.items())}


def _snapshot_record(record: SnapshotRecord) -> Document:
    return {
        "id": str(record.id),
        **({} if record.parent_id is None else {"parent_id": str(record.parent_id)}),
        "flushed_at": official_time(record.flushed_at_us),
        "message": record.message,
        "metadata": record.metadata,
        **({"pruned_ancestor_tx_logs": [str(log_id) for log_id in record.pruned]} if record.pruned else {}),
    }


def _updates(info: RepoInfo) -> Iterator[Document]:
    if info.updates.damage:
        yield {"damage": info.updates.damage}
    for i in range(len(info.updates)):
        record = info.updates.record(i)
        yield {
            "update_type": _update_type(record),
            "updated_at": official_time(record.updated_at_us),
            **({} if record.backup_path is None else {"backup_path": record.backup_path}),
        }


def _update_type(record: UpdateRecord) -> Document:
    kind = record.kind
    words = kind.name.replace("GC_RAN", "G_C_RAN").split("_")
    name = "".join(word.capitalize() for word in words)
    found: Document = {"type": name if kind is UpdateKind.FEATURE_FLAG_CHANGED else f"{name}Update"}
    if record.name:
        found["branch" if kind in (UpdateKind.NEW_COMMIT, UpdateKind.COMMIT_AMENDED) else "name"] = record.name
    if kind is UpdateKind.FEATURE_FLAG_CHANGED:
        return found | {"id": record.flag_id, "new_value": record.flag_value}
    if kind is UpdateKind.REPO_MIGRATED:
        return found | {"from_version": record.from_version, "to_version": record.to_version}
    if record.previous_id is not None:
        found["previous_snap_id"] = str(record.previous_id)
    if record.new_id is not None:
        found["new_snap_id"] = str(record.new_id)
    if record.status is not None:
        found["status"] = _status(record.status)
    return found


def _status(status: Status) -> Document:
    return {
        "availability": "".join(word.capitalize() for word in status.availability.name.split("_")),
        "limited_availability_reason": status.reason,
        "set_at": official_time(status.set_at_us),
    }


# --- snapshot ------------------------------------------------------------------------------------------------------


def snapshot_document(data: bytes) -> Document:
    """Return the nodes and manifests of a snapshot file. Raises FormatError."""
    snapshot = decode_snapshot(data)
    files = snapshot.manifest_files
    return {
        "id": str(snapshot.snapshot_id),
        "header": _header(data, FileType.SNAPSHOT),
        "flushed_at": official_time(snapshot.flushed_at_us),
        "commit_message": snapshot.message,
        "metadata": snapshot.metadata,
        "manifests": [
            {"id": str(ManifestId.from_row(row)), "size_bytes": int(size), "num_chunk_refs": int(count)}
            for row, size, count in zip(files.ids, files.sizes, files.num_refs, strict=True)
        ],
        "nodes": [_node(snapshot.nodes.node(row)) for row in range(len(snapshot.nodes))],
    }


def _node(node: Node) -> Document:
    document: Document = {
        "id": str(node.node_id),
        "path": node.path,
        "node_type": "array" if node.is_array else "group",
    }
    if node.shape is None:
        return document
    names = node.shape.dimension_names or (None,) * node.shape.ndim
    return document | {
        "shape": [
            {**({"name": name} if name else {}), "array_length": length, "num_chunks": count}
            for name, length, count in zip(names, node.shape.lengths, node.shape.num_chunks, strict=False)
        ],
        "manifest_refs": [
            {"id": str(ref.manifest_id), "extents": [list(extent) for extent in ref.extents]} for ref in node.manifests
        ],
    }


# --- transaction log -----------------------------------------------------------------------------------------------


class CompositeLog(NamedTuple):
    """The changes of a commit together with those of the expired commits before it."""

    log: TransactionLog
    merged: Sequence[SnapshotId]
    """Expired commits whose logs were merged in."""
    missing: Sequence[SnapshotId]
    """Expired commits whose logs no longer exist."""


def transaction_log_document(data: bytes, composite: CompositeLog | None = None) -> Document:
    """Return the changes of a commit, by node id, from its transaction log. Raises FormatError.

    Parameters
    ----------
    data
        Content of the log's file.
    composite
        Shown in place of the commit's own changes, if ancestors of the commit have expired.
    """
    log = decode_transaction_log(data) if composite is None else composite.log
    shown = _log_document(log, _header(data, FileType.TRANSACTION_LOG))
    if composite is not None:
        shown["synthetic_composite"] = {
            "note": "Ancestors of this snapshot have expired: their logs are merged into this one. The header is that "
            "of the snapshot's own log.",
            "merged_pruned_ancestor_tx_logs": list(map(str, composite.merged)),
            "missing_tx_logs": list(map(str, composite.missing)),
        }
    return shown


def _log_document(log: TransactionLog, header: Document) -> Document:
    return {
        "header": header,
        "new_groups": _node_ids(log.new_groups),
        "new_arrays": _node_ids(log.new_arrays),
        "deleted_groups": _node_ids(log.deleted_groups),
        "deleted_arrays": _node_ids(log.deleted_arrays),
        "updated_groups": _node_ids(log.updated_groups),
        "updated_arrays": _node_ids(log.updated_arrays),
        "updated_chunks": [
            {"node_id": str(node_id), "chunks": indices.tolist()} for node_id, indices in log.updated_chunks.items()
        ],
        "moved_nodes": [{"from": move.source, "to": move.target} for move in log.moved_nodes],
    }


def _node_ids(rows: NDArray[np.uint8]) -> list[str]:
    return [str(NodeId.from_row(row)) for row in rows]
