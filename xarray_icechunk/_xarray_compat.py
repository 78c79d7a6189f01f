"""The only module that uses private names of xarray, zarr and dask.

Each use says which version it was checked with, and why no public name would do. The one exception is
:mod:`.remote_pipeline`, which this module imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zarr
from xarray import Dataset
from xarray.backends import ZarrStore

from icechunk_engine.session import workspace_of
from icechunk_engine.store import IcechunkStore

__all__ = ["fuse_codec_pipeline", "validate_encoding", "validate_region"]

_DEFAULT_PIPELINE = "zarr.core.codec_pipeline.BatchedCodecPipeline"
_DEFAULT_CONCURRENCY = 10


def fuse_codec_pipeline(array: zarr.Array[Any]) -> None:
    """Pin zarr's fused codec pipeline to this array. Later changes of zarr's configuration do not affect it.

    The default pipeline starts six tasks on the event loop for each chunk. For small chunks the fused one costs a
    fifth of that. If chunks may lie behind a network, the array gets a
    :class:`~.remote_pipeline.RemoteCodecPipeline` instead, unless the user has set ``async.concurrency``: then the
    user decides how many requests run at a time.

    Does nothing if this version of zarr has no fused pipeline, or if the user has chosen a pipeline.

    zarr 3.4.2: ``zarr.core.codec_pipeline.FusedCodecPipeline``, ``zarr.core.chunk_utils.ChunkTransform`` and the
    attribute ``AsyncArray.codec_pipeline``. zarr chooses the pipeline from its global configuration when it creates
    an array object. We do not change the configuration, not even for a moment: all threads share it, and two that
    open arrays at once could leave it changed.
    """
    if zarr.config.get("codec_pipeline.path") != _DEFAULT_PIPELINE:
        return
    try:
        from zarr.core.chunk_utils import ChunkTransform
        from zarr.core.codec_pipeline import BatchedCodecPipeline, FusedCodecPipeline

        from .remote_pipeline import RemoteCodecPipeline
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
    waits = isinstance(array.store, IcechunkStore) and workspace_of(array.store.session).chunks_may_be_remote
    is_remote = waits and zarr.config.get("async.concurrency") == _DEFAULT_CONCURRENCY
    fused = (RemoteCodecPipeline if is_remote else FusedCodecPipeline)(
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
