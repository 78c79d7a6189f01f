"""The members of one large JSON object, a block at a time.

A reference set of a million chunks is one JSON object. Parsed at once it is several hundred megabytes of Python
objects, most of which live only until their numbers are in columns. So the text is cut between members, and each piece
goes to the standard library's parser by itself.

A cut is found by pattern and *proved* by the parser: JSON is read from left to right, so a piece that is a complete
object once ``{`` and ``}`` are put around it was cut between two members. A piece that is not is tried again, longer;
doubling it bounds the wasted work.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any

from icechunk_engine.errors import ErrorKind, InvalidInputError

BLOCK_BYTES = 128 * 1024
"""Small enough that a block's objects stay in cache and in memory that the allocator has at hand."""

_CUT = re.compile(rb'[\]"}]\s*(,)\s*"(?:[^"\\]|\\.)*"\s*:\s*[\["{]')
_REFS = re.compile(rb'"refs"\s*:\s*\{')
_VERSION = re.compile(rb'"version"\s*:')
_MAX_REFS_CANDIDATES = 8


def bad_json(reason: object) -> InvalidInputError:
    """The error for text that is no reference set."""
    return InvalidInputError(
        f"the reference set is not a JSON object: {reason}. It must be the text that kerchunk writes (optionally "
        f"compressed with gzip or zstd), or a directory of Parquet files with a .zmetadata file",
        ErrorKind.DESERIALIZATION,
    )


class ReferenceDocument:
    """JSON text of a reference set: its references in blocks, the other top-level members in ``top``.

    Parameters
    ----------
    data
        JSON in UTF-8 (or UTF-16, UTF-32).

    Attributes
    ----------
    top
        Top-level members other than the references (``version``, ``templates``, ``gen``); empty for version 0.
        Complete when :meth:`blocks` is exhausted.
    """

    def __init__(self, data: bytes | bytearray, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.top: dict[str, Any] = {}
        self._data = _as_utf8(data)
        self._block_bytes = block_bytes

    def blocks(self) -> Iterator[dict[str, Any]]:
        """Members of the mapping of store keys to values, in order, some at a time.

        Raises
        ------
        InvalidInputError
            ``deserialization``: the text is not a JSON object.
        """
        for match in list(_candidates(self._data)):
            head = _try_object(self._data[: match.start()] + b'"refs":null}')
            if head is not None:
                self.top.update(head)
                end = yield from self._members(match.end() - 1)
                self.top.update(_object(b'{"refs":null' + self._data[end:]))
                if self.top.pop("refs") is not None:
                    raise bad_json("'refs' stands in it twice")
                return
        if _VERSION.search(self._data) is not None:
            yield from self._whole()
            return
        start = len(self._data) - len(self._data.lstrip())
        if self._data[start : start + 1] != b"{":
            raise bad_json("it does not begin with '{'")
        end = yield from self._members(start)
        if self._data[end:].strip():
            raise bad_json(f"there is more text after the object, at byte {end}")

    def _whole(self) -> Iterator[dict[str, Any]]:
        """The rare layouts: everything at once."""
        document = _object(self._data)
        if "version" in document:
            refs = document.pop("refs", {})
            self.top.update(document)
            if not isinstance(refs, dict):
                raise bad_json("'refs' must be an object")
            yield refs
        else:
            yield document

    def _members(self, start: int) -> Generator[dict[str, Any], None, int]:
        """Members of the object whose ``{`` is at ``start``; returns the position behind its ``}``."""
        position, size = start + 1, self._block_bytes
        while (cut := _CUT.search(self._data, position + size)) is not None:
            block = _try_object(b"{" + self._data[position : cut.start(1)] + b"}")
            if block is None:
                size *= 2
                continue
            yield block
            position, size = cut.end(1), self._block_bytes
        rest = _decode(b"{" + self._data[position:])
        try:
            block, n_chars = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError) as error:
            raise bad_json(f"{_reason(error)} (counted from byte {position})") from None
        yield block
        return position - 1 + (n_chars if rest.isascii() else len(rest[:n_chars].encode()))


def _candidates(data: bytes | bytearray) -> Iterator[re.Match[bytes]]:
    for _, match in zip(range(_MAX_REFS_CANDIDATES), _REFS.finditer(data), strict=False):
        yield match


def _as_utf8(data: bytes | bytearray) -> bytes | bytearray:
    encoding = json.detect_encoding(data)
    if encoding == "utf-8":
        return data
    try:
        return data.decode(encoding).encode()
    except UnicodeError as error:
        raise bad_json(error) from None


def _decode(text: bytes | bytearray) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise bad_json(error) from None


def _object(text: bytes | bytearray) -> dict[str, Any]:
    content = _decode(text)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise bad_json(_reason(error)) from None
    if not isinstance(document, dict):
        raise bad_json("it must be an object")
    return document


def _reason(error: Exception) -> str:
    """What the standard library's parser complains of, in words about the text."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    return "a number in it has thousands of digits"


def _try_object(text: bytes | bytearray) -> dict[str, Any] | None:
    """The object that the text is, None when it is none."""
    try:
        document: dict[str, Any] = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return document
