"""Every kind of conflict by name, and rebases of random edits: they fail, or equal the edits in some serial order."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine as ic
from icechunk_engine import ConflictType, Repository, VersionSelection
from tests.engine.transaction.edits import (
    Edit,
    array,
    data_edits,
    effective,
    group,
    made,
    make,
    moves,
    started,
    state,
)

OURS = ic.BasicConflictSolver()
THEIRS = ic.BasicConflictSolver(on_chunk_conflict=VersionSelection.UseTheirs)
STRICT = ic.BasicConflictSolver(
    on_chunk_conflict=VersionSelection.Fail,
    fail_on_delete_of_updated_array=True,
    fail_on_delete_of_updated_group=True,
)

# Ours, theirs, and what conflicts: type, path, chunks.
CONFLICTS: dict[str, tuple[list[Edit], list[Edit], list[tuple[str, str, list[list[int]] | None]]]] = {
    "new node at a path taken": (
        [("group", "/k")],
        [("array", "/k")],
        [("NewNodeConflictsWithExistingNode", "/k", None)],
    ),
    "the same array": (  # of fill values that one side wrote there may be no trace
        [("array", "/k")],
        [("array", "/k")],
        [("NewNodeConflictsWithExistingNode", "/k", None)],
    ),
    "groups with different metadata": (
        [("group", "/k", 2)],
        [("group", "/k", 3)],
        [("NewNodeConflictsWithExistingNode", "/k", None)],
    ),
    "the same group, and the same array in it": (
        [("group", "/k"), ("array", "/k/a")],
        [("group", "/k"), ("array", "/k/a")],
        [("NewNodeConflictsWithExistingNode", "/k/a", None)],
    ),
    "both replace a group by the same one": (  # each without the members that the other may add
        [("delete", "/g/h"), ("group", "/g/h", 2)],
        [("delete", "/g/h"), ("group", "/g/h", 2)],
        [("NewNodeConflictsWithExistingNode", "/g/h", None)],
    ),
    "both delete and make anew": (
        [("delete", "/a"), ("array", "/a", 2)],
        [("delete", "/a"), ("array", "/a", 3)],
        [("NewNodeConflictsWithExistingNode", "/a", None)],
    ),
    "new node below their array": (
        [("group", "/k"), ("delete", "/k"), ("group", "/k/h")],
        [("array", "/k")],
        [("NewNodeInInvalidGroup", "/k/h", None)],
    ),
    "new node below the group that they deleted": (
        [("array", "/g/h/n")],
        [("delete", "/g/h")],
        [("NewNodeInInvalidGroup", "/g/h/n", None)],
    ),
    "new array above their new node": (
        [("delete", "/g/h"), ("array", "/g/h")],
        [("group", "/g/h/n")],
        [("NewNodeInInvalidGroup", "/g/h/n", None), ("DeleteOfUpdatedGroup", "/g/h", None)],
    ),
    "metadata of an array": ([("array", "/a", 2)], [("array", "/a", 3)], [("ZarrMetadataDoubleUpdate", "/a", None)]),
    "metadata of a group": ([("group", "/g", 2)], [("group", "/g", 3)], [("ZarrMetadataDoubleUpdate", "/g", None)]),
    "metadata of a deleted array": (
        [("array", "/a", 2)],
        [("delete", "/a")],
        [("ZarrMetadataUpdateOfDeletedArray", "/a", None)],
    ),
    "metadata of a deleted group": (
        [("group", "/g/h", 2)],
        [("delete", "/g/h")],
        [("ZarrMetadataUpdateOfDeletedGroup", "/g/h", None)],
    ),
    "the same chunks": (
        [("write", "/a", 1, 5), ("write", "/a", 2, 5), ("write", "/a", 3, 5)],
        [("write", "/a", 3, 6), ("clear", "/a", 0), ("write", "/a", 2, 6)],
        [("ChunkDoubleUpdate", "/a", [[2], [3]])],
    ),
    "chunks of a deleted array": (
        [("write", "/a", 1, 5)],
        [("delete", "/a")],
        [("ChunksUpdatedInDeletedArray", "/a", None)],
    ),
    "chunks of an array whose metadata changed": (
        [("write", "/a", 3, 5)],
        [("array", "/a", 2, 3)],
        [("ChunksUpdatedInUpdatedArray", "/a", None)],
    ),
    "deleted array with new chunks": (
        [("delete", "/a")],
        [("write", "/a", 3, 5)],
        [("DeleteOfUpdatedArray", "/a", None)],
    ),
    "deleted array with new metadata": (
        [("delete", "/a")],
        [("array", "/a", 3)],
        [("DeleteOfUpdatedArray", "/a", None)],
    ),
    "deleted group with new metadata": (
        [("delete", "/g/h")],
        [("group", "/g/h", 2)],
        [("DeleteOfUpdatedGroup", "/g/h", None)],
    ),
    "deleted group with a new member": (
        [("delete", "/g/h")],
        [("group", "/g/h/n")],
        [("DeleteOfUpdatedGroup", "/g/h", None)],
    ),
    "they moved": ([("write", "/a", 0, 5)], [("move", "/g", "/k")], [("MoveOperationCannotBeRebased", "/g", None)]),
    "both moved": ([("move", "/a", "/b")], [("move", "/g", "/k")], [("MoveOperationCannotBeRebased", "/g", None)]),
    "moved what they deleted": (
        [("move", "/g/h", "/k")],
        [("delete", "/g/h")],
        [("MoveOperationCannotBeRebased", "/g/h", None)],
    ),
    "moved what they made anew": (
        [("move", "/a", "/b")],
        [("delete", "/a"), ("array", "/a", 2)],
        [("MoveOperationCannotBeRebased", "/a", None)],
    ),
    "moved to a path taken": (
        [("move", "/a", "/k")],
        [("group", "/k")],
        [("NewNodeConflictsWithExistingNode", "/k", None)],
    ),
    "moved into a group that they deleted": (
        [("move", "/a", "/g/h/n")],
        [("delete", "/g/h")],
        [("NewNodeInInvalidGroup", "/g/h/n", None)],
    ),
    "moved into what became an array": (
        [("move", "/a", "/g/h/n")],
        [("delete", "/g/h"), ("array", "/g/h")],
        [("NewNodeInInvalidGroup", "/g/h/n", None)],
    ),
}

HARMLESS: dict[str, tuple[list[Edit], list[Edit]]] = {
    "other nodes": ([("array", "/k")], [("write", "/a", 0, 5), ("delete", "/g/h")]),
    "other chunks": ([("write", "/a", 1, 5)], [("write", "/a", 2, 5)]),
    "our metadata, their chunks": ([("array", "/a", 2, 6)], [("write", "/a", 3, 5)]),
    "both delete": ([("delete", "/g")], [("delete", "/g/h")]),
    "they delete and make anew what we delete": ([("delete", "/a")], [("delete", "/a"), ("array", "/a", 3)]),
    "moved what they wrote": ([("move", "/g", "/k")], [("write", "/g/a", 0, 5), ("array", "/g/h/a", 2)]),
    "moved a group that they added to": ([("move", "/g", "/k")], [("array", "/g/n"), ("group", "/g/h/n")]),
    "moved there and back": ([("move", "/a", "/b"), ("array", "/b")], [("write", "/a", 3, 5)]),
    "the same group": ([("group", "/k")], [("group", "/k")]),
    "the same parents": (
        [("group", "/k"), ("group", "/k/h"), ("array", "/k/h/n"), ("write", "/k/h/n", 1, 5)],
        [("group", "/k"), ("group", "/k/h"), ("array", "/k/a"), ("write", "/k/a", 2, 6)],
    ),
    "nothing": ([], [("write", "/a", 2, 5)]),
}


def session_for(repo: Repository, edits: list[Edit]) -> ic.Session:
    is_move = any(edit[0] == "move" for edit in edits)
    return repo.rearrange_session("main") if is_move else repo.writable_session("main")


def committed(repo: Repository, edits: list[Edit], message: str) -> str:
    session = session_for(repo, edits)
    for edit in edits:
        make(session, edit)
    return session.commit(message)


def found_by(session: ic.Session, solver: ic.ConflictSolver) -> ic.RebaseFailedError | None:
    """Return the error of a rebase, after checking that the session did not change."""
    before, base, changed = state(session), session.snapshot_id, session.status()
    try:
        session.rebase(solver)
    except ic.RebaseFailedError as error:
        assert state(session) == before
        assert session.snapshot_id == base
        assert repr(session.status()) == repr(changed)
        return error
    return None


@pytest.mark.parametrize("name", CONFLICTS)
def test_conflict(name: str) -> None:
    ours, theirs, expected = CONFLICTS[name]
    repo = started()
    session = session_for(repo, ours)
    for edit in ours:
        make(session, edit)
    harmless = committed(repo, [("array", "/harmless")], "harmless")
    culprit = committed(repo, theirs, "their change")
    committed(repo, [("write", "/harmless", 1, 1)], "harmless too")
    error = found_by(session, ic.ConflictDetector())
    assert error is not None
    found = [(one.conflict_type.name, one.path, one.conflicted_chunks) for one in error.conflicts]
    assert found == expected
    assert error.snapshot == culprit != harmless
    assert culprit in str(error)
    assert "'their change'" in str(error)
    for kind, path, chunks in expected:
        assert f"{kind} at {path}" in str(error)
        assert chunks is None or str(tuple(chunks[0])) in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.snapshot, copy.conflicts, str(copy)) == (error.snapshot, error.conflicts, str(error))
    with pytest.raises(ic.ConflictError, match=expected[0][0]) as caught:  # a commit says the same
        session.commit("late")
    assert culprit in str(caught.value)
    assert "'their change'" in str(caught.value)
    assert found_by(session, STRICT) is not None
    solvable = {"ChunkDoubleUpdate", "DeleteOfUpdatedArray", "DeleteOfUpdatedGroup"}
    settled = all(kind in solvable for kind, _, _ in expected)
    assert (found_by(session, OURS) is None) == settled
    if settled:
        after = state(session)
        assert all((path.rpartition("/")[0] or "/") in after for path in after)  # no orphans
        session.commit("settled")
        assert state(repo.readonly_session("main")) == after


@pytest.mark.parametrize("name", HARMLESS)
def test_no_conflict(name: str) -> None:
    ours, theirs = HARMLESS[name]
    repo = started()
    session = session_for(repo, ours)
    made(session, ours)
    committed(repo, theirs, "their change")
    assert found_by(session, ic.ConflictDetector()) is None
    seen = state(session)
    expected = started()
    committed(expected, theirs, "theirs")
    if name != "they delete and make anew what we delete":  # which equals the other order
        again = session_for(expected, ours)
        made(again, ours)
        assert seen == state(again)
    else:
        assert seen == state(expected.readonly_session("main"))


def test_the_first_two_writers_of_a_repository() -> None:
    """Both create the root group. One of the two stays, and history tells of one."""
    repo = Repository.create(ic.in_memory_storage())
    one, two = repo.writable_session("main"), repo.writable_session("main")
    for session, path in ((one, "/a"), (two, "/b")):
        make(session, ("group", "/"))
        make(session, ("array", path))
        make(session, ("write", path, 1, 5))
    start = repo.lookup_branch("main")
    one.commit("one")
    root = repo.readonly_session("main").get_node_id("/")
    two.commit("two", rebase_with=ic.ConflictDetector())
    final = repo.readonly_session("main")
    chunks = {(1,): b"\x05"}
    assert state(final) == {"/": (group(), {}), "/a": (array(), chunks), "/b": (array(), chunks)}
    assert final.get_node_id("/") == root
    last = repo.diff(from_snapshot_id=one.snapshot_id, to_branch="main")
    assert (last.new_groups, last.new_arrays) == (set(), {"/b"})
    assert repo.diff(from_snapshot_id=start, to_branch="main").new_groups == {"/"}


def test_a_session_that_made_only_the_same_group_has_nothing_left() -> None:
    repo = started()
    session = repo.writable_session("main")
    make(session, ("group", "/k"))
    committed(repo, [("group", "/k")], "theirs")
    session.rebase(ic.ConflictDetector())
    assert not session.has_uncommitted_changes


def test_all_types_are_covered() -> None:
    covered = {kind for _, _, expected in CONFLICTS.values() for kind, _, _ in expected}
    assert covered == {kind.name for kind in ConflictType}


def test_a_group_moves_with_what_they_added(  # which official leaves out of the log
) -> None:
    repo = started()
    start = repo.lookup_branch("main")
    session = repo.rearrange_session("main")
    session.move("/g", "/k")
    committed(repo, [("array", "/g/n")], "theirs")
    session.rebase(ic.ConflictDetector())
    session.commit("moved")
    assert ("/g/n", "/k/n") in repo.diff(from_snapshot_id=start, to_branch="main").moved_nodes
    assert "/k/n" in state(repo.readonly_session("main"))


def test_use_theirs_keeps_the_rest_of_ours() -> None:
    repo = started()
    session = repo.writable_session("main")
    for i in range(4):
        make(session, ("write", "/a", i, 5))
    committed(repo, [("write", "/a", 2, 6)], "theirs")
    committed(repo, [("write", "/a", 3, 7)], "theirs again")
    session.commit("ours", rebase_with=THEIRS)
    chunks = state(repo.readonly_session("main"))["/a"][1]
    assert chunks == {(0,): b"\x05", (1,): b"\x05", (2,): b"\x06", (3,): b"\x07"}
    assert repo.lookup_snapshot(session.snapshot_id).metadata == {"__icechunk": {"rebase_attempts": 1}}


def test_both_delete_what_they_wrote_before() -> None:
    repo = started()
    session = repo.writable_session("main")
    make(session, ("delete", "/a"))
    committed(repo, [("write", "/a", 2, 6)], "theirs")
    committed(repo, [("delete", "/a")], "theirs too")
    assert found_by(session, ic.ConflictDetector()) is None
    assert not session.has_uncommitted_changes


def test_a_branch_that_was_reset() -> None:
    """An undone commit counts as their change: our array no longer exists, and the chunk is an older one."""
    repo = started()
    start = repo.lookup_branch("main")
    taken_back = committed(repo, [("array", "/k"), ("write", "/a", 3, 8)], "to be taken back")
    lost, chunk, fine = (repo.writable_session("main") for _ in range(3))
    make(lost, ("write", "/k", 0, 5))
    make(chunk, ("write", "/a", 3, 9))
    make(fine, ("write", "/a", 2, 9))
    repo.reset_branch("main", start)
    error = found_by(lost, OURS)
    assert error is not None
    assert [(one.conflict_type.name, one.path) for one in error.conflicts] == [("ChunksUpdatedInDeletedArray", "/k")]
    assert error.snapshot == taken_back
    error = found_by(chunk, ic.ConflictDetector())
    assert error is not None
    assert error.snapshot == taken_back
    assert [(one.conflict_type.name, one.path) for one in error.conflicts] == [("ChunkDoubleUpdate", "/a")]
    fine.commit("fine", rebase_with=ic.ConflictDetector())
    assert state(repo.readonly_session("main"))["/a"][1] == {(0,): b"\x01", (2,): b"\x09"}
    assert "/k" not in state(repo.readonly_session("main"))


def test_a_commit_that_was_amended() -> None:
    repo = started()
    committed(repo, [("write", "/a", 1, 8)], "to be amended")
    session = repo.writable_session("main")
    make(session, ("write", "/a", 2, 9))
    amending = repo.writable_session("main")
    make(amending, ("write", "/a", 3, 7))
    amending.amend("amended")
    with pytest.raises(ic.ConflictError):
        session.amend("late")
    session.commit("rebased", rebase_with=ic.ConflictDetector())
    assert state(repo.readonly_session("main"))["/a"][1] == {(i,): bytes([v]) for i, v in enumerate([1, 8, 9, 7])}
    assert [info.message for info in repo.ancestry(branch="main")][:3] == ["rebased", "amended", "start"]


def test_rebase_tries() -> None:
    repo = started()
    session = repo.writable_session("main")
    make(session, ("write", "/a", 1, 8))
    committed(repo, [("write", "/a", 2, 9)], "theirs")
    with pytest.raises(ic.ConflictError, match="nothing conflicts"):
        session.commit("no", rebase_with=OURS, rebase_tries=0)
    session.commit("yes", rebase_with=OURS, rebase_tries=1)


class _Settler(ic.ConflictSolver):
    def settle(self, conflicts: object) -> list[ic.Conflict]:
        return []


def test_no_solver_settles_what_has_no_place() -> None:
    repo = started()
    session = repo.writable_session("main")
    make(session, ("write", "/a", 1, 8))
    committed(repo, [("delete", "/a")], "theirs")
    assert found_by(session, _Settler()) is not None


class _Broken(ic.ConflictSolver):
    def settle(self, conflicts: object) -> list[ic.Conflict]:
        raise ZeroDivisionError


def test_an_error_in_a_solver_loses_nothing() -> None:
    """The official library loses the session's changes here."""
    repo = started()
    session = repo.writable_session("main")
    make(session, ("write", "/a", 1, 8))
    committed(repo, [("write", "/a", 1, 9)], "theirs")
    before = state(session)
    with pytest.raises(ZeroDivisionError):
        session.rebase(_Broken())
    with pytest.raises(ZeroDivisionError):
        session.commit("no", rebase_with=_Broken())
    assert state(session) == before
    session.commit("yes", rebase_with=OURS)


def serial(*parts: list[Edit]) -> dict[str, object]:
    repo = started()
    for edits in parts:
        session = session_for(repo, edits)
        for edit in edits:
            make(session, edit)
        session.commit("part", allow_empty=True)
    return dict(state(repo.readonly_session("main")))


def in_some_order(result: object, ours: list[Edit], theirs: list[Edit]) -> bool:
    ours, theirs = effective(ours), effective(theirs)
    for parts in ([theirs, ours], [ours, theirs]):
        try:
            if serial(*parts) == result:
                return True
        except ic.IcechunkError:
            continue
    return False


@given(
    st.one_of(st.lists(data_edits, max_size=5), st.lists(moves, max_size=3)),
    st.lists(st.lists(data_edits, max_size=4), min_size=1, max_size=3),
)
def test_a_rebase_is_refused_or_equals_a_serial_order(ours: list[Edit], theirs: list[list[Edit]]) -> None:
    repo = started()
    session = session_for(repo, ours)
    ours = made(session, ours)
    done = []
    for edits in theirs:
        other = repo.writable_session("main")
        done += made(other, edits)
        other.commit("theirs", allow_empty=True)
    if found_by(session, ic.ConflictDetector()) is None:
        session.commit("ours", allow_empty=True)
        result = state(repo.readonly_session("main"))
        assert in_some_order(result, ours, done)
        parents = {path.rpartition("/")[0] or "/" for path in result if path != "/"}
        assert {path for path in parents if path in result} == parents or _implied(ours, done, parents - set(result))
        assert not [path for path in result if array_above(path, result)]


def _implied(ours: list[Edit], theirs: list[Edit], missing: set[str]) -> bool:
    """Return True if parents were already missing in one side's tree. The format allows that; Zarr fills them in."""
    made_below = {edit[1].rpartition("/")[0] or "/" for edit in [*ours, *theirs] if edit[0] in ("group", "array")}
    return missing <= made_below


def array_above(path: str, result: dict[str, Any]) -> bool:
    above = path.rpartition("/")[0]
    while above:
        document = result.get(above)
        if isinstance(document, tuple) and b'"array"' in document[0]:
            return True
        above = above.rpartition("/")[0]
    return False


@given(st.lists(data_edits, max_size=5), st.lists(data_edits, max_size=5))
def test_ours_win_where_the_solver_says_so(ours: list[Edit], theirs: list[Edit]) -> None:
    repo = started()
    session = repo.writable_session("main")
    ours = made(session, ours)
    other = repo.writable_session("main")
    theirs = made(other, theirs)
    other.commit("theirs", allow_empty=True)
    if found_by(session, OURS) is None:
        assert in_some_order(dict(state(session)), ours, theirs)


def test_the_documents_differ() -> None:
    assert len({array(1), array(2), array(1, 3)}) == 3
