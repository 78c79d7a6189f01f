"""Slot numbers, struct sizes and enums of all files. No other module states these facts (spec, *Flatbuffers*).

Each class is a flatbuffer table, and each attribute the slot of a field. Slot ``n`` is the vtable entry at byte
``4 + 2 * n``.
"""

from __future__ import annotations

from enum import IntEnum

IDENTIFIER = b"Ichk"
"""The bytes 4 to 8 of every flatbuffer. They are written, but never checked."""

MAX_NDIM = 255
"""Largest rank of a chunk index that is read. A damaged file could claim millions."""

OBJECT_ID_SIZE = 12
NODE_ID_SIZE = 8
MANIFEST_FILE_INFO_SIZE = 32
"""Spec 1 struct, aligned to 8: id, 4 bytes of padding, ``size_bytes`` u64 @16, ``num_chunk_refs`` u32 @24, padding."""
CHUNK_INDEX_RANGE_SIZE = 8
"""Struct aligned to 4: ``from`` u32 (inclusive), ``to`` u32 (exclusive)."""
DIMENSION_SHAPE_SIZE = 16
"""Spec 1 struct, aligned to 8: ``array_length`` u64, ``chunk_length`` u64."""


class MetadataItem:
    """Key and encoded value: MessagePack in spec 1, FlexBuffers in spec 2."""

    NAME = 0
    VALUE = 1


class Manifest:
    """Root of a manifest file."""

    ID = 0
    ARRAYS = 1
    LOCATION_DICTIONARY = 2
    COMPRESSION_ALGORITHM = 3
    EXTRA = 4


class ArrayManifest:
    """The references of one array."""

    NODE_ID = 0
    REFS = 1
    EXTRA = 2


class ChunkRef:
    """One chunk reference."""

    INDEX = 0
    INLINE = 1
    OFFSET = 2
    LENGTH = 3
    CHUNK_ID = 4
    LOCATION = 5
    CHECKSUM_ETAG = 6
    CHECKSUM_LAST_MODIFIED = 7
    COMPRESSED_LOCATION = 8
    EXTRA = 9


class LocationCompression(IntEnum):
    """``Manifest.compression_algorithm``; absent means ZSTD_DICTIONARY."""

    NONE = 0
    ZSTD_DICTIONARY = 1


class Snapshot:
    """Root of a snapshot file."""

    ID = 0
    PARENT_ID = 1
    NODES = 2
    FLUSHED_AT = 3
    MESSAGE = 4
    METADATA = 5
    MANIFEST_FILES = 6
    MANIFEST_FILES_V2 = 7
    EXTRA = 8


class NodeSnapshot:
    """One group or array."""

    ID = 0
    PATH = 1
    USER_DATA = 2
    NODE_DATA_TYPE = 3
    NODE_DATA = 4
    EXTRA = 5


class NodeDataType(IntEnum):
    """Tag of the union ``NodeSnapshot.node_data``."""

    ARRAY = 1
    GROUP = 2


class ArrayNodeData:
    """The fields that only arrays have."""

    SHAPE = 0
    DIMENSION_NAMES = 1
    MANIFESTS = 2
    SHAPE_V2 = 3


class DimensionShapeV2:
    """Length of one dimension, in elements and in chunks."""

    ARRAY_LENGTH = 0
    NUM_CHUNKS = 1


class DimensionName:
    """Name of one dimension; absent or empty means unnamed."""

    NAME = 0


class ManifestRef:
    """A manifest and the box of chunks it covers."""

    OBJECT_ID = 0
    EXTENTS = 1


class ManifestFileInfoV2:
    """Size and count of a manifest that the snapshot uses."""

    ID = 0
    SIZE_BYTES = 1
    NUM_CHUNK_REFS = 2
    EXTRA = 3


class TransactionLog:
    """Root of a transaction log. Note that arrays come before groups in slots 5 and 6 only."""

    ID = 0
    NEW_GROUPS = 1
    NEW_ARRAYS = 2
    DELETED_GROUPS = 3
    DELETED_ARRAYS = 4
    UPDATED_ARRAYS = 5
    UPDATED_GROUPS = 6
    UPDATED_CHUNKS = 7
    MOVED_NODES = 8
    EXTRA = 9


class ArrayUpdatedChunks:
    """Chunks of one array that were set or deleted."""

    NODE_ID = 0
    CHUNKS = 1


class ChunkIndices:
    """Grid coordinates of one chunk."""

    COORDS = 0


class MoveOperation:
    """The move of one node."""

    FROM = 0
    TO = 1
    NODE_ID = 2
    NODE_TYPE = 3


class MovedNodeType(IntEnum):
    """``MoveOperation.node_type``; absent means GROUP."""

    GROUP = 0
    ARRAY = 1


class Repo:
    """Root of the repo info file."""

    SPEC_VERSION = 0
    TAGS = 1
    BRANCHES = 2
    DELETED_TAGS = 3
    SNAPSHOTS = 4
    STATUS = 5
    METADATA = 6
    LATEST_UPDATES = 7
    REPO_BEFORE_UPDATES = 8
    CONFIG = 9
    ENABLED_FEATURE_FLAGS = 10
    DISABLED_FEATURE_FLAGS = 11
    EXTRA = 12


class Ref:
    """A branch or tag."""

    NAME = 0
    SNAPSHOT_INDEX = 1


class SnapshotInfo:
    """One snapshot in the repo info. A ``parent_offset`` of -1 means no parent; an absent one means row 0."""

    ID = 0
    PARENT_OFFSET = 1
    FLUSHED_AT = 2
    MESSAGE = 3
    METADATA = 4
    PRUNED_ANCESTOR_TX_LOGS = 5


class RepoStatus:
    """Status of the repository."""

    AVAILABILITY = 0
    SET_AT = 1
    LIMITED_AVAILABILITY_REASON = 2


class Update:
    """One entry of the ops log."""

    UPDATE_TYPE_TYPE = 0
    UPDATE_TYPE = 1
    UPDATED_AT = 2
    BACKUP_PATH = 3


class UpdateTag(IntEnum):
    """Tag of the union ``Update.update_type``. Do not add any: other libraries refuse to write such a repository."""

    REPO_INITIALIZED = 1
    REPO_MIGRATED = 2
    CONFIG_CHANGED = 3
    METADATA_CHANGED = 4
    TAG_CREATED = 5
    TAG_DELETED = 6
    BRANCH_CREATED = 7
    BRANCH_DELETED = 8
    BRANCH_RESET = 9
    NEW_COMMIT = 10
    COMMIT_AMENDED = 11
    NEW_DETACHED_SNAPSHOT = 12
    GC_RAN = 13
    EXPIRATION_RAN = 14
    FEATURE_FLAG_CHANGED = 15
    REPO_STATUS_CHANGED = 16


class RepoMigratedUpdate:
    """Fields of tag 2."""

    FROM_VERSION = 0
    TO_VERSION = 1


class NamedUpdate:
    """Fields of tags 5 to 9: a tag or branch, and where it pointed before a deletion or reset."""

    NAME = 0
    PREVIOUS_SNAP_ID = 1


class NewCommitUpdate:
    """Fields of tag 10."""

    BRANCH = 0
    NEW_SNAP_ID = 1


class CommitAmendedUpdate:
    """Fields of tag 11."""

    BRANCH = 0
    PREVIOUS_SNAP_ID = 1
    NEW_SNAP_ID = 2


class NewDetachedSnapshotUpdate:
    """Fields of tag 12."""

    NEW_SNAP_ID = 0


class FeatureFlagChangedUpdate:
    """Fields of tag 15. If ``is_set`` is false, the flag went back to its default."""

    ID = 0
    NEW_VALUE = 1
    IS_SET = 2


class RepoStatusChangedUpdate:
    """Fields of tag 16."""

    STATUS = 0
