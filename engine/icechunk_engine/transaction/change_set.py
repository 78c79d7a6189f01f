"""A session's uncommitted edits: the one mutable heart of the engine.

Node edits are kept by path (new nodes) or node id (changed and deleted ones), chunk edits by node id as columns plus
an open buffer of single writes. Later edits win. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from icechunk_engine import paths
from icechunk_engine.chunk_finder import ChunkFinder
from icechunk_engine.chunk_refs import DELETED, ChunkRef, ChunkRefs, concat
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


@dataclass(slots=True)
class ChangeSet:
    """Edits relative to one base snapshot.

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
    """

    new_nodes: dict[str, Node] = field(default_factory=dict)
    updated_nodes: dict[NodeId, Node] = field(default_factory=dict)
    deleted_nodes: dict[NodeId, Node] = field(default_factory=dict)
    chunks: dict[NodeId, ChunkEdits] = field(default_factory=dict)
    _new_children: dict[str, dict[str, None]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True when committing would change nothing."""
        return not (self.new_nodes or self.updated_nodes or self.deleted_nodes or any(self.chunks.values()))

    def copy(self) -> ChangeSet:
        """An independent copy."""
        return ChangeSet(
            self.new_nodes.copy(),
            self.updated_nodes.copy(),
            self.deleted_nodes.copy(),
            {node_id: edits.copy() for node_id, edits in self.chunks.items()},
            {path: names.copy() for path, names in self._new_children.items()},
        )

    def add_node(self, node: Node) -> None:
        """Create a node at a free path, or replace the one created here before."""
        self.new_nodes[node.path] = node
        above = paths.parent(node.path)
        if above is not None:
            self._new_children.setdefault(above, {})[node.path] = None

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
            above = paths.parent(node.path)
            if above is not None:
                del self._new_children[above][node.path]
            return
        self.updated_nodes.pop(node.node_id, None)
        self.deleted_nodes[node.node_id] = node

    def new_children(self, path: str) -> list[str]:
        """Paths of nodes created directly below ``path``."""
        return list(self._new_children.get(path, ()))

    def new_parents(self) -> list[str]:
        """Paths, of nodes or not, that nodes were created directly below."""
        return [path for path, names in self._new_children.items() if names]

    def new_below(self, path: str) -> Iterator[str]:
        """Paths of nodes created at or below ``path``."""
        return (new for new in list(self.new_nodes) if paths.is_within(new, path))

    def edits_of(self, node: Node) -> ChunkEdits:
        """The (possibly new) chunk edits of an array."""
        edits = self.chunks.get(node.node_id)
        if edits is None:
            assert node.shape is not None
            edits = self.chunks[node.node_id] = ChunkEdits(node.shape.ndim)
        return edits

    def node_rows(self, nodes: list[Node]) -> NDArray[np.uint8]:
        """Sorted ``uint8 (n, 8)`` ids of nodes, the form that transaction logs want."""
        raws = sorted(node.node_id.raw for node in nodes)
        return np.frombuffer(b"".join(raws), np.uint8).reshape(len(raws), NodeId.SIZE)


def live_rows(edits: ChunkRefs) -> NDArray[np.bool_]:
    """Mask of the rows that set a chunk rather than delete it."""
    alive: NDArray[np.bool_] = edits.kinds != DELETED
    return alive
