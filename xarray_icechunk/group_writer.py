"""Write datasets to groups: first all metadata, then the arrays.

xarray creates and resizes the arrays and writes the attributes. Instead of writing the values it passes each array to
:class:`ArrayWrites`. So if xarray raises an error, no value has been written.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import xarray as xr
import zarr
from xarray.backends import ZarrStore

from icechunk_engine.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.transaction.merge import OnOverlap

from ._xarray_compat import validate_encoding, validate_region
from .codec_pipelines import fuse_codec_pipeline
from .datasets_to_write import DatasetToWrite, ZarrWriteModes
from .reopening import reopen

__all__ = ["ArrayWrite", "ArrayWrites", "GroupWrite"]

_PARALLEL_WRITES = 64
"""Number of arrays in memory that are written at the same time over a network."""


@dataclass(slots=True)
class ArrayWrite:
    """An array that xarray wants to write, and the Zarr array that it goes to.

    Attributes
    ----------
    source
        Array in memory, lazily read array, or dask array.
    region
        Part of the target to write; None for all of it.
    """

    source: Any
    target: zarr.Array[Any]
    region: tuple[slice, ...] | None

    def run(self) -> None:
        """Write the values of an array in memory."""
        fuse_codec_pipeline(self.target)
        self.target[self.region or ...] = self.source


@dataclass(slots=True)
class ArrayWrites:
    """The arrays of one call. xarray calls :meth:`add` for each."""

    memory: list[ArrayWrite] = field(default_factory=list)
    dask: list[ArrayWrite] = field(default_factory=list)

    def add(self, source: Any, target: zarr.Array[Any], region: tuple[slice, ...] | None = None) -> None:
        """Note an array to write."""
        kind = self.dask if hasattr(source, "__dask_graph__") else self.memory
        kind.append(ArrayWrite(source, target, region or None))

    def moved_to(self, session: Session) -> ArrayWrites:
        """Return the same writes to the same arrays of another session."""

        def moved(writes: list[ArrayWrite]) -> list[ArrayWrite]:
            return [ArrayWrite(write.source, reopen(write.target, session), write.region) for write in writes]

        return ArrayWrites(moved(self.memory), moved(self.dask))

    def write_memory(self, session: Session) -> None:
        """Write the arrays that are not dask arrays."""
        if not workspace_of(session).storage_is_remote:
            for write in self.memory:
                write.run()
            return
        with ThreadPoolExecutor(_PARALLEL_WRITES) as pool:
            # Leaving the pool waits for all writes, also after an error.
            for future in [pool.submit(write.run) for write in self.memory]:
                future.result()

    def write_dask(
        self, session: Session, split_every: int | None, on_overlap: OnOverlap, options: Mapping[str, Any]
    ) -> None:
        """Write the dask arrays through a fork, and merge the fork."""
        if not self.dask:
            return
        from .dask_writer import store_dask  # dask is an optional dependency

        fork = session.fork()
        merged = store_dask(
            sources=[write.source for write in self.dask],
            targets=[reopen(write.target, fork) for write in self.dask],
            regions=[write.region for write in self.dask],
            split_every=split_every,
            on_overlap=on_overlap,
            **options,
        )
        session.merge(merged, on_overlap=on_overlap)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupWrite:
    """Datasets, the group to write them to, and the options that xarray takes.

    Attributes
    ----------
    group
        Path of the group; None or empty for the root.
    datasets
        Parents before their children.
    """

    group: str | None
    datasets: Sequence[DatasetToWrite]
    mode: ZarrWriteModes
    safe_chunks: bool = True
    align_chunks: bool = False
    write_empty_chunks: bool | None = None

    def write_metadata(self, session: Session) -> ArrayWrites:
        """Create and resize the arrays in a session, write the attributes, and return the arrays to write.

        Raises
        ------
        NodeNotFoundError
            The mode is ``"r+"`` and a group does not exist.
        ValueError, TypeError, FileExistsError
            xarray or zarr refuses the arguments. The session can be partly changed.
        """
        writes = ArrayWrites()
        found: dict[str, Mapping[Hashable, Any]] = {}
        for write in self.datasets:
            try:
                self._write_metadata_of(session, write, writes, found)
            except Exception as error:
                if write.path:
                    error.add_note(f"while writing the node {write.path!r} of the tree")
                raise
        return writes

    def _write_metadata_of(
        self, session: Session, write: DatasetToWrite, writes: ArrayWrites, found: dict[str, Mapping[Hashable, Any]]
    ) -> None:
        target = self._open(session, write, found)
        dataset, found[write.path] = validate_region(target, write.dataset)
        if write.new_only:
            dataset = dataset.drop_vars([name for name in dataset.variables if name in target.array_keys()])
        validate_encoding(target, write.encoding)
        _with_empty_loaded(dataset).dump_to_store(target, writer=writes, encoding=write.encoding)

    def _open(self, session: Session, write: DatasetToWrite, found: Mapping[str, Mapping[Hashable, Any]]) -> ZarrStore:
        path = "/".join(part for part in ((self.group or "").strip("/"), write.path) if part)
        if self.mode == "r+" and workspace_of(session).get_node(f"/{path}") is None:
            raise NodeNotFoundError(
                f"no group {'/' + path!r}. Mode 'r+' and region change existing variables only: write the group "
                f"first, for example with mode='a'"
            )
        region = write.region
        if write.path and isinstance(region, Mapping):
            region = {dim: _found_above(write, dim, part, found) for dim, part in region.items()}
        store: ZarrStore = ZarrStore.open_group(
            session.store,
            group=path or None,
            mode=self.mode,
            zarr_format=3,
            consolidated=False,
            consolidate_on_close=False,
            append_dim=write.append_dim,
            write_region=dict(region) if isinstance(region, Mapping) else region,
            safe_chunks=self.safe_chunks,
            align_chunks=self.align_chunks,
            write_empty=self.write_empty_chunks,
        )
        return store


def _found_above(write: DatasetToWrite, dim: Hashable, part: Any, found: Mapping[str, Mapping[Hashable, Any]]) -> Any:
    """Return the part of a dimension to write. A node that inherits its coordinate takes what was found above."""
    if part != "auto" or dim in write.dataset.coords:
        return part
    path = write.path
    while path:
        path = path.rpartition("/")[0]
        if dim in found.get(path, {}):
            return found[path][dim]
    raise InvalidInputError(
        f"cannot find the region of the node {write.path!r} along {dim!r}: neither the node nor one above it has a "
        f"coordinate {dim!r}. Pass a slice in place of 'auto'",
        ErrorKind.NOT_ALLOWED,
    )


def _with_empty_loaded(dataset: xr.Dataset) -> xr.Dataset:
    """Load dask arrays without elements, because Zarr has no chunks of length 0."""
    result = dataset.copy(deep=False)
    for variable in result.variables.values():
        if variable.size == 0:
            variable.load()
    return result
