"""Finding the catalog of a repository: the one place that chooses between spec versions."""

from __future__ import annotations

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.spec_1_ref_files import RefFileCatalog
from icechunk_engine.catalog.spec_2_repo_file import RepoFileCatalog
from icechunk_engine.errors import RepositoryNotFoundError
from icechunk_engine.storage.base import Storage
from icechunk_engine.types import SpecVersion

_CATALOGS: dict[int, type[Catalog]] = {1: RefFileCatalog, 2: RepoFileCatalog}
"""By spec version."""


def open_catalog(assets: AssetManager) -> Catalog:
    """Return a new look at a repository's refs and history, without a request until it is asked something."""
    return _CATALOGS[assets.spec_version](assets)


def find_catalog(assets: AssetManager) -> Catalog:
    """Find out what repository is at a place: one request for spec 2, two for spec 1.

    Parameters
    ----------
    assets
        The place. The spec version that they are made for does not matter.

    Raises
    ------
    RepositoryNotFoundError
        The place holds no repository.
    FormatError
        The place holds something that this library cannot read.
    """
    # ``repo`` first: after an upgrade that was cut short, a repository has the files of both spec versions.
    try:
        return RepoFileCatalog.find(assets)
    except RepositoryNotFoundError as missing:
        try:
            return RefFileCatalog.find(assets)
        except RepositoryNotFoundError:
            raise missing from None


def find_spec_version(storage: Storage) -> SpecVersion | None:
    """Return the spec version of the repository at a place, None if the place holds none."""
    for catalog in (RepoFileCatalog, RefFileCatalog):
        if storage.info(catalog.entry_key()) is not None:
            return catalog.spec_version
    return None
