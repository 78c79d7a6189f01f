"""The name of the task that runs now, if a scheduler has given it one.

A scheduler that repeats a task gives the repetition the same name. So the names tell a retry, which writes the same
values again, from two tasks that disagree (:mod:`icechunk_engine.transaction.merge`).

The engine knows no scheduler. Code that runs tasks either calls :func:`task_name` around its own work, or registers a
function that finds the name (:func:`set_task_namer`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

type TaskNamer = Callable[[], str | None]

_name: ContextVar[str | None] = ContextVar("task_name", default=None)
_namer: TaskNamer | None = None


def current_task() -> str | None:
    """Return the name of the task that runs now, None if unknown."""
    name = _name.get()
    return _namer() if name is None and _namer is not None else name


@contextmanager
def task_name(name: str | None) -> Iterator[None]:
    """Name the task that runs in a ``with`` block, also for coroutines and threads that inherit its context."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def set_task_namer(namer: TaskNamer | None) -> None:
    """Register the function that :func:`current_task` asks. It must be quick and must not raise."""
    global _namer
    _namer = namer


def task_namer() -> TaskNamer | None:
    """Return the registered function, which can travel to other processes by its name."""
    return _namer
