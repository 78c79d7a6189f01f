"""Options of xarray's Zarr engine that programs still pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import xarray as xr

import xarray_icechunk as xi
from icechunk_engine.errors import InvalidInputError

from .conftest import write

OPENERS: list[Callable[..., Any]] = [
    lambda location, **more: xr.open_dataset(location, engine="icechunk", **more),
    lambda location, **more: xr.open_dataset(location, engine="icechunk", chunks={}, **more),
    lambda location, **more: xr.open_mfdataset([location], engine="icechunk", **more),
    lambda location, **more: xr.open_datatree(location, engine="icechunk", **more),
    lambda location, **more: xr.open_groups(location, engine="icechunk", **more)["/"],
    lambda location, **more: xi.open_dataset(location, **more),
    lambda location, **more: xi.open_datatree(location, **more),
]


@pytest.mark.parametrize(
    "more", [{"consolidated": False, "zarr_format": 3}, {"consolidated": None, "zarr_format": None}]
)
def test_what_is_so_anyway_is_accepted(repo: Any, location: str, dataset: xr.Dataset, more: dict[str, Any]) -> None:
    write(repo, dataset, **more)
    for opened in OPENERS:
        assert set(opened(location, **more).data_vars) == set(dataset.data_vars)
    again = dataset.assign_coords(time=dataset.time + 100)
    write(repo, again, append_dim="time", **more)
    assert xi.open_dataset(location, **more).sizes["time"] == 2 * dataset.sizes["time"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"consolidated": True}, r"consolidated=True is not supported: .* the snapshot, holds the metadata"),
        ({"zarr_format": 2}, "zarr_format=2 is not supported: repositories hold Zarr format 3 only"),
    ],
)
def test_the_rest_is_refused_with_the_reason(
    repo: Any, location: str, dataset: xr.Dataset, more: dict[str, Any], reason: str
) -> None:
    write(repo, dataset)
    session = repo.writable_session("main")
    calls: list[Callable[[], Any]] = [partial(opened, location, **more) for opened in OPENERS]
    calls.append(lambda: xi.to_icechunk(dataset, session, mode="w", **more))
    for call in calls:
        with pytest.raises(InvalidInputError, match=reason):
            call()
    assert not session.has_uncommitted_changes
