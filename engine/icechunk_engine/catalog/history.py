"""Snapshots and manifests as users see them in a repository's history. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from icechunk_engine.catalog.dates import utc_of_column, utc_of_us
from icechunk_engine.catalog.html_tables import html_table
from icechunk_engine.columns.tables import I64
from icechunk_engine.format.repo_info import NO_PARENT, SnapshotRecord, SnapshotTable
from icechunk_engine.ids import base32_of_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """One snapshot in the history."""

    id: str
    parent_id: str | None
    written_at: datetime
    message: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, record: SnapshotRecord) -> SnapshotInfo:
        """Return the public view of a row of the snapshot table."""
        return cls(
            id=str(record.id),
            parent_id=None if record.parent_id is None else str(record.parent_id),
            written_at=utc_of_us(record.flushed_at_us, f"snapshot {record.id}"),
            message=record.message,
            metadata=record.metadata,
        )

    def __repr__(self) -> str:
        return (
            f"SnapshotInfo(id={self.id!r}, parent_id={self.parent_id!r}, "
            f"written_at={self.written_at.isoformat(timespec='milliseconds')}, message={self.message[:60]!r}"
            + (f", metadata={self.metadata!r}" if self.metadata else "")
            + ")"
        )

    def _repr_html_(self) -> str:
        return html_table(
            "Snapshot",
            [
                ("id", self.id),
                ("parent", self.parent_id or "—"),
                ("written at", self.written_at.isoformat(timespec="milliseconds")),
                ("message", self.message),
                ("metadata", self.metadata or "—"),
            ],
        )


def snapshot_infos(table: SnapshotTable, rows: I64) -> Iterator[SnapshotInfo]:
    """Yield the public views of many rows of the snapshot table.

    They are made in batches that grow, so that a caller who stops after the newest one pays for little more.
    """
    start, size = 0, 1
    while start < len(rows):
        part = rows[start : start + size]
        start, size = start + size, min(16 * size, 4096)
        parents = table.parents[part]
        known, codes = np.unique(np.concatenate([part, parents]), return_inverse=True)
        names: list[str | None] = [*base32_of_rows(table.ids[known])]
        if len(known) and known[0] == NO_PARENT:
            names[0] = None
        ids = [names[code] for code in codes.tolist()]
        for row, own, parent, time, message, has_metadata in zip(
            part.tolist(),
            ids[: len(part)],
            ids[len(part) :],
            utc_of_column(table.flushed_at[part], [f"snapshot {name}" for name in ids[: len(part)]]),
            table.messages.take(part).texts(),
            (table.metadata.lengths[part] > 0).tolist(),
            strict=True,
        ):
            assert own is not None
            metadata = table.metadata.decode(row) if has_metadata else {}
            yield SnapshotInfo(id=own, parent_id=parent, written_at=time, message=message, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ManifestFileInfo:
    """One manifest file of a snapshot."""

    id: str
    size_bytes: int
    num_chunk_refs: int

    def _repr_html_(self) -> str:
        return html_table(
            "Manifest", [("id", self.id), ("bytes", self.size_bytes), ("chunk references", self.num_chunk_refs)]
        )
