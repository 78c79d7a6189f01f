"""Read a kerchunk reference set: JSON of version 0 or 1 from a file, URL or string, or a Python mapping.

The content decides the form, not the file name: magic bytes mark gzip and zstd, and a ``version`` key marks version 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import IO

import fsspec

from icechunk_engine.errors import ErrorKind, InvalidInputError, ObjectNotFoundError, StorageError
from icechunk_engine.format.decompression import DamagedError, TooLargeError, decompress_gzip, decompress_zstd
from icechunk_engine.importers.kerchunk import templates as rendering
from icechunk_engine.importers.kerchunk.gen_items import generated
from icechunk_engine.importers.kerchunk.json_members import ReferenceDocument, bad_json
from icechunk_engine.importers.kerchunk.reference_columns import KeyedReferences, ReferenceBuilder
from icechunk_engine.importers.limits import Budget, ReferenceLimits, over_limit
from icechunk_engine.importers.short_repr import short_repr

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MEMBERS_PER_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReferenceSet:
    """A reference set: unparsed metadata documents, URLs, and one row of columns for each chunk.

    Attributes
    ----------
    metadata
        Values of the keys ``…/.zgroup``, ``.zattrs``, ``.zarray``, ``.zmetadata`` and ``zarr.json``.
    urls
        Distinct URLs with rendered templates. None means the default target.
    chunks
        All other keys.
    budget
        The budget of this import, charged so far.
    """

    metadata: dict[str, object]
    urls: list[str | None]
    chunks: KeyedReferences
    budget: Budget


type Source = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | IO[str] | Mapping[str, object]
"""A path or URL, JSON text, bytes, an open file, or a parsed mapping."""


def read_reference_set(
    source: Source,
    *,
    storage_options: Mapping[str, object] | None = None,
    template_overrides: Mapping[str, str] | None = None,
    limits: ReferenceLimits | None = None,
) -> ReferenceSet:
    """Read a reference set in JSON.

    Parameters
    ----------
    source
        A path or URL (any fsspec protocol), JSON text, bytes, an open file, or the parsed mapping. Bytes and files can
        be compressed with gzip or zstd.
    storage_options
        Options of the fsspec filesystem that opens ``source``.
    template_overrides
        Replacements for templates of the set.
    limits
        How far the set may expand.

    Raises
    ------
    InvalidInputError
        ``deserialization``: ``source`` is not a reference set, or exceeds the limits. ``invalid-virtual-ref``: a value
        or template cannot be used.
    StorageError
        ``object-not-found``, ``io``: ``source`` cannot be read.
    """
    if isinstance(source, Mapping):
        budget = Budget(limits)
        top, blocks = _parsed_members(source)
    else:
        data = _read(source, storage_options)
        budget = Budget(limits, len(data))
        document = ReferenceDocument(_unpacked(data, budget))
        del data
        top, blocks = document.top, document.blocks()
    builder = ReferenceBuilder()
    for block in blocks:
        builder.add(block)
    # `top` is complete now, because the blocks are exhausted.
    if top.get("version", 1) != 1:
        raise bad_json(f"version {short_repr(top['version'])} is unknown; versions 0 and 1 are supported")
    templates = _templates(top.get("templates"), template_overrides)
    if templates:
        builder.rename_urls([_render_url(url, templates, budget) for url in builder.urls])
    for block in generated(top.get("gen"), templates, budget):
        builder.add(block)  # later keys replace equal ones, so `gen` overrides `refs`
    return ReferenceSet(metadata=builder.metadata, urls=builder.urls, chunks=builder.finish(), budget=budget)


def _parsed_members(source: Mapping[str, object]) -> tuple[Mapping[str, object], Iterator[Mapping[str, object]]]:
    if "version" not in source and not isinstance(source.get("refs"), Mapping):
        return {}, _batches(source)
    members = source.get("refs", {})
    if not isinstance(members, Mapping):
        raise bad_json("'refs' must be an object")
    return {name: value for name, value in source.items() if name != "refs"}, _batches(members)


def _batches(members: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    items = iter(members.items())
    while block := dict(islice(items, _MEMBERS_PER_BLOCK)):
        yield block


def _read(source: object, storage_options: Mapping[str, object] | None) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if hasattr(source, "read"):
        content = source.read()
        if isinstance(content, str):
            return _encoded(content)
        if isinstance(content, bytes | bytearray | memoryview):
            return bytes(content)
        raise TypeError(f"the open file must return str or bytes, not {type(content).__name__}")
    if isinstance(source, str) and source.lstrip()[:1] == "{":
        return _encoded(source)
    if isinstance(source, str | os.PathLike):
        return _read_url(os.fsdecode(source), storage_options)
    raise TypeError(
        f"a reference set must be a path, URL, JSON text, bytes, open file or mapping, not {type(source).__name__}"
    )


def _unpacked(data: bytes, budget: Budget) -> bytes | bytearray:
    unpack = (
        decompress_gzip if data.startswith(_GZIP_MAGIC) else decompress_zstd if data.startswith(_ZSTD_MAGIC) else None
    )
    if unpack is None:
        return data
    try:
        return unpack(data, budget.max_unpacked_bytes)
    except TooLargeError as error:
        raise over_limit(f"{len(data)} compressed bytes expand to more than {error.limit}", "expanded_bytes") from None
    except DamagedError as error:
        raise bad_json(f"the compressed data is damaged ({error})") from None


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise bad_json(f"the text is not valid Unicode ({error})") from None


def _read_url(url: str, storage_options: Mapping[str, object] | None) -> bytes:
    try:
        if "://" not in url and "::" not in url:
            with open(url, "rb") as file:
                return file.read()
        with fsspec.open(url, "rb", **(storage_options or {})) as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        raise ObjectNotFoundError(
            f"no reference set found at {url}. Check the path or URL", ErrorKind.OBJECT_NOT_FOUND
        ) from None
    except (ImportError, ValueError) as error:
        raise InvalidInputError(f"cannot open the reference set {url}: {error}", ErrorKind.CANNOT_PARSE_URL) from error
    except OSError as error:
        raise StorageError(f"cannot read the reference set {url}: {error}", ErrorKind.IO) from error


def _templates(templates: object, overrides: Mapping[str, str] | None) -> dict[str, str]:
    found = {**(templates or {}), **(overrides or {})} if isinstance(templates, Mapping | None) else None
    if found is None or not all(isinstance(value, str) for value in found.values()):
        raise bad_json("'templates' must be an object of strings")
    return found


def _render_url(url: str | None, templates: Mapping[str, str], budget: Budget) -> str | None:
    return rendering.render_one(url, templates, budget) if url is not None and rendering.is_template(url) else url
