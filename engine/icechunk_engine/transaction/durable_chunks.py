"""Find chunks that the disk refused, before a snapshot that refers to them is published.

Invariant: *no published snapshot refers to a chunk that a crash could still remove.* A write returns before its bytes
are durable; ``fsync`` comes later, for many files together. If it fails, the operating system may drop the bytes, and
it reports the error once: a second ``fsync`` of the file can succeed although the data is lost. So asking again proves
nothing. The storage therefore remembers each refused file (:mod:`icechunk_engine.catalog.durable_files`), and a commit
fails until the edits no longer refer to it: until the chunks are written again, as new files.

A commit checks for lost chunks before it publishes. Edits that leave their process must be checked, too, because the
receiver cannot know what was lost. So a process flushes before it hands edits on, or leaves that to a process that has
promised it (:meth:`Storage.promise_flush <icechunk_engine.storage.base.Storage.promise_flush>`). The edits then carry
the promise, by source, through merges and rebases, and the commit has it kept before it publishes. A new way to
publish references must call :func:`make_durable`. A new way to hand edits on must call :func:`flush_or_leave_it`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.catalog.durable_files import SHOWN, covers, flush_files, listed, reasons, require_durable
from icechunk_engine.columns.chunk_refs import NATIVE, ChunkRefs
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError
from icechunk_engine.format import layout
from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.ids import ChunkId, NodeId
from icechunk_engine.storage.base import FlushPromise, Storage
from icechunk_engine.transaction.change_set import ChangeSet


def make_durable(
    storage: Storage, changes: ChangeSet, base: Callable[[], NodeTable], keys: Collection[str] = ()
) -> None:
    """Wait until the chunks of some edits and the objects ``keys`` will survive a crash of the machine.

    Parameters
    ----------
    base
        Returns the base nodes of the edits, to name arrays in the error.

    Raises
    ------
    StorageError
        ``not-durable``: one of them may not survive. Lost objects that the edits do not need are ignored.
    """
    sources = changes.sources
    if sources.promises:
        storage.keep_promises(
            {FlushPromise(name): partial(_keys_under, changes, name) for name in set(sources.promises.values())}
        )
    else:
        flush_files(storage)
    _require_chunks(storage, changes, base)
    require_durable(storage, keys)


def flush_or_leave_it(
    storage: Storage, changes: ChangeSet, base: Callable[[], NodeTable], promise: FlushPromise | None
) -> None:
    """Prepare edits to leave this process: flush their chunks, unless another process has promised to do that.

    In that case the edits carry the promise from now on. Arguments and errors are those of :func:`make_durable`.

    Parameters
    ----------
    promise
        The promise of the process that is going to commit the edits; None if there is none.
    """
    if promise is not None and storage.leaves_flush_to(promise):
        changes.sources.leave_flush(promise)
    else:
        flush_files(storage)
    _require_chunks(storage, changes, base)


def _keys_under(changes: ChangeSet, promise: str) -> Iterator[str]:
    """Iterate over the keys of the native chunks that were left to a promise."""
    numbers = [number for number, found in changes.sources.promises.items() if found == promise]
    for edits in changes.chunks.values():
        refs, sources = edits.collapse_with_sources()
        for row in np.flatnonzero((refs.kinds == NATIVE) & np.isin(sources, numbers)).tolist():
            yield layout.chunk_key(ChunkId(refs.chunk_ids[row].tobytes()))


def _require_chunks(storage: Storage, changes: ChangeSet, base: Callable[[], NodeTable]) -> None:
    """Raise StorageError if the edits refer to chunks that are known to be lost."""
    lost = storage.not_durable()
    if not lost:
        return
    n_chunks, shown = 0, list[str]()
    for node_id, edits in changes.chunks.items():
        if edits:
            refs = edits.collapse()
            rows = _lost_rows(refs, lost)
            n_chunks += len(rows)
            path = _path_of(node_id, changes, base()) if len(rows) else ""
            shown += [f"{path} {_chunk(refs, row)}" for row in rows[: SHOWN - len(shown)].tolist()]
    if n_chunks:
        raise StorageError(
            f"the disk refused chunks of this session ({reasons(lost)}), and a crash of the machine may damage or "
            f"remove them: {listed(shown, n_chunks)}. Nothing was committed. Check the disk and its free space. Then "
            f"write these chunks again in this session, or redo the whole change in a new session",
            ErrorKind.NOT_DURABLE,
        )


def _path_of(node_id: NodeId, changes: ChangeSet, base: NodeTable) -> str:
    for nodes in (changes.new_nodes, changes.moved_nodes):
        for node in nodes.values():
            if node.node_id == node_id:
                return node.path
    row = base.row_of_id(node_id)
    return base.path(row) if row >= 0 else str(node_id)


def _lost_rows(refs: ChunkRefs, lost: Mapping[str, str]) -> NDArray[np.intp]:
    """Return the rows of native chunks whose objects are lost."""
    is_native = refs.kinds == NATIVE
    if any(covers(place, layout.CHUNKS) for place in lost):  # the folder itself was refused, with every file in it
        return np.flatnonzero(is_native)
    ids = [found for key in lost if (found := _chunk_id(key)) is not None]
    column = np.ascontiguousarray(refs.chunk_ids).view("V12").reshape(-1)
    return np.flatnonzero(is_native & np.isin(column, np.frombuffer(b"".join(ids), "V12")))


def _chunk(refs: ChunkRefs, row: int) -> str:
    chunk_id = ChunkId(refs.chunk_ids[row].tobytes())
    return f"{tuple(refs.indices[row].tolist())} ({layout.chunk_key(chunk_id)})"


def _chunk_id(key: str) -> bytes | None:
    if not key.startswith(layout.CHUNKS):
        return None
    try:
        return ChunkId.from_str(key.removeprefix(layout.CHUNKS)).raw
    except InvalidInputError:
        return None
