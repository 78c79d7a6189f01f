"""The repo info file ``repo``: refs, all snapshots, ops log, status, configuration (spec, *Repo info file*).

It is the only mutable object of a repository. Every commit decodes it, changes it and encodes it again, and it may
list thousands of snapshots and updates. So both stay columns, and no objects are made for them.

Invariant: every ref points to a snapshot of the list, since files store refs as positions in the list; and the ops log
is never empty, and its latest entry has no backup yet. The next update fills in the backup, under which it keeps this
version of the file. :func:`encode_repo_info` checks both.
"""

from __future__ import annotations

from collections.abc import Buffer as BytesLike
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from icechunk_engine.columns.tables import I64, BytesTable
from icechunk_engine.errors import ErrorKind, FormatError, InternalError
from icechunk_engine.flatbuf import flexbuffers
from icechunk_engine.flatbuf.reader import Buffer, Tables
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout, TableWriter
from icechunk_engine.format import header, schema
from icechunk_engine.format.header import FileType
from icechunk_engine.format.metadata import MetadataColumns, decode_config, encode_text
from icechunk_engine.format.ops_log import (
    Availability,
    Status,
    UpdateKind,
    UpdateRecord,
    UpdateTable,
    read_status,
    read_updates,
    write_status,
    write_updates,
)
from icechunk_engine.format.snapshot import INITIAL_MESSAGE, INITIAL_METADATA
from icechunk_engine.format.snapshot_table import (
    NO_PARENT,
    SnapshotRecord,
    SnapshotTable,
    read_snapshots,
    write_snapshots,
)
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, SnapshotId
from icechunk_engine.types import JsonObject

__all__ = [
    "NO_PARENT",
    "Availability",
    "RepoInfo",
    "SnapshotRecord",
    "SnapshotTable",
    "Status",
    "UpdateKind",
    "UpdateRecord",
    "UpdateTable",
    "decode_repo_info",
    "encode_repo_info",
    "initial_repo_info",
]

SPEC_VERSIONS = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoInfo:
    """State of a repository.

    Attributes
    ----------
    spec_version
        Spec version of the repository; 1 only during a migration.
    tags, branches
        Names, and the snapshots that they point to.
    deleted_tags
        Names that can never be used again.
    snapshots
        All known snapshots, whether a ref leads to them or not.
    status
        Whether the repository may be written.
    metadata
        Metadata of the repository as a whole.
    updates
        The latest entries of the ops log.
    repo_before_updates
        Name below ``overwritten/`` of the repo info in which the ops log continues; None if all of it is here.
    config
        The persisted configuration; None for the defaults.
    enabled_flags, disabled_flags
        Ids of feature flags that were set, ascending.
    """

    spec_version: int
    tags: dict[str, SnapshotId]
    branches: dict[str, SnapshotId]
    deleted_tags: frozenset[str]
    snapshots: SnapshotTable
    status: Status
    metadata: JsonObject
    updates: UpdateTable
    repo_before_updates: str | None = None
    config: JsonObject | None = None
    enabled_flags: tuple[int, ...] = ()
    disabled_flags: tuple[int, ...] = ()


def initial_repo_info(created_at_us: int, config: JsonObject | None) -> RepoInfo:
    """Make the state of a new repository: the initial snapshot, and branch ``main``, which points to it."""
    root = SnapshotRecord(
        id=INITIAL_SNAPSHOT_ID,
        parent_id=None,
        flushed_at_us=created_at_us,
        message=INITIAL_MESSAGE,
        metadata=INITIAL_METADATA,
    )
    return RepoInfo(
        spec_version=2,
        tags={},
        branches={"main": INITIAL_SNAPSHOT_ID},
        deleted_tags=frozenset(),
        snapshots=SnapshotTable.of_root(root),
        status=Status(availability=Availability.ONLINE, set_at_us=created_at_us),
        metadata={},
        updates=UpdateTable.of([UpdateRecord(kind=UpdateKind.REPO_INITIALIZED, updated_at_us=created_at_us)]),
        config=config,
    )


# --- reading -------------------------------------------------------------------------------------------------------


def decode_repo_info(data: BytesLike, name: str = "repo") -> RepoInfo:
    """Decode a repo info file.

    Parameters
    ----------
    data
        The whole object.
    name
        Object name for messages.

    Raises
    ------
    FormatError
        The file is damaged, or another kind of file. (A damaged ops log does not raise: see ``UpdateTable.damage``.)
        ``unsupported-spec-version``: a newer version of the format.
        ``config-deserialization``: the configuration is damaged.
    """
    unpacked = header.unpack(data, FileType.REPO_INFO, name)
    root = Buffer(unpacked.body, name).root()
    fields = schema.Repo
    spec_version = int(root.scalar(fields.SPEC_VERSION, np.uint8)[0])
    if spec_version not in SPEC_VERSIONS:
        raise FormatError(
            f"{name} gives the repository spec version {spec_version}; this library knows {SPEC_VERSIONS}. Upgrade it "
            f"to read this repository",
            ErrorKind.UNSUPPORTED_SPEC_VERSION,
        )
    snapshot_tables = root.vectors(fields.SNAPSHOTS, 4, "the list of snapshots").tables(24)
    # Refs point to positions in the list as it is in the file. read_snapshots may sort it, so the ids are read first.
    ids = snapshot_tables.required_struct(schema.SnapshotInfo.ID, SnapshotId.SIZE, "a snapshot's id").tobytes()
    deleted_tags = root.vectors(fields.DELETED_TAGS, 4, "the list of deleted tags").vectors(1, 8).text()
    return RepoInfo(
        spec_version=spec_version,
        tags=_read_refs(root, fields.TAGS, ids),
        branches=_read_refs(root, fields.BRANCHES, ids),
        deleted_tags=frozenset(deleted_tags.texts()),
        snapshots=read_snapshots(snapshot_tables),
        status=_read_status(root.children(fields.STATUS, "the repository's status")),
        metadata=MetadataColumns.read(root.vectors(fields.METADATA, 4)).decode(0),
        updates=read_updates(root),
        repo_before_updates=_optional_text(root, fields.REPO_BEFORE_UPDATES),
        config=_read_config(root),
        enabled_flags=_read_flags(root, fields.ENABLED_FEATURE_FLAGS),
        disabled_flags=_read_flags(root, fields.DISABLED_FEATURE_FLAGS),
    )


def _read_refs(root: Tables, slot: int, ids: bytes) -> dict[str, SnapshotId]:
    """Read refs by name. They point to positions in the list of snapshots as the file has it, before it is sorted."""
    refs = root.vectors(slot, 4, "the list of branches or tags").tables(16)
    names = refs.strings(schema.Ref.NAME, "the name of a branch or tag").texts()
    indices = refs.scalar(schema.Ref.SNAPSHOT_INDEX, np.uint32).tolist()
    size = SnapshotId.SIZE
    if indices and (max(indices) + 1) * size > len(ids):
        raise root.buffer.error("a branch or tag points to a snapshot that is not in the list")
    return {
        name: SnapshotId(ids[index * size : (index + 1) * size]) for name, index in zip(names, indices, strict=True)
    }


def _read_status(tables: Tables) -> Status:
    availability, set_at, has_reason, reason = read_status(tables)
    return Status(
        availability=Availability(int(availability[0])),
        set_at_us=int(set_at[0]),
        reason=reason.text(0) if has_reason[0] else None,
    )


def _optional_text(root: Tables, slot: int) -> str | None:
    return root.strings(slot).text(0) if root.present(slot)[0] else None


def _read_config(root: Tables) -> JsonObject | None:
    if not root.present(schema.Repo.CONFIG)[0]:
        return None
    return decode_config(root.vectors(schema.Repo.CONFIG, 1).bytes_table().raw(0))


def _read_flags(root: Tables, slot: int) -> tuple[int, ...]:
    return tuple(root.vectors(slot, 2).scalars(np.uint16).tolist())


# --- writing -------------------------------------------------------------------------------------------------------

_ROOT = TableLayout.of(
    {
        schema.Repo.SPEC_VERSION: "u1",
        schema.Repo.TAGS: OFFSET,
        schema.Repo.BRANCHES: OFFSET,
        schema.Repo.DELETED_TAGS: OFFSET,
        schema.Repo.SNAPSHOTS: OFFSET,
        schema.Repo.STATUS: OFFSET,
        schema.Repo.METADATA: OFFSET,
        schema.Repo.LATEST_UPDATES: OFFSET,
        schema.Repo.REPO_BEFORE_UPDATES: OFFSET,
        schema.Repo.CONFIG: OFFSET,
        schema.Repo.ENABLED_FEATURE_FLAGS: OFFSET,
        schema.Repo.DISABLED_FEATURE_FLAGS: OFFSET,
    }
)
_REF = TableLayout.of({schema.Ref.NAME: OFFSET, schema.Ref.SNAPSHOT_INDEX: "<u4"})


def encode_repo_info(info: RepoInfo, *, level: int = 3) -> bytes:
    """Encode the whole file.

    Raises
    ------
    FormatError
        ``unsupported-operation-for-version``: the ops log holds entries of an unknown kind, which would be lost.
    InvalidInputError
        ``bad-metadata``: a text, the metadata or the configuration cannot be stored.
    InternalError
        A ref points to a snapshot that is not in the list, or the ops log is empty or malformed.
    """
    if len(info.updates) == 0 or info.updates.rows["has_backup"][0]:
        raise InternalError("the ops log must not be empty, and its latest entry must not have a backup yet")
    fields = schema.Repo
    arena = Arena(schema.IDENTIFIER)
    root = arena.tables(_ROOT, 1)
    arena.set_root(root)
    root.set(fields.SPEC_VERSION, info.spec_version)
    _write_refs(arena, root, fields.TAGS, info.tags, info.snapshots)
    _write_refs(arena, root, fields.BRANCHES, info.branches, info.snapshots)
    deleted = sorted(encode_text(name, "a tag name") for name in info.deleted_tags)
    deleted_tags = arena.offset_vectors([len(deleted)])
    root.point(fields.DELETED_TAGS, deleted_tags.positions)
    deleted_tags.point(arena.strings(BytesTable.of(deleted)))
    snapshots = arena.offset_vectors([len(info.snapshots)])
    root.point(fields.SNAPSHOTS, snapshots.positions)
    snapshots.point(write_snapshots(arena, info.snapshots))
    root.point(fields.STATUS, _write_status(arena, info.status))
    MetadataColumns.of([info.metadata]).write(arena, root, fields.METADATA)
    updates = arena.offset_vectors([len(info.updates)])
    root.point(fields.LATEST_UPDATES, updates.positions)
    updates.point(write_updates(arena, info.updates))
    if info.repo_before_updates is not None:
        root.point(fields.REPO_BEFORE_UPDATES, arena.string(info.repo_before_updates))
    if info.config is not None:
        root.point(fields.CONFIG, arena.byte_vectors(BytesTable.of([flexbuffers.dumps(info.config)])))
    if info.enabled_flags or info.disabled_flags:
        for slot, flags in (
            (fields.ENABLED_FEATURE_FLAGS, info.enabled_flags),
            (fields.DISABLED_FEATURE_FLAGS, info.disabled_flags),
        ):
            root.point(slot, arena.vector(np.array(sorted(flags), np.uint16)))
    size = arena.seal()
    return header.pack_blocks(FileType.REPO_INFO, info.spec_version, arena.blocks(), size, level)


def _write_refs(
    arena: Arena, root: TableWriter, slot: int, refs: Mapping[str, SnapshotId], snapshots: SnapshotTable
) -> None:
    listed = sorted((encode_text(name, "a ref name"), snapshot_id.raw) for name, snapshot_id in refs.items())
    targets = np.frombuffer(b"".join([raw for _, raw in listed]), np.uint8).reshape(-1, SnapshotId.SIZE)
    rows = snapshots.find_rows(targets)
    if bool((rows < 0).any()):
        name = listed[int(np.argmin(rows))][0].decode()
        raise InternalError(f"branch or tag {name!r} points to a snapshot that is not in the repository's list")
    vector = arena.offset_vectors([len(listed)])
    root.point(slot, vector.positions)
    tables = arena.tables(_REF, len(listed))
    vector.point(tables.positions)
    tables.point(schema.Ref.NAME, arena.strings(BytesTable.of([name for name, _ in listed])))
    tables.set(schema.Ref.SNAPSHOT_INDEX, rows)


def _write_status(arena: Arena, status: Status) -> I64:
    return write_status(
        arena,
        np.array([status.availability]),
        np.array([status.set_at_us], np.uint64),
        np.array([status.reason is not None]),
        BytesTable.of([encode_text(status.reason or "", "the reason of a status")]),
    )
