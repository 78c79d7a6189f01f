"""Zarr v2 filters and compressor as a Zarr v3 codec chain that decodes the same bytes to the same values. Pure.

v2 decodes with the compressor, then the filters from last to first, then views the bytes as the array's type. v3
orders a chain by kind: array codecs, one array-to-bytes codec, byte codecs. So::

    [transpose?] + leading array filters + bytes + trailing byte filters + compressor

The byte order of ``bytes`` is that of the type which the *last* array filter produces, not the array's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.importers.zarr_v2.dtypes import DataType, Unsupported, endian_of

OBJECT_CODECS = frozenset({"vlen-utf8", "vlen-bytes"})
"""Filters that turn objects into bytes and have a v3 form."""

_CHECKSUM_BYTES = 4
_BLOSC_MAX_TYPESIZE = 255
_ZSTD_LEVELS = -(2**17), 22
_BLOSC_COMPRESSORS = ["lz4", "lz4hc", "blosclz", "snappy", "zlib", "zstd"]
_NUMBER = re.compile(
    r"[<>|=]?[biufcmM][0-9]{1,2}(\[[0-9]{0,10}[a-zA-Z]{1,2}\])?|bool|(int|uint|float|complex)[0-9]{1,3}"
)

Codec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CodecChain:
    """A v3 codec chain.

    Attributes
    ----------
    codecs
        The ``codecs`` of the v3 metadata.
    chunk_bytes
        Encoded length of every chunk, None where it depends on the content.
    """

    codecs: list[Codec]
    chunk_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Stage:
    """What an array filter takes and makes; its codec is None where decoding needs none."""

    takes: np.dtype[Any]
    makes: np.dtype[Any]
    codec: Codec | None


def object_codec_of(filters: Any) -> str | None:
    """Id of the filter that encodes objects: the first one."""
    if isinstance(filters, list) and filters and isinstance(filters[0], dict):
        codec = filters[0].get("id")
        return codec if isinstance(codec, str) else None
    return None


def codec_chain(dtype: DataType, chunk_shape: Sequence[int], order: Any, filters: Any, compressor: Any) -> CodecChain:
    """Codec chain of an array.

    Parameters
    ----------
    dtype
        The array's type.
    chunk_shape
        Edges of a chunk.
    order, filters, compressor
        As in v2 metadata.

    Raises
    ------
    Unsupported
        A codec, or the combination, has no v3 form.
    """
    if order not in ("C", "F"):
        raise Unsupported(f"order {short_repr(order)}")
    pending = _configurations(filters, compressor)
    codecs: list[Codec] = []
    if order == "F" and len(chunk_shape) > 1:
        codecs.append(_codec("transpose", order=list(range(len(chunk_shape)))[::-1]))

    current, size = dtype.stored, math.prod(chunk_shape)
    is_packed = False
    while pending and pending[0]["id"] in _ARRAY_FILTERS:
        if is_packed:
            raise Unsupported(f"filter {short_repr(pending[0]['id'])} after 'packbits'")
        stage = _array_stage(pending.pop(0), current)
        if stage.codec is not None:
            codecs.append(stage.codec)
            is_packed = stage.codec["name"] == "numcodecs.packbits"
        size = 1 + -(-size // 8) if is_packed else size
        current = stage.makes

    chunk_bytes: int | None = size * current.itemsize
    if pending and pending[0]["id"] in _TO_BYTES:
        codecs.append(_TO_BYTES[pending[0]["id"]](pending.pop(0), dtype, current))
        chunk_bytes = None
    elif dtype.kind in "TB":
        raise Unsupported("objects without a filter that encodes them")
    else:
        endian = endian_of(current)
        codecs.append(_codec("bytes", **({"endian": endian} if endian else {})))
    item_size = 1 if current.hasobject else current.itemsize
    for configuration in pending:
        codecs.append(_byte_codec(configuration, item_size))
        chunk_bytes = _encoded_size(configuration["id"], chunk_bytes)
    return CodecChain(codecs, chunk_bytes)


def _codec(name: str, **configuration: Any) -> Codec:
    return {"name": name, "configuration": configuration} if configuration else {"name": name}


def _numcodecs(configuration: Mapping[str, Any]) -> Codec:
    rest = {name: value for name, value in configuration.items() if name != "id"}
    return {"name": f"numcodecs.{configuration['id']}", "configuration": rest}


def _configurations(filters: Any, compressor: Any) -> list[dict[str, Any]]:
    found = [*(filters or ()), *([compressor] if compressor is not None else ())] if _is_list(filters) else [filters]
    for configuration in found:
        if not isinstance(configuration, dict) or not isinstance(configuration.get("id"), str):
            raise Unsupported(f"the codec {short_repr(configuration)}")
    return found


def _is_list(value: Any) -> bool:
    return value is None or isinstance(value, list)


# --- array filters -----------------------------------------------------------------------------------------------


def _array_stage(configuration: dict[str, Any], current: np.dtype[Any]) -> _Stage:
    codec_id = configuration["id"]
    takes_name, makes_name = _ARRAY_FILTERS[codec_id]
    if current.hasobject or current.names is not None:
        raise Unsupported(f"filter {short_repr(codec_id)} on data type {current}")
    takes = _dtype(codec_id, configuration.get(takes_name), current) if takes_name else current
    makes = _dtype(codec_id, configuration.get(makes_name), takes) if makes_name else takes
    if codec_id == "packbits":
        if current != np.dtype(bool):
            raise Unsupported(f"filter 'packbits' on data type {current}")
        makes = np.dtype(np.uint8)
    # v2 reinterprets what a filter returns as the type before it, v3 converts it: they agree on equal types only.
    if takes != current:
        raise Unsupported(f"filter {short_repr(codec_id)} that returns {takes.str} where {current.str} is stored")
    codec = _numcodecs(configuration)
    if codec_id == "quantize":
        # v3 readers do not ask this codec which type it stores: they hand it the array's, in the machine's byte order.
        # Its decoding changes nothing, so that the values need it not.
        if (makes.kind, makes.itemsize) != (takes.kind, takes.itemsize):
            raise Unsupported(f"filter 'quantize' that stores {takes} as {makes}")
        if makes != takes or endian_of(makes) == "big":
            return _Stage(takes, makes, None)
    # v3 readers would put in types without byte order.
    if takes_name:
        codec["configuration"][takes_name] = takes.str
    if makes_name:
        codec["configuration"][makes_name] = makes.str
    return _Stage(takes, makes, codec)


def _dtype(codec_id: str, spec: Any, default: np.dtype[Any]) -> np.dtype[Any]:
    if spec is None:
        return default
    try:
        # numpy's own grammar is wide: dictionaries, "(1000000000,)f8", names that it warns of.
        found: np.dtype[Any] = np.dtype(spec if isinstance(spec, str) and _NUMBER.fullmatch(spec) else "O")
    except (TypeError, ValueError, OverflowError):
        raise Unsupported(f"filter {short_repr(codec_id)} with data type {short_repr(spec)}") from None
    if found.kind not in "biufcmM":
        raise Unsupported(f"filter {short_repr(codec_id)} with data type {short_repr(spec)}")
    return found


_ARRAY_FILTERS: Mapping[str, tuple[str | None, str | None]] = MappingProxyType(
    {
        "delta": ("dtype", "astype"),
        "fixedscaleoffset": ("dtype", "astype"),
        "quantize": ("dtype", "astype"),
        "astype": ("decode_dtype", "encode_dtype"),
        "packbits": (None, None),
        "bitround": (None, None),
    }
)
"""Filters from array to array: the configuration names of the type they return and of the type they store."""


# --- array to bytes ----------------------------------------------------------------------------------------------


def _variable_length(configuration: Mapping[str, Any], dtype: DataType, current: np.dtype[Any]) -> Codec:
    if (configuration["id"], dtype.kind) not in (("vlen-utf8", "T"), ("vlen-bytes", "B")):
        raise Unsupported(f"filter {short_repr(configuration['id'])} on data type {short_repr(dtype.v3)}")
    return {"name": configuration["id"], "configuration": {}}


def _numeric_array(configuration: Mapping[str, Any], dtype: DataType, current: np.dtype[Any]) -> Codec:
    if not dtype.is_numeric or current != dtype.stored or endian_of(current) == "big":
        raise Unsupported(f"codec {short_repr(configuration['id'])} on data type {current.str}")
    return _numcodecs(configuration)


_ToBytes = Callable[[Mapping[str, Any], DataType, np.dtype[Any]], Codec]
_TO_BYTES: Mapping[str, _ToBytes] = MappingProxyType(
    {
        "vlen-utf8": _variable_length,
        "vlen-bytes": _variable_length,
        "pcodec": _numeric_array,
        "zfpy": _numeric_array,
    }
)


# --- bytes to bytes ----------------------------------------------------------------------------------------------


def _byte_codec(configuration: dict[str, Any], item_size: int) -> Codec:
    codec_id = configuration["id"]
    convert = _BYTE_CODECS.get(codec_id)
    if convert is not None:
        return convert(configuration, item_size)
    if codec_id in _ARRAY_FILTERS or codec_id in _TO_BYTES:
        raise Unsupported(f"filter {short_repr(codec_id)} behind a codec that works on bytes")
    if codec_id == "grib":
        raise Unsupported("codec 'grib' (no Zarr v3 reader decodes GRIB messages that kerchunk refers to)")
    raise Unsupported(f"codec {short_repr(codec_id)}")


def _as_is(configuration: Mapping[str, Any], item_size: int) -> Codec:
    return _numcodecs(configuration)


def _gzip(configuration: Mapping[str, Any], item_size: int) -> Codec:
    level = configuration.get("level", 1)
    if type(level) is not int:
        raise Unsupported(f"codec 'gzip' with level {short_repr(level)}")
    return _codec("gzip", level=level) if level in range(10) else _numcodecs(configuration)


def _zstd(configuration: Mapping[str, Any], item_size: int) -> Codec:
    level = configuration.get("level", 0)
    if type(level) is not int or not _ZSTD_LEVELS[0] <= level <= _ZSTD_LEVELS[1]:
        raise Unsupported(f"codec 'zstd' with level {short_repr(level)}")
    return _codec("zstd", level=level, checksum=bool(configuration.get("checksum", False)))


def _blosc(configuration: Mapping[str, Any], item_size: int) -> Codec:
    """A blosc frame describes itself; the settings matter to whoever writes more chunks."""
    names = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle", -1: "shuffle" if item_size > 1 else "bitshuffle"}
    shuffle = configuration.get("shuffle", 1)
    if type(shuffle) is not int or shuffle not in names:
        raise Unsupported(f"codec 'blosc' with shuffle {short_repr(shuffle)}")
    cname, clevel = configuration.get("cname", "lz4"), configuration.get("clevel", 5)
    blocksize = configuration.get("blocksize", 0)
    if cname not in _BLOSC_COMPRESSORS or type(clevel) is not int or type(blocksize) is not int:
        raise Unsupported(
            f"codec 'blosc' with cname {short_repr(cname)}, clevel {short_repr(clevel)}, "
            f"blocksize {short_repr(blocksize)}"
        )
    return _codec(
        "blosc",
        cname=cname,
        clevel=clevel,
        shuffle=names[shuffle],
        typesize=item_size if item_size <= _BLOSC_MAX_TYPESIZE else 1,
        blocksize=blocksize,
    )


def _shuffle(configuration: Mapping[str, Any], item_size: int) -> Codec:
    return _codec("numcodecs.shuffle", elementsize=configuration.get("elementsize", 4))


def _crc32c(configuration: Mapping[str, Any], item_size: int) -> Codec:
    at_end = configuration.get("location", "end") == "end"
    return _codec("crc32c") if at_end else _numcodecs(configuration)


def _imagecodecs_zstd(configuration: Mapping[str, Any], item_size: int) -> Codec:
    return _codec("zstd", level=configuration.get("level") or 0, checksum=False)


def _imagecodecs_zlib(configuration: Mapping[str, Any], item_size: int) -> Codec:
    return _codec("numcodecs.zlib", level=configuration.get("level") or 1)


_ByteCodec = Callable[[Mapping[str, Any], int], Codec]
_BYTE_CODECS: Mapping[str, _ByteCodec] = MappingProxyType(
    {
        "zlib": _as_is,
        "lz4": _as_is,
        "bz2": _as_is,
        "lzma": _as_is,
        "fletcher32": _as_is,
        "crc32": _as_is,
        "adler32": _as_is,
        "jenkins_lookup3": _as_is,
        "gzip": _gzip,
        "zstd": _zstd,
        "blosc": _blosc,
        "shuffle": _shuffle,
        "crc32c": _crc32c,
        "imagecodecs_zstd": _imagecodecs_zstd,
        "imagecodecs_deflate": _imagecodecs_zlib,
        "imagecodecs_zlib": _imagecodecs_zlib,
    }
)


def _encoded_size(codec_id: str, size: int | None) -> int | None:
    if size is None or codec_id == "shuffle":
        return size
    if codec_id in ("fletcher32", "crc32", "crc32c", "adler32", "jenkins_lookup3"):
        return size + _CHECKSUM_BYTES
    return None
