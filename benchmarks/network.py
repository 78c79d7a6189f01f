"""The workloads on a distant object store: :mod:`.object_server`, which waits 50 ms before each answer.

``prepare`` writes the repository to a local folder, and the server uses this folder as its bucket. So each run begins
with empty caches, and only the measured phases use the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from .engines import Engine
from .measure import Phases

LATENCY_MS = 50
BUCKET = "bucket"
ELEMENTS = 1024
LARGE_ELEMENTS = 4 * 2**20


class Place:
    """A prefix in the bucket of a running server."""

    def __init__(self, port: int, prefix: str) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.url = f"s3://bucket/{prefix}"
        self.options = {
            "key": "key",
            "secret": "secret",
            "region": "us-east-1",
            "endpoint_url": self.endpoint,
        }
        self._prefix = prefix

    def storage(self, engine: Engine) -> Any:
        """Return the storage that the library's own function creates."""
        return engine.ic.s3_storage(
            bucket="bucket",
            prefix=self._prefix,
            region="us-east-1",
            endpoint_url=self.endpoint,
            allow_http=True,
            force_path_style=True,
            access_key_id="key",
            secret_access_key="secret",
        )

    def open(self, engine: Engine) -> Any:
        return engine.ic.Repository.open(self.storage(engine))

    def count(self) -> int:
        """Return the number of requests since the last call."""
        with urllib.request.urlopen(f"{self.endpoint}/-/requests") as answer:
            return sum(json.load(answer).values())

    @contextmanager
    def phase(self, phases: Phases, name: str) -> Iterator[None]:
        """Time a block, and count its requests."""
        self.count()
        with phases.phase(name):
            yield
        phases.requests[name] = phases.requests.get(name, 0) + self.count()


@contextmanager
def served(path: Path) -> Iterator[Place]:
    """Serve a local folder, which may hold a repository, as a distant object store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.object_server", str(path.parent), str(LATENCY_MS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield Place(int(server.stdout.readline()), path.name)
        finally:
            server.terminate()


def _local(engine: Engine, path: Path) -> Any:
    return engine.ic.Repository.create(engine.ic.local_filesystem_storage(str(path)))


def _write_array(engine: Engine, path: Path, values: np.ndarray[Any, Any], elements: int) -> None:
    session = _local(engine, path).writable_session("main")
    _array(session.store, values.shape, elements)[:] = values
    session.commit("array")


def _array(store: Any, shape: tuple[int, ...], elements: int) -> Any:
    return zarr.create_array(store, name="a", shape=shape, chunks=(elements,), dtype="f4", compressors=None)


def _values(count: int, elements: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(count * elements, np.float32)


def _dataset(count: int, steps: int = 1) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {f"variable_{n:03d}": (("time", "y", "x"), rng.standard_normal((steps, 32, 32))) for n in range(count)},
        coords={"time": np.arange(float(steps)), "y": np.arange(32.0), "x": np.arange(32.0)},
    )


def _write_dataset(engine: Engine, path: Path, count: int) -> None:
    session = _local(engine, path).writable_session("main")
    engine.to_icechunk(_dataset(count), session)
    session.commit("dataset")


def _opened(engine: Engine, place: Place, chunks: Any = None) -> xr.Dataset:
    """Open a dataset as users of each library do."""
    if engine.name == "ours":
        return xr.open_dataset(place.url, engine="icechunk", chunks=chunks, storage_options=place.options)
    store = place.open(engine).readonly_session("main").store
    return xr.open_dataset(store, engine="zarr", chunks=chunks, consolidated=False, zarr_format=3)


# ---- workloads ----------------------------------------------------------------------------------------------------


def opening_prepared(engine: Engine, path: Path, count: int) -> None:
    _write_dataset(engine, path, count)


def opening(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    with served(path) as place:
        with place.phase(phases, "open"):
            dataset = _opened(engine, place)
        with place.phase(phases, "open again"):
            dataset = _opened(engine, place)
        assert len(dataset.data_vars) == count


def appending_prepared(engine: Engine, path: Path, count: int) -> None:
    _write_dataset(engine, path, count)


def appending(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    step = _dataset(count).assign_coords(time=[1.0]).drop_vars(["y", "x"])
    with served(path) as place:
        repository = place.open(engine)
        session = repository.writable_session("main")
        with place.phase(phases, "append"):
            engine.to_icechunk(step, session, append_dim="time")
        with place.phase(phases, "commit"):
            session.commit("a step")
        assert _opened(engine, place).sizes["time"] == 2


def reading_prepared(engine: Engine, path: Path, count: int) -> None:
    _write_array(engine, path, _values(count, ELEMENTS), ELEMENTS)


def reading(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    values = _values(count, ELEMENTS)
    with served(path) as place:
        array = zarr.open_array(place.open(engine).readonly_session("main").store, path="a", mode="r")
        with place.phase(phases, "zarr"):
            read = array[:]
        np.testing.assert_array_equal(read, values)
        with zarr.config.set({"async.concurrency": 64}), place.phase(phases, "zarr, 64 at a time"):
            array[:]
        with place.phase(phases, "dask, 16 threads"):
            read = da.from_array(array, chunks=array.chunks).compute(num_workers=16)
        np.testing.assert_array_equal(read, values)


def reading_xarray_prepared(engine: Engine, path: Path, count: int) -> None:
    session = _local(engine, path).writable_session("main")
    encoding = {"a": {"chunks": (ELEMENTS,), "compressors": None}}
    engine.to_icechunk(xr.Dataset({"a": ("x", _values(count, ELEMENTS))}), session, encoding=encoding)
    session.commit("array")


def reading_xarray(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    values = _values(count, ELEMENTS)
    with served(path) as place:
        opened = _opened(engine, place)
        with place.phase(phases, "load"):
            opened.load()
        np.testing.assert_array_equal(opened.a, values)
        session = place.open(engine).writable_session("main")
        with place.phase(phases, "write"):
            engine.to_icechunk(
                xr.Dataset({"b": ("x", values)}), session, mode="a", encoding={"b": {"chunks": (ELEMENTS,)}}
            )


def reading_large_prepared(engine: Engine, path: Path, count: int) -> None:
    _write_array(engine, path, _values(count, LARGE_ELEMENTS), LARGE_ELEMENTS)


def reading_large(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    with served(path) as place:
        array = zarr.open_array(place.open(engine).readonly_session("main").store, path="a", mode="r")
        with place.phase(phases, "read"):
            read = array[:]
        assert np.array_equal(read, _values(count, LARGE_ELEMENTS))


def writing(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    values = _values(count, ELEMENTS)
    with served(path) as place:
        with place.phase(phases, "create"):
            repository = engine.ic.Repository.create(place.storage(engine))
        session = repository.writable_session("main")
        array = _array(session.store, values.shape, ELEMENTS)
        with place.phase(phases, "write"):
            array[:] = values
        with place.phase(phases, "commit"):
            session.commit("small chunks")
