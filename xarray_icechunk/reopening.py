"""Open the same Zarr array through another session."""

from __future__ import annotations

from typing import Any

import zarr

from icechunk_engine.session import Session

from .codec_pipelines import fuse_codec_pipeline

__all__ = ["reopen"]


def reopen(array: zarr.Array[Any], session: Session) -> zarr.Array[Any]:
    """Open the same array through another session, with the settings that its metadata do not hold."""
    config = array.async_array.config
    # zarr before 3.2 ignores `config` when it opens an array that exists.
    result = zarr.open_array(session.store, path=array.path, mode="r+", zarr_format=3).with_config(config)
    fuse_codec_pipeline(result)
    return result
