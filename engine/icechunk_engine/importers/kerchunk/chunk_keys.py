"""Find the array and the chunk index of every store key, as columns. Pure.

A key belongs to the longest array path that is a prefix of it, because array names can look like chunk indices. The
rest of the key is the index. It may have ``.`` or ``/`` between the numbers, whatever the metadata declares.

Keys arrive split at their last ``/``. The head of ``a/0.1.2`` is the path of the array. The head of ``a/0/1/2`` is
``a/0/1``, which is split again, one level at a time, until an array is found. Each level handles distinct heads only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter, methodcaller

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import I64, U8, U32
from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.importers.kerchunk.reference_columns import KeyedReferences
from icechunk_engine.importers.short_repr import short_repr

MAX_DIGITS = 10
_NUL, _DOT, _ZERO, _NINE, _LETTER_C = 0, ord("."), ord("0"), ord("9"), ord("c")
_NOBODY = -1
_MAX_NAMED = 10
_split_key = methodcaller("rpartition", "/")
_LIKE_A_CHUNK = re.compile(r"(?:c[./])?[\s._+\-]*\d|c\Z")
"""The part of a key after the path of an array, if it begins with anything like a number."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The chunk grid that the keys of one array must fit.

    Attributes
    ----------
    num_chunks
        Number of chunks along each axis.
    key_has_c
        True for the default chunk key encoding of Zarr v3: ``a/c/0/1`` or ``a/c.0.1``, and ``a/c`` for a scalar.
    """

    num_chunks: tuple[int, ...]
    key_has_c: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Keys grouped by array.

    Attributes
    ----------
    arrays
        For each array that has chunks: the rows of its keys (``int64 (k,)``) and their chunk indices
        (``uint32 (k, ndim)``).
    num_stray, stray
        Number of keys that name no chunk of any array, and some of these keys.
    """

    arrays: dict[str, tuple[I64, U32]]
    num_stray: int
    stray: tuple[str, ...]


def assign(keyed: KeyedReferences, grids: Mapping[str, Grid], skipped: Iterable[str] = ()) -> Assignment:
    """Find the array and the chunk index of every key.

    Parameters
    ----------
    keyed
        Keys, split at their last ``/``.
    grids
        Grids by array path without the leading ``/``. ``""`` is an array at the root.
    skipped
        Paths of arrays whose keys are ignored.

    Raises
    ------
    InvalidInputError
        ``invalid-chunk-index``: a key below an array looks like a chunk but is not one (``a/00``, ``a/-1``,
        ``a/c/0``), has the wrong number of coordinates, or is outside the grid. The message names the array and key.
    """
    paths = list(grids)
    heads = _resolve_heads(keyed.heads, grids, paths)
    tails = _parse_tails(keyed.tails, len(keyed))
    owners = heads.owners[keyed.head_codes]
    has_c = np.fromiter((grid.key_has_c for grid in grids.values()), np.bool_, len(paths))
    if bool(has_c.any()):
        tails = tails.without_c(np.append(has_c, False)[owners])
    # An array without elements has no chunks, so its keys are ignored.
    empty = np.fromiter((0 in grid.num_chunks for grid in grids.values()), np.bool_, len(paths))
    is_stray = (owners == _NOBODY) | ~tails.valid | np.append(empty, True)[owners]
    arrays = {}
    for code, rows in _groups(np.where(is_stray, _NOBODY, owners)):
        path = paths[code]
        arrays[path] = rows, _indices(path, grids[path], keyed, rows, heads, tails)
    stray = np.flatnonzero(is_stray & ~_lie_in(keyed, tuple(skipped)))
    # Ignoring the keys of an array without elements loses no data.
    _require_no_chunks(keyed, stray, grids, {path for path, grid in grids.items() if 0 in grid.num_chunks})
    return Assignment(arrays, len(stray), tuple(keyed.key(int(row)) for row in stray[:_MAX_NAMED]))


def _require_no_chunks(
    keyed: KeyedReferences, rows: I64, grids: Mapping[str, Grid], without_elements: set[str]
) -> None:
    """Refuse keys below an array that look like chunks but are not."""
    if len(rows) == 0 or not grids:
        return
    above = list(map(_array_above(grids), keyed.heads))
    is_below = np.fromiter((path is not None and path not in without_elements for path in above), np.bool_, len(above))
    below = rows[is_below[keyed.head_codes[rows]]]
    for code, key in zip(keyed.head_codes[below].tolist(), keyed.keys(below), strict=True):
        path = above[code] or ""
        if _LIKE_A_CHUNK.match(key, len(path) + 1 if path else 0):
            raise _misfit(path, grids[path], key)


def _array_above(grids: Mapping[str, Grid]) -> Callable[[str], str | None]:
    """Return a function that finds the longest array path that a head begins with."""
    depth = max(path.count("/") + 1 for path in grids)

    def find(head: str) -> str | None:
        for stop in range(depth, 0, -1):
            top = "/".join(head.split("/", stop)[:stop])
            if top in grids:
                return top
        return "" if "" in grids else None

    return find


def _lie_in(keyed: KeyedReferences, tops: tuple[str, ...]) -> NDArray[np.bool_]:
    """Return a mask of the keys that are below one of the paths."""
    below = tuple(f"{top}/" for top in tops)
    heads = np.fromiter((f"{head}/".startswith(below) for head in keyed.heads), np.bool_, len(keyed.heads))
    return heads[keyed.head_codes]


@dataclass(frozen=True, slots=True, eq=False)
class _Heads:
    """For each distinct head, its array (-1 if none) and the coordinates in it, last one first."""

    owners: I64
    depths: I64
    levels: list[I64]


def _resolve_heads(heads: list[str], grids: Mapping[str, Grid], paths: list[str]) -> _Heads:
    known = {f"{path}/c" if path else "c": code for code, path in enumerate(paths) if grids[path].key_has_c}
    known |= {path: code for code, path in enumerate(paths)}
    owners = np.fromiter(map(known.get, heads, repeat(_NOBODY)), np.int64, len(heads))
    depths = np.zeros(len(heads), np.int64)
    levels: list[I64] = []
    max_depth = max((len(grid.num_chunks) for grid in grids.values()), default=0) - 1
    pending = np.flatnonzero(owners == _NOBODY)
    texts = [heads[position] for position in pending]
    while len(pending) and len(levels) < max_depth:
        parts = list(map(_split_key, texts))
        # ReferenceBuilder refuses keys with a NUL, so it can separate them.
        text = ("\0".join(map(itemgetter(2), parts)) + "\0").encode()
        parsed = _parse_tails(np.frombuffer(text, np.uint8), len(parts))
        numeric = parsed.valid & (parsed.counts == 1)
        pending, texts = pending[numeric], [parts[i][0] for i in np.flatnonzero(numeric)]
        level = np.zeros(len(heads), np.int64)
        level[pending] = parsed.values[parsed.first[numeric]]
        levels.append(level)
        found = np.fromiter(map(known.get, texts, repeat(_NOBODY)), np.int64, len(texts))
        owners[pending] = found
        depths[pending] = len(levels)
        missing = np.flatnonzero(found == _NOBODY)
        pending, texts = pending[missing], [texts[i] for i in missing]
    return _Heads(owners, depths, levels)


@dataclass(frozen=True, slots=True, eq=False)
class _Tails:
    """The numbers in each tail: ``counts[i]`` values from ``values[first[i]]``."""

    valid: NDArray[np.bool_]
    counts: I64
    first: I64
    values: I64
    letter_c: NDArray[np.bool_]

    def without_c(self, wanted: NDArray[np.bool_]) -> _Tails:
        """Drop a leading ``c`` component where ``wanted`` is True. This makes the tail valid."""
        is_c = self.letter_c & wanted
        return _Tails(
            self.valid | is_c, self.counts - is_c, self.first + is_c, self.values, np.zeros(len(is_c), np.bool_)
        )


def _parse_tails(text: U8, n: int) -> _Tails:
    """Parse ``n`` NUL-terminated tails such as ``0.12.3``. Only canonical decimals are valid."""
    if n == 0:
        none = np.empty(0, np.int64)
        return _Tails(np.empty(0, np.bool_), none, none, none, np.empty(0, np.bool_))
    is_separator = (text == _DOT) | (text == _NUL)
    ends = np.flatnonzero(is_separator)
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    lengths = ends - starts
    last = np.flatnonzero(text[ends] == _NUL)  # the last token of each tail
    counts = np.diff(last, prepend=-1)
    first = last - counts + 1

    bad = (lengths == 0) | (lengths > MAX_DIGITS) | ((lengths > 1) & (text[starts] == _ZERO))
    odd = np.flatnonzero(~is_separator & ((text < _ZERO) | (text > _NINE)))
    odd_tokens = np.searchsorted(ends, odd)
    bad[odd_tokens] = True
    letter_c = (text[starts[first]] == _LETTER_C) & (lengths[first] == 1)

    values = np.zeros(len(ends), np.int64)
    for digit in range(min(int(lengths.max()), MAX_DIGITS)):
        tokens = np.flatnonzero(lengths > digit) if digit else slice(None)
        characters = text[np.minimum(starts[tokens] + digit, len(text) - 1)].astype(np.int64)
        values[tokens] = values[tokens] * 10 + (characters - _ZERO)
    num_bad = np.add.reduceat(bad.astype(np.int64), first)
    # A leading `c` is not a number. If it is the only problem of the tail, without_c can make the tail valid.
    return _Tails(num_bad == 0, counts, first, values, letter_c & (num_bad == 1))


def _groups(codes: I64) -> Iterator[tuple[int, I64]]:
    """Yield the rows of each code except ``_NOBODY``."""
    if len(codes) == 0:
        return
    order = np.argsort(codes, kind="stable")
    bounds = np.flatnonzero(np.diff(codes[order])) + 1
    for rows in np.split(order, bounds):
        code = int(codes[rows[0]])
        if code != _NOBODY:
            yield code, rows


def _indices(path: str, grid: Grid, keyed: KeyedReferences, rows: I64, heads: _Heads, tails: _Tails) -> U32:
    """Return the chunk indices of the keys at ``rows``, which all belong to one array."""
    ndim = len(grid.num_chunks)
    head_codes, counts, first = keyed.head_codes[rows], tails.counts[rows], tails.first[rows]
    depths = heads.depths[head_codes]
    indices = np.zeros((len(rows), ndim), np.int64)
    flat = (depths == 0) & (counts == ndim)
    nested = (depths > 0) & (counts == 1) & (depths + 1 == ndim)
    # Zarr v2 names the only chunk of a scalar `0`. kerchunk does so for any array that it inlines as one chunk.
    single = (depths == 0) & (counts == 1) & (tails.values[np.minimum(first, len(tails.values) - 1)] == 0)
    single &= (ndim != 1) & (max(grid.num_chunks, default=1) == 1)
    if ndim:
        indices[flat] = tails.values[first[flat][:, None] + np.arange(ndim)]
        indices[nested, -1] = tails.values[first[nested]]
        for level in range(ndim - 1):
            if bool(nested.any()):
                indices[nested, ndim - 2 - level] = heads.levels[level][head_codes[nested]]
    fits = flat | nested | single
    fits &= (indices < np.array(grid.num_chunks, np.int64)).all(axis=1)
    if not bool(fits.all()):
        raise _misfit(path, grid, keyed.key(int(rows[np.argmin(fits)])))
    return indices.astype(np.uint32)


def _misfit(path: str, grid: Grid, key: str) -> InvalidInputError:
    shape = " × ".join(map(str, grid.num_chunks)) or "one chunk (a scalar)"
    return InvalidInputError(
        f"the key {short_repr(key)} is not a chunk of array {short_repr(f'/{path}')}, whose chunk grid is {shape}. "
        f"Correct the key, or the shape and chunks in the array's metadata",
        ErrorKind.INVALID_CHUNK_INDEX,
    )
