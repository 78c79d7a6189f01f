"""Write the metadata to a repository in memory first, to find errors before a repository is created.

All new repositories begin with the same empty snapshot. So xarray does the same in both.
"""

from __future__ import annotations

from icechunk_engine.repository import Repository
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.storage import in_memory_storage

from .group_writer import ArrayWrites, GroupWrite

__all__ = ["Rehearsal"]


class Rehearsal:
    """A write whose metadata an empty repository accepted. Raises as :meth:`GroupWrite.write_metadata` does."""

    def __init__(self, write: GroupWrite) -> None:
        self._write = write
        session = Repository.create(in_memory_storage()).writable_session("main")
        self._writes = write.write_metadata(session)
        self._nodes = list(workspace_of(session).list_nodes("/"))
        session.discard_changes()

    def repeat(self, session: Session) -> ArrayWrites:
        """Write the metadata to a session, and return the arrays to write. Encodes no array a second time."""
        workspace = workspace_of(session)
        if next(iter(workspace.list_nodes("/")), None) is not None:
            return self._write.write_metadata(session)  # another program has created the repository and written to it
        for node in self._nodes:
            workspace.set_metadata(node.path, node.user_data)
        return self._writes.moved_to(session)
