"""Objects in S3 and compatible stores, Google Cloud Storage, Azure Blob Storage and on web servers, through obstore.

The only module that imports obstore. Its synchronous calls are used, on the engine's threads: its asynchronous ones
may abort the interpreter at exit. They work in no forked child, so a child is refused instead of left hanging.

Clients are made when they are first used, and shared by all storages of a process that mean the same bucket.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Buffer, Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from icechunk_engine._runtime.locks import forget_in_child
from icechunk_engine._runtime.pools import map_parts
from icechunk_engine.config import StorageSettings, default_storage_settings
from icechunk_engine.errors import (
    ErrorKind,
    IcechunkError,
    ObjectNotFoundError,
    StorageError,
    VersionMismatchError,
)
from icechunk_engine.storage.base import PROBE_PREFIX, ObjectInfo, Storage, Version
from icechunk_engine.storage.conditional_writes import Proofs, no_conditional_writes
from icechunk_engine.storage.object_store.authentication import access
from icechunk_engine.storage.object_store.buckets import Bucket, StoreKind, with_settings
from icechunk_engine.storage.object_store.lost_answers import (
    WRITE_ID,
    WRITE_ID_SPELLINGS,
    Attempt,
    Found,
    Outcome,
    judge,
)
from icechunk_engine.storage.object_store.store_errors import (
    CutShortError,
    RefusedError,
    UnsatisfiableRangeError,
    short_text,
    translated,
)
from icechunk_engine.storage.ranges import PartSizes, check_range, too_short
from icechunk_engine.storage.store_clock import StoreClock

_log = logging.getLogger(__name__)

_DEFAULTS = default_storage_settings("object_store")
_SIZES = PartSizes.of(_DEFAULTS)
_CONDITIONAL_TRIES = 6
_COUNTED_DELETES = 16
"""Up to so many keys are looked up before they are deleted, because stores do not say what was there."""

_DAY = timedelta(days=1)
_SMALL_UPLOAD = 2**16
_UPLOAD_PATIENCE = 15
"""The client takes the time in which a body is sent for silence of the store. A large one, and many at a time, may
take long on a slow link, and are given so many times the time."""

_NO_VERSION = Version("1")
"""Of no object, in a form that every kind of store takes."""

_PROOFS = Proofs()

_COMPARE_WITHOUT_QUOTES: set[str] = set()
"""Buckets that want etags in conditions without the quotes of the standard (Ceph); found out by being refused."""

_WITHOUT_ETAGS: set[str] = set()
"""Servers whose answers do not say for sure which version they are of: parts of several cannot be put together."""


class ObjectStorage(Storage):
    """The objects below a prefix of a bucket.

    Parameters
    ----------
    bucket
        Where, with which credentials.
    prefix
        Without slashes at its ends; empty for the whole bucket.
    settings
        Retries, timeouts, storage classes, conditional writes.

    Notes
    -----
    :meth:`delete` of more than 16 keys counts those that were not there as removed: object stores do not tell.
    """

    is_remote = True

    def __init__(self, bucket: Bucket, prefix: str = "", settings: StorageSettings = _DEFAULTS) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.settings = settings
        self._start = f"{self.prefix}/" if self.prefix else ""
        self._place = with_settings(bucket, settings)
        self._sizes = PartSizes.of(settings)
        self._clock = StoreClock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.bucket, self.prefix, self.settings)

    @property
    def identity(self) -> str:
        return f"{self.bucket.url}/{self.prefix}" if self.prefix else self.bucket.url

    def with_settings(self, settings: StorageSettings) -> ObjectStorage:
        merged = _DEFAULTS.merge(settings)
        return self if merged == self.settings else type(self)(self.bucket, self.prefix, merged)

    # --- reading -----------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        return self._read(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, Version]:
        data, found = self._read(key)
        return data, found.version

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        if start == stop:  # no request can ask for nothing
            found = self.info(key)
            if found is None:
                raise self._missing(key)
            if found.size_bytes < stop:
                raise too_short(f"{key!r} in {self.identity}", found.size_bytes, stop)
            return b""
        return read_range(self._place, self._start + key, start, stop, f"{key!r} in {self.identity}", self._sizes).data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix.startswith("/") or "//" in prefix:
            return
        # The client lists directories, the contract is about text.
        directory = prefix.rpartition("/")[0]
        n = len(self._start)
        call = self._call(prefix)
        with call:
            pages = call.obstore.list(call.reader, prefix=self._start + directory)
        while True:
            with call:
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                key = meta["path"][n:]
                if key.startswith(prefix):
                    yield _info(key, meta)

    def info(self, key: str) -> ObjectInfo | None:
        call = self._call(key)
        try:
            with call:
                found = _info(key, call.obstore.head(call.reader, call.path))
        except ObjectNotFoundError:
            return None
        self._clock.hear(found.last_modified_us)
        return found

    def clock_lower_bound_us(self) -> int | None:
        return self._clock.now_us()

    # --- writing -----------------------------------------------------------------------------------------------

    def put(self, key: str, data: bytes | memoryview, *, atomic: bool = True) -> None:
        self._require_conditions()
        self._put(key, data)

    def create(self, key: str, data: bytes) -> Version:
        if not self.settings.unsafe_use_conditional_create:
            return self._write_alone(key, data, None)
        self._require_conditions()
        return self._write_if(key, data, None)

    def replace(self, key: str, data: bytes, version: Version) -> Version:
        if not self.settings.unsafe_use_conditional_update:
            return self._write_alone(key, data, version)
        self._require_conditions()
        return self._write_if(key, data, version)

    def copy(self, source: str, target: str) -> None:
        self._require_conditions()
        call = self._call(source)
        for last in (False, False, True):
            try:
                with call:
                    call.obstore.copy(call.writer, call.path, self._start + target)
                return
            except CutShortError:  # the client repeats other failures, but not this one; a copy may be made again
                if last:
                    raise

    def delete(self, keys: Iterable[str]) -> int:
        wanted = list(keys)
        if len(wanted) <= _COUNTED_DELETES:
            infos = map_parts(self.info, wanted)
            wanted = [key for key, info in zip(wanted, infos, strict=True) if info is not None]
        if not wanted:
            return 0
        call = self._call("")
        try:
            with call:
                call.obstore.delete(call.writer, [self._start + key for key in wanted])
        except ObjectNotFoundError:  # some stores stop at the first that is missing
            return sum(self._delete_one(key) for key in wanted)
        return len(wanted)

    # --- parts -------------------------------------------------------------------------------------------------

    def _call(self, key: str) -> _Call:
        return _Call(self._place, self._start + key, f"{key!r} in {self.identity}")

    def _delete_one(self, key: str) -> bool:
        call = self._call(key)
        try:
            with call:
                call.obstore.delete(call.writer, call.path)
        except ObjectNotFoundError:
            return False
        return True

    def _read(self, key: str, *, in_parts: bool = True) -> tuple[bytes, Found]:
        """An object. Of a large one the answer gives the first part only, the others are asked for meanwhile."""
        call = self._call(key)
        with call:
            result = call.obstore.get(call.reader, call.path)
            attributes, meta = result.attributes, result.meta
            write_id = next((attributes[name] for name in WRITE_ID_SPELLINGS if name in attributes), None)
            found = Found(_version(self.bucket.kind, meta), write_id)
            self._clock.hear(_modified_us(meta))
            first, *others = self._sizes.cut(0, meta["size"])
            if not others or not in_parts or not _tells_version(meta["e_tag"]):
                return result.bytes().to_bytes(), found

        def read(part: tuple[int, int]) -> Part:
            if part != first:
                return _read_part_of(self._place, call.path, call.shown, *part)
            with call:
                return Part(_beginning(result, first[1]), meta["e_tag"], meta["last_modified"])

        try:
            whole = _joined(map_parts(read, [first, *others]))
        except StorageError as error:
            if error.kind is not ErrorKind.INVALID_OBJECT_SIZE:
                raise
            whole = None  # it was replaced by a shorter one, which is as good
        return self._read(key, in_parts=False) if whole is None else (whole.data, found)

    def _put(self, key: str, data: bytes | memoryview) -> Version:
        payload = data if isinstance(data, bytes) else memoryview(data).cast("B")
        limit = self.settings.minimum_size_for_multipart_upload
        call = self._call(key)
        with call:
            done = call.obstore.put(
                call.uploader(len(payload)),
                call.path,
                payload,
                attributes=self._attributes(key) or None,
                use_multipart=limit is not None and len(payload) >= limit,
                chunk_size=self._sizes.upload_bytes(len(payload)),
                max_concurrency=max(self._sizes.most, 1),
            )
        return _version(self.bucket.kind, done)

    def _require_conditions(self) -> None:
        """Refuse a store that ignores the conditions on which commits rely, before anything is written there."""
        settings = self.settings
        used = settings.unsafe_use_conditional_create, settings.unsafe_use_conditional_update
        if any(used) and not self.bucket.is_of_a_cloud:
            _PROOFS.require((self.bucket.url, *used), self._prove_conditions)

    def _prove_conditions(self) -> None:
        key = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        wrong: list[tuple[Version | None, str]] = []
        if self.settings.unsafe_use_conditional_create:
            wrong.append((None, "lets an object be created that exists already"))
        if self.settings.unsafe_use_conditional_update:
            wrong.append((_NO_VERSION, "lets an object be replaced that is not the version named"))
        self._put(key, b"")
        try:
            map_parts(lambda case: self._must_refuse(key, *case), wrong)
        finally:
            try:
                self._delete_one(key)
            except StorageError as error:
                _log.warning("%s: %r could not be removed again, and may be removed: %s", self.identity, key, error)

    def _must_refuse(self, key: str, expected: Version | None, otherwise: str) -> None:
        try:
            self._try(key, b"", Attempt(str(uuid.uuid4()), expected), quoted=True)
        except RefusedError:
            return
        except StorageError as error:
            if error.kind is not ErrorKind.STORAGE_CONFIG:
                raise
            raise no_conditional_writes(self.bucket.url, f"has no conditional writes ({error})") from error
        raise no_conditional_writes(self.bucket.url, otherwise)

    def _write_alone(self, key: str, data: bytes, expected: Version | None) -> Version:
        """For a single writer, who has said so: look, then write."""
        try:
            present = self._read(key)[1].version
        except ObjectNotFoundError:
            present = None
        if present != expected:
            raise self._lost(key, expected)
        return self._put(key, data)

    def _write_if(self, key: str, data: bytes, expected: Version | None) -> Version:
        """Write on a condition, and settle by reading what an answer leaves open (:mod:`.lost_answers`)."""
        attempt = Attempt(str(uuid.uuid4()), expected)
        for n in range(_CONDITIONAL_TRIES):
            quoted = (n % 2 == 0) is (self.bucket.url not in _COMPARE_WITHOUT_QUOTES)
            try:
                version = self._try(key, data, attempt, quoted=quoted)
            except RefusedError:
                failure = None
            except StorageError as error:
                if error.kind is ErrorKind.STORAGE_CONFIG:
                    raise
                failure = error
            else:
                if expected is not None and not quoted:
                    _COMPARE_WITHOUT_QUOTES.add(self.bucket.url)
                return version
            found = None
            try:
                _, found = self._read(key)
            except ObjectNotFoundError:
                pass
            except StorageError as error:
                raise failure or error from None
            match judge(attempt, found):
                case Outcome.WON:
                    assert found is not None
                    return found.version
                case Outcome.LOST:
                    raise self._lost(key, expected)
            if failure is not None:
                raise failure  # nothing of ours is there, but it may still be on its way: not to be repeated here
            # A concurrent request was in the way, or the store wants the etag without its quotes.
            time.sleep(random.uniform(0, 0.02 * 2**n))
        raise StorageError(
            f"{self.identity} refused {_CONDITIONAL_TRIES} times to write {key!r} although its condition held. Try "
            f"again; if that does not help, the store has no conditional writes and cannot hold a repository that is "
            f"written to",
            ErrorKind.OBJECT_STORE,
        )

    def _try(self, key: str, data: bytes, attempt: Attempt, *, quoted: bool) -> Version:
        mode: Any = "create"
        if attempt.expected is not None and self.bucket.kind is StoreKind.GCS:
            mode = {"version": attempt.expected}
        elif attempt.expected is not None:
            mode = {"e_tag": f'"{attempt.expected}"' if quoted else str(attempt.expected)}
        call = self._call(key)
        with call:
            done = call.obstore.put(
                call.uploader(len(data)),
                call.path,
                data,
                mode=mode,
                attributes=self._attributes(key, attempt.write_id) or None,
            )
        return _version(self.bucket.kind, done)

    def _attributes(self, key: str, write_id: str | None = None) -> dict[str, str]:
        special = self.settings.chunks_storage_class
        if not key.startswith("chunks/"):
            special = self.settings.metadata_storage_class
        storage_class = special or self.settings.storage_class
        attributes = {"Storage-Class": storage_class} if storage_class else {}
        if write_id is not None and self.settings.unsafe_use_metadata:
            attributes[WRITE_ID] = write_id
        return attributes

    def _lost(self, key: str, expected: Version | None) -> VersionMismatchError:
        found = "exists already" if expected is None else "is not the version that was read"
        return VersionMismatchError(f"{key!r} in {self.identity} {found}: read it and decide anew")

    def _missing(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(f"no object {key!r} in {self.identity}")


class Part(NamedTuple):
    """What one request gave; the bytes may still be the client's."""

    data: Buffer
    etag: str | None
    last_modified: datetime


class RangeRead(NamedTuple):
    """Bytes of an object, and which version of it they are of."""

    data: bytes
    etag: str | None
    last_modified: datetime


type PartReader = Callable[[int, int], Part]
"""Reads a range by one request."""


def read_range(
    bucket: Bucket,
    path: str,
    start: int,
    stop: int,
    shown: str,
    sizes: PartSizes = _SIZES,
    *,
    read_part: PartReader | None = None,
) -> RangeRead:
    """Bytes ``start:stop`` (at least one) of one version of an object; a large range in parts at the same time.

    Parameters
    ----------
    shown
        Names the object in errors.
    read_part
        Reads ranges of the object otherwise than through obstore.

    Raises
    ------
    ObjectNotFoundError
        No such object.
    StorageError
        ``invalid-object-size``, and whatever the store says.
    """
    read = read_part or partial(_read_part_of, bucket, path, shown)
    parts = [(start, stop)] if bucket.url in _WITHOUT_ETAGS else sizes.cut(start, stop)
    whole = _joined(map_parts(lambda part: read(*part), parts))
    if whole is not None and len(parts) > 1 and not _tells_version(whole.etag):
        _WITHOUT_ETAGS.add(bucket.url)
        whole = None
    if whole is None:
        part = read(start, stop)
        whole = RangeRead(bytes(part.data), part.etag, part.last_modified)
    return whole


def _tells_version(etag: str | None) -> bool:
    """False for none, and for a weak one, which two contents may have (RFC 9110 §8.8.1)."""
    return etag is not None and not etag.startswith("W/")


def _joined(parts: list[Part]) -> RangeRead | None:
    """Parts as one; None if they are of several versions of the object, which was replaced meanwhile."""
    first = parts[0]
    if any(part.etag != first.etag for part in parts):
        return None
    return RangeRead(b"".join([part.data for part in parts]), first.etag, first.last_modified)


def _beginning(result: Any, stop: int) -> Buffer:
    """The first bytes of an answer, of which nothing more is received."""
    pieces, size = [], 0
    for piece in result.stream(min_chunk_size=stop):
        pieces.append(piece)
        size += len(piece)
        if size >= stop:
            break
    return memoryview(b"".join(pieces))[:stop]


def _read_part_of(bucket: Bucket, path: str, shown: str, start: int, stop: int) -> Part:
    """One request."""
    call = _Call(bucket, path, shown)
    size_bytes = None
    try:
        with call:
            result = call.obstore.get(call.reader, path, options={"range": (start, stop)})
            meta = result.meta
            size_bytes = meta["size"]
            if stop <= size_bytes:
                return Part(result.bytes(), meta["e_tag"], meta["last_modified"])
    except StorageError as error:
        if not isinstance(error, UnsatisfiableRangeError):
            raise
        with call:
            size_bytes = call.obstore.head(call.reader, path)["size"]
    raise too_short(shown, size_bytes, stop)


# --- clients -------------------------------------------------------------------------------------------------------


class _Clients:
    """The process's clients, by bucket, headers and patience."""

    def __init__(self) -> None:
        self._clients: dict[tuple[Bucket, bool, bool], Any] = {}
        self._forked = False

    def get(self, bucket: Bucket, *, writes: bool, uploads: bool = False) -> Any:
        if self._forked:
            raise StorageError(
                "this process was forked from one that had used object stores, whose connections do not survive a "
                "fork. Start processes with multiprocessing.get_context('spawn') or 'forkserver'",
                ErrorKind.STORAGE_CONFIG,
            )
        writes = writes and bucket.read_headers != bucket.write_headers
        kind = bucket, writes, uploads
        client = self._clients.get(kind)
        if client is None:  # two threads may open one each at the same time; the first that is there serves both
            client = self._clients.setdefault(kind, _open(*kind))
        return client

    def forget(self) -> None:
        """In a forked child."""
        self._forked = self._forked or bool(self._clients)


_CLIENTS = forget_in_child(_Clients())


def _open(bucket: Bucket, writes: bool, uploads: bool) -> Any:
    """A client; no request is made."""
    _import_obstore()
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    classes: dict[StoreKind, Any] = {StoreKind.S3: S3Store, StoreKind.GCS: GCSStore, StoreKind.AZURE: AzureStore}
    client: Any = {"user_agent": "xarray-icechunk", **dict(bucket.client)}
    silence = client.get("read_timeout")
    if uploads and isinstance(silence, timedelta):
        client["read_timeout"] = min(_UPLOAD_PATIENCE * silence, max(silence, _DAY))
    headers = dict(bucket.write_headers if writes else bucket.read_headers)
    if headers:
        client["default_headers"] = headers
    retry: Any = dict(bucket.retry)
    if "backoff" in retry:
        retry["backoff"] = dict(retry["backoff"])
    try:
        if bucket.kind is StoreKind.HTTP:
            return HTTPStore.from_url(bucket.name, client_options=client, retry_config=retry or None)
        options = dict(bucket.options)
        given = access(bucket.kind, bucket.credential, options)
        return classes[bucket.kind](
            bucket.name,
            config=options | given.options,
            client_options=client,
            retry_config=retry or None,
            credential_provider=given.provider,
        )
    except IcechunkError:
        raise
    except Exception as error:
        raise StorageError(
            f"cannot set up access to {bucket.url}: {short_text(error)}. Correct the options or credentials",
            ErrorKind.STORAGE_CONFIG,
        ) from None


def _import_obstore() -> ModuleType:
    try:
        import obstore
    except ImportError as error:
        raise StorageError(
            "object stores need the package obstore, which is not installed; install it with\n"
            "    pip install 'xarray-icechunk[cloud]'",
            ErrorKind.STORAGE_CONFIG,
        ) from error
    return obstore


# --- calls ----------------------------------------------------------------------------------------------------------


class _Call:
    """A context in which obstore's errors become ours."""

    __slots__ = ("bucket", "path", "shown")

    def __init__(self, bucket: Bucket, path: str, shown: str) -> None:
        self.bucket = bucket
        self.path = path
        self.shown = shown

    @property
    def obstore(self) -> Any:
        return _import_obstore()

    @property
    def reader(self) -> Any:
        return _CLIENTS.get(self.bucket, writes=False)

    @property
    def writer(self) -> Any:
        return _CLIENTS.get(self.bucket, writes=True)

    def uploader(self, n_bytes: int) -> Any:
        return _CLIENTS.get(self.bucket, writes=True, uploads=n_bytes > _SMALL_UPLOAD)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, IcechunkError):
            raise translated(error, self.shown, self.bucket.url) from None


# --- values --------------------------------------------------------------------------------------------------------


def _version(kind: StoreKind, meta: Any) -> Version:
    """The generation on Google Cloud Storage, elsewhere the etag."""
    if kind is StoreKind.GCS:
        return Version(meta["version"] or "")
    return Version(bare_etag(meta["e_tag"] or ""))


def bare_etag(etag: str) -> str:
    """An etag without quotes and mark of weakness, which some put around it, and some do not."""
    return etag.removeprefix("W/").strip('"')


def _info(key: str, meta: Any) -> ObjectInfo:
    # Whole seconds, which is what every request of every store can tell.
    return ObjectInfo(key, meta["size"], _modified_us(meta))


def _modified_us(meta: Any) -> int:
    return int(meta["last_modified"].timestamp()) * 1_000_000
