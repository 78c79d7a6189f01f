"""What operations cost in requests and bytes, counted on the wire: what the guide to storage says, kept here."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.typing import NDArray

from icechunk_engine import Repository
from icechunk_engine.session import workspace_of
from icechunk_engine.session.preloading import PRELOAD_THREAD
from icechunk_engine.storage import Storage
from icechunk_engine.storage.wrappers import PrefixStorage
from xarray_icechunk import to_icechunk

from .conftest import BUCKET, Running, s3_at
from .proxy import FaultProxy, proxied

VARIABLES = 20
CHUNK_BYTES = 32 * 32 * 8


@dataclass
class Wire:
    """What went over it since it was last looked at."""

    proxy: FaultProxy
    storage: Storage
    received_bytes: int = field(default=0, init=False)
    sent_bytes: int = field(default=0, init=False)

    def since(self) -> Counter[str]:
        """Requests by method and kind of object: ``{"GET repo": 1, "GET chunks": 2}``."""
        for thread in threading.enumerate():
            if thread.name == PRELOAD_THREAD:
                thread.join()
        seen, self.proxy.seen = self.proxy.seen, []
        self.received_bytes = sum(request.received_bytes for request in seen)
        self.sent_bytes = sum(request.sent_bytes for request in seen)
        start = f"/{BUCKET}/{getattr(self.storage, 'prefix', '')}/"
        return Counter(f"{request.method} {_kind(request.path, start)}" for request in seen)


def _kind(path: str, start: str) -> str:
    if not path.startswith(start):
        return "bucket"  # a listing, or a deletion of several objects
    return re.split(r"[/?]", path.removeprefix(start))[0]


@pytest.fixture
def dataset() -> xr.Dataset:
    """Two steps of 20 variables, of which each step is a chunk in an object of its own."""
    rng = np.random.default_rng(0)
    variables = {f"v{n:02d}": (("time", "y", "x"), rng.random((2, 32, 32))) for n in range(VARIABLES)}
    axes: dict[str, NDArray[np.float64]] = {"time": np.arange(2.0), "y": np.arange(32.0), "x": np.arange(32.0)}
    return xr.Dataset(variables, axes)


@pytest.fixture
def filled(s3_server: Running, place: str, dataset: xr.Dataset) -> Repository:
    """A repository with the dataset, written past the proxy: what looks through the proxy finds nothing in memory."""
    repo = Repository.create(s3_at(s3_server, place))
    session = repo.writable_session("main")
    one = {"chunks": (1, 32, 32), "compressors": None}
    to_icechunk(dataset, session, encoding=dict.fromkeys(dataset.data_vars, one))
    session.commit("two steps")
    return repo


@pytest.fixture
def wire(s3_server: Running, place: str, filled: Repository) -> Iterator[Wire]:
    with proxied(s3_server.port) as proxy:
        yield Wire(proxy, s3_at(Running(proxy.port), place))


@pytest.fixture
def repo(wire: Wire) -> Repository:
    """Opened through the proxy, by a process that has written there before."""
    repo = Repository.open(wire.storage)
    repo.create_tag("first", repo.lookup_branch("main"))
    wire.since()
    return repo


def open_url(wire: Wire, place: str) -> xr.Dataset:
    options = {"key": "key", "secret": "secret", "endpoint_url": wire.proxy.url, "region": "us-east-1"}
    return xr.open_dataset(f"s3://{BUCKET}/{place}", engine="icechunk", chunks=None, storage_options=options)


def size_of(storage: Storage, prefix: str) -> int:
    return sum(info.size_bytes for info in storage.list(prefix))


def test_opening_and_reading_a_dataset(wire: Wire, place: str, filled: Repository, dataset: xr.Dataset) -> None:
    with open_url(wire, place) as opened:
        # The coordinates' values are in their manifests; whatever the number of variables.
        assert wire.since() == {"GET repo": 1, "GET snapshots": 1, "GET manifests": 3}
        assert wire.received_bytes < 64 * 1024

        first = opened.v03[0].values
        assert wire.since() == {"GET manifests": 1, "GET chunks": 1}
        assert wire.received_bytes < CHUNK_BYTES + 2048
        np.testing.assert_array_equal(first, dataset.v03[0])

        _ = opened.v03[1].values
        assert wire.since() == {"GET chunks": 1}
        assert wire.received_bytes == CHUNK_BYTES

        with open_url(wire, place) as again:
            assert wire.since() == {"GET repo": 1}
            _ = again.v03[1].values
            assert wire.since() == {"GET chunks": 1}
    xr.testing.assert_identical(again.load().drop_encoding(), dataset)
    assert wire.since() == {"GET manifests": VARIABLES - 1, "GET chunks": 2 * VARIABLES}


def test_sessions(wire: Wire) -> None:
    repo = Repository.open(wire.storage)
    assert wire.since() == {"GET repo": 1}
    session = repo.readonly_session("main")
    arrays = [array for _, array in zarr.open_group(session.store, mode="r").arrays()]
    assert len(arrays) == VARIABLES + 3
    seen = wire.since()
    assert seen["GET repo"] == seen["GET snapshots"] == 1
    repo.readonly_session("main").store  # noqa: B018
    assert wire.since()["GET repo"] == 1


def test_many_chunks(s3_server: Running, place: str) -> None:
    elements = 1024
    direct = Repository.create(s3_at(s3_server, place))
    with direct.transaction("main", message="array") as store:
        array = zarr.create_array(
            store, name="a", shape=(100 * elements,), chunks=(elements,), dtype="f8", compressors=None
        )
        array[:] = 1
    with proxied(s3_server.port) as proxy:
        wire = Wire(proxy, s3_at(Running(proxy.port), place))
        array = zarr.open_array(Repository.open(wire.storage).readonly_session("main").store, path="a", mode="r")
        wire.since()
        assert array[:].sum() == 100 * elements
        assert wire.since() == {"GET manifests": 1, "GET chunks": 100}
        assert array[:].sum() == 100 * elements
        assert wire.since() == {"GET chunks": 100}
        assert wire.received_bytes == 100 * elements * 8


def test_commit_of_one_chunk(wire: Wire, repo: Repository) -> None:
    session = repo.writable_session("main")
    array = zarr.open_array(session.store, path="v03", mode="r+")
    wire.since()
    array[1] = 0.5
    assert wire.since() == {"PUT chunks": 1}
    assert wire.sent_bytes == CHUNK_BYTES
    session.commit("one chunk")
    swap = {"GET repo": 1, "PUT overwritten": 1, "PUT repo": 1}
    files = {"GET manifests": 1, "PUT manifests": 1, "PUT snapshots": 1, "PUT transactions": 1}
    assert wire.since() == {**swap, **files}
    assert wire.sent_bytes < 16 * 1024
    # What was just written is known: the next commit reads nothing but ``repo``.
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="v03", mode="r+")[1] = 0.25
    wire.since()
    session.commit("another chunk")
    del files["GET manifests"]
    assert wire.since() == {**swap, **files}


def test_appending_a_step(wire: Wire, repo: Repository, dataset: xr.Dataset) -> None:
    session = repo.writable_session("main")
    step = dataset.isel(time=[0]).assign_coords(time=[2.0]).drop_vars(["x", "y"])
    wire.since()
    to_icechunk(step, session, append_dim="time")
    seen = wire.since()
    assert seen["PUT chunks"] == VARIABLES
    session.commit("a step")
    seen += wire.since()
    assert {kind: n for kind, n in seen.items() if kind != "GET snapshots"} == {
        "GET repo": 1,
        "PUT chunks": VARIABLES,
        "GET manifests": VARIABLES,  # that of the times came when the session began
        "PUT manifests": VARIABLES + 1,
        "PUT snapshots": 1,
        "PUT transactions": 1,
        "PUT overwritten": 1,
        "PUT repo": 1,
    }
    assert workspace_of(Repository.open(wire.storage).readonly_session("main")).get_node("/v00") is not None


def test_refs_and_history(wire: Wire, repo: Repository) -> None:
    tip = repo.lookup_branch("main")
    assert wire.since() == {"GET repo": 1}
    for look in (repo.list_branches, repo.list_tags, lambda: list(repo.ancestry(branch="main"))):
        look()
        assert wire.since() == {"GET repo": 1}
    change = {"GET repo": 1, "PUT overwritten": 1, "PUT repo": 1}
    for make in (
        lambda: repo.create_tag("v1", tip),
        lambda: repo.delete_tag("v1"),
        lambda: repo.create_branch("dev", tip),
        lambda: repo.reset_branch("dev", tip),
        lambda: repo.delete_branch("dev"),
    ):
        make()
        assert wire.since() == change


def test_creating(s3_server: Running, place: str) -> None:
    with proxied(s3_server.port) as proxy:
        wire = Wire(proxy, s3_at(Running(proxy.port), place))
        Repository.create(wire.storage)
        made = {"GET bucket": 1, "PUT snapshots": 1, "PUT transactions": 1, "PUT repo": 1}
        tried = {"PUT doctor": 3, "POST bucket": 1}  # once in a process, and not on the clouds themselves
        assert wire.since() == {**made, **tried}
        Repository.create(PrefixStorage(wire.storage, "another"))
        assert sum(wire.since().values()) == 4
