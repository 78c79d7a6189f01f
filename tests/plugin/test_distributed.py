"""Workers of a dask cluster write: every chunk arrives, whatever happens to the workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client

import xarray_icechunk as xi
from icechunk_engine.errors import SessionStateError
from xarray_icechunk import dask_writer

from .conftest import write

pytestmark = pytest.mark.long


@pytest.fixture(params=["processes", "threads"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """Use each kind of cluster as the default scheduler."""
    client: Client = request.getfixturevalue(f"cluster_of_{request.param}")
    with client.as_current():
        yield client


@pytest.fixture
def big() -> xr.Dataset:
    """A dataset that gets 220 chunks. Those of ``small`` and ``line`` are inline."""
    rng = np.random.default_rng(3)
    return xr.Dataset(
        {
            "large": (("t", "x"), rng.random((100, 200))),
            "small": (("t", "x"), rng.integers(0, 9, (100, 200)).astype("i1")),
            "line": ("t", np.arange(100.0)),
            "eager": ("x", np.arange(200.0)),
        },
        coords={"t": np.arange(100), "x": np.arange(200)},
    )


def chunked(ds: xr.Dataset) -> xr.Dataset:
    return ds.assign(
        large=ds.large.chunk(t=10, x=20),
        small=ds.small.chunk(t=10, x=20),
        line=ds.line.chunk(t=5),
    )


def require_equal(location: str, expected: xr.Dataset) -> None:
    """Check that both libraries read it."""
    xr.testing.assert_identical(xi.open_dataset(location).load(), expected)
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(location))
    official = xr.open_zarr(repository.readonly_session("main").store, chunks=None)
    xr.testing.assert_identical(official.load(), expected)


def test_write(client: Client, repo: Any, location: str, big: xr.Dataset) -> None:
    commits = len(list(repo.ancestry(branch="main")))
    write(repo, chunked(big))
    assert len(list(repo.ancestry(branch="main"))) == commits + 1
    require_equal(location, big)


def test_append_and_region(client: Client, repo: Any, location: str, big: xr.Dataset) -> None:
    session = repo.writable_session("main")
    xi.to_icechunk(chunked(big.isel(t=slice(0, 50))), session)
    more = chunked(big.isel(t=slice(50, 100))).drop_vars("eager")
    xi.to_icechunk(more, session, append_dim="t", split_every=2)
    session.commit("appended")
    require_equal(location, big)

    changed = big[["large", "line"]].isel(t=slice(20, 60)) + 1
    lazy = changed.assign(large=changed.large.chunk(t=10, x=20), line=changed.line.chunk(t=5))
    write(repo, lazy.drop_vars(["t", "x"]), region={"t": slice(20, 60)})
    expected = big.copy(deep=True)
    for name in ("large", "line"):
        expected[name][20:60] += 1
    require_equal(location, expected)


def test_reading_on_workers_is_pinned(client: Client, repo: Any, location: str, big: xr.Dataset) -> None:
    write(repo, big, encoding={"large": {"chunks": (10, 20)}})
    opened = [
        xi.open_dataset(location, chunks={}),
        xi.open_dataset(repo.readonly_session("main"), chunks={}),
        xi.open_dataset(location).chunk(t=50),
    ]
    write(repo, big.assign(large=big.large + 1), mode="w")
    for before in opened:
        np.testing.assert_array_equal(before.large.compute(), big.large)


def test_from_one_snapshot_into_the_next(client: Client, repo: Any, location: str, big: xr.Dataset) -> None:
    """Workers read through one session and write through another."""
    write(repo, chunked(big))
    session = repo.writable_session("main")
    source = xi.open_dataset(location, chunks={})
    xi.to_icechunk(source.assign(large=source.large * 2), session, mode="a")
    session.commit("double")
    require_equal(location, big.assign(large=big.large * 2))


def once(flag: Path) -> bool:
    """Return True to one caller only, in all processes."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass
class Trouble:
    """Return the block. One block raises an error or ends the process the first time."""

    flag: Path
    how: str

    def __call__(self, block: np.ndarray, block_id: Any = None) -> np.ndarray:
        if block_id == (5, 5) and once(self.flag):
            if self.how == "raise":
                raise RuntimeError("a passing trouble")
            os._exit(1)
        return block


def troubled(big: xr.Dataset, trouble: Trouble) -> xr.Dataset:
    source = chunked(big)
    return source.assign(large=(("t", "x"), source.large.data.map_blocks(trouble, dtype="f8")))


def test_task_that_fails_once(client: Client, repo: Any, location: str, tmp_path: Path, big: xr.Dataset) -> None:
    flag = tmp_path / "flag"
    write(repo, troubled(big, Trouble(flag, "raise")), chunkmanager_store_kwargs={"retries": 2})
    assert flag.exists()
    require_equal(location, big)


@dataclass
class ForgetfulTarget:
    """A target of dask. One of its writes succeeds and then reports a failure."""

    target: Any
    flag: Path

    @property
    def array(self) -> zarr.Array[Any]:
        array: zarr.Array[Any] = self.target.array
        return array

    def write(self, block: Any, place: tuple[slice, ...]) -> None:
        self.target.write(block, place)
        if once(self.flag):
            raise RuntimeError("after the write")


def test_write_that_is_repeated(
    client: Client, repo: Any, location: str, tmp_path: Path, big: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "flag"
    target = dask_writer._Target
    monkeypatch.setattr(dask_writer, "_Target", lambda **fields: ForgetfulTarget(target(**fields), flag))
    write(repo, chunked(big), chunkmanager_store_kwargs={"retries": 1})
    assert flag.exists()
    require_equal(location, big)


@pytest.mark.parametrize("how", ["call", "delayed"])
def test_two_tasks_that_write_to_one_chunk(cluster_of_processes: Client, repo: Any, big: xr.Dataset, how: str) -> None:
    """Each reads the other half of the chunk before it is written, so one half would be lost."""
    halves = big[["line"]].chunk(t=5)
    options: dict[str, Any] = {"safe_chunks": False, "encoding": {"line": {"chunks": (10,)}}}

    def write_halves(on_overlap: Any) -> None:
        session = repo.writable_session("main")
        if how == "call":
            xi.to_icechunk(halves, session, on_overlap=on_overlap, **options)
        else:
            delayed: Any = xi.to_icechunk(halves, session, on_overlap=on_overlap, compute=False, **options)
            delayed.compute()
        session.commit(on_overlap)

    with cluster_of_processes.as_current():
        with pytest.raises(SessionStateError, match="line"):
            write_halves("raise")
        assert len(list(repo.ancestry(branch="main"))) == 1
        write_halves("last")
    line = xi.open_dataset(repo).line
    assert ((line == big.line) | line.isnull()).all()
    assert line.isnull().sum() == 50


def test_worker_that_dies(
    cluster_of_processes: Client, repo: Any, location: str, tmp_path: Path, big: xr.Dataset
) -> None:
    flag = tmp_path / "flag"
    with cluster_of_processes.as_current():
        write(repo, troubled(big, Trouble(flag, "exit")))
    assert flag.exists()
    require_equal(location, big)


def test_failing_graph(client: Client, repo: Any, location: str, tmp_path: Path, big: xr.Dataset) -> None:
    session = repo.writable_session("main")
    with pytest.raises(RuntimeError, match="a passing trouble"):
        xi.to_icechunk(troubled(big, Trouble(tmp_path / "flag", "raise")), session)
    assert not session.has_uncommitted_changes
    xi.to_icechunk(chunked(big), session)
    session.commit("second try")
    require_equal(location, big)
