"""Refuse to read an array that was replaced after it was opened.

A dataset that is opened lazily from a writable session reads its values later, by path. If the array at that path has
been deleted meanwhile, or deleted and created again, the read would return fill values, or the bytes of another array.
That happens if you open a dataset from a session and write it back to the same session with mode "w".

Only stores that zarr opened for reading are guarded (mode "r"). A program that writes opens its arrays again.
"""

from __future__ import annotations

from icechunk_engine.errors import ErrorKind, SessionStateError
from icechunk_engine.ids import NodeId
from icechunk_engine.workspace.view import SnapshotView


class OpenedArrays:
    """The arrays that one read-only store has opened in a session that can still change them."""

    def __init__(self, opened: dict[str, NodeId] | None = None) -> None:
        self.opened = opened or {}

    def add(self, view: SnapshotView, path: str) -> None:
        """Note that the document of a node was read."""
        reader = view.array_reader(path)
        if reader is not None:
            self.opened[path] = reader.node.node_id

    def require_same(self, view: SnapshotView, path: str) -> None:
        """Raise an error if the array at a path is not the one that was opened.

        Raises
        ------
        SessionStateError
            ``concurrency``: it was deleted, or replaced by another one.
        """
        opened = self.opened.get(path)
        if opened is None:
            return
        reader = view.array_reader(path)
        if reader is None or reader.node.node_id != opened:
            what = "deleted" if reader is None else "replaced"
            raise SessionStateError(
                f"array {path!r} was {what} in this session after you opened it, so its values are gone from the "
                f"session. Load the data before you overwrite them (ds.load()), or write them back with "
                f"xarray_icechunk.to_icechunk(ds, session, mode='w'). session.discard_changes() undoes the edits",
                ErrorKind.CONCURRENCY,
            )
