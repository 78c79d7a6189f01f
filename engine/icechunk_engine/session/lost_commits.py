"""Find out whether a commit took place after its answer was lost.

A request that publishes a snapshot can succeed although its answer never arrives: the network fails, or Ctrl-C stops
the caller. Trying again would then find the branch moved, by this session's own commit.

The invariant: the edits of a session are published at most once, and the session never reports a conflict with itself.
It holds because

- an attempt is recorded *before* its request is sent, so no interrupt can separate the two;
- it is forgotten only when it certainly failed (an error that is not a StorageError), or when the session has ended;
- before a session reports a conflict or rebases, it looks for its attempts in the history of the branch. It looks at
  the whole history, because others can have committed on top. If it finds one, that attempt is the commit.

The edits token of an attempt says which edits it holds. If the session was edited after the attempt, the commit and
the session's edits differ. Only an error is right then: the published edits cannot be undone, and publishing all
edits again would repeat them.
"""

from __future__ import annotations

from icechunk_engine.catalog.base import Catalog
from icechunk_engine.catalog.changes import CatalogChange
from icechunk_engine.catalog.opening import open_catalog
from icechunk_engine.errors import ConflictError, IcechunkError, StorageError
from icechunk_engine.transaction.new_snapshot import NewSnapshot
from icechunk_engine.workspace.workspace import EditsToken, Workspace


class CommitAttempts:
    """The snapshots that a session tried to publish and that may be on its branch."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._uncertain: list[tuple[NewSnapshot, EditsToken]] = []

    def publish(self, new: NewSnapshot, change: CatalogChange, catalog: Catalog) -> None:
        """Publish a snapshot, and remember it until its outcome is certain."""
        self._uncertain.append((new, self._workspace.edits_token))
        try:
            catalog.publish(change)
        except IcechunkError as error:
            if not isinstance(error, StorageError):
                self._uncertain.pop()
            raise

    def find_published(self, branch: str) -> NewSnapshot | None:
        """Return the snapshot of an earlier attempt that is in the history of the branch, or None.

        Raises
        ------
        ConflictError
            The session was edited after that attempt.
        """
        if not self._uncertain:
            return None
        catalog = open_catalog(self._workspace.context.assets)
        history = {record.id for record in catalog.ancestry(catalog.branch_tip(branch))}
        for new, token in self._uncertain:
            if new.info.id in history:
                catalog.require_published(branch)
                if token == self._workspace.edits_token:
                    return new
                raise ConflictError(
                    message=f"an earlier commit of this session succeeded, although its answer was lost: snapshot "
                    f"{new.info.id}. It does not contain your later edits. Make them again in a new session"
                )
        return None

    def clear(self) -> None:
        """Forget all attempts, because the session has ended."""
        self._uncertain = []
