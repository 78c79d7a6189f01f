"""Reading neighbouring virtual chunks with one request.

Archives keep many small chunks side by side in one file, and zarr asks for several at a time. The chunks that are
requested in one turn of the event loop are read together if they are close enough.

If a joint read fails, each of its chunks is read again on its own. So one bad reference never makes its neighbours
fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from icechunk_engine._runtime.pools import request
from icechunk_engine.columns.chunk_refs import ChunkRef
from icechunk_engine.errors import IcechunkError
from icechunk_engine.zarr_store.byte_ranges import Piece, coalesce

MAX_GAP_BYTES = 1 << 18
"""Reading this many unwanted bytes takes less time than another request."""

MAX_JOINT_BYTES = 4 << 20
"""Reads larger than this are faster in parallel than joined."""

type Fetch = Callable[[ChunkRef, int, int], bytes]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A requested range of a chunk, as positions in its object, and the future that waits for it."""

    ref: ChunkRef
    start: int
    stop: int
    answer: asyncio.Future[bytes]


class JointReads:
    """Joins reads of ``fetch``, a function that waits for a network. Serves any number of event loops."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._open: dict[tuple[object, ...], list[_Wanted]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, ref: ChunkRef, start: int, stop: int) -> bytes:
        """Return bytes ``start:stop`` of a virtual chunk. Raises as ``fetch`` does."""
        loop = asyncio.get_running_loop()
        wanted = _Wanted(ref, ref.offset + start, ref.offset + stop, loop.create_future())
        place = loop, ref.location, ref.etag, ref.last_modified
        waiting = self._open.get(place)
        if waiting is None:
            self._open[place] = [wanted]
            loop.call_soon(self._begin, loop, place)
        else:
            waiting.append(wanted)
        return await wanted.answer

    def _begin(self, loop: asyncio.AbstractEventLoop, place: tuple[object, ...]) -> None:
        waiting = self._open.pop(place)
        pieces = [Piece(wanted.start, wanted.stop, position) for position, wanted in enumerate(waiting)]
        for group in coalesce(pieces, MAX_GAP_BYTES, MAX_JOINT_BYTES):
            task = loop.create_task(self._serve([waiting[piece.position] for piece in group]))
            self._tasks.add(task)  # the event loop holds tasks only weakly
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, group: list[_Wanted]) -> None:
        first, stop = group[0].start, max(wanted.stop for wanted in group)
        whole = replace(group[0].ref, offset=first, length=stop - first)
        try:
            data = await request(self._fetch, whole, 0, stop - first)
        except IcechunkError as error:
            if len(group) > 1:
                await asyncio.gather(*(self._serve([wanted]) for wanted in group))
            else:
                _fail(group, error)
        except BaseException as error:
            _fail(group, error)
            if not isinstance(error, Exception):
                raise
        else:
            for wanted in group:
                if not wanted.answer.done():
                    wanted.answer.set_result(data[wanted.start - first : wanted.stop - first])


def _fail(group: list[_Wanted], error: BaseException) -> None:
    for wanted in group:
        if wanted.answer.done():
            continue
        if isinstance(error, asyncio.CancelledError):
            wanted.answer.cancel()
        else:
            wanted.answer.set_exception(error)
