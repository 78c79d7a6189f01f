"""Translate Zarr v2 filters and compressors to a Zarr v3 codec chain. Pure.

Invariant: the chain decodes the same bytes to the same values.

v2 decodes with the compressor, then with the filters from last to first, and then views the bytes as the array's type.
v3 orders a chain by kind: array codecs, one array-to-bytes codec, byte codecs. So the chain is::

    [transpose?] + leading array filters + bytes + trailing byte filters + compressor

Two things would break the invariant:

- The byte order of ``bytes`` is that of the type that the *last* array filter stores, not that of the array.
- v2 reinterprets what a filter returns, v3 converts it. They agree only if the filter returns exactly the type that
  stands before it, so every other filter is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NotRequired, TypedDict

import numpy as np

from icechunk_engine.importers.short_repr import short_repr
from icechunk_engine.importers.zarr_v2.dtypes import DataType, NumpyType, Unsupported, endian_of
from icechunk_engine.types import Json, JsonObject

OBJECT_CODECS = frozenset({"vlen-utf8", "vlen-bytes"})
"""Filters that encode objects as bytes and have a v3 form."""

_CHECKSUM_BYTES = 4
_BLOSC_MAX_TYPESIZE = 255
_ZSTD_LEVELS = -(2**17), 22
_BLOSC_COMPRESSORS = ["lz4", "lz4hc", "blosclz", "snappy", "zlib", "zstd"]
_NUMBER = re.compile(
    r"[<>|=]?[biufcmM][0-9]{1,2}(\[[0-9]{0,10}[a-zA-Z]{1,2}\])?|bool|(int|uint|float|complex)[0-9]{1,3}"
)


class Codec(TypedDict):
    """A codec of v3 metadata."""

    name: str
    configuration: NotRequired[JsonObject]


@dataclass(frozen=True, slots=True)
class CodecChain:
    """A v3 codec chain.

    Attributes
    ----------
    codecs
        The ``codecs`` of the v3 metadata.
    chunk_bytes
        Encoded length of every chunk, or None if it depends on the content.
    """

    codecs: list[Codec]
    chunk_bytes: int | None


@dataclass(frozen=True, slots=True)
class _V2Codec:
    """A filter or compressor of v2 metadata; ``settings`` is the configuration without the id."""

    id: str
    settings: JsonObject


@dataclass(frozen=True, slots=True)
class _Stage:
    """An array filter: the type that it returns, the type that it stores, and the v3 codec if decoding needs one."""

    returns: NumpyType
    stores: NumpyType
    codec: Codec | None


def object_codec_of(filters: Json) -> str | None:
    """Return the id of the filter that encodes objects, which is the first one."""
    if isinstance(filters, list) and filters and isinstance(filters[0], dict):
        codec = filters[0].get("id")
        return codec if isinstance(codec, str) else None
    return None


def codec_chain(
    dtype: DataType, chunk_shape: Sequence[int], order: Json, filters: Json, compressor: Json
) -> CodecChain:
    """Return the codec chain of an array.

    Parameters
    ----------
    dtype
        The array's type.
    chunk_shape
        Edges of a chunk.
    order, filters, compressor
        From v2 metadata.

    Raises
    ------
    Unsupported
        A codec, or the combination, has no v3 form.
    """
    if order not in ("C", "F"):
        raise Unsupported(f"order {short_repr(order)}")
    pending = _v2_codecs(filters, compressor)
    codecs: list[Codec] = []
    if order == "F" and len(chunk_shape) > 1:
        codecs.append(_codec("transpose", order=[*reversed(range(len(chunk_shape)))]))

    current, size = dtype.stored, math.prod(chunk_shape)
    is_packed = False
    while pending and pending[0].id in _ARRAY_FILTERS:
        if is_packed:
            raise Unsupported(f"filter {short_repr(pending[0].id)} after 'packbits'")
        stage = _array_stage(pending.pop(0), current)
        if stage.codec is not None:
            codecs.append(stage.codec)
            is_packed = stage.codec["name"] == "numcodecs.packbits"
        size = 1 + -(-size // 8) if is_packed else size
        current = stage.stores

    chunk_bytes: int | None = size * current.itemsize
    if pending and pending[0].id in _TO_BYTES:
        codecs.append(_TO_BYTES[pending[0].id](pending.pop(0), dtype, current))
        chunk_bytes = None
    elif dtype.kind in "TB":
        raise Unsupported("objects without a filter that encodes them")
    else:
        endian = endian_of(current)
        codecs.append(_codec("bytes", **({"endian": endian} if endian else {})))
    item_size = 1 if current.hasobject else current.itemsize
    for codec in pending:
        codecs.append(_byte_codec(codec, item_size))
        chunk_bytes = _encoded_size(codec.id, chunk_bytes)
    return CodecChain(codecs, chunk_bytes)


def _codec(name: str, **configuration: Json) -> Codec:
    return {"name": name, "configuration": configuration} if configuration else {"name": name}


def _numcodecs(codec: _V2Codec, **changed: Json) -> Codec:
    return {"name": f"numcodecs.{codec.id}", "configuration": codec.settings | changed}


def _v2_codecs(filters: Json, compressor: Json) -> list[_V2Codec]:
    listed = filters if isinstance(filters, list) else [] if filters is None else [filters]
    return [_v2_codec(item) for item in (*listed, *([] if compressor is None else [compressor]))]


def _v2_codec(configuration: Json) -> _V2Codec:
    codec_id = configuration.get("id") if isinstance(configuration, dict) else None
    if not isinstance(configuration, dict) or not isinstance(codec_id, str):
        raise Unsupported(f"the codec {short_repr(configuration)}")
    return _V2Codec(codec_id, {name: value for name, value in configuration.items() if name != "id"})


# --- array filters -----------------------------------------------------------------------------------------------


def _array_stage(codec: _V2Codec, current: NumpyType) -> _Stage:
    returns_name, stores_name = _ARRAY_FILTERS[codec.id]
    if current.hasobject or current.names is not None:
        raise Unsupported(f"filter {short_repr(codec.id)} on data type {current}")
    returns = _dtype(codec.id, codec.settings.get(returns_name), current) if returns_name else current
    stores = _dtype(codec.id, codec.settings.get(stores_name), returns) if stores_name else returns
    if codec.id == "packbits":
        if current != np.dtype(bool):
            raise Unsupported(f"filter 'packbits' on data type {current}")
        stores = np.dtype(np.uint8)
    if returns != current:  # see the module's docstring
        raise Unsupported(f"filter {short_repr(codec.id)} that returns {returns.str} where {current.str} is stored")
    if codec.id == "quantize":
        # v3 readers ignore the type that this codec stores. They decode with the array's type in native byte order.
        # Decoding changes no value, so the codec can be left out.
        if (stores.kind, stores.itemsize) != (returns.kind, returns.itemsize):
            raise Unsupported(f"filter 'quantize' that stores {returns} as {stores}")
        if stores != returns or endian_of(stores) == "big":
            return _Stage(returns, stores, None)
    # Without these, v3 readers would use types without a byte order.
    types: JsonObject = {}
    if returns_name:
        types[returns_name] = returns.str
    if stores_name:
        types[stores_name] = stores.str
    return _Stage(returns, stores, _numcodecs(codec, **types))


def _dtype(codec_id: str, spec: Json, default: NumpyType) -> NumpyType:
    if spec is None:
        return default
    try:
        # numpy accepts far more: dictionaries, "(1000000000,)f8", deprecated names that cause warnings.
        found: NumpyType = np.dtype(spec if isinstance(spec, str) and _NUMBER.fullmatch(spec) else "O")
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
"""Filters from array to array, with the settings that name the type they return and the type they store."""


# --- array to bytes ----------------------------------------------------------------------------------------------


def _variable_length(codec: _V2Codec, dtype: DataType, current: NumpyType) -> Codec:
    if (codec.id, dtype.kind) not in (("vlen-utf8", "T"), ("vlen-bytes", "B")):
        raise Unsupported(f"filter {short_repr(codec.id)} on data type {short_repr(dtype.v3)}")
    return {"name": codec.id, "configuration": {}}


def _numeric_array(codec: _V2Codec, dtype: DataType, current: NumpyType) -> Codec:
    if not dtype.is_numeric or current != dtype.stored or endian_of(current) == "big":
        raise Unsupported(f"codec {short_repr(codec.id)} on data type {current.str}")
    return _numcodecs(codec)


_ToBytes = Callable[[_V2Codec, DataType, NumpyType], Codec]
_TO_BYTES: Mapping[str, _ToBytes] = MappingProxyType(
    {
        "vlen-utf8": _variable_length,
        "vlen-bytes": _variable_length,
        "pcodec": _numeric_array,
        "zfpy": _numeric_array,
    }
)


# --- bytes to bytes ----------------------------------------------------------------------------------------------


def _byte_codec(codec: _V2Codec, item_size: int) -> Codec:
    convert = _BYTE_CODECS.get(codec.id)
    if convert is not None:
        return convert(codec, item_size)
    if codec.id in _ARRAY_FILTERS or codec.id in _TO_BYTES:
        raise Unsupported(f"filter {short_repr(codec.id)} after a codec that works on bytes")
    if codec.id == "grib":
        raise Unsupported("codec 'grib' (no Zarr v3 reader decodes the GRIB messages in kerchunk sets)")
    raise Unsupported(f"codec {short_repr(codec.id)}")


def _same_settings(codec: _V2Codec, item_size: int) -> Codec:
    return _numcodecs(codec)


def _gzip(codec: _V2Codec, item_size: int) -> Codec:
    level = codec.settings.get("level", 1)
    if type(level) is not int:
        raise Unsupported(f"codec 'gzip' with level {short_repr(level)}")
    return _codec("gzip", level=level) if level in range(10) else _numcodecs(codec)


def _zstd(codec: _V2Codec, item_size: int) -> Codec:
    level = codec.settings.get("level", 0)
    if type(level) is not int or not _ZSTD_LEVELS[0] <= level <= _ZSTD_LEVELS[1]:
        raise Unsupported(f"codec 'zstd' with level {short_repr(level)}")
    return _codec("zstd", level=level, checksum=bool(codec.settings.get("checksum", False)))


def _blosc(codec: _V2Codec, item_size: int) -> Codec:
    """Translate blosc. A frame describes itself, so these settings only affect chunks that are written later."""
    names = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle", -1: "shuffle" if item_size > 1 else "bitshuffle"}
    settings = codec.settings
    shuffle = settings.get("shuffle", 1)
    if type(shuffle) is not int or shuffle not in names:
        raise Unsupported(f"codec 'blosc' with shuffle {short_repr(shuffle)}")
    cname, clevel = settings.get("cname", "lz4"), settings.get("clevel", 5)
    blocksize = settings.get("blocksize", 0)
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


def _shuffle(codec: _V2Codec, item_size: int) -> Codec:
    return _codec("numcodecs.shuffle", elementsize=codec.settings.get("elementsize", 4))


def _crc32c(codec: _V2Codec, item_size: int) -> Codec:
    at_end = codec.settings.get("location", "end") == "end"
    return _codec("crc32c") if at_end else _numcodecs(codec)


def _imagecodecs_zstd(codec: _V2Codec, item_size: int) -> Codec:
    return _codec("zstd", level=codec.settings.get("level") or 0, checksum=False)


def _imagecodecs_zlib(codec: _V2Codec, item_size: int) -> Codec:
    return _codec("numcodecs.zlib", level=codec.settings.get("level") or 1)


_ByteCodec = Callable[[_V2Codec, int], Codec]
_BYTE_CODECS: Mapping[str, _ByteCodec] = MappingProxyType(
    {
        "zlib": _same_settings,
        "lz4": _same_settings,
        "bz2": _same_settings,
        "lzma": _same_settings,
        "fletcher32": _same_settings,
        "crc32": _same_settings,
        "adler32": _same_settings,
        "jenkins_lookup3": _same_settings,
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
