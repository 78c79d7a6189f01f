"""Parse the parts of a ``zarr.json`` document that the engine needs: group or array, and an array's grid. Pure.

Everything else in the document (data type, codecs, attributes) belongs to zarr, and the bytes are stored verbatim. The
engine knows the chunk grids ``regular`` and ``rectilinear``. A shard counts as one chunk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NoReturn, TypeGuard, cast

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.types import Json, JsonObject

MAX_DEPTH = 500
"""Deepest nesting of objects and arrays in a document. Deeper ones could exhaust the stack of zarr and others."""
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)

MAX_ARRAY_LENGTH = 2**64 - 1
MAX_NUM_CHUNKS = 2**32 - 1
"""Chunk indices and counts are 32-bit in the format."""
_MAX_REASON_CHARS = 1000

_ENCODING_MEMBERS = ("data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs", "storage_transformers")
"""Members of an array's document without which its chunks would be read as other values."""


@dataclass(frozen=True, slots=True)
class ArrayShape:
    """The shape of an array in elements and in chunks, as snapshots store it (spec, *Array nodes*).

    Attributes
    ----------
    lengths
        Number of elements along each axis.
    num_chunks
        Number of chunks along each axis.
    dimension_names
        One entry for each axis, None for an unnamed axis. None if the metadata does not name dimensions.
    regular
        False for a rectilinear grid. Snapshots do not store this: shapes from there have True, and ``==`` ignores it.
    """

    lengths: tuple[int, ...]
    num_chunks: tuple[int, ...]
    dimension_names: tuple[str | None, ...] | None = None
    regular: bool = field(default=True, compare=False)

    @property
    def ndim(self) -> int:
        """Rank of the array."""
        return len(self.lengths)


NodeMetadata = tuple[Literal["group"], None] | tuple[Literal["array"], ArrayShape]
_GROUP: tuple[Literal["group"], None] = ("group", None)


class _Refused(Exception):
    """The document breaks a rule. :func:`_explained` turns this into the error that users see."""


def parse_node_metadata(data: bytes, *, for_write: bool = False, path: str | None = None) -> NodeMetadata:
    """Return the kind and shape of the node that a ``zarr.json`` document describes.

    Parameters
    ----------
    data
        The document.
    for_write
        Also refuse arrays whose chunks could be stored but not read back: those with a chunk key encoding other than
        ``default`` with ``/``, and rectilinear grids that do not cover the array. Existing arrays of this sort can be
        opened.
    path
        Path of the node, for messages.

    Returns
    -------
    ``("group", None)`` or ``("array", shape)``.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``: the document is not a JSON object, its ``node_type`` is neither ``group`` nor ``array``, or
        its shape, chunk grid or dimension names are missing or wrong.
    """
    with _explained(path):
        document = _decode(data)
        node_type = document.get("node_type")
        if node_type == "group":
            return _GROUP
        if node_type != "array":
            raise _Refused(
                f"'node_type' must be 'group' or 'array', not {node_type!r} (Zarr format 3; convert older metadata "
                f"before storing it)"
            )
        shape = _parse_array(document)
        if for_write:
            _require_readable(document, shape)
        return "array", shape


def regular_chunk_lengths(data: bytes) -> tuple[int, ...] | None:
    """Return the chunk length along each axis of an array with a regular grid; None for groups and other grids.

    Spec version 1 stores this instead of the number of chunks.
    """
    with _explained(None):
        document = _decode(data)
        grid = document.get("chunk_grid")
        if document.get("node_type") != "array" or not isinstance(grid, dict) or grid.get("name") != "regular":
            return None
        return tuple(_sizes(_configuration(grid).get("chunk_shape"), "chunk_grid.configuration.chunk_shape"))


def chunk_encoding(data: bytes) -> object:
    """Return what an array's document says about the bytes of its chunks, to compare it with that of another one."""
    try:
        document = _decode(data)
    except _Refused:
        return data
    return [document.get(name) for name in _ENCODING_MEMBERS]


def require_shallow(data: bytes) -> None:
    """Raise ValueError for a JSON document that is nested more than :data:`MAX_DEPTH` levels deep."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _BRACKETS.finditer(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


@contextmanager
def _explained(path: str | None) -> Iterator[None]:
    try:
        yield
    except _Refused as refused:
        whose = f"of {path} " if path is not None else ""
        reason = str(refused)
        if len(reason) > _MAX_REASON_CHARS:  # the reason quotes the document, which may be of any size
            reason = f"{reason[: _MAX_REASON_CHARS // 2]} … {reason[-_MAX_REASON_CHARS // 2 :]}"
        raise InvalidInputError(
            f"bad metadata: the zarr.json {whose}was refused: {reason}", ErrorKind.BAD_METADATA
        ) from None


def _decode(data: bytes) -> JsonObject:
    try:
        require_shallow(data)
        document: Json = json.loads(bytes(data).decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _Refused(
            f"it is not a JSON document in UTF-8 ({error}). Write it with json.dumps(…, allow_nan=False)"
        ) from None
    if not isinstance(document, dict):
        raise _Refused(f"it must be a JSON object, not {_json_type(document)}")
    return document


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f'bare {token} is not JSON; write the string "{token}" where Zarr allows it')


def _parse_array(document: JsonObject) -> ArrayShape:
    lengths = _sizes(document.get("shape"), "shape")
    grid = document.get("chunk_grid")
    if not isinstance(grid, dict):
        raise _Refused(
            'an array needs a \'chunk_grid\' such as {"name": "regular", "configuration": {"chunk_shape": [10, 10]}}'
        )
    name = grid.get("name")
    if name == "regular":
        num_chunks = _regular_num_chunks(_configuration(grid), lengths)
    elif name == "rectilinear":
        num_chunks = [_axis_num_chunks(edges, length) for edges, length in _rectilinear_edges(grid, lengths)]
    else:
        raise _Refused(f"chunk grid {name!r} is unknown; use 'regular' or 'rectilinear'")
    for axis, count in enumerate(num_chunks):
        if count > MAX_NUM_CHUNKS:
            raise _Refused(
                f"axis {axis} would have {count} chunks, more than the {MAX_NUM_CHUNKS} that the format can number. "
                f"Choose larger chunks"
            )
    return ArrayShape(
        lengths=tuple(lengths),
        num_chunks=tuple(num_chunks),
        dimension_names=_dimension_names(document.get("dimension_names"), len(lengths)),
        regular=name == "regular",
    )


def _configuration(grid: JsonObject) -> JsonObject:
    configuration = grid.get("configuration")
    if not isinstance(configuration, dict):
        raise _Refused("'chunk_grid' needs a 'configuration' object")
    return configuration


def _regular_num_chunks(configuration: JsonObject, lengths: Sequence[int]) -> list[int]:
    edges = _sizes(configuration.get("chunk_shape"), "chunk_grid.configuration.chunk_shape")
    _require_rank("chunk_shape", len(edges), len(lengths))
    return [-(-length // edge) if edge else 0 for length, edge in zip(lengths, edges, strict=True)]


def _rectilinear_edges(grid: JsonObject, lengths: Sequence[int]) -> list[tuple[Json, int]]:
    """Return the edges of each axis with the length of the axis."""
    shapes = _configuration(grid).get("chunk_shapes")
    if not isinstance(shapes, list):
        raise _Refused("a rectilinear grid needs 'chunk_shapes': for each axis one edge length or a list of them")
    _require_rank("chunk_shapes", len(shapes), len(lengths))
    return list(zip(shapes, lengths, strict=True))


def _axis_num_chunks(edges: Json, length: int) -> int:
    """Return the number of chunks along a rectilinear axis.

    A single edge length repeats to the end. A list holds edge lengths and pairs ``[edge length, count]``.
    """
    if _is_size(edges):
        return -(-length // edges) if edges else 0
    return sum(count for _, count in _runs(edges))


def _runs(edges: Json) -> list[tuple[int, int]]:
    """Return the pairs ``(edge length, count)`` of one rectilinear axis."""
    if not isinstance(edges, list):
        raise _Refused(f"'chunk_shapes' holds {edges!r}: write one edge length an axis, or a list of them")
    runs = []
    for item in edges:
        if _is_size(item):
            runs.append((item, 1))
        elif isinstance(item, list) and len(item) == 2 and _is_size(item[0]) and _is_size(item[1]):
            runs.append((item[0], item[1]))
        else:
            raise _Refused(f"'chunk_shapes' holds {item!r}: write edge lengths or pairs [edge length, repeats]")
    return runs


def _dimension_names(names: Json, ndim: int) -> tuple[str | None, ...] | None:
    if names is None:
        return None
    if not _is_list_of_names(names):
        raise _Refused("'dimension_names' must be a list of strings and nulls")
    if any(0xD800 <= ord(letter) <= 0xDFFF for name in names if name is not None for letter in name):
        raise _Refused(f"'dimension_names' contains lone surrogates, which are not text: {names!r}")
    _require_rank("dimension_names", len(names), ndim)
    return tuple([name or None for name in names])


def _is_list_of_names(value: Json) -> TypeGuard[list[str | None]]:
    return isinstance(value, list) and all(name is None or isinstance(name, str) for name in value)


def _require_readable(document: JsonObject, shape: ArrayShape) -> None:
    encoding = document.get("chunk_key_encoding", "default")
    name = encoding.get("name") if isinstance(encoding, dict) else encoding
    configuration = encoding.get("configuration") or {} if isinstance(encoding, dict) else {}
    separator = configuration.get("separator", "/") if isinstance(configuration, dict) else None
    if name != "default" or separator != "/":
        raise _Refused(
            f"chunk_key_encoding {json.dumps(encoding)} cannot be stored: chunks of this array could not be read "
            f'back. Use {{"name": "default", "configuration": {{"separator": "/"}}}}, in zarr-python '
            f'chunk_key_encoding={{"name": "default", "separator": "/"}}'
        )
    if not shape.regular:
        grid = cast(JsonObject, document["chunk_grid"])  # checked when the shape was parsed
        for axis, (edges, length) in enumerate(_rectilinear_edges(grid, shape.lengths)):
            covered = length if _is_size(edges) else sum(edge * count for edge, count in _runs(edges))
            if covered < length:
                raise _Refused(f"the chunks along axis {axis} cover {covered} of {length} elements; add chunks")


def _is_size(value: Json) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_ARRAY_LENGTH  # not bool, which is a subclass of int


def _is_list_of_sizes(value: Json) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(map(_is_size, value))


def _sizes(value: Json, name: str) -> list[int]:
    if not _is_list_of_sizes(value):
        raise _Refused(f"'{name}' must be a list of non-negative integers below 2**64, not {value!r}")
    return value


def _require_rank(name: str, found: int, ndim: int) -> None:
    if found != ndim:
        raise _Refused(f"'{name}' has {found} entries for an array of rank {ndim}. Give one entry for each axis")


def _json_type(value: Json) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
