"""Random edits, forks, discards and commits leave the same tree and raise the same errors in both libraries.

The programs leave out intended differences: nodes below arrays, deleting a directory that is not a node, and deleting
absent chunks of an array that the session made. Official lists these chunks, and counts them even if the array is
deleted again.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import icechunk as official
from hypothesis import given
from hypothesis import strategies as st
from zarr.buffer.cpu import Buffer

import icechunk_engine as ours
from icechunk_engine.paths import ancestors
from icechunk_engine.session import workspace_of
from tests.engine.zarr_store.support import array_document

type Edit = tuple[Any, ...]

GROUPS = ["", "g", "g/h", "k"]
ARRAYS = ["a", "g/a", "g/h/a", "k/a"]

paths, groups, arrays = st.sampled_from(GROUPS + ARRAYS), st.sampled_from(GROUPS), st.sampled_from(ARRAYS)
numbers, versions, sizes = st.integers(0, 6), st.integers(0, 1), st.sampled_from([1, 600])
chunk_edits = st.one_of(
    st.tuples(st.just("write"), paths, numbers, sizes),
    st.tuples(st.just("write"), arrays, numbers, sizes),
    st.tuples(st.just("clear"), arrays, numbers),
)
edits = st.one_of(
    chunk_edits,
    st.tuples(st.just("group"), groups, versions),
    st.tuples(st.just("array"), arrays, versions),
    st.tuples(st.sampled_from(["array", "group"]), paths, versions),
    st.tuples(st.sampled_from(["delete", "directory", "chunks"]), paths),
    st.tuples(st.just("fork"), st.lists(chunk_edits, max_size=3)),
    st.tuples(st.sampled_from(["commit", "discard"])),
)


NOTHING = str(ours.ErrorKind.NO_CHANGES_TO_COMMIT)
EMPTY_COMMIT: object = ([[] for _ in range(6)], {})


START: list[Edit] = [
    *(("group", path, 0) for path in ("", "g", "g/h")),
    *(("array", path, 0) for path in ("a", "g/a", "g/h/a")),
    ("write", "a", 0, 1),
    ("write", "g/a", 1, 600),
    ("commit",),
]


def key(path: str) -> str:
    return f"{path}/zarr.json" if path else "zarr.json"


async def make(store: Any, edit: Edit) -> None:
    kind, path, *rest = edit
    if kind == "array":
        await store.set(key(path), Buffer.from_bytes(array_document((5,), attributes={"v": rest[0]})))
    elif kind == "group":
        document = {"zarr_format": 3, "node_type": "group", "attributes": {"v": rest[0]}}
        await store.set(key(path), Buffer.from_bytes(json.dumps(document).encode()))
    elif kind == "write":
        await store.set(f"{path}/c/{rest[0]}", Buffer.from_bytes(b"1" * rest[1]))
    elif kind == "clear":
        await store.delete(f"{path}/c/{rest[0]}")
    elif kind == "delete":
        await store.delete(key(path))
    else:
        await store.delete_dir(path if kind == "directory" else f"{path}/c")


async def tried(lib: Any, store: Any, edit: Edit) -> object:
    try:
        await make(store, edit)
    except lib.IcechunkError as error:
        return type(error).__name__, str(error.kind)
    return None


class Program:
    """A program that runs with one library."""

    def __init__(self, lib: Any, spec_version: int) -> None:
        self.lib = lib
        self.repo = lib.Repository.create(lib.in_memory_storage(), spec_version=spec_version)
        self.session = self.repo.writable_session("main")

    async def keys(self) -> list[str]:
        return sorted([name async for name in self.session.store.list()])

    async def step(self, edit: Edit) -> object:
        """Return the outcome of an edit, for comparison."""
        if edit[0] == "commit":
            return self.committed()
        if edit[0] == "discard":
            return self.session.discard_changes()
        if edit[0] == "fork":
            fork = self.session.fork()
            results = [await tried(self.lib, fork.store, one) for one in edit[1]]
            self.session.merge(fork)
            return results
        return await tried(self.lib, self.session.store, edit)

    def committed(self) -> object:
        before = self.repo.lookup_branch("main")
        try:
            self.session.commit("done")
        except self.lib.SessionStateError as error:
            return str(error.kind)
        finally:
            self.session = self.repo.writable_session("main")
        diff = self.repo.diff(from_snapshot_id=before, to_branch="main")
        nodes = [diff.new_groups, diff.new_arrays, diff.deleted_groups, diff.deleted_arrays]
        changed = {path: chunks for path, chunks in diff.updated_chunks.items() if path not in diff.new_arrays}
        return (
            [sorted(found) for found in (*nodes, diff.updated_groups, diff.updated_arrays)],
            {path: sorted(map(tuple, chunks)) for path, chunks in changed.items()},
        )


def comparable(edit: Edit, present: list[str], arrays_there: set[str]) -> bool:
    """Return False for intended differences."""
    if edit[0] in ("directory", "chunks"):
        return key(edit[1]) in present
    if edit[0] not in ("array", "group") or key(edit[1]) in present:
        return True
    above = {path.strip("/") for path in ancestors("/" + edit[1])} if edit[1] else set()
    has_members = edit[0] == "array" and any(name.startswith(f"{edit[1]}/" if edit[1] else "") for name in present)
    return not above & arrays_there and not has_members


@given(spec_version=st.sampled_from([1, 2]), program=st.lists(edits, max_size=20))
def test_programs_end_the_same(spec_version: int, program: list[Edit]) -> None:
    async def run() -> None:
        sides = [Program(lib, spec_version) for lib in (official, ours)]
        for edit in [*START, *program]:
            present = await sides[1].keys()
            arrays_there = {
                node.path.strip("/") for node in workspace_of(sides[1].session).list_nodes() if node.is_array
            }
            if not comparable(edit, present, arrays_there):
                continue
            expected, found = [await side.step(edit) for side in sides]
            assert found == (NOTHING if found == NOTHING and expected == EMPTY_COMMIT else expected), edit
            expected, found = [await side.keys() for side in sides]
            assert found == expected, edit
        expected, found = [side.committed() for side in sides]
        assert found == (NOTHING if found == NOTHING and expected == EMPTY_COMMIT else expected)

    asyncio.run(run())
