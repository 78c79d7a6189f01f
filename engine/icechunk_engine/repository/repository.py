"""The class that users open: creating, finding and opening repositories."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from icechunk_engine._runtime.observing import operation
from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.creating import create_repository, require_free
from icechunk_engine.catalog.html_tables import html_table
from icechunk_engine.catalog.opening import find_catalog, find_spec_version
from icechunk_engine.catalog.ref_names import MAIN
from icechunk_engine.config import RepositoryConfig, StorageSettings, resolve
from icechunk_engine.errors import ErrorKind, InvalidInputError, RepositoryNotFoundError
from icechunk_engine.repository.base import Authorizations, require_type
from icechunk_engine.repository.history import HistoryMethods
from icechunk_engine.repository.refs import RefMethods
from icechunk_engine.repository.sessions import SessionMethods
from icechunk_engine.repository.settings import SettingsMethods
from icechunk_engine.session import Session
from icechunk_engine.storage.base import Storage
from icechunk_engine.storage.from_url import as_storage
from icechunk_engine.types import Attribution, SpecVersion
from icechunk_engine.virtual.authorisation import warn_of_missing_credentials

Place = Storage | str | os.PathLike[str]
"""The place of a repository: a storage, a path or a URL."""

DEFAULT_BRANCH = MAIN

_MOST_REFS_SHOWN = 20


class Repository(SettingsMethods, RefMethods, HistoryMethods, SessionMethods):
    """A versioned Zarr hierarchy at one storage location.

    Get one from :meth:`create`, :meth:`open` or :meth:`open_or_create`. You can share it between threads and pickle
    it. It holds no connection and no lock, so you need not close it.
    """

    # --- creating ----------------------------------------------------------------------------------------------

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
        """Create a repository with a branch ``main`` at an empty first snapshot.

        Parameters
        ----------
        storage
            An empty place: a storage, or a path or URL as for :func:`~icechunk_engine.storage.storage_from_url`.
        config
            Settings to persist with the repository. Those that are None follow the defaults.
        authorize_virtual_chunk_access
            URL prefixes of virtual chunk containers that may be read, with credentials.
        spec_version
            Version of the on-disk format, 2 by default. Choose 1 for a repository that old programs must read.
        check_clean_root
            Refuse a place that holds other objects.
        storage_options
            Options for the URL.

        Raises
        ------
        InvalidInputError
            ``parent-directory-not-clean``: the place holds a repository, or something else.
        """
        place = as_storage(storage, storage_options)
        return cls._create(
            place,
            require_type(config, RepositoryConfig, "config"),
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

    # --- opening -----------------------------------------------------------------------------------------------

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
        """Open the repository at a storage location. This takes one request, and three in spec version 1.

        Parameters
        ----------
        storage, storage_options
            As in :meth:`create`.
        config
            Settings on top of the persisted ones. They are not persisted unless you call :meth:`save_config`.

        Raises
        ------
        RepositoryNotFoundError
            The place holds no repository.
        FormatError
            The place holds something that this library cannot read.
        """
        place = as_storage(storage, storage_options)
        return cls._open(
            place, require_type(config, RepositoryConfig, "config"), authorize_virtual_chunk_access, attribution
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
        """Return the repository, and its catalog with what opening has read."""
        warn_of_missing_credentials(authorize_virtual_chunk_access)
        found = find_catalog(_assets_before_opening(storage, config))
        persisted = found.stored_config()
        if persisted is None:
            persisted = RepositoryConfig()
        repository = cls(
            storage,
            persisted.merge(config) if config is not None else persisted,
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
        """Open the repository, or create it if it does not exist.

        The parameters are those of :meth:`open` and :meth:`create`.
        """
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
            # Another program created it in the meantime.
            return cls.open(storage, config, authorize_virtual_chunk_access, attribution)

    open_or_create_async = classmethod(async_twin(open_or_create.__func__))  # type: ignore[attr-defined]

    def reopen(
        self,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
    ) -> Self:
        """Return the same repository with the settings of ``config`` on top of the present ones."""
        config = require_type(config, RepositoryConfig, "config")
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

    # --- finding -----------------------------------------------------------------------------------------------

    @staticmethod
    def exists(
        storage: Place,
        storage_settings: StorageSettings | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> bool:
        """Return whether a place holds a repository.

        Parameters
        ----------
        storage, storage_options
            As in :meth:`create`.
        storage_settings
            Settings for the requests.
        """
        return Repository.fetch_spec_version(storage, storage_settings, storage_options=storage_options) is not None

    exists_async = staticmethod(async_twin(exists))

    @staticmethod
    def fetch_spec_version(
        storage: Place,
        storage_settings: StorageSettings | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> SpecVersion | None:
        """Return the format version of a repository, None if it does not exist; parameters as in :meth:`exists`."""
        place = as_storage(storage, storage_options)
        settings = require_type(storage_settings, StorageSettings, "storage_settings")
        if settings is not None:
            place = place.with_settings(settings)
        return find_spec_version(_assets_before_opening(place).storage)

    fetch_spec_version_async = staticmethod(async_twin(fetch_spec_version))

    @staticmethod
    def fetch_config(storage: Place, *, storage_options: Mapping[str, Any] | None = None) -> RepositoryConfig | None:
        """Return the persisted configuration, None if none was saved. Raises RepositoryNotFoundError."""
        return find_catalog(_assets_before_opening(as_storage(storage, storage_options))).stored_config()

    fetch_config_async = staticmethod(async_twin(fetch_config))

    # --- this object -------------------------------------------------------------------------------------------

    def clear_caches(self) -> None:
        """Drop this process's copies of the repository's files, to read them again.

        Files never change once written. So you need this only if files were damaged or replaced behind the library's
        back. Repositories, sessions and arrays of one place share the copies. All of them stay usable, and open
        sessions keep their snapshot.
        """
        self._assets.clear_caches()

    def _repr_html_(self) -> str:
        catalog = self._catalog()
        rows: list[tuple[str, object]] = [
            ("storage", self._storage.identity),
            ("format", f"version {int(self.spec_version)}"),
            ("branches", ", ".join(sorted(catalog.branches())[:_MOST_REFS_SHOWN])),
            ("tags", ", ".join(sorted(catalog.tags())[:_MOST_REFS_SHOWN]) or "—"),
        ]
        return html_table("icechunk Repository", rows + catalog.overview())


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
    """Open a snapshot for reading, with one request for the repository.

    :meth:`Repository.open` followed by :meth:`Repository.readonly_session` would take two. Parameters and errors are
    those of these methods.
    """
    repository, catalog = Repository._open(storage, config, authorize_virtual_chunk_access, None)
    return repository._readonly_session(catalog, branch, tag, snapshot_id, as_of)


def _assets_before_opening(storage: Storage, config: RepositoryConfig | None = None) -> AssetManager:
    """Return assets to look at a place before its persisted configuration is known."""
    if config is None:
        return AssetManager(storage, resolve(RepositoryConfig()))
    resolved = resolve(config)
    return AssetManager(storage.with_settings(resolved.storage), resolved)


def _known_version(spec_version: SpecVersion | int) -> SpecVersion:
    try:
        return SpecVersion(spec_version)
    except ValueError:
        raise InvalidInputError(
            f"Unsupported version {spec_version}: repositories are created in spec version 2, or 1",
            ErrorKind.UNSUPPORTED_OPERATION_FOR_VERSION,
        ) from None
