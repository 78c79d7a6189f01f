"""Moves in random trees, compared with a dictionary, and moves that are not allowed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository
from icechunk_engine.session import workspace_of
from tests.engine.transaction.edits import array, group, made, make, moves, started, state

NAMES = ("a", "b", "ab", "a-b", "c")


def within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


class Model:
    """The id at each path, and the first path of each id."""

    def __init__(self, session: ic.Session) -> None:
        self.nodes = {node.path: (str(node.node_id), node.is_array) for node in workspace_of(session).list_nodes()}
        self.origins = {node_id: path for path, (node_id, _) in self.nodes.items()}

    def move(self, source: str, target: str) -> ErrorKind | None:
        parent = target.rpartition("/")[0] or "/"
        if source not in self.nodes:
            return ErrorKind.NODE_NOT_FOUND
        if source == "/" or within(target, source):
            return ErrorKind.MOVE_INTO_SELF_OR_DESCENDANT
        if target in self.nodes:
            return ErrorKind.MOVE_WONT_OVERWRITE
        above = [target[:i] for i, letter in enumerate(target) if letter == "/" and i]
        if any(self.nodes.get(one, ("", False))[1] for one in above):
            return ErrorKind.MOVE_DESTINATION_PARENT_NOT_GROUP
        if parent not in self.nodes:
            return ErrorKind.MOVE_DESTINATION_PARENT_MISSING
        self.nodes = {
            target + path[len(source) :] if within(path, source) else path: node for path, node in self.nodes.items()
        }
        return None

    @property
    def moved(self) -> list[tuple[str, str]]:
        pairs = [(self.origins[node_id], path) for path, (node_id, _) in self.nodes.items()]
        return sorted(((old, new) for old, new in pairs if old != new), key=lambda pair: pair[1].split("/"))


def random_tree(draw: st.DrawFn) -> Repository:
    repo = Repository.create(ic.in_memory_storage())
    session = repo.writable_session("main")
    workspace_of(session).set_metadata("/", group())
    groups = [""]
    for _ in range(draw(st.integers(1, 8))):
        path = f"{draw(st.sampled_from(groups))}/{draw(st.sampled_from(NAMES))}"
        if workspace_of(session).get_node(path) is None:
            is_array = draw(st.booleans())
            workspace_of(session).set_metadata(path, array() if is_array else group())
            if is_array:
                workspace_of(session).set_chunk(path, (1,), path.encode())
            else:
                groups.append(path)
    session.commit("tree")
    return repo


@given(st.data())
def test_moves_do_to_trees_what_they_do_to_a_dictionary(data: st.DataObject) -> None:
    repo = data.draw(st.composite(random_tree)())
    before = repo.lookup_branch("main")
    session = repo.rearrange_session("main")
    model = Model(session)
    documents = {str(node.node_id): node.user_data for node in workspace_of(session).list_nodes()}
    for _ in range(data.draw(st.integers(1, 6))):
        known = sorted(model.nodes)
        source = data.draw(st.sampled_from([*known, "/missing"]))
        target = data.draw(st.sampled_from(known)).rstrip("/") + "/" + data.draw(st.sampled_from([*NAMES, "x/y"]))
        expected = model.move(source, target)
        slash = data.draw(st.sampled_from(["", "/"]))
        try:
            session.move(source, target + slash)
            found = None
        except ic.IcechunkError as error:
            found = error.kind
        assert found == expected, (source, target)
        check(session, model, documents)
        assert session.status().moved_nodes == model.moved
        assert session.has_uncommitted_changes == bool(model.moved)
    if not model.moved:
        return
    session.commit("moved")
    reader = repo.readonly_session("main")
    check(reader, model, documents)
    diff = repo.diff(from_snapshot_id=before, to_branch="main")
    assert diff.moved_nodes == model.moved
    assert not diff.chunk_columns
    assert not diff.new_arrays | diff.new_groups | diff.deleted_arrays | diff.deleted_groups
    undone = repo.rearrange_session("main")
    for node_id, path in sorted(model.origins.items(), key=lambda item: item[1]):
        present = next(at for at, (known_id, _) in model.nodes.items() if known_id == node_id)
        assert str(undone.get_node_id(present)) == node_id
        assert path == model.origins[node_id]


def check(session: ic.Session, model: Model, documents: dict[str, bytes]) -> None:
    found = {node.path: (str(node.node_id), node.is_array) for node in workspace_of(session).list_nodes()}
    assert found == model.nodes
    for path, (node_id, is_array) in model.nodes.items():
        assert session.get_node_id(path) == node_id
        assert workspace_of(session).read_metadata(path) == documents[node_id]
        names = {other[len(path.rstrip("/")) + 1 :].split("/")[0] for other in found if other != path}
        below = {other for other in found if other != path and within(other, path.rstrip("/"))}
        expected = sorted({other[len(path.rstrip("/")) + 1 :].split("/")[0] for other in below})
        assert workspace_of(session).child_names(path) == expected
        assert names >= set(expected)
        if is_array:
            ref = workspace_of(session).locate_chunk(path, (1,))
            assert ref is not None
            assert workspace_of(session).fetch_chunk(ref, 0, ref.length).decode() == model.origins[node_id]


@given(st.lists(moves, max_size=4), st.lists(moves, max_size=4))
def test_amending_moves_composes_them(first: list[tuple[str, ...]], second: list[tuple[str, ...]]) -> None:
    one, two = started(), started()
    start = one.lookup_branch("main")
    session = one.rearrange_session("main")
    made(session, first)
    session.commit("first", allow_empty=True)
    session = one.rearrange_session("main")
    done = made(session, second)
    session.amend("both", allow_empty=True)
    session = two.rearrange_session("main")
    made(session, first)
    assert made(session, done) == done
    session.commit("both", allow_empty=True)
    assert state(one.readonly_session("main")) == state(two.readonly_session("main"))
    steps = one.diff(from_snapshot_id=start, to_branch="main").moved_nodes
    assert (
        steps
        == two.diff(from_snapshot_id=two.lookup_snapshot(session.snapshot_id).parent_id, to_branch="main").moved_nodes
    )


def test_amending_may_undo_a_move() -> None:
    repo = started()
    start = repo.lookup_branch("main")
    for move in (("/g", "/n"), ("/n/a", "/b"), ("/n", "/g")):
        session = repo.rearrange_session("main")
        session.move(*move)
        session.commit("first") if move == ("/g", "/n") else session.amend("undone in part")
    assert repo.diff(from_snapshot_id=start, to_branch="main").moved_nodes == [("/g/a", "/b")]
    assert repo.inspect_transaction_log(session.snapshot_id)["moved_nodes"] == [{"from": "/g/a", "to": "/b"}]


def test_only_rearrange_sessions_move_and_they_do_nothing_else() -> None:
    repo = started()
    for session, error, kind in (
        (repo.writable_session("main"), ic.SessionStateError, ErrorKind.NON_REARRANGE_SESSION),
        (repo.writable_session("main").fork(), ic.SessionStateError, ErrorKind.NON_REARRANGE_SESSION),
        (repo.readonly_session("main"), ic.ReadOnlyError, ErrorKind.READ_ONLY_SESSION),
    ):
        with pytest.raises(error) as caught:
            session.move("/a", "/b")
        assert caught.value.kind == kind
    session = repo.rearrange_session("main")
    assert session.mode is ic.SessionMode.rearrange
    for edit in (("group", "/n"), ("delete", "/a"), ("write", "/a", 0, 1), ("clear", "/a", 0)):
        with pytest.raises(ic.SessionStateError) as refused:
            make(session, edit)
        assert refused.value.kind == ErrorKind.REARRANGE_SESSION_ONLY
    for action in (session.fork, lambda: session.merge(repo.writable_session("main").fork())):
        with pytest.raises(ic.SessionStateError) as refused:
            action()
        assert refused.value.kind == ErrorKind.REARRANGE_SESSION_ONLY
    with pytest.raises(ic.InvalidInputError):
        session.move("a", "/b")
    with pytest.raises(ic.InvalidInputError):
        session.move("/a", "b")
    session.move("/a", "/b")
    session.discard_changes()
    assert not session.has_uncommitted_changes
    with pytest.raises(ic.SessionStateError) as nothing:
        session.commit("nothing")
    assert nothing.value.kind == ErrorKind.NO_CHANGES_TO_COMMIT
    session.commit("empty", allow_empty=True)


def test_the_feature_can_be_switched_off() -> None:
    repo = started()
    session = repo.rearrange_session("main")
    session.move("/a", "/b")
    repo.set_feature_flag("move_node", False)
    for action in (
        lambda: repo.rearrange_session("main"),
        lambda: session.commit("no"),
        lambda: session.amend("no"),
        lambda: session.flush("no"),
    ):
        with pytest.raises(ic.SessionStateError, match="move_node") as caught:
            action()
        assert caught.value.kind == ErrorKind.FEATURE_FLAG_DISABLED
    repo.set_feature_flag("move_node", None)
    detached = session.flush("detached")
    assert "/b" in state(repo.readonly_session(snapshot_id=detached))
    assert "/b" not in state(repo.readonly_session("main"))


def test_async_twins() -> None:
    async def scenario(repo: Repository) -> str:
        session = await repo.rearrange_session_async("main")
        await session.move_async("/g", "/n")
        await session.commit_async("moved")
        session = await repo.rearrange_session_async("main")
        await session.move_async("/n", "/o")
        await session.amend_async("moved again")
        return str(await repo.ancestry_graph_async(plain=True))

    repo = started()
    assert "(main) moved again" in asyncio.run(scenario(repo))
    assert "/o/h/a" in state(repo.readonly_session("main"))


def test_a_prefix_is_no_parent() -> None:
    """A path that is a mere prefix of another is not its parent."""
    repo = Repository.create(ic.in_memory_storage())
    session = repo.writable_session("main")
    for path in ("/", "/a", "/a/x", "/a-b", "/ab", "/ab/x"):
        workspace_of(session).set_metadata(path, group())
    session.commit("start")
    session = repo.rearrange_session("main")
    session.move("/a", "/ab/a")
    session.commit("moved")
    assert sorted(state(repo.readonly_session("main"))) == ["/", "/a-b", "/ab", "/ab/a", "/ab/a/x", "/ab/x"]
