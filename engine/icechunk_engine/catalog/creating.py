"""Creating a repository.

A new repository becomes visible with its last file: ``repo`` in spec 2, the file of branch ``main`` in spec 1. That
file is created only if it does not exist, so of several programs that create a repository at one place, one wins. The
other files are the same for all of them but for the time, so it does no harm that each writes them. A creation that
was cut short leaves files that the next one writes again.
"""

from __future__ import annotations

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.clock_check import now_us, require_right_clock
from icechunk_engine.catalog.opening import find_spec_version, open_catalog
from icechunk_engine.errors import ErrorKind, InvalidInputError, ReadOnlyError, StorageError, VersionMismatchError
from icechunk_engine.format import layout
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID
from icechunk_engine.storage.base import PROBE_PREFIX, Storage
from icechunk_engine.types import JsonObject

_LEFT_BEHIND = {layout.snapshot_key(INITIAL_SNAPSHOT_ID), layout.transaction_log_key(INITIAL_SNAPSHOT_ID)}
"""Objects that an interrupted creation leaves. They must not keep you from creating the repository again."""


def require_free(storage: Storage, check_clean_root: bool) -> None:
    """Raise an error if no repository can be created at a place: one request, three if it holds other objects.

    Raises
    ------
    ReadOnlyError
        ``read-only-storage``.
    InvalidInputError
        ``parent-directory-not-clean``: the place holds a repository, or, with ``check_clean_root``, any other object.
    """
    if storage.read_only:
        raise ReadOnlyError(
            f"the storage used by this Icechunk repository is read-only: cannot create one at {storage.identity}. "
            f"Choose a place that can be written to",
            ErrorKind.READ_ONLY_STORAGE,
        )
    others = (
        info for info in storage.list() if info.key not in _LEFT_BEHIND and not info.key.startswith(PROBE_PREFIX)
    )
    found = next(others, None) if check_clean_root else None
    if (found is not None or not check_clean_root) and find_spec_version(storage) is not None:
        raise _already_exists(storage)
    if found is not None:
        raise InvalidInputError(
            f"repositories can only be created in clean prefixes, and {storage.identity} is not empty: it holds "
            f"{found.key!r}. Choose an empty place, or pass check_clean_root=False if nothing else will ever write "
            f"there",
            ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
        )


def create_repository(assets: AssetManager, config: JsonObject | None) -> None:
    """Write the files of a new repository, the one that makes it visible last.

    Parameters
    ----------
    assets
        The place, and the spec version to write.
    config
        Persisted form of the configuration.

    Raises
    ------
    InvalidInputError
        ``parent-directory-not-clean``: another program created one in the meantime.
    FormatError
        ``snapshot-timestamp``: this machine's clock is wrong.
    """
    created_us, storage = now_us(), assets.storage
    files = open_catalog(assets).first_files(created_us, config)
    if files.config is not None:
        _create_config(storage, *files.config)
    assets.write(files.others)
    require_right_clock(storage, layout.snapshot_key(INITIAL_SNAPSHOT_ID), created_us, now_us())
    storage.flush()
    key, data = files.visible
    try:
        storage.create(key, data)
    except VersionMismatchError:
        raise _already_exists(storage) from None
    except StorageError as error:
        if error.kind is ErrorKind.NOT_DURABLE or not _was_created(storage, key, data):
            raise error from None


def _already_exists(storage: Storage) -> InvalidInputError:
    return InvalidInputError(
        f"repositories can only be created in clean prefixes, and {storage.identity} already holds a repository. "
        f"Open it with Repository.open(storage)",
        ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
    )


def _was_created(storage: Storage, key: str, data: bytes) -> bool:
    """Return whether an object was created although the answer was lost."""
    try:
        return storage.get(key) == data
    except StorageError:
        return False


def _create_config(storage: Storage, key: str, data: bytes) -> None:
    """Create the configuration file, never replace it: another program may be creating a repository here right now."""
    try:
        storage.create(key, data)
    except VersionMismatchError:
        if storage.get(key) != data:
            raise InvalidInputError(
                f"{storage.identity} has a {key} with other settings: another program is creating a repository "
                f"there, or stopped halfway. Open the repository, or remove {key} if nobody else is at work",
                ErrorKind.PARENT_DIRECTORY_NOT_CLEAN,
            ) from None
