"""Names of a repository's objects (spec, *Layout*)."""

from __future__ import annotations

from icechunk_engine.ids import ChunkId, ManifestId, SnapshotId

REPO = "repo"
"""The repo info file: the one mutable object of a spec 2 repository."""
SNAPSHOTS = "snapshots/"
MANIFESTS = "manifests/"
TRANSACTION_LOGS = "transactions/"
CHUNKS = "chunks/"
OVERWRITTEN = "overwritten/"
REFS = "refs/"
CONFIG_YAML = "config.yaml"
"""Spec 1 configuration."""

_END_OF_TIME_MS = 32_503_680_000_000
"""The year 3000; backup names count down to it so that the newest lists first."""


def snapshot_key(snapshot_id: SnapshotId) -> str:
    """Object of a snapshot."""
    return f"{SNAPSHOTS}{snapshot_id}"


def manifest_key(manifest_id: ManifestId) -> str:
    """Object of a manifest."""
    return f"{MANIFESTS}{manifest_id}"


def transaction_log_key(snapshot_id: SnapshotId) -> str:
    """Object of the transaction log of a snapshot."""
    return f"{TRANSACTION_LOGS}{snapshot_id}"


def chunk_key(chunk_id: ChunkId) -> str:
    """Object of a native chunk."""
    return f"{CHUNKS}{chunk_id}"


def overwritten_key(name: str) -> str:
    """Object of a backup; ``name`` is what the repo info stores as ``backup_path``."""
    return f"{OVERWRITTEN}{name}"


def backup_name(time_ms: int, random_id: str, of: str = REPO) -> str:
    """Bare name of a backup of ``repo`` (or ``config.yaml``) made at ``time_ms`` (Unix milliseconds).

    Parameters
    ----------
    random_id
        A fresh 20-character id, e.g. ``str(SnapshotId.random())``.
    """
    return f"{of}.{_END_OF_TIME_MS - time_ms:014d}.{random_id}"


def branch_ref_key(name: str) -> str:
    """Spec 1: object of a branch."""
    return f"{REFS}branch.{name}/ref.json"


def tag_ref_key(name: str) -> str:
    """Spec 1: object of a tag."""
    return f"{REFS}tag.{name}/ref.json"


def deleted_tag_key(name: str) -> str:
    """Spec 1: tombstone of a tag."""
    return f"{REFS}tag.{name}/ref.json.deleted"
