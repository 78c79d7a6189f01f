"""Make the forks that a workload merges: ``python -m benchmarks.fork_maker '<json>'``.

It imports little, so that tests which start it stay quick.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import zarr.buffer

from .building import REFS_PER_FILE, references

FILES_PER_FORK = 10
REFS_PER_FORK = FILES_PER_FORK * REFS_PER_FILE
INLINE_BYTES = 64


def make_forks(engine_name: str, folder: str, count: int, kind: str) -> None:
    """Write references of one kind through copies of the fork that was sent, and store each copy as a pickle."""
    sent = (Path(folder) / "sent").read_bytes()
    for number in range(count):
        fork = pickle.loads(sent)
        first_file = number * FILES_PER_FORK
        if kind == "virtual":
            _set_virtual(fork, first_file)
        elif engine_name == "ours":
            _set_columns(fork, first_file, kind)
        elif kind == "inline":
            asyncio.run(_set_inline(fork, first_file))
        else:
            raise ValueError("the official library has no function that sets native references in bulk")
        (Path(folder) / str(number)).write_bytes(pickle.dumps(fork))


def _set_virtual(fork: Any, first_file: int) -> None:
    shape = (FILES_PER_FORK, REFS_PER_FILE)
    locations, offsets, lengths = references(shape, first_file)
    failed = fork.store.set_virtual_refs_arr("t2m", shape, locations, offsets, lengths, arr_offset=(first_file, 0))
    assert failed is None


def _set_columns(fork: Any, first_file: int, kind: str) -> None:
    """Set references that many chunks written by Zarr would have. Writing ten million chunks would take hours."""
    from icechunk_engine.columns.chunk_refs import INLINE, NATIVE, ChunkRefs
    from icechunk_engine.session.session import workspace_of

    rng = np.random.default_rng(first_file)
    rows, columns = np.divmod(np.arange(REFS_PER_FORK), REFS_PER_FILE)
    indices = np.stack([rows + first_file, columns], axis=1)
    lengths = np.full(REFS_PER_FORK, INLINE_BYTES)
    if kind == "native":
        ids = rng.integers(256, size=(REFS_PER_FORK, 12), dtype=np.uint8)
        refs = ChunkRefs.build(indices, NATIVE, chunk_ids=ids, lengths=lengths)
    else:
        data = rng.integers(256, size=REFS_PER_FORK * INLINE_BYTES, dtype=np.uint8)
        offsets = np.arange(REFS_PER_FORK) * INLINE_BYTES
        refs = ChunkRefs.build(indices, INLINE, offsets=offsets, lengths=lengths, inline_data=data)
    workspace_of(fork).set_chunk_refs("/t2m", refs)


async def _set_inline(fork: Any, first_file: int) -> None:
    buffer = zarr.buffer.default_buffer_prototype().buffer
    data = np.random.default_rng(first_file).integers(256, size=(REFS_PER_FORK, INLINE_BYTES), dtype=np.uint8)
    for number, chunk in enumerate(data):
        row, column = divmod(number, REFS_PER_FILE)
        await fork.store.set(f"t2m/c/{first_file + row}/{column}", buffer.from_bytes(chunk.tobytes()))


if __name__ == "__main__":
    make_forks(**json.loads(sys.argv[1]))
