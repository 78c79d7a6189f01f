"""Record which regions of arrays are finished, for jobs that may be interrupted and go on later.

The stored chunks do not tell, because zarr does not store chunks that hold only the fill value. So a job stores a
small object for each region: ``journals/<token>/done/<node id>/<box>``. The name holds all information, so one listing
finds the regions of an array, and recording a region twice changes nothing.

The invariant: *all data of a recorded region are stored.* The job stores them first, and reports their references,
before it records the region; on a local disk it also waits until they survive a crash of the machine.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress

from icechunk_engine._runtime.pools import map_requests
from icechunk_engine.errors import ObjectNotFoundError, VersionMismatchError
from icechunk_engine.ids import NodeId
from icechunk_engine.journal.journal import Journal
from icechunk_engine.journal.regions import Box, box_from_text, box_text

_FOLDER = "done/"
_MAX_NAME = 180
"""A longer text is too long for the name of a file. Its digest then replaces it, and the object holds the text."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANK_0 = "whole"


class FinishedRegions:
    """The finished regions of one session's arrays."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def add(self, node_id: NodeId, box: Box) -> None:
        """Record a region whose data are stored. One PUT and one HEAD.

        Raises
        ------
        SessionStateError
            ``session-ended``: the session takes no reports any more. Nothing was recorded.
        """
        storage, text = self._journal.storage, box_text(box)
        key = self._prefix(node_id) + _name(text)
        if storage.is_remote:
            storage.put(key, text.encode())
        else:
            storage.flush()
            with suppress(VersionMismatchError):  # recorded before
                storage.create(key, text.encode())
        self._journal.require_open([key])

    def boxes(self, node_id: NodeId) -> list[Box]:
        """Return the recorded regions of an array, in no particular order. One LIST. Other objects are ignored."""
        prefix = self._prefix(node_id)
        names = [found.key.removeprefix(prefix) for found in self._journal.storage.list(prefix)]
        digests = [name for name in names if _DIGEST.fullmatch(name)]
        texts = [*names, *map_requests(self._journal.storage, lambda name: self._text(prefix, name), digests)]
        found = (box_from_text("" if text == _RANK_0 else text) for text in texts if text)
        return [box for box in found if box is not None]

    def _text(self, prefix: str, digest: str) -> str:
        """Return the text behind a digest; empty if the object was removed or holds another text."""
        try:
            text = self._journal.storage.get(prefix + digest).decode("ascii", "replace")
        except ObjectNotFoundError:
            return ""
        return text if _name(text) == digest else ""

    def _prefix(self, node_id: NodeId) -> str:
        return f"{self._journal.prefix}{_FOLDER}{node_id}/"


def _name(text: str) -> str:
    if len(text) > _MAX_NAME:
        return hashlib.sha256(text.encode()).hexdigest()
    return text or _RANK_0
