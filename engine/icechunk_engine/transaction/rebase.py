"""Rebase a session's edits onto the new tip of its branch.

Invariant: *a rebase changes nothing until it has succeeded.* It reads the branch's tip once, works on copies, and
returns the new base and the new change set together; the session then takes over both or neither. If a solver raises
or a conflict remains, session and repository are as before.

The session and the branch may have taken different ways: somebody may have reset or amended the branch. So the way
from the base to the tip first goes back to their last common snapshot and then forward. A commit on the way back was
undone, and that also counts as a change (``inverse_log``). Expired snapshots are not on the way any more, but the next
snapshot lists their logs in ``pruned``.

Every log on the way must be read. Without one, chunks that it lists would be overwritten silently, so a lost log ends
the rebase (``rebase-tx-log-pruned``).

Requests: one GET for each transaction log since the base, all at once, and one GET of the tip's snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.base import Catalog
from icechunk_engine.errors import ErrorKind, RebaseFailedError, SessionStateError, SnapshotNotFoundError
from icechunk_engine.format.repo_info import SnapshotRecord
from icechunk_engine.format.transaction_log import TransactionLog
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, SnapshotId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.conflict_detection import detect, detect_unlogged, inverse_log
from icechunk_engine.transaction.conflicts import Conflict, ConflictSolver, remaining_conflicts
from icechunk_engine.transaction.replay import replay_edits


@dataclass(frozen=True, slots=True)
class _Step:
    """A commit on the way from the session's base to the tip.

    Attributes
    ----------
    commit
        The commit.
    log_ids
        The logs of what it changed, oldest first.
    is_undone
        The commit was taken back: the branch was reset or amended.
    """

    commit: SnapshotRecord
    log_ids: Sequence[SnapshotId]
    is_undone: bool = False


def _steps(catalog: Catalog, branch: str, base_id: SnapshotId, tip: SnapshotId) -> list[_Step]:
    """Find the way from the base to the tip: back to their last common snapshot, then forward, oldest first."""
    # Usually the base is among the ancestors of the tip, and the way is forward only.
    forward: list[_Step] = []
    for commit in catalog.ancestry(tip):
        if commit.id == base_id:
            return forward[::-1]
        log_ids = (*commit.pruned, commit.id)
        if base_id in commit.pruned:  # the base has expired
            return [_Step(commit, log_ids[log_ids.index(base_id) + 1 :]), *forward[::-1]]
        forward.append(_Step(commit, log_ids))
    # It is not, so the branch was reset or amended. Look for the last snapshot that both histories have.
    line = {step.commit.id for step in forward}
    back: list[_Step] = []
    try:
        for commit in catalog.ancestry(base_id):
            if commit.id in line:
                common = next(i for i, step in enumerate(forward) if step.commit.id == commit.id)
                return back + forward[:common][::-1]
            back.append(_Step(commit, (*commit.pruned, commit.id), is_undone=True))
    except SnapshotNotFoundError:
        pass  # the base, or a part of its history, is no longer in the repository
    raise RebaseFailedError(
        str(tip),
        [],
        f"Rebase failed on snapshot {tip}: this session is based on snapshot {base_id}, which is no longer in the "
        f"history of branch {branch!r}. The branch was reset, or the snapshot has expired. The session is unchanged: "
        f"redo the change in a new session",
    )


def _logs(assets: AssetManager, steps: Sequence[_Step]) -> list[list[TransactionLog]]:
    """Fetch the logs of each step."""
    wanted = [log_id for step in steps for log_id in step.log_ids]
    found = dict(zip(wanted, assets.transaction_logs(wanted), strict=True))
    logs: list[list[TransactionLog]] = []
    for step in steps:
        logs.append([])
        for log_id in step.log_ids:
            log = found[log_id]
            if log is not None:
                logs[-1].append(inverse_log(log) if step.is_undone else log)
            elif log_id != INITIAL_SNAPSHOT_ID:  # spec 1 has no log of the first snapshot, which changed nothing
                raise SessionStateError(
                    f"cannot rebase over snapshot {step.commit.id}: its transaction log {log_id} has expired and was "
                    f"deleted. Redo the change in a new session",
                    ErrorKind.REBASE_TX_LOG_PRUNED,
                )
    return logs


def _find_conflicts(
    assets: AssetManager, catalog: Catalog, branch: str, tip: SnapshotId, base_id: SnapshotId, changes: ChangeSet
) -> list[tuple[_Step, list[Conflict]]]:
    """Find the commits that our edits conflict with, oldest first, and the conflicts with each."""
    steps = _steps(catalog, branch, base_id, tip)
    base, tree = assets.snapshot(base_id).nodes, assets.snapshot(tip).nodes
    by_commit = [
        (step, [conflict for log in logs for conflict in detect(changes, base, log, tree)])
        for step, logs in zip(steps, _logs(assets, steps), strict=True)
    ]
    # The tree shows most logged conflicts once more. Only those without a commit are added, to the last step.
    known = {(conflict.conflict_type, conflict.path) for _, conflicts in by_commit for conflict in conflicts}
    others = [
        conflict
        for conflict in detect_unlogged(changes, base, tree)
        if (conflict.conflict_type, conflict.path) not in known
    ]
    by_commit.append((steps[-1], others))
    return [(step, conflicts) for step, conflicts in by_commit if conflicts]


def rebase_changes(
    assets: AssetManager,
    catalog: Catalog,
    branch: str,
    base_id: SnapshotId,
    changes: ChangeSet,
    solver: ConflictSolver,
) -> tuple[SnapshotId, ChangeSet]:
    """Return the branch's tip and our edits on top of it. ``changes`` itself does not change.

    Raises
    ------
    RebaseFailedError
        Conflicts remain. The error names the first commit with such conflicts, and lists them.
    """
    tip = catalog.branch_tip(branch)
    if tip == base_id:
        return base_id, changes
    found = _find_conflicts(assets, catalog, branch, tip, base_id, changes)
    for step, conflicts in found:
        remaining = remaining_conflicts(conflicts, solver)
        if remaining:
            raise RebaseFailedError(str(step.commit.id), remaining, _rebase_failure(step, remaining))
    all_found = [conflict for _, conflicts in found for conflict in conflicts]
    base, tree = assets.snapshot(base_id).nodes, assets.snapshot(tip).nodes
    return tip, replay_edits(changes, base, all_found, solver, tree)


def _rebase_failure(step: _Step, conflicts: Sequence[Conflict]) -> str:
    taken_back = ", which was taken back when the branch was reset or amended" if step.is_undone else ""
    return (
        f"Rebase failed on snapshot {step.commit.id} ({step.commit.message!r}){taken_back}: "
        + "; ".join(map(str, conflicts))
        + ". The session is unchanged: choose another solver, or redo the change in a new session"
    )


def describe_conflicts(
    assets: AssetManager, catalog: Catalog, branch: str, base_id: SnapshotId, changes: ChangeSet
) -> str:
    """Describe the new tip and its conflicts with our edits, for the error of a commit that came too late."""
    tip = catalog.branch_tip(branch)
    newest = f"The branch is now at snapshot {tip} ({catalog.snapshot(tip).message!r})"
    found = [] if tip == base_id else _find_conflicts(assets, catalog, branch, tip, base_id, changes)
    if not found:
        return f"{newest}; nothing conflicts, so you can use any solver"
    listed = [
        f"{', '.join(map(str, conflicts))} with snapshot {step.commit.id} ({step.commit.message!r})"
        for step, conflicts in found
    ]
    return f"{newest}; conflicts: {'; '.join(listed)}"
