"""to_icechunk and store_dask with the schedulers of one machine."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk_engine as ic
import xarray_icechunk as xi
from icechunk_engine.errors import IcechunkError, InvalidInputError, ReadOnlyError, StorageError
from icechunk_engine.session import ForkSession, Session
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.faults import FaultStorage
from icechunk_engine.testing.latency import LatencyStorage
from xarray_icechunk.dask_writer import merge_forks

from .conftest import write


@pytest.fixture
def lazy(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.chunk(time=2, x=4)


def read(repo: Any, **kwargs: Any) -> xr.Dataset:
    return xi.open_dataset(repo, **kwargs).load()


def no_forks(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Session) -> None:
        raise AssertionError("forked")

    monkeypatch.setattr(type(session), "fork", refuse)


def test_memory_arrays_need_no_fork(repo: Any, dataset: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    session = repo.writable_session("main")
    no_forks(session, monkeypatch)
    xi.to_icechunk(dataset, session)
    assert session.has_uncommitted_changes
    session.commit("memory")
    xr.testing.assert_identical(read(repo), dataset)


class Meeting(LatencyStorage):
    """Blocks the first chunks until several are in flight."""

    def __init__(self, n_parties: int) -> None:
        super().__init__(ic.in_memory_storage(), write_latency_ms=1)
        self.barrier = threading.Barrier(n_parties, timeout=60)
        self.chunks = itertools.count()

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        if call.method == "put" and call.keys[0].startswith("chunks/") and next(self.chunks) < self.barrier.parties:
            self.barrier.wait()
        return super().around(call, function)


def test_memory_arrays_are_written_together_on_a_network() -> None:
    """Arrays are written at the same time. One after another, they would block for ever."""
    repo = ic.Repository.create(Meeting(8))
    dataset = xr.Dataset({f"v{n}": ("x", np.random.default_rng(n).random(200)) for n in range(8)})
    session = repo.writable_session("main")
    xi.to_icechunk(dataset, session, encoding={name: {"compressors": None} for name in dataset})
    session.commit("together")
    xr.testing.assert_identical(read(repo), dataset)


def test_an_array_that_cannot_be_written_on_a_network() -> None:
    def fail(n: int, call: StorageCall, moment: str) -> None:
        if call.method == "put" and call.keys[0].startswith("chunks/"):
            raise StorageError("no")

    storage = FaultStorage(ic.in_memory_storage(), fail)
    storage.is_remote = True
    repo = ic.Repository.create(storage)
    session = repo.writable_session("main")
    with pytest.raises(StorageError):
        xi.to_icechunk(xr.Dataset({f"v{n}": ("x", np.random.default_rng(n).random(200)) for n in range(4)}), session)
    assert not session.has_uncommitted_changes


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_dask_arrays(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset, scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler):
        write(repo, lazy)
    xr.testing.assert_identical(read(repo), dataset)
    opened = xi.open_dataset(repo, chunks={})
    assert opened.temperature.data.chunks == lazy.temperature.data.chunks


def test_processes(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    write(repo, lazy, chunkmanager_store_kwargs={"scheduler": "processes", "num_workers": 2})
    xr.testing.assert_identical(read(repo), dataset)


def test_nothing_is_committed(repo: Any, lazy: xr.Dataset) -> None:
    before = repo.lookup_branch("main")
    session = repo.writable_session("main")
    xi.to_icechunk(lazy, session)
    assert repo.lookup_branch("main") == before
    assert session.has_uncommitted_changes
    session.discard_changes()
    assert not session.has_uncommitted_changes


def test_many_writes_in_one_session(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    session = repo.writable_session("main")
    xi.to_icechunk(lazy, session)
    xi.to_icechunk(lazy.isel(time=slice(0, 4)).assign_coords(time=[60, 70, 80, 90]), session, append_dim="time")
    xi.to_icechunk(dataset, session, group="memory")
    xi.to_icechunk(lazy[["temperature"]] * 2, session, group="lazy/deep")
    session.commit("all")
    xr.testing.assert_identical(read(repo).isel(time=slice(0, 6)), dataset)
    assert read(repo).sizes["time"] == 10
    xr.testing.assert_identical(read(repo, group="memory"), dataset)
    xr.testing.assert_equal(read(repo, group="lazy/deep").temperature, dataset.temperature * 2)


@pytest.mark.parametrize("chunked", [False, True])
def test_append(repo: Any, dataset: xr.Dataset, chunked: bool) -> None:
    def part(start: int, stop: int) -> xr.Dataset:
        chosen = dataset.drop_vars(["total", "label"]).isel(time=slice(start, stop))
        return chosen.chunk(time=2) if chunked else chosen

    write(repo, part(0, 2))
    write(repo, part(2, 4), append_dim="time")
    session = repo.writable_session("main")
    for start in (4, 5):
        xi.to_icechunk(part(start, start + 1), session, append_dim="time", safe_chunks=False)
    session.commit("two in one")
    xr.testing.assert_identical(read(repo), dataset.drop_vars(["total", "label"]))


def test_append_leaves_other_variables_in_mode_a_minus(repo: Any, dataset: xr.Dataset) -> None:
    write(repo, dataset)
    more = dataset.assign(total=99.0, label=("x", np.array(list("zzzzzzzz")))).chunk(time=6)
    write(repo, more, append_dim="time", mode="a-")
    opened = read(repo)
    assert opened.total == 3.5
    assert opened.label.values.tolist() == list("abcdefgh")
    assert opened.sizes["time"] == 12


@pytest.mark.parametrize("region", ["auto", {"time": "auto", "x": "auto"}, {"time": slice(2, 4), "x": slice(None)}])
@pytest.mark.parametrize("chunked", [False, True])
def test_region(repo: Any, dataset: xr.Dataset, region: Any, chunked: bool) -> None:
    base = dataset.drop_vars(["total", "label"])
    write(repo, base, encoding={name: {"chunks": (2, 8)} for name in ("temperature", "count", "area")})
    patch = base[["temperature", "count"]].drop_vars("area").isel(time=slice(2, 4)) * 0 + 7
    patch["count"] = patch["count"].astype("i4")
    chosen = patch if region == "auto" or "auto" in region.values() else patch.drop_vars(["x", "time"])
    write(repo, chosen.chunk(time=2) if chunked else chosen, region=region)
    expected = base.copy(deep=True)
    expected.temperature[2:4] = 7
    expected["count"][2:4] = 7
    xr.testing.assert_equal(read(repo), expected)
    assert isinstance(region, str) or set(region) == {"time", "x"}  # the caller's mapping does not change
    assert region == "auto" or region in ({"time": "auto", "x": "auto"}, {"time": slice(2, 4), "x": slice(None)})


def test_mode_w_replaces_the_group_and_only_it(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    write(repo, dataset, group="one")
    write(repo, dataset, group="two")
    write(repo, lazy[["temperature"]], group="one", mode="w")
    assert set(read(repo, group="one").data_vars) == {"temperature"}
    xr.testing.assert_identical(read(repo, group="two"), dataset)


def test_mode_a_adds_and_overwrites(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    write(repo, dataset)
    changed = (lazy[["temperature"]] + 1).assign(new=lazy["count"] * 2).drop_vars("area")
    write(repo, changed, mode="a", align_chunks=True)
    opened = read(repo)
    np.testing.assert_array_equal(opened.temperature, dataset.temperature + 1)
    np.testing.assert_array_equal(opened.new, dataset["count"] * 2)
    np.testing.assert_array_equal(opened["count"], dataset["count"])


@pytest.mark.parametrize("name", ["temperature", None, "x"])
def test_data_arrays(repo: Any, dataset: xr.Dataset, location: str, name: str | None) -> None:
    array = dataset.temperature.rename(name) if name != "x" else dataset.temperature[0].drop_vars("area").rename("x")
    write(repo, array)
    xr.testing.assert_identical(xr.open_dataarray(location, engine="icechunk").load(), array)


def test_scalars_empty_and_sharded_arrays(repo: Any) -> None:
    ds = xr.Dataset(
        {
            "scalar": ((), da.from_array(np.array(5.0))),
            "empty": (("none", "x"), da.zeros((0, 6), chunks=(1, 3))),
            "sharded": ("x", da.arange(12, chunks=6)[:6]),
            "nothing": ("none", np.zeros(0)),
        }
    )
    write(repo, ds, encoding={"sharded": {"chunks": (3,), "shards": (6,)}})
    opened = read(repo)
    xr.testing.assert_identical(opened, ds.compute())
    assert opened.sharded.encoding["shards"] == (6,)
    assert ds["empty"].chunks is not None  # the caller's dataset stays lazy


def test_write_empty_chunks_is_honoured_for_dask_arrays(repo: Any) -> None:
    ds = xr.Dataset({"full": ("x", da.zeros(4, chunks=2)), "sparse": ("x", da.zeros(4, chunks=2))})
    encoding = {name: {"fill_value": 0.0, "write_empty_chunks": name == "full"} for name in ds}
    write(repo, ds, encoding=encoding)
    session = repo.readonly_session("main")
    array = zarr.open_group(session.store, mode="r")
    assert array["full"].nchunks_initialized == 2
    assert array["sparse"].nchunks_initialized == 0


def test_safe_and_aligned_chunks(repo: Any, dataset: xr.Dataset) -> None:
    odd = dataset[["temperature"]].chunk(time=3)
    encoding = {"temperature": {"chunks": (2, 8)}}
    session = repo.writable_session("main")
    with pytest.raises(ValueError, match="overlap multiple Dask chunks"):
        xi.to_icechunk(odd, session, encoding=encoding)
    xi.to_icechunk(odd, session, encoding=encoding, align_chunks=True)
    session.commit("aligned")
    xr.testing.assert_identical(read(repo), dataset[["temperature", "area"]].chunk().compute())
    assert read(repo).temperature.encoding["chunks"] == (2, 8)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mode": "r"}, "mode='r'"),
        ({"mode": "w", "append_dim": "time"}, "append_dim"),
        ({"mode": "w-", "region": "auto"}, "region"),
        ({"append_dim": "nowhere", "mode": "a"}, "nowhere"),
        ({"region": {"time": slice(0, 6, 2)}, "mode": "a"}, "step"),
        ({"region": {"nowhere": slice(0, 1)}}, "nowhere|region"),
        ({"encoding": {"temperature": {"nonsense": 1}}, "mode": "w"}, "nonsense"),
        ({"encoding": {"temperature": {"chunks": (1, 1)}}, "mode": "a"}, "already exists"),
        ({}, "already contains|exists"),
    ],
)
def test_refusals_leave_the_session_alone(
    repo: Any, dataset: xr.Dataset, lazy: xr.Dataset, options: dict[str, Any], error: str
) -> None:
    write(repo, dataset)
    session = repo.writable_session("main")
    with pytest.raises((ValueError, FileExistsError, IcechunkError), match=error):
        xi.to_icechunk(lazy, session, **options)
    assert not session.has_uncommitted_changes
    xr.testing.assert_identical(read(session), dataset)


@pytest.mark.parametrize("name", ["", 3, ("a", "b")])
def test_names_must_be_text(repo: Any, name: Any) -> None:
    session = repo.writable_session("main")
    with pytest.raises(InvalidInputError, match="rename"):
        xi.to_icechunk(xr.Dataset({name: ("x", [1, 2])}), session)
    assert not session.has_uncommitted_changes


def test_failing_graph_leaves_the_session_as_it_was(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    def fail_late(block: np.ndarray, block_id: Any = None) -> np.ndarray:
        if block_id == (2, 1):
            raise RuntimeError("no more data")
        return block

    broken = lazy.assign(temperature=(("time", "x"), lazy.temperature.data.map_blocks(fail_late, dtype="f8")))
    session = repo.writable_session("main")
    xi.to_icechunk(dataset, session, group="kept")
    status = repr(session.status())
    with pytest.raises(RuntimeError, match="no more data"):
        xi.to_icechunk(broken, session, mode="a")
    assert repr(session.status()) == status
    xi.to_icechunk(lazy, session, mode="a")  # a second attempt works
    session.commit("good")
    xr.testing.assert_identical(read(repo), dataset)
    xr.testing.assert_identical(read(repo, group="kept"), dataset)


def test_failing_append_takes_the_resize_back(repo: Any, dataset: xr.Dataset) -> None:
    base = dataset.drop_vars(["total", "label"])
    write(repo, base)

    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("no data")

    more = base.assign(temperature=(("time", "x"), base.chunk(time=2).temperature.data.map_blocks(fail, dtype="f8")))
    session = repo.writable_session("main")
    with pytest.raises(RuntimeError, match="no data"):
        xi.to_icechunk(more, session, append_dim="time", safe_chunks=False)
    assert not session.has_uncommitted_changes
    xr.testing.assert_identical(read(session), base)


def test_read_only_sessions(repo: Any, dataset: xr.Dataset) -> None:
    with pytest.raises(ReadOnlyError, match="writable_session"):
        xi.to_icechunk(dataset, repo.readonly_session("main"))
    session = repo.writable_session("main")
    xi.to_icechunk(dataset, session)
    session.commit("done")
    with pytest.raises(ReadOnlyError, match="writable_session"):
        xi.to_icechunk(dataset, session, mode="w")


@pytest.mark.parametrize("wrong", [3, None])
def test_what_cannot_be_written_to(repo: Any, dataset: xr.Dataset, wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="writable_session"):
        xi.to_icechunk(dataset, wrong)
    with pytest.raises(InvalidInputError, match="DataTree"):
        xi.to_icechunk("dataset", repo.writable_session("main"))  # type: ignore[arg-type]


def test_a_fork_can_be_written_to(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    """Write and commit as a worker with its own session."""
    session = repo.writable_session("main")
    xi.to_icechunk(dataset.isel(x=slice(0, 4)), session, group="a")
    forks = [pickle.loads(pickle.dumps(session.fork())) for _ in range(2)]
    xi.to_icechunk(dataset, forks[0], group="b")
    xi.to_icechunk(lazy, forks[1], group="c")
    session.merge(*(pickle.loads(pickle.dumps(fork)) for fork in forks))
    session.commit("merged")
    for group in "bc":
        xr.testing.assert_identical(read(repo, group=group), dataset)


def test_options_of_the_scheduler(repo: Any, lazy: xr.Dataset) -> None:
    calls = []

    def scheduler(dsk: Any, keys: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return dask.get(dsk, keys)

    write(repo, lazy, chunkmanager_store_kwargs={"scheduler": scheduler, "flavour": 3})
    assert [call.get("flavour") for call in calls] == [3]  # one graph for all variables
    for option in ("compute", "return_stored", "load_stored", "lock"):
        session = repo.writable_session("main")
        with pytest.raises(InvalidInputError, match=option):
            xi.to_icechunk(lazy, session, mode="w", chunkmanager_store_kwargs={option: True})
        assert not session.has_uncommitted_changes


# --- store_dask ------------------------------------------------------------------------------------------------


@pytest.fixture
def session(repo: Any) -> Session:
    session: Session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    for name in ("a", "b"):
        root.create_array(name, shape=(8, 6), chunks=(2, 3), dtype="f8", fill_value=-1.0)
    return session


@pytest.mark.parametrize("split_every", [None, 2, 3, 100])
def test_store_dask(session: Session, split_every: int | None) -> None:
    fork = session.fork()
    sources = [da.random.random((8, 6), chunks=(2, 3)), da.ones((4, 3), chunks=(2, 3))]
    merged = xi.store_dask(
        sources=sources,
        targets=[zarr.open_array(fork.store, path=name, mode="r+") for name in ("a", "b")],
        regions=[None, (slice(2, 6), slice(3, 6))],
        split_every=split_every,
    )
    assert isinstance(merged, ForkSession)
    session.merge(merged)
    root = zarr.open_group(session.store, mode="r")
    np.testing.assert_array_equal(root["a"][:], dask.compute(sources[0])[0])
    expected = np.full((8, 6), -1.0)
    expected[2:6, 3:6] = 1
    np.testing.assert_array_equal(root["b"][:], expected)


def test_equal_writes_are_each_done(session: Session) -> None:
    """Writing the same blocks to the same array twice is two writes, even if dask caches results by name."""
    source = da.ones((8, 6), chunks=(2, 3))
    fork = session.fork()
    target = zarr.open_array(fork.store, path="a", mode="r+")
    assert xi.store_dask(sources=[source], targets=[target]) is fork
    assert (target[:] == 1).all()
    target[:] = 5
    xi.store_dask(sources=[source], targets=[target], regions=[(slice(None), slice(None))])
    assert (target[:] == 1).all()
    target[:] = 6
    xi.store_dask(sources=[source[:4]], targets=[target], regions=[(slice(0, 4), slice(None))])
    session.merge(fork)
    values = zarr.open_array(session.store, path="a", mode="r")[:, 0]
    assert values.tolist() == [1, 1, 1, 1, 6, 6, 6, 6]


def test_targets_of_several_forks(session: Session) -> None:
    forks = [session.fork(), session.fork()]
    source = da.ones((8, 6), chunks=(2, 3))
    targets = [zarr.open_array(fork.store, path=name, mode="r+") for fork, name in zip(forks, "ab", strict=True)]
    assert xi.store_dask(sources=[source, source * 2], targets=targets) is forks[0]
    session.merge(forks[0])
    root = zarr.open_group(session.store, mode="r")
    assert (root["a"][:] == 1).all()
    assert (root["b"][:] == 2).all()


def test_store_dask_checks_its_arguments(session: Session) -> None:
    fork = session.fork()
    source = da.ones((8, 6), chunks=(2, 3))
    target = zarr.open_array(fork.store, path="a", mode="r+")
    with pytest.raises(InvalidInputError, match="2 sources, 1 targets"):
        xi.store_dask(sources=[source, source], targets=[target])
    with pytest.raises(InvalidInputError, match="2 regions"):
        xi.store_dask(sources=[source], targets=[target], regions=[None, None])
    with pytest.raises(InvalidInputError, match="at least one"):
        xi.store_dask(sources=[], targets=[])
    with pytest.raises(InvalidInputError, match=r"session\.fork\(\)"):
        xi.store_dask(sources=[source], targets=[zarr.open_array(session.store, path="a", mode="r+")])
    with pytest.raises(InvalidInputError, match="not a dask array"):
        xi.store_dask(sources=[np.ones((8, 6))], targets=[target])  # type: ignore[list-item]
    with pytest.raises(InvalidInputError, match="lock"):
        xi.store_dask(sources=[source], targets=[target], lock=True)


def test_merging_forks_changes_none_of_them(session: Session) -> None:
    forks = [session.fork() for _ in range(3)]
    for number, fork in enumerate(forks):
        zarr.open_array(fork.store, path="a", mode="r+")[2 * number : 2 * number + 2] = number
    before = [pickle.dumps(fork) for fork in forks]
    merged = merge_forks([forks[0], [forks[1], (forks[2], forks[0])]])
    assert [pickle.dumps(fork) for fork in forks] == before
    session.merge(merged)
    values = zarr.open_array(session.store, path="a", mode="r")[:, 0]
    assert values.tolist() == [0, 0, 1, 1, 2, 2, -1, -1]
    assert merge_forks(forks[0]) is forks[0]
    with pytest.raises(InvalidInputError, match=r"session\.merge"):
        merge_forks([session])  # type: ignore[list-item]
