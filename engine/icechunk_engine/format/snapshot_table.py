"""The list of all snapshots in the repo info, as columns (spec, *Repo info file*).

Every update of a repository reads, changes and writes the whole list. So messages and metadata stay encoded, and no
object is made for a snapshot that nobody looks at.

Invariant: *rows are sorted by snapshot id, and a parent is the row number of another snapshot.* Files have this form,
too, and the official library finds snapshots in them by binary search: in an unsorted file, it would miss some. Adding
or removing one row moves the rows behind it, and each ``parents`` entry that points there must change with them, in
the same step. :meth:`SnapshotTable.insert`, :meth:`SnapshotTable.remove` and :func:`read_snapshots` do that; a new
method that changes rows must, too. A row number is only valid for the table that it came from, so code keeps ids, not
rows, from one table to the next.

Chains of parents may be circles in a damaged file, so every walk counts its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from icechunk_engine.columns.tables import (
    I64,
    U8,
    U64,
    BytesTable,
    Integers,
    insert_ragged,
    row_keys,
    starts_of,
    take_ragged,
)
from icechunk_engine.errors import ErrorKind, FormatError, InternalError, SnapshotNotFoundError
from icechunk_engine.flatbuf.reader import Tables
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout
from icechunk_engine.format import schema
from icechunk_engine.format.metadata import MetadataColumns, encode_text
from icechunk_engine.ids import SnapshotId
from icechunk_engine.types import JsonObject

NO_PARENT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """One snapshot, as the repo info lists it.

    Attributes
    ----------
    id, parent_id
        The snapshot and its parent; None for a root.
    flushed_at_us
        When it was written, Unix microseconds.
    message, metadata
        Copies of those in the snapshot's file.
    pruned
        Expired snapshots between the parent and this one, oldest first. Their transaction logs, followed by this
        snapshot's own, say what changed since the parent.
    """

    id: SnapshotId
    parent_id: SnapshotId | None
    flushed_at_us: int
    message: str
    metadata: JsonObject
    pruned: tuple[SnapshotId, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SnapshotTable:
    """Columns of ``n`` snapshots, sorted by id.

    Attributes
    ----------
    ids
        ``uint8 (n, 12)``.
    parents
        ``int32 (n,)``: row of the parent, NO_PARENT for a root.
    flushed_at
        ``uint64 (n,)``: Unix microseconds.
    messages
        One for each snapshot.
    metadata
        One list for each snapshot, with values in FlexBuffers.
    pruned_starts
        ``int64 (n + 1,)``, for ``pruned_ids`` ``uint8 (k, 12)``: see :class:`SnapshotRecord`.
    """

    ids: U8
    parents: NDArray[np.int32]
    flushed_at: U64
    messages: BytesTable
    metadata: MetadataColumns
    pruned_starts: I64
    pruned_ids: U8

    @classmethod
    def of(cls, records: Sequence[SnapshotRecord]) -> SnapshotTable:
        """Make a table of distinct snapshots. Their parents must be among them."""
        records = sorted(records, key=lambda record: record.id.raw)
        rows = {record.id: row for row, record in enumerate(records)}
        parents = [NO_PARENT if record.parent_id is None else rows[record.parent_id] for record in records]
        return cls(
            ids=_id_rows([record.id for record in records]),
            parents=np.array(parents, np.int32),
            flushed_at=np.array([record.flushed_at_us for record in records], np.uint64),
            messages=BytesTable.of([encode_text(record.message, "the message") for record in records]),
            metadata=MetadataColumns.of([record.metadata for record in records]),
            pruned_starts=starts_of(np.array([len(record.pruned) for record in records], np.int64)),
            pruned_ids=_id_rows([pruned_id for record in records for pruned_id in record.pruned]),
        )

    @classmethod
    def of_root(cls, record: SnapshotRecord) -> SnapshotTable:
        """Make a table of one snapshot, without its parent."""
        return cls.of([replace(record, parent_id=None)])

    def __len__(self) -> int:
        return len(self.parents)

    def find(self, snapshot_id: SnapshotId) -> int:
        """Return the row of a snapshot, -1 if it is not here."""
        return int(self.find_rows(snapshot_id.to_row().reshape(1, -1))[0])

    def find_rows(self, ids: U8) -> I64:
        """Return the rows of the snapshots ``uint8 (k, 12)``, -1 for each one that is not here."""
        if len(self) == 0:
            return np.full(len(ids), -1, np.int64)
        keys, wanted = row_keys(self.ids), row_keys(ids)
        rows = np.minimum(np.searchsorted(keys, wanted), len(self) - 1).astype(np.int64, copy=False)
        return np.where(keys[rows] == wanted, rows, -1)

    def id(self, row: int) -> SnapshotId:
        """Return the id of the snapshot in a row."""
        return SnapshotId(self.ids[row].tobytes())

    def record(self, row: int) -> SnapshotRecord:
        """Return one snapshot as an object. Raises FormatError if its metadata is damaged."""
        parent = int(self.parents[row])
        pruned = self.pruned_ids[self.pruned_starts[row] : self.pruned_starts[row + 1]]
        return SnapshotRecord(
            id=self.id(row),
            parent_id=None if parent == NO_PARENT else self.id(parent),
            flushed_at_us=int(self.flushed_at[row]),
            message=self.messages.text(row),
            metadata=self.metadata.decode(row),
            pruned=tuple([SnapshotId(pruned_id.tobytes()) for pruned_id in pruned]),
        )

    def ancestry_rows(self, row: int) -> I64:
        """Return the rows of a snapshot and its ancestors, newest first. Raises FormatError if they form a circle."""
        parents = self.parents.tolist()
        rows = []
        while row != NO_PARENT:
            rows.append(row)
            if len(rows) > len(parents):
                raise _circle()
            row = parents[row]
        return np.array(rows, np.int64)

    def ancestors(self, row: int) -> Iterator[SnapshotRecord]:
        """Yield a snapshot and its ancestors, newest first. Raises FormatError if they form a circle."""
        for _ in range(len(self)):
            yield self.record(row)
            row = int(self.parents[row])
            if row == NO_PARENT:
                return
        raise _circle()

    def insert(self, info: SnapshotRecord) -> SnapshotTable:
        """Add one snapshot, whose parent must be here.

        Raises
        ------
        FormatError
            ``duplicate-snapshot-id``.
        SnapshotNotFoundError
            The parent is unknown.
        InvalidInputError
            ``bad-metadata``: the message or the metadata cannot be stored.
        """
        place = int(np.searchsorted(row_keys(self.ids), row_keys(info.id.to_row().reshape(1, -1)))[0])
        if place < len(self) and self.id(place) == info.id:
            raise FormatError(
                f"snapshot {info.id} already exists in the repository. Commit again to get another id",
                ErrorKind.DUPLICATE_SNAPSHOT_ID,
            )
        added = SnapshotTable.of_root(info)
        parent = NO_PARENT
        if info.parent_id is not None:
            parent = self.find(info.parent_id)
            if parent < 0:
                raise SnapshotNotFoundError(
                    f"snapshot {info.parent_id}, on which this one is based, is no longer in the repository: it "
                    f"has expired and was deleted. Redo the change in a new session"
                )

        def column[T: np.generic](ours: NDArray[T], other: NDArray[T]) -> NDArray[T]:
            return np.concatenate([ours[:place], other, ours[place:]])

        parents = column(self.parents, np.array([parent], np.int32))
        pruned_ids, pruned_starts = insert_ragged(
            self.pruned_ids, self.pruned_starts, place, added.pruned_ids, added.pruned_starts
        )
        return SnapshotTable(
            ids=column(self.ids, added.ids),
            parents=parents + (parents >= place).astype(np.int32),  # rows from `place` on move down by one
            flushed_at=column(self.flushed_at, added.flushed_at),
            messages=self.messages.insert(place, added.messages),
            metadata=self.metadata.insert(place, added.metadata),
            pruned_starts=pruned_starts,
            pruned_ids=pruned_ids,
        )

    def remove(self, rows: Integers) -> SnapshotTable:
        """Remove the snapshots at ``rows``. None of them may be the parent of a snapshot that stays."""
        keep = np.ones(len(self), np.bool_)
        keep[rows] = False
        parents = self.parents[keep]
        if not bool(keep[parents[parents != NO_PARENT]].all()):
            raise InternalError("cannot remove a snapshot whose children stay. Give them other parents first")
        return self._take(np.flatnonzero(keep))

    def replace_parents(
        self, rows: Integers, parents: Integers, pruned: Sequence[Sequence[SnapshotId]] | None = None
    ) -> SnapshotTable:
        """Give the snapshots at ``rows`` other parents.

        Parameters
        ----------
        rows, parents
            Distinct rows, and for each the row of its new parent, or NO_PARENT.
        pruned
            New pruned lists of these rows. By default they keep theirs.
        """
        changed = self.parents.copy()
        changed[rows] = parents
        table = replace(self, parents=changed)
        if pruned is None:
            return table
        sources = np.arange(len(self))
        sources[rows] = len(self) + np.arange(len(rows))
        added = [len(ids) for ids in pruned]
        pool_starts = np.append(self.pruned_starts, self.pruned_starts[-1] + np.cumsum(added, dtype=np.int64))
        pool = np.concatenate([self.pruned_ids, _id_rows([pruned_id for ids in pruned for pruned_id in ids])])
        pruned_ids, pruned_starts = take_ragged(pool, pool_starts, sources)
        return replace(table, pruned_ids=pruned_ids, pruned_starts=pruned_starts)

    def _take(self, rows: Integers) -> SnapshotTable:
        """Return the snapshots at ``rows``, in that order. A parent that is not taken becomes NO_PARENT."""
        new_rows = np.full(len(self) + 1, NO_PARENT, np.int32)  # the last entry is for NO_PARENT itself, which is -1
        new_rows[rows] = np.arange(len(rows), dtype=np.int32)
        pruned_ids, pruned_starts = take_ragged(self.pruned_ids, self.pruned_starts, rows)
        return SnapshotTable(
            ids=self.ids[rows],
            parents=new_rows[self.parents[rows]],
            flushed_at=self.flushed_at[rows],
            messages=self.messages.take(rows),
            metadata=self.metadata.take(rows),
            pruned_starts=pruned_starts,
            pruned_ids=pruned_ids,
        )


def _circle() -> FormatError:
    return FormatError(
        "the parents of the snapshots listed in 'repo' form a circle. Restore 'repo' from a copy of the repository"
    )


def _id_rows(ids: Sequence[SnapshotId]) -> U8:
    return np.frombuffer(b"".join([one.raw for one in ids]), np.uint8).reshape(-1, SnapshotId.SIZE)


def read_snapshots(tables: Tables) -> SnapshotTable:
    """Read the ``SnapshotInfo`` tables. Raises FormatError."""
    fields = schema.SnapshotInfo
    parents = tables.scalar(fields.PARENT_OFFSET, np.int32)
    if len(parents) and (int(parents.min()) < NO_PARENT or int(parents.max()) >= len(tables)):
        raise tables.buffer.error("a snapshot's parent is not in the list")
    pruned = tables.vectors(fields.PRUNED_ANCESTOR_TX_LOGS, SnapshotId.SIZE)
    table = SnapshotTable(
        ids=tables.required_struct(fields.ID, SnapshotId.SIZE, "a snapshot's id"),
        parents=parents,
        flushed_at=tables.scalar(fields.FLUSHED_AT, np.uint64),
        messages=tables.strings(fields.MESSAGE, "a snapshot's message"),
        metadata=MetadataColumns.read(tables.vectors(fields.METADATA, 4)),
        pruned_starts=starts_of(pruned.lengths),
        pruned_ids=pruned.structs(),
    )
    keys = row_keys(table.ids)
    if bool((keys[1:] > keys[:-1]).all()):
        return table
    distinct, first = np.unique(keys, return_index=True)
    if len(distinct) < len(keys):
        raise tables.buffer.error("a snapshot is listed twice")
    return table._take(first)


_INFO = TableLayout.of(
    {
        schema.SnapshotInfo.ID: f"V{SnapshotId.SIZE}",
        schema.SnapshotInfo.PARENT_OFFSET: "<i4",
        schema.SnapshotInfo.FLUSHED_AT: "<u8",
        schema.SnapshotInfo.MESSAGE: OFFSET,
        schema.SnapshotInfo.METADATA: OFFSET,
        schema.SnapshotInfo.PRUNED_ANCESTOR_TX_LOGS: OFFSET,
    }
)


def write_snapshots(arena: Arena, table: SnapshotTable) -> I64:
    """Write the ``SnapshotInfo`` tables; return their positions."""
    fields = schema.SnapshotInfo
    tables = arena.tables(_INFO, len(table))
    tables.set(fields.ID, table.ids)
    tables.set(fields.PARENT_OFFSET, table.parents)
    tables.set(fields.FLUSHED_AT, table.flushed_at)
    tables.point(fields.MESSAGE, arena.strings(table.messages))
    table.metadata.write(arena, tables, fields.METADATA)
    lengths = table.pruned_starts[1:] - table.pruned_starts[:-1]
    has_pruned = lengths > 0
    if bool(has_pruned.any()):
        positions = np.zeros(len(table), np.int64)
        positions[has_pruned] = arena.vectors(table.pruned_ids, lengths[has_pruned])
        tables.point(fields.PRUNED_ANCESTOR_TX_LOGS, positions, present=has_pruned)
    return tables.positions
