"""Shifting and reindexing chunks works as in the official library."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.buffer.cpu import Buffer

import icechunk_engine as ours
from tests.engine.zarr_store.support import array_document

GRID = (4, 3)
Move = Callable[[Any], None]

cells = st.tuples(st.integers(0, GRID[0] - 1), st.integers(0, GRID[1] - 1))
offsets = st.tuples(st.integers(-5, 5), st.integers(-4, 4))
mirrors = st.sampled_from([(0,), (1,), (0, 1)])


def shift(offset: tuple[int, ...]) -> Move:
    return lambda session: session.shift_array("/a", offset)


def mirror(axes: tuple[int, ...], with_backward: bool) -> Move:
    """Mirroring is its own inverse. Chunks of the first row do not move."""

    def turned(index: Iterable[int]) -> list[int] | None:
        found = list(index)
        if found[0] == 0 and not with_backward:
            return None
        return [GRID[axis] - 1 - value if axis in axes else value for axis, value in enumerate(found)]

    return lambda session: session.reindex_array("/a", turned, turned if with_backward else None)


moves = st.one_of(offsets.map(shift), st.builds(mirror, mirrors, st.booleans()))


def result(
    lib: ModuleType, path: Path, written: list[tuple[int, int]], edited: list[tuple[int, int]], steps: list[Move]
) -> tuple[np.ndarray, set[tuple[int, ...]]]:
    """Return the values after moving chunks, some of them committed before, and the chunks that the commits changed.

    Each move is committed, because official also moves deletions that an earlier move of the session left.
    """
    repo = lib.Repository.create(lib.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(8, 9), chunks=(2, 3), dtype="i4", fill_value=-1)
    for number, (row, column) in enumerate(written):
        array[2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = number
    first = session.commit("written")
    session = repo.writable_session("main")
    array = zarr.open_array(session.store, path="a", mode="r+")
    for number, (row, column) in enumerate(edited):
        array[2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = 100 + number
    for step in steps:
        step(session)
        before = np.asarray(zarr.open_array(session.store, path="a", mode="r")[:])
        second = session.commit("moved", allow_empty=True)
        session = repo.writable_session("main")
        values = np.asarray(zarr.open_array(session.store, path="a", mode="r")[:])
        np.testing.assert_array_equal(values, before)
    changed = repo.diff(from_snapshot_id=first, to_snapshot_id=second).updated_chunks.get("/a", ())
    return values, {tuple(index) for index in changed}


@given(
    written=st.lists(cells, unique=True),
    edited=st.lists(cells, unique=True, max_size=4),
    steps=st.lists(moves, min_size=1, max_size=3),
)
def test_chunks_go_where_official_puts_them(
    written: list[tuple[int, int]], edited: list[tuple[int, int]], steps: list[Move]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected, _ = result(official, Path(folder, "official"), written, edited, steps)
        found, changed = result(ours, Path(folder, "ours"), written, edited, steps)
        np.testing.assert_array_equal(found, expected)
        again = official.Repository.open(official.local_filesystem_storage(str(Path(folder, "ours"))))
        values = zarr.open_array(again.readonly_session("main").store, path="a", mode="r")[:]
        np.testing.assert_array_equal(values, expected)
        before = np.full((8, 9), -1)
        for number, (row, column) in enumerate(written):
            before[2 * row : 2 * row + 2, 3 * column : 3 * column + 3] = number
        really = {(row // 2, column // 3) for row, column in np.argwhere(before != expected).tolist()}
        assert really <= changed


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("lib", [official, ours], ids=["official", "ours"])
@pytest.mark.parametrize("edges", [[2, 3, 4], [[3, 3]]], ids=["different", "equal"])
@pytest.mark.parametrize("committed", [False, True])
def test_a_rectilinear_grid_is_refused(lib: Any, edges: list[Any], committed: bool, tmp_path: Path) -> None:
    """A chunk with 2 elements at a position for 3 cannot be read. Snapshots do not record the grid of an array."""
    repo = lib.Repository.create(lib.local_filesystem_storage(str(tmp_path)))
    session = repo.writable_session("main")
    grid = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [edges]}}
    document = Buffer.from_bytes(array_document((9,), chunk_grid=grid))
    asyncio.run(session.store.set("a/zarr.json", document))
    asyncio.run(session.store.set("a/c/0", Buffer.from_bytes(b"12")))
    if committed:
        session.commit("written")
        session = repo.writable_session("main")
    before = repr(session.status())
    for move in (shift((1,)), lambda s: s.reindex_array("/a", lambda i: i), lambda s: s.shift_array("/a", (0,))):
        with pytest.raises(lib.IcechunkError, match="rectilinear"):
            move(session)
    assert repr(session.status()) == before
