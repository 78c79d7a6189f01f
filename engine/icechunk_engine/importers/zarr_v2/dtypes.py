"""Zarr v2 data types and fill values, and what they are in Zarr v3. Pure.

Each :class:`DataType` knows its v3 name, the numpy type of the stored bytes, and how a v2 fill value reads.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from icechunk_engine.importers.short_repr import short_repr

NAT = -(2**63)

_NUMBERS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
_WIDTHS = {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
_TIMES = {"M": "numpy.datetime64", "m": "numpy.timedelta64"}
_TYPE = re.compile(r"([<>|=])([biufcmMSUVO])([0-9]{0,10})(?:\[([0-9]{0,10})([a-zA-Z]+)\])?")
_INTEGER_TEXT = re.compile(r"\s*[+-]?[0-9]+\s*")
_MAX_RECORD_DEPTH = 16


class Unsupported(ValueError):
    """The v2 metadata has no v3 form; the message is completed by whoever knows the array's path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataType:
    """One v2 data type.

    Attributes
    ----------
    kind
        numpy's letter (``b i u f c M m S U V``), ``T`` for variable-length text, ``B`` for variable-length bytes,
        ``R`` for records.
    stored
        numpy type of the stored bytes, with their byte order; object for ``T`` and ``B``.
    v3
        The v3 ``data_type``.
    fields
        Names and types of a record's fields.
    """

    kind: str
    stored: np.dtype[Any]
    v3: Any
    fields: tuple[tuple[str, DataType], ...] = ()

    @property
    def endian(self) -> str | None:
        """``little``, ``big``, or None where bytes have no order."""
        return endian_of(self.stored)

    @property
    def is_numeric(self) -> bool:
        """True for integers, floats and complex numbers."""
        return self.kind in "iufc"


def endian_of(dtype: np.dtype[Any]) -> str | None:
    """Byte order of a numpy type, None where bytes have none; records have that of their fields."""
    if dtype.names is not None:
        orders = {endian_of(dtype[name]) for name in dtype.names} - {None}
        if len(orders) > 1:
            raise Unsupported("a record with fields of different byte orders")
        # zarr asks for an order even where no field needs one.
        return orders.pop() if orders else "little"
    if dtype.itemsize == 1 or dtype.kind in "SVb":
        return None
    return "big" if dtype.str[0] == ">" else "little"


def parse_dtype(spec: Any, object_codec: str | None = None, *, depth: int = 0) -> DataType:
    """A v2 ``dtype``.

    Parameters
    ----------
    spec
        A type string, or a list of record fields.
    object_codec
        Id of the filter that turns objects into bytes, for ``|O``.
    depth
        Records around this one.

    Raises
    ------
    Unsupported
        The type has no v3 form.
    """
    if isinstance(spec, list):
        return _parse_record(spec, depth)
    match = _TYPE.fullmatch(spec) if isinstance(spec, str) else None
    if match is None:
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


def _numpy_dtype(spec: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(spec)
    except (TypeError, ValueError, OverflowError):
        raise Unsupported(f"data type {short_repr(spec)}") from None
    return found


def _named(name: str, **configuration: Any) -> dict[str, Any]:
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


def _parse_record(spec: list[Any], depth: int) -> DataType:
    if depth >= _MAX_RECORD_DEPTH:
        raise Unsupported(f"a record nested more than {_MAX_RECORD_DEPTH} levels deep")
    if not all(isinstance(field, list) and len(field) in (2, 3) and isinstance(field[0], str) for field in spec):
        raise Unsupported(f"record type {short_repr(spec)}")
    if any(len(field) == 3 and field[2] not in ([], 1) for field in spec):
        raise Unsupported("a record whose fields are arrays")
    fields = tuple([(field[0], parse_dtype(field[1], depth=depth + 1)) for field in spec])
    names = [name for name, _ in fields]
    if not names or "" in names or len(set(names)) != len(names):
        raise Unsupported(f"a record with the field names {short_repr(names)}")
    stored = _numpy_dtype([(name, field.stored) for name, field in fields])
    if stored.itemsize != sum(field.stored.itemsize for _, field in fields):  # numpy's sum is of 32 bits
        raise Unsupported("a record of 2 GiB or more")
    endian_of(stored)
    v3 = _named("struct", fields=[{"name": name, "data_type": field.v3} for name, field in fields])
    return DataType(kind="R", stored=stored, v3=v3, fields=fields)


# --- fill values -------------------------------------------------------------------------------------------------


def read_fill(dtype: DataType, value: Any) -> Any:
    """The fill value that v2 metadata spells, as a Python value; for null what readers show: zero, empty or NaT.

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


def fill_json(dtype: DataType, value: Any) -> Any:
    """Strict JSON of a fill value in v3 metadata; ``value`` as :func:`read_fill` returns it."""
    match dtype.kind:
        case "f":
            return float_json(value)
        case "c":
            return [float_json(value.real), float_json(value.imag)]
        case "S" | "V" | "B":
            return base64.b64encode(value).decode()
        case "R":
            return {name: fill_json(field, value[name]) for name, field in dtype.fields}
        case _:
            return value


def fill_attribute(dtype: DataType, value: Any) -> Any:
    """The ``_FillValue`` attribute from which xarray masks in Zarr v3; None for types that it cannot have it for.

    Floats are base64 of a little-endian double there, whatever the precision of the array.
    """
    match dtype.kind:
        case "i" | "u":
            return value
        case "f":
            return _double_text(value)
        case "c":
            return [_double_text(value.real), _double_text(value.imag)]
        case _:
            return None


def read_fill_attribute(dtype: DataType, value: Any) -> Any:
    """An existing ``_FillValue`` attribute, plain or in xarray's form, as :func:`read_fill` returns values.

    Raises
    ------
    Unsupported
        It is not a value of the type.
    """
    try:
        return _read_fill_attribute(dtype, value)
    except (ValueError, TypeError, OverflowError):
        raise Unsupported(f"_FillValue {short_repr(value)}") from None


def _read_fill_attribute(dtype: DataType, value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if dtype.kind == "f" and isinstance(value, str):
        return _to_precision(dtype.stored, _read_double_text(value))
    if dtype.kind == "c" and isinstance(value, list) and all(isinstance(part, str) for part in value):
        real, imag = map(_read_double_text, value)
        return complex(real, imag)
    if dtype.kind == "i" and isinstance(value, int | float) and value > np.iinfo(dtype.stored).max:
        value = int(value) - (1 << dtype.stored.itemsize * 8)  # netCDF writes unsigned numbers in signed variables
    return read_fill(dtype, value)


def float_json(value: float) -> float | str:
    """Strict JSON of a float, as Zarr v3 spells it."""
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


def _read_bool(value: Any) -> bool:
    if value is None or value in (0, 1):
        return bool(value)
    raise ValueError(value)


def _read_integer(dtype: DataType, value: Any) -> int:
    number = 0 if value is None else _integer(value)
    limits = np.iinfo(dtype.stored)
    if not limits.min <= number <= limits.max:
        raise Unsupported(f"fill value {short_repr(value)}, which is outside the range of {dtype.v3}")
    return number


def _integer(value: Any) -> int:
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str) and _INTEGER_TEXT.fullmatch(value):
        return int(value)
    raise ValueError(value)


def _require_int64(value: Any) -> int:
    number = _integer(value)
    if not NAT <= number < 2**63:
        raise ValueError(value)
    return number


def _read_float(value: Any) -> float:
    if isinstance(value, int | float | str):
        return float(value)
    raise ValueError(value)


def _to_precision(stored: np.dtype[Any], value: float) -> float:
    with np.errstate(over="ignore"):
        return float(stored.type(value))


def _read_complex(dtype: DataType, value: Any) -> complex:
    if isinstance(value, list) and len(value) == 2:
        real, imag = map(_read_float, value)
    else:
        real, imag = 0.0 if value is None else _read_float(value), 0.0
    part = np.dtype(f"f{dtype.stored.itemsize // 2}")
    return complex(_to_precision(part, real), _to_precision(part, imag))


def _read_text(value: Any) -> str:
    if value is None or value == 0:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(value)


def _read_bytes(value: Any, size: int | None) -> bytes:
    """Base64; zarr before 2.0 wrote plain text, and 0 stands for empty."""
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


def _read_record(dtype: DataType, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {name: read_fill(field, value.get(name)) for name, field in dtype.fields}
    is_null = value is None or value == 0
    raw = bytes(dtype.stored.itemsize) if is_null else base64.b64decode(value, validate=True)
    return _record_values(dtype, np.frombuffer(raw, dtype.stored, count=1)[0])


def _record_values(dtype: DataType, record: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in dtype.fields:
        item = record[name]
        if field.kind == "R":
            values[name] = _record_values(field, item)
        elif field.kind in "Mm":
            values[name] = int(item.view("i8"))
        else:
            values[name] = item.tobytes() if field.kind == "V" else item.item()
    return values
