"""Branches and tags of a repository."""

from __future__ import annotations

from icechunk_engine._runtime.pools import async_twin
from icechunk_engine.catalog.changes import CreateBranch, CreateTag, DeleteBranch, DeleteTag, ResetBranch
from icechunk_engine.catalog.ref_names import require_ref_name
from icechunk_engine.ids import SnapshotId
from icechunk_engine.repository.base import RepositoryBase


class RefMethods(RepositoryBase):
    """The methods of :class:`Repository` about branches and tags."""

    def list_branches(self) -> set[str]:
        """Return the names of all branches."""
        return self._catalog().branches()

    list_branches_async = async_twin(list_branches)

    def lookup_branch(self, branch: str) -> str:
        """Return the id of the snapshot at a branch's tip. Raises RefNotFoundError."""
        return str(self._catalog().branch_tip(branch))

    lookup_branch_async = async_twin(lookup_branch)

    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """Create a branch at a snapshot. Raises AlreadyExistsError, SnapshotNotFoundError."""
        name = require_ref_name(branch)
        self._catalog().publish(CreateBranch(name, SnapshotId.from_str(snapshot_id)))

    create_branch_async = async_twin(create_branch)

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Move a branch to any snapshot of the repository.

        Parameters
        ----------
        from_snapshot_id
            Move the branch only if it is at this snapshot now.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError
            The branch or the snapshot does not exist.
        ConflictError
            ``branch-update-conflict``: the branch is not at ``from_snapshot_id``.
        """
        expected = None if from_snapshot_id is None else SnapshotId.from_str(from_snapshot_id)
        self._catalog().publish(ResetBranch(branch, SnapshotId.from_str(snapshot_id), expected))

    reset_branch_async = async_twin(reset_branch)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch. You cannot delete ``main``."""
        self._catalog().publish(DeleteBranch(branch))

    delete_branch_async = async_twin(delete_branch)

    def list_tags(self) -> set[str]:
        """Return the names of all tags."""
        return self._catalog().tags()

    list_tags_async = async_twin(list_tags)

    def lookup_tag(self, tag: str) -> str:
        """Return the id of a tag's snapshot. Raises RefNotFoundError."""
        return str(self._catalog().tag_target(tag))

    lookup_tag_async = async_twin(lookup_tag)

    def create_tag(self, tag: str, snapshot_id: str) -> None:
        """Give a snapshot a permanent name. Raises AlreadyExistsError, also for the name of a deleted tag."""
        name = require_ref_name(tag)
        self._catalog().publish(CreateTag(name, SnapshotId.from_str(snapshot_id)))

    create_tag_async = async_twin(create_tag)

    def delete_tag(self, tag: str) -> None:
        """Delete a tag. Its name can never be used again."""
        self._catalog().publish(DeleteTag(tag))

    delete_tag_async = async_twin(delete_tag)
