"""Two snapshots never share a task key. One snapshot always gets the same keys."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import xarray_icechunk as xi

from .conftest import write


def constant(value: float) -> xr.Dataset:
    data = xr.Variable(("x", "y"), np.full((4, 6), value), encoding={"chunks": (2, 3)})
    return xr.Dataset({"a": data, "b": data * 10}, coords={"c": (("x", "y"), np.full((4, 6), value))})


@pytest.fixture
def snapshots(repo: Any) -> list[str]:
    return [write(repo, constant(1.0)), write(repo, constant(2.0), mode="w")]


def sums(*datasets: xr.Dataset) -> list[tuple[float, ...]]:
    """Compute all sums in one graph, in which equal keys would collide."""
    computed = dask.compute([[ds[name].sum() for name in ("a", "b", "c")] for ds in datasets])[0]
    return [tuple(float(value) for value in row) for row in computed]


EXPECTED = [(24.0, 240.0, 24.0), (48.0, 480.0, 48.0)]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_one_location_before_and_after_a_commit(repo: Any, location: str, form: str) -> None:
    url = form.format(location)
    write(repo, constant(1.0))
    before = xr.open_dataset(url, engine="icechunk", chunks={})
    write(repo, constant(2.0), mode="w")
    after = xr.open_dataset(url, engine="icechunk", chunks={})
    assert sums(before, after) == EXPECTED


def test_explicit_snapshots(location: str, snapshots: list[str]) -> None:
    opened = [xi.open_dataset(location, snapshot_id=id_, chunks={}) for id_ in snapshots]
    assert sums(*opened) == EXPECTED


def test_sessions_stores_and_repositories(repo: Any, snapshots: list[str]) -> None:
    sessions = [repo.readonly_session(snapshot_id=id_) for id_ in snapshots]
    assert sums(*(xi.open_dataset(session, chunks={}) for session in sessions)) == EXPECTED
    assert sums(*(xi.open_dataset(session.store, chunks={}) for session in sessions)) == EXPECTED
    assert sums(*(xi.open_dataset(repo, snapshot_id=id_, chunks={}) for id_ in snapshots)) == EXPECTED


def test_multi_file(repo: Any, location: str, snapshots: list[str]) -> None:
    sessions = [repo.readonly_session(snapshot_id=id_) for id_ in snapshots]
    stacked = xr.open_mfdataset(sessions, engine="icechunk", combine="nested", concat_dim="snapshot")
    assert stacked.a.sum(["x", "y"]).values.tolist() == [24.0, 48.0]
    before = xr.open_mfdataset([location], engine="icechunk", snapshot_id=snapshots[0])
    after = xr.open_mfdataset([location], engine="icechunk")
    assert sums(before, after) == EXPECTED


def test_same_variable_in_two_groups(repo: Any, location: str) -> None:
    session = repo.writable_session("main")
    xi.to_icechunk(constant(1.0), session, group="one")
    xi.to_icechunk(constant(2.0), session, group="two")
    session.commit("groups")
    groups = xr.open_groups(location, engine="icechunk", chunks={})
    assert sums(groups["/one"], groups["/two"]) == EXPECTED
    tree = xr.open_datatree(location, engine="icechunk", chunks={})
    assert sums(tree["one"].to_dataset(), tree["two"].to_dataset()) == EXPECTED
    assert sums(*(xi.open_dataset(location, group=name, chunks={}) for name in ("one", "two"))) == EXPECTED


def test_uncommitted_changes(repo: Any, snapshots: list[str]) -> None:
    session = repo.writable_session("main")
    before = xi.open_dataset(session, chunks={})
    xi.to_icechunk(constant(3.0), session, mode="a")
    after = xi.open_dataset(session, chunks={})
    assert before.a.data.name != after.a.data.name


def test_chunking_later(location: str, snapshots: list[str]) -> None:
    opened = [xi.open_dataset(location, snapshot_id=id_).chunk(x=2) for id_ in snapshots]
    assert sums(*opened) == EXPECTED


def test_names_are_the_same_each_time(location: str, snapshots: list[str]) -> None:
    for chunks in ({}, {"x": 4}, "auto"):
        first = xi.open_dataset(location, chunks=chunks)
        again = xi.open_dataset(location, chunks=chunks)
        assert [first[name].data.name for name in "abc"] == [again[name].data.name for name in "abc"]
    assert len({xi.open_dataset(location, chunks=chunks).a.data.name for chunks in ({}, {"x": 4})}) == 2


def test_coordinates_without_indexes(repo: Any, location: str) -> None:
    opened = []
    for value in (1.0, 2.0):
        write(repo, constant(value).assign_coords(x=np.full(4, value)), mode="w")
        opened.append(
            xr.open_dataset(f"file://{location}", engine="icechunk", chunks={}, create_default_indexes=False)
        )
    assert dask.compute(*(ds.x.sum() for ds in opened)) == (4.0, 8.0)


def test_chunks_follow_the_stored_ones(location: str, snapshots: list[str]) -> None:
    opened = xi.open_dataset(location, chunks={})
    assert opened.a.data.chunks == ((2, 2), (3, 3))
    assert type(opened.a.variable) is xr.Variable
