"""A test of whether a store honours the conditions of conditional writes, made before the first write.

**What is always true.** This process writes nothing below an endpoint of the user's until that store has refused a
write whose condition does not hold. The clouds' own stores are known to refuse such writes and are not tested.

**Why it is needed.** A store that only has the interface of S3 may accept a condition and ignore it. Then commits
overwrite each other and nobody is told.

**How.** Each process writes one object below ``doctor/``, tries to create it again and to replace a version that
never existed, and removes it. The answer holds for the process. A refusal is repeated for some seconds without
asking, because other writes often follow at once.

**What would break it.** Asking again for every write, which costs requests. Asking only about one of the two
conditions: some stores keep one and not the other. Waiting without a limit for another thread's answer: this runs in
tasks of a pool (rule 3 of :mod:`icechunk_engine._runtime.locks`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Hashable

from icechunk_engine._runtime.pools import map_parts
from icechunk_engine._runtime.shared_loads import SharedLoads
from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage.base import PROBE_PREFIX, Version
from icechunk_engine.storage.object_store.lost_answers import Attempt
from icechunk_engine.storage.object_store.objects import ObjectsBelow
from icechunk_engine.storage.object_store.store_errors import RefusedError
from icechunk_engine.storage.object_store.writing import delete_object, put_if, put_object
from icechunk_engine.storage.single_writer import SINGLE_WRITER_HINT

_log = logging.getLogger(__name__)

_REFUSALS_LAST_S = 10
_PATIENCE_S = 60.0

_NO_VERSION = Version("1")
"""The version of no object, in a form that every kind of store accepts."""


class ProbeResults:
    """What this process knows about places."""

    def __init__(self) -> None:
        self._good: SharedLoads[Hashable, bool] = SharedLoads(0)
        self._bad: dict[Hashable, tuple[float, StorageError]] = {}

    def require(self, place: Hashable, probe: Callable[[], None]) -> None:
        """Call ``probe``, which raises if the place is not good, unless the answer is known.

        If another thread is asking already, wait for its answer.

        Raises
        ------
        StorageError
            What ``probe`` raised, now or a few seconds ago.
        """
        self._good.load(place, lambda place: self._ask(place, probe), patience_s=_PATIENCE_S)

    def _ask(self, place: Hashable, probe: Callable[[], None]) -> tuple[bool, int]:
        asked_at, refusal = self._bad.get(place, (0, None))
        if refusal is not None and time.monotonic() - asked_at < _REFUSALS_LAST_S:
            raise StorageError(refusal.message, refusal.kind)
        try:
            probe()
        except StorageError as error:
            if error.kind is ErrorKind.NO_CONDITIONAL_WRITES:
                self._bad[place] = time.monotonic(), error
            raise
        return True, 0


_RESULTS = ProbeResults()


def require_conditions(place: ObjectsBelow) -> None:
    """Raise StorageError (``no-conditional-writes``) if the store ignores a condition that the settings rely on."""
    settings = place.settings
    used = settings.unsafe_use_conditional_create, settings.unsafe_use_conditional_update
    if any(used) and not place.bucket.is_of_a_cloud:
        _RESULTS.require((place.bucket.url, *used), lambda: _probe(place))


def _probe(place: ObjectsBelow) -> None:
    key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
    wrong: list[tuple[Version | None, str]] = []
    if place.settings.unsafe_use_conditional_create:
        wrong.append((None, "lets an object be created that already exists"))
    if place.settings.unsafe_use_conditional_update:
        wrong.append((_NO_VERSION, "lets an object be replaced although the named version is not there"))
    put_object(place, key, b"")
    try:
        map_parts(lambda case: _require_refusal(place, key, *case), wrong)
    finally:
        try:
            delete_object(place, key)
        except StorageError as error:
            _log.warning("%s: cannot remove the test object %r; you can remove it: %s", place.identity, key, error)


def _require_refusal(place: ObjectsBelow, key: str, expected: Version | None, otherwise: str) -> None:
    try:
        put_if(place, key, b"", Attempt(str(uuid.uuid4()), expected), quoted=True)
    except RefusedError:
        return
    except StorageError as error:
        if error.kind is not ErrorKind.STORAGE_CONFIG:
            raise
        raise _no_conditional_writes(place, f"has no conditional writes ({error})") from error
    raise _no_conditional_writes(place, otherwise)


def _no_conditional_writes(place: ObjectsBelow, found: str) -> StorageError:
    return StorageError(
        f"{place.bucket.url} {found}. Commits of two writers would silently overwrite each other, so nothing was "
        f"written. Use a store with conditional writes, or a newer version of this one. {SINGLE_WRITER_HINT}",
        ErrorKind.NO_CONDITIONAL_WRITES,
    )
