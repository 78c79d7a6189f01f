"""Whether a store keeps the conditions of conditional writes, tried out before the first write.

Stores that only have the interface of S3 may take a condition and ignore it: commits would overwrite each other, and
nobody would be told. So each process tries it once in each place, on an object of its own, and refuses such a store.
Those of the clouds themselves are known to keep them and are not asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from icechunk_engine._runtime.shared_loads import SharedLoads
from icechunk_engine.config import StorageSettings
from icechunk_engine.errors import ErrorKind, StorageError

OPT_IN = (
    "Only if nobody else writes to this repository at the same time, say so: RepositoryConfig(storage="
    "StorageSettings(unsafe_use_conditional_create=False, unsafe_use_conditional_update=False))"
)

_REFUSALS_LAST_S = 10
_PATIENCE_S = 60.0


class Proofs:
    """What was found out about places in this process."""

    def __init__(self) -> None:
        self._good: SharedLoads[Hashable, bool] = SharedLoads(0)
        self._bad: dict[Hashable, tuple[float, StorageError]] = {}

    def require(self, place: Hashable, prove: Callable[[], None]) -> None:
        """Call ``prove``, which raises if the place is not good, unless the answer is known.

        Raises
        ------
        StorageError
            What ``prove`` raised. A refusal (``no-conditional-writes``) is repeated for a while without asking: where
            one write is refused, others often are on their way.
        """
        # Whoever comes second waits for the answer instead of asking too.
        self._good.load(place, lambda place: self._proved(place, prove), patience_s=_PATIENCE_S)

    def _proved(self, place: Hashable, prove: Callable[[], None]) -> tuple[bool, int]:
        asked_at, refusal = self._bad.get(place, (0, None))
        if refusal is not None and time.monotonic() - asked_at < _REFUSALS_LAST_S:
            raise StorageError(refusal.message, refusal.kind)
        try:
            prove()
        except StorageError as error:
            if error.kind is ErrorKind.NO_CONDITIONAL_WRITES:
                self._bad[place] = time.monotonic(), error
            raise
        return True, 0


def is_single_writer(settings: StorageSettings) -> bool:
    """Whether somebody vouches for being the only one who writes."""
    return settings.unsafe_use_conditional_create is False and settings.unsafe_use_conditional_update is False


def no_conditional_writes(place: str, found: str) -> StorageError:
    """The error for a store that was found without them; ``found`` says how."""
    return StorageError(
        f"{place} {found}: the commits of two writers would overwrite each other without a notice, so nothing was "
        f"written. Use a store with conditional writes, or a newer version of this one. {OPT_IN}",
        ErrorKind.NO_CONDITIONAL_WRITES,
    )
