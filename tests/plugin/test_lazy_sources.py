"""Data that were opened lazily from a session, and are written back to it."""

from __future__ import annotations

import functools
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client

import xarray_icechunk as xi
from icechunk_engine.session import Session
from xarray_icechunk.lazy_sources import reads_from

from .conftest import write

CHUNKS = pytest.mark.parametrize("chunks", [None, {}, {"time": 2}], ids=["lazy", "dask", "rechunked"])


@pytest.fixture
def base(dataset: xr.Dataset) -> xr.Dataset:
    result = dataset.drop_vars("label")
    for name in ("temperature", "count", "area"):
        result[name].encoding = {"chunks": (2, 8)}
    result.temperature.encoding |= {"dtype": "f4", "scale_factor": 2.0, "_FillValue": -1.0}  # decoded when it is read
    return result


@pytest.fixture
def session(repo: Any, base: xr.Dataset) -> Session:
    """A session in which the data are committed, and changed without a commit."""
    write(repo, base)
    session: Session = repo.writable_session("main")
    xi.to_icechunk(base[["count"]] + 1, session, mode="r+")
    return session


def read(place: Any, **kwargs: Any) -> xr.Dataset:
    return xi.open_dataset(place, **kwargs).load()


@CHUNKS
@pytest.mark.parametrize("mode", ["w", "a"])
def test_back_over_themselves(session: Session, chunks: Any, mode: Any) -> None:
    expected = read(session)
    xi.to_icechunk(xi.open_dataset(session, chunks=chunks), session, mode=mode, safe_chunks=False)
    xr.testing.assert_identical(read(session), expected)
    session.commit("the same")


@CHUNKS
def test_names_that_are_exchanged(session: Session, chunks: Any) -> None:
    before = read(session)
    source = xi.open_dataset(session, chunks=chunks)[["temperature", "area"]].drop_encoding()
    exchanged = source.rename(temperature="area", area="temperature").drop_encoding()
    xi.to_icechunk(exchanged, session, mode="a", safe_chunks=False)
    after = read(session)
    np.testing.assert_array_equal(after.area, before.temperature)
    np.testing.assert_allclose(after.temperature, before.area, rtol=1e-6)


def test_computed_from_a_neighbour(session: Session) -> None:
    """The blocks of one variable are computed from all blocks of another one, which the same call replaces."""
    source = xi.open_dataset(session, chunks={"time": 2})
    expected = (source["count"].sum("time") + source.temperature).transpose("time", "x").compute()
    changed = source.assign(temperature=(source["count"].sum("time") + source.temperature).transpose("time", "x"))
    changed["count"] = xr.zeros_like(source["count"]).compute()
    xi.to_icechunk(changed.drop_encoding(), session, mode="w")
    np.testing.assert_allclose(read(session).temperature, expected)
    assert (read(session)["count"] == 0).all()


@pytest.mark.long
def test_on_a_cluster(cluster_of_processes: Client, session: Session) -> None:
    """Workers read through a copy of the session, made before it changes."""
    expected = read(session)
    source = xi.open_dataset(session, chunks={"time": 2})
    shifted = source.assign(count=source["count"].roll(time=2))
    with cluster_of_processes.as_current():
        xi.to_icechunk(shifted, session, mode="w")
    xr.testing.assert_identical(read(session), expected.assign(count=expected["count"].roll(time=2)))
    session.commit("on a cluster")


def test_into_another_group(session: Session) -> None:
    expected = read(session)
    xi.to_icechunk(xi.open_dataset(session, chunks={}), session, group="copy")
    xr.testing.assert_identical(read(session, group="copy"), expected)
    xr.testing.assert_identical(read(session), expected)


def test_in_a_fork(session: Session) -> None:
    fork = session.fork()
    expected = read(fork)
    xi.to_icechunk(xi.open_dataset(fork, chunks={}), fork, mode="w")
    xr.testing.assert_identical(read(fork), expected)
    session.merge(fork)
    xr.testing.assert_identical(read(session), expected)


@CHUNKS
def test_data_of_other_sessions_are_as_they_were(repo: Any, session: Session, base: xr.Dataset, chunks: Any) -> None:
    """Their snapshots do not change, so they need no fork."""
    source = xi.open_dataset(repo.readonly_session("main"), chunks=chunks)
    assert not reads_from([source], session)
    expected = source.compute()
    xi.to_icechunk(source, session, mode="w", safe_chunks=False)
    xr.testing.assert_identical(read(session), expected)


def test_a_failure_leaves_the_session_as_it_was(session: Session) -> None:
    source = xi.open_dataset(session, chunks={})

    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("no data")

    broken = source.assign(temperature=(source.temperature.dims, source.temperature.data.map_blocks(fail, dtype="f8")))
    before, expected = repr(session.status()), read(session)
    with pytest.raises(RuntimeError, match="no data"):
        xi.to_icechunk(broken, session, mode="w")
    assert repr(session.status()) == before
    xr.testing.assert_identical(read(session), expected)


class Adder:
    def __init__(self, other: Any) -> None:
        self.other = other

    def __call__(self, block: np.ndarray) -> np.ndarray:
        return block + np.asarray(self.other[:2, :2])


def cases(store: Any) -> dict[str, Any]:
    array: Any = zarr.open_array(store, path="count", mode="r")
    zeros = da.zeros((6, 8), chunks=2)

    def closure(block: np.ndarray) -> np.ndarray:
        return block + np.asarray(array[:2, :2])

    def add(other: Any, block: np.ndarray) -> np.ndarray:
        return block + np.asarray(other[:2, :2])

    delayed = dask.delayed(np.asarray)(array)
    return {
        "from_zarr": da.from_zarr(array),
        "inline": da.from_array(array, inline_array=True),
        "not inline": da.from_array(array, inline_array=False),
        "computed": da.from_zarr(array).T + 1,
        "closure": zeros.map_blocks(closure),
        "partial": zeros.map_blocks(functools.partial(add, array)),
        "callable": zeros.map_blocks(Adder(array)),
        "argument": zeros.map_blocks(lambda block, other: block, other=dask.delayed(array)),
        "delayed": da.from_delayed(delayed, (6, 8), "i4"),
        "optimised": dask.optimize(da.from_zarr(array) + 1)[0],
        "sliced": xi.open_dataset(store)["count"].isel(time=slice(1, 3)).variable._data,
        "decoded": xi.open_dataset(store).temperature.variable._data,
        "coordinate": xi.open_dataset(store).area.variable._data,
    }


CASES = (
    "from_zarr",
    "inline",
    "not inline",
    "computed",
    "closure",
    "partial",
    "callable",
    "argument",
    "delayed",
    "optimised",
    "sliced",
    "decoded",
    "coordinate",
)


@pytest.mark.parametrize("case", CASES)
def test_what_reads_from_a_session(repo: Any, session: Session, case: str) -> None:
    def reads(store: Any) -> bool:
        data = cases(store)[case]
        dims = [f"d{n}" for n in range(data.ndim)]
        return reads_from([xr.Dataset({"v": xr.Variable(dims, data, fastpath=True)})], session)

    assert reads(session.store)
    assert not reads(repo.readonly_session("main").store)
    assert not reads(repo.writable_session("main").store)


def test_loaded_data_do_not_count(session: Session) -> None:
    assert not reads_from([read(session)], session)
    assert not reads_from([xr.Dataset({"v": ("x", da.zeros(10**7, chunks=10))})], session)
