"""Threads and processes that compete for the objects of a storage, to test what it promises."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.queues import Queue
from typing import Protocol

from icechunk_engine.errors import VersionMismatchError
from icechunk_engine.storage.base import Storage

_GIVE_UP_AFTER_S = 300.0
"""Much longer than even a busy machine needs. Only a deadlock takes so long."""


class Barrier(Protocol):
    """A barrier of threads or of processes."""

    def wait(self, timeout: float | None = None) -> int: ...


# --- what the competitors do ---------------------------------------------------------------------------------------


def race_creates(storage: Storage, me: int, barrier: Barrier, n_rounds: int) -> list[int]:
    """Return the rounds in which my ``create`` won."""
    won = []
    for n in range(n_rounds):
        barrier.wait(_GIVE_UP_AFTER_S)
        try:
            storage.create(f"race/{n}", f"{me}".encode() * 100)
        except VersionMismatchError:
            continue
        won.append(n)
    return won


def race_replaces(storage: Storage, me: int, barrier: Barrier, n_rounds: int) -> list[int]:
    """Return the rounds in which my ``replace`` won."""
    won = []
    for n in range(n_rounds):
        _, version = storage.get_versioned("counter")
        barrier.wait(_GIVE_UP_AFTER_S)
        try:
            storage.replace("counter", f"{n} {me}".encode(), version)
        except VersionMismatchError:
            pass
        else:
            won.append(n)
        barrier.wait(_GIVE_UP_AFTER_S)
    return won


def increment(storage: Storage, me: int, barrier: Barrier, n_times: int) -> list[int]:
    """Return the values of the counter that I wrote. Each increment is retried until it succeeds."""
    barrier.wait(_GIVE_UP_AFTER_S)
    written = []
    for _ in range(n_times):
        while True:
            data, version = storage.get_versioned("counter")
            value = int(data) + 1
            try:
                storage.replace("counter", b"%d" % value, version)
            except VersionMismatchError:
                continue
            written.append(value)
            break
    return written


def own_pid(storage: Storage, me: int, barrier: Barrier, n_rounds: int) -> list[int]:
    """Return the id of my process, after all have started."""
    barrier.wait(_GIVE_UP_AFTER_S)
    return [os.getpid()]


type Competitor = Callable[[Storage, int, Barrier, int], list[int]]


def compete_in_threads(function: Competitor, storage: Storage, n_threads: int, n_rounds: int) -> list[list[int]]:
    """Call the function in some threads at the same time and return their results."""
    barrier = threading.Barrier(n_threads)
    results: list[list[int] | BaseException] = [[] for _ in range(n_threads)]

    def run(me: int) -> None:
        try:
            results[me] = function(storage, me, barrier, n_rounds)
        except BaseException as error:
            results[me] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(me,)) for me in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, threading.BrokenBarrierError):
            raise result
    return [result for result in results if isinstance(result, list)]


def _context() -> ForkServerContext | SpawnContext:
    """Return a way to start processes that inherit nothing from the tests. A fork server is faster, if there is
    one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _run_in_process(
    results: Queue[tuple[int, list[int] | str]],
    function: Competitor,
    storage: Storage,
    me: int,
    barrier: Barrier,
    n_rounds: int,
) -> None:
    try:
        results.put((me, function(storage, me, barrier, n_rounds)))
    except BaseException as error:
        results.put((me, repr(error)))
        raise


def compete_in_processes(function: Competitor, storage: Storage, n_processes: int, n_rounds: int) -> list[list[int]]:
    """Call the function in some new processes at the same time and return their results."""
    context = _context()
    barrier = context.Barrier(n_processes)
    results: Queue[tuple[int, list[int] | str]] = context.Queue()
    processes = [
        context.Process(target=_run_in_process, args=(results, function, storage, me, barrier, n_rounds), daemon=True)
        for me in range(n_processes)
    ]
    for process in processes:
        process.start()
    try:
        returned = dict(results.get(timeout=_GIVE_UP_AFTER_S) for _ in processes)
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        results.close()
        results.join_thread()
    lists = [result for result in returned.values() if isinstance(result, list)]
    failures = [f"competitor {me}: {result}" for me, result in returned.items() if isinstance(result, str)]
    assert not failures, "; ".join(failures)
    return lists
