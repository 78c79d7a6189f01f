"""What ``to_icechunk`` accepts in place of a session: stores, repositories, paths and URLs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import icechunk_engine as ic
import xarray_icechunk as xi
from icechunk_engine.errors import (
    ConflictError,
    IcechunkError,
    InvalidInputError,
    ReadOnlyError,
    RebaseFailedError,
    RefNotFoundError,
    StorageError,
)
from icechunk_engine.session import workspace_of
from icechunk_engine.storage.wrappers import StorageCall
from icechunk_engine.testing.faults import FaultStorage

from .conftest import write


@pytest.fixture
def dataset(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.drop_vars("label")  # numbers only


@pytest.fixture
def lazy(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.chunk(time=2, x=4)


def read(place: Any, **kwargs: Any) -> xr.Dataset:
    return xi.open_dataset(place, **kwargs).load()


def messages(repo: Any, branch: str = "main") -> list[str]:
    return [snapshot.message for snapshot in repo.ancestry(branch=branch)]


@pytest.mark.parametrize("kind", ["str", "Path", "URL", "Storage", "memory"])
def test_a_place_is_created_written_and_committed(location: str, lazy: xr.Dataset, kind: str) -> None:
    place: Any = {
        "str": location,
        "Path": Path(location),
        "URL": f"file://{location}",
        "Storage": ic.local_filesystem_storage(location),
        "memory": f"memory://{location.strip('/')}",
    }[kind]
    snapshot_id = xi.to_icechunk(lazy, place, message="all at once", metadata={"run": 3})
    repo = ic.Repository.open(place)
    assert repo.lookup_branch("main") == snapshot_id
    tip = next(iter(repo.ancestry(branch="main")))
    assert tip.message == "all at once"
    assert tip.metadata["run"] == 3
    xr.testing.assert_identical(read(repo), lazy.compute())
    again = xi.to_icechunk(lazy * 2, place, group="double")
    assert again == repo.lookup_branch("main") != snapshot_id
    xr.testing.assert_equal(read(repo, group="double"), lazy.compute() * 2)


def test_the_same_call_appends_later(location: str, lazy: xr.Dataset) -> None:
    base = lazy.drop_vars("total")
    xi.to_icechunk(base.isel(time=slice(0, 2)), location)
    for start in (2, 4):
        xi.to_icechunk(base.isel(time=slice(start, start + 2)), location, append_dim="time")
    xr.testing.assert_identical(read(location), base.compute())
    assert messages(ic.Repository.open(location))[0] == "Append 'temperature', 'count' to / along 'time'"


def test_a_branch_and_a_group_in_the_url(repo: Any, location: str, dataset: xr.Dataset) -> None:
    repo.create_branch("dev", repo.lookup_branch("main"))
    xi.to_icechunk(dataset, f"{location}|icechunk:@branch.dev/model", group="ocean")
    xi.to_icechunk(dataset, repo, branch="dev", group="plain")
    assert messages(repo) == ["Repository initialized"]
    xr.testing.assert_identical(read(repo, branch="dev", group="model/ocean"), dataset)
    xr.testing.assert_identical(read(f"{location}|icechunk:@branch.dev/plain"), dataset)


def test_default_messages(repo: Any, dataset: xr.Dataset) -> None:
    xi.to_icechunk(dataset.assign(more=1), repo, group="g")
    xi.to_icechunk(dataset[["temperature"]].isel(time=slice(0, 6)).drop_vars(["area"]), repo, group="g", region="auto")
    assert messages(repo)[:2] == [
        "Write a region of 'temperature' in /g",
        "Write 'temperature', 'count', 'total' and 1 more to /g",
    ]


def test_stores_and_transactions(repo: Any, dataset: xr.Dataset, lazy: xr.Dataset) -> None:
    with repo.transaction("main", message="two groups") as store:
        assert xi.to_icechunk(dataset, store, group="a") is None
        assert xi.to_icechunk(lazy, store, group="b") is None
    assert messages(repo) == ["two groups", "Repository initialized"]
    for group in "ab":
        xr.testing.assert_identical(read(repo, group=group), dataset)
    session = repo.writable_session("main")
    fork = session.fork()
    xi.to_icechunk(lazy, fork.store, group="c")
    session.merge(fork)
    session.commit("fork")
    xr.testing.assert_identical(read(repo, group="c"), dataset)


def test_read_only_stores(repo: Any, dataset: xr.Dataset) -> None:
    session = repo.writable_session("main")
    for store in (repo.readonly_session("main").store, session.store.with_read_only(True)):
        with pytest.raises(ReadOnlyError):
            xi.to_icechunk(dataset, store)
    with pytest.raises(IcechunkError, match="rearrange"):
        xi.to_icechunk(dataset, repo.rearrange_session("main"))
    assert not session.has_uncommitted_changes


def test_writers_of_disjoint_parts_rebase(repo: Any, dataset: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    base = dataset[["temperature"]].drop_vars("area")
    write(repo, base, encoding={"temperature": {"chunks": (2, 8)}})
    begin = ic.Repository.writable_session
    others = iter([slice(2, 4), slice(4, 6)])

    def interrupted(self: Any, branch: str) -> Any:
        """Begin a session, and let somebody else commit before it does."""
        session = begin(self, branch)
        if (part := next(others, None)) is not None:
            xi.to_icechunk(base.isel(time=part) + 1, repo, region="auto")
        return session

    monkeypatch.setattr(ic.Repository, "writable_session", interrupted)
    xi.to_icechunk(base.isel(time=slice(0, 2)).chunk() + 1, repo, region="auto")
    xr.testing.assert_equal(read(repo), base + 1)
    assert len(messages(repo)) == 5


def test_writers_of_the_same_part(repo: Any, dataset: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    base = dataset[["temperature"]].drop_vars("area")
    write(repo, base)
    begin = ic.Repository.writable_session
    values = iter([7.0, 8.0])

    def interrupted(self: Any, branch: str) -> Any:
        session = begin(self, branch)
        if (value := next(values, None)) is not None:
            xi.to_icechunk(base * 0 + value, repo, region="auto", rebase_with=ic.BasicConflictSolver())
        return session

    monkeypatch.setattr(ic.Repository, "writable_session", interrupted)
    with pytest.raises((ConflictError, RebaseFailedError), match="temperature"):
        xi.to_icechunk(base * 0, repo, region="auto")
    assert (read(repo).temperature == 7).all()


def test_a_commit_whose_answer_is_lost(dataset: xr.Dataset) -> None:
    """The caller has no session with which to find out, and would append twice."""
    base = dataset[["temperature"]].drop_vars("area")
    is_armed = False
    lost: list[str] = []

    def lose(n: int, call: StorageCall, moment: str) -> None:
        """Lose the answer of the request that commits, and fail the request that would find out."""
        committed = moment == "after" and call.method == "replace"
        if is_armed and call.keys == ("repo",) and (committed if not lost else len(lost) == 1):
            lost.append(call.method)
            raise StorageError("no answer")

    repo = ic.Repository.create(FaultStorage(ic.in_memory_storage(), lose))
    xi.to_icechunk(base, repo)
    is_armed = True
    assert xi.to_icechunk(base, repo, append_dim="time") == repo.lookup_branch("main")
    assert len(lost) == 2
    assert read(repo).sizes["time"] == 12
    assert len(messages(repo)) == 3


def test_nothing_changed_is_no_commit(repo: Any, dataset: xr.Dataset) -> None:
    tip = xi.to_icechunk(dataset, repo)
    assert xi.to_icechunk(xr.Dataset(attrs=dataset.attrs), repo, mode="a") == tip == repo.lookup_branch("main")


@pytest.mark.parametrize(
    "option",
    [
        {"message": "m"},
        {"branch": "main"},
        {"metadata": {}},
        {"rebase_with": ic.ConflictDetector()},
        {"rebase_tries": 3},
        {"storage_options": {"anon": True}},
    ],
)
@pytest.mark.parametrize("as_store", [True, False])
def test_arguments_of_a_commit_are_refused_for_sessions(
    repo: Any, dataset: xr.Dataset, option: dict[str, Any], as_store: bool
) -> None:
    session = repo.writable_session("main")
    with pytest.raises(InvalidInputError, match=f"{next(iter(option))} .*session.commit"):
        xi.to_icechunk(dataset, session.store if as_store else session, **option)
    assert not session.has_uncommitted_changes


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mode": "r"}, "mode='r'"),
        ({"branch": "dev"}, "only the branch 'main'"),
        ({"region": {"time": slice(0, 2)}}, "no group '/'"),
        ({"append_dim": "time"}, "time"),
        ({"encoding": {"temperature": {"nonsense": 1}}}, "nonsense"),
        ({"encoding": {"temperature": {"chunks": (5, 5)}}}, "overlap multiple Dask chunks"),
        ({"storage_options": {"nonsense": 1}}, "nonsense"),
        ({"compute": False, "template": True}, "template"),
        ({"compute": False, "chunkmanager_store_kwargs": {"retries": 2}}, "compute method"),
    ],
)
def test_refusals_come_before_a_repository_is_created(
    location: str, lazy: xr.Dataset, options: dict[str, Any], error: str
) -> None:
    with pytest.raises((ValueError, IcechunkError), match=error):
        xi.to_icechunk(lazy, location, **options)
    assert not Path(location).exists()


def test_refs_that_cannot_be_written_to(repo: Any, location: str, dataset: xr.Dataset) -> None:
    tip = repo.lookup_branch("main")
    repo.create_tag("v1", tip)
    for ref in ("tag.v1", tip):
        with pytest.raises(InvalidInputError, match="branches only"):
            xi.to_icechunk(dataset, f"{location}|icechunk:@{ref}")
    with pytest.raises(InvalidInputError, match="branch='dev'"):
        xi.to_icechunk(dataset, f"{location}|icechunk:@branch.main", branch="dev")
    with pytest.raises(RefNotFoundError, match="dev"):
        xi.to_icechunk(dataset, repo, branch="dev")
    with pytest.raises(InvalidInputError, match="already open"):
        xi.to_icechunk(dataset, repo, storage_options={"anon": True})
    assert repo.lookup_branch("main") == tip


def test_values_that_cannot_be_computed_leave_an_empty_repository(location: str, dataset: xr.Dataset) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("no data")

    lazy = dataset.chunk(time=2)
    broken = lazy.assign(temperature=(("time", "x"), lazy.temperature.data.map_blocks(fail, dtype="f8")))
    with pytest.raises(RuntimeError, match="no data"):
        xi.to_icechunk(broken, location)
    repo = ic.Repository.open(location)
    assert messages(repo) == ["Repository initialized"]
    xi.to_icechunk(lazy, location)  # the next attempt needs no other mode
    xr.testing.assert_identical(read(location), dataset)


@pytest.mark.parametrize("group", ["theirs", "ours"])
def test_somebody_else_creates_the_repository(
    location: str, lazy: xr.Dataset, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    """What a new repository would have accepted may no longer be right."""
    create = ic.Repository.open_or_create

    def slow(storage: Any) -> Any:
        write(create(storage), lazy.compute() + 1, group=group)
        return create(storage)

    monkeypatch.setattr(ic.Repository, "open_or_create", slow)
    if group == "ours":
        with pytest.raises(FileExistsError):
            xi.to_icechunk(lazy, location, group="ours")
    else:
        xi.to_icechunk(lazy, location, group="ours")
        xr.testing.assert_identical(read(location, group="ours"), lazy.compute())
    xr.testing.assert_equal(read(location, group=group), lazy.compute() + 1)


@pytest.mark.parametrize("value", [True, False, None])
@pytest.mark.parametrize("chunked", [True, False])
def test_write_empty_chunks(repo: Any, value: bool | None, chunked: bool) -> None:
    ds = xr.Dataset({"a": ("x", np.zeros(4))})
    session = repo.writable_session("main")
    encoding = {"a": {"chunks": (2,), "fill_value": 0.0}}
    array = ds.chunk(x=2) if chunked else ds

    def num_stored(path: str) -> int:
        return len(workspace_of(session).chunk_refs(path).indices)

    xi.to_icechunk(array, session, group="new", encoding=encoding, write_empty_chunks=value)
    xi.to_icechunk(array, session, group="old", encoding=encoding)
    assert num_stored("/old/a") == 0
    xi.to_icechunk(array, session, group="old", region={"x": slice(0, 4)}, write_empty_chunks=value)
    assert num_stored("/new/a") == num_stored("/old/a") == (2 if value else 0)
    session.commit("empty")
    assert (read(repo, group="old").a == 0).all()
