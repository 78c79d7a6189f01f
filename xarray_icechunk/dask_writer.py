"""Writing dask arrays through forks of a session, and bringing the forks' changes together in a tree.

Each task writes its block through its own copy of a fresh fork and returns that; one graph holds the writes and, for
each array, the merges. Fresh matters: a fork that brought edits along would have every task bring them back, and the
copy that is merged last would undo what the others wrote. A task that runs again writes new chunk objects and returns
a fork that names those; what the lost attempt wrote is referenced by nothing.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import zarr
from dask.base import compute

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.session import ForkSession, Session

from ._xarray_compat import fuse_codec_pipeline

__all__ = ["merge_forks", "reopened", "session_merge_reduction", "store_dask"]

_OURS = ("compute", "return_stored", "load_stored", "lock", "flush")


def store_dask(
    *,
    sources: Sequence[Any],
    targets: Sequence[zarr.Array[Any]],
    regions: Sequence[tuple[slice, ...] | None] | None = None,
    split_every: int | None = None,
    **store_kwargs: Any,
) -> ForkSession:
    """Write dask arrays into zarr arrays of a fork, now.

    Parameters
    ----------
    sources : sequence of dask arrays
    targets : sequence of zarr.Array
        One for each source, opened from the store of a :class:`~icechunk_engine.session.ForkSession`
        (``session.fork().store``) and of the source's shape, or the region's. Blocks that are written in parallel must
        not share a Zarr chunk.
    regions : sequence of tuples of slices, optional
        Where in each target to write; everywhere by default.
    split_every : int, optional
        How many forks one task merges.
    **store_kwargs
        Passed to :func:`dask.compute`, for example ``scheduler`` or ``retries``.

    Returns
    -------
    ForkSession
        The fork of the targets (of the first, if they are of several), with the changes of all tasks: merge it into
        the session, ``session.merge(fork)``. When the graph fails, the forks are as they were.

    Raises
    ------
    InvalidInputError
        Sequences of different lengths, a target that is not of a fork, or an option that this function sets itself.
    """
    if taken := [name for name in _OURS if name in store_kwargs]:
        raise InvalidInputError(
            f"{', '.join(taken)} is decided by the Icechunk writer: leave it out", ErrorKind.NOT_ALLOWED
        )
    regions = [None] * len(sources) if regions is None else list(regions)
    if not sources or not len(sources) == len(targets) == len(regions):
        raise InvalidInputError(
            f"{len(sources)} sources, {len(targets)} targets and {len(regions)} regions: pass one target, and one "
            f"region if any, for each of at least one source",
            ErrorKind.NOT_ALLOWED,
        )
    forks = [_fork_of_array(target) for target in targets]
    fresh = {id(fork): fork.fork() for fork in forks}
    merged = [
        _written(source, _Target(reopened(target, fresh[id(fork)])), region, split_every)
        for source, target, fork, region in zip(sources, targets, forks, regions, strict=True)
    ]
    results = compute(*merged, **store_kwargs)  # type: ignore[no-untyped-call]
    first, *others = {id(fork): fork for fork in forks}.values()
    for home in (first, *others):
        home.merge(merge_forks([result for result, fork in zip(results, forks, strict=True) if fork is home]))
    if others:
        first.merge(*others)
    return first


def session_merge_reduction(arrays: Any, *, split_every: int | None, **store_kwargs: Any) -> ForkSession:
    """Compute dask arrays of written Zarr arrays, and merge the forks that these are of.

    Parameters
    ----------
    arrays : dask array, or sequence of them
        As ``dask.array.store`` returns them with ``return_stored=True``, ``load_stored=False`` and ``compute=False``.
        The targets are arrays of forks of one session, which must not have edits that are not in all of them.
    split_every : int, optional
        How many forks one task merges.
    **store_kwargs
        Passed to :func:`dask.compute`.
    """
    written = list(arrays) if isinstance(arrays, list | tuple) else [arrays]
    if not written:
        raise InvalidInputError("no arrays to merge the forks of: pass at least one", ErrorKind.NOT_ALLOWED)
    merged = [_reduced(blocks, split_every) for blocks in written]
    return merge_forks(list(compute(*merged, **store_kwargs)))  # type: ignore[no-untyped-call]


def reopened(array: zarr.Array[Any], session: Session) -> zarr.Array[Any]:
    """The same array through another session, with the settings that are not in its metadata."""
    config = array.async_array.config
    result = zarr.open_array(session.store, path=array.path, mode="r+", zarr_format=3, config=config)
    fuse_codec_pipeline(result)
    return result


def merge_forks(forks: Any) -> ForkSession:
    """One fork with the changes of all of them; none of them is changed.

    Parameters
    ----------
    forks : ForkSession, or (nested) sequence of them
        Forks of one session. The same object may occur many times, as it does where tasks share memory.
    """
    distinct = list({id(fork): fork for fork in _flattened(forks)}.values())
    first, *others = distinct
    if not others:
        return first
    # dask may hand a task's inputs to it again, when the task is repeated: they must stay as they are.
    merged = _copy(first)
    merged.merge(*others)
    return merged


def _fork_of_array(array: zarr.Array[Any]) -> ForkSession:
    session = getattr(array.store, "session", None)
    if not isinstance(session, ForkSession):
        raise InvalidInputError(
            f"the target array {array.path!r} is not of a fork: open it with zarr.open_array(fork.store, "
            f"path={array.path!r}, mode='r+') where fork = session.fork()",
            ErrorKind.NOT_ALLOWED,
        )
    return session


@dataclass(frozen=True, slots=True)
class _Target:
    """A zarr array as dask stores into it.

    Tokenised by a random id: tokenising a zarr array pickles it some six times, and two equal writes of a session must
    not count as one and the same task.
    """

    array: zarr.Array[Any]
    token: str = field(default_factory=lambda: uuid4().hex)

    def __setitem__(self, index: Any, block: Any) -> None:
        self.array[index] = block

    def __dask_tokenize__(self) -> object:
        return ("icechunk-target", self.token)


def _written(source: Any, target: _Target, region: tuple[slice, ...] | None, split_every: int | None) -> Any:
    """A dask array of one element: the fork with all blocks of this source written."""
    library = _array_library(source)
    blocks = library.store(
        source, target, regions=region, lock=False, compute=False, return_stored=True, load_stored=False
    )
    return _reduced(blocks, split_every)


def _reduced(blocks: Any, split_every: int | None) -> Any:
    """A dask array of one element: the merged forks of those that the blocks are arrays of."""
    return _array_library(blocks).reduction(
        blocks,
        chunk=_fork_of_target,
        aggregate=_merge,
        name="icechunk-merge",
        split_every=split_every,
        concatenate=False,
        keepdims=False,
        dtype=object,
        meta=np.array([object()], dtype=object),
    )


def _array_library(array: Any) -> Any:
    """The public module of the library that a dask array is of: ``dask.array``, or one that follows its interface."""
    parts = type(array).__module__.split(".")
    name = "dask.array" if parts[:2] == ["dask", "array"] else parts[0]
    library = importlib.import_module(name)
    if not (hasattr(library, "store") and hasattr(library, "reduction")):
        raise InvalidInputError(
            f"cannot write a {type(array).__module__}.{type(array).__qualname__} in parallel: it is not a dask array. "
            f"Convert it first, or load it into memory",
            ErrorKind.NOT_ALLOWED,
        )
    return library


# dask calls both functions on empty metadata too, to learn what they return.


def _fork_of_target(target: Any, axis: Any = None, keepdims: Any = None, computing_meta: bool = False) -> Any:
    if computing_meta:
        return np.array([object()], dtype=object)
    return _fork_of_array(target if isinstance(target, zarr.Array) else target.array)


def _merge(forks: Any, axis: Any = None, keepdims: Any = None, computing_meta: bool = False) -> Any:
    return np.array([object()], dtype=object) if computing_meta else merge_forks(forks)


def _flattened(forks: Any) -> Iterator[ForkSession]:
    if isinstance(forks, list | tuple):
        for item in forks:
            yield from _flattened(item)
    elif isinstance(forks, ForkSession):
        yield forks
    else:
        raise InvalidInputError(
            f"only forks can be merged into a fork, not a {type(forks).__name__}. Merge forks into their session "
            f"with session.merge(*forks)",
            ErrorKind.MERGE_NOT_ALLOWED,
        )


def _copy(fork: ForkSession) -> ForkSession:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(fork, protocol=5, buffer_callback=buffers.append)
    copy: ForkSession = pickle.loads(data, buffers=buffers)
    return copy
