"""Groups of a session as xarray datasets and trees."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import xarray as xr
import zarr
from xarray.backends import StoreBackendEntrypoint, ZarrStore

from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icechunk_engine.session import workspace_of

from ._xarray_compat import fuse_codec_pipeline
from .chunking import SnapshotVariable
from .locations import Located, locate

__all__ = ["open_group", "open_groups", "open_tree"]


def open_group(
    source: Any,
    *,
    group: str | None,
    use_zarr_fill_value_as_mask: bool | None,
    where: Mapping[str, Any],
    decoders: Mapping[str, Any],
) -> xr.Dataset:
    """One group as a dataset; ``where`` goes to :func:`~.locations.locate`, ``decoders`` to xarray."""
    located = locate(source, **where)
    path = _group_path(located, group)
    return _read(located, path, located.source, use_zarr_fill_value_as_mask, decoders)


def open_groups(
    source: Any,
    *,
    group: str | None,
    use_zarr_fill_value_as_mask: bool | None,
    where: Mapping[str, Any],
    decoders: Mapping[str, Any],
) -> dict[str, xr.Dataset]:
    """A group and all groups below it, in tree order; keys are absolute paths with ``group`` as the root."""
    located = locate(source, **where)
    root = _group_path(located, group)
    name = located.source
    prefix = root.rstrip("/")
    return {
        node.path[len(prefix) :] or "/": _read(located, node.path, name, use_zarr_fill_value_as_mask, decoders)
        for node in workspace_of(located.session).list_nodes(root)
        if not node.is_array
    }


def open_tree(source: Any, **kwargs: Any) -> xr.DataTree:
    """A group and all groups below it as a tree; parameters as for :func:`open_groups`."""
    groups = open_groups(source, **kwargs)
    tree = xr.DataTree.from_dict(groups)
    tree.encoding = dict(groups["/"].encoding)
    return tree


def _group_path(located: Located, group: str | None) -> str:
    """The absolute path of a group that exists; ``group`` is below the group that the URL names.

    Raises
    ------
    NodeNotFoundError
        Nothing there; the message lists what is.
    InvalidInputError
        ``not-a-group``: an array.
    """
    session = located.session
    path = "/" + "/".join(part for part in (located.path.strip("/"), (group or "").strip("/")) if part)
    node = workspace_of(session).get_node(path)
    if node is None:
        there = [known.path for known in workspace_of(session).list_nodes("/") if not known.is_array]
        listed = ", ".join(there[:20]) + (", …" if len(there) > 20 else "")
        raise NodeNotFoundError(
            f"there is no group {path!r} in snapshot {session.snapshot_id}. "
            + (f"Groups there: {listed}" if there else "It holds nothing yet: write to it first, and commit")
        )
    if node.is_array:
        raise InvalidInputError(
            f"{path!r} is an array: open the group that holds it, group={path.rpartition('/')[0] or '/'!r}, and take "
            f"the variable {path.rpartition('/')[2]!r} of it",
            ErrorKind.NOT_A_GROUP,
        )
    return path


def _read(
    located: Located,
    path: str,
    source: str,
    use_zarr_fill_value_as_mask: bool | None,
    decoders: Mapping[str, Any],
) -> xr.Dataset:
    store = ZarrStore.open_group(
        located.session.store,
        group=path,
        mode="r",
        consolidated=False,
        zarr_format=3,  # the only one there is: spares zarr the search for others
        use_zarr_fill_value_as_mask=use_zarr_fill_value_as_mask,
    )
    for node in store.members.values():
        if isinstance(node, zarr.Array):
            fuse_codec_pipeline(node)
    dataset = StoreBackendEntrypoint().open_dataset(store, **decoders)
    return _named(dataset, located, f"{source}{path}")


def _named(dataset: xr.Dataset, located: Located, source: str) -> xr.Dataset:
    """The same dataset of variables that know where they come from, closing which does nothing."""

    def named(name: Hashable) -> xr.Variable:
        variable = dataset.variables[name]
        encoding = {**variable.encoding, "source": source}
        return SnapshotVariable(variable.dims, variable._data, variable.attrs, encoding, fastpath=True)

    result = xr.Dataset(
        {name: named(name) for name in dataset.data_vars},
        coords=xr.Coordinates({name: named(name) for name in dataset.coords}, indexes={}),
        attrs=dataset.attrs,
    )
    result.set_close(_leave_open)
    if located.location is not None:
        result.encoding["source"] = located.location
    if located.session.read_only:
        result.encoding["snapshot_id"] = located.session.snapshot_id
    return result


def _leave_open() -> None:
    """What ``Dataset.close`` calls: the session that the arrays read through belongs to others."""
