"""Who made an edit: the identity of edits across processes, retries and merges. Pure.

A *writer* is one linear history of edits. The copy of a fork that you unpickle continues the writer of the original
until its first edit; then it becomes a new writer. A writer's history is divided into *epochs*: pickling, forking and
merging end an epoch. So a source (writer, epoch, task) names a set of edits that no longer grows once anybody else can
have it. Two rules follow:

- *A receiver that knows a source has all of its edits.* Merging takes only edits of unknown sources, so merging the
  same copy twice changes nothing, and a fork that made more edits brings only those.
- *An edit may replace what its writer had seen.* Anything else that it replaces is a conflict (:mod:`.merge`).

An epoch that stayed open after its edits were handed on would break the first rule: later edits would look known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

type SourceNumbers = NDArray[np.int32]
"""Source of each row of an array's chunk edits, as positions in :attr:`EditSources.entries`; may be broadcast."""


class EditSource(NamedTuple):
    """The origin of some edits.

    Attributes
    ----------
    writer
        Random id of one linear history of edits.
    epoch
        Number of the part of this history.
    task
        Name that a scheduler gave to the task; None if unknown. A retry has the same name.
    """

    writer: str
    epoch: int
    task: str | None = None

    @property
    def label(self) -> str:
        """Name of the task or writer, for errors."""
        return f"writer {self.writer[:8]}" if self.task is None else f"task {self.task}"


class EditSources:
    """The sources of a change set, numbered in the order in which they came.

    Attributes
    ----------
    entries
        The sources.
    promises
        By number of a source whose process has not flushed its chunks: the promise of another process to do that (a
        :data:`~icechunk_engine.storage.base.FlushPromise`).
    """

    __slots__ = ("_numbers", "entries", "promises")

    def __init__(self, entries: Iterable[EditSource] = (), promises: Mapping[int, str] | None = None) -> None:
        self.entries: list[EditSource] = list(entries)
        self.promises = dict(promises or {})
        self._numbers = {source: number for number, source in enumerate(self.entries)}

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, source: EditSource) -> bool:
        return source in self._numbers

    def copy(self) -> EditSources:
        """Return an independent copy."""
        other = EditSources()
        other.entries, other._numbers = self.entries.copy(), self._numbers.copy()
        other.promises = self.promises.copy()
        return other

    def number(self, source: EditSource) -> int:
        """Return the number of a source; add it if it is new."""
        found = self._numbers.get(source)
        if found is None:
            found = self._numbers[source] = len(self.entries)
            self.entries.append(source)
        return found

    def find(self, source: EditSource) -> int:
        """Return the number of a source; -1 if it is unknown."""
        return self._numbers.get(source, -1)

    def leave_flush(self, promise: str) -> None:
        """Note that the chunks of all sources without a promise are left to be flushed under this one."""
        for number in range(len(self.entries)):
            self.promises.setdefault(number, promise)

    def __reduce__(self) -> tuple[object, ...]:
        entries = [tuple(source) for source in self.entries]
        return _unpickle, ((entries, self.promises) if self.promises else (entries,))


def _unpickle(entries: list[tuple[str, int, str | None]], promises: Mapping[int, str] | None = None) -> EditSources:
    return EditSources((EditSource(*entry) for entry in entries), promises)
