"""How objects are written, copied and deleted, one request each.

:func:`put_if` makes one attempt at a conditional write. What its answer means is settled in
:mod:`.conditional_writes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from icechunk_engine._runtime.pools import map_parts
from icechunk_engine.errors import ObjectNotFoundError
from icechunk_engine.storage.base import Version
from icechunk_engine.storage.object_store.buckets import StoreKind
from icechunk_engine.storage.object_store.lost_answers import WRITE_ID, Attempt
from icechunk_engine.storage.object_store.metadata import version_of
from icechunk_engine.storage.object_store.objects import ObjectsBelow
from icechunk_engine.storage.object_store.reading import read_info
from icechunk_engine.storage.object_store.store_errors import CutShortError

if TYPE_CHECKING:
    from icechunk_engine.storage.object_store.obstore_types import PutMode

_COPY_ATTEMPTS = 3
_COUNTED_DELETES = 16
"""Up to this many keys are looked up before they are deleted, because stores do not report which ones existed."""


def put_object(place: ObjectsBelow, key: str, data: bytes | memoryview) -> Version:
    """Write or overwrite an object; a large one in parts."""
    payload = data if isinstance(data, bytes) else memoryview(data).cast("B")
    limit = place.settings.minimum_size_for_multipart_upload
    done = place.requests(key).put(
        payload,
        attributes=_attributes(place, key),
        multipart=limit is not None and len(payload) >= limit,
        part_bytes=place.sizes.upload_bytes(len(payload)),
        max_parts_at_once=max(place.sizes.most, 1),
    )
    return version_of(place.bucket.kind, done)


def put_if(place: ObjectsBelow, key: str, data: bytes, attempt: Attempt, *, quoted: bool) -> Version:
    """Write an object on the condition of an attempt.

    Parameters
    ----------
    quoted
        Write the etag of the condition in quotes, as the standard says. Some stores want it without.

    Raises
    ------
    RefusedError
        The store says that the condition does not hold.
    """
    mode: PutMode = "create"
    if attempt.expected is not None and place.bucket.kind is StoreKind.GCS:
        mode = {"version": attempt.expected}
    elif attempt.expected is not None:
        mode = {"e_tag": f'"{attempt.expected}"' if quoted else attempt.expected}
    done = place.requests(key).put(data, mode=mode, attributes=_attributes(place, key, attempt.write_id))
    return version_of(place.bucket.kind, done)


def copy_object(place: ObjectsBelow, source: str, target: str) -> None:
    """Copy an object inside the store. Raises ObjectNotFoundError."""
    requests = place.requests(source)
    for attempts_left in reversed(range(_COPY_ATTEMPTS)):
        try:
            return requests.copy_to(place.path(target))
        except CutShortError:  # the client repeats other failures, but not this one; copying twice does no harm
            if not attempts_left:
                raise
    return None


def delete_objects(place: ObjectsBelow, keys: Iterable[str]) -> int:
    """Delete objects. Returns how many existed; of more than 16, how many were given."""
    wanted = list(keys)
    if len(wanted) <= _COUNTED_DELETES:
        infos = map_parts(lambda key: read_info(place, key), wanted)
        wanted = [key for key, info in zip(wanted, infos, strict=True) if info is not None]
    if not wanted:
        return 0
    try:
        place.requests("").delete([place.path(key) for key in wanted])
    except ObjectNotFoundError:  # some stores stop at the first object that is missing
        return sum(delete_object(place, key) for key in wanted)
    return len(wanted)


def delete_object(place: ObjectsBelow, key: str) -> bool:
    """Delete one object. Returns False if the store says that it did not exist."""
    try:
        place.requests(key).delete()
    except ObjectNotFoundError:
        return False
    return True


def _attributes(place: ObjectsBelow, key: str, write_id: str | None = None) -> dict[str, str] | None:
    settings = place.settings
    special = settings.chunks_storage_class if key.startswith("chunks/") else settings.metadata_storage_class
    storage_class = special or settings.storage_class
    attributes = {"Storage-Class": storage_class} if storage_class else {}
    if write_id is not None and settings.unsafe_use_metadata:
        attributes[WRITE_ID] = write_id
    return attributes or None
