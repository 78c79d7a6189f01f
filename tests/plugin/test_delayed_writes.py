"""``compute=False`` and templates."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from dask.delayed import Delayed

import icechunk_engine as ic
import xarray_icechunk as xi
from icechunk_engine.errors import InvalidInputError, SessionStateError
from xarray_icechunk import delayed_writes
from xarray_icechunk.dask_writer import store_graph


@pytest.fixture
def dataset(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.drop_vars("label")  # numbers only


@pytest.fixture
def lazy(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.chunk(time=2, x=4)


def read(place: Any, **kwargs: Any) -> xr.Dataset:
    return xi.open_dataset(place, **kwargs).load()


def commits(repo: Any) -> int:
    return len(list(repo.ancestry(branch="main")))


SCHEDULERS = ["synchronous", "threads", pytest.param("processes", marks=pytest.mark.long)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_session_gets_the_metadata_now_and_the_values_later(
    repo: Any, dataset: xr.Dataset, lazy: xr.Dataset, scheduler: str
) -> None:
    session = repo.writable_session("main")
    delayed: Any = xi.to_icechunk(lazy, session, compute=False)
    assert isinstance(delayed, Delayed)
    template = read(session)
    assert template.sizes == dataset.sizes
    assert template.temperature.attrs == {"units": "K"}
    xr.testing.assert_identical(template.time, dataset.time)  # in memory, so already written
    assert template.temperature.isnull().all()
    with dask.config.set(scheduler=scheduler, num_workers=2):
        delayed.compute()
    session.commit("values")
    xr.testing.assert_identical(read(repo), dataset)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_several_delayed_writes_together(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset, scheduler: str) -> None:
    session = repo.writable_session("main")
    delayed: list[Any] = [xi.to_icechunk(lazy + n, session, group=f"g{n}", compute=False) for n in range(3)]
    assert dask.compute(*delayed, scheduler=scheduler, num_workers=2) == (None, None, None)
    xi.to_icechunk(dataset, session, group="more")
    session.commit("four")
    for n in range(3):
        xr.testing.assert_equal(read(repo, group=f"g{n}"), dataset + n)
    xr.testing.assert_identical(read(repo, group="more"), dataset)


def test_computing_twice_changes_nothing(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    session = repo.writable_session("main")
    delayed: Any = xi.to_icechunk(lazy, session, compute=False)
    for _ in range(2):
        delayed.compute()
    session.commit("once")
    xr.testing.assert_identical(read(repo), dataset)
    with pytest.raises(SessionStateError, match="committed"):
        delayed.compute()
    late: Any = xi.to_icechunk(lazy, session := repo.writable_session("main"), mode="w", compute=False)
    session.commit("template")
    with pytest.raises(SessionStateError, match="region="):
        late.compute()


def test_without_dask_arrays(repo: Any, location: str, dataset: xr.Dataset) -> None:
    session = repo.writable_session("main")
    delayed: Any = xi.to_icechunk(dataset, session, compute=False)
    assert delayed.compute() is None
    session.commit("memory")
    xr.testing.assert_identical(read(repo), dataset)
    committing: Any = xi.to_icechunk(dataset, repo, group="g", compute=False)
    assert committing.compute() == repo.lookup_branch("main")
    xr.testing.assert_identical(read(repo, group="g"), dataset)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_repository_is_committed_to(location: str, dataset: xr.Dataset, lazy: xr.Dataset, scheduler: str) -> None:
    delayed: Any = xi.to_icechunk(lazy, location, message="later", compute=False)
    repo = ic.Repository.open(location)
    assert commits(repo) == 1
    with dask.config.set(scheduler=scheduler, num_workers=2):
        assert dask.compute(delayed) == (repo.lookup_branch("main"),)
    assert commits(repo) == 2
    assert next(iter(repo.ancestry(branch="main"))).message == "later"
    xr.testing.assert_identical(read(repo), dataset)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_futures_of_a_cluster(
    request: pytest.FixtureRequest, repo: Any, dataset: xr.Dataset, lazy: xr.Dataset, kind: str
) -> None:
    client = request.getfixturevalue(f"cluster_of_{kind}")
    session = repo.writable_session("main")
    delayed: Any = xi.to_icechunk(lazy, session, group="session", compute=False)
    with client.as_current():
        assert client.compute(delayed).result() is None
        client.compute(delayed).result()  # the same graph again changes nothing
        session.commit("session")
        with pytest.raises(SessionStateError, match="committed"):
            client.compute(delayed)
        futures = client.compute([xi.to_icechunk(lazy + n, repo, group=f"g{n}", compute=False) for n in range(2)])
        ids = client.gather(futures)
    assert sorted(ids) == sorted(snapshot.id for snapshot in list(repo.ancestry(branch="main"))[:2])
    xr.testing.assert_identical(read(repo, group="session"), dataset)
    for n in range(2):
        xr.testing.assert_equal(read(repo, group=f"g{n}"), dataset + n)


def test_the_commit_runs_once(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    """Dask may run a task again after it has lost its result. Here others commit in between."""
    delayed: Any = xi.to_icechunk(lazy, repo, compute=False)
    first = delayed.compute()
    other = xi.to_icechunk(dataset, repo, group="other")
    assert delayed.compute() == first
    copy = pickle.loads(pickle.dumps(delayed))
    assert copy.compute() == first
    assert repo.lookup_branch("main") == other
    assert commits(repo) == 3


def test_two_runs_of_the_commit_at_once(repo: Any, lazy: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    delayed: Any = xi.to_icechunk(lazy, repo, compute=False)
    find, looks = delayed_writes._CommitTask._find, iter([True, True])

    def blind(self: Any) -> str | None:
        """See nothing at first: the other run has not committed yet."""
        return None if next(looks, False) else find(self)

    monkeypatch.setattr(delayed_writes._CommitTask, "_find", blind)
    assert delayed.compute(scheduler="synchronous") == delayed.compute(scheduler="synchronous")
    assert commits(repo) == 2


def test_others_commit_before_a_delayed_write(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    delayed: Any = xi.to_icechunk(lazy, repo, group="late", compute=False)
    xi.to_icechunk(dataset, repo, group="early")
    assert delayed.compute() == repo.lookup_branch("main")
    for group in ("early", "late"):
        xr.testing.assert_identical(read(repo, group=group), dataset)


def test_a_failing_graph_commits_nothing(repo: Any, lazy: xr.Dataset) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("no data")

    broken = lazy.assign(temperature=(("time", "x"), lazy.temperature.data.map_blocks(fail, dtype="f8")))
    delayed: Any = xi.to_icechunk(broken, repo, compute=False)
    session = repo.writable_session("main")
    merging: Any = xi.to_icechunk(broken, session, compute=False)
    before = repr(session.status())
    for one in (delayed, merging):
        with pytest.raises(RuntimeError, match="no data"):
            one.compute()
    assert commits(repo) == 1
    assert repr(session.status()) == before


# --- templates -------------------------------------------------------------------------------------------------


def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("a graph was built")

    monkeypatch.setattr("xarray_icechunk.delayed_writes.store_graph", refuse)
    monkeypatch.setattr("xarray_icechunk.dask_writer.store_graph", refuse)


def million() -> xr.Dataset:
    return xr.Dataset(
        {"a": (("y", "x"), da.full((1000, 1000), 5.0, chunks=1))}, coords={"y": np.arange(1000), "x": np.arange(1000)}
    )


@pytest.mark.parametrize("how", ["template", "compute", "session"])
def test_a_template_builds_no_graph(repo: Any, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    no_graphs(monkeypatch)
    if how == "template":
        assert xi.to_icechunk(million(), repo, template=True) == repo.lookup_branch("main")
    elif how == "compute":
        session = repo.writable_session("main")
        delayed = xi.to_icechunk(million(), session, compute=False)
        assert "icechunk" in repr(delayed)
        session.commit("template")
    else:
        session = repo.writable_session("main")
        assert xi.to_icechunk(million(), session, template=True) is None
        session.commit("template")
    opened = xi.open_dataset(repo)
    assert opened.a.shape == (1000, 1000)
    assert opened.a.encoding["chunks"] == (1, 1)
    assert opened.a[:2].isnull().all()
    xr.testing.assert_identical(opened.x, million().x)


def test_a_template_is_filled_by_regions(location: str, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    base = lazy.drop_vars("total")
    xi.to_icechunk(base, location, template=True)
    for start in range(0, 6, 2):
        xi.to_icechunk(base.isel(time=slice(start, start + 2)), location, region="auto")
    xr.testing.assert_identical(read(location), base.compute())


# --- task names ------------------------------------------------------------------------------------------------


def test_task_names_are_readable_and_every_write_has_its_own(repo: Any, lazy: xr.Dataset) -> None:
    with dask.config.set({"tokenize.ensure-deterministic": True}):
        graphs = []
        for _ in range(2):
            session = repo.writable_session("main")
            delayed: Any = xi.to_icechunk(lazy[["temperature", "count"]], session, group="g", compute=False)
            graphs.append(dict(delayed.dask))
            delayed.compute(scheduler="synchronous")
    prefixes = {str(key[0] if isinstance(key, tuple) else key).rpartition("-")[0] for key in graphs[0]}
    assert any("icechunk-store-temperature" in prefix for prefix in prefixes)
    assert any("icechunk-store-count-partial" in prefix for prefix in prefixes)
    assert all("icechunk" in prefix for prefix in prefixes)
    assert not set(graphs[0]) & set(graphs[1])


def test_names_of_the_blocks(repo: Any) -> None:
    session = repo.writable_session("main")
    source = da.ones((4, 4), chunks=2)
    array = zarr.create_array(session.store, name="g/temp", shape=(4, 4), chunks=(2, 2), dtype="f8")
    target = zarr.open_array(session.fork().store, path=array.path, mode="r+")
    graph: Any = store_graph(source, target, None, None).__dask_graph__()
    assert any(layer.startswith("icechunk-store-temp-") for layer in graph.layers)


def test_progress_bars_see_the_tasks(repo: Any, lazy: xr.Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    from dask.diagnostics import ProgressBar

    xi.to_icechunk(lazy, repo, group="quiet")
    assert capsys.readouterr() == ("", "")
    with ProgressBar():
        xi.to_icechunk(lazy, repo, group="bar")
    assert "100% Completed" in capsys.readouterr().out


def test_data_of_the_same_session_are_refused(repo: Any, dataset: xr.Dataset) -> None:
    session = repo.writable_session("main")
    xi.to_icechunk(dataset, session)
    for source in (xi.open_dataset(session, chunks={}), xi.open_dataset(session)):
        with pytest.raises(InvalidInputError, match="compute=False"):
            xi.to_icechunk(source, session, mode="w", compute=False)
    xr.testing.assert_identical(read(session), dataset)


def test_tasks_stay_small(repo: Any) -> None:
    """Each task is sent alone, so none may carry what grows with the number of blocks."""
    session = repo.writable_session("main")
    sizes = []
    for n in (10, 1000):
        group = f"g{n}"
        ds = xr.Dataset({"a": ("x", da.zeros(n, chunks=1))})
        delayed: Any = xi.to_icechunk(ds, session, group=group, compute=False)
        tasks = [task for key, task in dict(delayed.dask).items() if "partial" not in str(key)]
        sizes.append(max(len(cloudpickle.dumps(task)) for task in tasks if len(task.dependencies) == 0))
    assert sizes[1] < sizes[0] + 500
