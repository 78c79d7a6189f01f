"""KeyboardInterrupt at each place where the interpreter looks for signals, one place after the other.

Run by test_interrupts.py in child processes, which nobody else traces.
"""

from __future__ import annotations

import dis
import functools
import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

import zarr

import icechunk_engine as ic
from icechunk_engine._runtime import locks
from icechunk_engine._runtime.shared_loads import SharedLoads
from icechunk_engine.session import workspace_of
from tests.engine.journal.place import Place

GROUP = b'{"zarr_format": 3, "node_type": "group"}'
MODULES = (
    "_runtime/locks.py",
    "_runtime/shared_loads.py",
    "journal/announcing.py",
    "journal/journal.py",
    "session/carried.py",
    "session/committing.py",
    "session/copies.py",
    "session/forking.py",
    "session/lost_commits.py",
    "session/session.py",
    "transaction/change_set.py",
    "workspace/permissions.py",
    "workspace/state.py",
    "workspace/view.py",
    "workspace/workspace.py",
    "contextlib.py",
)


@functools.cache
def _instructions(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


@functools.cache
def _handler(code: CodeType, offset: int) -> object:
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    return next((entry.target for entry in entries if entry.start <= offset < entry.end), None)


class _Interrupt:
    """Interrupts the calling thread at the n-th place: where a function of ours begins, a call ends, a loop turns."""

    def __init__(self, n: int) -> None:
        self.left, self.place = n, ""
        self._offsets: dict[int, int] = {}

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.endswith(MODULES):
            return None
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            self._pass(frame)
        elif event == "opcode":
            last, self._offsets[id(frame)] = self._offsets.get(id(frame), -1), frame.f_lasti
            is_place = _instructions(code).get(last, "").startswith(("CALL", "JUMP_BACKWARD"))
            # What is raised here counts as raised by this instruction, though it belongs to the one before.
            if is_place and _handler(code, last) == _handler(code, frame.f_lasti):
                self._pass(frame)
        elif event == "return":
            self._offsets.pop(id(frame), None)
        return self.trace

    def _pass(self, frame: FrameType) -> None:
        self.left -= 1
        if self.left == 0:
            self.place = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
            raise KeyboardInterrupt


def _everywhere[T](prepare: Callable[[], T], work: Callable[[T], object], check: Callable[[T], object]) -> int:
    """Interrupt ``work`` at one place after the other; returns the number of places."""
    gc.collect()
    gc.freeze()  # so that collections take no time
    n_in_vain = n_found = 0
    for n in itertools.count(1):
        subject, interrupt = prepare(), _Interrupt(n)
        kept = None
        sys.settrace(interrupt.trace)
        try:
            work(subject)
        except KeyboardInterrupt as error:
            kept = error  # as interactive shells do: its traceback keeps alive what was interrupted
        finally:
            sys.settrace(None)
        if not interrupt.place:
            n_in_vain += 1
            if n_in_vain > 20:  # not at once, since code that was just traced anew tells of fewer places
                return n_found
            continue
        n_in_vain, n_found = 0, n_found + 1
        try:
            _require_free_locks()
            check(subject)
            del kept
            gc.collect()
            check(subject)
        except BaseException as error:
            raise AssertionError(f"interrupted in {interrupt.place}: {error!r}") from error
    raise AssertionError


def _require_free_locks() -> None:
    taken: list[object] = []

    def look() -> None:
        for lock in locks.memory_locks():
            if lock.acquire(timeout=1):
                lock.release()
            else:
                taken.append(lock)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert not taken, f"locks are still held: {taken}"


def of_shared_loads() -> int:
    def require_over(loads: SharedLoads[str, int]) -> None:
        assert not loads._under_way

    def in_turn[K, V](function: Callable[[K], V], keys: Iterable[K]) -> list[V]:
        return [function(key) for key in keys]

    def load(loads: SharedLoads[str, int]) -> None:
        loads.load("k", lambda _: (1, 1))

    def load_many(loads: SharedLoads[str, int]) -> None:
        loads.load_many(["j", "k"], lambda _: (1, 1), in_turn)

    return sum(_everywhere(lambda: SharedLoads[str, int](100), work, require_over) for work in (load, load_many))


def of_announcements() -> int:
    """What was not reported when the interrupt came, the next announcement reports."""

    def require_reported(place: Place) -> None:
        place.write(2)
        assert {1, 2} <= set(itertools.chain(*place.stored()))

    return _everywhere(lambda: Place(is_remote=False), lambda place: place.write(1), require_reported)


def of_forks() -> int:
    """The functions around a fork; the system calls each of them whatever the others raise."""

    def fork(_: object) -> None:
        for function in (locks._before_fork, locks._release_held, locks._release_held):
            try:
                function()
            except KeyboardInterrupt as error:
                interrupts.append(error)

    interrupts: list[BaseException] = []
    return _everywhere(lambda: None, fork, lambda _: None)


def of_sessions() -> int:
    repo = ic.Repository.create(ic.in_memory_storage())
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(9,), chunks=(1,), dtype="i8")

    def prepare() -> ic.Session:
        session = repo.writable_session("main")
        workspace_of(session).set_chunk("/a", (0,), b"12345678")
        workspace_of(session).set_metadata("/new", GROUP)
        return session

    def require_nothing_lost(session: ic.Session) -> None:
        paths = {node.path for node in workspace_of(session).list_nodes()} - {"/"}
        assert paths in ({"/a"}, {"/b"})
        session.move(paths.pop(), "/c")
        assert session.has_uncommitted_changes
        session.move("/c", "/a")

    written = [0]

    def require_usable(session: ic.Session) -> None:
        """It takes edits and keeps them, or it has ended, and nothing in between."""
        if session.read_only:
            assert not session.has_uncommitted_changes
            return
        written[0] += 1
        workspace_of(session).set_metadata(f"/g{written[0]}", GROUP)
        gc.collect()
        assert workspace_of(session).get_node(f"/g{written[0]}") is not None
        workspace_of(session).set_chunk("/a", (1,), b"12345678")
        assert len(workspace_of(session).chunk_refs("/a")) >= 1
        workspace_of(session).delete_node("/g")
        assert workspace_of(session).get_node("/g") is None
        listed = {node.path for node in workspace_of(session).list_nodes()} - {"/"}
        assert listed == {f"/{name}" for name in workspace_of(session).child_names("/")}

    def merge(session: ic.Session) -> None:
        fork = session.fork()
        workspace_of(fork).set_chunk("/a", (2,), b"12345678")
        session.merge(fork)

    def all_or_nothing(session: ic.Session) -> None:
        with suppress(KeyError), session.all_or_nothing():
            workspace_of(session).set_chunk("/a", (3,), b"12345678")
        with suppress(KeyError), session.all_or_nothing():
            raise KeyError

    later: list[ic.Session] = []  # not its id, which another session may get

    def require_later_edits(session: ic.Session) -> None:
        """What an interrupt leaves behind takes nothing back when it is collected."""
        if not any(session is known for known in later):
            later[:] = [session]
            workspace_of(session).set_metadata("/later", GROUP)
        assert workspace_of(session).get_node("/later") is not None

    works: list[Callable[[ic.Session], object]] = [
        lambda session: workspace_of(session).set_metadata("/g", GROUP),
        lambda session: workspace_of(session).set_chunk("/a", (2,), b"12345678"),
        lambda session: workspace_of(session).delete_node("/new"),
        lambda session: session.flush("m"),
        merge,
    ]
    n = sum(_everywhere(prepare, work, require_usable) for work in works)
    n += _everywhere(
        lambda: repo.rearrange_session("main"), lambda session: session.move("/a", "/b"), require_nothing_lost
    )
    return n + _everywhere(prepare, all_or_nothing, require_later_edits)
