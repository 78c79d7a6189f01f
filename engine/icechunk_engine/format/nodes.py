"""The nodes of a hierarchy as columns.

A snapshot may hold tens of thousands of nodes, and a session looks at a few. So nodes stay columns,
:meth:`NodeTable.node` makes a :class:`Node` on demand, and a commit that changes few nodes copies the columns of the
others.

Invariant: *the table is sorted by the raw bytes of the paths.* Two things rely on it:

- Looking up a path is a binary search, here and in the official library. In an unsorted file, nodes would be missing.
- All descendants of ``/a`` follow each other, because exactly they begin with ``/a/``. In bytewise order they are the
  rows from ``/a/`` up to ``/a0``, since ``0`` is the byte after ``/``. The node ``/a`` itself need not be next to
  them: ``/a-b`` sorts between ``/a`` and ``/a/c``.

Sorting by path components or by locale would break both. Tables of files are sorted when they are read
(:meth:`NodeTable.sorted`), since nobody guarantees their order. A table never changes, so lookups can be cached.

Files of other libraries may give two nodes one path. A lookup then returns the first one. Two nodes with one id can be
read, too, but not edited, because edits are kept by id.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import paths
from icechunk_engine.columns.tables import (
    I64,
    U8,
    U32,
    U64,
    BytesTable,
    Integers,
    Mask,
    concat_tables,
    factorize,
    is_sorted,
    row_keys,
    starts_of,
    take_ragged,
)
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.flatbuf.distinct import sorted_distinct
from icechunk_engine.format.metadata import encode_text
from icechunk_engine.format.zarr_metadata import ArrayShape
from icechunk_engine.ids import ManifestId, NodeId

UNNAMED = -1
"""In ``name_codes``: a dimension without a name."""

_MANY = 100
"""After this many searches, a dictionary of all paths is worth its cost."""


@dataclass(frozen=True, slots=True)
class ManifestRef:
    """A manifest of an array, and the box of chunks that it covers.

    Attributes
    ----------
    manifest_id
        The manifest.
    extents
        One half-open ``(start, stop)`` for each axis, in chunks. Empty for an array of rank 0.
    """

    manifest_id: ManifestId
    extents: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One group or array.

    Attributes
    ----------
    node_id
        The id, which stays the same when the node moves.
    path
        The absolute path in canonical form.
    user_data
        The ``zarr.json`` document, verbatim.
    shape
        The shape of an array; None for a group.
    manifests
        The manifests that hold the array's chunk references. Their extents do not overlap.
    """

    node_id: NodeId
    path: str
    user_data: bytes
    shape: ArrayShape | None
    manifests: tuple[ManifestRef, ...] = ()

    @property
    def is_array(self) -> bool:
        """False for a group."""
        return self.shape is not None


class _PathIndex:
    """Find the row of a path: by binary search at first, with a dictionary after many searches."""

    __slots__ = ("_n_searches", "_paths", "_rows")

    def __init__(self, table: BytesTable) -> None:
        self._paths = table
        self._n_searches = 0
        self._rows: dict[bytes, int] | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> bytes:
        return self._paths.raw(row)

    def find(self, path: bytes) -> int:
        if self._rows is not None:
            return self._rows.get(path, -1)
        self._n_searches += 1
        if self._n_searches > _MANY:
            # Filled backwards: the first of equal paths must win, as in the binary search.
            rows = range(len(self) - 1, -1, -1)
            self._rows = dict(zip(reversed(self._paths.raws()), rows, strict=True))
            return self._rows.get(path, -1)
        row = bisect_left(self, path)
        return row if row < len(self) and self[row] == path else -1


@dataclass(frozen=True, eq=False, kw_only=True)
class NodeTable:
    """Columns of ``n`` nodes, sorted by the raw bytes of their paths.

    Ragged columns hold the data of arrays: node ``i`` has the entries ``x_starts[i]:x_starts[i + 1]``, a group none.

    Attributes
    ----------
    node_ids
        ``uint8 (n, 8)``.
    paths, user_data
        One string for each node.
    is_array
        ``bool (n,)``.
    dim_starts
        ``int64 (n + 1,)``, for ``lengths`` ``uint64`` (elements) and ``num_chunks`` ``uint32``: one entry for each
        dimension.
    has_names
        ``bool (n,)``: True if the array's metadata names its dimensions.
    name_starts
        ``int64 (n + 1,)``, for ``name_codes`` ``int32``: row of ``names``, or UNNAMED.
    names
        Distinct dimension names.
    manifest_starts
        ``int64 (n + 1,)``, for ``manifest_ids`` ``uint8 (m, 12)`` and ``extent_starts``.
    extent_starts
        ``int64 (m + 1,)``, for ``extents`` ``uint32 (k, 2)``: half-open ranges of chunks, one for each dimension.
    """

    node_ids: U8
    paths: BytesTable
    user_data: BytesTable
    is_array: Mask
    dim_starts: I64
    lengths: U64
    num_chunks: U32
    has_names: Mask
    name_starts: I64
    name_codes: NDArray[np.int32]
    names: BytesTable
    manifest_starts: I64
    manifest_ids: U8
    extent_starts: I64
    extents: U32

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> NodeTable:
        """Make a table of nodes, given in any order.

        Raises
        ------
        InvalidInputError
            ``bad-metadata``: a path or dimension name is not valid Unicode text.
        """
        listed = list(nodes)
        shapes = [node.shape for node in listed]
        arrays = [shape for shape in shapes if shape is not None]
        dim_names = [shape.dimension_names if shape is not None else None for shape in shapes]
        names, name_codes = _encode_names([name for some in dim_names if some is not None for name in some])
        refs = [ref for node in listed for ref in node.manifests]
        ids = b"".join([node.node_id.raw for node in listed])
        manifest_ids = b"".join([ref.manifest_id.raw for ref in refs])
        return cls(
            node_ids=np.frombuffer(ids, np.uint8).reshape(-1, NodeId.SIZE),
            paths=BytesTable.of([encode_text(node.path, "a node path") for node in listed]),
            user_data=BytesTable.of([node.user_data for node in listed]),
            is_array=np.array([shape is not None for shape in shapes], np.bool_),
            dim_starts=_starts([shape.ndim if shape is not None else 0 for shape in shapes]),
            lengths=np.array([length for shape in arrays for length in shape.lengths], np.uint64),
            num_chunks=np.array([count for shape in arrays for count in shape.num_chunks], np.uint32),
            has_names=np.array([some is not None for some in dim_names], np.bool_),
            name_starts=_starts([len(some) if some is not None else 0 for some in dim_names]),
            name_codes=name_codes,
            names=names,
            manifest_starts=_starts([len(node.manifests) for node in listed]),
            manifest_ids=np.frombuffer(manifest_ids, np.uint8).reshape(-1, ManifestId.SIZE),
            extent_starts=_starts([len(ref.extents) for ref in refs]),
            extents=np.array([extent for ref in refs for extent in ref.extents], np.uint32).reshape(-1, 2),
        ).sorted()

    def __reduce__(self) -> tuple[object, ...]:  # without the cached lookups
        return _unpickle_nodes, (self._columns(),)

    def __len__(self) -> int:
        return len(self.is_array)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the columns hold."""
        return sum(column.nbytes for column in self._columns().values())

    def _columns(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    # --- looking up ------------------------------------------------------------------------------------------------

    @cached_property
    def _path_index(self) -> _PathIndex:
        return _PathIndex(self.paths)

    @cached_property
    def _rows_by_id(self) -> dict[int, int]:
        keys = np.ascontiguousarray(self.node_ids).view(">u8").reshape(-1).tolist()
        rows = dict(zip(keys, range(len(self)), strict=True))
        if len(rows) != len(self):
            raise FormatError(
                "the snapshot is damaged: two nodes have the same id. Both can be read, but not edited, because edits "
                "of one would change the other. To write, reset the branch to an earlier snapshot",
                ErrorKind.DESERIALIZATION,
            )
        return rows

    @cached_property
    def _depths(self) -> I64:
        """Number of components of each path, ``int64 (n,)``; 0 for the root."""
        slashes = starts_of(self.paths.data == ord("/"))
        depths: I64 = np.diff(slashes[self.paths.starts])
        depths[self.paths.lengths == 1] = 0
        return depths

    def find(self, path: str) -> int:
        """Return the row of the node at a path, -1 if the path has no node."""
        return self._path_index.find(path.encode(errors="surrogatepass"))

    def row_of_id(self, node_id: NodeId) -> int:
        """Return the row of a node, -1 if it is not here. Raises FormatError if two nodes have one id."""
        return self._rows_by_id.get(int.from_bytes(node_id.raw), -1)

    def path(self, row: int) -> str:
        """Return the path of a node."""
        return self.paths.text(row)

    def node_id(self, row: int) -> NodeId:
        """Return the id of a node."""
        return NodeId(self.node_ids[row].tobytes())

    def node(self, row: int) -> Node:
        """Return one node as an object. Raises FormatError if the extents of its manifests have another rank."""
        user_data = self.user_data.raw(row)
        node_id = self.node_id(row)
        path = self.paths.text(row)
        if not self.is_array[row]:
            return Node(node_id, path, user_data, None)
        dims = slice(self.dim_starts[row], self.dim_starts[row + 1])
        shape = ArrayShape(
            lengths=tuple(self.lengths[dims].tolist()),
            num_chunks=tuple(self.num_chunks[dims].tolist()),
            dimension_names=self._dimension_names(row) if self.has_names[row] else None,
        )
        first, stop = int(self.manifest_starts[row]), int(self.manifest_starts[row + 1])
        refs = tuple([self._manifest_ref(i, shape.ndim, path) for i in range(first, stop)])
        return Node(node_id, path, user_data, shape, refs)

    def _dimension_names(self, row: int) -> tuple[str | None, ...]:
        codes = self.name_codes[self.name_starts[row] : self.name_starts[row + 1]].tolist()
        return tuple([None if code == UNNAMED else self.names.text(code) for code in codes])

    def _manifest_ref(self, i: int, ndim: int, path: str) -> ManifestRef:
        extents = self.extents[self.extent_starts[i] : self.extent_starts[i + 1]].tolist()
        manifest_id = ManifestId(self.manifest_ids[i].tobytes())
        if len(extents) != ndim:
            raise FormatError(
                f"the snapshot is damaged: manifest {manifest_id} of array {path} has {len(extents)} extents, but the "
                f"array has {ndim} dimensions. Delete and rewrite the array, or go back to an earlier snapshot",
                ErrorKind.INCONSISTENT_MANIFESTS,
            )
        return ManifestRef(manifest_id, tuple([(start, stop) for start, stop in extents]))

    def subtree(self, path: str) -> Sequence[int]:
        """Return the rows of the node at a path and of everything below it, in the order of the table."""
        if path == paths.ROOT:
            return range(len(self))
        below = self._below(path)
        row = self.find(path)
        return below if row < 0 else [row, *below]

    def children(self, path: str) -> Sequence[int]:
        """Return the rows of the nodes directly below a path, in the order of the table."""
        below = self._below(path)
        depth = path.count("/") + 1 if path != paths.ROOT else 1
        rows: list[int] = (np.flatnonzero(self._depths[below.start : below.stop] == depth) + below.start).tolist()
        return rows

    def _below(self, path: str) -> range:
        """Return the rows of all nodes below a path. They follow each other: see the module."""
        prefix = path.encode(errors="surrogatepass") if path != paths.ROOT else b""
        start = bisect_left(self._path_index, prefix + b"/")
        stop = bisect_left(self._path_index, prefix + b"0", start)  # the byte after "/"
        return range(start, stop)

    @cached_property
    def orphans(self) -> tuple[str, ...]:
        """Paths of nodes whose parent does not exist; the format allows that. The root always counts as existing."""
        raws = self.paths.raws()
        present = {b"", b"/", *raws}
        return tuple([raw.decode() for raw in raws if raw.rpartition(b"/")[0] not in present])

    def used_manifest_ids(self) -> U8:
        """Return the distinct ids of all manifests that nodes refer to, sorted: ``uint8 (k, 12)``."""
        return sorted_distinct(row_keys(self.manifest_ids)).view(np.uint8).reshape(-1, ManifestId.SIZE)

    # --- changing --------------------------------------------------------------------------------------------------

    def take(self, rows: Integers) -> NodeTable:
        """Return the nodes at ``rows``. Their order must be that of the paths."""
        if len(rows) == len(self) and bool((rows == np.arange(len(self))).all()):
            return self
        lengths, dim_starts = take_ragged(self.lengths, self.dim_starts, rows)
        num_chunks, _ = take_ragged(self.num_chunks, self.dim_starts, rows)
        name_codes, name_starts = take_ragged(self.name_codes, self.name_starts, rows)
        refs, manifest_starts = take_ragged(np.arange(len(self.manifest_ids)), self.manifest_starts, rows)
        extents, extent_starts = take_ragged(self.extents, self.extent_starts, refs)
        return NodeTable(
            node_ids=self.node_ids[rows],
            paths=self.paths.take(rows),
            user_data=self.user_data.take(rows),
            is_array=self.is_array[rows],
            dim_starts=dim_starts,
            lengths=lengths,
            num_chunks=num_chunks,
            has_names=self.has_names[rows],
            name_starts=name_starts,
            name_codes=name_codes,
            names=self.names,
            manifest_starts=manifest_starts,
            manifest_ids=self.manifest_ids[refs],
            extent_starts=extent_starts,
            extents=extents,
        )

    def replace(self, drop_rows: Sequence[int] | Integers, nodes: Sequence[Node]) -> NodeTable:
        """Drop some rows and add other nodes. Other rows stay, even if several have one path."""
        dropped = np.zeros(len(self), np.bool_)
        dropped[np.asarray(drop_rows, np.int64)] = True
        kept = np.flatnonzero(~dropped)
        if not nodes:
            return self.take(kept)
        added = NodeTable.of(nodes)
        # A search in the table makes an object for each comparison. For many nodes, make all objects once.
        index = self._path_index if len(added) < _MANY else self.paths.raws()
        places = np.array([bisect_left(index, path) for path in added.paths.raws()], np.int64)
        # Places count all rows of this table. Subtract the dropped rows before each place.
        places -= np.searchsorted(np.flatnonzero(dropped), places)
        rows = np.insert(kept, places, len(self) + np.arange(len(added)))
        return _concat(self, added).take(rows)

    def sorted(self) -> NodeTable:
        """Return the same nodes in the order of their paths."""
        if is_sorted(self.paths):
            return self
        raws = self.paths.raws()
        return self.take(np.array(sorted(range(len(self)), key=raws.__getitem__), np.int64))


def _unpickle_nodes(columns: dict[str, Any]) -> NodeTable:
    return NodeTable(**columns)


def _starts(lengths: Sequence[int]) -> I64:
    return starts_of(np.array(lengths, np.int64))


def _encode_names(names: Sequence[str | None]) -> tuple[BytesTable, NDArray[np.int32]]:
    """Return the distinct names, and the code of each name. Empty names count as unnamed."""
    named = [name for name in names if name]
    for name in dict.fromkeys(named):
        encode_text(name, "a dimension name")
    codes = np.full(len(names), UNNAMED, np.int32)
    table, codes[np.array([bool(name) for name in names], np.bool_)] = factorize(named)
    return table, codes


def without_empty(table: BytesTable, codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """Replace the codes of empty names by UNNAMED."""
    if not bool((table.lengths == 0).any()):
        return codes
    return np.where((codes >= 0) & (table.lengths[codes] > 0), codes, np.int32(UNNAMED))


def _concat(first: NodeTable, second: NodeTable) -> NodeTable:
    """Join two tables. The result is not sorted."""

    def starts(name: str) -> I64:
        before, after = getattr(first, name), getattr(second, name)
        return np.concatenate([before, after[1:] + before[-1]])

    def items(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(first, name), getattr(second, name)])

    # Dimension names repeat. Names of the second table that the first one knows get its code, or the table would grow
    # with every commit.
    known = {name: code for code, name in enumerate(first.names.raws())}
    added = [name for name in second.names.raws() if name not in known]
    known |= {name: len(known) + i for i, name in enumerate(added)}
    recode = np.array([*(known[name] for name in second.names.raws()), UNNAMED], np.int32)  # [-1] is UNNAMED
    return NodeTable(
        node_ids=items("node_ids"),
        paths=concat_tables([first.paths, second.paths]),
        user_data=concat_tables([first.user_data, second.user_data]),
        is_array=items("is_array"),
        dim_starts=starts("dim_starts"),
        lengths=items("lengths"),
        num_chunks=items("num_chunks"),
        has_names=items("has_names"),
        name_starts=starts("name_starts"),
        name_codes=np.concatenate([first.name_codes, recode[second.name_codes]]),
        names=concat_tables([first.names, BytesTable.of(added)]),
        manifest_starts=starts("manifest_starts"),
        manifest_ids=items("manifest_ids"),
        extent_starts=starts("extent_starts"),
        extents=items("extents"),
    )
