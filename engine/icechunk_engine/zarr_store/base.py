"""What all parts of the Zarr store need: the workspace, what a key means, and whether the store takes writes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from zarr.abc.store import Store

from icechunk_engine import keys
from icechunk_engine._runtime.pools import in_thread
from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.errors import ErrorKind, ReadOnlyError, SessionStateError
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.workspace.workspace import Workspace
from icechunk_engine.zarr_store.joint_looks import JointLooks

MAX_IN_PLACE_BYTES = 256 * 1024
"""Local reads and writes up to this size block the event loop for less time than a hop to a thread takes."""

_MAX_CACHED_PREFIXES = 4096


class Target(NamedTuple):
    """What a key addresses: a node's document (``chunk_index`` None) or one chunk."""

    path: str
    chunk_index: ChunkIndex | None


class BaseStore(Store):
    """A store over a workspace, without the operations.

    Parameters
    ----------
    workspace
        What the store reads and writes.
    read_only
        True refuses writes even if the workspace takes them.
    """

    def __init__(self, workspace: Workspace, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        self._workspace = workspace
        self._looks = JointLooks()
        self._paths: dict[str, str] = {}

    @property
    def read_only(self) -> bool:
        """True if writes are refused, by this store or by its session (which a commit makes read-only)."""
        return self._read_only or self._workspace.read_only

    def _check_writable(self) -> None:
        if self._read_only:
            raise ReadOnlyError(
                "cannot write to read-only store; use session.store, or store.with_read_only(False)",
                ErrorKind.READ_ONLY_STORE,
            )
        if self._workspace.read_only:
            raise ReadOnlyError(
                "cannot write to read-only store: its session is read-only. Write through "
                "repo.writable_session(branch).store; after a commit, start a new session",
                ErrorKind.READ_ONLY_STORE,
            )

    async def set_partial_values(self, key_start_values: Iterable[tuple[str, int, bytes]]) -> None:
        """Raise SessionStateError: not implemented, as in official's package. Write whole chunks."""
        raise SessionStateError(
            "store method `set_partial_values` is not implemented by Icechunk; set the whole chunk",
            ErrorKind.UNIMPLEMENTED,
        )

    async def _prepare(self, *, for_chunks: bool = False) -> None:
        """Fetch the snapshot, and bring in the edits of other processes. An event loop never waits for a network."""
        workspace = self._workspace
        await workspace.fetch_remote_snapshot()
        if workspace.exchange is None:
            return
        if workspace.storage_is_remote:
            await self._looks.look(partial(workspace.look, for_chunks=for_chunks))
        else:
            workspace.look(for_chunks=for_chunks)

    async def _look_again(self) -> bool:
        """Bring in the edits of other processes after something was missing. Returns True if there were any."""
        workspace = self._workspace
        if workspace.exchange is None:
            return False
        return await in_thread(workspace.look_again) if workspace.storage_is_remote else workspace.look_again()

    async def _report(self) -> None:
        """Tell other processes about the edits, if they must know."""
        if self._workspace.exchange is not None:
            await self._workspace.exchange.report_async()

    def _target(self, key: str) -> Target | None:
        """Return what a key addresses; None for the names of Zarr v2 documents.

        Chunk keys skip the full parser once the prefix of their array is known to be valid.
        """
        head, separator, tail = key.rpartition("/c/")
        if separator and tail.isascii() and tail.replace("/", "").isdecimal():
            path = self._paths.get(head)
            components = tail.split("/")
            if path is not None and "" not in components and len(max(components, key=len)) < 10:
                return Target(path, tuple(map(int, components)))
        parsed = keys.parse(key)
        if isinstance(parsed, keys.ChunkKey):
            if separator and keys.chunk_prefix(parsed.path) == f"{head}/c":
                if len(self._paths) >= _MAX_CACHED_PREFIXES:
                    self._paths.clear()
                self._paths[head] = parsed.path
            return Target(parsed.path, parsed.index)
        return Target(parsed.path, None) if isinstance(parsed, keys.MetadataKey) else None

    async def _chunk_refs(self, path: str) -> ChunkRefs:
        """Return all references of an array, fetched by a thread if that waits for a network."""
        if self._workspace.storage_is_remote:
            return await in_thread(self._workspace.chunk_refs, path)
        return self._workspace.chunk_refs(path)
