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
from icechunk_engine.importers.limits import Budget
from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.importers.zarr_v2.codecs import codec_chain, object_codec_of
from icechunk_engine.importers.zarr_v2.dtypes import (
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
_MAX_RANK = 64
"""numpy's, and so zarr-python's."""
_COPIES_OF_FILL = 16
"""A fill value is padded to its length, written in base64 into JSON and copied on the way."""
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
    short = short_repr(path)
    return InvalidInputError(
        f"array {short[1:-1]} cannot be imported: {reason}. Leave it out with skip=[{short}], or rewrite its data",
        ErrorKind.INVALID_ARRAY_METADATA,
    )


def array_document(
    path: str,
    array: Mapping[str, Any],
    attributes: Mapping[str, Any],
    *,
    fill_value_as_mask: bool = True,
    budget: Budget | None = None,
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
    budget
        Pays for fill values that are as long as the elements.

    Raises
    ------
    InvalidInputError
        ``invalid-array-metadata``: something has no v3 form, or the documents are damaged. ``deserialization``: more
        than the budget allows.
    """
    try:
        return _array_document(array, attributes, budget or Budget(), fill_value_as_mask=fill_value_as_mask)
    except Unsupported as error:
        raise bad_array(path, f"{error} has no form in Zarr v3") from None
    except _Damaged as error:
        raise bad_array(path, str(error)) from None


class _Damaged(ValueError):
    """The document breaks the v2 specification, or holds what no JSON can."""


def _array_document(
    array: Mapping[str, Any], attributes: Mapping[str, Any], budget: Budget, *, fill_value_as_mask: bool
) -> ArrayDocument:
    if array.get("zarr_format", 2) != 2:
        raise _Damaged(f'its .zarray must say "zarr_format": 2, not {short_repr(array["zarr_format"])}')
    shape, edges = _sizes(array, "shape"), _sizes(array, "chunks")
    if len(shape) != len(edges):
        raise _Damaged(f"'shape' {short_repr(shape)} and 'chunks' {short_repr(edges)} have different lengths")
    if any(edge == 0 < length for edge, length in zip(edges, shape, strict=True)):
        raise _Damaged(f"'chunks' {short_repr(edges)} has a 0 where the array has elements")
    chunk_shape = [edge or 1 for edge in edges]
    filters = array.get("filters")
    dtype = parse_dtype(array.get("dtype"), object_codec_of(filters))
    chain = codec_chain(dtype, chunk_shape, array.get("order", "C"), filters, array.get("compressor"))
    if dtype.kind in "VR":
        budget.charge_bytes(
            _COPIES_OF_FILL * dtype.stored.itemsize,
            f"its elements have {dtype.stored.itemsize} bytes, and so the fill",
        )
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
    return ArrayDocument(_encode(document), chain.chunk_bytes)


def v3_array_document(path: str, document: Mapping[str, Any]) -> ArrayDocument:
    """A v3 array as it is, but with the chunk keys that this store has. Errors as for :func:`array_document`."""
    try:
        return ArrayDocument(_encode(strict_json({**document, "chunk_key_encoding": _CHUNK_KEYS})), None)
    except _Damaged as error:
        raise bad_array(path, str(error)) from None


def group_document(attributes: Mapping[str, Any], *, path: str) -> bytes:
    """The v3 document of a group.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``: the attributes of the group at ``path`` hold what no JSON can.
    """
    try:
        return _encode({"zarr_format": 3, "node_type": "group", "attributes": strict_json(attributes)})
    except _Damaged as error:
        raise InvalidInputError(
            f"group {path} cannot be imported: {error}. Correct its attributes", ErrorKind.BAD_METADATA
        ) from None


def _encode(document: Mapping[str, Any]) -> bytes:
    """JSON as stored."""
    try:
        return json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Damaged("its metadata holds half of a Unicode surrogate pair") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _Damaged(f"its metadata cannot be written as JSON ({error})") from None


def strict_json(value: Any) -> Any:
    """A copy without bare NaN and Infinity, which are not JSON: they become strings."""
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
        raise _Damaged(f"its '{name}' must be a list of non-negative integers, not {short_repr(value)}")
    if len(value) > _MAX_RANK:
        raise _Damaged(f"it has {len(value)} dimensions, where numpy and zarr have at most {_MAX_RANK}")
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
