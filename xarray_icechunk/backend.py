"""The xarray engine ``icechunk``: the methods that xarray calls.

xarray imports this module each time it lists its engines, and calls
:meth:`IcechunkBackendEntrypoint.guess_can_open` for all kinds of files. So this module must stay quick to import: it
imports nothing but xarray until you open something.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

import xarray
from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    import datetime as dt

    from xarray import Dataset, DataTree
    from xarray.coders import CFDatetimeCoder, CFTimedeltaCoder

    from icechunk_engine.config import RepositoryConfig
    from icechunk_engine.repository import Authorizations

    from .locations import Source, Where
    from .reader import Decoders, ReadOptions

_MAGIC = b"ICE\xf0\x9f\xa7\x8aCHUNK"
"""The first bytes of every Icechunk file (spec, *File header*)."""

_WHERE = (
    "branch",
    "tag",
    "snapshot_id",
    "as_of",
    "storage_options",
    "config",
    "authorize_virtual_chunk_access",
)
"""Parameters that say what to open. All others say how to decode it."""

_OWN_CLASSES = (
    ("icechunk_engine.repository", "Repository"),
    ("icechunk_engine.session", "Session"),
    ("icechunk_engine.store", "IcechunkStore"),
)


class IcechunkBackendEntrypoint(BackendEntrypoint):
    """Open groups of Icechunk repositories: ``xr.open_dataset(location, engine="icechunk", branch="main")``.

    The first argument is the path or URL of a repository, or a
    :class:`~icechunk_engine.repository.Repository`, :class:`~icechunk_engine.session.Session` or
    :class:`~icechunk_engine.store.IcechunkStore`. All three methods take these parameters:

    Parameters
    ----------
    group : str, optional
        Path of the group to open; the root by default.
    branch, tag, snapshot_id, as_of : optional
        What to open: the newest snapshot of a branch (default ``"main"``), a tag, a snapshot, or the branch as it was
        at some time (an aware datetime, or ISO 8601 text with an offset). Not allowed with a session or store, which
        already has its snapshot.
    storage_options : mapping, optional
        Options for the storage that the URL names.
    config : RepositoryConfig, optional
        Settings that override the configuration stored in the repository.
    authorize_virtual_chunk_access : mapping of str to credentials, optional
        URL prefixes of virtual chunks that may be read. By default none.
    use_zarr_fill_value_as_mask : bool, optional
        Read the Zarr fill value as missing data, as for Zarr format 2. False by default.
    consolidated, zarr_format : optional
        Accepted so that programs written for xarray's Zarr engine run: False or None, and 3 or None.
    mask_and_scale, decode_times, concat_characters, decode_coords, use_cftime, decode_timedelta, drop_variables
        As in :func:`xarray.open_dataset`.
    """

    description: ClassVar[str] = "Open Icechunk repositories using xarray-icechunk"
    url: ClassVar[str] = "https://github.com/xarray-icechunk/xarray-icechunk"
    supports_groups: ClassVar[bool] = True

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Return True for a local repository or one of our objects. Looks at two files at most and never raises."""
        if isinstance(filename_or_obj, str | os.PathLike):
            path = _local_path(os.fspath(filename_or_obj))
            return path is not None and _holds_repository(path)
        # If a class has not been imported, no object of it exists.
        classes = [getattr(sys.modules.get(module), name, None) for module, name in _OWN_CLASSES]
        return isinstance(filename_or_obj, tuple(cls for cls in classes if cls is not None))

    def open_dataset(
        self,
        filename_or_obj: object,
        *,
        mask_and_scale: bool | Mapping[str, bool] | None = True,
        decode_times: bool | CFDatetimeCoder | Mapping[str, bool | CFDatetimeCoder] | None = True,
        concat_characters: bool | Mapping[str, bool] | None = True,
        decode_coords: Literal["coordinates", "all"] | bool | None = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: bool | Mapping[str, bool] | None = None,
        decode_timedelta: bool | CFTimedeltaCoder | Mapping[str, bool | CFTimedeltaCoder] | None = None,
        group: str | None = None,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        as_of: dt.datetime | str | None = None,
        storage_options: Mapping[str, object] | None = None,
        config: RepositoryConfig | None = None,
        authorize_virtual_chunk_access: Authorizations | None = None,
        use_zarr_fill_value_as_mask: bool | None = None,
        consolidated: bool | None = None,
        zarr_format: int | None = None,
    ) -> Dataset:
        """Open one group. The class documents the parameters."""
        from .reader import open_group
        from .zarr_engine_options import check_zarr_engine_options

        check_zarr_engine_options(consolidated=consolidated, zarr_format=zarr_format)
        return open_group(
            filename_or_obj,
            group=group,
            use_zarr_fill_value_as_mask=use_zarr_fill_value_as_mask,
            where={
                "branch": branch,
                "tag": tag,
                "snapshot_id": snapshot_id,
                "as_of": as_of,
                "storage_options": storage_options,
                "config": config,
                "authorize_virtual_chunk_access": authorize_virtual_chunk_access,
            },
            decoders={
                "mask_and_scale": mask_and_scale,
                "decode_times": decode_times,
                "concat_characters": concat_characters,
                "decode_coords": decode_coords,
                "drop_variables": drop_variables,
                "use_cftime": use_cftime,
                "decode_timedelta": decode_timedelta,
            },
        )

    def open_groups_as_dict(self, filename_or_obj: object, **kwargs: Any) -> dict[str, Dataset]:
        """Open a group and all groups below it. Takes the keywords of :meth:`open_dataset`.

        The keys of the result are paths relative to ``group``.
        """
        from .reader import open_groups

        return open_groups(filename_or_obj, **_read_options(kwargs))

    def open_datatree(self, filename_or_obj: object, **kwargs: Any) -> DataTree:
        """Open ``group`` and all groups below it as a tree. Takes the keywords of :meth:`open_dataset`."""
        from .reader import open_tree

        return open_tree(filename_or_obj, **_read_options(kwargs))


def _read_options(kwargs: dict[str, Any]) -> ReadOptions:
    """Check the keywords of :meth:`IcechunkBackendEntrypoint.open_dataset`, and group them for :mod:`.reader`."""
    known = inspect.signature(IcechunkBackendEntrypoint.open_dataset).parameters
    for name in kwargs:
        if name not in known or name in ("self", "filename_or_obj"):
            raise TypeError(f"the icechunk engine has no parameter {name!r}; it has {', '.join(list(known)[2:])}")
    from .zarr_engine_options import check_zarr_engine_options

    check_zarr_engine_options(
        consolidated=kwargs.pop("consolidated", None), zarr_format=kwargs.pop("zarr_format", None)
    )
    return {
        "group": kwargs.pop("group", None),
        "use_zarr_fill_value_as_mask": kwargs.pop("use_zarr_fill_value_as_mask", None),
        "where": cast("Where", {name: kwargs.pop(name) for name in _WHERE if name in kwargs}),
        "decoders": cast("Decoders", kwargs),
    }


# xarray finds this out by itself only for engines named by a string. Without this assignment, ``decode_cf=False``
# fails if you pass the class itself as ``engine=``.
IcechunkBackendEntrypoint.open_dataset_parameters = tuple(
    inspect.signature(IcechunkBackendEntrypoint.open_dataset).parameters
)[1:]


def open_dataset(source: Source, **kwargs: Any) -> Dataset:
    """Open a group of an Icechunk repository: :func:`xarray.open_dataset` with the ``icechunk`` engine.

    It also works if the package was not installed and xarray does not know the engine's name. For the keywords see
    :class:`IcechunkBackendEntrypoint` and :func:`xarray.open_dataset`.
    """
    return xarray.open_dataset(source, engine=IcechunkBackendEntrypoint, **kwargs)  # type: ignore[arg-type]


def open_datatree(source: Source, **kwargs: Any) -> DataTree:
    """Open a group and all groups below it: :func:`xarray.open_datatree` with the ``icechunk`` engine.

    For the keywords see :class:`IcechunkBackendEntrypoint` and :func:`xarray.open_datatree`.
    """
    return xarray.open_datatree(source, engine=IcechunkBackendEntrypoint, **kwargs)  # type: ignore[arg-type]


def _local_path(location: str) -> Path | None:
    """Return the folder that a location names, or None if it is not on a local file system."""
    if "://" not in location and "::" not in location:
        return Path(location).expanduser()
    try:
        parts = urlsplit(location)
    except ValueError:
        return None
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _holds_repository(path: Path) -> bool:
    try:
        with (path / "repo").open("rb") as file:  # spec version 2
            return file.read(len(_MAGIC)) == _MAGIC
    except (OSError, ValueError):
        pass
    try:
        return (path / "refs").is_dir() and (path / "snapshots").is_dir()  # spec version 1
    except (OSError, ValueError):
        return False
