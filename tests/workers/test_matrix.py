"""Every way to write, on every executor, in every place: all values are there after one commit.

The thorough profile tries all combinations. The quick one tries a sample, in which each executor meets each way to
write and each place, and each way to write meets each place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import icechunk
import pytest
import zarr
from distributed import Client, worker_client

from tests.profiles import by_profile

from . import writes
from .conftest import Place
from .executors import Executor
from .writes import Values

pytestmark = pytest.mark.long

PLACES = ("local", "s3")

PROCESSES = by_profile(quick=("forkserver",), thorough=("spawn", "forkserver"))
"""Processes that are spawned import everything again. In the quick profile only the tests of functions start some."""


def cells(*axes: Sequence[str]) -> list[Any]:
    """Return the combinations to try: all of them, or a sample that holds each pair of values."""
    everything = list(itertools.product(*axes))
    chosen = by_profile(quick=covering(everything), thorough=everything)
    return [pytest.param(*cell, id="-".join(cell)) for cell in chosen]


def covering(everything: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return a few cells in which each value of an axis meets each value of the other axes."""

    def pairs(cell: tuple[str, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(cell), 2))

    missing = set().union(*map(pairs, everything))
    chosen = set()
    while missing:
        best = max(everything, key=lambda cell: len(missing & pairs(cell)))
        missing -= pairs(best)
        chosen.add(best)
    return [cell for cell in everything if cell in chosen]


def write_and_check(place: Place, write: Callable[[Any], Values]) -> None:
    """Write in one session, and read what it committed in sessions of both libraries."""
    session = place.create().writable_session("main")
    expected = write(session)
    session.commit("by workers")
    repo = place.open()
    assert [info.message for info in repo.ancestry(branch="main")][:-1] == ["by workers"]
    writes.require_values(zarr.open_group(repo.readonly_session("main").store, mode="r"), expected)
    official = icechunk.Repository.open(place.official())
    writes.require_values(zarr.open_group(official.readonly_session("main").store, mode="r"), expected)


@pytest.mark.parametrize(
    ("executor", "way", "where"),
    cells(("threads", *PROCESSES, "distributed"), tuple(writes.WHOLE), PLACES),
)
def test_whole_arrays(request: pytest.FixtureRequest, executor: str, way: str, where: str) -> None:
    run: Executor = request.getfixturevalue(executor)
    assert run.scheduler is not None
    with run.scheduler():
        write_and_check(request.getfixturevalue(f"{where}_place"), lambda session: writes.WHOLE[way](session.store))


CUBED: dict[str, tuple[str, dict[str, str]]] = {
    "threads": ("threads", {}),
    **{start_method: ("processes", {"use_processes": start_method}) for start_method in PROCESSES},
}


@pytest.mark.parametrize(("executor", "way", "where"), cells(tuple(CUBED), tuple(writes.CUBED), PLACES))
def test_cubed(
    request: pytest.FixtureRequest, preloaded_forkserver: None, tmp_path: Any, executor: str, way: str, where: str
) -> None:
    import cubed

    name, options = CUBED[executor]
    spec = cubed.Spec(
        work_dir=str(tmp_path / "cubed"), allowed_mem="100MB", executor_name=name, executor_options=options
    )
    write_and_check(request.getfixturevalue(f"{where}_place"), lambda session: writes.CUBED[way](session.store, spec))


@pytest.mark.parametrize(
    ("executor", "way_back", "function", "where"),
    cells(
        ("threads", "spawn", "forkserver", "delayed", "distributed", "loky"),
        tuple(writes.WAYS_BACK),
        tuple(writes.FUNCTIONS),
        PLACES,
    ),
)
def test_functions(request: pytest.FixtureRequest, executor: str, way_back: str, function: str, where: str) -> None:
    run: Executor = request.getfixturevalue(executor)
    write_and_check(
        request.getfixturevalue(f"{where}_place"),
        lambda session: writes.WAYS_BACK[way_back](writes.FUNCTIONS[function], session, run),
    )


def from_a_task(store: Any, way: str) -> Values:
    with worker_client():
        return writes.WHOLE[way](store)


@pytest.mark.parametrize("way", ["to_zarr", "to_zarr(append_dim)", "dask.array.store"])
def test_a_task_that_starts_tasks(cluster_of_processes: Client, local_place: Place, way: str) -> None:
    """The copy of the store in the first task is copied again."""

    def write(session: Any) -> Values:
        expected: Values = cluster_of_processes.submit(from_a_task, session.store, way).result()
        return expected

    write_and_check(local_place, write)
