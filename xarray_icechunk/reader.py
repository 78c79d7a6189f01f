"""Open groups of a session as xarray datasets and trees."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Literal, TypedDict, Unpack

import xarray as xr
import zarr
from xarray.backends import StoreBackendEntrypoint, ZarrStore
from xarray.coders import CFDatetimeCoder, CFTimedeltaCoder

from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icechunk_engine.session import workspace_of

from .chunking import SnapshotVariable
from .codec_pipelines import fuse_codec_pipeline
from .locations import Located, Where, locate

__all__ = ["Decoders", "ReadOptions", "open_group", "open_groups", "open_tree"]


class Decoders(TypedDict, total=False):
    """The arguments that xarray's decoders take; see :func:`xarray.open_dataset`."""

    mask_and_scale: bool | Mapping[str, bool] | None
    decode_times: bool | CFDatetimeCoder | Mapping[str, bool | CFDatetimeCoder] | None
    concat_characters: bool | Mapping[str, bool] | None
    decode_coords: Literal["coordinates", "all"] | bool | None
    drop_variables: str | Iterable[str] | None
    use_cftime: bool | Mapping[str, bool] | None
    decode_timedelta: bool | CFTimedeltaCoder | Mapping[str, bool | CFTimedeltaCoder] | None


class ReadOptions(TypedDict):
    """What to open, and how to decode it."""

    group: str | None
    use_zarr_fill_value_as_mask: bool | None
    where: Where
    decoders: Decoders


def open_group(source: object, **options: Unpack[ReadOptions]) -> xr.Dataset:
    """Open one group as a dataset; ``where`` goes to :func:`~.locations.locate`, ``decoders`` to xarray."""
    located = locate(source, **options["where"])
    return _read(located, _group_path(located, options["group"]), located.source, options)


def open_groups(source: object, **options: Unpack[ReadOptions]) -> dict[str, xr.Dataset]:
    """Open a group and all groups below it, parents first. Keys are paths relative to ``group``, which is ``/``."""
    located = locate(source, **options["where"])
    root = _group_path(located, options["group"])
    name = located.source
    prefix = root.rstrip("/")
    return {
        node.path[len(prefix) :] or "/": _read(located, node.path, name, options)
        for node in workspace_of(located.session).list_nodes(root)
        if not node.is_array
    }


def open_tree(source: object, **options: Unpack[ReadOptions]) -> xr.DataTree:
    """Open a group and all groups below it as a tree."""
    groups = open_groups(source, **options)
    tree = xr.DataTree.from_dict(groups)
    tree.encoding = dict(groups["/"].encoding)
    return tree


def _group_path(located: Located, group: str | None) -> str:
    """Return the absolute path of a group that exists. ``group`` is relative to the group that the URL names.

    Raises
    ------
    NodeNotFoundError
        The group does not exist; the message lists the groups that do.
    InvalidInputError
        ``not-a-group``: the path is an array.
    """
    session = located.session
    path = "/" + "/".join(part for part in (located.path.strip("/"), (group or "").strip("/")) if part)
    node = workspace_of(session).get_node(path)
    if node is None:
        there = [known.path for known in workspace_of(session).list_nodes("/") if not known.is_array]
        listed = ", ".join(there[:20]) + (", …" if len(there) > 20 else "")
        raise NodeNotFoundError(
            f"snapshot {session.snapshot_id} has no group {path!r}. "
            + (f"Its groups are {listed}" if there else "It is still empty: write to it first, and commit")
        )
    if node.is_array:
        raise InvalidInputError(
            f"{path!r} is an array. Open the group that holds it, group={path.rpartition('/')[0] or '/'!r}, and use "
            f"its variable {path.rpartition('/')[2]!r}",
            ErrorKind.NOT_A_GROUP,
        )
    return path


def _read(located: Located, path: str, source: str, options: ReadOptions) -> xr.Dataset:
    store = ZarrStore.open_group(
        located.session.store,
        group=path,
        mode="r",
        consolidated=False,
        zarr_format=3,  # repositories hold no other; without it, zarr looks for files of format 2
        use_zarr_fill_value_as_mask=options["use_zarr_fill_value_as_mask"],
    )
    for node in store.members.values():
        if isinstance(node, zarr.Array):
            fuse_codec_pipeline(node)
    dataset = StoreBackendEntrypoint().open_dataset(store, **options["decoders"])
    return _with_source(dataset, located, f"{source}{path}")


def _with_source(dataset: xr.Dataset, located: Located, source: str) -> xr.Dataset:
    """Return the dataset with variables that know their source. Closing it does nothing."""

    def with_source(name: Hashable) -> xr.Variable:
        variable = dataset.variables[name]
        encoding = {**variable.encoding, "source": source}
        return SnapshotVariable(variable.dims, variable._data, variable.attrs, encoding, fastpath=True)

    result = xr.Dataset(
        {name: with_source(name) for name in dataset.data_vars},
        coords=xr.Coordinates({name: with_source(name) for name in dataset.coords}, indexes={}),
        attrs=dataset.attrs,
    )
    result.set_close(_leave_open)
    if located.location is not None:
        result.encoding["source"] = located.location
    if located.session.read_only:
        result.encoding["snapshot_id"] = located.session.snapshot_id
    return result


def _leave_open() -> None:
    """Do nothing when the dataset is closed: others may use the session that its arrays read through."""
