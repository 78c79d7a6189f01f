"""Running many asynchronous calls, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

type Call[T] = Callable[[], Coroutine[object, object, T]]


async def as_completed[T](calls: Sequence[Call[T]], limit: int) -> AsyncIterator[tuple[int, T]]:
    """Run up to ``limit`` calls at a time. Yields positions and results in order of completion.

    Cancels what still runs after an error, or if the caller stops iterating.
    """
    semaphore = asyncio.Semaphore(limit)

    async def run(position: int, call: Call[T]) -> tuple[int, T]:
        async with semaphore:
            return position, await call()

    tasks = [asyncio.create_task(run(position, call)) for position, call in enumerate(calls)]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def gather[T](calls: Sequence[Call[T]], limit: int) -> list[T]:
    """Run up to ``limit`` calls at a time. Returns their results in order of the calls."""
    results = {position: result async for position, result in as_completed(calls, limit)}
    return [results[position] for position in range(len(calls))]
