"""Append to datasets that other programs append to at the same time."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from typing import Any

import xarray as xr

from icechunk_engine import paths
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.repository import Repository
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.types import Json

from .locations import open_or_create_repository
from .writer import to_icechunk

__all__ = ["append_with_retry"]


def append_with_retry(
    obj: xr.DataArray | xr.Dataset,
    repository: Repository | str | os.PathLike[str],
    *,
    append_dim: Hashable,
    message: str,
    branch: str = "main",
    group: str | None = None,
    metadata: Mapping[str, Json] | None = None,
    encoding: Mapping[Any, Any] | None = None,
    storage_options: Mapping[str, object] | None = None,
    max_attempts: int = 50,
    **options: Any,
) -> str:
    """Append to a dataset and commit, also if other programs append to it at the same time.

    No merge can settle two appends to one array, because both want the same place. So if another commit comes first,
    this function appends again, after the data of that commit. All appends are committed, one after the other.
    :meth:`Repository.commit_with_retry <icechunk_engine.Repository.commit_with_retry>` does the same for any change.

    Parameters
    ----------
    obj : DataArray or Dataset
        Dask arrays are computed again for each attempt.
    repository : Repository, str or os.PathLike
        A repository, or its path or URL. It is created if it does not exist.
    append_dim : hashable
        Dimension along which to append. Variables that do not exist yet are created.
    message : str
        Commit message.
    branch : str
        Branch to commit to.
    group : str, optional
        Path of the group; the root by default.
    metadata : mapping, optional
        JSON values stored with the commit.
    encoding : mapping, optional
        Encodings of variables by name, as for :meth:`xarray.Dataset.to_zarr`. They are used if the variable does not
        exist yet.
    storage_options : mapping, optional
        Options for the URL.
    max_attempts : int
        Maximum number of attempts.
    **options
        Passed to :func:`to_icechunk`, for example ``align_chunks=True``.

    Returns
    -------
    str
        Id of the new snapshot.

    Raises
    ------
    ConflictError
        Another commit came first in all attempts.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> import xarray_icechunk as xi
    >>> for hour in (0, 1):
    ...     step = xr.Dataset({"t": (("time", "x"), np.full((1, 3), 280.0 + hour))}, {"time": [hour]})
    ...     _ = xi.append_with_retry(step, "memory://appended", append_dim="time", message=f"hour {hour}")
    >>> xr.open_dataset("memory://appended", engine="icechunk").time.values
    array([0, 1])
    """
    if isinstance(repository, Repository):
        if storage_options:
            raise InvalidInputError(
                "storage_options belong to a path or URL, but the repository is already open. Leave them out",
                ErrorKind.NOT_ALLOWED,
            )
        repo = repository
    elif isinstance(repository, str | os.PathLike):
        repo = open_or_create_repository(repository, storage_options=storage_options)
    else:
        raise InvalidInputError(
            f"repository must be a Repository, a path or a URL, not {describe(repository)}", ErrorKind.NOT_ALLOWED
        )

    def append(session: Session) -> None:
        # xarray appends only to a dataset that exists, and refuses encodings of variables that exist.
        present = _arrays(session, group)
        how = {**options, "append_dim": append_dim} if present else {**options, "mode": "a"}
        new = {name: chosen for name, chosen in (encoding or {}).items() if name not in present}
        to_icechunk(obj, session, group=group, encoding=new, **how)

    return repo.commit_with_retry(
        append, branch, message=message, metadata=dict(metadata or {}), max_attempts=max_attempts
    )


def _arrays(session: Session, group: str | None) -> set[str]:
    """Return the names of the arrays in a group, which need not exist."""
    nodes = workspace_of(session).children(paths.normalize(group or paths.ROOT))
    return {paths.name(node.path) for node in nodes if node.is_array}
