"""Whether there is a repository at a place, of which spec version; and making one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.changes import MAIN
from icechunk_engine.catalog.clock_check import now_us, require_right_clock
from icechunk_engine.catalog.spec_2_repo_file import RepoFileCatalog
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.config.yaml_form import from_yaml, to_yaml
from icechunk_engine.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
    VersionMismatchError,
)
from icechunk_engine.format import layout, v1
from icechunk_engine.format.repo_info import encode_repo_info, initial_repo_info
from icechunk_engine.format.snapshot import encode_snapshot, initial_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, encode_transaction_log
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID
from icechunk_engine.storage.base import PROBE_PREFIX, Storage
from icechunk_engine.types import SpecVersion

_V1_MAIN = layout.branch_ref_key(MAIN)


@dataclass(frozen=True, slots=True)
class Found:
    """A repository that is there.

    Attributes
    ----------
    spec_version
        Of the repository; single files may be older.
    config
        Persisted configuration; None for the defaults.
    refs
        As they were looked at; None in spec 1, where each has a file of its own.
    """

    spec_version: SpecVersion
    config: RepositoryConfig | None
    refs: Catalog | None


def find(assets: AssetManager) -> Found:
    """What is there: one request for spec 2, three for spec 1.

    Raises
    ------
    RepositoryNotFoundError
        Nothing.
    FormatError
        Something that cannot be read.
    """
    try:
        info, version = assets.repo_info()
    except RepositoryNotFoundError:
        try:
            v1.decode_ref(assets.storage.get(_V1_MAIN), _V1_MAIN)
        except ObjectNotFoundError:
            pass
        else:
            return Found(SpecVersion.v1, _v1_config(assets.storage), None)
        raise
    config = None if info.config is None else RepositoryConfig.from_stored(info.config)
    return Found(SpecVersion.v2, config, RepoFileCatalog(info, version))


def _v1_config(storage: Storage) -> RepositoryConfig | None:
    try:
        return RepositoryConfig.from_stored(from_yaml(storage.get(layout.CONFIG_YAML)))
    except ObjectNotFoundError:
        return None


def spec_version_of(storage: Storage) -> SpecVersion | None:
    """Spec version of the repository that is there, None if there is none."""
    if storage.info(layout.REPO) is not None:
        return SpecVersion.v2
    return SpecVersion.v1 if storage.info(_V1_MAIN) is not None else None


def require_free(storage: Storage, check_clean_root: bool) -> None:
    """Raise unless a repository can be made at this place: one request, three where anything is to be there."""
    if storage.read_only:
        raise ReadOnlyError(
            f"the storage used by this Icechunk repository is read-only: cannot create one at {storage.identity}. "
            f"Choose a place that can be written to",
            ErrorKind.READ_ONLY_STORAGE,
        )
    # What an interrupted creation left behind must not keep it from being repeated.
    remains = {layout.snapshot_key(INITIAL_SNAPSHOT_ID), layout.transaction_log_key(INITIAL_SNAPSHOT_ID)}
    others = (info for info in storage.list() if info.key not in remains and not info.key.startswith(PROBE_PREFIX))
    found = next(others, None) if check_clean_root else None
    if (found is not None or not check_clean_root) and spec_version_of(storage) is not None:
        raise already_there(storage)
    if found is not None:
        raise InvalidInputError(
            f"repositories can only be created in clean prefixes, and {storage.identity} is not empty: it holds "
            f"{found.key!r}. Choose an empty place, or pass check_clean_root=False if nothing else will ever write "
            f"there",
            ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
        )


def already_there(storage: Storage) -> InvalidInputError:
    """The error for a place that is taken."""
    return InvalidInputError(
        f"repositories can only be created in clean prefixes, and there is a repository at {storage.identity} "
        f"already. Open it with Repository.open(storage)",
        ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
    )


def make_repository(assets: AssetManager, config: dict[str, Any] | None) -> None:
    """Write the files of a new repository, the one that makes it visible last.

    Parameters
    ----------
    assets
        Knows the place and the spec version.
    config
        Persisted form of the configuration.

    Raises
    ------
    InvalidInputError
        ``parent-directory-not-clean``: somebody was faster.
    """
    created_us, level, storage = now_us(), assets.config.compression_level, assets.storage
    snapshot = encode_snapshot(initial_snapshot(created_us, assets.spec_version), level=level)
    files = {layout.snapshot_key(INITIAL_SNAPSHOT_ID): snapshot}
    if assets.spec_version == 1:
        if config is not None:
            _create_v1_config(storage, to_yaml(config))
        last, data = _V1_MAIN, v1.encode_ref(INITIAL_SNAPSHOT_ID)
    else:
        log = TransactionLog.empty(INITIAL_SNAPSHOT_ID)
        files[layout.transaction_log_key(INITIAL_SNAPSHOT_ID)] = encode_transaction_log(log, level=level)
        last, data = layout.REPO, encode_repo_info(initial_repo_info(created_us, config), level=level)
    assets.write(files)
    require_right_clock(storage, layout.snapshot_key(INITIAL_SNAPSHOT_ID), created_us, now_us())
    storage.flush()
    try:
        storage.create(last, data)
    except VersionMismatchError:
        raise already_there(storage) from None
    except StorageError as error:
        if error.kind is ErrorKind.NOT_DURABLE or not _was_created(storage, last, data):
            raise error from None


def _was_created(storage: Storage, key: str, data: bytes) -> bool:
    """Whether a creation whose answer was lost took place."""
    try:
        return storage.get(key) == data
    except StorageError:
        return False


def _create_v1_config(storage: Storage, data: bytes) -> None:
    """Create-only: a put could replace the configuration of somebody who is making a repository here just now."""
    try:
        storage.create(layout.CONFIG_YAML, data)
    except VersionMismatchError:
        if storage.get(layout.CONFIG_YAML) != data:
            raise InvalidInputError(
                f"{storage.identity} has a config.yaml with other settings: somebody is making a repository there, or "
                f"stopped halfway. Open the repository, or remove config.yaml if nobody else is at work",
                ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
            ) from None
