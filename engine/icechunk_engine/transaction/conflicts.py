"""Conflicts between two changes, and the policies that settle them. Pure.

*Ours* are the uncommitted edits of a session. *Theirs* are the commits that reached the branch first.
:mod:`icechunk_engine.transaction.conflict_detection` finds the conflicts, a :class:`ConflictSolver` decides what to do
about them, and :mod:`icechunk_engine.transaction.replay` applies the decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from icechunk_engine.errors.foreign import describe
from icechunk_engine.types import NumberedEnum


class ConflictType(NumberedEnum):
    """Kinds of conflict between uncommitted edits (ours) and another commit (theirs)."""

    NewNodeConflictsWithExistingNode = 1
    NewNodeInInvalidGroup = 2
    ZarrMetadataDoubleUpdate = 3
    ZarrMetadataUpdateOfDeletedArray = 4
    ZarrMetadataUpdateOfDeletedGroup = 5
    ChunkDoubleUpdate = 6
    ChunksUpdatedInDeletedArray = 7
    ChunksUpdatedInUpdatedArray = 8
    DeleteOfUpdatedArray = 9
    DeleteOfUpdatedGroup = 10
    MoveOperationCannotBeRebased = 11

    def __repr__(self) -> str:
        return self.name

    def __str__(self) -> str:
        """Return the name in words."""
        return (
            "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in self.name).strip().capitalize()
        )


SOLVABLE = frozenset(
    {ConflictType.ChunkDoubleUpdate, ConflictType.DeleteOfUpdatedArray, ConflictType.DeleteOfUpdatedGroup}
)
"""The conflicts that a solver may settle. In all others, the edits of one side have no place to go."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One conflict: its kind, the node's path and, for chunk conflicts, the chunk indices."""

    conflict_type: ConflictType
    path: str
    conflicted_chunks: Sequence[Sequence[int]] | None = None

    def __repr__(self) -> str:
        return (
            f"Conflict(ConflictType.{self.conflict_type.name}, {self.path!r}, "
            f"conflicted_chunks={self.conflicted_chunks!r})"
        )

    def __str__(self) -> str:
        text = f"{self.conflict_type.name} at {self.path}"
        if self.conflicted_chunks:
            shown = ", ".join(str(tuple(index)) for index in self.conflicted_chunks[:5])
            more = len(self.conflicted_chunks) - 5
            text += f", chunks {shown}" + (f" and {more} more" if more > 0 else "")
        return text


class VersionSelection(NumberedEnum):
    """Whose chunk stays if both sides wrote it."""

    Fail = 0
    UseOurs = 1
    UseTheirs = 2


class ConflictSolver:
    """Base class of the policies of a rebase. A policy decides which conflicts it settles, and whose chunks stay."""

    def settle(self, conflicts: Sequence[Conflict]) -> list[Conflict]:
        """Return the conflicts that this policy does not settle. All given ones are :data:`SOLVABLE`."""
        return list(conflicts)

    def chunks_of(self, conflict: Conflict) -> VersionSelection:
        """Return whose chunks stay in a chunk conflict that this policy settles."""
        return VersionSelection.Fail


@dataclass(frozen=True, slots=True)
class ConflictDetector(ConflictSolver):
    """Report every conflict and settle none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicConflictSolver(ConflictSolver):
    """Settle chunk conflicts and deletions by rule. All other conflicts fail.

    Parameters
    ----------
    on_chunk_conflict
        What to do if both sides wrote the same chunk: keep ours (default), keep theirs, or fail.
    fail_on_delete_of_updated_array, fail_on_delete_of_updated_group
        Fail if we deleted a node that they changed. By default, the node is deleted.
    """

    on_chunk_conflict: VersionSelection = VersionSelection.UseOurs
    fail_on_delete_of_updated_array: bool = False
    fail_on_delete_of_updated_group: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.on_chunk_conflict, VersionSelection):
            raise TypeError(f"on_chunk_conflict must be a VersionSelection, not {describe(self.on_chunk_conflict)}")

    def settle(self, conflicts: Sequence[Conflict]) -> list[Conflict]:
        """Return the conflicts that remain."""
        return [conflict for conflict in conflicts if not self._settles(conflict.conflict_type)]

    def _settles(self, kind: ConflictType) -> bool:
        if kind is ConflictType.ChunkDoubleUpdate:
            return self.on_chunk_conflict is not VersionSelection.Fail
        if kind is ConflictType.DeleteOfUpdatedArray:
            return not self.fail_on_delete_of_updated_array
        return kind is ConflictType.DeleteOfUpdatedGroup and not self.fail_on_delete_of_updated_group

    def chunks_of(self, conflict: Conflict) -> VersionSelection:
        """Return whose chunks stay."""
        return self.on_chunk_conflict


def remaining_conflicts(conflicts: Sequence[Conflict], solver: ConflictSolver) -> list[Conflict]:
    """Return the conflicts that the solver does not settle, and those that no solver may."""
    solvable = [conflict for conflict in conflicts if conflict.conflict_type in SOLVABLE]
    return [conflict for conflict in conflicts if conflict.conflict_type not in SOLVABLE] + solver.settle(solvable)
