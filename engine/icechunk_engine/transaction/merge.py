"""Merge the edits of forks into the change set of their session. Pure.

A fork starts from the state that its parent had. So both know a node by the same id, whether it is in their common
base or the parent created it before the fork. Only edits whose source the receiver does not know yet are merged
(:mod:`.edit_sources`). Each of them follows one rule:

    *An edit may replace what its writer had seen. It must not replace anything else.*

A writer has seen the edits that the receiver had at the fork, its own, and those that it read before it replaced
them. If an edit meets any other edit of the same node or chunk, one of the two would be lost. That is a conflict,
except in three cases, where nothing is lost:

- A scheduler ran one task twice: the sources have the same task name.
- Both edits are equal: equal documents, or chunks with equal bytes. Comparing the bytes of stored chunks takes
  requests, so these pairs are returned as :class:`Doubts`.
- Two forks created equal nodes at one path. The first node stays, and the chunks of the second go to it.

Two changes of one array's shape always conflict, even to the same shape: two appends would write the same rows.

The merge relies on the common start. In unrelated sessions, one path can be two different nodes, so
:meth:`Session.merge <icechunk_engine.Session.merge>` refuses forks of another session or another base first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.chunk_refs import DELETED, NATIVE, ChunkRefs, concat
from icechunk_engine.columns.equal_refs import equal_rows
from icechunk_engine.columns.sorted_parts import SortedParts
from icechunk_engine.columns.tables import I64, U8, lex_order, rows_differ
from icechunk_engine.errors import ErrorKind, InvalidInputError, SessionStateError
from icechunk_engine.format.nodes import Node, NodeTable
from icechunk_engine.format.zarr_metadata import chunk_encoding
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet, ChunkEdits
from icechunk_engine.transaction.edit_sources import EditSource, SourceNumbers
from icechunk_engine.transaction.hierarchy import find_node, placement_problem

type OnOverlap = Literal["raise", "last"]
"""What to do if two edits conflict: raise an error, or let the edit win that is merged last."""

_SHOWN = 3
"""Chunks that an error names."""

_ENOUGH_ROWS = 4096
"""Parts with at least this many edits are not joined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """Edits to merge.

    Attributes
    ----------
    changes
        The edits. Those of sources that the receiver knows are skipped.
    num_seen
        Number of the receiver's first sources that the writer had seen.
    also_seen
        More sources that the writer had seen, as writer and epoch.
    seen_up_to
        Epochs of some other writers. The writer had seen their sources up to these epochs.
    """

    changes: ChangeSet
    num_seen: int
    also_seen: Collection[tuple[str, int]] = ()
    seen_up_to: Mapping[str, int] = field(default_factory=dict)


class _Seen(NamedTuple):
    """The sources that a writer had seen; see :class:`Incoming`."""

    num_seen: int
    also_seen: frozenset[tuple[str, int]]
    seen_up_to: Mapping[str, int]

    def contains(self, source: EditSource) -> bool:
        """Return True if the writer had seen a source, whether the receiver knew it first or not."""
        writer, epoch, _ = source
        return (writer, epoch) in self.also_seen or epoch <= self.seen_up_to.get(writer, -1)


_NOTHING_SEEN = _Seen(0, frozenset(), {})


class Doubts(NamedTuple):
    """Pairs of stored chunks that conflict unless their bytes are equal.

    Attributes
    ----------
    first_ids, second_ids
        ``uint8 (k, 12)``: ids of the chunks.
    conflict
        Returns the error to raise if the bytes of a pair, given by its row, differ.
    """

    first_ids: U8
    second_ids: U8
    conflict: Callable[[int], SessionStateError]


def require_on_overlap(value: object) -> None:
    """Raise InvalidInputError unless a value is an :data:`OnOverlap`."""
    if value not in ("raise", "last"):
        raise InvalidInputError(
            f"on_overlap={value!r} is not supported: choose 'raise' or 'last'", ErrorKind.NOT_ALLOWED
        )


def merge_changes(
    base: NodeTable,
    into: ChangeSet,
    arrivals: Sequence[Incoming],
    on_overlap: OnOverlap = "raise",
    own_writer: str | None = None,
) -> list[Doubts]:
    """Apply edits to ``into`` in place, in the given order. After an error ``into`` is half changed, so pass a copy.

    Parameters
    ----------
    base, into
        Base nodes and change set of the session that receives the edits.
    on_overlap
        ``"raise"``: raise an error if two edits conflict. ``"last"``: the edit that is merged last wins, if the tree
        stays valid.
    own_writer
        Writer of the receiver, to name it in errors.

    Returns
    -------
    Pairs of chunks. The caller must compare them, and raise the error of any pair that differs.

    Raises
    ------
    SessionStateError
        ``merge-failed``: two edits conflict. The error names the array, the chunks and the tasks.
    """
    merge = _Merge(base, into, on_overlap, own_writer)
    for arrival in arrivals:
        merge.take_nodes(arrival)
        merge.take_chunks(arrival)
    merge.apply_chunks()
    return merge.doubts


class _Part(NamedTuple):
    """Chunk edits of one arrival for one array, with the receiver's numbers of their sources.

    They are sorted by index, and there is at least one.
    """

    refs: ChunkRefs
    sources: SourceNumbers


@dataclass(slots=True)
class _Merge:
    base: NodeTable
    into: ChangeSet
    on_overlap: OnOverlap
    own_writer: str | None
    doubts: list[Doubts] = field(default_factory=list)
    _targets: dict[NodeId, Node] = field(default_factory=dict)  # arrays with parts
    _parts: dict[NodeId, list[_Part]] = field(default_factory=dict)
    _created: dict[NodeId, str] = field(default_factory=dict)  # paths of the receiver's new nodes
    _seen: dict[int, _Seen] = field(default_factory=dict)  # by number of a new source
    _numbers: SourceNumbers = field(default_factory=lambda: np.empty(0, np.int32))  # of the present arrival's sources
    _is_new: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))

    def __post_init__(self) -> None:
        self._created.update((node.node_id, path) for path, node in self.into.new_nodes.items())

    # --- sources -----------------------------------------------------------------------------------------------

    def _take_sources(self, arrival: Incoming) -> None:
        ours, theirs = self.into.sources, arrival.changes.sources.entries
        is_new = [source not in ours for source in theirs]
        also_seen = frozenset((*((one.writer, one.epoch) for one in theirs), *arrival.also_seen))
        seen = _Seen(arrival.num_seen, also_seen, arrival.seen_up_to)
        self._numbers = np.fromiter(map(ours.number, theirs), np.int32, len(theirs))
        self._is_new = np.array(is_new, np.bool_)
        for number in self._numbers[self._is_new].tolist():
            self._seen[number] = seen
        for number, promise in arrival.changes.sources.promises.items():
            if is_new[number]:
                ours.promises[int(self._numbers[number])] = promise

    def _conflict(self, old: int, new: int) -> bool:
        """Return True if an edit of source ``new`` must not replace one of source ``old``."""
        if old == new:
            return False
        seen = self._seen.get(new, _NOTHING_SEEN)
        one, other = self.into.sources.entries[old], self.into.sources.entries[new]
        was_seen = old < seen.num_seen or seen.contains(one) or one.writer == other.writer
        is_retry = one.task is not None and one.task == other.task
        return not (was_seen or is_retry)

    def _names(self, *numbers: int) -> str:
        sources = [self.into.sources.entries[number] for number in numbers]
        return " and ".join(
            dict.fromkeys("this session" if one.writer == self.own_writer else one.label for one in sources)
        )

    # --- nodes -------------------------------------------------------------------------------------------------

    def take_nodes(self, arrival: Incoming) -> None:
        """Merge the node edits of an arrival. Its chunk edits come next, with :meth:`take_chunks`."""
        self._take_sources(arrival)
        changes = arrival.changes
        for node in (*changes.deleted_nodes.values(), *changes.withdrawn_nodes.values()):
            if (source := self._new_source_of(changes, node)) is not None:
                self._delete(node, source)
        for node in sorted(changes.new_nodes.values(), key=lambda node: node.path.count("/")):
            if (source := self._new_source_of(changes, node)) is not None:
                self._create(changes, node, source)
        for node in changes.updated_nodes.values():
            if (source := self._new_source_of(changes, node)) is not None:
                self._update(changes, node, source)

    def _new_source_of(self, changes: ChangeSet, node: Node) -> int | None:
        number = changes.node_sources[node.node_id]
        return int(self._numbers[number]) if self._is_new[number] else None

    def _delete(self, node: Node, source: int) -> None:
        present = find_node(self.base, self.into, node.path)
        if present is None or present.node_id != self._id_here(node.node_id):
            return  # also deleted here, and perhaps created again
        self._apply_chunks_of(present.node_id)
        others = self._unseen_edits(present.node_id, source)
        if others and self.on_overlap == "raise":
            _refuse(node.path, "was deleted in one fork and changed elsewhere", self._names(*others, source))
        self.into.delete_node(present, source)

    def _id_here(self, node_id: NodeId) -> NodeId:
        return self.into.twins.get(node_id, node_id)

    def _unseen_edits(self, node_id: NodeId, source: int) -> list[int]:
        """Return the sources of edits of a node and its chunks that conflict with an edit of ``source``."""
        numbers = [self.into.node_sources.get(node_id)]
        edits = self.into.chunks.get(node_id)
        if edits:
            numbers += np.unique(edits.collapse_with_sources()[1]).tolist()
        return [number for number in numbers if number is not None and self._conflict(number, source)]

    def _create(self, changes: ChangeSet, node: Node, source: int) -> None:
        present = find_node(self.base, self.into, node.path)
        if present is None:
            if placement_problem(self.base, self.into, node.path, is_array=node.is_array) is not None:
                _refuse(
                    node.path,
                    "would be an array with members: one fork created the array, another one a node below it",
                    self._names(source),
                )
            self.into.add_node(node, source)
            self._created[node.node_id] = node.path
        elif present.node_id == self._id_here(node.node_id):
            self._update(changes, node, source)
        elif present.user_data == node.user_data and node.path in self.into.new_nodes:
            self.into.twins[node.node_id] = present.node_id
        else:
            other = self.into.node_sources.get(present.node_id, source)
            _refuse(node.path, "was created in a fork, and another node is at that path", self._names(other, source))

    def _update(self, changes: ChangeSet, node: Node, source: int) -> None:
        node_id = self._id_here(node.node_id)
        present = find_node(self.base, self.into, node.path)
        if present is None or present.node_id != node_id:
            if self.on_overlap == "last":
                return  # the deletion stays: nothing is left to change
            number = self.into.node_sources.get(node_id, source)
            _refuse(node.path, "was changed in a fork and deleted elsewhere", self._names(number, source))
        if self.on_overlap == "raise":
            self._require_known(present, node, source, is_resized=node.node_id in changes.shape_sources)
        if present.user_data == node.user_data:
            return
        self._require_same_encoding(present, node, source)
        self._require_inside(present, node, source)
        self.into.update_node(replace(present, user_data=node.user_data, shape=node.shape), source, before=present)

    def _require_known(self, before: Node, after: Node, source: int, *, is_resized: bool) -> None:
        """Refuse an update of a node whose writer had not seen its last change."""
        resized_by = self.into.shape_sources.get(before.node_id)
        if is_resized and resized_by is not None and self._conflict(resized_by, source):
            what = (
                f"was resized twice, to {_shape_of(before)} and {_shape_of(after)}: of two appends, one would be lost"
            )
            _refuse(after.path, what, self._names(resized_by, source))
        changed_by = self.into.node_sources.get(before.node_id)
        if changed_by is not None and self._conflict(changed_by, source) and before.user_data != after.user_data:
            what = "has metadata that two forks changed to different values"
            _refuse(after.path, what, self._names(changed_by, source))

    def _require_same_encoding(self, before: Node, after: Node, source: int) -> None:
        """Refuse an update after which chunks that its writer had not seen would be decoded wrongly."""
        if not before.is_array or chunk_encoding(before.user_data) == chunk_encoding(after.user_data):
            return
        self._apply_chunks_of(before.node_id)
        edits = self.into.chunks.get(before.node_id)
        numbers = np.unique(edits.collapse_with_sources()[1]).tolist() if edits else []
        others = [number for number in numbers if self._conflict(number, source)]
        if others:
            self._refuse_encoding(before, *others, source)

    def _refuse_encoding(self, array: Node, *numbers: int) -> NoReturn:
        what = "was given another encoding, and chunks were written elsewhere in the old one"
        _refuse(array.path, what, self._names(*numbers))

    def _require_inside(self, before: Node, after: Node, source: int) -> None:
        """Refuse to shrink an array whose chunks beyond the new shape the writer had not seen."""
        if before.shape is None or after.shape is None or self.on_overlap == "last":
            return
        if all(new >= old for old, new in zip(before.shape.num_chunks, after.shape.num_chunks, strict=True)):
            return
        self._apply_chunks_of(before.node_id)
        edits = self.into.chunks.get(before.node_id)
        if edits:
            refs, sources = edits.collapse_with_sources()
            self._require_in_grid(_Part(refs, sources), after, source)

    def _require_in_grid(self, part: _Part, array: Node, shrunk_by: int) -> None:
        assert array.shape is not None
        beyond = ~part.refs.within((0,) * part.refs.ndim, array.shape.num_chunks) & (part.refs.kinds != DELETED)
        for number in np.unique(part.sources[beyond]).tolist():
            if self._conflict(number, shrunk_by) and self._conflict(shrunk_by, number):
                rows = np.flatnonzero(beyond & (part.sources == number))
                _refuse(
                    array.path,
                    f"was shrunk to {_shape_of(array)}, and chunks beyond that were written elsewhere: "
                    f"{_listed(part.refs, rows)}",
                    self._names(number, shrunk_by),
                )

    # --- chunks ------------------------------------------------------------------------------------------------

    def take_chunks(self, arrival: Incoming) -> None:
        """Collect the new chunk edits of an arrival."""
        for node_id, edits in arrival.changes.chunks.items():
            if not edits:
                continue
            refs, numbers = edits.collapse_with_sources()
            if not bool(self._is_new.all()):
                rows = self._is_new[numbers]
                if not bool(rows.any()):
                    continue
                refs, numbers = (refs, numbers) if bool(rows.all()) else (refs.take(rows), numbers[rows])
            if numbers.strides[0] == 0:
                sources = np.broadcast_to(self._numbers[numbers[0]], len(numbers))
            else:
                sources = self._numbers[numbers]
            part = _Part(refs, sources)
            target = self._array(node_id, int(sources[0]))
            if target is None:
                continue
            if target.shape is None or target.shape.ndim != refs.ndim:
                _refuse(target.path, f"has chunks with {refs.ndim} coordinates", self._names(int(sources[0])))
            shrunk_by = self.into.node_sources.get(target.node_id)
            if shrunk_by is not None and self.on_overlap == "raise":
                self._require_in_grid(part, target, shrunk_by)
            recoded_by = self.into.encoding_sources.get(target.node_id)
            if recoded_by is not None and self._conflict(recoded_by, int(sources[0])):
                self._refuse_encoding(target, recoded_by, int(sources[0]))
            self._targets[target.node_id] = target
            self._parts.setdefault(target.node_id, []).append(part)

    def _array(self, node_id: NodeId, source: int) -> Node | None:
        """Return the array that chunks belong to; None if it was deleted and that does not matter."""
        node_id = self._id_here(node_id)
        known = self._targets.get(node_id)
        if known is not None:
            present = find_node(self.base, self.into, known.path)
            if present is not None and present.node_id == node_id:
                return known
        row = self.base.row_of_id(node_id)
        path = self.base.path(row) if row >= 0 else self._created.get(node_id)
        node = None if path is None else find_node(self.base, self.into, path)
        if node is None or node.node_id != node_id:
            if self.on_overlap == "last":
                return None
            gone = self.into.withdrawn_nodes.get(node_id)
            path = path or (str(node_id) if gone is None else gone.path)
            other = self.into.node_sources.get(node_id, source)
            _refuse(path, "has chunks written in a fork and was deleted elsewhere", self._names(other, source))
        return node

    def apply_chunks(self) -> None:
        """Apply all collected chunk edits."""
        for node_id in list(self._parts):
            self._apply_chunks_of(node_id)

    def _apply_chunks_of(self, node_id: NodeId) -> None:
        parts = self._parts.pop(node_id, None)
        if not parts:
            return
        array = self._targets[node_id]
        edits = self.into.edits_of(array)
        if edits or len(parts) > 1:
            self._check_overlaps(array, edits, parts)
        for refs, sources in _joined(parts):
            edits.set_many(refs, sources)

    def _check_overlaps(self, array: Node, edits: ChunkEdits, parts: Sequence[_Part]) -> None:
        """Check which edits the parts replace: those of the receiver and of earlier parts."""
        ordered = SortedParts(edits.ndim, [refs for refs, _ in parts])
        for chosen in ordered.slices(ordered.borders()):
            if chosen:
                block = _join([_Part(parts[i].refs.narrow(rows), parts[i].sources[rows]) for i, rows in chosen])
                refs, sources = self._without_repeats(array, *block)
                if edits:
                    positions, old_refs, old_sources = edits.overlap(refs.indices)
                    self._check(array, old_refs, old_sources, refs.take(positions), sources[positions])

    def _without_repeats(
        self, array: Node, refs: ChunkRefs, sources: SourceNumbers
    ) -> tuple[ChunkRefs, SourceNumbers]:
        """Return the first edit of each chunk, sorted by index, after checking that each may replace the one before.

        The caller compares it with the edits of the receiver. The last one may hide them from the first: its writer
        can have seen both, and not that they conflict.
        """
        if refs.is_sorted:
            return refs, sources
        order = lex_order(refs.indices)
        is_first = np.concatenate([[True], rows_differ(refs.indices[order])])
        if not bool(is_first.all()):
            old, new = order[:-1][~is_first[1:]], order[1:][~is_first[1:]]
            self._check(array, refs.take(old), sources[old], refs.take(new), sources[new])
        rows = order[is_first]
        return refs.take(rows), sources[rows]

    def _check(
        self, array: Node, old: ChunkRefs, old_sources: SourceNumbers, new: ChunkRefs, new_sources: SourceNumbers
    ) -> None:
        """Raise an error if a row of ``new`` must not replace that of ``old``; note pairs that may be equal."""
        if self.on_overlap == "last" or not len(old):
            return
        pairs, which = np.unique(np.stack([old_sources, new_sources], axis=1), axis=0, return_inverse=True)
        is_conflict = np.array([self._conflict(*pair) for pair in pairs.tolist()], np.bool_)[which.reshape(-1)]
        rows = np.flatnonzero(is_conflict)
        if not len(rows):
            return
        old, new, old_sources, new_sources = old.take(rows), new.take(rows), old_sources[rows], new_sources[rows]
        is_equal = equal_rows(old, new)
        # Stored chunks of one length may hold equal bytes.
        is_doubtful = ~is_equal & (old.kinds == NATIVE) & (new.kinds == NATIVE) & (old.lengths == new.lengths)
        bad = np.flatnonzero(~(is_equal | is_doubtful))
        if len(bad):
            raise self._overlap(array, new, bad, old_sources, new_sources)
        rows = np.flatnonzero(is_doubtful)
        if len(rows):
            doubtful, old_sources, new_sources = new.take(rows), old_sources[rows], new_sources[rows]

            def conflict(pair: int) -> SessionStateError:
                return self._overlap(array, doubtful, np.array([pair]), old_sources, new_sources)

            self.doubts.append(Doubts(old.chunk_ids[rows], doubtful.chunk_ids, conflict))

    def _overlap(
        self, array: Node, refs: ChunkRefs, rows: I64, old_sources: SourceNumbers, new_sources: SourceNumbers
    ) -> SessionStateError:
        names = self._names(int(old_sources[rows[0]]), int(new_sources[rows[0]]))
        return SessionStateError(
            f"cannot merge: {names} wrote the same chunks of array {array.path!r} without seeing each other's values, "
            f"so the values of one would be lost: {_listed(refs, rows)}. The session is as it was before the merge. "
            f"Let one task write each chunk: rechunk the data, or pass align_chunks=True. If it does not matter whose "
            f"values stay, pass on_overlap='last'",
            ErrorKind.MERGE_FAILED,
        )


def _join(parts: Sequence[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]
    firsts = {int(sources[0]) for _, sources in parts}
    refs = concat([refs for refs, _ in parts])
    if len(firsts) == 1 and all(sources.strides[0] == 0 for _, sources in parts):
        return _Part(refs, np.broadcast_to(parts[0].sources[0], len(refs)))
    return _Part(refs, np.concatenate([sources for _, sources in parts]))


def _joined(parts: Sequence[_Part]) -> Iterator[_Part]:
    """Yield the same edits in fewer parts. Large parts stay as they are, to avoid copying their columns."""
    small: list[_Part] = []
    for part in parts:
        small.append(part)
        if sum(len(refs) for refs, _ in small) >= _ENOUGH_ROWS:
            yield _join(small)
            small = []
    if small:
        yield _join(small)


def _shape_of(array: Node) -> object:
    return json.loads(array.user_data).get("shape")


def _listed(refs: ChunkRefs, rows: I64) -> str:
    shown = ", ".join(str(tuple(refs.indices[row].tolist())) for row in rows[:_SHOWN].tolist())
    return shown + (f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else "")


def _refuse(path: str, what: str, who: str) -> NoReturn:
    raise SessionStateError(
        f"cannot merge: node {path!r} {what} (by {who}). The session is as it was before the merge. Change a node in "
        f"one place only: in one fork, or in the session before or after the parallel work",
        ErrorKind.MERGE_FAILED,
    )
