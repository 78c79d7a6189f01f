"""How the engine waits: one rule, the locks that follow it, and what a fork resets.

The rule
--------
1. **No lock is held across I/O.** A lock guards memory, for as long as a few lookups take. Code that needs a file
   looks under the lock, lets it go, fetches, takes the lock again, and checks that what it saw still holds. The same
   goes for everything else that can take long or call back: users' functions, other threads, ``fsync``.
2. **A lock is a leaf.** Whoever holds one takes no other. So no order of locks exists that could deadlock, and a fork
   can take all of them.
3. **A task of a pool is one request or one computation.** It never waits for another task, a load that another thread
   began, or a session. Only the thread of a whole operation waits for tasks. So a pool full of tasks always drains.
   Two waits inside a request have a limit instead: for fresh credentials, and for the trial of a new place
   (``storage``).
4. **Nothing on an event loop waits.** A coroutine calls in place only what needs no request, and what takes locks that
   rule 1 keeps short; everything else is a task that it awaits.

Break rule 1 and two threads can wait for each other through the pool: one holds the lock and waits for a task, the
tasks in the pool wait for the lock, and every repository of the process stands still, for good. Break rule 2 and a
fork can inherit a lock that no thread of the child will ever release.

Two queues are not locks in this sense, since they guard no memory and nothing is locked or awaited inside them: kernel
locks on files, which exclude other processes while a file is replaced, and the turn of those who wait for a disk
(``storage.local.durability``).

Forks
-----
A forked child has one thread, and copies of everything that the others were in the middle of. Every lock made by
:func:`memory_lock` is taken before a fork, so that the memory behind it is whole in the child. Everything else that
belongs to threads which the child does not have (executors, loads under way, connections) is registered with
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
"""Reentrant, so that a finalizer or signal handler which runs while its thread holds the lock cannot deadlock."""

_FORK_PATIENCE_S = 10.0
"""Only a broken rule makes a fork wait so long for a lock. It goes on then: a late child is worse than a stale one."""


class Forgetful(Protocol):
    """Something that holds what belongs to threads."""

    def forget(self) -> None:
        """Called in a forked child: drop what belongs to threads of the parent."""
        ...


# Plain dictionaries of weak references: a copy of their keys is one step, also while other threads add to them.
type _Registry[T] = dict[weakref.ref[T], None]

_locks: _Registry[MemoryLock] = {}
_forgetful: _Registry[Forgetful] = {}
_functions: list[Callable[[], None]] = []


class _Taken(threading.local):
    """The locks that the calling thread has taken for its fork; other threads may fork at the same time."""

    def __init__(self) -> None:
        self.locks: list[MemoryLock] = []


_taken = _Taken()


def memory_lock() -> MemoryLock:
    """A lock for data in memory, which a fork finds released and its data whole."""
    lock = threading.RLock()
    _register(_locks, lock)
    return lock


def forget_in_child[T: Forgetful](owner: T) -> T:
    """Call ``owner.forget()`` in each forked child for as long as ``owner`` lives; returns ``owner``."""
    forgetful: Forgetful = owner
    _register(_forgetful, forgetful)
    return owner


def run_in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Decorator: call a module's function in each forked child."""
    _functions.append(function)
    return function


def _register[T](registry: _Registry[T], item: T) -> None:
    registry[weakref.ref(item, registry.pop)] = None


def _alive[T](registry: _Registry[T]) -> list[T]:
    return [item for ref in list(registry) if (item := ref()) is not None]


def memory_locks() -> list[MemoryLock]:
    """All locks that exist now, for tests of the rule."""
    return _alive(_locks)


def _before_fork() -> None:
    # Rule 2 makes this safe: whoever holds one of these locks can go on without any other. Threads that fork at the
    # same time take them in the same order.
    for lock in memory_locks():
        _taken.locks.append(lock)  # before it is taken, so that an interrupt does not lose it
        if not lock.acquire(timeout=_FORK_PATIENCE_S):
            _taken.locks.pop()


def _release_taken() -> None:
    while _taken.locks:
        with suppress(RuntimeError):  # after an interrupt: it was not taken yet, or has just been released
            _taken.locks[-1].release()
        _taken.locks.pop()


def _in_child() -> None:
    _release_taken()
    for lock in memory_locks():
        if lock.acquire(blocking=False):
            lock.release()
        else:  # another thread made it in the meantime, or held it for too long
            lock._at_fork_reinit()  # type: ignore[attr-defined]
    for owner in _alive(_forgetful):
        owner.forget()
    for function in _functions:
        function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_release_taken, after_in_child=_in_child)
    # Once more: Ctrl-C during a fork is raised where the first function after it begins, which then does nothing.
    os.register_at_fork(after_in_parent=_release_taken)
