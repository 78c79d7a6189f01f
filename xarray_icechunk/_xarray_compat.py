"""The only module that uses private names of xarray, zarr and dask.

Each use says which version it was checked with, and why no public name would do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import zarr
from xarray import Dataset
from xarray.backends import ZarrStore
from zarr.core.codec_pipeline import BatchedCodecPipeline

__all__ = [
    "HAS_FUSED_PIPELINE",
    "BatchedCodecPipeline",
    "FusedCodecPipeline",
    "pipeline_fields",
    "places_of_blocks",
    "set_pipeline",
    "validate_encoding",
    "validate_region",
]

# zarr 3.4.2: no public name for the pipelines. A class that changes how an array is read must derive from one.
try:
    from zarr.core.chunk_utils import ChunkTransform
    from zarr.core.codec_pipeline import FusedCodecPipeline

    HAS_FUSED_PIPELINE = True
except ImportError:  # zarr before 3.3 has only the default pipeline
    FusedCodecPipeline = BatchedCodecPipeline  # type: ignore[misc,assignment]
    HAS_FUSED_PIPELINE = False

if TYPE_CHECKING:
    from zarr.abc.codec import GetResult
    from zarr.abc.store import ByteGetter, ByteSetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.indexing import SelectorTuple

    # zarr 3.4.2: the arguments and results of the pipelines' methods. Older versions have no GetResult.
    type ChunkToRead = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
    type ChunkToWrite = tuple[ByteSetter, ArraySpec, SelectorTuple, SelectorTuple, bool]
    type ReadResults = tuple[GetResult, ...]


def pipeline_fields(pipeline: BatchedCodecPipeline) -> dict[str, Any] | None:
    """Return the arguments that make a :class:`FusedCodecPipeline` of the same codecs.

    None if one of the codecs works asynchronously only. zarr 3.4.2 ``zarr.core.chunk_utils.ChunkTransform``.
    """
    result = {field.name: getattr(pipeline, field.name) for field in fields(pipeline)}
    if HAS_FUSED_PIPELINE:
        codecs = tuple(pipeline)
        try:
            result |= {"codecs": codecs, "sync_transform": ChunkTransform(codecs=codecs)}
        except TypeError:  # a codec without synchronous methods
            return None
    return result


def set_pipeline(array: zarr.Array[Any], pipeline: BatchedCodecPipeline | FusedCodecPipeline) -> None:
    """Give this array object another pipeline. zarr 3.4.2 ``AsyncArray.codec_pipeline``, in a frozen dataclass."""
    object.__setattr__(array.async_array, "codec_pipeline", pipeline)


def places_of_blocks(chunks: tuple[tuple[int, ...], ...]) -> object:
    """Return an argument of ``dask.array.map_blocks`` that passes each block its place in the array, as slices.

    dask 2026.8 ``dask.layers.ArraySliceDep``, with which ``dask.array.store`` does the same. The public ``block_id``
    would not do: each task would have to carry the chunk sizes of the whole array.
    """
    from dask.layers import ArraySliceDep  # dask is an optional dependency

    return ArraySliceDep(chunks)


def validate_region(zarr_store: ZarrStore, dataset: Dataset) -> tuple[Dataset, dict[Hashable, slice]]:
    """Check ``region``, find its "auto" parts, and drop the variables that a region write must not touch.

    Returns the dataset and the region, which is empty if there is none.

    xarray 2026.9 ``ZarrStore._validate_and_autodetect_region``, which leaves the region in ``_write_region``. A copy
    of its rules would drift from xarray's.
    """
    result: Dataset = zarr_store._validate_and_autodetect_region(dataset)
    return result, dict(zarr_store._write_region or {})


def validate_encoding(zarr_store: ZarrStore, encoding: Mapping[Any, Any]) -> None:
    """Raise an error if the encoding names a variable that already exists.

    xarray 2026.9 ``ZarrStore._validate_encoding``.
    """
    zarr_store._validate_encoding(encoding)
