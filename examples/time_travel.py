"""Version control of one small dataset: commits, tags, branches, and how to go back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import xarray_icechunk


def main(location: Path) -> None:
    repository = xarray_icechunk.open_or_create_repository(location)

    # Two commits on main.
    levels = xr.Dataset(
        {"level": ("gauge", np.array([1.5, 2.0, 0.5]), {"units": "m"})}, coords={"gauge": ["north", "mill", "weir"]}
    )
    session = repository.writable_session("main")
    xarray_icechunk.to_icechunk(levels, session)
    first = session.commit("Levels of Monday")
    repository.create_tag("monday", first)

    session = repository.writable_session("main")
    xarray_icechunk.to_icechunk(levels + 1.0, session, mode="w")
    second = session.commit("Levels of Tuesday, after the rain")

    # Correct the data on a separate branch. The branch main does not change.
    repository.create_branch("recalibrated", second)
    session = repository.writable_session("recalibrated")
    xarray_icechunk.to_icechunk(levels + 0.9, session, mode="w")
    session.commit("The gauges read 10 cm too high")

    show(location, "branch main", branch="main")
    show(location, "tag monday", tag="monday")
    show(location, "branch recalibrated", branch="recalibrated")
    show(location, "main just after Monday's commit", as_of=repository.lookup_snapshot(first).written_at)

    print("\nHistory of branch recalibrated, newest first:")
    for snapshot in repository.ancestry(branch="recalibrated"):
        print(f"  {snapshot.message}")

    # Accept the correction by moving main to it. The commit that main pointed to stays readable by its id.
    accepted = repository.lookup_branch("recalibrated")
    repository.reset_branch("main", accepted, from_snapshot_id=second)
    show(location, "branch main, moved", branch="main")
    show(location, "its earlier snapshot", snapshot_id=second)


def show(location: Path, title: str, **version: Any) -> None:
    with xr.open_dataset(location, engine="icechunk", **version) as dataset:
        print(f"{title:40}{dataset.level.values.round(2).tolist()}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder, "gauges"))
