"""Repository: create and open, branches and tags, history, sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from icechunk_engine._sync import async_twin
from icechunk_engine.assets import AssetManager
from icechunk_engine.config import RepositoryConfig, resolve
from icechunk_engine.credentials import AnyCredential
from icechunk_engine.errors import (
    AlreadyExistsError,
    ErrorKind,
    FormatError,
    InvalidInputError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    SessionStateError,
    SnapshotNotFoundError,
    VersionMismatchError,
)
from icechunk_engine.format import layout
from icechunk_engine.format.repo_info import (
    Availability,
    RepoInfo,
    decode_repo_info,
    encode_repo_info,
    initial_repo_info,
)
from icechunk_engine.format.snapshot import encode_snapshot, initial_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, encode_transaction_log
from icechunk_engine.history import (
    ManifestFileInfo,
    SnapshotInfo,
    Update,
    html_table,
    public_status,
    snapshot_infos,
    us_of_datetime,
)
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ManifestId, SnapshotId
from icechunk_engine.session import Session, SessionMode
from icechunk_engine.storage.base import Storage
from icechunk_engine.store import IcechunkStore
from icechunk_engine.transaction import updates
from icechunk_engine.transaction.commit import now_us, publish
from icechunk_engine.transaction.conflicts import ConflictSolver
from icechunk_engine.transaction.diff import Diff, diff_of_logs
from icechunk_engine.types import (
    Attribution,
    FeatureFlag,
    RepoStatus,
    SpecVersion,
    feature_flag_id,
    feature_flags,
)
from icechunk_engine.view import RepositoryContext
from icechunk_engine.virtual.resolver import VirtualResolver

Authorizations = Mapping[str, AnyCredential | None]

DEFAULT_BRANCH = updates.MAIN


class Repository:
    """A versioned Zarr hierarchy at one storage location.

    Made by :meth:`create`, :meth:`open` or :meth:`open_or_create`. Holds no connection and no lock; it may be shared
    by threads, pickled, and left without closing.
    """

    def __init__(
        self,
        storage: Storage,
        config: RepositoryConfig,
        authorize_virtual_chunk_access: Authorizations | None = None,
        *,
        default_commit_metadata: Mapping[str, Any] | None = None,
        attribution: Attribution | None = None,
    ) -> None:
        self._storage = storage
        self._config = config
        self._authorized = dict(authorize_virtual_chunk_access or {})
        self._default_commit_metadata = dict(default_commit_metadata or {})
        self._attribution = attribution or Attribution()
        resolved = resolve(config)
        self._assets = AssetManager(storage, resolved)
        self._resolver = VirtualResolver(resolved.virtual_chunk_containers, self._authorized)

    # --- create and open ---------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
        spec_version: SpecVersion | int | None = None,
        check_clean_root: bool = True,
        attribution: Attribution | None = None,
    ) -> Self:
        """Make a new repository with a branch ``main`` at an empty first snapshot.

        Parameters
        ----------
        storage
            Where; the place must hold no objects.
        config
            Settings to persist with the repository; what is None follows the defaults.
        authorize_virtual_chunk_access
            URL prefixes of virtual chunk containers that may be read, with credentials.
        spec_version
            Version of the on-disk format; 2 (the default) is what is written here.
        check_clean_root
            Refuse a place that holds objects.

        Raises
        ------
        AlreadyExistsError
            There is a repository.
        InvalidInputError
            ``parent-directory-not-clean``.
        """
        _require_spec_2(spec_version)
        _require_free(storage, check_clean_root)
        effective = config if config is not None else RepositoryConfig()
        repository = cls(storage, effective, authorize_virtual_chunk_access, attribution=attribution)
        created_us = now_us()
        level = repository._assets.config.compression_level
        repository._assets.write(
            {
                layout.snapshot_key(INITIAL_SNAPSHOT_ID): encode_snapshot(initial_snapshot(created_us), level=level),
                layout.transaction_log_key(INITIAL_SNAPSHOT_ID): encode_transaction_log(
                    TransactionLog.empty(INITIAL_SNAPSHOT_ID), level=level
                ),
            }
        )
        persisted = None if effective == RepositoryConfig() else effective.to_dict()
        storage.flush()
        try:
            storage.create(layout.REPO, encode_repo_info(initial_repo_info(created_us, persisted), level=level))
        except VersionMismatchError:
            raise _already_there(storage) from None
        return repository

    create_async = classmethod(async_twin(create.__func__))  # type: ignore[attr-defined]

    @classmethod
    def open(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
        attribution: Attribution | None = None,
    ) -> Self:
        """Open the repository at a storage location: one request.

        Parameters
        ----------
        config
            Settings of this opening, on top of the persisted ones.

        Raises
        ------
        RepositoryNotFoundError
            None there.
        FormatError
            There is something, but not a repository that can be read.
        """
        info = _read_repo_info(storage)
        persisted = RepositoryConfig.from_dict(info.config) if info.config is not None else RepositoryConfig()
        effective = persisted.merge(config) if config is not None else persisted
        return cls(storage, effective, authorize_virtual_chunk_access, attribution=attribution)

    open_async = classmethod(async_twin(open.__func__))  # type: ignore[attr-defined]

    @classmethod
    def open_or_create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
        create_version: SpecVersion | int | None = None,
        check_clean_root: bool = True,
        attribution: Attribution | None = None,
    ) -> Self:
        """Open the repository, or make it if there is none; parameters as in :meth:`open` and :meth:`create`."""
        try:
            return cls.open(storage, config, authorize_virtual_chunk_access, attribution)
        except RepositoryNotFoundError:
            pass
        try:
            return cls.create(
                storage, config, authorize_virtual_chunk_access, create_version, check_clean_root, attribution
            )
        except (AlreadyExistsError, InvalidInputError) as error:
            if error.kind is ErrorKind.PARENT_DIRECTORY_NOT_CLEAN and not cls.exists(storage):
                raise
            return cls.open(storage, config, authorize_virtual_chunk_access, attribution)  # somebody was faster

    open_or_create_async = classmethod(async_twin(open_or_create.__func__))  # type: ignore[attr-defined]

    @staticmethod
    def exists(storage: Storage, storage_settings: object | None = None) -> bool:
        """True when there is a repository. ``storage_settings`` is accepted for compatibility and not needed."""
        return Repository.fetch_spec_version(storage) is not None

    exists_async = staticmethod(async_twin(exists))

    @staticmethod
    def fetch_spec_version(storage: Storage, storage_settings: object | None = None) -> SpecVersion | None:
        """Format version of the repository, None if there is none."""
        if storage.info(layout.REPO) is not None:
            return SpecVersion.v2
        return SpecVersion.v1 if storage.info(layout.branch_ref_key(DEFAULT_BRANCH)) is not None else None

    fetch_spec_version_async = staticmethod(async_twin(fetch_spec_version))

    @staticmethod
    def fetch_config(storage: Storage) -> RepositoryConfig | None:
        """The persisted configuration, None if there is none or no repository."""
        try:
            info = _read_repo_info(storage)
        except RepositoryNotFoundError:
            return None
        return None if info.config is None else RepositoryConfig.from_dict(info.config)

    fetch_config_async = staticmethod(async_twin(fetch_config))

    def reopen(
        self,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
    ) -> Self:
        """The same repository with settings of ``config`` on top of the present ones."""
        return type(self)(
            self._storage,
            self._config.merge(config) if config is not None else self._config,
            self._authorized if authorize_virtual_chunk_access is None else authorize_virtual_chunk_access,
            default_commit_metadata=self._default_commit_metadata,
            attribution=self._attribution,
        )

    reopen_async = async_twin(reopen)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "storage": self._storage,
            "config": self._config,
            "authorized": self._authorized,
            "default_commit_metadata": self._default_commit_metadata,
            "attribution": self._attribution,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Repository.__init__(
            self,
            state["storage"],
            state["config"],
            state["authorized"],
            default_commit_metadata=state["default_commit_metadata"],
            attribution=state["attribution"],
        )

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "icechunk-repository", self._storage.identity

    def __repr__(self) -> str:
        return f"<Repository {self._storage.identity}>"

    def _repr_html_(self) -> str:
        info = self._info()
        return html_table(
            "icechunk Repository",
            [
                ("storage", self._storage.identity),
                ("format", f"version {info.spec_version}"),
                ("status", info.status.availability.name.lower()),
                ("branches", ", ".join(sorted(info.branches)[:20])),
                ("tags", ", ".join(sorted(info.tags)[:20]) or "—"),
                ("snapshots", len(info.snapshots)),
            ],
        )

    # --- settings ----------------------------------------------------------------------------------------------

    @property
    def storage(self) -> Storage:
        """Where the repository is."""
        return self._storage

    @property
    def config(self) -> RepositoryConfig:
        """Settings in force: persisted ones and those given when opening."""
        return self._config

    @property
    def attribution(self) -> Attribution:
        """Who the requests are made for."""
        return self._attribution

    @property
    def spec_version(self) -> SpecVersion:
        """Format version on disk."""
        return SpecVersion(self._info().spec_version)

    @property
    def authorized_virtual_container_prefixes(self) -> set[str]:
        """URL prefixes whose virtual chunks may be read."""
        return set(self._resolver.authorized)

    def save_config(self) -> None:
        """Persist the settings in force."""
        publish(self._assets, updates.SetConfig(self._config.to_dict()))

    save_config_async = async_twin(save_config)

    def set_default_commit_metadata(self, metadata: dict[str, Any]) -> None:
        """Metadata that sessions made from now on add to each commit; what a commit gives itself wins."""
        self._default_commit_metadata = dict(metadata)

    def default_commit_metadata(self) -> dict[str, Any]:
        """See :meth:`set_default_commit_metadata`."""
        return dict(self._default_commit_metadata)

    def get_metadata(self) -> dict[str, Any]:
        """The repository's own metadata."""
        return dict(self._info().metadata)

    get_metadata_async = async_twin(get_metadata)

    @property
    def metadata(self) -> dict[str, Any]:
        """The repository's own metadata."""
        return self.get_metadata()

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the repository's metadata (JSON-like values)."""
        publish(self._assets, updates.SetMetadata(metadata))

    set_metadata_async = async_twin(set_metadata)

    def update_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Add to the repository's metadata; returns all of it."""
        return dict(publish(self._assets, updates.SetMetadata(metadata, merge=True)).metadata)

    update_metadata_async = async_twin(update_metadata)

    def get_status(self) -> RepoStatus:
        """Whether the repository takes writes."""
        return public_status(self._info().status)

    get_status_async = async_twin(get_status)

    @property
    def status(self) -> RepoStatus:
        """Whether the repository takes writes."""
        return self.get_status()

    def set_status(self, status: RepoStatus) -> None:
        """Make the repository read-only, or writable again."""
        publish(
            self._assets,
            updates.SetStatus(Availability[status.availability.name.upper()], status.limited_availability_reason),
        )

    set_status_async = async_twin(set_status)

    def feature_flags(self) -> list[FeatureFlag]:
        """All features that can be switched, with their setting."""
        info = self._info()
        return feature_flags(info.enabled_flags, info.disabled_flags)

    feature_flags_async = async_twin(feature_flags)

    def enabled_feature_flags(self) -> list[FeatureFlag]:
        """Features that are on, by setting or default."""
        return [flag for flag in self.feature_flags() if flag.enabled]

    enabled_feature_flags_async = async_twin(enabled_feature_flags)

    def disabled_feature_flags(self) -> list[FeatureFlag]:
        """Features that are off, by setting or default."""
        return [flag for flag in self.feature_flags() if not flag.enabled]

    disabled_feature_flags_async = async_twin(disabled_feature_flags)

    def set_feature_flag(self, name: str, setting: bool | None) -> None:
        """Switch a feature on or off; None goes back to its default."""
        publish(self._assets, updates.SetFeatureFlag(feature_flag_id(name), setting))

    set_feature_flag_async = async_twin(set_feature_flag)

    # --- refs --------------------------------------------------------------------------------------------------

    def _info(self) -> RepoInfo:
        return self._assets.repo_info()[0]

    def list_branches(self) -> set[str]:
        """Names of all branches."""
        return set(self._info().branches)

    list_branches_async = async_twin(list_branches)

    def lookup_branch(self, branch: str) -> str:
        """Id of the snapshot at a branch's tip. Raises RefNotFoundError."""
        return str(updates.branch_tip(self._info(), branch))

    lookup_branch_async = async_twin(lookup_branch)

    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """A new branch at a snapshot. Raises AlreadyExistsError, SnapshotNotFoundError."""
        name = updates.require_ref_name(branch)
        publish(self._assets, updates.CreateBranch(name, SnapshotId.from_str(snapshot_id)))

    create_branch_async = async_twin(create_branch)

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Move a branch to any snapshot of the repository.

        Parameters
        ----------
        from_snapshot_id
            Only if the branch is there now; else ConflictError (``branch-update-conflict``).
        """
        expected = None if from_snapshot_id is None else SnapshotId.from_str(from_snapshot_id)
        publish(self._assets, updates.ResetBranch(branch, SnapshotId.from_str(snapshot_id), expected))

    reset_branch_async = async_twin(reset_branch)

    def delete_branch(self, branch: str) -> None:
        """Remove a branch; ``main`` cannot be removed."""
        publish(self._assets, updates.DeleteBranch(branch))

    delete_branch_async = async_twin(delete_branch)

    def list_tags(self) -> set[str]:
        """Names of all tags."""
        return set(self._info().tags)

    list_tags_async = async_twin(list_tags)

    def lookup_tag(self, tag: str) -> str:
        """Id of the snapshot that a tag names. Raises RefNotFoundError."""
        return str(updates.tag_target(self._info(), tag))

    lookup_tag_async = async_twin(lookup_tag)

    def create_tag(self, tag: str, snapshot_id: str) -> None:
        """Name a snapshot for good. Raises AlreadyExistsError, also for a name that was deleted."""
        name = updates.require_ref_name(tag)
        publish(self._assets, updates.CreateTag(name, SnapshotId.from_str(snapshot_id)))

    create_tag_async = async_twin(create_tag)

    def delete_tag(self, tag: str) -> None:
        """Remove a tag; its name can never be used again."""
        publish(self._assets, updates.DeleteTag(tag))

    delete_tag_async = async_twin(delete_tag)

    # --- history -----------------------------------------------------------------------------------------------

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """Snapshots from a ref back to the first one, newest first; one request for all."""
        info = self._info()
        row = updates.snapshot_row(info, self._resolve(info, branch, tag, snapshot_id))
        return snapshot_infos(info.snapshots, info.snapshots.ancestry_rows(row))

    async def async_ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> AsyncIterator[SnapshotInfo]:
        """Asynchronous twin of :meth:`ancestry`."""
        for snapshot in await async_twin(self.ancestry)(branch=branch, tag=tag, snapshot_id=snapshot_id):
            yield snapshot

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """One snapshot of the history. Raises SnapshotNotFoundError."""
        info = self._info()
        return SnapshotInfo.of(info.snapshots.info(updates.snapshot_row(info, SnapshotId.from_str(snapshot_id))))

    lookup_snapshot_async = async_twin(lookup_snapshot)

    def list_manifest_files(self, snapshot_id: str) -> list[ManifestFileInfo]:
        """Manifest files of a snapshot, by id."""
        files = self._assets.snapshot(SnapshotId.from_str(snapshot_id)).manifest_files
        return [
            ManifestFileInfo(str(ManifestId.from_row(row)), int(size), int(count))
            for row, size, count in zip(files.ids, files.sizes, files.num_refs, strict=True)
        ]

    list_manifest_files_async = async_twin(list_manifest_files)

    def ops_log(self) -> Iterator[Update]:
        """Everything that was done to the repository, newest first; one request per page of the log."""
        info = self._info()
        while True:
            for i in range(len(info.updates)):
                yield Update.of(info.updates.record(i))
            if info.repo_before_updates is None:
                return
            key = layout.overwritten_key(info.repo_before_updates)
            try:
                info = decode_repo_info(self._storage.get(key))
            except ObjectNotFoundError:
                raise FormatError(
                    f"the ops log continues in {key}, which is missing: older entries cannot be listed. Restore the "
                    f"object from a copy"
                ) from None

    async def ops_log_async(self) -> AsyncIterator[Update]:
        """Asynchronous twin of :meth:`ops_log`."""
        for update in await async_twin(lambda: list(self.ops_log()))():
            yield update

    def diff(
        self,
        *,
        from_branch: str | None = None,
        from_tag: str | None = None,
        from_snapshot_id: str | None = None,
        to_branch: str | None = None,
        to_tag: str | None = None,
        to_snapshot_id: str | None = None,
    ) -> Diff:
        """What the commits after one snapshot, up to another, changed.

        Raises
        ------
        InvalidInputError
            ``bad-snapshot-chain-for-diff``: the first is no ancestor of the second.
        """
        info = self._info()
        start = self._resolve(info, from_branch, from_tag, from_snapshot_id)
        stop = self._resolve(info, to_branch, to_tag, to_snapshot_id)
        start_row = updates.snapshot_row(info, start)
        rows = info.snapshots.ancestry_rows(updates.snapshot_row(info, stop)).tolist()
        if start_row not in rows:
            raise InvalidInputError(
                f"snapshot {start} is no ancestor of {stop}; a diff goes from an older snapshot to a later one of the "
                f"same line",
                ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF,
            )
        records = [info.snapshots.info(row) for row in rows[: rows.index(start_row)]]
        ids = [log_id for record in reversed(records) for log_id in (*record.pruned, record.id)]
        logs = [log for log_id in ids if (log := self._assets.transaction_log(log_id)) is not None]
        return diff_of_logs(logs, self._assets.snapshot(start).nodes, self._assets.snapshot(stop).nodes)

    diff_async = async_twin(diff)

    # --- sessions ----------------------------------------------------------------------------------------------

    def _context(self) -> RepositoryContext:
        return RepositoryContext(
            assets=self._assets,
            config=self._config,
            resolver=self._resolver,
            default_commit_metadata=dict(self._default_commit_metadata),
            make_store=IcechunkStore,
        )

    def _resolve(self, info: RepoInfo, branch: str | None, tag: str | None, snapshot_id: str | None) -> SnapshotId:
        given = [name for name, value in _named(branch, tag, snapshot_id) if value is not None]
        if len(given) != 1:
            raise InvalidInputError(
                f"give exactly one of branch, tag and snapshot_id; got {' and '.join(given) or 'none'}",
                ErrorKind.INVALID_REF_TYPE,
            )
        if branch is not None:
            return updates.branch_tip(info, branch)
        if tag is not None:
            return updates.tag_target(info, tag)
        assert snapshot_id is not None
        return SnapshotId.from_str(snapshot_id)

    def readonly_session(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: datetime | None = None,
    ) -> Session:
        """A view of one committed snapshot.

        Parameters
        ----------
        branch, tag, snapshot_id
            Which; exactly one.
        as_of
            With ``branch``: its newest snapshot not written after this time (a naive time is UTC).

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            No such ref or snapshot, or none at that time.
        """
        info = self._info()
        found = self._resolve(info, branch, tag, snapshot_id)
        row = updates.snapshot_row(info, found)
        if as_of is not None:
            if branch is None:
                raise InvalidInputError("as_of goes with branch only", ErrorKind.INVALID_REF_TYPE)
            rows = info.snapshots.ancestry_rows(row)
            early = rows[info.snapshots.flushed_at[rows] <= us_of_datetime(as_of)]
            if len(early) == 0:
                raise SnapshotNotFoundError(
                    f"branch {branch!r} has no snapshot as old as {as_of.isoformat()}; its first is of "
                    f"{SnapshotInfo.of(info.snapshots.info(int(rows[-1]))).written_at.isoformat()}",
                    ErrorKind.NO_SNAPSHOT_AT_TIME,
                )
            found = info.snapshots.info(int(early[0])).id
        return Session(self._context(), found)

    readonly_session_async = async_twin(readonly_session)

    def writable_session(self, branch: str) -> Session:
        """A session whose commit goes to a branch, based on the branch's present tip."""
        info = self._info()
        tip = updates.branch_tip(info, branch)
        updates.require_online(info)
        return Session(self._context(), tip, branch=branch, mode=SessionMode.writable)

    writable_session_async = async_twin(writable_session)

    @contextmanager
    def transaction(
        self,
        branch: str,
        *,
        message: str,
        metadata: dict[str, Any] | None = None,
        rebase_with: ConflictSolver | None = None,
        rebase_tries: int = 1_000,
    ) -> Iterator[IcechunkStore]:
        """A store to write through, committed when the block ends without an exception.

        >>> from icechunk_engine import Repository, in_memory_storage
        >>> import zarr
        >>> repo = Repository.create(in_memory_storage())
        >>> with repo.transaction("main", message="first") as store:
        ...     _ = zarr.create_group(store)
        >>> next(repo.ancestry(branch="main")).message
        'first'
        """
        session = self.writable_session(branch)
        yield session.store
        session.commit(message, metadata, rebase_with=rebase_with, rebase_tries=rebase_tries)


def _named(branch: str | None, tag: str | None, snapshot_id: str | None) -> list[tuple[str, str | None]]:
    return [("branch", branch), ("tag", tag), ("snapshot_id", snapshot_id)]


def _require_spec_2(spec_version: SpecVersion | int | None) -> None:
    if spec_version is not None and int(spec_version) != 2:
        raise SessionStateError(
            f"repositories of spec version {int(spec_version)} cannot be created; use spec_version=2",
            ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION,
        )


def _require_free(storage: Storage, check_clean_root: bool) -> None:
    if check_clean_root:
        found = next(storage.list(), None)
        if found is not None and storage.info(layout.REPO) is None:
            raise InvalidInputError(
                f"{storage.identity} is not empty (there is {found.key!r}). Choose an empty place, or pass "
                f"check_clean_root=False if nothing else will ever write there",
                ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
            )
    if storage.info(layout.REPO) is not None or storage.info(layout.branch_ref_key(DEFAULT_BRANCH)) is not None:
        raise _already_there(storage)


def _already_there(storage: Storage) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"there is a repository at {storage.identity} already; open it with Repository.open(storage)",
        ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
    )


def _read_repo_info(storage: Storage) -> RepoInfo:
    try:
        info, _ = AssetManager(storage, resolve(RepositoryConfig())).repo_info()
    except RepositoryNotFoundError:
        if storage.info(layout.branch_ref_key(DEFAULT_BRANCH)) is not None:
            raise FormatError(
                f"the repository at {storage.identity} is of spec version 1, which cannot be opened yet. Migrate it "
                f"with icechunk.upgrade_icechunk_repository of the official library",
                ErrorKind.UNSUPPORTED_SPEC_VERSION,
            ) from None
        raise
    return info
