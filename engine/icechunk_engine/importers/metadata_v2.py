"""Zarr v2 metadata documents as Zarr v3 documents. Pure.

Whoever reads the result sees what readers of the v2 documents see: the same values, dimension names, attributes, and
the same missing data, which xarray finds in the fill value of v2 arrays but only in attributes of v3 arrays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.codecs_v2 import codec_chain, object_codec_of
from icechunk_engine.importers.dtypes_v2 import (
    DataType,
    Unsupported,
    fill_attribute,
    fill_json,
    float_json,
    parse_dtype,
    read_fill,
    read_fill_attribute,
)

DIMENSIONS = "_ARRAY_DIMENSIONS"
FILL_VALUE = "_FillValue"
_NCZARR_ARRAYS = ("_nczarr_array", "_NCZARR_ARRAY")
_CHUNK_KEYS = {"name": "default", "configuration": {"separator": "/"}}


@dataclass(frozen=True, slots=True)
class ArrayDocument:
    """One array's ``zarr.json``.

    Attributes
    ----------
    content
        The document.
    chunk_bytes
        Encoded length of every chunk, None where it depends on the content or is not known.
    """

    content: bytes
    chunk_bytes: int | None


def bad_array(path: str, reason: str) -> InvalidInputError:
    """The error for an array that cannot be imported."""
    return InvalidInputError(
        f"array {path} cannot be imported: {reason}. Leave it out with skip=[{path!r}], or rewrite its data",
        ErrorKind.INVALID_ARRAY_METADATA,
    )


def array_document(
    path: str, array: Mapping[str, Any], attributes: Mapping[str, Any], *, fill_value_as_mask: bool = True
) -> ArrayDocument:
    """The v3 document of a v2 array.

    Parameters
    ----------
    path
        For messages.
    array, attributes
        Contents of ``.zarray`` and ``.zattrs``.
    fill_value_as_mask
        Write numeric fill values into the attribute ``_FillValue``, so that xarray masks them as for v2 arrays.

    Raises
    ------
    InvalidInputError
        ``invalid-array-metadata``: something has no v3 form, or the documents are damaged.
    """
    try:
        return _array_document(array, attributes, fill_value_as_mask=fill_value_as_mask)
    except Unsupported as error:
        raise bad_array(path, f"{error} has no form in Zarr v3") from None
    except _Damaged as error:
        raise bad_array(path, str(error)) from None


class _Damaged(ValueError):
    """The document breaks the v2 specification."""


def _array_document(
    array: Mapping[str, Any], attributes: Mapping[str, Any], *, fill_value_as_mask: bool
) -> ArrayDocument:
    shape, edges = _sizes(array, "shape"), _sizes(array, "chunks")
    if len(shape) != len(edges):
        raise _Damaged(f"'shape' {shape} and 'chunks' {edges} have different lengths")
    chunk_shape = [edge or 1 for edge in edges]
    filters = array.get("filters")
    dtype = parse_dtype(array.get("dtype"), object_codec_of(filters))
    chain = codec_chain(dtype, chunk_shape, array.get("order", "C"), filters, array.get("compressor"))
    fill = read_fill(dtype, array.get("fill_value"))
    kept = dict(attributes)
    names = _dimension_names(kept, array, len(shape))
    mask = fill if fill_value_as_mask and array.get("fill_value") is not None else None
    _set_fill_attribute(kept, dtype, mask)
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype.v3,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk_shape}},
        "chunk_key_encoding": _CHUNK_KEYS,
        "fill_value": fill_json(dtype, fill),
        "codecs": chain.codecs,
        "attributes": strict_json(kept),
        **({"dimension_names": names} if names is not None else {}),
        "storage_transformers": [],
    }
    return ArrayDocument(encode(document), chain.chunk_bytes)


def v3_array_document(document: Mapping[str, Any]) -> ArrayDocument:
    """A v3 array as it is, but with the chunk keys that this store has."""
    return ArrayDocument(encode(strict_json({**document, "chunk_key_encoding": _CHUNK_KEYS})), None)


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """The v3 document of a group."""
    return encode({"zarr_format": 3, "node_type": "group", "attributes": strict_json(attributes)})


def encode(document: Mapping[str, Any]) -> bytes:
    """JSON as stored."""
    return json.dumps(document, allow_nan=False, ensure_ascii=False).encode()


def strict_json(value: Any) -> Any:
    """A copy without bare NaN and Infinity, which are no JSON: they become strings."""
    if isinstance(value, float):
        return float_json(value)
    if isinstance(value, Mapping):
        return {str(name): strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return value


def _sizes(array: Mapping[str, Any], name: str) -> list[int]:
    value = array.get(name)
    if not isinstance(value, list) or not all(_is_size(item) for item in value):
        raise _Damaged(f"its '{name}' must be a list of non-negative integers, not {value!r}")
    return [int(item) for item in value]


def _is_size(value: Any) -> bool:
    return (
        type(value) is int or (type(value) is float and math.isfinite(value) and value.is_integer())
    ) and value >= 0


def _dimension_names(attributes: dict[str, Any], array: Mapping[str, Any], ndim: int) -> list[str] | None:
    """Dimension names, taken out of the attributes; None when there are none of the right number."""
    names = _names(attributes.get(DIMENSIONS), ndim)
    if names is not None:
        del attributes[DIMENSIONS]
        return _last_components(names)
    for name in _NCZARR_ARRAYS:
        for source in (attributes, array):
            found = source.get(name)
            names = _names(found.get("dimrefs"), ndim) if isinstance(found, Mapping) else None
            if names is not None:
                return _last_components(names)
    return None


def _names(value: Any, ndim: int) -> list[str] | None:
    fits = isinstance(value, list) and len(value) == ndim and all(isinstance(name, str) for name in value)
    return value if fits else None


def _last_components(names: list[str]) -> list[str]:
    """Names of dimensions that HDF5 files give by path; as they are if they would no longer differ."""
    short = [name.rpartition("/")[2] or name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _set_fill_attribute(attributes: dict[str, Any], dtype: DataType, mask: Any) -> None:
    """Put ``_FillValue`` in the one form from which xarray opens a v3 array; take it away where there is none."""
    found = attributes.pop(FILL_VALUE, None)
    if mask is None and found is not None and dtype.is_numeric:
        try:
            mask = read_fill_attribute(dtype, found)
        except Unsupported:
            return
    encoded = None if mask is None else fill_attribute(dtype, mask)
    if encoded is not None:
        attributes[FILL_VALUE] = encoded
