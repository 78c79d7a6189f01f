"""Repositories, arrays and references that several workloads build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .engines import Engine

PREFIX = "file:///data/model-run/"
REFS_PER_FILE = 1000
CHUNK_BYTES = 7000


def create(engine: Engine, path: Path, *, virtual: bool = False) -> Any:
    """Create a repository in a local folder, if wanted with a container for virtual chunks."""
    ic = engine.ic
    config = ic.RepositoryConfig.default()
    if virtual:
        config.set_virtual_chunk_container(
            ic.VirtualChunkContainer(PREFIX, ic.ObjectStoreConfig.LocalFileSystem("/data/model-run"))
        )
    return ic.Repository.create(ic.local_filesystem_storage(str(path)), config=config)


def open_(engine: Engine, path: Path) -> Any:
    return engine.ic.Repository.open(engine.ic.local_filesystem_storage(str(path)))


def create_array(store: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str = "f4") -> Any:
    """Create an uncompressed array, because the codecs are not measured."""
    return zarr.create_array(store, name=name, shape=shape, chunks=chunks, dtype=dtype, compressors=None, filters=None)


def grid(count: int) -> tuple[int, int]:
    """Return a chunk grid of ``count`` chunks: (files, chunks in one file)."""
    per_file = min(REFS_PER_FILE, count)
    if count % per_file:
        raise ValueError(f"choose a multiple of {per_file} references, not {count}")
    return count // per_file, per_file


def references(
    shape: tuple[int, int], first_file: int = 0
) -> tuple[list[str], NDArray[np.uint64], NDArray[np.uint64]]:
    """Return locations, offsets and lengths like those of NetCDF files: many chunks of varying length in each file."""
    files, per_file = shape
    rng = np.random.default_rng(first_file)
    lengths = rng.integers(CHUNK_BYTES // 2, CHUNK_BYTES, (files, per_file)).astype(np.uint64)
    offsets = np.zeros_like(lengths)
    np.cumsum(lengths[:, :-1], axis=1, out=offsets[:, 1:])
    offsets += np.uint64(20_000)
    names = [f"{PREFIX}t2m_{first_file + number:06d}.nc" for number in range(files)]
    locations = [name for name in names for _ in range(per_file)]
    return locations, offsets.ravel(), lengths.ravel()
