"""Look for the edits of other processes once for many reads that begin together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from icechunk_engine._runtime.pools import in_thread


class JointLooks:
    """Shares one look among the coroutines that ask for it in one turn of their event loop.

    A coroutine must not share a look that began before it asked: it could miss an edit that was reported in between.
    """

    def __init__(self) -> None:
        self._next: asyncio.Task[None] | None = None

    async def look(self, look: Callable[[], None]) -> None:
        """Call ``look`` in a thread, or wait for a call that has not begun."""
        task = self._next
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            task = self._next = asyncio.create_task(self._look_soon(look))
        await asyncio.shield(task)

    async def _look_soon(self, look: Callable[[], None]) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            if self._next is asyncio.current_task():
                self._next = None
        await in_thread(look)
