"""Translate Zarr v2 data types and fill values to Zarr v3. Pure.

A :class:`DataType` holds the v3 name and the numpy type of the stored bytes. A fill value passes through three forms:
the JSON of v2 metadata, a Python value (:data:`FillValue`), and the strict JSON of v3 metadata.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from dataclasses import dataclass

import numpy as np

from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.types import Json, JsonObject

NAT = -(2**63)

type NumpyType = np.dtype[np.generic]

type FillValue = bool | int | float | complex | str | bytes | dict[str, FillValue]
"""One element of an array. Times are integers, fixed-length and variable-length bytes are ``bytes``."""

_NUMBERS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
_WIDTHS = {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
_TIMES = {"M": "numpy.datetime64", "m": "numpy.timedelta64"}
_TYPE = re.compile(r"([<>|=])([biufcmMSUVO])([0-9]{0,10})(?:\[([0-9]{0,10})([a-zA-Z]+)\])?")
_INTEGER_TEXT = re.compile(r"\s*[+-]?[0-9]+\s*")
_MAX_RECORD_DEPTH = 16


class Unsupported(ValueError):
    """The v2 metadata has no v3 form. The message is a noun phrase; the caller adds the array's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataType:
    """One v2 data type.

    Attributes
    ----------
    kind
        numpy's letter (``b i u f c M m S U V``), ``T`` for variable-length text, ``B`` for variable-length bytes,
        ``R`` for records.
    stored
        numpy type of the stored bytes, including the byte order; object for ``T`` and ``B``.
    v3
        The v3 ``data_type``.
    fields
        Names and types of a record's fields.
    """

    kind: str
    stored: NumpyType
    v3: str | JsonObject
    fields: tuple[tuple[str, DataType], ...] = ()

    @property
    def endian(self) -> str | None:
        """``little``, ``big``, or None if the type has no byte order."""
        return endian_of(self.stored)

    @property
    def is_numeric(self) -> bool:
        """True for integers, floats and complex numbers."""
        return self.kind in "iufc"


def endian_of(dtype: NumpyType) -> str | None:
    """Return the byte order of a numpy type, or None if it has none. A record has the byte order of its fields."""
    if dtype.names is not None:
        orders = {endian_of(field[0]) for field in (dtype.fields or {}).values()} - {None}
        if len(orders) > 1:
            raise Unsupported("a record with fields of different byte orders")
        # zarr requires a byte order even if no field needs one.
        return orders.pop() if orders else "little"
    if dtype.itemsize == 1 or dtype.kind in "SVb":
        return None
    return "big" if dtype.str[0] == ">" else "little"


def parse_dtype(spec: Json, object_codec: str | None = None, *, depth: int = 0) -> DataType:
    """Parse a v2 ``dtype``.

    Parameters
    ----------
    spec
        A type string, or a list of record fields.
    object_codec
        Id of the filter that encodes objects, for ``|O``.
    depth
        Number of enclosing records.

    Raises
    ------
    Unsupported
        The type has no v3 form.
    """
    if isinstance(spec, list):
        return _parse_record(spec, depth)
    if not isinstance(spec, str) or (match := _TYPE.fullmatch(spec)) is None:
        raise Unsupported(f"data type {short_repr(spec)}")
    letter = match[2]
    size = int(match[3] or 0)
    if letter == "O":
        return _parse_object(object_codec)
    if letter in _TIMES and match[5] is not None:
        return _parse_time(spec, letter, int(match[4] or 1), match[5])
    if match[5] is not None or size == 0:
        raise Unsupported(f"data type {short_repr(spec)}")
    stored = _numpy_dtype(spec)
    if letter == "b" and size == 1:
        return DataType(kind="b", stored=stored, v3="bool")
    if letter in _NUMBERS and size in _WIDTHS[letter]:
        return DataType(kind=letter, stored=stored, v3=f"{_NUMBERS[letter]}{size * 8}")
    if letter == "S":
        return DataType(kind="S", stored=stored, v3=_named("null_terminated_bytes", length_bytes=size))
    if letter == "U":
        return DataType(kind="U", stored=stored, v3=_named("fixed_length_utf32", length_bytes=stored.itemsize))
    if letter == "V":
        return DataType(kind="V", stored=stored, v3=_named("raw_bytes", length_bytes=size))
    raise Unsupported(f"data type {short_repr(spec)}")


def _numpy_dtype(spec: str | list[tuple[str, NumpyType]]) -> NumpyType:
    try:
        return np.dtype(spec)
    except (TypeError, ValueError, OverflowError):
        raise Unsupported(f"data type {short_repr(spec)}") from None


def _named(name: str, **configuration: Json) -> JsonObject:
    return {"name": name, "configuration": configuration}


def _parse_time(spec: str, letter: str, factor: int, unit: str) -> DataType:
    stored = _numpy_dtype(spec)
    return DataType(kind=letter, stored=stored, v3=_named(_TIMES[letter], unit=unit, scale_factor=factor))


def _parse_object(codec: str | None) -> DataType:
    if codec == "vlen-utf8":
        return DataType(kind="T", stored=np.dtype(object), v3="string")
    if codec == "vlen-bytes":
        return DataType(kind="B", stored=np.dtype(object), v3="variable_length_bytes")
    raise Unsupported(
        f"objects encoded by {short_repr(codec)}" if codec else "objects without a filter that encodes them"
    )


def _parse_record(spec: list[Json], depth: int) -> DataType:
    if depth >= _MAX_RECORD_DEPTH:
        raise Unsupported(f"a record nested more than {_MAX_RECORD_DEPTH} levels deep")
    fields = tuple([_parse_field(spec, field, depth) for field in spec])
    names = [name for name, _ in fields]
    if not names or "" in names or len(set(names)) != len(names):
        raise Unsupported(f"a record with the field names {short_repr(names)}")
    stored = _numpy_dtype([(name, field.stored) for name, field in fields])
    if stored.itemsize != sum(field.stored.itemsize for _, field in fields):  # numpy's sum is of 32 bits
        raise Unsupported("a record of 2 GiB or more")
    endian_of(stored)
    described: list[Json] = [{"name": name, "data_type": field.v3} for name, field in fields]
    return DataType(kind="R", stored=stored, v3=_named("struct", fields=described), fields=fields)


def _parse_field(record: list[Json], field: Json, depth: int) -> tuple[str, DataType]:
    if not isinstance(field, list) or len(field) not in (2, 3) or not isinstance(field[0], str):
        raise Unsupported(f"record type {short_repr(record)}")
    if len(field) == 3 and field[2] not in ([], 1):
        raise Unsupported("a record whose fields are arrays")
    return field[0], parse_dtype(field[1], depth=depth + 1)


# --- fill values -------------------------------------------------------------------------------------------------


def read_fill(dtype: DataType, value: Json) -> FillValue:
    """Convert a fill value of v2 metadata to a Python value.

    null becomes the value that readers of v2 show: zero, an empty string or NaT.

    Raises
    ------
    Unsupported
        The spelling does not fit the type.
    """
    try:
        match dtype.kind:
            case "b":
                return _read_bool(value)
            case "i" | "u":
                return _read_integer(dtype, value)
            case "f":
                return _to_precision(dtype.stored, 0.0 if value is None else _read_float(value))
            case "c":
                return _read_complex(dtype, value)
            case "M" | "m":
                return NAT if value in (None, "NaT") else _require_int64(value)
            case "S":
                return _read_bytes(value, dtype.stored.itemsize).rstrip(b"\0")
            case "V":
                return _read_bytes(value, dtype.stored.itemsize).ljust(dtype.stored.itemsize, b"\0")
            case "U" | "T":
                return _read_text(value)
            case "B":
                return _read_bytes(value, None)
            case _:
                return _read_record(dtype, value)
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        if isinstance(error, Unsupported):
            raise
        raise Unsupported(f"fill value {short_repr(value)} for data type {short_repr(dtype.v3)}") from None


def fill_json(value: FillValue) -> Json:
    """Return the strict JSON of a fill value for v3 metadata."""
    match value:
        case float():
            return float_json(value)
        case complex():
            return [float_json(value.real), float_json(value.imag)]
        case bytes():
            return base64.b64encode(value).decode()
        case dict():
            return {name: fill_json(field) for name, field in value.items()}
        case _:
            return value


def fill_attribute(dtype: DataType, value: FillValue) -> Json:
    """Return the ``_FillValue`` attribute with which xarray masks a v3 array, or None if the type cannot have one.

    xarray expects floats of any precision as base64 of a little-endian double.
    """
    if not dtype.is_numeric:
        return None
    match value:
        case int():
            return value
        case float():
            return _double_text(value)
        case complex():
            return [_double_text(value.real), _double_text(value.imag)]
        case _:
            return None


def read_fill_attribute(dtype: DataType, value: Json) -> FillValue:
    """Convert an existing ``_FillValue`` attribute, plain or in xarray's form, to a Python value.

    Raises
    ------
    Unsupported
        It is not a value of the type.
    """
    try:
        return _read_fill_attribute(dtype, value)
    except (ValueError, TypeError, OverflowError):
        raise Unsupported(f"_FillValue {short_repr(value)}") from None


def _read_fill_attribute(dtype: DataType, value: Json) -> FillValue:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if dtype.kind == "f" and isinstance(value, str):
        return _to_precision(dtype.stored, _read_double_text(value))
    if dtype.kind == "c" and isinstance(value, list):
        parts = [part for part in value if isinstance(part, str)]
        if len(parts) == len(value):
            real, imag = map(_read_double_text, parts)
            return complex(real, imag)
    if dtype.kind == "i" and isinstance(value, int | float) and value > np.iinfo(dtype.stored.str).max:
        value = int(value) - (1 << dtype.stored.itemsize * 8)  # netCDF stores unsigned numbers in signed variables
    return read_fill(dtype, value)


def float_json(value: float) -> float | str:
    """Return a float as Zarr v3 spells it. JSON has no NaN and no Infinity, so these become strings."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _double_text(value: float) -> str:
    return base64.b64encode(struct.pack("<d", value)).decode()


def _read_double_text(text: str) -> float:
    try:
        return _read_float(text)
    except ValueError:
        pass
    try:
        value: float = struct.unpack("<d", base64.b64decode(text, validate=True))[0]
    except (ValueError, struct.error):
        raise Unsupported(f"_FillValue {short_repr(text)}") from None
    return value


def _read_bool(value: Json) -> bool:
    if value is None or value in (0, 1):
        return bool(value)
    raise ValueError(value)


def _read_integer(dtype: DataType, value: Json) -> int:
    number = 0 if value is None else _integer(value)
    limits = np.iinfo(dtype.stored.str)
    if not limits.min <= number <= limits.max:
        raise Unsupported(f"fill value {short_repr(value)}, which is outside the range of {dtype.v3}")
    return number


def _integer(value: Json) -> int:
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str) and _INTEGER_TEXT.fullmatch(value):
        return int(value)
    raise ValueError(value)


def _require_int64(value: Json) -> int:
    number = _integer(value)
    if not NAT <= number < 2**63:
        raise ValueError(value)
    return number


def _read_float(value: Json) -> float:
    if isinstance(value, int | float | str):
        return float(value)
    raise ValueError(value)


def _to_precision(stored: NumpyType, value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float64(value).astype(stored))


def _read_complex(dtype: DataType, value: Json) -> complex:
    if isinstance(value, list) and len(value) == 2:
        real, imag = map(_read_float, value)
    else:
        real, imag = 0.0 if value is None else _read_float(value), 0.0
    part = np.dtype(f"f{dtype.stored.itemsize // 2}")
    return complex(_to_precision(part, real), _to_precision(part, imag))


def _read_text(value: Json) -> str:
    if value is None or value == 0:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(value)


def _read_bytes(value: Json, size: int | None) -> bytes:
    """Decode base64. zarr before 2.0 wrote plain text, and 0 means empty."""
    if value is None or value == 0:
        return b""
    if not isinstance(value, str):
        raise ValueError(value)
    try:
        decoded = base64.b64decode(value, validate=True)
        if size is None or len(decoded) <= size:
            return decoded
    except ValueError:
        pass
    plain = value.encode()
    if size is not None and len(plain) > size:
        raise ValueError(value)
    return plain


def _read_record(dtype: DataType, value: Json) -> dict[str, FillValue]:
    if isinstance(value, dict):
        return {name: read_fill(field, value.get(name)) for name, field in dtype.fields}
    is_null = value is None or value == 0
    if not is_null and not isinstance(value, str):
        raise ValueError(value)
    raw = bytes(dtype.stored.itemsize) if is_null else base64.b64decode(str(value), validate=True)
    return _record_values(dtype, np.frombuffer(raw, dtype.stored, count=1)[0])


def _record_values(dtype: DataType, record: np.void) -> dict[str, FillValue]:
    values: dict[str, FillValue] = {}
    for name, field in dtype.fields:
        item = record[name]
        if field.kind == "R":
            values[name] = _record_values(field, item)
        elif field.kind in "Mm":
            values[name] = int(item.view("i8"))
        else:
            values[name] = item.tobytes() if field.kind == "V" else item.item()
    return values
