"""Repositories and datasets for the plugin's tests. They also register the entry point if it is not installed."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import xarray_icechunk as xi

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def installed_engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Register the entry points of pyproject.toml, unless the package is installed."""
    if "icechunk" in importlib.metadata.entry_points(group="xarray.backends").names:
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
            for group, entries in project["entry-points"].items()
        )
    )
    sys.path.append(str(site))  # spawned processes get sys.path too
    xr.backends.refresh_engines()


@pytest.fixture
def location(tmp_path: Path) -> str:
    return str(tmp_path / "repository")


@pytest.fixture
def repo(location: str) -> Any:
    return xi.open_or_create_repository(location)


@pytest.fixture
def dataset() -> xr.Dataset:
    rng = np.random.default_rng(7)
    return xr.Dataset(
        {
            "temperature": (("time", "x"), rng.random((6, 8)), {"units": "K"}),
            "count": (("time", "x"), rng.integers(0, 100, (6, 8)).astype("i4")),
            "total": ((), 3.5),
            "label": ("x", np.array(list("abcdefgh"))),
        },
        coords={
            "time": ("time", np.arange(6) * 10),
            "x": ("x", np.arange(8.0)),
            "area": (("time", "x"), np.ones((6, 8))),
        },
        attrs={"title": "test"},
    )


def write(repo: Any, obj: Any, message: str = "write", **kwargs: Any) -> str:
    """Write in a new session, commit, and return the snapshot id."""
    session = repo.writable_session("main")
    xi.to_icechunk(obj, session, **kwargs)
    snapshot_id: str = session.commit(message)
    return snapshot_id
