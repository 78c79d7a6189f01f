"""Columns of a reference set: store keys, and the source of each chunk.

Functions implemented in C (``map``, ``operator``, ``str`` methods, ``dict``) handle the strings, and numpy handles the
numbers. No Python code runs for a single reference, except to find the bad one for an error message.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from operator import is_, itemgetter, methodcaller, not_
from typing import cast

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, U64
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.short_repr import short_repr

RANGE, WHOLE_FILE, INLINE = 1, 2, 3
"""Values of the ``kinds`` column: a byte range of a file, a whole file, bytes in the set itself."""

METADATA_NAMES = frozenset({".zgroup", ".zarray", ".zattrs", ".zmetadata", "zarr.json"})

_split_key = methodcaller("rpartition", "/")
_head, _tail = itemgetter(0), itemgetter(2)
_url, _offset, _length = itemgetter(0), itemgetter(1), itemgetter(2)
_is_base64 = methodcaller("startswith", "base64:")
_without_prefix = itemgetter(slice(7, None))


def bad_reference(key: str, reason: str) -> InvalidInputError:
    """Return the error for a reference that cannot be imported."""
    return InvalidInputError(f"reference {short_repr(key)}: {reason}", ErrorKind.INVALID_VIRTUAL_REF)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class References:
    """The sources of ``n`` chunks. Their URLs are not resolved yet.

    Attributes
    ----------
    kinds
        ``uint8 (n,)``: ``RANGE``, ``WHOLE_FILE`` or ``INLINE``.
    url_codes
        ``int32 (n,)``: position in the set's list of URLs, -1 for inline bytes.
    offsets, lengths
        ``uint64 (n,)``: byte range of the file or of ``inline_data``; zeros for whole files.
    inline_data
        ``uint8``: the bytes of all inline chunks.
    """

    kinds: U8
    url_codes: NDArray[np.int32]
    offsets: U64
    lengths: U64
    inline_data: U8

    def __len__(self) -> int:
        return len(self.kinds)

    def take(self, rows: I64 | NDArray[np.bool_] | slice) -> References:
        """Return the references at ``rows``. The result shares the inline data."""
        return References(
            kinds=self.kinds[rows],
            url_codes=self.url_codes[rows],
            offsets=self.offsets[rows],
            lengths=self.lengths[rows],
            inline_data=self.inline_data,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeyedReferences:
    """References with their store keys, split at the last ``/``.

    Attributes
    ----------
    heads
        Distinct strings before the last ``/``; empty for keys without one.
    head_codes
        ``int32 (n,)``: position in ``heads``.
    tails
        ``uint8``: the ``n`` strings after the last ``/``, each followed by a NUL.
    references
        The ``n`` references.
    """

    heads: list[str]
    head_codes: NDArray[np.int32]
    tails: U8
    references: References

    def __len__(self) -> int:
        return len(self.head_codes)

    def key(self, row: int) -> str:
        """Return the store key of one reference. Slow; use it for messages only."""
        return self.keys(np.array([row]))[0]

    def keys(self, rows: I64) -> list[str]:
        """Return the store keys of a few references."""
        ends = np.flatnonzero(self.tails == 0)
        found = []
        for row in rows.tolist():
            tail = self.tails[int(ends[row - 1]) + 1 if row else 0 : ends[row]].tobytes().decode()
            head = self.heads[self.head_codes[row]]
            found.append(f"{head}/{tail}" if head else tail)
        return found


class ReferenceBuilder:
    """Collects the members of a reference set, block after block.

    Attributes
    ----------
    metadata
        Values of metadata keys (``…/.zarray`` and similar), not parsed.
    urls
        Distinct URLs in order of first appearance. None means the default target.
    """

    def __init__(self) -> None:
        self.metadata: dict[str, object] = {}
        self.urls: list[str | None] = []
        self._url_codes: dict[str | None, int] = {}
        self._heads: list[str] = []
        self._head_codes: dict[str, int] = {}
        self._tails: list[bytes] = []
        self._codes: list[NDArray[np.int32]] = []
        self._parts: list[References] = []
        self._inline_start = 0

    def rename_urls(self, urls: list[str | None]) -> None:
        """Replace the URLs added so far, for example with their rendered templates. Keep their number and order."""
        self.urls = urls
        self._url_codes = dict(zip(urls, range(len(urls)), strict=True))

    def add(self, members: Mapping[str, object]) -> None:
        """Add some members of the mapping from store keys to values.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref``: a value has none of kerchunk's forms. The message names the key.
        """
        keys: list[str] = list(members)
        values: list[object] = list(members.values())
        if not keys:
            return
        if set(map(type, keys)) != {str}:
            odd = next(key for key in keys if type(key) is not str)
            raise InvalidInputError(
                f"the keys of a reference set must be strings, not {short_repr(odd)}", ErrorKind.INVALID_VIRTUAL_REF
            )
        parts = list(map(_split_key, keys))
        heads, tails = list(map(_head, parts)), list(map(_tail, parts))
        if not METADATA_NAMES.isdisjoint(tails):
            is_metadata = list(map(METADATA_NAMES.__contains__, tails))
            self.metadata.update(zip(compress(keys, is_metadata), compress(values, is_metadata), strict=True))
            is_chunk = list(map(not_, is_metadata))
            keys, values, heads, tails = (list(compress(column, is_chunk)) for column in (keys, values, heads, tails))
        if keys:
            self._add_keys(keys, heads, tails)
            self._parts.append(self._references(keys, values))

    def finish(self) -> KeyedReferences:
        """Return all references added."""
        parts = [_NO_REFERENCES, *self._parts]
        return KeyedReferences(
            heads=self._heads,
            head_codes=np.concatenate([np.empty(0, np.int32), *self._codes]),
            tails=np.frombuffer(b"".join(self._tails), np.uint8),
            references=References(
                kinds=np.concatenate([part.kinds for part in parts]),
                url_codes=np.concatenate([part.url_codes for part in parts]),
                offsets=np.concatenate([part.offsets for part in parts]),
                lengths=np.concatenate([part.lengths for part in parts]),
                inline_data=np.concatenate([part.inline_data for part in parts]),
            ),
        )

    def _add_keys(self, keys: list[str], heads: list[str], tails: list[str]) -> None:
        try:
            text = "\0".join(tails).encode() + b"\0"
        except UnicodeEncodeError:
            raise bad_reference(_first_unencodable(keys), "the key is not valid text") from None
        if text.count(b"\0") != len(tails):
            raise bad_reference(next(key for key in keys if "\0" in key), "the key contains a NUL character")
        self._tails.append(text)
        self._codes.append(_codes(heads, self._head_codes, self._heads))

    def _references(self, keys: list[str], values: list[object]) -> References:
        n = len(values)
        is_list = list(map(is_, map(type, values), repeat(list)))
        if all(is_list):
            return self._ranges(keys, cast("list[list[object]]", values))
        # A dict from Python code may have tuples. All values that are not lists are inline.
        if tuple in set(map(type, values)):
            return self._references(keys, [list(value) if isinstance(value, tuple) else value for value in values])
        listed = np.fromiter(is_list, np.bool_, n)
        is_inline = list(map(not_, is_list))
        lists = cast("list[list[object]]", list(compress(values, is_list)))
        ranges = self._ranges(list(compress(keys, is_list)), lists)
        inline = self._inline(list(compress(keys, is_inline)), list(compress(values, is_inline)))
        return _interleave(listed, ranges, inline)

    def _ranges(self, keys: list[str], values: list[list[object]]) -> References:
        n = len(values)
        kinds, offsets, lengths = np.full(n, RANGE, np.uint8), np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        sizes = np.fromiter(map(len, values), np.int64, n)
        if bool((sizes == 3).all()):
            offsets, lengths = _integers(keys, values, _offset), _integers(keys, values, _length)
        elif bool(np.isin(sizes, (1, 3)).all()):
            ranged = sizes == 3
            some_keys, some = list(compress(keys, ranged)), list(compress(values, ranged))
            kinds[~ranged] = WHOLE_FILE
            offsets[ranged] = _integers(some_keys, some, _offset)
            lengths[ranged] = _integers(some_keys, some, _length)
        else:
            row = int(np.flatnonzero(~np.isin(sizes, (1, 3)))[0])
            raise bad_reference(keys[row], f"expected [url] or [url, offset, length], not {short_repr(values[row])}")
        urls = list(map(_url, values))
        if not set(map(type, urls)) <= {str, type(None)}:
            row = next(row for row, url in enumerate(urls) if not isinstance(url, str | None))
            raise bad_reference(keys[row], f"the URL must be a string, not {short_repr(urls[row])}")
        codes = _codes(cast("list[str | None]", urls), self._url_codes, self.urls)
        return References(
            kinds=kinds, url_codes=codes, offsets=offsets, lengths=lengths, inline_data=np.empty(0, np.uint8)
        )

    def _inline(self, keys: list[str], values: list[object]) -> References:
        payloads = _payloads(keys, values)
        lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
        offsets = np.cumsum(lengths) - lengths + self._inline_start
        self._inline_start += int(lengths.sum())
        return References(
            kinds=np.full(len(payloads), INLINE, np.uint8),
            url_codes=np.full(len(payloads), -1, np.int32),
            offsets=offsets.astype(np.uint64),
            lengths=lengths.astype(np.uint64),
            inline_data=np.frombuffer(b"".join(payloads), np.uint8),
        )


_NO_REFERENCES = References(
    kinds=np.empty(0, np.uint8),
    url_codes=np.empty(0, np.int32),
    offsets=np.empty(0, np.uint64),
    lengths=np.empty(0, np.uint64),
    inline_data=np.empty(0, np.uint8),
)


def _codes[T: str | None](strings: list[T], known: dict[T, int], distinct: list[T]) -> NDArray[np.int32]:
    """Return the code of each string. Add new strings to ``known`` and ``distinct``."""
    new = [string for string in dict.fromkeys(strings) if string not in known]
    known.update(zip(new, range(len(distinct), len(distinct) + len(new)), strict=True))
    distinct += new
    return np.fromiter(map(known.__getitem__, strings), np.int32, len(strings))


def _integers(keys: Sequence[str], values: list[list[object]], item: itemgetter[int]) -> U64:
    """Return a column of byte counts. Some producers write ``100.0`` for 100. Nothing is rounded or wrapped."""
    numbers = list(map(item, values))
    kinds = set(map(type, numbers))
    if kinds - {int}:
        numbers = [int(number) if isinstance(number, float) and number.is_integer() else number for number in numbers]
        for key, number in zip(keys, numbers, strict=True):
            if type(number) is not int:
                raise bad_reference(key, f"offset and length must be integers, not {short_repr(number)}")
    try:
        column = np.fromiter(numbers, np.int64, len(numbers))
    except OverflowError:
        row = next(row for row, number in enumerate(numbers) if not -(2**63) <= number < 2**63)
        raise bad_reference(
            keys[row], f"{short_repr(numbers[row])} is not a number of bytes: offset and length must be below 2**63"
        ) from None
    if len(column) and int(column.min()) < 0:
        row = int(np.argmin(column))
        raise bad_reference(keys[row], f"offset and length must not be negative, found {short_repr(numbers[row])}")
    return column.view(np.uint64)


def _payloads(keys: list[str], values: list[object]) -> list[bytes]:
    """Return the bytes of inline values: base64, text in UTF-8, raw bytes, or a JSON document."""
    if set(map(type, values)) != {str}:
        texts = [_as_text(key, value) for key, value in zip(keys, values, strict=True)]
    else:
        texts = cast("list[str]", values)
    encoded = list(map(_is_base64, texts))
    if not any(encoded):
        return _encode(keys, texts)
    payloads = np.empty(len(texts), object)
    mask = np.fromiter(encoded, np.bool_, len(texts))
    payloads[mask] = _column(_decode_base64(list(compress(keys, mask)), list(compress(texts, mask))))
    payloads[~mask] = _column(_encode(list(compress(keys, ~mask)), list(compress(texts, ~mask))))
    found: list[bytes] = payloads.tolist()
    return found


def _column(values: list[bytes]) -> NDArray[np.object_]:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _as_text(key: str, value: object) -> str:
    """Return the text form of a rare inline value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        # Readers of the set decode raw bytes that begin with the prefix, so this code does too.
        if not raw.startswith(b"base64:"):
            return "base64:" + binascii.b2a_base64(raw).decode()
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise bad_reference(key, "the bytes begin with 'base64:', but no base64 follows") from None
    if isinstance(value, dict):
        try:
            return json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise bad_reference(key, f"the object {short_repr(value)} cannot be written as JSON") from None
    raise bad_reference(
        key, f"the value must be text, a list [url, offset, length] or an object, not {short_repr(value)}"
    )


def _encode(keys: list[str], values: list[str]) -> list[bytes]:
    try:
        return list(map(str.encode, values))
    except UnicodeEncodeError:
        raise bad_reference(keys[_first_bad(values, str.encode)], "the inline text is not valid Unicode") from None


def _decode_base64(keys: list[str], values: list[str]) -> list[bytes]:
    texts = list(map(_without_prefix, values))
    try:
        return list(map(binascii.a2b_base64, texts))
    except ValueError:
        raise bad_reference(keys[_first_bad(texts, binascii.a2b_base64)], "the inline base64 is damaged") from None


def _first_bad(values: list[str], convert: Callable[[str], object]) -> int:
    for row, value in enumerate(values):
        try:
            convert(value)
        except ValueError:
            return row
    return 0


def _first_unencodable(keys: list[str]) -> str:
    return keys[_first_bad(keys, str.encode)]


def _interleave(listed: NDArray[np.bool_], ranges: References, inline: References) -> References:
    """Take the rows of ``ranges`` where ``listed`` is True, and those of ``inline`` elsewhere."""

    def merged[T: np.generic](listed_rows: NDArray[T], inline_rows: NDArray[T]) -> NDArray[T]:
        column = np.empty(len(listed), listed_rows.dtype)
        column[listed] = listed_rows
        column[~listed] = inline_rows
        return column

    return References(
        kinds=merged(ranges.kinds, inline.kinds),
        url_codes=merged(ranges.url_codes, inline.url_codes),
        offsets=merged(ranges.offsets, inline.offsets),
        lengths=merged(ranges.lengths, inline.lengths),
        inline_data=inline.inline_data,
    )
