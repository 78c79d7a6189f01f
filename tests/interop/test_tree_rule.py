"""Arrays have no members, and nodes that were not named are not deleted, even in trees that official wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import icechunk as official
import pytest
import zarr
from zarr.buffer.cpu import Buffer

import icechunk_engine as ours
from tests.engine.zarr_store.support import GROUP, array_document

ARRAY = array_document((4,))
Step = tuple[str, str]

TREE: list[Step] = [("group", "g"), ("array", "g/a"), ("chunk", "g/a"), ("group", "g/h"), ("array", "g/h/x")]


def run(session: ours.Session, steps: list[Step]) -> None:
    store = session.store

    async def take(kind: str, path: str) -> None:
        key = f"{path}/zarr.json" if path else "zarr.json"
        if kind == "group":
            await store.set(key, Buffer.from_bytes(GROUP))
        elif kind == "array":
            await store.set(key, Buffer.from_bytes(ARRAY))
        elif kind == "chunk":
            await store.set(f"{path}/c/0", Buffer.from_bytes(b"1"))
        elif kind == "delete":
            await store.delete(key)
        else:
            await store.delete_dir(path)

    async def all_steps() -> None:
        for kind, path in steps:
            await take(kind, path)

    asyncio.run(all_steps())


def keys(session: Any) -> set[str]:
    async def listed() -> set[str]:
        return {key async for key in session.store.list()}

    return asyncio.run(listed())


def open_ours(path: Path) -> ours.Session:
    return ours.Repository.open(ours.local_filesystem_storage(str(path))).writable_session("main")


def written(lib: ModuleType, path: Path, steps: list[Step]) -> None:
    session = lib.Repository.create(lib.local_filesystem_storage(str(path))).writable_session("main")
    run(session, steps)
    session.commit("start")


@pytest.mark.parametrize(
    "steps",
    [
        [("delete", "g")],
        [("delete", "g/a")],
        [("delete", "g/h")],
        [("delete", "g/h/x")],
        [("delete", "")],
        [("delete", "nothing")],
        [("delete", "g"), ("array", "g")],
        [("directory", "g")],
        [("directory", "g/a")],
        [("directory", "")],
    ],
)
def test_deletions_in_usual_trees_are_those_of_official(steps: list[Step], tmp_path: Path) -> None:
    found = []
    for lib in (official, ours):
        path = tmp_path / lib.__name__
        written(lib, path, [("group", ""), *TREE])
        session = lib.Repository.open(lib.local_filesystem_storage(str(path))).writable_session("main")
        run(session, steps)
        found.append(keys(session))
    assert found[0] == found[1]


NESTED: list[Step] = [("group", ""), ("array", "a/b"), ("chunk", "a/b"), ("array", "a"), ("chunk", "a")]


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([("delete", "a")], {"zarr.json", "a/b/zarr.json", "a/b/c/0"}),
        ([("delete", "a/b")], {"zarr.json", "a/zarr.json", "a/c/0"}),
        ([("directory", "a")], {"zarr.json"}),
        ([("delete", "a"), ("delete", "a")], {"zarr.json", "a/b/zarr.json", "a/b/c/0"}),
        ([("delete", "a"), ("directory", "a")], {"zarr.json"}),
    ],
)
def test_arrays_below_arrays_that_official_wrote(steps: list[Step], left: set[str], tmp_path: Path) -> None:
    written(official, tmp_path, NESTED)
    session = open_ours(tmp_path)
    run(session, steps)
    assert keys(session) == left
    session.commit("less")
    repo = official.Repository.open(official.local_filesystem_storage(str(tmp_path)))
    assert keys(repo.readonly_session("main")) == left


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize(
    "steps",
    [
        [("array", "a"), ("array", "a/b")],
        [("array", "a"), ("group", "a/b")],
        [("array", "a"), ("group", "a/b/c/d")],
        [("array", "a/b"), ("array", "a")],
        [("group", "a/b"), ("array", "a")],
        [("group", "a/b/c/d"), ("array", "a")],
    ],
)
def test_arrays_have_no_members_in_either_order(steps: list[Step], committed: bool, tmp_path: Path) -> None:
    session = ours.Repository.create(ours.local_filesystem_storage(str(tmp_path))).writable_session("main")
    run(session, steps[:1])
    if committed:
        session.commit("first")
        session = open_ours(tmp_path)
    before = keys(session)
    with pytest.raises(ours.InvalidInputError, match="arrays have no members") as caught:
        run(session, steps[1:])
    assert caught.value.kind == ours.ErrorKind.NOT_A_GROUP
    assert keys(session) == before
    # Writing succeeds after the existing node is deleted.
    run(session, [("directory", "a"), *steps[1:]])
    assert len(keys(session)) == 1


def test_members_of_a_group_without_document_stay_when_its_document_is_deleted(tmp_path: Path) -> None:
    for steps in ([], [("directory", "g")]):
        path = tmp_path / str(len(steps))
        written(ours, path, [("array", "g/a"), ("chunk", "g/a")])
        session = open_ours(path)
        run(session, [("array", "g/new"), ("delete", "g"), *steps])
        assert keys(session) == (set() if steps else {"g/a/zarr.json", "g/a/c/0", "g/new/zarr.json"})


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize(
    "overwrite",
    [
        lambda store: zarr.create_array(store, name="g", shape=(4,), dtype="i4", overwrite=True),
        lambda store: zarr.create_group(store, path="g", overwrite=True),
        lambda store: zarr.open_group(store, path="g", mode="w"),
    ],
    ids=["array", "group", "mode w"],
)
def test_zarr_overwrites_whole_groups(overwrite: Callable[[object], object], committed: bool, tmp_path: Path) -> None:
    steps = [("group", ""), *TREE, ("group", "gg")]
    written(ours, tmp_path, steps if committed else steps[:1])
    session = open_ours(tmp_path)
    if not committed:
        run(session, steps[1:])
    overwrite(session.store)
    assert keys(session) == {"zarr.json", "g/zarr.json", "gg/zarr.json"}


@pytest.mark.parametrize("member", [("array", "a/b"), ("group", "a/b/c")])
@pytest.mark.parametrize("array_first", [True, False])
def test_forks_that_made_an_array_and_its_member_do_not_merge(member: Step, array_first: bool, tmp_path: Path) -> None:
    session = ours.Repository.create(ours.local_filesystem_storage(str(tmp_path))).writable_session("main")
    one, two = session.fork(), session.fork()
    run(one, [("array", "a")])
    run(two, [member])
    with pytest.raises(ours.SessionStateError, match="array") as caught:
        session.merge(*([one, two] if array_first else [two, one]))
    assert caught.value.kind == ours.ErrorKind.MERGE_FAILED
    assert keys(session) == set()
