"""Write xarray objects into a session. Dask arrays are written in parallel through forks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import xarray as xr
import zarr
from xarray.backends import ZarrStore

from icechunk_engine.errors import ErrorKind, InvalidInputError, ReadOnlyError
from icechunk_engine.errors.foreign import describe
from icechunk_engine.session import Session, workspace_of

from ._xarray_compat import validate_encoding, validate_region
from .codec_pipelines import fuse_codec_pipeline
from .zarr_engine_options import check_zarr_engine_options

__all__ = ["to_icechunk"]

Region = Mapping[str, slice | Literal["auto"]] | Literal["auto"] | None
ZarrWriteModes = Literal["w", "w-", "a", "a-", "r+"]

_PARALLEL_WRITES = 64
"""Number of arrays in memory that are written at the same time over a network."""

# xarray's names for a DataArray that has no name, or the name of a coordinate. xarray.open_dataarray knows them.
_DATAARRAY_NAME = "__xarray_dataarray_name__"
_DATAARRAY_VARIABLE = "__xarray_dataarray_variable__"


def to_icechunk(
    obj: xr.DataArray | xr.Dataset | xr.DataTree,
    session: Session,
    *,
    group: str | None = None,
    mode: ZarrWriteModes | None = None,
    safe_chunks: bool = True,
    align_chunks: bool = False,
    append_dim: Hashable | None = None,
    region: Region = None,
    encoding: Mapping[Any, Any] | None = None,
    chunkmanager_store_kwargs: MutableMapping[Any, Any] | None = None,
    split_every: int | None = None,
    write_inherited_coords: bool = False,
    consolidated: bool | None = None,
    zarr_format: int | None = None,
) -> None:
    """Write an xarray object to a group of a session. You commit the session yourself.

    This process writes arrays in memory. One dask graph writes all dask arrays with whatever scheduler is active
    (threads, processes or a cluster). When the function returns, the session has all edits.

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
    session : Session
        Writable.
    group : str, optional
        Path of the group to write to; the root by default. Missing groups are created.
    mode : {"w", "w-", "a", "a-", "r+"}, optional
        ``"w"`` replaces the group and everything below it. ``"w-"`` creates it, and fails if it exists. ``"a"``
        overwrites variables and adds new ones. ``"a-"`` with ``append_dim`` writes only variables with that dimension,
        and new ones. ``"r+"`` only changes values of existing variables. The default is ``"a"`` with ``append_dim``,
        ``"r+"`` with ``region``, and otherwise ``"w-"``.
    safe_chunks : bool
        Raise an error if two dask chunks would write to one Zarr chunk or, in mode ``"r+"``, if a region covers only
        part of a Zarr chunk. If you turn this off, such writes can lose data.
    align_chunks : bool
        Rechunk dask arrays to the Zarr chunks instead of raising that error.
    append_dim : hashable, optional
        Dimension along which to append to existing variables.
    region : mapping of dimensions to slices or "auto", or "auto", optional
        Write into this part of existing variables. ``"auto"`` finds the part by the values of the coordinates. Each
        variable must have at least one of these dimensions. Index coordinates are not written.
    encoding : mapping, optional
        Variable names to encodings, as for :meth:`xarray.Dataset.to_zarr`. For a tree, group paths to such mappings.
    chunkmanager_store_kwargs : mapping, optional
        Passed to :func:`dask.compute`, for example ``{"retries": 2}``.
    split_every : int, optional
        Number of forks that one dask task merges.
    write_inherited_coords : bool
        For a tree: also write coordinates to the nodes that inherit them.
    consolidated, zarr_format : optional
        Accepted so that programs written for :meth:`xarray.Dataset.to_zarr` run: False or None, and 3 or None.

    Raises
    ------
    ReadOnlyError
        The session is read-only.
    ValueError, TypeError
        xarray rejects the arguments.

    Notes
    -----
    If the call fails, the session is as it was before. This also undoes edits that other threads make in the session
    during the call. Nothing refers to the chunks that were already written, and garbage collection deletes them.

    Do not write a dataset that was opened lazily from this session back over itself with mode ``"w"``: its data are
    deleted before they are read.
    """
    if not isinstance(session, Session):
        raise InvalidInputError(
            f"session must be a Session, such as repository.writable_session(branch), not {describe(session)}",
            ErrorKind.NOT_ALLOWED,
        )
    if session.read_only:
        raise ReadOnlyError(
            "the session is read-only. Use repository.writable_session(branch), and start a new session after a commit"
        )
    check_zarr_engine_options(consolidated=consolidated, zarr_format=zarr_format)
    if isinstance(obj, xr.DataTree) and (append_dim is not None or region is not None):
        raise InvalidInputError(
            "append_dim and region work for one dataset, not for a tree. Write the nodes one by one, with group=",
            ErrorKind.NOT_ALLOWED,
        )
    chosen_mode = _mode(mode, append_dim, region)
    datasets = _datasets(obj, encoding or {}, write_inherited_coords)
    for dataset, _ in datasets.values():
        _check_names(dataset)

    with session.all_or_nothing():
        root = ZarrStore.open_group(
            session.store,
            group=group,
            mode=chosen_mode,
            zarr_format=3,
            consolidated=False,
            consolidate_on_close=False,
            append_dim=append_dim,
            write_region=dict(region) if isinstance(region, Mapping) else region,
            safe_chunks=safe_chunks,
            align_chunks=align_chunks,
        )
        writes = _Writes()
        for path, (dataset, dataset_encoding) in datasets.items():
            target = root if path == "" else root.get_child_store(path)
            checked = _with_empty_loaded(validate_region(target, dataset))
            validate_encoding(target, dataset_encoding)
            # Creates and resizes arrays, writes attributes, and passes the data to ``writes``.
            checked.dump_to_store(target, writer=writes, encoding=dataset_encoding)
        writes.write_memory(session)
        writes.write_dask(session, split_every, chunkmanager_store_kwargs or {})


@dataclass(slots=True)
class _Write:
    source: Any
    target: zarr.Array[Any]
    region: tuple[slice, ...] | None

    def run(self) -> None:
        """Write the values of an array in memory."""
        fuse_codec_pipeline(self.target)
        self.target[self.region or ...] = self.source


@dataclass(slots=True)
class _Writes:
    """Collects the arrays that xarray wants to write. xarray calls :meth:`add`."""

    memory: list[_Write] = field(default_factory=list)
    dask: list[_Write] = field(default_factory=list)

    def add(self, source: Any, target: zarr.Array[Any], region: tuple[slice, ...] | None = None) -> None:
        kind = self.dask if hasattr(source, "__dask_graph__") else self.memory
        kind.append(_Write(source, target, region or None))

    def write_memory(self, session: Session) -> None:
        if not workspace_of(session).storage_is_remote:
            for write in self.memory:
                write.run()
            return
        with ThreadPoolExecutor(_PARALLEL_WRITES) as pool:
            # Leaving the pool waits for all writes, also after an error.
            for future in [pool.submit(write.run) for write in self.memory]:
                future.result()

    def write_dask(self, session: Session, split_every: int | None, options: Mapping[str, Any]) -> None:
        if not self.dask:
            return
        from .dask_writer import reopen, store_dask  # dask is an optional dependency

        fork = session.fork()
        merged = store_dask(
            sources=[write.source for write in self.dask],
            targets=[reopen(write.target, fork) for write in self.dask],
            regions=[write.region for write in self.dask],
            split_every=split_every,
            **options,
        )
        session.merge(merged)


def _mode(mode: ZarrWriteModes | None, append_dim: Hashable | None, region: Region) -> ZarrWriteModes:
    if mode is None:
        mode = "a" if append_dim is not None else "r+" if region is not None else "w-"
    if mode not in ("w", "w-", "a", "a-", "r+"):
        raise InvalidInputError(
            f"mode={mode!r} is not supported: choose 'w', 'w-', 'a', 'a-' or 'r+'", ErrorKind.NOT_ALLOWED
        )
    if append_dim is not None and mode not in ("a", "a-"):
        raise InvalidInputError(f"append_dim needs mode 'a' or 'a-', not {mode!r}", ErrorKind.NOT_ALLOWED)
    if region is not None and mode not in ("a", "a-", "r+"):
        raise InvalidInputError(f"region needs mode 'r+', 'a' or 'a-', not {mode!r}", ErrorKind.NOT_ALLOWED)
    return mode


def _datasets(
    obj: xr.DataArray | xr.Dataset | xr.DataTree, encoding: Mapping[Any, Any], write_inherited_coords: bool
) -> dict[str, tuple[xr.Dataset, Mapping[Any, Any]]]:
    """Return the datasets to write and their encodings, by path relative to the group."""
    if isinstance(obj, xr.Dataset):
        return {"": (obj, encoding)}
    if isinstance(obj, xr.DataArray):
        return {"": (_as_dataset(obj), encoding)}
    if not isinstance(obj, xr.DataTree):
        raise InvalidInputError(
            f"cannot write a {type(obj).__name__}: pass a DataArray, Dataset or DataTree", ErrorKind.NOT_ALLOWED
        )
    if unknown := set(encoding) - set(obj.groups):
        raise InvalidInputError(
            f"encoding has groups that are not in the tree: {sorted(unknown)}. Use paths from {obj.groups}",
            ErrorKind.NOT_ALLOWED,
        )
    return {
        "" if node is obj else path: (
            node.to_dataset(inherit=write_inherited_coords or node is obj),
            encoding.get(node.path, {}),
        )
        for path, node in obj.subtree_with_keys
    }


def _as_dataset(array: xr.DataArray) -> xr.Dataset:
    if array.name is None:
        return array.to_dataset(name=_DATAARRAY_VARIABLE)
    if array.name in array.coords or array.name in array.dims:
        dataset = array.to_dataset(name=_DATAARRAY_VARIABLE)
        dataset.attrs[_DATAARRAY_NAME] = array.name
        return dataset
    return array.to_dataset()


def _with_empty_loaded(dataset: xr.Dataset) -> xr.Dataset:
    """Load dask arrays without elements, because Zarr has no chunks of length 0."""
    result = dataset.copy(deep=False)
    for variable in result.variables.values():
        if variable.size == 0:
            variable.load()
    return result


def _check_names(dataset: xr.Dataset) -> None:
    for name in dataset.variables:
        if not isinstance(name, str) or not name:
            raise InvalidInputError(
                f"cannot write a variable named {name!r}: names must be non-empty strings. Use Dataset.rename",
                ErrorKind.NOT_ALLOWED,
            )
