"""Support for clusters of ``distributed``: the names of tasks, and whether this process is a client.

The engine loads this module in processes that have imported ``distributed``
(:mod:`icechunk_engine._runtime.cluster_support`).
"""

from __future__ import annotations

import distributed
from distributed.worker import thread_state

from icechunk_engine._runtime.cluster_support import set_client_finder
from icechunk_engine._runtime.task_names import set_task_namer

__all__: list[str] = []


def task_name() -> str | None:
    """Return the key of the task that runs now; None if it is unknown.

    A thread of the worker knows its task. zarr's own threads know only the worker. If exactly one task runs there, it
    is that task.
    """
    key = getattr(thread_state, "key", None)
    if key is None:
        try:
            running = list(distributed.get_worker().active_threads.values())
        except ValueError:  # not in a worker
            return None
        key = running[0] if len(running) == 1 else None
    return None if key is None else str(key)


def has_client() -> bool:
    """Return True if this process is the client of a cluster."""
    try:
        distributed.get_client(timeout=0)
    except (ValueError, OSError):
        return False
    return True


set_task_namer(task_name)
set_client_finder(has_client)
