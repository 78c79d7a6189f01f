"""The same history, made with each library, looks the same from both: moves, amends, refs, pictures, files."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import icechunk_engine as ours
from icechunk_engine.format.repo_info import decode_repo_info, encode_repo_info

LIBRARIES = (official, ours)


def nodes(session: Any) -> dict[str, Any]:
    """Return every node with its values, or None for groups."""
    root = zarr.open_group(session.store, mode="r")
    found: dict[str, Any] = {"/": None}
    for path, node in root.members(max_depth=None):
        found[f"/{path}"] = np.asarray(node[...]).tolist() if isinstance(node, zarr.Array) else None
    return found


def diff_of(diff: Any) -> dict[str, Any]:
    sets = ("new_groups", "new_arrays", "deleted_groups", "deleted_arrays", "updated_groups", "updated_arrays")
    return {name: set(getattr(diff, name)) for name in sets} | {
        "moved": [tuple(move) for move in diff.moved_nodes],
        "chunks": {path: sorted(map(tuple, chunks)) for path, chunks in diff.updated_chunks.items()},
    }


def outcome(function: Any, *args: Any, **kwargs: Any) -> tuple[str, str] | None:
    """Return class and kind of the error, or None if the call succeeds."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(getattr(error, "kind", None))
    return None


class Twins:
    """One repository for each library. Both get the same steps."""

    def __init__(self) -> None:
        self.repos = [lib.Repository.create(lib.in_memory_storage()) for lib in LIBRARIES]
        self.snapshots: list[tuple[str, str]] = []

    def commit(self, steps: list[tuple[Any, ...]], method: str, branch: str, message: str) -> None:
        """Make edits or moves in a session of each repository, compare the sessions, and end them."""
        is_move = steps[0][0] == "move"
        made = []
        for repo in self.repos:
            session = repo.rearrange_session(branch) if is_move else repo.writable_session(branch)
            results = [outcome(edit, session, *step) for step in steps]
            seen = nodes(session), diff_of(session.status())
            ended = outcome(getattr(session, method), message, allow_empty=True)
            made.append((results, seen, ended, session.snapshot_id if ended is None else None))
        theirs, mine = made
        assert mine[0] == theirs[0]
        assert mine[1] == theirs[1]
        assert mine[2] == theirs[2]
        if mine[3] is not None and theirs[3] is not None:
            self.snapshots.append((theirs[3], mine[3]))

    def check(self) -> None:
        """Require that everything visible is equal, except for ids."""
        by_id = [{pair[side]: i for i, pair in enumerate(self.snapshots)} for side in (0, 1)]
        views = []
        for repo, numbers in zip(self.repos, by_id, strict=True):
            view: dict[str, Any] = {}
            for branch in sorted(repo.list_branches()):
                history = list(repo.ancestry(branch=branch))
                view[branch] = [(numbers.get(info.id), numbers.get(info.parent_id), info.message) for info in history]
                view[branch, "nodes"] = nodes(repo.readonly_session(branch)) if len(history) > 1 else None
                diff = repo.diff(from_snapshot_id=history[-1].id, to_branch=branch)
                view[branch, "diff"] = diff_of(diff)
            view["ops"] = [type(update.kind).__name__ for update in repo.ops_log()]
            views.append(view)
        assert views[1] == views[0]


def edit(session: Any, kind: str, *args: Any) -> None:
    if kind == "move":
        session.move(*args)
        return
    root = zarr.open_group(session.store, mode="a")
    path = args[0].lstrip("/")
    if kind == "group":
        root.require_group(path)
    elif kind == "array":
        root.create_array(path, shape=(4,), chunks=(2,), dtype="i4", fill_value=0)
    elif kind == "write":
        root[path][args[1] : args[1] + 2] = args[2]
    elif kind == "attrs":
        root[path].attrs["v"] = args[1]
    elif kind == "delete":
        del root[path]


PATHS = ["/g", "/g/h", "/k", "/g/a", "/g/h/a", "/k/a", "/a", "/b", "/n", "/k/n", "/g/h/n"]
edits = st.one_of(
    st.tuples(st.just("group"), st.sampled_from(["/g", "/g/h", "/k"])),
    st.tuples(st.just("array"), st.sampled_from(["/g/a", "/g/h/a", "/k/a", "/a", "/b"])),
    st.tuples(st.just("write"), st.sampled_from(PATHS), st.sampled_from([0, 2]), st.integers(1, 9)),
    st.tuples(st.just("attrs"), st.sampled_from(PATHS), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.sampled_from(PATHS)),
)
moves = st.tuples(st.just("move"), st.sampled_from([*PATHS, "/"]), st.sampled_from([*PATHS, "/g/h/x", "/x/y"]))
sessions = st.one_of(st.lists(edits, min_size=1, max_size=6), st.lists(moves, min_size=1, max_size=5))

START = [("group", "/g"), ("group", "/g/h"), ("array", "/g/h/a"), ("array", "/b"), ("write", "/b", 0, 1)]


@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(st.lists(st.tuples(sessions, st.booleans()), min_size=1, max_size=6))
def test_the_same_steps_are_seen_the_same(plan: list[tuple[list[tuple[Any, ...]], bool]]) -> None:
    twins = Twins()
    twins.commit(START, "commit", "main", "start")
    moved = False
    for i, (steps, amend) in enumerate(plan):
        is_move = steps[0][0] == "move"
        # Official cannot amend a commit of moves with edits.
        method = "amend" if amend and i and (is_move or not moved) else "commit"
        twins.commit(steps, method, "main", f"{method} {i}")
        moved = is_move or (moved and method == "amend")
    twins.check()


@pytest.mark.parametrize("writer", LIBRARIES, ids=["official", "ours"])
def test_files_and_pictures_are_described_the_same(writer: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "repo")
    repo = writer.Repository.create(writer.local_filesystem_storage(path))
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    root.create_array("a", shape=(4, 3), chunks=(2, 3), dtype="i4", dimension_names=["x", None])[:] = 1
    root.create_array("scalar", shape=(), dtype="i4")[...] = 1
    root.create_array("empty", shape=(0,), dtype="i4")
    root.create_group("g")
    first = session.commit("first", metadata={"k": [1, {"a": None}], "f": 1.5})
    session = repo.rearrange_session("main")
    session.move("/a", "/g/b")
    second = session.commit("second")
    session = repo.rearrange_session("main")
    session.move("/g", "/h")
    third = session.amend("third")
    repo.create_branch("dev", first)
    for name in ("t", "gone"):
        repo.create_tag(name, second)
    repo.delete_tag("gone")
    with repo.transaction("dev", message="on dev\nwith a second line") as store:
        zarr.open_group(store)["scalar"].attrs["x"] = 1
    session = repo.writable_session("dev")
    zarr.open_group(session.store).create_group("detached")
    session.flush("detached")
    repo.create_branch("old", first)
    repo.reset_branch("old", "1CECHNKREP0F1RSTCMT0")
    repo.delete_branch("old")
    repo.set_metadata({"z": 1})
    repo.set_feature_flag("move_node", False)
    repo.set_feature_flag("move_node", None)
    repo.save_config()
    for availability in ("read_only", "online"):
        repo.set_status(writer.RepoStatus(getattr(writer.RepoAvailability, availability)))
    judge = official.Repository.open(official.local_filesystem_storage(path))
    mine = ours.Repository.open(ours.local_filesystem_storage(path))
    assert mine.inspect_repo_info() == judge.inspect_repo_info()
    for snapshot_id in ("1CECHNKREP0F1RSTCMT0", first, second, third):
        assert mine.inspect_snapshot(snapshot_id) == judge.inspect_snapshot(snapshot_id)
        assert mine.inspect_transaction_log(snapshot_id) == judge.inspect_transaction_log(snapshot_id)
    for ref in ({}, {"branch": "main"}, {"branch": "dev"}, {"tag": "t"}, {"snapshot_id": first}):
        # Official shows a nameless branch if history does not begin at a branch.
        picture = str(mine.ancestry_graph(plain=True, **ref))
        expected = str(judge.ancestry_graph(plain=True, **ref)).replace("(, ", "(").replace(" () ", " ")
        assert [line.rstrip() for line in picture.splitlines()] == [line.rstrip() for line in expected.splitlines()]
    assert mine.ancestry_graph()._repr_svg_().startswith("<svg")


@pytest.mark.parametrize("microsecond", [123_456, 123_450, 123_000, 120_000, 0])
def test_times_are_written_with_as_many_digits(microsecond: int, tmp_path: Path) -> None:
    ours.Repository.create(ours.local_filesystem_storage(str(tmp_path)))
    info = decode_repo_info((tmp_path / "repo").read_bytes())
    rows = info.updates.rows.copy()
    rows["updated_at"] = 1_795_264_193_000_000 + microsecond
    changed = dataclasses.replace(info, updates=dataclasses.replace(info.updates, rows=rows))
    (tmp_path / "repo").write_bytes(encode_repo_info(changed))
    found = [library.Repository.open(library.local_filesystem_storage(str(tmp_path))) for library in (ours, official)]
    assert found[0].inspect_repo_info() == found[1].inspect_repo_info()


@pytest.mark.parametrize("writer", LIBRARIES, ids=["official", "ours"])
def test_one_amends_what_the_other_wrote(writer: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "repo")
    other = ours if writer is official else official
    repo = writer.Repository.create(writer.local_filesystem_storage(path))
    with repo.transaction("main", message="start") as store:
        root = zarr.create_group(store)
        root.create_array("a", shape=(4,), chunks=(2,), dtype="i4", fill_value=0)
        root.create_array("b", shape=(4,), chunks=(2,), dtype="i4", fill_value=0)
    start = repo.lookup_branch("main")
    with repo.transaction("main", message="to be amended") as store:
        root = zarr.open_group(store)
        root["a"][:2] = 1
        root.create_array("c", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
        del root["b"]
    amended = repo.lookup_branch("main")
    again = other.Repository.open(other.local_filesystem_storage(path))
    session = again.writable_session("main")
    root = zarr.open_group(session.store)
    root["a"][2:] = 2
    root["a"].attrs["x"] = 1
    del root["c"]
    root.create_group("g")
    with pytest.raises(Exception, match="first"):
        other.Repository.create(other.in_memory_storage()).writable_session("main").amend("no", allow_empty=True)
    tip = session.amend("amended", metadata={"m": 1})
    views = []
    for lib in LIBRARIES:
        reader = lib.Repository.open(lib.local_filesystem_storage(path))
        newest, older, _ = reader.ancestry(branch="main")
        assert (newest.id, newest.parent_id, newest.message) == (tip, start, "amended")
        assert newest.metadata == {"m": 1}
        assert older.id == start
        log = reader.inspect_transaction_log(tip)
        log.pop("header")
        assert sorted(map(len, (log["new_arrays"], log["deleted_arrays"], log["new_groups"]))) == [1, 1, 2]
        assert log["new_arrays"][0] in log["deleted_arrays"]
        views.append((log, diff_of(reader.diff(from_snapshot_id=start, to_branch="main"))))
        assert nodes(reader.readonly_session("main")) == {"/": None, "/a": [1, 1, 2, 2], "/g": None}
        assert nodes(reader.readonly_session(snapshot_id=amended))["/c"] == [1, 1]
    assert views[0] == views[1]


def test_edits_may_amend_moves(tmp_path: Path) -> None:
    """Official refuses this, but reads the result."""
    path = str(tmp_path / "repo")
    repo = ours.Repository.create(ours.local_filesystem_storage(path))
    with repo.transaction("main", message="start") as store:
        root = zarr.create_group(store)
        for name in "ab":
            root.create_array(name, shape=(4,), chunks=(2,), dtype="i4")[:] = 1
    start = repo.lookup_branch("main")
    session = repo.rearrange_session("main")
    session.move("/a", "/c")
    session.move("/b", "/d")
    session.commit("moves")
    session = repo.writable_session("main")
    zarr.open_group(session.store)["c"][:2] = 5
    del zarr.open_group(session.store)["d"]
    session.amend("moves and edits")
    judge = official.Repository.open(official.local_filesystem_storage(path))
    for reader in (judge, repo):
        assert nodes(reader.readonly_session("main")) == {"/": None, "/c": [5, 5, 1, 1]}
        diff = diff_of(reader.diff(from_snapshot_id=start, to_branch="main"))
        assert diff["moved"] == [("/a", "/c")]
        assert diff["deleted_arrays"] == {"/b"}
        assert diff["chunks"] == {"/c": [(0,)]}


def test_logs_of_snapshots_whose_ancestors_expired(tmp_path: Path) -> None:
    """They replace all snapshots that expired before them, and say so."""
    path = str(tmp_path)
    repo = official.Repository.create(official.local_filesystem_storage(path))

    def commit(message: str, edit: Any) -> str:
        session = repo.writable_session("main")
        edit(session.store)
        return str(session.commit(message))

    def array(store: Any) -> None:
        zarr.group(store).create_array("a", shape=(4,), chunks=(1,), dtype="i4")[:2] = 1

    first = commit("one", array)
    second = commit("two", lambda store: zarr.open_group(store)["a"].__setitem__(3, 1))
    session = repo.rearrange_session("main")
    session.move("/a", "/b")
    third = session.commit("three")
    expired = datetime.now(UTC)
    tip = commit("four", lambda store: zarr.open_group(store)["b"].__setitem__(2, 1))
    assert repo.expire_snapshots(expired) == {first, second, third}
    judge = official.Repository.open(official.local_filesystem_storage(path))
    mine = ours.Repository.open(path)

    def both() -> Any:
        theirs, own = judge.inspect_transaction_log(tip), mine.inspect_transaction_log(tip)
        notes = [log["synthetic_composite"].pop("note") for log in (theirs, own)]
        assert all("expir" in note for note in notes)
        assert own == theirs
        return own

    log = both()
    assert log["updated_chunks"][0]["chunks"] == [[0], [1], [2], [3]]
    assert set(log["synthetic_composite"]["merged_pruned_ancestor_tx_logs"]) == {first, second, third}
    assert "synthetic_composite" not in mine.inspect_transaction_log("1CECHNKREP0F1RSTCMT0")
    (tmp_path / "transactions" / second).unlink()
    judge = official.Repository.open(official.local_filesystem_storage(path))
    mine = ours.Repository.open(path)
    assert both()["synthetic_composite"]["missing_tx_logs"] == [second]
