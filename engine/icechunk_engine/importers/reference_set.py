"""Read a kerchunk reference set: JSON of version 0 or 1 from wherever it is, or a Python mapping.

The form is found by content, never by file name: gzip and zstd by their magic bytes, version 1 by its ``version`` key.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import fsspec
import numpy as np
import zstandard

from icechunk_engine.errors import ErrorKind, InvalidInputError, ObjectNotFoundError, StorageError
from icechunk_engine.importers import templates as rendering
from icechunk_engine.importers.member_stream import ReferenceDocument, bad_json
from icechunk_engine.importers.references import KeyedReferences, ReferenceBuilder

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MEMBERS_PER_BLOCK = 4096
MAX_GENERATED = 100_000_000
"""References that ``gen`` may make in all; a few bytes of text could otherwise ask for any amount of memory."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceSet:
    """A reference set: metadata documents as found, URLs, and one row of columns for each chunk.

    Attributes
    ----------
    metadata
        Values of the keys ``…/.zgroup``, ``.zattrs``, ``.zarray``, ``.zmetadata`` and ``zarr.json``.
    urls
        Distinct URLs with templates rendered; None stands for the default target.
    chunks
        All other keys.
    """

    metadata: dict[str, Any]
    urls: list[str | None]
    chunks: KeyedReferences


def read_reference_set(
    source: Any,
    *,
    storage_options: Mapping[str, Any] | None = None,
    template_overrides: Mapping[str, str] | None = None,
) -> ReferenceSet:
    """Read a reference set in JSON.

    Parameters
    ----------
    source
        A path or URL (any fsspec protocol), JSON text, bytes, an open file, or the parsed mapping. Bytes and files may
        be compressed with gzip or zstd.
    storage_options
        Options of the fsspec filesystem that opens ``source``.
    template_overrides
        Values that take the place of the set's own templates.

    Raises
    ------
    InvalidInputError
        ``deserialization``: no reference set. ``invalid-virtual-ref``: a value or template that cannot be used.
    StorageError
        ``object-not-found``, ``io``: ``source`` cannot be read.
    """
    if isinstance(source, Mapping):
        top, blocks = _parsed_members(source)
    else:
        document = ReferenceDocument(_decompress(_read(source, storage_options)))
        top, blocks = document.top, document.blocks()
    builder = ReferenceBuilder()
    for block in blocks:
        builder.add(block)
    # Only now is `top` complete.
    if top.get("version", 1) != 1:
        raise bad_json(f"version {top['version']!r} is not known, only 0 and 1 are")
    templates = _templates(top.get("templates"), template_overrides)
    if templates:
        builder.rename_urls([_render_url(url, templates) for url in builder.urls])
    _generate(builder, top.get("gen"), templates)
    return ReferenceSet(metadata=builder.metadata, urls=builder.urls, chunks=builder.finish())


def _parsed_members(source: Mapping[str, Any]) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    top: dict[str, Any] = {}
    members: Any = source
    if "version" in source or isinstance(source.get("refs"), Mapping):
        top = {name: value for name, value in source.items() if name != "refs"}
        members = source.get("refs", {})
        if not isinstance(members, Mapping):
            raise bad_json("'refs' must be an object")
    return top, _batches(members)


def _batches(members: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    items = iter(members.items())
    while block := dict(islice(items, _MEMBERS_PER_BLOCK)):
        yield block


def _read(source: Any, storage_options: Mapping[str, Any] | None) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if hasattr(source, "read"):
        content = source.read()
        return content.encode() if isinstance(content, str) else bytes(content)
    if isinstance(source, str) and source.lstrip()[:1] == "{":
        return source.encode()
    if isinstance(source, str | os.PathLike):
        return _read_url(os.fspath(source), storage_options)
    raise TypeError(
        f"a reference set is a path, URL, JSON text, bytes, open file or mapping, not {type(source).__name__}"
    )


def _read_url(url: str, storage_options: Mapping[str, Any] | None) -> bytes:
    try:
        if "://" not in url and "::" not in url:
            with open(url, "rb") as file:
                return file.read()
        with fsspec.open(url, "rb", **(storage_options or {})) as file:  # type: ignore[no-untyped-call]
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        raise ObjectNotFoundError(f"there is no reference set at {url}", ErrorKind.OBJECT_NOT_FOUND) from None
    except (ImportError, ValueError) as error:
        raise InvalidInputError(f"cannot open the reference set {url}: {error}", ErrorKind.CANNOT_PARSE_URL) from error
    except OSError as error:
        raise StorageError(f"cannot read the reference set {url}: {error}", ErrorKind.IO) from error


def _decompress(data: bytes) -> bytes:
    try:
        if data.startswith(_GZIP_MAGIC):
            return gzip.decompress(data)
        if data.startswith(_ZSTD_MAGIC):
            reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
            return reader.read()
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise bad_json(f"the compressed data is damaged ({error})") from None
    return data


# --- templates and generated references --------------------------------------------------------------------------


def _templates(templates: Any, overrides: Mapping[str, str] | None) -> dict[str, str]:
    found = {**(templates or {}), **(overrides or {})} if isinstance(templates, Mapping | None) else None
    if found is None or not all(isinstance(value, str) for value in found.values()):
        raise bad_json("'templates' must be an object of strings")
    return found


def _render_url(url: str | None, templates: Mapping[str, str]) -> str | None:
    return rendering.render_one(url, templates) if url is not None and rendering.is_template(url) else url


def _generate(builder: ReferenceBuilder, items: Any, templates: Mapping[str, str]) -> None:
    """Add the references of ``gen``; they replace equal keys of ``refs`` because they come later."""
    if not isinstance(items, list | None):
        raise bad_json("'gen' must be a list")
    for item in items or ():
        if not isinstance(item, Mapping) or not all(isinstance(item.get(name), str) for name in ("key", "url")):
            raise bad_json(f"an item of 'gen' needs 'key', 'url' and 'dimensions', not {item!r}")
        if ("offset" in item) != ("length" in item):
            raise bad_json("an item of 'gen' needs both 'offset' and 'length', or neither")
        scope = rendering.Scope(templates, *_loop_variables(item.get("dimensions")))
        if scope.n == 0:
            continue
        columns: list[list[Any]] = [rendering.render(item["url"], scope)]
        if "offset" in item:
            columns += [_render_integers(item[name], scope) for name in ("offset", "length")]
        keys = rendering.render(item["key"], scope)
        values = map(list, zip(*columns, strict=True))
        pairs = zip(keys, values, strict=True)
        while block := dict(islice(pairs, _MEMBERS_PER_BLOCK)):
            builder.add(block)


def _loop_variables(dimensions: Any) -> tuple[dict[str, rendering.Column], int]:
    """The Cartesian product of the dimensions: a column for each, the last dimension varies fastest."""
    if not isinstance(dimensions, Mapping):
        raise bad_json("an item of 'gen' needs 'dimensions', an object")
    values = {name: _dimension_values(name, value) for name, value in dimensions.items()}
    n = 1
    for column in values.values():
        n *= len(column)
    if n > MAX_GENERATED:
        raise bad_json(f"'gen' would make {n} references, more than {MAX_GENERATED}; split the set")
    shape = tuple(len(column) for column in values.values())
    variables = {}
    for axis, (name, column) in enumerate(values.items()):
        aligned = column.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        variables[name] = np.broadcast_to(aligned, shape).reshape(-1)
    return variables, n


def _dimension_values(name: str, value: Any) -> rendering.Column:
    if isinstance(value, Mapping):
        bounds = [value.get("start", 0), value.get("stop"), value.get("step", 1)]
        if not all(type(bound) is int for bound in bounds) or bounds[2] == 0:
            raise bad_json(f"dimension {name!r} of 'gen' needs integers start, stop and step, not {value!r}")
        values = range(*bounds)
        # Slicing first: len() of a range beyond 2**63 raises OverflowError.
        if len(values[: MAX_GENERATED + 1]) > MAX_GENERATED:
            raise bad_json(f"dimension {name!r} of 'gen' has more than {MAX_GENERATED} values")
        return rendering.object_column(list(values))
    if isinstance(value, list) and all(type(item) in (str, int, float) for item in value):
        return rendering.object_column(value)
    raise bad_json(f"dimension {name!r} of 'gen' must be a list of texts or numbers, or start/stop/step")


def _render_integers(template: Any, scope: rendering.Scope) -> list[int]:
    if type(template) is int:
        return [template] * scope.n
    if not isinstance(template, str):
        raise bad_json(f"offset and length of 'gen' must be texts or integers, not {template!r}")
    try:
        return list(map(int, rendering.render(template, scope)))
    except ValueError as error:
        raise rendering.bad_template(template, str(error)) from None
