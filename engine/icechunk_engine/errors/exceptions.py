"""The exception tree. It is grouped by what a handler would do, and each message ends with the remedy.

::

    IcechunkError
    ├── ConflictError
    │   └── RebaseFailedError
    ├── NotFoundError                 (also a KeyError)
    │   ├── NodeNotFoundError
    │   ├── SnapshotNotFoundError
    │   ├── RefNotFoundError
    │   └── RepositoryNotFoundError
    ├── AlreadyExistsError
    ├── ReadOnlyError
    ├── InvalidInputError             (also a ValueError)
    ├── SessionStateError
    ├── StorageError
    │   ├── ObjectNotFoundError
    │   └── VersionMismatchError      (internal: a conditional write lost)
    ├── FormatError
    └── InternalError

The public classes and their bases are those of the official package: a handler written for one catches as much of the
other. The words that people match in official's messages stand in ours too (``tests/interop/test_error_parity.py``).

``kind`` is a stable, machine-readable code (:class:`ErrorKind`), so that a program can tell two errors of one class
apart without reading the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, StrEnum
from typing import Protocol

from icechunk_engine.errors.redaction import redacted


class ErrorKind(StrEnum):
    """Stable codes of the ``kind`` attribute. New ones may be added; none is ever renamed or removed."""

    # conflicts
    COMMIT_CONFLICT = "commit-conflict"
    BRANCH_UPDATE_CONFLICT = "branch-update-conflict"
    REBASE_FAILED = "rebase-failed"
    CONFIG_UPDATED = "config-updated"
    REPO_INFO_UPDATED = "repo-info-updated"
    UPDATE_ATTEMPTS_EXHAUSTED = "update-attempts-exhausted"
    GC_DELETES_FAILING = "gc-deletes-failing"
    # not found
    NODE_NOT_FOUND = "node-not-found"
    ANCESTOR_NODE_NOT_FOUND = "ancestor-node-not-found"
    CHUNK_NOT_FOUND = "chunk-not-found"
    KEY_NOT_FOUND = "key-not-found"
    SNAPSHOT_NOT_FOUND = "snapshot-not-found"
    NO_SNAPSHOT_AT_TIME = "no-snapshot-at-time"
    REF_NOT_FOUND = "ref-not-found"
    BRANCH_NOT_FOUND = "branch-not-found"
    TAG_NOT_FOUND = "tag-not-found"
    REPOSITORY_NOT_FOUND = "repository-not-found"
    MANIFEST_INFO_NOT_FOUND = "manifest-info-not-found"
    # already exists
    NODE_ALREADY_EXISTS = "node-already-exists"
    BRANCH_ALREADY_EXISTS = "branch-already-exists"
    TAG_ALREADY_EXISTS = "tag-already-exists"
    TAG_PREVIOUSLY_DELETED = "tag-previously-deleted"
    MOVE_WONT_OVERWRITE = "move-wont-overwrite"
    # read only
    READ_ONLY_SESSION = "read-only-session"
    READ_ONLY_STORE = "read-only-store"
    READ_ONLY_STORAGE = "read-only-storage"
    READ_ONLY_REPOSITORY = "read-only-repository"
    # invalid input
    INVALID_KEY = "invalid-key"
    INVALID_CHUNK_INDEX = "invalid-chunk-index"
    ZERO_LENGTH_CHUNK = "zero-length-chunk"
    INVALID_MANIFEST_SPLIT_INDEX = "invalid-manifest-split-index"
    INVALID_REF_TYPE = "invalid-ref-type"
    INVALID_REF_NAME = "invalid-ref-name"
    INVALID_SNAPSHOT_ID = "invalid-snapshot-id"
    INVALID_PATH = "invalid-path"
    BAD_KEY_PREFIX = "bad-key-prefix"
    BAD_METADATA = "bad-metadata"
    BAD_PREFIX = "bad-prefix"
    NOT_AN_ARRAY = "not-an-array"
    NOT_A_GROUP = "not-a-group"
    INVALID_BYTE_RANGE = "invalid-byte-range"
    INVALID_COMMIT_CONFIGURATION = "invalid-commit-configuration"
    INVALID_ARRAY_METADATA = "invalid-array-metadata"
    INVALID_FEATURE_FLAG = "invalid-feature-flag"
    INVALID_CONFIG = "invalid-config"
    INVALID_VIRTUAL_REF = "invalid-virtual-ref"
    INVALID_CREDENTIALS = "invalid-credentials"
    NO_CONTAINER_FOR_VIRTUAL_CHUNK = "no-container-for-virtual-chunk"
    UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER = "unauthorized-virtual-chunk-container"
    EMPTY_PREFIX_CREATION = "empty-prefix-creation"
    PARENT_DIRECTORY_NOT_CLEAN = "parent-directory-not-clean"
    BAD_SNAPSHOT_CHAIN_FOR_DIFF = "bad-snapshot-chain-for-diff"
    # session and repository state
    COMMIT_NOT_ALLOWED = "commit-not-allowed"
    MERGE_NOT_ALLOWED = "merge-not-allowed"
    CANNOT_FORK_READ_ONLY_SESSION = "cannot-fork-read-only-session"
    REARRANGE_SESSION_ONLY = "rearrange-session-only"
    NON_REARRANGE_SESSION = "non-rearrange-session"
    MOVE_INTO_SELF_OR_DESCENDANT = "move-into-self-or-descendant"
    MOVE_DESTINATION_PARENT_MISSING = "move-destination-parent-missing"
    MOVE_DESTINATION_PARENT_NOT_GROUP = "move-destination-parent-not-group"
    NO_CHANGES_TO_COMMIT = "no-changes-to-commit"
    NO_AMEND_FOR_INITIAL_COMMIT = "no-amend-for-initial-commit"
    NOT_ON_BRANCH = "not-on-branch"
    NO_SNAPSHOT = "no-snapshot"
    CANNOT_DELETE_MAIN = "cannot-delete-main"
    UNCOMMITTED_CHANGES = "uncommitted-changes"
    MERGE_FAILED = "merge-failed"
    SESSION_ENDED = "session-ended"
    NOT_ALLOWED = "not-allowed"
    UNIMPLEMENTED = "unimplemented"
    REBASE_TX_LOG_PRUNED = "rebase-tx-log-pruned"
    FEATURE_FLAG_DISABLED = "feature-flag-disabled"
    TAG_ERROR = "tag-error"
    INVALID_REPOSITORY_MIGRATION = "invalid-repository-migration"
    # storage
    OBJECT_NOT_FOUND = "object-not-found"
    OBJECT_STORE = "object-store"
    IO = "io"
    NOT_DURABLE = "not-durable"
    STORAGE_CONFIG = "storage-config"
    NO_CONDITIONAL_WRITES = "no-conditional-writes"
    CANNOT_PARSE_URL = "cannot-parse-url"
    BAD_REDIRECT = "bad-redirect"
    SEMAPHORE_ACQUIRE = "semaphore-acquire"
    THROTTLED = "throttled"
    STORAGE_OTHER = "storage-other"
    VIRTUAL_CHUNK_FETCH = "virtual-chunk-fetch"
    VIRTUAL_CHUNK_MODIFIED = "virtual-chunk-modified"
    INVALID_OBJECT_SIZE = "invalid-object-size"
    # format
    SERIALIZATION = "serialization"
    DESERIALIZATION = "deserialization"
    CONFIG_DESERIALIZATION = "config-deserialization"
    INVALID_FILE_FORMAT = "invalid-file-format"
    UNSUPPORTED_SPEC_VERSION = "unsupported-spec-version"
    UNSUPPORTED_OPERATION_FOR_VERSION = "unsupported-operation-for-version"
    SNAPSHOT_TIMESTAMP = "snapshot-timestamp"
    DUPLICATE_SNAPSHOT_ID = "duplicate-snapshot-id"
    # internal
    CONCURRENCY = "concurrency"
    FLUSH = "flush"
    PARTIAL_VALUES_PANIC = "partial-values-panic"
    CONFLICTING_PATH_NOT_FOUND = "conflicting-path-not-found"
    INCONSISTENT_MANIFESTS = "inconsistent-manifests"
    POISON_LOCK = "poison-lock"
    PICKLE = "pickle"
    UNKNOWN = "unknown"


class IcechunkError(Exception):
    """Base class of the errors of this library. Arguments of a wrong type raise TypeError instead.

    Parameters
    ----------
    message
        What failed, why, and what to do next.
    kind
        The stable code: a member or value of :class:`ErrorKind`.
    """

    default_kind = ErrorKind.UNKNOWN

    def __init__(self, message: str, kind: ErrorKind | str | None = None) -> None:
        message = redacted(message)
        super().__init__(message)
        self.message = message
        self.kind = ErrorKind(kind) if kind is not None else self.default_kind

    def __str__(self) -> str:  # a KeyError would print the repr of its argument
        return self.message

    def _arguments(self) -> tuple[object, ...]:
        return self.message, self.kind

    def __reduce__(self) -> tuple[object, ...]:
        notes = getattr(self, "__notes__", None)
        return type(self), self._arguments(), {"__notes__": notes} if notes else None


class ConflictError(IcechunkError):
    """Another writer changed what this change is based on. Rebase, or start again from the current tip."""

    default_kind = ErrorKind.COMMIT_CONFLICT

    def __init__(
        self,
        expected_parent: str | None = None,
        actual_parent: str | None = None,
        message: str | None = None,
        kind: ErrorKind | str | None = None,
    ) -> None:
        if message is None:
            message = (
                f"Failed to commit, expected parent: {expected_parent}, actual parent: {actual_parent}. Another "
                f"commit came first: rebase with session.rebase(solver), commit with rebase_with=solver, or redo the "
                f"change in a new session"
            )
        super().__init__(message, kind)
        self.expected_parent = expected_parent
        self.actual_parent = actual_parent

    def _arguments(self) -> tuple[object, ...]:
        return self.expected_parent, self.actual_parent, self.message, self.kind


class ReportedConflict(Protocol):
    """What a conflict says. The class is :class:`icechunk_engine.Conflict`, which this module must not import."""

    @property
    def conflict_type(self) -> Enum: ...

    @property
    def path(self) -> str: ...

    @property
    def conflicted_chunks(self) -> Sequence[Sequence[int]] | None: ...


class RebaseFailedError(ConflictError):
    """The solver could not resolve all conflicts with another commit. The session is unchanged."""

    default_kind = ErrorKind.REBASE_FAILED

    def __init__(self, snapshot: str, conflicts: Sequence[ReportedConflict], message: str | None = None) -> None:
        listed = "; ".join(str(conflict) for conflict in conflicts)
        super().__init__(
            message=message
            or (
                f"Rebase failed on snapshot {snapshot}: {listed or 'unknown conflict'}. The session is unchanged: "
                f"choose another solver or redo the change in a new session"
            ),
            kind=ErrorKind.REBASE_FAILED,
        )
        self.snapshot = snapshot
        self.conflicts = list(conflicts)

    def _arguments(self) -> tuple[object, ...]:
        return self.snapshot, self.conflicts, self.message


class NotFoundError(IcechunkError, KeyError):
    """Something does not exist."""

    default_kind = ErrorKind.OBJECT_NOT_FOUND


class NodeNotFoundError(NotFoundError):
    """No group, array or chunk at that path."""

    default_kind = ErrorKind.NODE_NOT_FOUND


class SnapshotNotFoundError(NotFoundError):
    """No snapshot with that id, or none at that time."""

    default_kind = ErrorKind.SNAPSHOT_NOT_FOUND


class RefNotFoundError(NotFoundError):
    """No branch or tag of that name."""

    default_kind = ErrorKind.REF_NOT_FOUND


class RepositoryNotFoundError(NotFoundError):
    """No repository at that storage location."""

    default_kind = ErrorKind.REPOSITORY_NOT_FOUND


class AlreadyExistsError(IcechunkError):
    """A node, branch, tag or repository already exists."""

    default_kind = ErrorKind.NODE_ALREADY_EXISTS


class ReadOnlyError(IcechunkError):
    """A write through a read-only session, store, storage or repository."""

    default_kind = ErrorKind.READ_ONLY_SESSION


class InvalidInputError(IcechunkError, ValueError):
    """An argument, key, index or metadata document is invalid."""

    default_kind = ErrorKind.INVALID_KEY


class SessionStateError(IcechunkError):
    """The current state of the session or repository does not allow the operation."""

    default_kind = ErrorKind.NOT_ALLOWED


class StorageError(IcechunkError):
    """The storage failed or is not set up correctly. Many of these errors are transient."""

    default_kind = ErrorKind.STORAGE_OTHER


class ObjectNotFoundError(StorageError):
    """No object has that key. Storages raise it; callers that know what the object is raise a more specific error."""

    default_kind = ErrorKind.OBJECT_NOT_FOUND


class VersionMismatchError(StorageError):
    """A conditional write lost: the object already exists, or is no longer the version that was read."""

    default_kind = ErrorKind.REPO_INFO_UPDATED


class FormatError(IcechunkError):
    """A file is damaged, of another kind, or of a spec version that this library does not know."""

    default_kind = ErrorKind.DESERIALIZATION


class InternalError(IcechunkError):
    """An invariant of this library is broken. Please report the bug."""

    default_kind = ErrorKind.UNKNOWN
