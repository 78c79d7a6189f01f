"""What became of a conditional write whose answer says little. Pure.

A store may apply a conditional write and lose the answer; the client's retry is then refused, because the object is
there already: by us. So each conditional write carries a write id of its own in the object's metadata, and after any
refusal or failure the object is read again and judged here. The name of the metadata is that of the format
(``icechunkwriteid``).

Equal content proves nothing: two writers may well write the same. Where a store drops metadata, a write that was
applied may pass for lost; those who update a repository recognise theirs by the ops log then.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from icechunk_engine.storage.base import Version

WRITE_ID = "icechunkwriteid"
WRITE_ID_SPELLINGS = (WRITE_ID, "icechunk_write_id")


class Outcome(Enum):
    """Of one conditional write."""

    WON = "the object is what we wrote"
    LOST = "somebody else's write is there"
    UNTOUCHED = "the object is what it was before, so the condition should have held"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A conditional write: its id, and on which condition (``expected`` None: there must be no object)."""

    write_id: str
    expected: Version | None


@dataclass(frozen=True, slots=True)
class Found:
    """The object as it was read after the write."""

    version: Version
    write_id: str | None


def judge(attempt: Attempt, found: Found | None) -> Outcome:
    """What the object says about the write; ``found`` None: there is no object."""
    if found is None:
        return Outcome.UNTOUCHED if attempt.expected is None else Outcome.LOST
    if found.write_id == attempt.write_id:
        return Outcome.WON
    return Outcome.UNTOUCHED if found.version == attempt.expected else Outcome.LOST
