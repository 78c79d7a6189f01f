"""``to_icechunk``: write xarray objects, into a session or as a commit of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.session import Session, fork_for_graph, workspace_of
from icechunk_engine.transaction.conflicts import ConflictDetector, ConflictSolver
from icechunk_engine.transaction.merge import OnOverlap, require_on_overlap
from icechunk_engine.types import Json

from .datasets_to_write import (
    DatasetToWrite,
    Region,
    XarrayObject,
    ZarrWriteModes,
    choose_mode,
    datasets_to_write,
)
from .group_writer import ArrayWrites, GroupWrite
from .lazy_sources import reads_from
from .rehearsal import Rehearsal
from .targets import Commit, Destination, WriteTarget, own_session, resolve_target
from .zarr_engine_options import check_zarr_engine_options

if TYPE_CHECKING:
    from dask.delayed import Delayed

__all__ = ["to_icechunk"]


def to_icechunk(
    obj: XarrayObject,
    session: WriteTarget,
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
    on_overlap: OnOverlap = "raise",
    write_inherited_coords: bool = False,
    write_empty_chunks: bool | None = None,
    compute: bool = True,
    template: bool = False,
    branch: str | None = None,
    message: str | None = None,
    metadata: Mapping[str, Json] | None = None,
    rebase_with: ConflictSolver | None = None,
    rebase_tries: int | None = None,
    storage_options: Mapping[str, object] | None = None,
    consolidated: bool | None = None,
    zarr_format: int | None = None,
) -> str | Delayed | None:
    """Write an xarray object to a group of a session, or of a repository as one commit.

    This process writes arrays in memory. One dask graph writes all dask arrays with whatever scheduler is active
    (threads, processes or a cluster).

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
    session : Session, IcechunkStore, Repository, Storage, str or os.PathLike
        Where to write.

        A writable session, a fork, or the store of one of them: nothing is committed. When the function returns, the
        session has all edits. Commit it yourself, or let ``with repo.transaction(...) as store`` do it.

        A repository, or the path or URL of one: the call commits to a branch. A repository that does not exist is
        created. A URL may end in ``|icechunk:@branch.NAME/group``.
    group : str, optional
        Path of the group to write to; the root by default. Missing groups are created.
    mode : {"w", "w-", "a", "a-", "r+"}, optional
        ``"w"`` replaces the group and everything below it. ``"w-"`` creates it, and fails if it exists. ``"a"``
        overwrites variables and adds new ones. ``"a-"`` with ``append_dim`` writes only variables with that dimension,
        and new ones. ``"r+"`` only changes values of existing variables. The default is ``"a"`` with ``append_dim``,
        ``"r+"`` with ``region``, and otherwise ``"w-"``.
    safe_chunks : bool
        Raise an error if two dask chunks would write to one Zarr chunk or, in mode ``"r+"``, if a region covers only
        part of a Zarr chunk. If you turn this off, threads can lose data; see also ``on_overlap``.
    align_chunks : bool
        Rechunk dask arrays to the Zarr chunks instead of raising that error.
    append_dim : hashable, optional
        Dimension along which to append to existing variables. In a tree, the call appends to all nodes with this
        dimension. The variables of the other nodes are written as ``mode`` says of variables without the dimension.
    region : mapping of dimensions to slices or "auto", or "auto", optional
        Write into this part of existing variables. ``"auto"`` finds the part by the values of the coordinates. Each
        variable must have at least one of these dimensions. Index coordinates are not written. In a tree, each node
        takes the dimensions that it has, and finds ``"auto"`` by its own coordinate or the one that it inherits.
    encoding : mapping, optional
        Variable names to encodings, as for :meth:`xarray.Dataset.to_zarr`. For a tree, group paths to such mappings.
    chunkmanager_store_kwargs : mapping, optional
        Passed to :func:`dask.compute`, for example ``{"retries": 2}``.
    split_every : int, optional
        Number of forks that one dask task merges.
    on_overlap : {"raise", "last"}
        With ``safe_chunks=False`` two tasks can write to one Zarr chunk. Raise an error then, or let one of them win.
        Threads share memory, so their overlaps go unnoticed.
    write_inherited_coords : bool
        For a tree: also write coordinates to the nodes that inherit them.
    write_empty_chunks : bool, optional
        Store chunks that hold nothing but the fill value. By default the encoding of each variable decides, or else
        zarr's setting, which is not to store them.
    compute : bool
        False writes metadata and arrays in memory now, and returns a :class:`dask.delayed.Delayed` that writes the
        dask arrays. Compute it in any way and with any scheduler. Then commit the session, which gets the edits. If
        you passed a repository, path or URL, the Delayed commits, and its value is the id of the snapshot.
    template : bool
        Write metadata and arrays in memory, but not the values of dask arrays. They read as the fill value until
        you write them, for example region by region. No graph is built, so the number of chunks does not matter.
    branch : str, optional
        Branch to commit to, ``"main"`` by default. This and the next five parameters are not for sessions and stores.
    message : str, optional
        Commit message. By default it says which variables were written.
    metadata : mapping, optional
        JSON values stored with the snapshot.
    rebase_with : ConflictSolver, optional
        Solver to rebase with if another commit comes first. The default, ``ConflictDetector()``, accepts other commits
        that changed other things.
    rebase_tries : int, optional
        Maximum number of rebases, 1 000 by default.
    storage_options : mapping, optional
        Options for the storage that a URL names, as for :func:`open_repository`.
    consolidated, zarr_format : optional
        Accepted so that programs written for :meth:`xarray.Dataset.to_zarr` run: False or None, and 3 or None.

    Returns
    -------
    str, Delayed or None
        The id of the new snapshot if the call commits. If the write changes nothing, no commit is made, and the id is
        that of the branch's present snapshot. A Delayed with ``compute=False``. Otherwise None.

    Raises
    ------
    ReadOnlyError
        The session or store is read-only.
    ConflictError, RebaseFailedError
        Another commit changed the same things. Nothing is committed.
    ValueError, TypeError, FileExistsError
        The arguments contradict each other, or xarray rejects them.

    Notes
    -----
    If the call fails, the session is as it was before. This also undoes edits that other threads make in the session
    during the call. Nothing refers to the chunks that were already written, and garbage collection deletes them.

    The call checks all arguments before it creates a repository. If it then cannot write the values, an empty one
    remains, because another program may already use it.

    The object may hold data that were opened lazily from the same session. They are read as they were before the call.

    Examples
    --------
    >>> import icechunk_engine as icechunk
    >>> import xarray as xr
    >>> ds = xr.Dataset({"t": ("x", [1.0, 2.0, 3.0])})
    >>> repo = icechunk.Repository.create(icechunk.in_memory_storage())
    >>> snapshot_id = to_icechunk(ds, repo, message="three values")
    >>> with repo.transaction("main", message="the same in two groups") as store:
    ...     to_icechunk(ds, store, group="a")
    ...     to_icechunk(ds, store, group="b")
    >>> [snapshot.message for snapshot in repo.ancestry(branch="main")][:2]
    ['the same in two groups', 'three values']
    """
    check_zarr_engine_options(consolidated=consolidated, zarr_format=zarr_format)
    chosen_mode = choose_mode(mode, append_dim, region)
    datasets = datasets_to_write(
        obj,
        encoding=encoding,
        mode=chosen_mode,
        append_dim=append_dim,
        region=region,
        write_inherited_coords=write_inherited_coords,
    )
    own = own_session(
        session,
        branch=branch,
        message=message,
        metadata=metadata,
        rebase_with=rebase_with,
        rebase_tries=rebase_tries,
        storage_options=storage_options,
    )
    job = _Job(
        GroupWrite(
            group=group,
            datasets=datasets,
            mode=chosen_mode,
            safe_chunks=safe_chunks,
            align_chunks=align_chunks,
            write_empty_chunks=write_empty_chunks,
        ),
        compute=compute,
        template=template,
        split_every=split_every,
        on_overlap=on_overlap,
        dask_options=dict(chunkmanager_store_kwargs or {}),
    )
    if own is not None:
        return job.write_to_session(own)
    commit = Commit(
        message=message if message is not None else _default_message(datasets, append_dim, region, group),
        metadata=metadata,
        rebase_with=rebase_with if rebase_with is not None else ConflictDetector(),
        rebase_tries=1_000 if rebase_tries is None else rebase_tries,
    )
    return job.write_and_commit(resolve_target(session, branch=branch, storage_options=storage_options), commit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One call of :func:`to_icechunk`, checked."""

    write: GroupWrite = field(kw_only=False)
    compute: bool
    template: bool
    split_every: int | None
    on_overlap: OnOverlap
    dask_options: Mapping[str, Any]

    def __post_init__(self) -> None:
        require_on_overlap(self.on_overlap)
        if self.compute:
            return
        if self.template:
            raise _refusal("a template has no values to compute: leave out compute=False, or template=True")
        if self.dask_options:
            raise _refusal(
                "chunkmanager_store_kwargs is for dask.compute, which compute=False does not call. Pass these "
                "options to the compute method of the result"
            )

    # --- into the caller's session -----------------------------------------------------------------------------

    def write_to_session(self, session: Session) -> Delayed | None:
        """Leave the edits in the session, all or none."""
        reads_session = reads_from((write.dataset for write in self.write.datasets), session)
        if self.compute:
            self._edit(session, self._write_all, through_fork=reads_session)
            return None
        if reads_session:
            raise _refusal(
                "compute=False cannot write data that are read from the same session: they would be read after the "
                "session has changed. Open them from repository.readonly_session(branch), or leave out compute=False"
            )
        from .delayed_writes import delayed_merge  # dask is an optional dependency

        writes = self._edit(session, self._write_memory, through_fork=False)
        return delayed_merge(session, writes.dask, self.split_every, self.on_overlap)

    def _edit[R](self, session: Session, edit: Callable[[Session], R], *, through_fork: bool) -> R:
        """Edit a session, all or nothing.

        Data that are read from the session must stay as they are while they are read. A fork does that: the session
        does not change before the merge. A session that shares its edits with other processes needs a fork, too: what
        it has collected or reported in the meantime could not be undone.
        """
        if through_fork or workspace_of(session).exchange is not None:
            fork = fork_for_graph(session)
            result = edit(fork)
            session.merge(fork, on_overlap=self.on_overlap)
            return result
        with session.all_or_nothing():
            return edit(session)

    def _write_all(self, session: Session) -> None:
        self._run(session, self.write.write_metadata(session))

    def _write_memory(self, session: Session) -> ArrayWrites:
        writes = self.write.write_metadata(session)
        writes.write_memory(session)
        return writes

    # --- as a commit -------------------------------------------------------------------------------------------

    def write_and_commit(self, destination: Destination, commit: Commit) -> str | Delayed:
        """Write to a new session and commit it."""
        group = "/".join(filter(None, (destination.group, (self.write.group or "").strip("/"))))
        job = replace(self, write=replace(self.write, group=group))
        return job._commit_to(destination, commit)

    def _commit_to(self, destination: Destination, commit: Commit) -> str | Delayed:
        rehearsal = Rehearsal(self.write) if destination.repository is None else None
        write_metadata = self.write.write_metadata if rehearsal is None else rehearsal.repeat
        repository = destination.open_or_create()
        session = repository.writable_session(destination.branch)
        if self.compute:
            try:
                self._run(session, write_metadata(session))
                return commit.run(session)
            finally:
                if not session.read_only:  # not committed: nobody can use the edits any more
                    session.discard_changes()
        from .delayed_writes import delayed_commit  # dask is an optional dependency

        fork = fork_for_graph(session)
        writes = write_metadata(fork)
        writes.write_memory(fork)
        return delayed_commit(
            repository, destination.branch, fork, writes.dask, self.split_every, self.on_overlap, commit
        )

    def _run(self, session: Session, writes: ArrayWrites) -> None:
        """Write the arrays."""
        writes.write_memory(session)
        if not self.template:
            writes.write_dask(session, self.split_every, self.on_overlap, self.dask_options)


def _default_message(
    datasets: Sequence[DatasetToWrite], append_dim: Hashable | None, region: Region, group: str | None
) -> str:
    """Return a sentence such as "Append 'temperature' and 2 more to / along 'time'"."""
    names = [name for write in datasets for name in write.dataset.data_vars] or [
        name for write in datasets for name in write.dataset.variables
    ]
    what = ", ".join(map(repr, names[:3])) or "a group"
    if len(names) > 3:
        what += f" and {len(names) - 3} more"
    place = "/" + (group or "").strip("/")
    if append_dim is not None:
        return f"Append {what} to {place} along {append_dim!r}"
    return f"Write a region of {what} in {place}" if region is not None else f"Write {what} to {place}"


def _refusal(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.NOT_ALLOWED)
