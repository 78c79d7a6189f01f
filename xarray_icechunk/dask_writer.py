"""Write dask arrays in parallel through forks of a session, and merge the forks in a tree.

One graph holds all writes and, for each array, the merges. Each task writes its block through its own copy of a fork
and returns that copy. The merged fork has the edits of all tasks.

The fork that tasks copy must have no edits. Otherwise each task would receive and return these edits, too.

Dask may lose a task's result and run the task again. The second run writes new chunk objects and returns a fork that
refers to them. Nothing refers to the chunks of the lost run.
"""

from __future__ import annotations

import functools
import importlib
import pickle
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from uuid import uuid4

import numpy as np
import zarr
from dask.base import compute
from numpy.typing import NDArray

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.session import ForkSession, fork_for_graph
from icechunk_engine.transaction.merge import OnOverlap

from ._xarray_compat import places_of_blocks
from .reopening import reopen

__all__ = ["DaskArray", "ZarrArray", "merge_forks", "session_merge_reduction", "store_dask", "store_graph"]

_OURS = ("compute", "return_stored", "load_stored", "lock", "flush")

type ZarrArray = zarr.Array[Any]
type Forks = ForkSession | Sequence[Forks]


class DaskArray(Protocol):
    """A dask array, or an array of a library with the same interface."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]: ...
    def __dask_graph__(self) -> Mapping[Hashable, object] | None: ...


class _ArrayLibrary(Protocol):
    """The functions of ``dask.array`` that are used here."""

    def map_blocks(self, function: object, *arguments: object, **options: object) -> DaskArray: ...
    def reduction(self, array: DaskArray, **options: object) -> DaskArray: ...


def store_dask(
    *,
    sources: Sequence[DaskArray],
    targets: Sequence[ZarrArray],
    regions: Sequence[tuple[slice, ...] | None] | None = None,
    split_every: int | None = None,
    on_overlap: OnOverlap = "raise",
    **store_kwargs: object,
) -> ForkSession:
    """Compute dask arrays and write them into zarr arrays of a fork.

    Parameters
    ----------
    sources : sequence of dask arrays
    targets : sequence of zarr.Array
        One for each source, opened from the store of a :class:`~icechunk_engine.session.ForkSession`
        (``session.fork().store``). It has the shape of the source, unless you give a region. Two dask blocks must not
        share a Zarr chunk.
    regions : sequence of tuples of slices, optional
        The part of each target to write. By default all of it.
    split_every : int, optional
        Number of forks that one task merges.
    on_overlap : {"raise", "last"}
        If two blocks write to one Zarr chunk: raise an error, or let one of them win. See :meth:`Session.merge`.
    **store_kwargs
        Passed to :func:`dask.compute`, for example ``scheduler`` or ``retries``.

    Returns
    -------
    ForkSession
        The fork that the targets belong to (that of the first target, if they belong to several), with the edits of
        all tasks. Merge it into the session with ``session.merge(fork)``. If the graph fails, the forks are as they
        were.

    Raises
    ------
    InvalidInputError
        The sequences have different lengths, a target does not belong to a fork, a source does not fit its target, or
        you pass an option that this function sets. Nothing is written.

    Examples
    --------
    >>> import dask.array as da
    >>> import icechunk_engine as icechunk
    >>> import zarr
    >>> repo = icechunk.Repository.create(icechunk.in_memory_storage())
    >>> session = repo.writable_session("main")
    >>> _ = zarr.create_array(session.store, name="a", shape=(6,), chunks=(2,), dtype="i8")
    >>> fork = session.fork()  # after the array was created
    >>> target = zarr.open_array(fork.store, path="a", mode="r+")
    >>> session.merge(store_dask(sources=[da.arange(6, chunks=2)], targets=[target]))
    >>> _ = session.commit("six numbers")
    >>> zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    array([0, 1, 2, 3, 4, 5])
    """
    if taken := [name for name in _OURS if name in store_kwargs]:
        raise InvalidInputError(f"store_dask sets {', '.join(taken)} itself: leave it out", ErrorKind.NOT_ALLOWED)
    regions = [None] * len(sources) if regions is None else list(regions)
    if not sources or not len(sources) == len(targets) == len(regions):
        raise InvalidInputError(
            f"got {len(sources)} sources, {len(targets)} targets and {len(regions)} regions: pass at least one "
            f"source, one target for each, and one region for each or none at all",
            ErrorKind.NOT_ALLOWED,
        )
    forks = [_fork_of_array(target) for target in targets]
    fresh = {id(fork): fork_for_graph(fork) for fork in forks}
    merged = [
        store_graph(source, reopen(target, fresh[id(fork)]), region, split_every, on_overlap)
        for source, target, fork, region in zip(sources, targets, forks, regions, strict=True)
    ]
    results = compute(*merged, **store_kwargs)
    first, *others = {id(fork): fork for fork in forks}.values()
    for parent in (first, *others):
        own = [result for result, fork in zip(results, forks, strict=True) if fork is parent]
        parent.merge(merge_forks(own, on_overlap=on_overlap), on_overlap=on_overlap)
    if others:
        first.merge(*others, on_overlap=on_overlap)
    return first


def session_merge_reduction(
    arrays: DaskArray | Sequence[DaskArray], *, split_every: int | None, **store_kwargs: object
) -> ForkSession:
    """Compute the results of ``dask.array.store``, and merge the forks of the arrays that it wrote.

    Parameters
    ----------
    arrays : dask array, or sequence of them
        Returned by ``dask.array.store`` with ``return_stored=True``, ``load_stored=False`` and ``compute=False``. The
        targets belong to forks of one session, all of which have the same edits.
    split_every : int, optional
        Number of forks that one task merges.
    **store_kwargs
        Passed to :func:`dask.compute`.
    """
    written = list(arrays) if isinstance(arrays, list | tuple) else [cast(DaskArray, arrays)]
    if not written:
        raise InvalidInputError("got no arrays: pass at least one", ErrorKind.NOT_ALLOWED)
    merged = [_merge_graph(blocks, split_every) for blocks in written]
    return merge_forks(list(compute(*merged, **store_kwargs)))


def merge_forks(forks: Forks, *, on_overlap: OnOverlap = "raise") -> ForkSession:
    """Return one fork with the edits of all forks. The given forks do not change.

    Parameters
    ----------
    forks : ForkSession, or (nested) sequence of them
        Forks of one session. The same object may occur many times, as it does if tasks share memory.
    on_overlap : {"raise", "last"}
        As in :meth:`Session.merge`.

    Examples
    --------
    In your own graph, let each task return its fork, and merge them in a tree:

    >>> import dask
    >>> import icechunk_engine as icechunk
    >>> import zarr
    >>> repo = icechunk.Repository.create(icechunk.in_memory_storage())
    >>> session = repo.writable_session("main")
    >>> _ = zarr.create_array(session.store, name="a", shape=(4,), chunks=(1,), dtype="i8")
    >>> def work(fork, number):
    ...     zarr.open_array(fork.store, path="a", mode="r+")[number] = 10 * number
    ...     return fork
    >>> fork = session.fork()
    >>> written = [dask.delayed(work)(fork, number) for number in range(4)]
    >>> halves = [dask.delayed(merge_forks)(written[:2]), dask.delayed(merge_forks)(written[2:])]
    >>> session.merge(dask.delayed(merge_forks)(halves).compute(scheduler="synchronous"))
    >>> zarr.open_array(session.store, path="a", mode="r")[:]
    array([ 0, 10, 20, 30])
    """
    distinct = list({id(fork): fork for fork in _flattened(forks)}.values())
    first, *others = distinct
    if not others:
        return first
    # If dask repeats a task, it passes the same inputs again. So they must not change.
    merged = _copy(first)
    merged.merge(*others, on_overlap=on_overlap)
    return merged


def _fork_of_array(array: ZarrArray) -> ForkSession:
    session = getattr(array.store, "session", None)
    if not isinstance(session, ForkSession):
        raise InvalidInputError(
            f"the target array {array.path!r} does not belong to a fork. Open it with zarr.open_array(fork.store, "
            f"path={array.path!r}, mode='r+'), where fork = session.fork()",
            ErrorKind.NOT_ALLOWED,
        )
    return session


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """A zarr array that the blocks of a dask array are written to.

    Dask identifies it by a random token. To tokenise a zarr array, dask would pickle it about six times, and it would
    run two equal writes as one task.

    Attributes
    ----------
    region
        One range for each axis: the part of the array that is written.
    """

    array: ZarrArray
    region: tuple[range, ...]
    token: str = field(default_factory=lambda: uuid4().hex)

    def write(self, block: Any, place: tuple[slice, ...]) -> None:
        """Write one block. ``place`` is its place in the source."""
        parts = (region[part] for region, part in zip(self.region, place, strict=True))
        self.array[tuple(slice(part.start, part.stop, part.step) for part in parts)] = block

    def __dask_tokenize__(self) -> object:
        return ("icechunk-target", self.token)


def store_graph(
    source: DaskArray,
    target: ZarrArray,
    region: tuple[slice, ...] | None,
    split_every: int | None,
    on_overlap: OnOverlap = "raise",
) -> DaskArray:
    """Return a dask array of one element: the fork through which all blocks of a source are written.

    Parameters
    ----------
    target
        An array of a fork that has no edits.
    region
        The part of the target to write; None for all of it.

    Raises
    ------
    InvalidInputError
        The source is no dask array, or does not have the shape of the region.
    """
    library = _array_library(source)
    name = f"icechunk-store-{target.path.rpartition('/')[2]}"
    writer = _Target(array=target, region=_ranges(source, target, region))
    forks = library.map_blocks(
        _write_block,
        source,
        places_of_blocks(source.chunks),
        target=writer,
        token=name,
        dtype=object,
        meta=np.empty((0,) * len(source.shape), dtype=object),
    )
    # The same name for the first step of the merge: dask fuses it with the writes, and shows the name of the last.
    return _merge_graph(forks, split_every, name, on_overlap)


def _ranges(source: DaskArray, target: ZarrArray, region: tuple[slice, ...] | None) -> tuple[range, ...]:
    full = region or ()
    if not all(isinstance(part, slice) for part in full) or len(full) > target.ndim:
        raise InvalidInputError(
            f"the region {region!r} does not fit the target {target.path!r} of shape {target.shape}: pass a tuple of "
            f"slices, one for each axis",
            ErrorKind.NOT_ALLOWED,
        )
    full = (*full, *(slice(None),) * (target.ndim - len(full)))
    ranges = tuple(range(*part.indices(length)) for part, length in zip(full, target.shape, strict=True))
    if tuple(map(len, ranges)) != source.shape:  # also if the chunk sizes are unknown
        raise InvalidInputError(
            f"a source of shape {source.shape} does not fit the target {target.path!r}: the part to write has shape "
            f"{tuple(map(len, ranges))}",
            ErrorKind.NOT_ALLOWED,
        )
    return ranges


def _merge_graph(
    blocks: DaskArray, split_every: int | None, name: str = "icechunk-merge", on_overlap: OnOverlap = "raise"
) -> DaskArray:
    """Return a dask array of one element: the merged forks of the blocks, which are forks or zarr arrays of forks."""
    return _array_library(blocks).reduction(
        blocks,
        chunk=_fork_of_block,
        aggregate=functools.partial(_merge, on_overlap=on_overlap),
        name=name,
        split_every=split_every,
        concatenate=False,
        keepdims=False,
        dtype=object,
        meta=np.array([object()], dtype=object),
    )


def _array_library(array: object) -> _ArrayLibrary:
    """Return the public module of a dask array's library: ``dask.array``, or one with the same functions."""
    parts = type(array).__module__.split(".")
    name = "dask.array" if parts[:2] == ["dask", "array"] else parts[0]
    library = importlib.import_module(name)
    if not (hasattr(library, "map_blocks") and hasattr(library, "reduction")):
        raise InvalidInputError(
            f"cannot write a {type(array).__module__}.{type(array).__qualname__} in parallel: it is not a dask array. "
            f"Convert it first, or load it into memory",
            ErrorKind.NOT_ALLOWED,
        )
    return cast(_ArrayLibrary, library)


def _write_block(block: Any, place: tuple[slice, ...], *, target: _Target) -> ForkSession:
    target.write(block, place)
    return _fork_of_array(target.array)


# Dask also calls these two functions without data, to learn what they return. It then passes computing_meta=True.


def _fork_of_block(
    block: ForkSession | ZarrArray, axis: object = None, keepdims: object = None, computing_meta: bool = False
) -> ForkSession | NDArray[np.object_]:
    if computing_meta:
        return np.array([object()], dtype=object)
    return block if isinstance(block, ForkSession) else _fork_of_array(block)


def _merge(
    forks: Forks,
    axis: object = None,
    keepdims: object = None,
    computing_meta: bool = False,
    *,
    on_overlap: OnOverlap,
) -> ForkSession | NDArray[np.object_]:
    return np.array([object()], dtype=object) if computing_meta else merge_forks(forks, on_overlap=on_overlap)


def _flattened(forks: object) -> Iterator[ForkSession]:
    if isinstance(forks, list | tuple):
        for item in forks:
            yield from _flattened(item)
    elif isinstance(forks, ForkSession):
        yield forks
    else:
        raise InvalidInputError(
            f"cannot merge a {type(forks).__name__} into a fork: only forks can be merged. To merge forks into their "
            f"session, call session.merge(*forks)",
            ErrorKind.MERGE_NOT_ALLOWED,
        )


def _copy(fork: ForkSession) -> ForkSession:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(fork, protocol=5, buffer_callback=buffers.append)
    copy: ForkSession = pickle.loads(data, buffers=buffers)
    return copy
