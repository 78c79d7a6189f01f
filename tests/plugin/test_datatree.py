"""Trees and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import xarray_icechunk as xi
from icechunk_engine.errors import InvalidInputError, NodeNotFoundError

from .conftest import write


@pytest.fixture
def tree() -> xr.DataTree:
    def leaf(value: int) -> xr.Dataset:
        return xr.Dataset({"a": ("x", np.arange(4) + value, {"units": "m"})})

    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset({"top": ("x", np.arange(4.0))}, coords={"x": [1, 2, 3, 4]}, attrs={"title": "tree"}),
            "/ocean": leaf(10),
            "/ocean/deep": leaf(20),
            "/air": leaf(30),
            "/empty": xr.Dataset(attrs={"kind": "nothing"}),
        }
    )


def test_round_trip(repo: Any, location: str, tree: xr.DataTree) -> None:
    write(repo, tree)
    opened = xr.open_datatree(location, engine="icechunk")
    xr.testing.assert_identical(opened.load(), tree)
    assert list(opened.groups) == ["/", "/air", "/empty", "/ocean", "/ocean/deep"]
    assert opened.encoding["source"] == location


def test_round_trip_of_dask_arrays(repo: Any, location: str, tree: xr.DataTree) -> None:
    write(repo, tree.chunk(x=2))
    xr.testing.assert_identical(xi.open_datatree(location, chunks={}).compute(), tree)


def test_agrees_with_xarray_reading_zarr(repo: Any, location: str, tree: xr.DataTree) -> None:
    write(repo, tree)
    store = repo.readonly_session("main").store
    expected = xr.open_datatree(store, engine="zarr", consolidated=False, zarr_format=3)
    xr.testing.assert_identical(xr.open_datatree(location, engine="icechunk"), expected)
    groups = xr.open_groups(store, engine="zarr", consolidated=False, zarr_format=3, group="ocean")
    ours = xr.open_groups(location, engine="icechunk", group="ocean")
    assert ours.keys() == groups.keys() or set(ours) == {"/", "/deep"}
    for name, expected_group in zip(sorted(ours), sorted(groups), strict=True):
        xr.testing.assert_identical(ours[name], groups[expected_group])


def test_xarray_reads_and_writes_through_the_store(repo: Any, location: str, tree: xr.DataTree) -> None:
    session = repo.writable_session("main")
    tree.to_zarr(session.store, consolidated=False, zarr_format=3)
    session.commit("by xarray")
    xr.testing.assert_identical(xi.open_datatree(location).load(), tree)


def test_subtree(repo: Any, location: str, tree: xr.DataTree) -> None:
    write(repo, tree, group="data/model")
    opened = xi.open_datatree(location, group="/data/model/ocean")
    assert list(opened.groups) == ["/", "/deep"]
    assert opened["deep/a"].values.tolist() == [20, 21, 22, 23]
    assert set(xr.open_groups(location, engine="icechunk")) >= {"/", "/data", "/data/model", "/data/model/ocean/deep"}
    assert xi.open_dataset(location, group="data/model/air").a.values.tolist() == [30, 31, 32, 33]


def test_a_group_whose_name_begins_like_another(repo: Any, location: str, tree: xr.DataTree) -> None:
    session = repo.writable_session("main")
    xi.to_icechunk(tree["air"].to_dataset(), session, group="ab")
    xi.to_icechunk(tree["ocean"].to_dataset(), session, group="abc")
    session.commit("groups")
    assert set(xr.open_groups(location, engine="icechunk", group="ab")) == {"/"}


def test_encoding_and_modes(repo: Any, location: str, tree: xr.DataTree) -> None:
    write(repo, tree, encoding={"/ocean": {"a": {"chunks": (2,), "dtype": "i2"}}})
    root = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert root["ocean/a"].chunks == (2,)
    assert root["ocean/a"].dtype == np.dtype("i2")
    with pytest.raises(InvalidInputError, match="/nowhere"):
        write(repo, tree, mode="w", encoding={"/nowhere": {}})
    with pytest.raises(FileExistsError):
        write(repo, tree)
    write(repo, tree["ocean"], mode="w")
    assert list(xi.open_datatree(location).groups) == ["/", "/deep"]


def test_inherited_coordinates(repo: Any, location: str, tree: xr.DataTree) -> None:
    write(repo, tree)
    assert "x" not in xi.open_dataset(location, group="ocean").coords
    write(repo, tree, mode="w", write_inherited_coords=True)
    assert xi.open_dataset(location, group="ocean").x.values.tolist() == [1, 2, 3, 4]


def test_append_and_region_are_for_datasets(repo: Any, tree: xr.DataTree) -> None:
    session = repo.writable_session("main")
    for options in ({"append_dim": "x"}, {"region": "auto"}):
        with pytest.raises(InvalidInputError, match="group="):
            xi.to_icechunk(tree, session, **options)  # type: ignore[arg-type]
    assert not session.has_uncommitted_changes


def test_decoders_reach_all_groups(repo: Any, location: str) -> None:
    scaled = xr.Dataset({"a": ("x", [0.5, 1.0])})
    scaled.a.encoding = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}
    write(repo, xr.DataTree.from_dict({"/": scaled, "/g": scaled}))
    raw = xr.open_datatree(location, engine="icechunk", mask_and_scale=False)
    assert raw["a"].values.tolist() == raw["g/a"].values.tolist() == [1, 2]
    assert "a" not in xr.open_groups(location, engine="icechunk", drop_variables="a")["/g"]


def test_missing_groups(repo: Any, location: str, tree: xr.DataTree) -> None:
    write(repo, tree)
    with pytest.raises(NodeNotFoundError, match="/ocean/deep"):
        xi.open_datatree(location, group="desert")
    with pytest.raises(InvalidInputError, match="group='/ocean'"):
        xi.open_dataset(location, group="ocean/a")


def test_unknown_keywords(location: str, repo: Any) -> None:
    with pytest.raises(TypeError, match="brunch"):
        xr.open_datatree(location, engine="icechunk", brunch="main")
    with pytest.raises(TypeError, match="brunch"):
        xr.open_dataset(location, engine="icechunk", brunch="main")


def test_open_groups_without_decoding(repo: Any, location: str) -> None:
    scaled = xr.Dataset({"a": ("x", [0.5, 1.0])})
    scaled.a.encoding = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}
    write(repo, scaled)
    assert xr.open_datatree(location, engine="icechunk", decode_cf=False)["a"].values.tolist() == [1, 2]
