"""The outcome of a conditional write whose answer was lost, judged by reading the object back. Pure.

**The problem.** A store may apply a conditional write and lose the answer. The client repeats the request, and the
store refuses it, because the object is already there: ours.

**The solution.** Each conditional write carries a write id of its own in the object's metadata. After a refusal or a
failure, :mod:`.conditional_writes` reads the object, and :func:`outcome_of` compares. The name of the metadata is
that of the format (``icechunkwriteid``).

**What would break it.** Comparing contents instead of ids: two writers may write the same bytes, and only one has won.
A store that drops metadata: a write that was applied may then look lost. Those who update a repository recognise their
update by the ops log in that case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from icechunk_engine.storage.base import Version

WRITE_ID = "icechunkwriteid"
WRITE_ID_SPELLINGS = (WRITE_ID, "icechunk_write_id")


class Outcome(Enum):
    """Outcome of a conditional write."""

    WON = "the object is what we wrote"
    LOST = "somebody else's write is there"
    UNTOUCHED = "the object is what it was before, so the condition should have held"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A conditional write: its id and its condition (``expected`` None: the object must not exist)."""

    write_id: str
    expected: Version | None


@dataclass(frozen=True, slots=True)
class FoundObject:
    """The version of an object that was read, and the id of the write that made it, if known."""

    version: Version
    write_id: str | None


def outcome_of(attempt: Attempt, found: FoundObject | None) -> Outcome:
    """Return what the object says about the write; ``found`` is None if the object does not exist."""
    if found is None:
        return Outcome.UNTOUCHED if attempt.expected is None else Outcome.LOST
    if found.write_id == attempt.write_id:
        return Outcome.WON
    return Outcome.UNTOUCHED if found.version == attempt.expected else Outcome.LOST
