"""The names of a repository's objects (spec, *Layout*)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from icechunk_engine.ids import ChunkId, ManifestId, SnapshotId

REPO = "repo"
"""The repo info file: the only mutable object of a spec 2 repository."""
SNAPSHOTS = "snapshots/"
MANIFESTS = "manifests/"
TRANSACTION_LOGS = "transactions/"
CHUNKS = "chunks/"
OVERWRITTEN = "overwritten/"
REFS = "refs/"
JOURNALS = "journals/"
"""Edits that workers report to a session that is not committed yet. Not part of the spec; official ignores them."""
CONFIG_YAML = "config.yaml"
"""The configuration of a spec 1 repository."""

_END_OF_TIME_MS = 32_503_680_000_000
"""The year 3000. Backup names count down to it, so a listing begins with the newest backup."""


def snapshot_key(snapshot_id: SnapshotId) -> str:
    """Return the name of a snapshot."""
    return f"{SNAPSHOTS}{snapshot_id}"


def manifest_key(manifest_id: ManifestId) -> str:
    """Return the name of a manifest."""
    return f"{MANIFESTS}{manifest_id}"


def transaction_log_key(snapshot_id: SnapshotId) -> str:
    """Return the name of a snapshot's transaction log."""
    return f"{TRANSACTION_LOGS}{snapshot_id}"


def chunk_key(chunk_id: ChunkId) -> str:
    """Return the name of a native chunk."""
    return f"{CHUNKS}{chunk_id}"


def overwritten_key(name: str) -> str:
    """Return the name of a backup. The repo info stores ``name`` as ``backup_path``."""
    return f"{OVERWRITTEN}{name}"


def is_backup_name(name: str) -> bool:
    """Return False for names that no writer gives a backup, and for those that lead out of the folder of backups."""
    return (
        0 < len(name) <= _MAX_BACKUP_NAME
        and name.isascii()
        and name.isprintable()
        and "/" not in name
        and name[0] != "."
    )


def backup_name(time_ms: int, random_id: str, of: str = REPO) -> str:
    """Return the bare name of a backup of ``repo`` or ``config.yaml`` made at ``time_ms`` (Unix milliseconds).

    Parameters
    ----------
    random_id
        A new id of 20 characters, for example ``str(SnapshotId.random())``.
    """
    return f"{of}.{_END_OF_TIME_MS - time_ms:014d}.{random_id}"


_MAX_BACKUP_NAME = 255


# --- spec 1: refs as files -----------------------------------------------------------------------------------------

_BRANCH, _TAG = f"{REFS}branch.", f"{REFS}tag."
_REF_FILE = "/ref.json"
_TOMBSTONE = f"{_REF_FILE}.deleted"
_PLAIN = " !$&'()+,-.:;=@_"
"""The characters besides letters and digits that the official library does not percent-encode in a key.

Its S3 client does not encode at all. That makes a difference only for names with other characters than these.
"""


def branch_ref_key(name: str) -> str:
    """Return the name of a branch's file."""
    return f"{_BRANCH}{_encode(name)}{_REF_FILE}"


def tag_ref_key(name: str) -> str:
    """Return the name of a tag's file, which stays when the tag is deleted."""
    return f"{_TAG}{_encode(name)}{_REF_FILE}"


def deleted_tag_key(name: str) -> str:
    """Return the name of a tag's tombstone."""
    return f"{_TAG}{_encode(name)}{_TOMBSTONE}"


def _encode(name: str) -> str:
    return quote(name, safe=_PLAIN).replace("~", "%7E")  # quote never encodes "~", the official library does


@dataclass(frozen=True, slots=True)
class RefFiles:
    """The names of the refs that have files.

    Attributes
    ----------
    branches, tags
        Branches, and tags that exist.
    deleted_tags
        Tags with a tombstone. They are not among ``tags``.
    """

    branches: frozenset[str]
    tags: frozenset[str]
    deleted_tags: frozenset[str]

    @classmethod
    def of_keys(cls, keys: Iterable[str]) -> Self:
        """Find the refs in a listing of :data:`REFS`. Other keys are ignored."""
        branches: set[str] = set()
        tags: set[str] = set()
        deleted: set[str] = set()
        for key in keys:
            for start, end, names in (
                (_BRANCH, _REF_FILE, branches),
                (_TAG, _REF_FILE, tags),
                (_TAG, _TOMBSTONE, deleted),
            ):
                name = key.removeprefix(start).removesuffix(end)
                if key == f"{start}{name}{end}" and "/" not in name:
                    names.add(unquote(name))
        return cls(frozenset(branches), frozenset(tags - deleted), frozenset(deleted))
