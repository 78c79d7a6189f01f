"""Trees and groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import xarray_icechunk as xi
from icechunk_engine.errors import IcechunkError, InvalidInputError, NodeNotFoundError

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


# --- append and region ----------------------------------------------------------------------------------------


@pytest.fixture
def series() -> xr.DataTree:
    """A coordinate at the root that one child inherits, a child with another dimension, and one with its own."""
    time = np.arange(6) * 10
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset({"mean": ("time", np.arange(6.0))}, coords={"time": time}, attrs={"title": "series"}),
            "/sea": xr.Dataset({"a": (("time", "x"), np.arange(12.0).reshape(6, 2))}),
            "/sea/deep": xr.Dataset({"b": ("time", np.arange(6) * 2)}),
            "/fixed": xr.Dataset({"mask": ("x", [1, 0])}, coords={"x": [5, 6]}),
            "/empty": xr.Dataset(attrs={"kind": "nothing"}),
        }
    )


def part(tree: xr.DataTree, start: int, stop: int) -> xr.DataTree:
    cut = {
        path: node.to_dataset(inherit=False).isel({"time": slice(start, stop)}, missing_dims="ignore")
        for path, node in tree.subtree_with_keys
    }
    return xr.DataTree.from_dict({"/" if path == "." else path: dataset for path, dataset in cut.items()})


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("mode", ["a", "a-"])
def test_append(repo: Any, location: str, series: xr.DataTree, chunked: bool, mode: Any) -> None:
    write(repo, part(series, 0, 2), group="g")
    for start in (2, 4):
        more = part(series, start, start + 2)
        more["fixed/mask"] = more["fixed/mask"] + start
        chosen = more.chunk(time=2) if chunked else more
        xi.to_icechunk(chosen, repo, group="g", append_dim="time", mode=mode)
    opened = xi.open_datatree(location, group="g").load()
    mask = opened["fixed/mask"].values.tolist()
    assert mask == ([1, 0] if mode == "a-" else [5, 4])  # variables without the dimension: as in a dataset
    opened["fixed/mask"] = series["fixed/mask"]
    xr.testing.assert_identical(opened, series)


def test_append_adds_new_nodes_without_the_dimension(repo: Any, location: str, series: xr.DataTree) -> None:
    write(repo, part(series, 0, 4).drop_nodes("fixed"))
    write(repo, part(series, 4, 6), append_dim="time", mode="a-")
    xr.testing.assert_identical(xi.open_datatree(location).load(), series)


REGIONS = ({"time": slice(2, 4)}, {"time": "auto"}, "auto")


@pytest.mark.parametrize("region", REGIONS, ids=str)
@pytest.mark.parametrize("chunked", [False, True])
def test_region(repo: Any, location: str, series: xr.DataTree, region: Any, chunked: bool) -> None:
    encoding = {
        "/": {"mean": {"chunks": (2,)}},
        "/sea": {"a": {"chunks": (2, 2)}},
        "/sea/deep": {"b": {"chunks": (2,)}},
    }
    write(repo, series, encoding=encoding)
    patch = part(series, 2, 4).drop_nodes("fixed").map_over_datasets(lambda dataset: dataset * 0 - 1)
    if region == "auto":  # finds no place along x, which has no coordinate here
        patch["sea"].dataset = patch["sea"].to_dataset(inherit=False).drop_vars("a")
    expected = series.copy(deep=True)
    for name in ("mean", "sea/a", "sea/deep/b"):
        if name != "sea/a" or region != "auto":
            expected[name][2:4] = -1
    xi.to_icechunk(patch.chunk(time=2) if chunked else patch, repo, region=region)
    xr.testing.assert_identical(xi.open_datatree(location).load(), expected)


def test_a_failed_tree_leaves_the_session_as_it_was(repo: Any, series: xr.DataTree) -> None:
    """The root is appended to before the child is refused."""
    write(repo, part(series, 0, 2))
    more = part(series, 2, 4)
    more["sea"] = more["sea"].to_dataset().rename(x="y")
    session = repo.writable_session("main")
    with pytest.raises(ValueError, match="y") as caught:
        xi.to_icechunk(more, session, append_dim="time")
    assert "while writing the node 'sea' of the tree" in caught.value.__notes__
    assert not session.has_uncommitted_changes
    xr.testing.assert_identical(xi.open_datatree(session).load(), part(series, 0, 2))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"append_dim": "depth"}, "'depth'.*The tree has 'time', 'x'"),
        ({"region": {"depth": slice(0, 1)}}, "'depth'.*The tree has 'time', 'x'"),
        ({"region": {"time": slice(0, 6)}}, "'/fixed'|'fixed'.*'mask'"),
        ({"region": "auto"}, "'sea'.*'x'.*slice"),
        ({"append_dim": "time", "region": {"x": slice(0, 2)}, "mode": "a"}, "one after the other"),
        ({"append_dim": "time", "group": "missing"}, "time"),
        ({"region": {"time": slice(0, 6), "x": slice(0, 2)}, "group": "missing"}, "no group '/missing'"),
    ],
)
def test_refusals_of_trees(repo: Any, series: xr.DataTree, options: dict[str, Any], error: str) -> None:
    write(repo, series)
    session = repo.writable_session("main")
    with pytest.raises((IcechunkError, ValueError), match=error):
        xi.to_icechunk(series, session, **options)
    assert not session.has_uncommitted_changes


def test_mode_r_plus_needs_the_groups(repo: Any, series: xr.DataTree) -> None:
    write(repo, series.drop_nodes("fixed"))
    with pytest.raises(NodeNotFoundError, match="/fixed"):
        xi.to_icechunk(series, repo, mode="r+")


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
