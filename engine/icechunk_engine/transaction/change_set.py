"""A session's uncommitted edits: the one mutable heart of the engine.

Node edits are kept by path (new nodes) or node id (changed and deleted ones), chunk edits by node id as columns plus
an open buffer of single writes. Later edits win. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from icechunk_engine import paths
from icechunk_engine.columns.chunk_finder import ChunkFinder
from icechunk_engine.columns.chunk_refs import ChunkRef, ChunkRefs, concat
from icechunk_engine.format.nodes import Node
from icechunk_engine.ids import NodeId
from icechunk_engine.keys import ChunkIndex


class ChunkEdits:
    """Chunk edits of one array: sets and deletes, later ones win.

    Single edits go into a dictionary, bulk edits stay the columns they came as. Lookups need sorted runs; runs are
    merged when the younger one is no longer much smaller (as in a log-structured merge tree), so that alternating bulk
    edits and lookups stay cheap.
    """

    __slots__ = ("_finders", "_open", "_runs", "lineage", "ndim", "revision")

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.lineage = object()  # shared by copies: same lineage and revision means same edits
        self.revision = 0
        self._runs: list[ChunkRefs] = []
        self._finders: list[ChunkFinder] = []
        self._open: dict[ChunkIndex, ChunkRef] = {}

    def __bool__(self) -> bool:
        return bool(self._open or self._runs)

    def __len__(self) -> int:
        """Number of edits, duplicates counted as often as they were made."""
        return len(self._open) + sum(map(len, self._runs))

    def copy(self) -> ChunkEdits:
        """An independent copy; the columns are shared, they never change."""
        other = ChunkEdits(self.ndim)
        other._runs, other._finders, other._open = self._runs.copy(), self._finders.copy(), self._open.copy()
        other.lineage, other.revision = self.lineage, self.revision
        return other

    def set(self, index: ChunkIndex, ref: ChunkRef) -> None:
        """One edit; a ref of kind DELETED removes the chunk."""
        self._open[index] = ref
        self.revision += 1

    def set_many(self, refs: ChunkRefs) -> None:
        """A bulk edit; of several rows with one index the last one wins."""
        if len(refs):
            self._seal()
            self._runs.append(refs)
            self.revision += 1

    def find(self, index: ChunkIndex) -> ChunkRef | None:
        """The latest edit of a chunk (maybe a deletion), None if it was not edited."""
        ref = self._open.get(index)
        if ref is not None or not self._runs:
            return ref
        self._settle()
        for refs, finder in zip(reversed(self._runs), reversed(self._finders), strict=True):
            row = finder.find(index)
            if row >= 0:
                return refs.row(row)
        return None

    def collapse(self) -> ChunkRefs:
        """All edits as columns sorted by index, one row a chunk, deletions included."""
        self._seal()
        if not self._runs:
            return ChunkRefs.empty(self.ndim)
        if len(self._runs) > 1 or len(self._finders) < 1:
            merged = concat(self._runs).latest()
            self._runs, self._finders = [merged], [ChunkFinder(merged)]
        return self._runs[0]

    def _seal(self) -> None:
        if self._open:
            self._runs.append(ChunkRefs.of(self.ndim, list(self._open.items())))
            self._open = {}

    def _settle(self) -> None:
        """Give every run a finder, merging runs so that their sizes fall by more than half from one to the next."""
        if len(self._finders) == len(self._runs):
            return
        settled, finders = self._runs[: len(self._finders)], self._finders.copy()
        for run in self._runs[len(self._finders) :]:
            merged = run.latest()
            while settled and len(settled[-1]) <= 2 * len(merged):
                merged = concat([settled.pop(), merged]).latest()
                finders.pop()
            settled.append(merged)
            finders.append(ChunkFinder(merged))
        self._runs, self._finders = settled, finders

    def __reduce__(self) -> tuple[object, ...]:
        refs = self.collapse().compact()
        return _unpickle_edits, (self.ndim, refs)


def _unpickle_edits(ndim: int, refs: ChunkRefs) -> ChunkEdits:
    edits = ChunkEdits(ndim)
    edits.set_many(refs)
    return edits


@dataclass(frozen=True, slots=True)
class MoveStep:
    """One move as it was asked for: a node, with all below it, from one path to another."""

    node_id: NodeId
    source: str
    target: str


@dataclass(slots=True)
class ChangeSet:
    """Edits relative to one base snapshot: moves, or anything but moves.

    Attributes
    ----------
    new_nodes
        Nodes created here, by path.
    updated_nodes
        Nodes of the base whose metadata document changed, in their new form, by id.
    deleted_nodes
        Nodes of the base that were removed, in their base form, by id.
    chunks
        Chunk edits of new and base arrays, by id.
    moves
        Moves in the order in which they were made, to be made again on another base.
    moved_nodes
        Nodes of the base that are elsewhere now, in their present form, by present path.
    moved_from
        Their paths in the base, by id.
    """

    new_nodes: dict[str, Node] = field(default_factory=dict)
    updated_nodes: dict[NodeId, Node] = field(default_factory=dict)
    deleted_nodes: dict[NodeId, Node] = field(default_factory=dict)
    chunks: dict[NodeId, ChunkEdits] = field(default_factory=dict)
    moves: list[MoveStep] = field(default_factory=list)
    moved_nodes: dict[str, Node] = field(default_factory=dict)
    moved_from: dict[NodeId, str] = field(default_factory=dict)
    _placed_children: dict[str, dict[str, None]] = field(default_factory=dict)
    _num_below: dict[str, int] = field(
        default_factory=dict
    )  # how many nodes were placed below each path, at any depth

    @property
    def is_empty(self) -> bool:
        """True when committing would change nothing."""
        nodes = self.new_nodes or self.updated_nodes or self.deleted_nodes or self.moved_nodes
        return not (nodes or any(self.chunks.values()))

    def copy(self) -> ChangeSet:
        """An independent copy."""
        return ChangeSet(
            self.new_nodes.copy(),
            self.updated_nodes.copy(),
            self.deleted_nodes.copy(),
            {node_id: edits.copy() for node_id, edits in self.chunks.items()},
            self.moves.copy(),
            self.moved_nodes.copy(),
            self.moved_from.copy(),
            {path: names.copy() for path, names in self._placed_children.items()},
            self._num_below.copy(),
        )

    def placed(self, path: str) -> Node | None:
        """The node that was created at a path or moved there."""
        return self.new_nodes.get(path) or self.moved_nodes.get(path)

    def is_gone(self, node_id: NodeId) -> bool:
        """True when a node of the base is no longer at its path there."""
        return node_id in self.deleted_nodes or node_id in self.moved_from

    def add_node(self, node: Node) -> None:
        """Create a node at a free path, or replace the one created here before."""
        self.new_nodes[node.path] = node
        self._place(node.path)

    def update_node(self, node: Node) -> None:
        """New metadata of an existing node, wherever it comes from."""
        if node.path in self.new_nodes:
            self.new_nodes[node.path] = node
        else:
            self.updated_nodes[node.node_id] = node

    def delete_node(self, node: Node) -> None:
        """Remove one node (not its descendants) and all edits of its chunks."""
        self.chunks.pop(node.node_id, None)
        if self.new_nodes.pop(node.path, None) is not None:
            self._unplace(node.path)
            return
        self.updated_nodes.pop(node.node_id, None)
        self.deleted_nodes[node.node_id] = node

    def move_nodes(self, step: MoveStep, nodes: Sequence[Node]) -> None:
        """Make a move whose way is free.

        Parameters
        ----------
        nodes
            All nodes at and below the step's source, in their present form.
        """
        for node in nodes:
            if self.moved_nodes.pop(node.path, None) is not None:
                self._unplace(node.path)
        for node in nodes:
            origin = self.moved_from.pop(node.node_id, node.path)
            path = step.target + node.path[len(step.source) :]
            if path != origin:
                self.moved_from[node.node_id] = origin
                self.moved_nodes[path] = replace(node, path=path)
                self._place(path)
        self.moves.append(step)

    def place_anew(self) -> None:
        """After an edit that an interrupt left half done: what is where follows from the nodes again."""
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
        """Nodes that were created or moved directly below ``path``."""
        return self._all_placed(self._placed_children.get(path, ()))

    def placed_parents(self) -> list[str]:
        """Paths, of nodes or not, that nodes were created or moved directly below."""
        return [path for path, names in self._placed_children.items() if names]

    def placed_below(self, path: str) -> list[Node]:
        """Nodes that were created or moved to ``path`` or below."""
        if not self._num_below.get(path):
            return self._all_placed([path])
        return self._all_placed(
            place for places in (self.new_nodes, self.moved_nodes) for place in places if paths.is_within(place, path)
        )

    def _all_placed(self, places: Iterable[str]) -> list[Node]:
        return [node for place in places if (node := self.placed(place)) is not None]

    def revision_of(self, node: Node) -> int:
        """Number that grows with each edit of an array's chunks."""
        edits = self.chunks.get(node.node_id)
        return 0 if edits is None else edits.revision

    def edits_of(self, node: Node) -> ChunkEdits:
        """The (possibly new) chunk edits of an array."""
        edits = self.chunks.get(node.node_id)
        if edits is None:
            assert node.shape is not None
            edits = self.chunks[node.node_id] = ChunkEdits(node.shape.ndim)
        return edits
