"""Histories against a model of a few dictionaries: commits, amends, moves, rebases, refs, deletions, clocks astray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository, Session
from icechunk_engine.catalog import clock_check, spec_2_repo_file
from icechunk_engine.transaction import new_snapshot
from tests.engine.transaction.edits import State, data_edits, made, moves, started, state
from tests.profiles import by_profile

BRANCHES = ("main", "dev", "x")
TAGS = ("v1", "v2", "v3")


@dataclass
class Snapshot:
    """What the model knows of one."""

    parent: str | None
    message: str
    tree: State
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Open:
    """A session that has not ended."""

    session: Session
    branch: str
    base: str
    is_move: bool
    dirty: bool = False


class HistoryMachine(RuleBasedStateMachine):
    """Ours beside the model. Sessions stay open while others commit, so that races come about."""

    def __init__(self) -> None:
        super().__init__()
        self.repo = started()
        first, root = self.repo.ancestry(branch="main")
        self.snapshots = {
            root.id: Snapshot(None, root.message, {}, root.metadata),
            first.id: Snapshot(root.id, "start", state(self.repo.readonly_session("main"))),
        }
        self.branches = {"main": first.id}
        self.tags: dict[str, str] = {}
        self.dead_tags: set[str] = set()
        self.log: list[str] = ["NewCommit", "RepoInitialized"]
        self.open: list[Open] = []
        self.count = 0
        self.offset_us = 0
        self._clock, self._tolerance_us = clock_check.now_us, clock_check.TOLERANCE_US
        clock_check.TOLERANCE_US = 10**12  # the storage's clock does not jump along
        self._set_clock(lambda: self._clock() + self.offset_us)

    def _set_clock(self, now_us: Callable[[], int]) -> None:
        for module in (new_snapshot, spec_2_repo_file):
            module.__dict__["now_us"] = now_us

    def teardown(self) -> None:
        self._set_clock(self._clock)
        clock_check.TOLERANCE_US = self._tolerance_us

    def refused(self, kind: ErrorKind, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        with pytest.raises(ic.IcechunkError) as caught:
            function(*args, **kwargs)
        assert caught.value.kind == kind

    @rule(seconds=st.integers(-3600, 3600))
    def the_clock_jumps(self, seconds: int) -> None:
        self.offset_us = seconds * 1_000_000

    @rule(data=st.data(), is_move=st.booleans())
    def begin(self, data: st.DataObject, is_move: bool) -> None:
        self._begin(data, is_move)

    def _begin(self, data: st.DataObject, is_move: bool, branch: str | None = None) -> Open:
        branch = branch or data.draw(st.sampled_from(sorted(self.branches)))
        session = self.repo.rearrange_session(branch) if is_move else self.repo.writable_session(branch)
        assert session.snapshot_id == self.branches[branch]
        mine = Open(session, branch, session.snapshot_id, is_move)
        self.open.append(mine)
        self._edit(data, mine)
        return mine

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def edit(self, data: st.DataObject) -> None:
        self._edit(data, data.draw(st.sampled_from(self.open)))

    def _edit(self, data: st.DataObject, mine: Open) -> None:
        edits = data.draw(st.lists(moves if mine.is_move else data_edits, min_size=1, max_size=3))
        note(f"{made(mine.session, edits)}")
        mine.dirty = mine.session.has_uncommitted_changes

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        mine = data.draw(st.sampled_from(self.open))
        mine.session.discard_changes()
        mine.dirty = False
        assert state(mine.session) == self.snapshots[mine.base].tree

    def _end(self, mine: Open, snapshot_id: str, parent: str | None, tree: State, kind: str, **metadata: Any) -> None:
        assert mine.session.read_only
        assert mine.session.snapshot_id == snapshot_id
        self.snapshots[snapshot_id] = Snapshot(parent, str(self.count), tree, metadata)
        self.log.insert(0, kind)
        self.open.remove(mine)

    @rule(data=st.data(), is_move=st.booleans(), how=st.sampled_from(["commit", "commit", "amend"]))
    def begin_and_end(self, data: st.DataObject, is_move: bool, how: str) -> None:
        self._finish(self._begin(data, is_move), how)

    @rule(
        data=st.data(),
        is_move=st.booleans(),
        fast=st.sampled_from(["commit", "amend"]),
        slow=st.sampled_from(["rebase", "commit with rebase", "commit", "amend"]),
    )
    def race(self, data: st.DataObject, is_move: bool, fast: str, slow: str) -> None:
        behind = self._begin(data, is_move)
        self._finish(self._begin(data, False, behind.branch), fast)
        self._finish(behind, slow)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from(["commit", "amend", "flush", "rebase", "commit with rebase"]))
    def end(self, data: st.DataObject, how: str) -> None:
        self._finish(data.draw(st.sampled_from(self.open)), how)

    def _finish(self, mine: Open, how: str) -> None:
        session, tree = mine.session, state(mine.session)
        self.count += 1
        message = str(self.count)
        if mine.branch not in self.branches:
            if how == "rebase":
                with pytest.raises(ic.RefNotFoundError):
                    session.rebase(ic.ConflictDetector())
            elif how != "flush" and mine.dirty:
                with pytest.raises(ic.RefNotFoundError):
                    session.commit(message)
            self.open.remove(mine)
            return
        tip = self.branches[mine.branch]
        if how == "flush":
            if mine.dirty:
                self._end(mine, session.flush(message), mine.base, tree, "NewDetachedSnapshot")
            else:
                self.refused(ErrorKind.NO_CHANGES_TO_COMMIT, session.flush, message)
        elif how == "rebase":
            self._rebase(mine, tip)
        elif not mine.dirty:
            self.refused(ErrorKind.NO_CHANGES_TO_COMMIT, session.amend if how == "amend" else session.commit, message)
        elif how == "commit with rebase":
            self._commit_with_rebase(mine, tip, message)
        elif tip != mine.base:
            self.refused(ErrorKind.COMMIT_CONFLICT, session.amend if how == "amend" else session.commit, message)
            assert state(session) == tree
        elif how == "commit":
            snapshot_id = session.commit(message)
            self.branches[mine.branch] = snapshot_id
            self._end(mine, snapshot_id, tip, tree, "NewCommit")
        elif self.snapshots[tip].parent is None:
            self.refused(ErrorKind.NO_AMEND_FOR_INITIAL_COMMIT, session.amend, message)
        else:
            snapshot_id = session.amend(message, metadata={"amended": tip})
            self.branches[mine.branch] = snapshot_id
            self._end(mine, snapshot_id, self.snapshots[tip].parent, tree, "CommitAmended", amended=tip)

    def _rebase(self, mine: Open, tip: str) -> None:
        before = state(mine.session)
        try:
            mine.session.rebase(ic.ConflictDetector())
        except ic.RebaseFailedError as error:
            failed = error
        else:
            assert mine.session.snapshot_id == tip
            if tip == mine.base:
                assert state(mine.session) == before
            mine.base = tip
            mine.dirty = mine.session.has_uncommitted_changes
            return
        assert failed.conflicts
        assert tip != mine.base
        assert mine.session.snapshot_id == mine.base
        assert state(mine.session) == before

    def _commit_with_rebase(self, mine: Open, tip: str, message: str) -> None:
        before = state(mine.session)
        try:
            snapshot_id = mine.session.commit(message, rebase_with=ic.ConflictDetector(), allow_empty=True)
        except ic.RebaseFailedError:
            assert tip != mine.base
            assert state(mine.session) == before
            assert mine.session.snapshot_id == mine.base
            return
        tree = state(mine.session)
        if tip == mine.base:
            assert tree == before
        self.branches[mine.branch] = snapshot_id
        attempts = {"rebase_attempts": int(tip != mine.base)}
        self._end(mine, snapshot_id, tip, tree, "NewCommit", __icechunk=attempts)

    @rule(data=st.data(), name=st.sampled_from(BRANCHES))
    def create_branch(self, data: st.DataObject, name: str) -> None:
        target = data.draw(st.sampled_from(list(self.snapshots)))
        if name in self.branches:
            self.refused(ErrorKind.BRANCH_ALREADY_EXISTS, self.repo.create_branch, name, target)
            return
        self.repo.create_branch(name, target)
        self.branches[name] = target
        self.log.insert(0, "BranchCreated")

    @rule(data=st.data(), name=st.sampled_from(BRANCHES), expects=st.booleans())
    def reset_branch(self, data: st.DataObject, name: str, expects: bool) -> None:
        target, expected = (data.draw(st.sampled_from(list(self.snapshots))) for _ in range(2))
        arguments = {"from_snapshot_id": expected} if expects else {}
        if name not in self.branches:
            self.refused(ErrorKind.REF_NOT_FOUND, self.repo.reset_branch, name, target, **arguments)
        elif expects and self.branches[name] != expected:
            self.refused(ErrorKind.BRANCH_UPDATE_CONFLICT, self.repo.reset_branch, name, target, **arguments)
        else:
            self.repo.reset_branch(name, target, **arguments)
            self.branches[name] = target
            self.log.insert(0, "BranchReset")

    @rule(name=st.sampled_from(BRANCHES))
    def delete_branch(self, name: str) -> None:
        if name == "main":
            self.refused(ErrorKind.CANNOT_DELETE_MAIN, self.repo.delete_branch, name)
        elif name not in self.branches:
            self.refused(ErrorKind.REF_NOT_FOUND, self.repo.delete_branch, name)
        else:
            self.repo.delete_branch(name)
            del self.branches[name]
            self.log.insert(0, "BranchDeleted")

    @rule(data=st.data(), name=st.sampled_from(TAGS))
    def create_tag(self, data: st.DataObject, name: str) -> None:
        target = data.draw(st.sampled_from(list(self.snapshots)))
        if name in self.dead_tags:
            self.refused(ErrorKind.TAG_PREVIOUSLY_DELETED, self.repo.create_tag, name, target)
        elif name in self.tags:
            self.refused(ErrorKind.TAG_ALREADY_EXISTS, self.repo.create_tag, name, target)
        else:
            self.repo.create_tag(name, target)
            self.tags[name] = target
            self.log.insert(0, "TagCreated")

    @rule(name=st.sampled_from(TAGS))
    def delete_tag(self, name: str) -> None:
        if name not in self.tags:
            self.refused(ErrorKind.REF_NOT_FOUND, self.repo.delete_tag, name)
        else:
            self.repo.delete_tag(name)
            del self.tags[name]
            self.dead_tags.add(name)
            self.log.insert(0, "TagDeleted")

    @rule()
    def reopen(self) -> None:
        """Open the repository anew, where no cache helps."""
        place = ic.in_memory_storage()
        for info in self.repo.storage.list():
            place.put(info.key, self.repo.storage.get(info.key))
        fresh = Repository.open(place)
        for name, target in self.branches.items():
            assert state(fresh.readonly_session(name)) == self.snapshots[target].tree

    @invariant()
    def refs_agree(self) -> None:
        assert self.repo.list_branches() == self.branches.keys()
        assert self.repo.list_tags() == self.tags.keys()
        for name, target in self.branches.items():
            assert self.repo.lookup_branch(name) == target
        for name, target in self.tags.items():
            assert self.repo.lookup_tag(name) == target
            assert state(self.repo.readonly_session(tag=name)) == self.snapshots[target].tree

    @invariant()
    def histories_agree(self) -> None:
        for name, target in self.branches.items():
            history = list(self.repo.ancestry(branch=name))
            expected: list[str] = []
            above: str | None = target
            while above is not None:
                expected.append(above)
                above = self.snapshots[above].parent
            assert [info.id for info in history] == expected
            assert [info.message for info in history] == [self.snapshots[one].message for one in expected]
            assert [info.metadata for info in history] == [self.snapshots[one].metadata for one in expected]
            times = [info.written_at for info in history]
            assert times == sorted(set(times), reverse=True)
            assert state(self.repo.readonly_session(name)) == self.snapshots[target].tree
        updates = list(self.repo.ops_log())
        assert [type(update.kind).__name__ for update in updates] == self.log
        moments = [update.updated_at for update in updates]
        assert moments == sorted(set(moments), reverse=True)

    @invariant()
    def open_sessions_see_their_base_and_edits(self) -> None:
        for mine in self.open:
            assert mine.session.snapshot_id == mine.base
            assert mine.session.has_uncommitted_changes == mine.dirty
            if not mine.dirty:
                assert state(mine.session) == self.snapshots[mine.base].tree


def test_history_behaves_as_the_model() -> None:
    run_state_machine_as_test(
        HistoryMachine,
        settings=settings(
            max_examples=by_profile(quick=25, thorough=500),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
