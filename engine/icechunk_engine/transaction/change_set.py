"""The uncommitted edits of a session: the only mutable data of a transaction. No I/O.

New nodes are kept by path, changed and deleted nodes by id, chunk edits by node id. Later edits win. Each edit has a
source, which tells who made it (:mod:`.edit_sources`).

Invariants:

- A node of the base is in one place: still in the base, deleted, or moved. A path has at most one node that was
  created or moved there.
- ``_placed_children`` and ``_num_below`` follow from ``new_nodes`` and ``moved_nodes``. They exist because listing a
  group would otherwise visit all new nodes. An interrupt (Ctrl-C) between two statements can leave them behind;
  :meth:`ChangeSet.rebuild_placement` repairs them.
- Columns of chunk edits never change, only the lists that hold them. So a copy of a change set is cheap, and code that
  got columns earlier can go on reading them without a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from icechunk_engine import paths
from icechunk_engine.columns.chunk_finder import ChunkFinder
from icechunk_engine.columns.chunk_refs import ChunkRef, ChunkRefs, concat
from icechunk_engine.columns.sorted_parts import SortedParts
from icechunk_engine.columns.tables import I64, Integers, broadcast_column
from icechunk_engine.format.nodes import Node
from icechunk_engine.format.zarr_metadata import chunk_encoding
from icechunk_engine.ids import NodeId
from icechunk_engine.keys import ChunkIndex
from icechunk_engine.transaction.edit_sources import EditSources, SourceNumbers

_JOINED_ROWS = 1 << 16
"""Up to this many edits of an array are always joined: the next reader then finds them joined."""


class _Run(NamedTuple):
    """A bulk edit: references and the number of the source of each."""

    refs: ChunkRefs
    sources: SourceNumbers

    def latest(self) -> _Run:
        """Return the run sorted by index, with the last edit of each chunk."""
        rows = self.refs.latest_rows()
        return self if rows is None else _Run(self.refs.take(rows), _take_sources(self.sources, rows))


class Overlap(NamedTuple):
    """Edits of ``k`` chunks out of those that somebody asked for.

    Attributes
    ----------
    positions
        ``int64 (k,)``: which of the chunks.
    refs, sources
        The edit of each of them, and the number of its source.
    """

    positions: I64
    refs: ChunkRefs
    sources: SourceNumbers


class ChunkEdits:
    """Chunk edits of one array: sets and deletions. Later edits win.

    Single edits go into a dictionary; bulk edits stay the columns that they came as, one *run* each. Lookups need
    sorted runs. Sorting and merging everything at each lookup would make alternating bulk edits and lookups quadratic.
    So runs are merged as in a log-structured merge tree: only if the younger run is not much smaller than the older.

    Attributes
    ----------
    ndim
        Rank of the array.
    lineage, revision
        A token that copies share, and a number that grows with each edit. If both are equal, the edits are equal.
    """

    __slots__ = ("_finders", "_open", "_runs", "lineage", "ndim", "revision")

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.lineage = object()
        self.revision = 0
        self._runs: list[_Run] = []
        self._finders: list[ChunkFinder] = []
        self._open: dict[ChunkIndex, tuple[ChunkRef, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._open or self._runs)

    def __len__(self) -> int:
        """Return the number of edits. Edits of one chunk count each time."""
        return len(self._open) + sum(len(run.refs) for run in self._runs)

    def copy(self) -> ChunkEdits:
        """Return an independent copy. The columns, which never change, are shared."""
        other = ChunkEdits(self.ndim)
        other._runs, other._finders, other._open = self._runs.copy(), self._finders.copy(), self._open.copy()
        other.lineage, other.revision = self.lineage, self.revision
        return other

    def set(self, index: ChunkIndex, ref: ChunkRef, source: int = 0) -> None:
        """Add one edit. A reference of kind DELETED removes the chunk."""
        self._open[index] = ref, source
        self.revision += 1

    def set_many(self, refs: ChunkRefs, sources: int | SourceNumbers = 0) -> None:
        """Add a bulk edit. If several rows have one index, the last one wins.

        Parameters
        ----------
        sources
            Number of the source of each row, or one for all.
        """
        if len(refs):
            self._seal()
            self._runs.append(_Run(refs, _source_column(sources, len(refs))))
            self.revision += 1

    def find(self, index: ChunkIndex) -> ChunkRef | None:
        """Return the latest edit of a chunk, which may be a deletion; None if the chunk was not edited."""
        single = self._open.get(index)
        if single is not None:
            return single[0]
        if not self._runs:
            return None
        self._index_runs()
        for run, finder in zip(reversed(self._runs), reversed(self._finders), strict=True):
            row = finder.find(index)
            if row >= 0:
                return run.refs.row(row)
        return None

    def collapse(self) -> ChunkRefs:
        """Return all edits as columns sorted by index: one row a chunk, deletions included."""
        return self._collapsed().refs

    def collapse_with_sources(self) -> tuple[ChunkRefs, SourceNumbers]:
        """Return :meth:`collapse` and the number of the source of each row, ``int32 (n,)``."""
        run = self._collapsed()
        return run.refs, run.sources

    def sorted_parts(self) -> SortedParts:
        """Return all edits, deletions included. Many edits are not joined, which would double their memory."""
        if len(self) <= _JOINED_ROWS:
            return SortedParts(self.ndim, [self.collapse()])
        self._seal()
        return SortedParts(self.ndim, [run.refs for run in self._runs])

    def overlap(self, indices: Integers) -> Overlap:
        """Return the latest edits of those of the given chunks that have been edited.

        Parameters
        ----------
        indices
            ``(m, ndim)``, without duplicates.
        """
        self._seal()
        self._index_runs()
        missing = np.arange(len(indices))
        found: list[tuple[I64, _Run]] = []
        for run, finder in zip(reversed(self._runs), reversed(self._finders), strict=True):
            rows = finder.find_many(indices[missing])
            hits = rows >= 0
            if bool(hits.any()):
                found.append((missing[hits], _Run(run.refs.take(rows[hits]), _take_sources(run.sources, rows[hits]))))
                missing = missing[~hits]
        if not found:
            return Overlap(missing[:0], ChunkRefs.empty(self.ndim), _source_column(0, 0))
        joined = _join([run for _, run in found])
        return Overlap(np.concatenate([positions for positions, _ in found]), joined.refs, joined.sources)

    def _collapsed(self) -> _Run:
        self._seal()
        if not self._runs:
            return _Run(ChunkRefs.empty(self.ndim), _source_column(0, 0))
        if len(self._runs) > 1 or len(self._finders) < 1:
            merged = _join(self._runs).latest()
            self._runs, self._finders = [merged], [ChunkFinder(merged.refs)]
        return self._runs[0]

    def _seal(self) -> None:
        """Turn the single edits into a run, so that a later bulk edit comes after them."""
        if self._open:
            refs = ChunkRefs.of(self.ndim, [(index, ref) for index, (ref, _) in self._open.items()])
            numbers = np.fromiter([source for _, source in self._open.values()], np.int32, len(refs))
            self._runs.append(_Run(refs, _uniform(numbers)))
            self._open = {}

    def _index_runs(self) -> None:
        """Give every run a finder. Merge runs so that each is less than half as long as the one before.

        The runs that came since the last call are first merged into one.
        There are then few runs to search, and each edit takes part in few merges: both grow with the logarithm of the
        number of edits.
        """
        if len(self._finders) == len(self._runs):
            return
        runs, finders = self._runs[: len(self._finders)], self._finders.copy()
        merged = _join(self._runs[len(self._finders) :]).latest()
        while runs and len(runs[-1].refs) <= 2 * len(merged.refs):
            merged = _join([runs.pop(), merged]).latest()
            finders.pop()
        self._runs, self._finders = [*runs, merged], [*finders, ChunkFinder(merged.refs)]

    def __reduce__(self) -> tuple[object, ...]:
        refs, sources = self.collapse_with_sources()
        is_uniform = len(sources) > 0 and sources.strides[0] == 0
        return _unpickle_edits, (self.ndim, refs.compact(), int(sources[0]) if is_uniform else sources)


def _unpickle_edits(ndim: int, refs: ChunkRefs, sources: int | SourceNumbers) -> ChunkEdits:
    edits = ChunkEdits(ndim)
    edits.set_many(refs, sources)
    return edits


def _source_column(sources: int | SourceNumbers, n: int) -> SourceNumbers:
    return broadcast_column(sources, n, np.int32) if isinstance(sources, int) else sources


def _uniform(sources: SourceNumbers) -> SourceNumbers:
    """Return a column that takes no memory if all numbers are equal."""
    if len(sources) and sources.strides[0] and bool((sources == sources[0]).all()):
        return broadcast_column(sources[0], len(sources), np.int32)
    return sources


def _take_sources(sources: SourceNumbers, rows: I64 | slice) -> SourceNumbers:
    if sources.strides[0] == 0:
        n = len(range(*rows.indices(len(sources)))) if isinstance(rows, slice) else len(rows)
        return broadcast_column(sources[0], n, np.int32)
    return sources[rows]


def _join(runs: Sequence[_Run]) -> _Run:
    if len(runs) == 1:
        return runs[0]
    firsts = {int(run.sources[0]) for run in runs if len(run.sources)}
    is_uniform = len(firsts) == 1 and all(run.sources.strides[0] == 0 for run in runs if len(run.sources))
    sources = (
        broadcast_column(firsts.pop(), sum(len(run.refs) for run in runs), np.int32)
        if is_uniform
        else np.concatenate([run.sources for run in runs])
    )
    return _Run(concat([run.refs for run in runs]), sources)


@dataclass(frozen=True, slots=True)
class MoveStep:
    """One move as the user requested it: a node, with everything below it, from one path to another."""

    node_id: NodeId
    source: str
    target: str


@dataclass(slots=True)
class ChangeSet:
    """Edits relative to one base snapshot. They are all moves, or contain none: a session is of one kind.

    Attributes
    ----------
    new_nodes
        Nodes created here, by path.
    updated_nodes
        Nodes of the base with a changed metadata document, in their new form, by id.
    deleted_nodes
        Nodes of the base that were deleted, as they are in the base, by id.
    chunks
        Chunk edits of new arrays and arrays of the base, by id.
    moves
        Moves in the order in which they were made, to replay them on another base.
    moved_nodes
        Nodes of the base that have another path now, in their new form, by new path.
    moved_from
        Paths of moved nodes in the base, by id.
    withdrawn_nodes
        Nodes that were created here and deleted again, by id. A receiver of the earlier edits must delete them, too.
    twins
        For the id of a node that a fork created at the path of an equal new node: the id of that node. It gets the
        later edits of its twin.
    sources
        The sources of all edits.
    node_sources
        Number of the source of each node's last edit, by id. Chunk edits have their own.
    shape_sources, encoding_sources
        Numbers of the sources of the last edits that changed an array's shape and the encoding of its chunks, by id.
    """

    new_nodes: dict[str, Node] = field(default_factory=dict)
    updated_nodes: dict[NodeId, Node] = field(default_factory=dict)
    deleted_nodes: dict[NodeId, Node] = field(default_factory=dict)
    chunks: dict[NodeId, ChunkEdits] = field(default_factory=dict)
    moves: list[MoveStep] = field(default_factory=list)
    moved_nodes: dict[str, Node] = field(default_factory=dict)
    moved_from: dict[NodeId, str] = field(default_factory=dict)
    withdrawn_nodes: dict[NodeId, Node] = field(default_factory=dict)
    twins: dict[NodeId, NodeId] = field(default_factory=dict)
    sources: EditSources = field(default_factory=EditSources)
    node_sources: dict[NodeId, int] = field(default_factory=dict)
    shape_sources: dict[NodeId, int] = field(default_factory=dict)
    encoding_sources: dict[NodeId, int] = field(default_factory=dict)
    _placed_children: dict[str, dict[str, None]] = field(default_factory=dict)
    _num_below: dict[str, int] = field(
        default_factory=dict
    )  # how many nodes were placed below each path, at any depth

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle_changes, ({name: value for name in _TRAVELLING if (value := getattr(self, name))},)

    @property
    def is_empty(self) -> bool:
        """True if a commit would change nothing."""
        nodes = self.new_nodes or self.updated_nodes or self.deleted_nodes or self.moved_nodes
        return not (nodes or any(self.chunks.values()))

    def copy(self) -> ChangeSet:
        """Return an independent copy."""
        return ChangeSet(
            self.new_nodes.copy(),
            self.updated_nodes.copy(),
            self.deleted_nodes.copy(),
            {node_id: edits.copy() for node_id, edits in self.chunks.items()},
            self.moves.copy(),
            self.moved_nodes.copy(),
            self.moved_from.copy(),
            self.withdrawn_nodes.copy(),
            self.twins.copy(),
            self.sources.copy(),
            self.node_sources.copy(),
            self.shape_sources.copy(),
            self.encoding_sources.copy(),
            {path: names.copy() for path, names in self._placed_children.items()},
            self._num_below.copy(),
        )

    def placed(self, path: str) -> Node | None:
        """Return the node that was created at a path or moved there; None if there was none."""
        return self.new_nodes.get(path) or self.moved_nodes.get(path)

    def left_its_path(self, node_id: NodeId) -> bool:
        """Return True if a node of the base was deleted or moved."""
        return node_id in self.deleted_nodes or node_id in self.moved_from

    def add_node(self, node: Node, source: int = 0) -> None:
        """Add a node at a free path, or replace a node that was created here."""
        self.new_nodes[node.path] = node
        self.node_sources[node.node_id] = source
        self._place(node.path)

    def update_node(self, node: Node, source: int = 0, *, before: Node | None = None) -> None:
        """Change the metadata of a node of the base, or of one that was created here.

        Parameters
        ----------
        before
            The node before the edit, to note what the edit means for chunks.
        """
        self.node_sources[node.node_id] = source
        if before is not None and node.shape is not None:
            if before.shape != node.shape:
                self.shape_sources[node.node_id] = source
            if chunk_encoding(before.user_data) != chunk_encoding(node.user_data):
                self.encoding_sources[node.node_id] = source
        if node.path in self.new_nodes:
            self.new_nodes[node.path] = node
        else:
            self.updated_nodes[node.node_id] = node

    def delete_node(self, node: Node, source: int = 0) -> None:
        """Delete one node, but not its descendants, and all edits of its chunks."""
        self.chunks.pop(node.node_id, None)
        self.node_sources[node.node_id] = source
        if self.new_nodes.pop(node.path, None) is not None:
            self._unplace(node.path)
            self.withdrawn_nodes[node.node_id] = node
            return
        self.updated_nodes.pop(node.node_id, None)
        self.deleted_nodes[node.node_id] = node

    def move_nodes(self, step: MoveStep, nodes: Sequence[Node]) -> None:
        """Record a move that was checked before.

        Parameters
        ----------
        nodes
            All nodes at and below the source of the move, with all edits.
        """
        # First all old places, then all new ones: a node may move to the old place of another.
        for node in nodes:
            if self.moved_nodes.pop(node.path, None) is not None:
                self._unplace(node.path)
        for node in nodes:
            origin = self.moved_from.pop(node.node_id, node.path)
            path = step.target + node.path[len(step.source) :]
            if path != origin:  # back at its place in the base, a node counts as not moved
                self.moved_from[node.node_id] = origin
                self.moved_nodes[path] = replace(node, path=path)
                self._place(path)
        self.moves.append(step)

    def rebuild_placement(self) -> None:
        """Compute again which nodes are where, after an interrupt in the middle of an edit."""
        self._placed_children.clear()
        self._num_below.clear()
        for path in (*self.new_nodes, *self.moved_nodes):
            self._place(path)

    def _place(self, path: str) -> None:
        above = paths.parent(path)
        if above is None:
            return
        siblings = self._placed_children.setdefault(above, {})
        if path not in siblings:
            siblings[path] = None
            for ancestor in paths.ancestors(path):
                self._num_below[ancestor] = self._num_below.get(ancestor, 0) + 1

    def _unplace(self, path: str) -> None:
        above = paths.parent(path)
        if above is None:
            return
        del self._placed_children[above][path]
        for ancestor in paths.ancestors(path):
            self._num_below[ancestor] -= 1

    def placed_children(self, path: str) -> list[Node]:
        """Return the nodes that were created or moved directly below ``path``."""
        return self._all_placed(self._placed_children.get(path, ()))

    def placed_parents(self) -> list[str]:
        """Return the parent paths of all nodes that were created or moved, whether a node is there or not."""
        return [path for path, names in self._placed_children.items() if names]

    def placed_below(self, path: str) -> list[Node]:
        """Return the nodes that were created at or below ``path``, or moved there."""
        if not self._num_below.get(path):  # the usual case; it saves a scan of all new nodes
            return self._all_placed([path])
        return self._all_placed(
            place for places in (self.new_nodes, self.moved_nodes) for place in places if paths.is_within(place, path)
        )

    def _all_placed(self, places: Iterable[str]) -> list[Node]:
        return [node for place in places if (node := self.placed(place)) is not None]

    def revision_of(self, node: Node) -> int:
        """Return a number that grows with each edit of an array's chunks."""
        edits = self.chunks.get(node.node_id)
        return 0 if edits is None else edits.revision

    def edits_of(self, node: Node) -> ChunkEdits:
        """Return the chunk edits of an array; start them if there are none."""
        edits = self.chunks.get(node.node_id)
        if edits is None:
            assert node.shape is not None
            edits = self.chunks[node.node_id] = ChunkEdits(node.shape.ndim)
        return edits


_TRAVELLING = tuple(name for name in ChangeSet.__slots__ if not name.startswith("_"))
"""What a pickle holds. The rest follows from it."""


def _unpickle_changes(filled: dict[str, Any]) -> ChangeSet:
    changes = ChangeSet(**filled)
    changes.rebuild_placement()
    return changes
