"""Repository: create and open, branches and tags, history, sessions."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog import changes, inspection
from icechunk_engine.catalog.ancestry_graph import AncestryGraph, Entry, children_first
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.creating import create_repository, require_free
from icechunk_engine.catalog.dates import us_of_datetime
from icechunk_engine.catalog.history import ManifestFileInfo, SnapshotInfo
from icechunk_engine.catalog.html_tables import html_table
from icechunk_engine.catalog.opening import find_catalog, find_spec_version, open_catalog
from icechunk_engine.catalog.ref_names import MAIN, require_ref_name
from icechunk_engine.catalog.updates import Update, public_status
from icechunk_engine.config import RepositoryConfig, StorageSettings, resolve
from icechunk_engine.credentials import AnyCredential
from icechunk_engine.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    SnapshotNotFoundError,
)
from icechunk_engine.errors.foreign import describe
from icechunk_engine.format import layout
from icechunk_engine.format.repo_info import Availability, SnapshotRecord
from icechunk_engine.ids import ManifestId, SnapshotId
from icechunk_engine.session import IcechunkStore, Session, SessionMode
from icechunk_engine.session.preloading import start_preload
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.from_url import as_storage
from icechunk_engine.transaction.commit_logs import merged_log
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
from icechunk_engine.virtual.authorisation import warn_of_missing_credentials
from icechunk_engine.virtual.resolver import VirtualResolver
from icechunk_engine.workspace.context import RepositoryContext

Authorizations = Mapping[str, AnyCredential | None]
Place = Storage | str | os.PathLike[str]
"""What says where a repository is: a storage, a path or a URL."""

DEFAULT_BRANCH = MAIN


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
        spec_version: SpecVersion | int = SpecVersion.v2,
    ) -> None:
        self._config = config
        self._authorized = dict(authorize_virtual_chunk_access or {})
        self._default_commit_metadata = dict(default_commit_metadata or {})
        self._attribution = _require(attribution, Attribution, "attribution") or Attribution()
        resolved = resolve(config)
        self._storage = storage.with_settings(resolved.storage)
        self._assets = AssetManager(self._storage, resolved, int(spec_version))
        self._resolver = VirtualResolver(resolved.virtual_chunk_containers, self._authorized)

    # --- create and open ---------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        storage: Place,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
        spec_version: SpecVersion | int | None = None,
        check_clean_root: bool = True,
        attribution: Attribution | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Make a new repository with a branch ``main`` at an empty first snapshot.

        Parameters
        ----------
        storage
            Where: a storage, or a path or URL as for :func:`~icechunk_engine.storage.storage_from_url`. The place
            must hold no objects.
        config
            Settings to persist with the repository; what is None follows the defaults.
        authorize_virtual_chunk_access
            URL prefixes of virtual chunk containers that may be read, with credentials.
        spec_version
            Version of the on-disk format; 1 for a repository that old programs must read, by default 2.
        check_clean_root
            Refuse a place that holds objects.
        storage_options
            Options that go with a URL.

        Raises
        ------
        InvalidInputError
            ``parent-directory-not-clean``: there is a repository, or something else.
        """
        place = as_storage(storage, storage_options)
        return cls._create(
            place,
            _require(config, RepositoryConfig, "config"),
            authorize_virtual_chunk_access,
            spec_version,
            check_clean_root,
            attribution,
        )

    @classmethod
    @operation(lambda cls, storage, *_: f"creating a repository at {storage.identity}")
    def _create(
        cls,
        storage: Storage,
        config: RepositoryConfig | None,
        authorize_virtual_chunk_access: Authorizations | None,
        spec_version: SpecVersion | int | None,
        check_clean_root: bool,
        attribution: Attribution | None,
    ) -> Self:
        warn_of_missing_credentials(authorize_virtual_chunk_access)
        version = SpecVersion.current() if spec_version is None else _known_version(spec_version)
        effective = config if config is not None else RepositoryConfig()
        repository = cls(
            storage, effective, authorize_virtual_chunk_access, attribution=attribution, spec_version=version
        )
        require_free(repository._assets.storage, check_clean_root)
        persisted = None if effective == RepositoryConfig() else effective.to_dict()
        create_repository(repository._assets, persisted)
        return repository

    create_async = classmethod(async_twin(create.__func__))  # type: ignore[attr-defined]

    @classmethod
    def open(
        cls,
        storage: Place,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
        attribution: Attribution | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Open the repository at a storage location: one request (spec version 1: three).

        Parameters
        ----------
        storage, storage_options
            As for :meth:`create`.
        config
            Settings of this opening, on top of the persisted ones.

        Raises
        ------
        RepositoryNotFoundError
            None there.
        FormatError
            There is something, but not a repository that can be read.
        """
        place = as_storage(storage, storage_options)
        return cls._open(
            place, _require(config, RepositoryConfig, "config"), authorize_virtual_chunk_access, attribution
        )[0]

    @classmethod
    @operation(lambda cls, storage, *_: f"opening the repository at {storage.identity}")
    def _open(
        cls,
        storage: Storage,
        config: RepositoryConfig | None,
        authorize_virtual_chunk_access: Authorizations | None,
        attribution: Attribution | None,
    ) -> tuple[Self, Catalog]:
        """The repository, and its refs as they were seen on opening."""
        warn_of_missing_credentials(authorize_virtual_chunk_access)
        found = find_catalog(_assets_before_opening(storage, config))
        persisted = found.stored_config()
        if persisted is None:
            persisted = RepositoryConfig()
        effective = persisted.merge(config) if config is not None else persisted
        repository = cls(
            storage,
            effective,
            authorize_virtual_chunk_access,
            attribution=attribution,
            spec_version=found.spec_version,
        )
        return repository, found.with_assets(repository._assets)

    open_async = classmethod(async_twin(open.__func__))  # type: ignore[attr-defined]

    @classmethod
    def open_or_create(
        cls,
        storage: Place,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
        create_version: SpecVersion | int | None = None,
        check_clean_root: bool = True,
        attribution: Attribution | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Open the repository, or make it if there is none; parameters as in :meth:`open` and :meth:`create`."""
        storage = as_storage(storage, storage_options)
        try:
            return cls.open(storage, config, authorize_virtual_chunk_access, attribution)
        except RepositoryNotFoundError:
            pass
        try:
            return cls.create(
                storage, config, authorize_virtual_chunk_access, create_version, check_clean_root, attribution
            )
        except InvalidInputError as error:
            settings = None if config is None else config.storage
            if error.kind is ErrorKind.PARENT_DIRECTORY_NOT_CLEAN and not cls.exists(storage, settings):
                raise
            return cls.open(storage, config, authorize_virtual_chunk_access, attribution)  # somebody was faster

    open_or_create_async = classmethod(async_twin(open_or_create.__func__))  # type: ignore[attr-defined]

    @staticmethod
    def exists(
        storage: Place,
        storage_settings: StorageSettings | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> bool:
        """True when there is a repository; ``storage_settings`` are for the requests that tell."""
        return Repository.fetch_spec_version(storage, storage_settings, storage_options=storage_options) is not None

    exists_async = staticmethod(async_twin(exists))

    @staticmethod
    def fetch_spec_version(
        storage: Place,
        storage_settings: StorageSettings | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> SpecVersion | None:
        """Format version of the repository, None if there is none; settings as in :meth:`exists`."""
        place = as_storage(storage, storage_options)
        settings = _require(storage_settings, StorageSettings, "storage_settings")
        if settings is not None:
            place = place.with_settings(settings)
        return find_spec_version(_assets_before_opening(place).storage)

    fetch_spec_version_async = staticmethod(async_twin(fetch_spec_version))

    @staticmethod
    def fetch_config(storage: Place, *, storage_options: Mapping[str, Any] | None = None) -> RepositoryConfig | None:
        """The persisted configuration, None if there is none. Raises RepositoryNotFoundError."""
        return find_catalog(_assets_before_opening(as_storage(storage, storage_options))).stored_config()

    fetch_config_async = staticmethod(async_twin(fetch_config))

    def reopen(
        self,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
    ) -> Self:
        """The same repository with settings of ``config`` on top of the present ones."""
        config = _require(config, RepositoryConfig, "config")
        warn_of_missing_credentials(authorize_virtual_chunk_access)
        return type(self)(
            self._storage,
            self._config.merge(config) if config is not None else self._config,
            self._authorized if authorize_virtual_chunk_access is None else authorize_virtual_chunk_access,
            default_commit_metadata=self._default_commit_metadata,
            attribution=self._attribution,
            spec_version=self.spec_version,
        )

    reopen_async = async_twin(reopen)

    def clear_caches(self) -> None:
        """Drop what this process remembers of the repository's files, so that they are read again.

        Files never change once written, so this changes nothing unless they were damaged or replaced underneath.
        Repositories, sessions and arrays of the same place share what is remembered; all stay usable. Sessions that
        are open keep their snapshot.
        """
        self._assets.clear_caches()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "storage": self._storage,
            "config": self._config,
            "authorized": self._authorized,
            "default_commit_metadata": self._default_commit_metadata,
            "attribution": self._attribution,
            "spec_version": self.spec_version,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        Repository.__init__(
            self,
            state["storage"],
            state["config"],
            state["authorized"],
            default_commit_metadata=state["default_commit_metadata"],
            attribution=state["attribution"],
            spec_version=state["spec_version"],
        )

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "icechunk-repository", self._storage.identity

    def __repr__(self) -> str:
        return f"<Repository {self._storage.identity}>"

    def _repr_html_(self) -> str:
        refs = self._catalog()
        rows: list[tuple[str, object]] = [
            ("storage", self._storage.identity),
            ("format", f"version {int(self.spec_version)}"),
            ("branches", ", ".join(sorted(refs.branches())[:20])),
            ("tags", ", ".join(sorted(refs.tags())[:20]) or "—"),
        ]
        return html_table("icechunk Repository", rows + refs.overview())

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
        """Format version on disk, as it was when the repository was opened."""
        return SpecVersion(self._assets.spec_version)

    @property
    def authorized_virtual_container_prefixes(self) -> set[str]:
        """URL prefixes whose virtual chunks may be read."""
        return set(self._resolver.authorized)

    def save_config(self) -> None:
        """Persist the settings in force."""
        self._catalog().publish(changes.SetConfig(self._config.to_dict()))

    save_config_async = async_twin(save_config)

    def set_default_commit_metadata(self, metadata: dict[str, Any]) -> None:
        """Metadata that sessions made from now on add to each commit; what a commit gives itself wins."""
        self._default_commit_metadata = dict(metadata)

    def default_commit_metadata(self) -> dict[str, Any]:
        """See :meth:`set_default_commit_metadata`."""
        return dict(self._default_commit_metadata)

    def get_metadata(self) -> dict[str, Any]:
        """The repository's own metadata."""
        return dict(self._catalog().repo_info("repository metadata").metadata)

    get_metadata_async = async_twin(get_metadata)

    @property
    def metadata(self) -> dict[str, Any]:
        """The repository's own metadata."""
        return self.get_metadata()

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the repository's metadata (JSON-like values)."""
        self._catalog().publish(changes.SetMetadata(metadata))

    set_metadata_async = async_twin(set_metadata)

    def update_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Add to the repository's metadata; returns all of it."""
        changed = self._catalog().publish(changes.SetMetadata(metadata, merge=True))
        return dict(changed.repo_info("repository metadata").metadata)

    update_metadata_async = async_twin(update_metadata)

    def get_status(self) -> RepoStatus:
        """Whether the repository takes writes."""
        return public_status(self._catalog().repo_info("repository status").status)

    get_status_async = async_twin(get_status)

    @property
    def status(self) -> RepoStatus:
        """Whether the repository takes writes."""
        return self.get_status()

    def set_status(self, status: RepoStatus) -> None:
        """Make the repository read-only, or writable again."""
        if not isinstance(status, RepoStatus):
            raise TypeError(f"status must be a RepoStatus, not {describe(status)}")
        availability = Availability[status.availability.name.upper()]
        self._catalog().publish(changes.SetStatus(availability, status.limited_availability_reason))

    set_status_async = async_twin(set_status)

    def feature_flags(self) -> list[FeatureFlag]:
        """All features that can be switched, with their setting."""
        info = self._catalog().repo_info("feature flags")
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
        self._catalog().publish(changes.SetFeatureFlag(feature_flag_id(name), setting))

    set_feature_flag_async = async_twin(set_feature_flag)

    def _catalog(self) -> Catalog:
        """A new look at refs, history and settings."""
        return open_catalog(self._assets)

    # --- refs --------------------------------------------------------------------------------------------------

    def list_branches(self) -> set[str]:
        """Names of all branches."""
        return self._catalog().branches()

    list_branches_async = async_twin(list_branches)

    def lookup_branch(self, branch: str) -> str:
        """Id of the snapshot at a branch's tip. Raises RefNotFoundError."""
        return str(self._catalog().branch_tip(branch))

    lookup_branch_async = async_twin(lookup_branch)

    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """A new branch at a snapshot. Raises AlreadyExistsError, SnapshotNotFoundError."""
        name = require_ref_name(branch)
        self._catalog().publish(changes.CreateBranch(name, SnapshotId.from_str(snapshot_id)))

    create_branch_async = async_twin(create_branch)

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Move a branch to any snapshot of the repository.

        Parameters
        ----------
        from_snapshot_id
            Only if the branch is there now; else ConflictError (``branch-update-conflict``).
        """
        expected = None if from_snapshot_id is None else SnapshotId.from_str(from_snapshot_id)
        self._catalog().publish(changes.ResetBranch(branch, SnapshotId.from_str(snapshot_id), expected))

    reset_branch_async = async_twin(reset_branch)

    def delete_branch(self, branch: str) -> None:
        """Remove a branch; ``main`` cannot be removed."""
        self._catalog().publish(changes.DeleteBranch(branch))

    delete_branch_async = async_twin(delete_branch)

    def list_tags(self) -> set[str]:
        """Names of all tags."""
        return self._catalog().tags()

    list_tags_async = async_twin(list_tags)

    def lookup_tag(self, tag: str) -> str:
        """Id of the snapshot that a tag names. Raises RefNotFoundError."""
        return str(self._catalog().tag_target(tag))

    lookup_tag_async = async_twin(lookup_tag)

    def create_tag(self, tag: str, snapshot_id: str) -> None:
        """Name a snapshot for good. Raises AlreadyExistsError, also for a name that was deleted."""
        name = require_ref_name(tag)
        self._catalog().publish(changes.CreateTag(name, SnapshotId.from_str(snapshot_id)))

    create_tag_async = async_twin(create_tag)

    def delete_tag(self, tag: str) -> None:
        """Remove a tag; its name can never be used again."""
        self._catalog().publish(changes.DeleteTag(tag))

    delete_tag_async = async_twin(delete_tag)

    # --- history -----------------------------------------------------------------------------------------------

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """Snapshots from a ref back to the first one, newest first; one request, in spec version 1 one for each."""
        refs = self._catalog()
        return refs.history(self._resolve(refs, branch, tag, snapshot_id))

    async def async_ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> AsyncIterator[SnapshotInfo]:
        """Asynchronous twin of :meth:`ancestry`."""
        for snapshot in await async_twin(
            lambda: list(self.ancestry(branch=branch, tag=tag, snapshot_id=snapshot_id))
        )():
            yield snapshot

    def ancestry_graph(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        plain: bool = False,
    ) -> AncestryGraph:
        """History as a picture: print it, or show it in a notebook.

        Parameters
        ----------
        branch, tag, snapshot_id
            Where to begin, at most one; all branches if none is given.
        plain
            Without colours.
        """
        refs = self._catalog()
        branches = {name: refs.branch_tip(name) for name in refs.branches()}
        tags = {name: refs.tag_target(name) for name in refs.tags()}
        if branch is tag is snapshot_id is None:
            tips = [branches[name] for name in sorted(branches, key=lambda name: (name != DEFAULT_BRANCH, name))]
        else:
            tips = [self._resolve(refs, branch, tag, snapshot_id)]
        found: dict[SnapshotId, SnapshotRecord] = {}
        for tip in tips:
            line: dict[SnapshotId, SnapshotRecord] = {}
            for record in refs.ancestry(tip):
                if record.id in found:
                    break
                line[record.id] = record
            found |= line
        branches_at, tags_at = _names_by_target(branches), _names_by_target(tags)
        entries = [
            Entry.of(record, branches_at.get(record.id, ()), tags_at.get(record.id, ()))
            for record in children_first(found)
        ]
        return AncestryGraph(entries, str(tips[0]), plain=plain)

    ancestry_graph_async = async_twin(ancestry_graph)

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """One snapshot of the history. Raises SnapshotNotFoundError."""
        return SnapshotInfo.of(self._catalog().snapshot(SnapshotId.from_str(snapshot_id)))

    lookup_snapshot_async = async_twin(lookup_snapshot)

    def list_manifest_files(self, snapshot_id: str) -> list[ManifestFileInfo]:
        """Manifest files of a snapshot, by id."""
        files = self._assets.snapshot(SnapshotId.from_str(snapshot_id)).manifest_files
        return [
            ManifestFileInfo(str(ManifestId.from_row(row)), int(size), int(count))
            for row, size, count in zip(files.ids, files.sizes, files.num_refs, strict=True)
        ]

    list_manifest_files_async = async_twin(list_manifest_files)

    def inspect_repo_info(self) -> dict[str, Any]:
        """What the object ``repo`` holds, as a document; for debugging."""
        self._catalog().repo_info("inspect_repo_info")
        return inspection.repo_info_document(self._assets.storage.get(layout.REPO))

    inspect_repo_info_async = async_twin(inspect_repo_info)

    def inspect_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """What a snapshot's file holds, as a document; for debugging. Raises SnapshotNotFoundError."""
        return inspection.snapshot_document(self._file_of_snapshot(layout.snapshot_key, snapshot_id))

    inspect_snapshot_async = async_twin(inspect_snapshot)

    def inspect_transaction_log(self, snapshot_id: str) -> dict[str, Any]:
        """What a commit's transaction log holds, as a document; for debugging. Raises SnapshotNotFoundError.

        Where ancestors of the snapshot have expired, their changes are merged in, and ``synthetic_composite`` says so.
        """
        data = self._file_of_snapshot(layout.transaction_log_key, snapshot_id)
        return inspection.transaction_log_document(data, self._composite_log(SnapshotId.from_str(snapshot_id)))

    def _composite_log(self, snapshot_id: SnapshotId) -> inspection.CompositeLog | None:
        """The merged log of a snapshot that stands for expired ones; None for all others."""
        try:
            pruned = self._catalog().snapshot(snapshot_id).pruned
        except SnapshotNotFoundError:  # a file that no repo info lists: what it says itself
            return None
        if not pruned:
            return None
        logs = self._assets.transaction_logs([*pruned, snapshot_id])
        found = [log_id for log_id, log in zip(pruned, logs, strict=False) if log is not None]
        missing = [log_id for log_id in pruned if log_id not in found]
        return inspection.CompositeLog(merged_log([log for log in logs if log is not None]), found, missing)

    inspect_transaction_log_async = async_twin(inspect_transaction_log)

    def _file_of_snapshot(self, key_of: Callable[[SnapshotId], str], snapshot_id: str) -> bytes:
        key = key_of(SnapshotId.from_str(snapshot_id))
        try:
            return self._assets.storage.get(key)
        except ObjectNotFoundError:
            raise SnapshotNotFoundError(
                f"there is no object {key}: the snapshot never existed, or was collected. repo.ancestry lists those "
                f"of a ref"
            ) from None

    def ops_log(self) -> Iterator[Update]:
        """Everything that was done to the repository, newest first; one request per page of the log."""
        return self._catalog().ops_log()

    async def ops_log_async(self) -> AsyncIterator[Update]:
        """Asynchronous twin of :meth:`ops_log`."""
        for update in await async_twin(lambda: list(self.ops_log()))():
            yield update

    @operation(
        lambda self, *refs, **named: f"comparing two snapshots ({_told(refs, named)}) of {self.storage.identity}"
    )
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
            ``bad-snapshot-chain-for-diff``: the first is not an ancestor of the second.
        """
        refs = self._catalog()
        start = refs.snapshot(self._resolve(refs, from_branch, from_tag, from_snapshot_id)).id
        stop = self._resolve(refs, to_branch, to_tag, to_snapshot_id)
        records: list[SnapshotRecord] = []
        for record in refs.ancestry(stop):
            if record.id == start:
                break
            records.append(record)
        else:
            raise InvalidInputError(
                f"`to` snapshot ancestry doesn't include `from`: {stop} does not come from {start}; a diff goes "
                f"from an older snapshot to a later one of the same line",
                ErrorKind.BAD_SNAPSHOT_CHAIN_FOR_DIFF,
            )
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
        )

    def _resolve(self, refs: Catalog, branch: str | None, tag: str | None, snapshot_id: str | None) -> SnapshotId:
        given = [name for name, value in _named(branch, tag, snapshot_id) if value is not None]
        if len(given) != 1:
            raise InvalidInputError(
                f"Must provide one of branch, tag, or snapshot_id, and only one; got {' and '.join(given) or 'none'}",
                ErrorKind.INVALID_REF_TYPE,
            )
        if branch is not None:
            return refs.branch_tip(branch)
        if tag is not None:
            return refs.tag_target(tag)
        assert snapshot_id is not None
        return SnapshotId.from_str(snapshot_id)

    @operation(
        lambda self, *refs, **named: f"opening a snapshot to read ({_told(refs, named)}) of {self.storage.identity}"
    )
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
        return self._readonly_session(self._catalog(), branch, tag, snapshot_id, as_of)

    def _readonly_session(
        self,
        refs: Catalog,
        branch: str | None,
        tag: str | None,
        snapshot_id: str | None,
        as_of: datetime | None,
    ) -> Session:
        found = refs.snapshot(self._resolve(refs, branch, tag, snapshot_id)).id
        if as_of is not None:
            if branch is None:
                raise InvalidInputError(
                    "as_of argument must be provided together with a branch name", ErrorKind.INVALID_REF_TYPE
                )
            early = refs.newest_at(found, us_of_datetime(as_of))
            if early is None:
                *_, first = refs.history(found)
                raise SnapshotNotFoundError(
                    f"branch {branch!r} does not have a snapshot before or at {as_of.isoformat()}; its first is of "
                    f"{first.written_at.isoformat()}",
                    ErrorKind.NO_SNAPSHOT_AT_TIME,
                )
            found = early
        start_preload(self._assets, found)
        return Session(self._context(), found)

    readonly_session_async = async_twin(readonly_session)

    @operation(
        lambda self, *refs, **named: f"opening a branch to write ({_told(refs, named)}) of {self.storage.identity}"
    )
    def writable_session(self, branch: str) -> Session:
        """A session whose commit goes to a branch, based on the branch's present tip."""
        refs = self._catalog()
        tip = refs.branch_tip(branch)
        refs.require_online()
        start_preload(self._assets, tip)
        return Session(self._context(), tip, branch=branch, mode=SessionMode.writable)

    writable_session_async = async_twin(writable_session)

    @operation(
        lambda self, *refs, **named: f"opening a branch to rearrange ({_told(refs, named)}) of {self.storage.identity}"
    )
    def rearrange_session(self, branch: str) -> Session:
        """A session that moves and renames nodes (:meth:`Session.move`) and does nothing else.

        Raises
        ------
        SessionStateError
            ``feature-flag-disabled``: ``move_node`` is switched off.
        """
        catalog = self._catalog()
        tip = catalog.branch_tip(branch)
        catalog.require_online()
        catalog.require_moves_allowed()
        start_preload(self._assets, tip)
        return Session(self._context(), tip, branch=branch, mode=SessionMode.rearrange)

    rearrange_session_async = async_twin(rearrange_session)

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


@operation(lambda storage, *_, **refs: f"opening a snapshot to read of {storage.identity}")
def open_readonly(
    storage: Storage,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Authorizations | None = None,
    *,
    branch: str | None = None,
    tag: str | None = None,
    snapshot_id: str | None = None,
    as_of: datetime | None = None,
) -> Session:
    """A session to read from, with one look at the repository.

    :meth:`Repository.open` and then :meth:`Repository.readonly_session`, whose parameters and errors these are, look
    at it twice.
    """
    repository, refs = Repository._open(storage, config, authorize_virtual_chunk_access, None)
    return repository._readonly_session(refs, branch, tag, snapshot_id, as_of)


def _assets_before_opening(storage: Storage, config: RepositoryConfig | None = None) -> AssetManager:
    """Assets to look at a place through, while the persisted configuration is not known."""
    if config is None:
        return AssetManager(storage, resolve(RepositoryConfig()))
    resolved = resolve(config)
    return AssetManager(storage.with_settings(resolved.storage), resolved)


def _told(refs: tuple[Any, ...], named: dict[str, Any]) -> str:
    """Arguments of an operation, for messages."""
    return ", ".join([*map(repr, refs), *(f"{name}={value!r}" for name, value in named.items() if value is not None)])


def _named(branch: str | None, tag: str | None, snapshot_id: str | None) -> list[tuple[str, str | None]]:
    return [("branch", branch), ("tag", tag), ("snapshot_id", snapshot_id)]


def _names_by_target(refs: Mapping[str, SnapshotId]) -> dict[SnapshotId, tuple[str, ...]]:
    """Refs that point at each snapshot, sorted."""
    names: dict[SnapshotId, tuple[str, ...]] = {}
    for name in sorted(refs):
        names[refs[name]] = (*names.get(refs[name], ()), name)
    return names


def _require[T](value: T | None, kind: type[T], name: str) -> T | None:
    """The value, if it is None or of the type that an argument must have."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {describe(value)}")
    return value


def _known_version(spec_version: SpecVersion | int) -> SpecVersion:
    try:
        return SpecVersion(spec_version)
    except ValueError:
        raise InvalidInputError(
            f"Unsupported version {spec_version}: repositories are created in spec version 2, or 1",
            ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION,
        ) from None
