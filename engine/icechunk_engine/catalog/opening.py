"""Looking at refs and history, and changing them, in a repository of either spec version."""

from __future__ import annotations

from icechunk_engine._runtime.observing import operation
from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.changes import CatalogChange, describe
from icechunk_engine.catalog.durable_files import settle
from icechunk_engine.catalog.spec_1_ref_files import RefFileCatalog, update_ref_files
from icechunk_engine.catalog.spec_2_repo_file import RepoFileCatalog, update_repo_file
from icechunk_engine.format import layout


def open_catalog(assets: AssetManager) -> Catalog:
    """The refs and history of a repository as they are now."""
    return RefFileCatalog(assets) if assets.spec_version == 1 else RepoFileCatalog(*assets.repo_info())


@operation(lambda assets, update, *_: f"{describe(update)} of {assets.storage.identity}")
def publish(assets: AssetManager, update: CatalogChange, present: Catalog | None = None) -> None:
    """Make one update, all or nothing; tried again while others are faster.

    Parameters
    ----------
    present
        What :func:`references` just gave, to save a request.

    Raises
    ------
    IcechunkError
        The update's own precondition failed; nothing was changed.
    ConflictError
        ``update-attempts-exhausted``.
    """
    if assets.spec_version == 1:
        update_ref_files(assets, update)
    else:
        update_repo_file(assets, update, present if isinstance(present, RepoFileCatalog) else None)


def require_published(assets: AssetManager, branch: str) -> None:
    """Raise StorageError (``not-durable``) if a crash of the machine may undo what was published on a branch."""
    settle(assets.storage, [layout.branch_ref_key(branch) if assets.spec_version == 1 else layout.REPO])
