"""A codec pipeline for arrays behind a network: many chunks are on their way while few are decoded or encoded.

Zarr reads and writes ten chunks at a time (``async.concurrency``), which is right for decoding them, but far too few
to hide the time that each request takes on its way. Here requests run ahead of what zarr asks for, or behind what it
has handed over. Chunks of which only parts are read (shards) are left to zarr.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from zarr.abc.store import ByteGetter, ByteRequest, ByteSetter
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
from zarr.core.codec_pipeline import FusedCodecPipeline

__all__ = ["RemoteCodecPipeline"]

REQUESTS = 128
"""Of one array at a time: with 50 ms of latency some 2 500 a second, which is what Python can handle."""


class RemoteCodecPipeline(FusedCodecPipeline):
    """Zarr's fused pipeline, with more requests at a time."""

    async def read(
        self, batch_info: Iterable[tuple[ByteGetter, Any, Any, Any, bool]], out: NDBuffer, drop_axes: Any = ()
    ) -> Any:
        batch = list(batch_info)
        if len(batch) < 2 or self.supports_partial_decode:
            return await super().read(batch, out, drop_axes)
        async with _read_ahead([(getter, spec.prototype) for getter, spec, *_ in batch]) as getters:
            fetched = [(getter, *rest) for getter, (_, *rest) in zip(getters, batch, strict=True)]
            return await super().read(fetched, out, drop_axes)

    async def write(
        self, batch_info: Iterable[tuple[ByteSetter, Any, Any, Any, bool]], value: NDBuffer, drop_axes: Any = ()
    ) -> None:
        batch = list(batch_info)
        if len(batch) < 2 or self.supports_partial_encode:
            await super().write(batch, value, drop_axes)
            return
        async with _write_behind() as writes:
            await super().write([(_Behind(setter, writes), *rest) for setter, *rest in batch], value, drop_axes)


# --- reading -------------------------------------------------------------------------------------------------------


class _Ahead:
    """A value that is on its way, in the place of where it is read from."""

    def __init__(self, task: asyncio.Task[Buffer | None]) -> None:
        self._task = task

    async def get(self, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        assert byte_range is None
        return await self._task


@asynccontextmanager
async def _read_ahead(wanted: list[tuple[ByteGetter, BufferPrototype]]) -> AsyncIterator[list[_Ahead]]:
    room = asyncio.Semaphore(REQUESTS)
    failures: list[Exception] = []

    async def fetch(getter: ByteGetter, prototype: BufferPrototype) -> Buffer | None:
        async with room:
            if failures:  # zarr may learn of it only when it gets there: no more is begun
                raise failures[0]
            try:
                return await getter.get(prototype)
            except Exception as error:
                failures.append(error)
                raise

    tasks = [asyncio.create_task(fetch(getter, prototype)) for getter, prototype in wanted]
    try:
        yield [_Ahead(task) for task in tasks]
    finally:
        await _end(tasks)


# --- writing -------------------------------------------------------------------------------------------------------


class _Writes:
    """Writes that were handed over, and may still be under way."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(REQUESTS)
        self.tasks: list[asyncio.Task[None]] = []
        self._failed: list[asyncio.Task[None]] = []

    async def begin(self, setter: ByteSetter, value: Buffer) -> None:
        await self._room.acquire()
        for task in self._failed:
            await task  # raises: no more is begun
        task = asyncio.create_task(setter.set(value))
        self.tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            self._failed.append(task)


class _Behind:
    """A place to write to, which does not wait until it is written."""

    def __init__(self, setter: ByteSetter, writes: _Writes) -> None:
        self._setter = setter
        self._writes = writes

    async def get(self, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await self._setter.get(prototype, byte_range)

    async def set(self, value: Buffer) -> None:
        await self._writes.begin(self._setter, value)

    async def delete(self) -> None:
        await self._setter.delete()

    async def set_if_not_exists(self, default: Buffer) -> None:
        await self._setter.set_if_not_exists(default)


@asynccontextmanager
async def _write_behind() -> AsyncIterator[_Writes]:
    writes = _Writes()
    try:
        yield writes
        await asyncio.gather(*writes.tasks)
    finally:
        await _end(writes.tasks)


async def _end(tasks: list[Any]) -> None:
    """None of them is under way any more when the pipeline is left."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
