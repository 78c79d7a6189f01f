"""Which writes count as edits: a commit after them succeeds if it succeeds in the official library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import ModuleType
from typing import Any

import icechunk as official
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk_engine as ours
from icechunk_engine.testing.counting import CountingStorage
from xarray_icechunk import to_icechunk

Write = Callable[[Any], object]


def start(lib: ModuleType) -> Any:
    """A repository with an array of four chunks. Only the first is stored."""
    repo = lib.Repository.create(lib.in_memory_storage())
    session = repo.writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(8,), chunks=(2,), dtype="i4", fill_value=0, attributes={"units": "K"}
    )
    array[:2] = 1
    session.commit("start")
    return repo


def opened(session: Any) -> Any:
    return zarr.open_array(session.store, path="a", mode="r+")


def fill(session: Any, start: int, stop: int) -> None:
    opened(session)[start:stop] = 0


def values(repo: Any) -> list[int]:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]).tolist()


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda s: fill(s, 4, 6), id="fill values where no chunk is"),
        pytest.param(lambda s: fill(s, 0, 2), id="fill values where a chunk is"),
        pytest.param(lambda s: opened(s).__setitem__(slice(0, 2), 1), id="the same chunk again"),
        pytest.param(lambda s: asyncio.run(s.store.delete("a/c/3")), id="a chunk deleted that is not there"),
        pytest.param(lambda s: opened(s).attrs.update(units="K"), id="the same attributes again"),
        pytest.param(lambda s: opened(s).resize((8,)), id="the same shape again"),
        pytest.param(lambda s: zarr.open_group(s.store, path="/", mode="a"), id="opened for writing"),
        pytest.param(lambda s: asyncio.run(s.store.delete("a/c/4")), id="a chunk deleted outside the grid"),
        pytest.param(lambda s: asyncio.run(s.store.delete("b/c/0")), id="a chunk deleted of no array"),
        pytest.param(lambda s: asyncio.run(s.store.delete("b/zarr.json")), id="a node deleted that is not there"),
        pytest.param(lambda s: asyncio.run(s.store.delete_dir("a/c/3")), id="a directory deleted that is not there"),
        pytest.param(lambda s: None, id="nothing"),
    ],
)
def test_what_counts_as_an_edit(write: Write) -> None:
    found: list[object] = []
    for lib in (official, ours):
        repo = start(lib)
        before = repo.lookup_branch("main")
        session = repo.writable_session("main")
        write(session)
        dirty = session.has_uncommitted_changes
        try:
            after = session.commit("the job of today")
        except lib.SessionStateError as error:
            found.append((dirty, str(error.kind), "allow_empty" in str(error)))
        else:
            changed = repo.diff(from_snapshot_id=before, to_snapshot_id=after).updated_chunks
            found.append((dirty, {path: [list(index) for index in chunks] for path, chunks in changed.items()}))
    assert found[0] == found[1]


def test_the_error_names_what_was_written_as_it_was() -> None:
    session = start(ours).writable_session("main")
    opened(session).attrs.update(units="K")
    with pytest.raises(
        ours.SessionStateError, match=r"metadata of /a was written again without a change.*allow_empty=True"
    ):
        session.commit("again")
    session.discard_changes()
    with pytest.raises(ours.SessionStateError) as caught:
        session.commit("again")
    assert "/a" not in str(caught.value)


def test_a_day_without_data_is_committed() -> None:
    repo = ours.Repository.create(ours.in_memory_storage())
    days = xr.Dataset({"t": (("day", "x"), np.full((3, 4), np.nan))}, coords={"day": np.arange(3)})
    session = repo.writable_session("main")
    to_icechunk(days, session, encoding={"t": {"chunks": (1, 4)}})
    session.commit("layout")
    session = repo.writable_session("main")
    to_icechunk(days.isel(day=slice(1, 2)).drop_vars("day"), session, region={"day": slice(1, 2)})
    session.commit("day 1")
    assert [info.message for info in repo.ancestry(branch="main")][:2] == ["day 1", "layout"]


@pytest.mark.parametrize("lib", [official, ours], ids=["official", "ours"])
def test_fill_values_conflict_with_another_commit_of_the_chunk(lib: Any) -> None:
    repo = start(lib)
    mine, theirs = repo.writable_session("main"), repo.writable_session("main")
    fill(mine, 4, 6)
    opened(theirs)[4:6] = 7
    theirs.commit("data")
    with pytest.raises(lib.RebaseFailedError) as caught:
        mine.commit("no data", rebase_with=lib.ConflictDetector())
    assert [list(index) for index in caught.value.conflicts[0].conflicted_chunks] == [[2]]
    mine.commit("no data", rebase_with=lib.BasicConflictSolver(on_chunk_conflict=lib.VersionSelection.UseOurs))
    assert values(repo) == [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("lib", [official, ours], ids=["official", "ours"])
def test_fill_values_of_the_fork_that_is_merged_last_win(lib: Any) -> None:
    repo = start(lib)
    session = repo.writable_session("main")
    one, two = session.fork(), session.fork()
    opened(one)[4:6] = 7
    fill(two, 4, 6)
    # Official never refuses, and has no such option.
    session.merge(one, two, **({} if lib is official else {"on_overlap": "last"}))
    session.commit("both")
    assert values(repo) == [1, 1, 0, 0, 0, 0, 0, 0]


def test_fill_values_where_nothing_is_cost_no_manifest_and_no_look() -> None:
    storage = CountingStorage(ours.in_memory_storage())
    repo = ours.Repository.create(storage)
    with repo.transaction("main", message="start") as store:
        array = zarr.create_array(store, name="a", shape=(100,), chunks=(1,), dtype="i4", fill_value=0)
        array[:10] = 1
    before = repo.inspect_snapshot(repo.lookup_branch("main"))["manifests"]
    session = repo.writable_session("main")
    array = zarr.open_array(session.store, path="a", mode="r+")
    storage.reset()
    array[50:60] = 0
    assert storage.n_requests == 0
    session.commit("nothing to see")
    assert repo.inspect_snapshot(repo.lookup_branch("main"))["manifests"] == before


def test_sparse_new_arrays_remember_no_empty_chunk() -> None:
    session = ours.Repository.create(ours.in_memory_storage()).writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(50,), chunks=(1,), dtype="i4", fill_value=0)
    array[:] = 0
    assert not session.status().updated_chunks
    array[3] = 1
    array[3] = 0
    assert session.status().updated_chunks == {"/a": [[3]]}
