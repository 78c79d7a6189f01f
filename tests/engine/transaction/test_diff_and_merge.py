"""Diffs compared with the two states, and merges of forks compared with the same edits in one session."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from itertools import permutations

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine as ic
from icechunk_engine import ErrorKind
from icechunk_engine.session import workspace_of
from icechunk_engine.transaction.conflict_detection import common_rows
from tests.engine.transaction.edits import Edit, State, data_edits, effective, made, make, started, state


def nodes_by_id(session: ic.Session) -> dict[str, tuple[str, bytes, bool, dict[tuple[int, ...], bytes]]]:
    seen = state(session)
    return {
        str(node.node_id): (node.path, node.user_data, node.is_array, seen[node.path][1])
        for node in workspace_of(session).list_nodes()
    }


def check_diff(diff: ic.Diff, before: ic.Session, after: ic.Session) -> None:
    """Check that a diff has exactly the new and deleted nodes, and at least all changed ones."""
    old, new = nodes_by_id(before), nodes_by_id(after)
    for is_array, added, gone, updated in (
        (True, diff.new_arrays, diff.deleted_arrays, diff.updated_arrays),
        (False, diff.new_groups, diff.deleted_groups, diff.updated_groups),
    ):
        assert added == {new[one][0] for one in new.keys() - old.keys() if new[one][2] == is_array}
        assert gone == {old[one][0] for one in old.keys() - new.keys() if old[one][2] == is_array}
        both = [one for one in new.keys() & old.keys() if new[one][2] == is_array]
        assert updated >= {new[one][0] for one in both if new[one][1] != old[one][1]}
        assert updated <= {new[one][0] for one in both} | added | gone  # the union of what the commits say
    for one, (path, document, is_array, chunks) in new.items():
        if not is_array:
            continue
        before_chunks = old[one][3] if one in old else {}
        changed = {
            index for index in chunks.keys() | before_chunks.keys() if chunks.get(index) != before_chunks.get(index)
        }
        if one in old and old[one][1] != document:
            changed &= chunks.keys()  # a smaller array drops chunks without listing them
        listed = set(map(tuple, diff.updated_chunks.get(path, [])))
        assert changed <= listed
        assert diff.updated_chunks.get(path, []) == sorted(map(list, listed))


@given(st.lists(st.lists(data_edits, max_size=5), min_size=1, max_size=4), st.booleans())
def test_diff_tells_what_differs(commits: list[list[Edit]], amend: bool) -> None:
    repo = started()
    start = repo.lookup_branch("main")
    for i, edits in enumerate(commits):
        session = repo.writable_session("main")
        base = repo.readonly_session("main")
        made(session, edits)
        check_diff(session.status(), base, session)
        assert session.status().is_empty() != session.has_uncommitted_changes
        if amend and i:
            session.amend("amended", allow_empty=True)
        else:
            session.commit("committed", allow_empty=True)
    diff = repo.diff(from_snapshot_id=start, to_branch="main")
    check_diff(diff, repo.readonly_session(snapshot_id=start), repo.readonly_session("main"))


@given(st.lists(data_edits, max_size=4), st.lists(st.lists(data_edits, max_size=4), min_size=1, max_size=3))
def test_a_merge_is_refused_or_equals_a_serial_order(before: list[Edit], parts: list[list[Edit]]) -> None:
    repo = started()
    session = repo.writable_session("main")
    before = made(session, before)
    forks = [pickle.loads(pickle.dumps(session.fork())) for _ in parts]
    done = [made(fork, edits) for fork, edits in zip(forks, parts, strict=True)]
    unmerged, status = state(session), repr(session.status())
    refusal: ic.SessionStateError | None = None
    try:
        session.merge(*(pickle.loads(pickle.dumps(fork)) for fork in forks))
    except ic.SessionStateError as error:
        refusal = error
    if refusal is not None:
        assert refusal.kind == ErrorKind.MERGE_FAILED
        assert state(session) == unmerged
        assert repr(session.status()) == status
        return
    merged = state(session)
    session.commit("merged", allow_empty=True)
    assert state(repo.readonly_session("main")) == merged
    parts = [effective(edits, unmerged) for edits in done]
    assert any(in_turn(before, order) == merged for order in permutations(parts))


def in_turn(before: list[Edit], parts: Iterable[list[Edit]]) -> State | None:
    """Make the same edits in one session, one part after the other; None if one of them is not allowed."""
    session = started().writable_session("main")
    try:
        for edit in (*before, *(edit for part in parts for edit in part)):
            make(session, edit)
    except ic.IcechunkError:
        return None
    return state(session)


@pytest.mark.parametrize("ndim", [0, 1, 3])
def test_common_rows(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    for _ in range(50):
        one, other = (rng.integers(0, 3, (rng.integers(0, 12), ndim)).astype(np.uint32) for _ in range(2))
        expected = sorted(set(map(tuple, one.tolist())) & set(map(tuple, other.tolist())))
        assert list(map(tuple, common_rows(one, other).tolist())) == expected


def test_an_array_took_the_place_of_one_of_another_rank() -> None:
    """Arrays of two ranks had changed chunks at one path, but a table has only one rank."""
    repo = ic.Repository.create(ic.in_memory_storage())
    tips = []
    for shape in ((4,), (4,), (2, 2)):
        session = repo.writable_session("main")
        array = zarr.create_array(
            session.store, name="a", shape=shape, chunks=(1,) * len(shape), overwrite=True, dtype="i1"
        )
        array[:] = 1
        tips.append(session.commit("one"))
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="a")[:] = 2
        tips.append(session.commit("two"))
    diff = repo.diff(from_snapshot_id=tips[2], to_snapshot_id=tips[-1])
    assert sorted(map(tuple, diff.chunk_columns["/a"].tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
