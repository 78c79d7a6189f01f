"""Compare two states of a repository: the nodes and chunks that differ, by path. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from icechunk_engine.columns.tables import U32, distinct_rows
from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.format.transaction_log import TransactionLog
from icechunk_engine.ids import NodeId
from icechunk_engine.transaction.change_set import ChangeSet
from icechunk_engine.transaction.commit_logs import moves_of_changes


@dataclass(slots=True, eq=False)
class Diff:
    """Nodes and chunks that differ.

    Attributes
    ----------
    new_groups, new_arrays, deleted_groups, deleted_arrays, updated_groups, updated_arrays
        Sets of paths. A node is updated if its metadata document changed.
    updated_chunks
        Path of an array → indices of its changed chunks, as sorted lists of ints.
    moved_nodes
        Pairs of old and new path.
    """

    new_groups: set[str] = field(default_factory=set)
    new_arrays: set[str] = field(default_factory=set)
    deleted_groups: set[str] = field(default_factory=set)
    deleted_arrays: set[str] = field(default_factory=set)
    updated_groups: set[str] = field(default_factory=set)
    updated_arrays: set[str] = field(default_factory=set)
    moved_nodes: list[tuple[str, str]] = field(default_factory=list)
    chunk_columns: dict[str, U32] = field(default_factory=dict)
    """Path of an array → indices of its changed chunks, ``uint32 (n, ndim)``, sorted."""

    @property
    def updated_chunks(self) -> dict[str, list[list[int]]]:
        """Indices of changed chunks as lists. For arrays with many chunks, ``chunk_columns`` is much faster."""
        return {path: indices.tolist() for path, indices in self.chunk_columns.items()}

    def is_empty(self) -> bool:
        """Return True if nothing differs."""
        return not any([*self._sets().values(), self.chunk_columns, self.moved_nodes])

    def _sets(self) -> dict[str, set[str]]:
        return {
            "Groups created": self.new_groups,
            "Arrays created": self.new_arrays,
            "Group definitions updated": self.updated_groups,
            "Array definitions updated": self.updated_arrays,
            "Groups deleted": self.deleted_groups,
            "Arrays deleted": self.deleted_arrays,
        }

    def _sections(self) -> Iterable[tuple[str, list[str]]]:
        if self.moved_nodes:
            yield "Nodes moved", [f"{old} → {new}" for old, new in self.moved_nodes]
        for title, found in self._sets().items():
            if found:
                yield title, sorted(found)
        if self.chunk_columns:
            yield (
                "Chunks updated",
                [f"{path}: {_few_chunks(indices)}" for path, indices in sorted(self.chunk_columns.items())],
            )

    def __repr__(self) -> str:
        if self.is_empty():
            return "<Diff: no changes>"
        lines = ["<Diff>"]
        for title, rows in self._sections():
            lines.append(f"{title}:")
            lines.extend(f"    {row}" for row in rows)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        if self.is_empty():
            return "<div><b>Diff</b>: no changes</div>"
        parts = [
            f"<details open><summary>{title} ({len(rows)})</summary><ul>"
            + "".join(f"<li><code>{html.escape(row)}</code></li>" for row in rows)
            + "</ul></details>"
            for title, rows in self._sections()
        ]
        return f"<div><b>Diff</b>{''.join(parts)}</div>"


def _few_chunks(indices: U32, most: int = 5) -> str:
    shown = ", ".join(str(tuple(index)) for index in indices[:most].tolist())
    count = "1 chunk" if len(indices) == 1 else f"{len(indices)} chunks"
    return f"{count}: {shown}" + (", …" if len(indices) > most else "")


def diff_of_changes(changes: ChangeSet, base: NodeTable) -> Diff:
    """Return the uncommitted edits of a session as a diff."""
    diff = Diff()
    for node in changes.new_nodes.values():
        (diff.new_arrays if node.is_array else diff.new_groups).add(node.path)
    for node in changes.updated_nodes.values():
        (diff.updated_arrays if node.is_array else diff.updated_groups).add(node.path)
    for node in changes.deleted_nodes.values():
        (diff.deleted_arrays if node.is_array else diff.deleted_groups).add(node.path)
    paths = {node.node_id: node.path for node in changes.new_nodes.values()}
    for node_id, edits in changes.chunks.items():
        if edits:
            path = paths.get(node_id) or base.path(base.row_of_id(node_id))
            diff.chunk_columns[path] = edits.collapse().indices
    diff.moved_nodes = [(move.source, move.target) for move in moves_of_changes(changes)]
    return diff


def diff_of_logs(logs: Sequence[TransactionLog], before: NodeTable, after: NodeTable) -> Diff:
    """Return the union of the changes of consecutive commits, oldest first.

    Logs know nodes by id. Their paths come from the tree after the commits, or else from the tree before. Nodes that
    were created and deleted in between are in neither and do not appear. Moves are listed step by step, those of the
    newest commit first.
    """
    diff = Diff()
    chunks: dict[str, list[U32]] = {}

    def path_of(node_id: NodeId) -> str | None:
        for table in (after, before):
            row = table.row_of_id(node_id)
            if row >= 0:
                return table.path(row)
        return None

    for log in logs:
        for ids, found in (
            (log.new_groups, diff.new_groups),
            (log.new_arrays, diff.new_arrays),
            (log.deleted_groups, diff.deleted_groups),
            (log.deleted_arrays, diff.deleted_arrays),
            (log.updated_groups, diff.updated_groups),
            (log.updated_arrays, diff.updated_arrays),
        ):
            found.update(path for row in ids if (path := path_of(NodeId.from_row(row))) is not None)
        for node_id, indices in log.updated_chunks.items():
            path = path_of(node_id)
            if path is not None:
                chunks.setdefault(path, []).append(indices)
    diff.moved_nodes = [(move.source, move.target) for log in reversed(logs) for move in log.moved_nodes]
    diff.chunk_columns = {path: _distinct(parts) for path, parts in chunks.items()}
    return diff


def _distinct(parts: Sequence[U32]) -> U32:
    """Return the distinct chunks of one path, given oldest first.

    If an array of another rank replaced the first one at that path, only the chunks of the new array count.
    """
    listed = [part for part in parts if len(part)]  # the rank of an empty list is unknown
    if not listed:
        return parts[0]
    return distinct_rows(np.concatenate([part for part in listed if part.shape[1] == listed[-1].shape[1]]))
