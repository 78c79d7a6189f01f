"""Conditional writes that report what really happened, even if the answer of the store was lost.

**What is always true.** :func:`write_if` returns only if the object is what we wrote, and raises VersionMismatchError
only if somebody else's write is there. Any other error means that nobody knows: the write may still arrive.

**Why it holds.** After a refusal or a failure, the object is read and :func:`.lost_answers.outcome_of` compares its
write id with ours. If nothing of ours is there after a refusal, the condition should have held, so the store is asked
again. If nothing of ours is there after a failure, the write may still be on its way. It is not repeated here: the
caller recognises its own update by the ops log.

**What would break it.** Taking a refusal at its word: the client repeats a request whose answer was lost, and the
store refuses the second one because of the first.
"""

from __future__ import annotations

import random
import time
import uuid

from icechunk_engine.errors import ErrorKind, ObjectNotFoundError, StorageError, VersionMismatchError
from icechunk_engine.storage.base import Version
from icechunk_engine.storage.object_store.lost_answers import Attempt, FoundObject, Outcome, outcome_of
from icechunk_engine.storage.object_store.objects import ObjectsBelow
from icechunk_engine.storage.object_store.reading import read_object
from icechunk_engine.storage.object_store.store_errors import RefusedError
from icechunk_engine.storage.object_store.writing import put_if, put_object

_ATTEMPTS = 6

_COMPARE_WITHOUT_QUOTES: set[str] = set()
"""Buckets that want etags in conditions without the quotes of the standard (Ceph). They show it by refusing."""


def write_if(place: ObjectsBelow, key: str, data: bytes, expected: Version | None) -> Version:
    """Write an object if it has the expected version, or if ``expected`` is None and it does not exist."""
    attempt = Attempt(str(uuid.uuid4()), expected)
    for n in range(_ATTEMPTS):
        quoted = (n % 2 == 0) is (place.bucket.url not in _COMPARE_WITHOUT_QUOTES)
        try:
            version = put_if(place, key, data, attempt, quoted=quoted)
        except RefusedError:
            failure = None
        except StorageError as error:
            if error.kind is ErrorKind.STORAGE_CONFIG:
                raise
            failure = error
        else:
            if expected is not None and not quoted:
                _COMPARE_WITHOUT_QUOTES.add(place.bucket.url)
            return version
        version_won = _version_if_won(place, key, attempt, failure)
        if version_won is not None:
            return version_won
        if failure is not None:
            raise failure  # the write may still be on its way, so it is not repeated here
        # A concurrent request was in the way, or the store wants the etag without its quotes.
        time.sleep(random.uniform(0, 0.02 * 2**n))
    raise StorageError(
        f"{place.identity} refused {_ATTEMPTS} times to write {key!r} although its condition held. Try again. If that "
        f"does not help, the store has no conditional writes, and you cannot write to a repository there",
        ErrorKind.OBJECT_STORE,
    )


def write_as_single_writer(place: ObjectsBelow, key: str, data: bytes, expected: Version | None) -> Version:
    """Compare, then write. Safe only for a user who is the only writer and has said so."""
    try:
        present = read_object(place, key)[1].version
    except ObjectNotFoundError:
        present = None
    if present != expected:
        raise _mismatch(place, key, expected)
    return put_object(place, key, data)


def _version_if_won(place: ObjectsBelow, key: str, attempt: Attempt, failure: StorageError | None) -> Version | None:
    """Read the object after a refusal or a failure. Returns its version if it is ours, None if it is unchanged."""
    found: FoundObject | None = None
    try:
        _, found = read_object(place, key)
    except ObjectNotFoundError:
        pass
    except StorageError as error:
        raise failure or error from None
    match outcome_of(attempt, found):
        case Outcome.WON:
            assert found is not None
            return found.version
        case Outcome.LOST:
            raise _mismatch(place, key, attempt.expected)
        case Outcome.UNTOUCHED:
            return None


def _mismatch(place: ObjectsBelow, key: str, expected: Version | None) -> VersionMismatchError:
    found = "already exists" if expected is None else "is not the version that was read"
    return VersionMismatchError(f"{place.shown(key)} {found}. Read it and decide again")
