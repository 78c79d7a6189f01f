"""How the engine waits: one rule, the locks that follow it, and what a fork resets.

The rule
--------
1. **Hold no lock across I/O.** A lock guards memory for as long as a few lookups take. Code that needs a file looks
   under the lock, releases it, fetches, takes the lock again, and checks that what it saw still holds. The same goes
   for everything else that can take long or call back: users' functions, other threads, ``fsync``.
2. **A lock is a leaf.** A thread that holds one takes no other. So no order of locks can deadlock, and a fork can take
   all of them.
3. **A task of a pool is one request or one computation.** It never waits for another task, for a load that another
   thread began, or for a session. Only the thread of a whole operation waits for tasks. So a pool full of tasks always
   drains. Two waits inside a request are allowed because they have a time limit: for fresh credentials, and for the
   first test of a new place (``storage.object_store.condition_probes``).
4. **Nothing on an event loop waits.** A coroutine may call in place what needs no request and takes only locks that
   rule 1 keeps short. Everything else is a task that it awaits.

What would break without it
---------------------------
Without rule 1, two threads can wait for each other through the pool: one holds the lock and waits for a task, while
the tasks in the pool wait for the lock. Then every repository of the process hangs. Without rule 2, a fork can inherit
a lock that no thread of the child will ever release.

Exceptions
----------
Two queues are held while a thread waits. They are not locks in the sense of the rule: they guard no memory, and
nothing is locked or awaited inside them. One is the kernel lock on a file, which excludes other processes while an
object is replaced (``storage.local.file_lock``). The other is the queue of the threads that wait for a disk
(``storage.local.durability``). The semaphore that limits requests (``storage.wrappers.request_limit``) is held during
a request; by rule 3 that request waits for no other.

Forks
-----
A forked child has one thread, and copies of everything that the other threads were in the middle of. Every lock that
:func:`memory_lock` makes is taken before a fork, so the memory behind it is consistent in the child. Everything else
that belongs to threads which the child does not have (executors, loads under way, connections) is registered with
:func:`forget_in_child` by the object that owns it, or with :func:`run_in_child` by the module. Nothing else in the
engine calls :func:`os.register_at_fork`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

__all__ = ["MemoryLock", "forget_in_child", "memory_lock", "memory_locks", "run_in_child"]

type MemoryLock = threading.RLock
"""Reentrant: a finalizer or signal handler may run while its own thread holds the lock, and must not deadlock."""

_FORK_PATIENCE_S = 10.0
"""A fork waits this long for a lock only if the rule is broken. Then it goes on: a child that never comes is worse."""


class Forgetful(Protocol):
    """An object that holds things which belong to threads."""

    def forget(self) -> None:
        """Drop what belongs to threads of the parent. Called in a forked child."""
        ...


# Plain dictionaries of weak references: copying their keys is one step, even while other threads add to them.
type _Registry[T] = dict[weakref.ref[T], None]

_locks: _Registry[MemoryLock] = {}
_forgetful: _Registry[Forgetful] = {}
_functions: list[Callable[[], None]] = []


class _HeldForFork(threading.local):
    """The locks that the calling thread has taken for its fork. Other threads may fork at the same time."""

    def __init__(self) -> None:
        self.locks: list[MemoryLock] = []


_held = _HeldForFork()


def memory_lock() -> MemoryLock:
    """Return a lock for data in memory. In a forked child it is released, and its data are consistent."""
    lock = threading.RLock()
    _register(_locks, lock)
    return lock


def forget_in_child[T: Forgetful](owner: T) -> T:
    """Call ``owner.forget()`` in each forked child for as long as ``owner`` lives. Returns ``owner``."""
    forgetful: Forgetful = owner
    _register(_forgetful, forgetful)
    return owner


def run_in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Call a module's function in each forked child. A decorator."""
    _functions.append(function)
    return function


def _register[T](registry: _Registry[T], item: T) -> None:
    registry[weakref.ref(item, registry.pop)] = None


def _alive[T](registry: _Registry[T]) -> list[T]:
    return [item for ref in list(registry) if (item := ref()) is not None]


def memory_locks() -> list[MemoryLock]:
    """Return all locks that exist now."""
    return _alive(_locks)


def _before_fork() -> None:
    # Rule 2 makes this safe: a thread that holds one of these locks needs no other to go on. Threads that fork at the
    # same time take them in the same order.
    for lock in memory_locks():
        _held.locks.append(lock)  # before it is taken, so that an interrupt does not lose it
        if not lock.acquire(timeout=_FORK_PATIENCE_S):
            _held.locks.pop()


def _release_held() -> None:
    while _held.locks:
        with suppress(RuntimeError):  # after an interrupt: it was not taken yet, or has just been released
            _held.locks[-1].release()
        _held.locks.pop()


def _in_child() -> None:
    _release_held()
    for lock in memory_locks():
        if lock.acquire(blocking=False):
            lock.release()
        else:  # another thread made it meanwhile, or held it for too long
            lock._at_fork_reinit()  # type: ignore[attr-defined]
    for owner in _alive(_forgetful):
        owner.forget()
    for function in _functions:
        function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_release_held, after_in_child=_in_child)
    # Registered twice: Ctrl-C during a fork is raised at the start of the first of these calls, which then does
    # nothing.
    os.register_at_fork(after_in_parent=_release_held)
