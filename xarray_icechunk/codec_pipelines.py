"""Which codec pipeline an array gets, and a pipeline that keeps many requests in flight while few chunks are coded.

zarr reads and writes ten chunks at a time (``async.concurrency``). This is enough for decoding, but too few to hide
the time that each request spends on a network. So :class:`RemoteCodecPipeline` starts the requests of a read before
zarr asks for them, and lets writes finish after zarr has handed them over. Partial reads and writes of chunks (shards)
are left to zarr.

Three things are always true of it:

- At most ``REQUESTS`` requests of one call are in flight.
- After the first error no new request starts, and zarr gets that error.
- No task is left when the call returns or raises. A task that outlived its call could write to the session after the
  caller has undone its edits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import zarr
from zarr.abc.buffer import Buffer, BufferPrototype, NDBuffer
from zarr.abc.store import ByteGetter, ByteRequest, ByteSetter

from icechunk_engine.session import workspace_of
from icechunk_engine.store import IcechunkStore

from ._xarray_compat import (
    HAS_FUSED_PIPELINE,
    BatchedCodecPipeline,
    FusedCodecPipeline,
    pipeline_fields,
    set_pipeline,
)

if TYPE_CHECKING:
    from ._xarray_compat import ChunkToRead, ChunkToWrite, ReadResults

__all__ = ["RemoteCodecPipeline", "fuse_codec_pipeline"]

_DEFAULT_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
_DEFAULT_CONCURRENCY = 10

REQUESTS = 128
"""Requests in flight for one array. At 50 ms each that is 2 500 a second, about as many as Python can handle."""


def fuse_codec_pipeline(array: zarr.Array[Any]) -> None:
    """Pin zarr's fused codec pipeline to this array. Later changes of zarr's configuration do not affect it.

    The default pipeline starts six tasks on the event loop for each chunk. For small chunks the fused one costs a
    fifth of that. If chunks may lie behind a network, the array gets a :class:`RemoteCodecPipeline` instead, unless
    the user has set ``async.concurrency``: then the user decides how many requests run at a time.

    Does nothing if the user has chosen a pipeline. zarr before 3.3 has no fused pipeline; there the default one takes
    its place.

    zarr chooses the pipeline from its global configuration when it creates an array object. We do not change the
    configuration, not even for a moment: all threads share it, and two that open arrays at once could leave it
    changed.
    """
    if zarr.config.get("codec_pipeline.path") != _DEFAULT_PIPELINE:
        return
    batched = array.async_array.codec_pipeline
    if type(batched) is not BatchedCodecPipeline:
        return
    waits = isinstance(array.store, IcechunkStore) and workspace_of(array.store.session).chunks_may_be_remote
    is_remote = waits and zarr.config.get("async.concurrency") == _DEFAULT_CONCURRENCY
    if not (is_remote or HAS_FUSED_PIPELINE):
        return
    arguments = pipeline_fields(batched)
    if arguments is not None:
        set_pipeline(array, (RemoteCodecPipeline if is_remote else FusedCodecPipeline)(**arguments))


class RemoteCodecPipeline(FusedCodecPipeline):
    """zarr's pipeline with more requests in flight."""

    async def read(
        self, batch_info: Iterable[ChunkToRead], out: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> ReadResults:
        batch = list(batch_info)
        if len(batch) < 2 or self.supports_partial_decode:
            return await super().read(batch, out, drop_axes)
        async with _read_ahead([(getter, spec.prototype) for getter, spec, *_ in batch]) as getters:
            fetched: list[ChunkToRead] = [
                (getter, spec, in_chunk, in_out, is_complete)
                for getter, (_, spec, in_chunk, in_out, is_complete) in zip(getters, batch, strict=True)
            ]
            return await super().read(fetched, out, drop_axes)

    async def write(
        self, batch_info: Iterable[ChunkToWrite], value: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> None:
        batch = list(batch_info)
        if len(batch) < 2 or self.supports_partial_encode:
            await super().write(batch, value, drop_axes)
            return
        async with _write_behind() as writes:
            deferred: list[ChunkToWrite] = [
                (_DeferredTarget(setter, writes), spec, in_chunk, in_value, is_complete)
                for setter, spec, in_chunk, in_value, is_complete in batch
            ]
            await super().write(deferred, value, drop_axes)


# --- reading -------------------------------------------------------------------------------------------------------


class _PendingRead:
    """A source whose value has already been requested. zarr reads it in place of the original."""

    def __init__(self, task: asyncio.Task[Buffer | None]) -> None:
        self._task = task

    async def get(self, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        assert byte_range is None
        return await self._task


@asynccontextmanager
async def _read_ahead(wanted: list[tuple[ByteGetter, BufferPrototype]]) -> AsyncIterator[list[_PendingRead]]:
    room = asyncio.Semaphore(REQUESTS)
    failures: list[Exception] = []

    async def fetch(getter: ByteGetter, prototype: BufferPrototype) -> Buffer | None:
        async with room:
            if failures:  # zarr may be busy with an earlier chunk: it has not seen the error yet
                raise failures[0]
            try:
                return await getter.get(prototype)
            except Exception as error:
                failures.append(error)
                raise

    tasks = [asyncio.create_task(fetch(getter, prototype)) for getter, prototype in wanted]
    try:
        yield [_PendingRead(task) for task in tasks]
    finally:
        await _end(tasks)


# --- writing -------------------------------------------------------------------------------------------------------


class _PendingWrites:
    """Writes that zarr has handed over. Some may still be in flight."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(REQUESTS)
        self.tasks: list[asyncio.Task[None]] = []
        self._failed: list[asyncio.Task[None]] = []

    async def start(self, setter: ByteSetter, value: Buffer) -> None:
        await self._room.acquire()
        for task in self._failed:
            await task  # raises its error, so no new write starts
        task = asyncio.create_task(setter.set(value))
        self.tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            self._failed.append(task)


class _DeferredTarget:
    """A target that returns before the value is written."""

    def __init__(self, setter: ByteSetter, writes: _PendingWrites) -> None:
        self._setter = setter
        self._writes = writes

    async def get(self, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await self._setter.get(prototype, byte_range)

    async def set(self, value: Buffer) -> None:
        await self._writes.start(self._setter, value)

    async def delete(self) -> None:
        await self._setter.delete()

    async def set_if_not_exists(self, default: Buffer) -> None:
        await self._setter.set_if_not_exists(default)


@asynccontextmanager
async def _write_behind() -> AsyncIterator[_PendingWrites]:
    writes = _PendingWrites()
    try:
        yield writes
        await asyncio.gather(*writes.tasks)
    finally:
        await _end(writes.tasks)


async def _end(tasks: Sequence[asyncio.Task[Buffer | None] | asyncio.Task[None]]) -> None:
    """Cancel the tasks that have not ended, and wait until all have."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
