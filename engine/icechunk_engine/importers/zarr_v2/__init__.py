"""Zarr v2 metadata as Zarr v3. Pure.

:mod:`.dtypes` translates data types and fill values, :mod:`.codecs` filters and compressors, and :mod:`.metadata`
whole documents.
"""
