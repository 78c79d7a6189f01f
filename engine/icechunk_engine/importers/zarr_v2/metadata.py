"""Translate Zarr v2 metadata documents to Zarr v3. Pure.

Invariant: readers of the v3 document see the same values, dimension names, attributes and missing data as readers of
the v2 document. Missing data needs care: xarray finds it in the fill value of a v2 array, but only in the
``_FillValue`` attribute of a v3 array.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.limits import Budget
from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.importers.zarr_v2.codecs import codec_chain, object_codec_of
from icechunk_engine.importers.zarr_v2.dtypes import (
    DataType,
    FillValue,
    Unsupported,
    fill_attribute,
    fill_json,
    float_json,
    parse_dtype,
    read_fill,
    read_fill_attribute,
)
from icechunk_engine.types import Json, JsonObject

DIMENSIONS = "_ARRAY_DIMENSIONS"
FILL_VALUE = "_FillValue"
_NCZARR_ARRAYS = ("_nczarr_array", "_NCZARR_ARRAY")
_MAX_RANK = 64
"""The limit of numpy and zarr-python."""
_COPIES_OF_FILL = 16
"""Memory for one fill value: it is padded to its length, encoded in base64, written as JSON, and copied each time."""
_CHUNK_KEYS = {"name": "default", "configuration": {"separator": "/"}}


@dataclass(frozen=True, slots=True)
class ArrayDocument:
    """One array's ``zarr.json``.

    Attributes
    ----------
    content
        The document.
    chunk_bytes
        Encoded length of every chunk, or None if it is unknown or depends on the content.
    """

    content: bytes
    chunk_bytes: int | None


def bad_array(path: str, reason: str) -> InvalidInputError:
    """Return the error for an array that cannot be imported."""
    short = short_repr(path)
    return InvalidInputError(
        f"array {short[1:-1]} cannot be imported: {reason}. Leave it out with skip=[{short}], or rewrite its data",
        ErrorKind.INVALID_ARRAY_METADATA,
    )


def array_document(
    path: str,
    array: Mapping[str, Json],
    attributes: Mapping[str, Json],
    *,
    fill_value_as_mask: bool = True,
    budget: Budget | None = None,
) -> ArrayDocument:
    """Return the v3 document of a v2 array.

    Parameters
    ----------
    path
        Path of the array, for error messages.
    array, attributes
        Contents of ``.zarray`` and ``.zattrs``.
    fill_value_as_mask
        Write numeric fill values to the ``_FillValue`` attribute, so that xarray masks them as in v2 arrays.
    budget
        Charged for fill values, which are as long as the elements.

    Raises
    ------
    InvalidInputError
        ``invalid-array-metadata``: the array has no v3 form, or the documents are damaged. ``deserialization``: the
        fill value exceeds the budget.
    """
    try:
        return _array_document(array, attributes, budget or Budget(), fill_value_as_mask=fill_value_as_mask)
    except Unsupported as error:
        raise bad_array(path, f"{error} has no form in Zarr v3") from None
    except _Damaged as error:
        raise bad_array(path, str(error)) from None


class _Damaged(ValueError):
    """The document breaks the v2 specification, or holds values that JSON does not have."""


def _array_document(
    array: Mapping[str, Json], attributes: Mapping[str, Json], budget: Budget, *, fill_value_as_mask: bool
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
            f"its elements and its fill value have {dtype.stored.itemsize} bytes each",
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
        "fill_value": fill_json(fill),
        "codecs": chain.codecs,
        "attributes": strict_json(kept),
        **({"dimension_names": names} if names is not None else {}),
        "storage_transformers": [],
    }
    return ArrayDocument(_encode(document), chain.chunk_bytes)


def v3_array_document(path: str, document: Mapping[str, Json]) -> ArrayDocument:
    """Return a v3 document with the chunk key encoding of this store. Raises the errors of :func:`array_document`."""
    try:
        return ArrayDocument(_encode(strict_json({**document, "chunk_key_encoding": _CHUNK_KEYS})), None)
    except _Damaged as error:
        raise bad_array(path, str(error)) from None


def group_document(attributes: Mapping[str, Json], *, path: str) -> bytes:
    """Return the v3 document of a group.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``: the attributes of the group at ``path`` hold values that JSON does not have.
    """
    try:
        return _encode({"zarr_format": 3, "node_type": "group", "attributes": strict_json(attributes)})
    except _Damaged as error:
        raise InvalidInputError(
            f"group {path} cannot be imported: {error}. Correct its attributes", ErrorKind.BAD_METADATA
        ) from None


def _encode(document: object) -> bytes:
    try:
        return json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _Damaged("its metadata holds half of a Unicode surrogate pair") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _Damaged(f"its metadata cannot be written as JSON ({error})") from None


def strict_json(value: object) -> object:
    """Return a copy in which NaN and Infinity are strings, because JSON has no such numbers."""
    if isinstance(value, float):
        return float_json(value)
    if isinstance(value, Mapping):
        return {str(name): strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return value


def _sizes(array: Mapping[str, Json], name: str) -> list[int]:
    value = array.get(name)
    sizes = [size for item in value if (size := _size(item)) is not None] if isinstance(value, list) else []
    if not isinstance(value, list) or len(sizes) < len(value):
        raise _Damaged(f"its '{name}' must be a list of non-negative integers, not {short_repr(value)}")
    if len(value) > _MAX_RANK:
        raise _Damaged(f"it has {len(value)} dimensions, where numpy and zarr have at most {_MAX_RANK}")
    return sizes


def _size(value: Json) -> int | None:
    if type(value) is int or (type(value) is float and math.isfinite(value) and value.is_integer()):
        return int(value) if value >= 0 else None
    return None


def _dimension_names(attributes: JsonObject, array: Mapping[str, Json], ndim: int) -> list[str] | None:
    """Remove the dimension names from the attributes and return them, or None if their number is not ``ndim``."""
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


def _names(value: Json, ndim: int) -> list[str] | None:
    if not isinstance(value, list) or len(value) != ndim:
        return None
    names = [name for name in value if isinstance(name, str)]
    return names if len(names) == ndim else None


def _last_components(names: list[str]) -> list[str]:
    """Shorten dimension names that HDF5 gives as paths, unless two of them would become equal."""
    short = [name.rpartition("/")[2] or name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _set_fill_attribute(attributes: JsonObject, dtype: DataType, mask: FillValue | None) -> None:
    """Write ``_FillValue`` in the only form that xarray reads in v3 arrays, or remove it if nothing is masked."""
    found = attributes.pop(FILL_VALUE, None)
    if mask is None and found is not None and dtype.is_numeric:
        try:
            mask = read_fill_attribute(dtype, found)
        except Unsupported:
            return
    encoded = None if mask is None else fill_attribute(dtype, mask)
    if encoded is not None:
        attributes[FILL_VALUE] = encoded
