"""Parse one large JSON object in blocks of members.

A reference set with a million chunks is one JSON object. Parsing it at once takes several hundred megabytes of Python
objects, most of which live only until their numbers are in columns. So this module cuts the text between members and
gives each piece to the standard library's parser.

Invariant: every cut lies between two members. A pattern proposes a cut, which may lie inside a string, and the parser
proves it: JSON is read from left to right, so if a piece is a complete object once it is enclosed in ``{`` and ``}``,
then it ends between two members. If it is not, the piece is doubled and tried again, which bounds the wasted work.
Cuts that are not proved would silently misread keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.types import JsonObject

BLOCK_BYTES = 128 * 1024
"""Small enough for a block's objects to stay in the processor cache and in memory that the allocator reuses."""

_CUT = re.compile(rb'[\]"}]\s*(,)\s*"(?:[^"\\]|\\.)*"\s*:\s*[\["{]')
_REFS = re.compile(rb'"refs"\s*:\s*\{')
_VERSION = re.compile(rb'"version"\s*:')
_MAX_REFS_CANDIDATES = 8


def bad_json(reason: object) -> InvalidInputError:
    """Return the error for text that is not a reference set."""
    return InvalidInputError(
        f"the reference set is not a JSON object: {reason}. It must be the text that kerchunk writes (optionally "
        f"compressed with gzip or zstd), or a directory of Parquet files with a .zmetadata file",
        ErrorKind.DESERIALIZATION,
    )


class ReferenceDocument:
    """The JSON text of a reference set.

    Parameters
    ----------
    data
        JSON in UTF-8 (or UTF-16, UTF-32).

    Attributes
    ----------
    top
        Top-level members other than the references (``version``, ``templates``, ``gen``). Empty for version 0.
        Incomplete until :meth:`blocks` is exhausted.
    """

    def __init__(self, data: bytes | bytearray, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.top: JsonObject = {}
        self._data = _as_utf8(data)
        self._block_bytes = block_bytes

    def blocks(self) -> Iterator[JsonObject]:
        """Yield the members of the mapping from store keys to values, in order, as blocks.

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
                    raise bad_json("it has 'refs' twice")
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

    def _whole(self) -> Iterator[JsonObject]:
        """Parse a rare layout at once."""
        document = _object(self._data)
        if "version" in document:
            refs = document.pop("refs", {})
            self.top.update(document)
            if not isinstance(refs, dict):
                raise bad_json("'refs' must be an object")
            yield refs
        else:
            yield document

    def _members(self, start: int) -> Generator[JsonObject, None, int]:
        """Yield the members of the object whose ``{`` is at ``start``. Return the position after its ``}``."""
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


def _object(text: bytes | bytearray) -> JsonObject:
    content = _decode(text)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise bad_json(_reason(error)) from None
    if not isinstance(document, dict):
        raise bad_json("it must be an object")
    return document


def _reason(error: Exception) -> str:
    """Describe an error of the standard library's parser."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return str(error)
    return "a number in it has thousands of digits"


def _try_object(text: bytes | bytearray) -> JsonObject | None:
    """Return the object in the text, or None if the text is not a complete object."""
    try:
        document: JsonObject = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return document
