"""Private names of xarray, zarr and dask: every use of one is here, with the version it was checked with and why.

Everything else in this package uses public names only, but for :mod:`.wide_pipeline`, which is made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zarr
from xarray import Dataset
from xarray.backends import ZarrStore

from icechunk_engine.store import IcechunkStore

__all__ = ["fuse_codec_pipeline", "validate_encoding", "validate_region"]

_DEFAULT_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
_DEFAULT_CONCURRENCY = 10


def fuse_codec_pipeline(array: zarr.Array[Any]) -> None:
    """Make this array read and write through zarr's fused codec pipeline, whatever the configuration is later.

    zarr 3.4.2: ``zarr.core.codec_pipeline.FusedCodecPipeline``, ``zarr.core.chunk_utils.ChunkTransform`` and the
    attribute ``AsyncArray.codec_pipeline``. The pipeline is chosen from the global configuration when an array object
    is made. Setting the configuration for a moment would do, but it is one for all threads: two that open at once
    could leave it changed. Per small chunk the fused pipeline costs a fifth of the default one, which starts six
    tasks on the event loop for each.

    Behind a network it is :class:`~.wide_pipeline.WidePipeline`, unless ``async.concurrency`` was changed: then it is
    the user who says how many requests are made at a time.

    Does nothing for a zarr without it, or for a user who has chosen a pipeline.
    """
    if zarr.config.get("codec_pipeline.path") != _DEFAULT_PIPELINE:
        return
    try:
        from zarr.core.chunk_utils import ChunkTransform
        from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline

        from .wide_pipeline import WidePipeline
    except ImportError:  # older than 3.3
        return
    asynchronous = array.async_array
    batched = asynchronous.codec_pipeline
    if type(batched) is not BatchedCodecPipeline:
        return
    codecs = tuple(batched)
    try:
        sync_transform = ChunkTransform(codecs=codecs)
    except TypeError:  # a codec without a synchronous face
        return
    waits = isinstance(array.store, IcechunkStore) and array.store.session.chunks_may_be_remote
    is_wide = waits and zarr.config.get("async.concurrency") == _DEFAULT_CONCURRENCY
    fused = (WidePipeline if is_wide else FusedCodecPipeline)(
        codecs=codecs,
        array_array_codecs=batched.array_array_codecs,
        array_bytes_codec=batched.array_bytes_codec,
        bytes_bytes_codecs=batched.bytes_bytes_codecs,
        sync_transform=sync_transform,
        batch_size=batched.batch_size,
    )
    object.__setattr__(asynchronous, "codec_pipeline", fused)  # a frozen dataclass


def validate_region(zarr_store: ZarrStore, dataset: Dataset) -> Dataset:
    """Check ``region``, work out its "auto" parts, and drop what a region write may not touch.

    xarray 2026.9 ``ZarrStore._validate_and_autodetect_region``: the rules are xarray's, ours would drift.
    """
    result: Dataset = zarr_store._validate_and_autodetect_region(dataset)
    return result


def validate_encoding(zarr_store: ZarrStore, encoding: Mapping[Any, Any]) -> None:
    """Refuse an encoding for a variable that exists already. xarray 2026.9 ``ZarrStore._validate_encoding``."""
    zarr_store._validate_encoding(encoding)
