"""Executors behind one interface: a function over lists of arguments, or a graph of dask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask

if TYPE_CHECKING:
    from concurrent.futures import Executor as Pool

    from distributed import Client


@dataclass(frozen=True)
class Executor:
    """One executor.

    Attributes
    ----------
    map
        Runs a function over lists of arguments, each call as one task, and returns the results.
    scheduler
        Makes dask compute with it. None if dask cannot.
    """

    map: Callable[..., list[Any]]
    scheduler: Callable[[], AbstractContextManager[object]] | None = None


def of_threads(pool: Pool) -> Executor:
    return Executor(
        lambda function, *arguments: list(pool.map(function, *arguments)), lambda: dask.config.set(scheduler="threads")
    )


def of_processes(pool: Pool) -> Executor:
    return Executor(
        lambda function, *arguments: list(pool.map(function, *arguments)),
        lambda: dask.config.set(scheduler="processes", pool=pool),
    )


def of_cluster(client: Client) -> Executor:
    return Executor(
        lambda function, *arguments: client.gather(client.map(function, *arguments, pure=False)), client.as_current
    )


def of_joblib() -> Executor:
    # Imported here, since workers import this module.
    import joblib

    def run(function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        calls = (joblib.delayed(function)(*call) for call in zip(*arguments, strict=True))
        results: list[Any] = joblib.Parallel(n_jobs=2, backend="loky")(calls)
        return results

    return Executor(run)


def of_delayed(pool: Pool) -> Executor:
    """``dask.delayed`` functions on dask's scheduler of processes."""

    def run(function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        calls = [dask.delayed(function, pure=False)(*call) for call in zip(*arguments, strict=True)]
        with dask.config.set(scheduler="processes", pool=pool):
            return list(dask.compute(*calls))

    return Executor(run)
