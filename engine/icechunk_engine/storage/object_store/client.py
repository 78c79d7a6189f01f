"""The only module that calls obstore: clients, the requests they make, and obstore's errors turned into ours.

**What is always true.** Every request to an object store uses obstore's synchronous calls, on a thread of the engine.
Its asynchronous calls may abort the interpreter at exit. A client is made when it is first used, and all storages of a
process that mean the same bucket share it.

**What would break it.** Using a client in a forked child: its connections and threads belong to the parent, and a
request would hang. So a child is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from icechunk_engine._runtime.locks import forget_in_child
from icechunk_engine.errors import ErrorKind, IcechunkError, StorageError
from icechunk_engine.storage.object_store.authentication import azure_access, gcs_access, s3_access
from icechunk_engine.storage.object_store.buckets import Bucket, StoreKind
from icechunk_engine.storage.object_store.store_errors import short_text, translated

if TYPE_CHECKING:
    from icechunk_engine.storage.object_store.obstore_types import (
        AzureConfig,
        AzureStore,
        ClientConfig,
        GCSConfig,
        GCSStore,
        GetResult,
        HTTPStore,
        ObjectMeta,
        PutMode,
        PutResult,
        RetryConfig,
        S3Config,
        S3Store,
    )

type Client = S3Store | GCSStore | AzureStore | HTTPStore

_DAY = timedelta(days=1)
_SMALL_UPLOAD = 2**16
_UPLOAD_PATIENCE = 15
"""The client counts the time that it takes to send a body as silence of the store. A large upload on a slow link can
take long, especially beside others, so its read timeout is this many times longer."""


class ObjectRequests:
    """The requests about one object of a bucket. A context manager: inside it, obstore's errors become ours.

    Attributes
    ----------
    path
        Of the object; for a listing, of the directory.
    shown
        Names the object in errors.
    """

    __slots__ = ("bucket", "path", "shown")

    def __init__(self, bucket: Bucket, path: str, shown: str) -> None:
        self.bucket = bucket
        self.path = path
        self.shown = shown

    def get(self) -> GetResult:
        """Begin to read the object. Its body is read later, inside the context of this object."""
        with self:
            return self._reader.get(self.path)

    def get_range(self, start: int, stop: int) -> GetResult:
        """Begin to read a range of at least one byte."""
        with self:
            return self._reader.get(self.path, options={"range": (start, stop)})

    def head(self) -> ObjectMeta:
        """Return what the store says about the object."""
        with self:
            return self._reader.head(self.path)

    def pages(self) -> Iterator[Sequence[ObjectMeta]]:
        """List the directory, some objects at a time."""
        with self:
            stream = self._reader.list(self.path)
        while True:
            with self:
                page = next(stream, None)
            if page is None:
                return
            yield page

    def put(
        self,
        data: bytes | memoryview,
        *,
        mode: PutMode | None = None,
        attributes: dict[str, str] | None = None,
        multipart: bool | None = None,
        part_bytes: int = 5 * 2**20,
        max_parts_at_once: int = 12,
    ) -> PutResult:
        """Write the object, in parts if ``multipart`` is True; ``mode`` is the condition of the write."""
        with self:
            client = _CLIENTS.get(self.bucket, writes=True, uploads=len(data) > _SMALL_UPLOAD)
            return client.put(
                self.path,
                data,
                mode=mode,
                attributes=attributes,
                use_multipart=multipart,
                chunk_size=part_bytes,
                max_concurrency=max_parts_at_once,
            )

    def copy_to(self, path: str) -> None:
        """Copy the object inside the bucket."""
        with self:
            self._writer.copy(self.path, path)

    def delete(self, paths: Sequence[str] | None = None) -> None:
        """Delete the object, or several of the bucket."""
        with self:
            self._writer.delete(self.path if paths is None else paths)

    @property
    def _reader(self) -> Client:
        return _CLIENTS.get(self.bucket, writes=False)

    @property
    def _writer(self) -> Client:
        return _CLIENTS.get(self.bucket, writes=True)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, IcechunkError):
            raise translated(error, self.shown, self.bucket.url) from None


class _Clients:
    """The clients of this process, by bucket, headers and read timeout."""

    def __init__(self) -> None:
        self._clients: dict[tuple[Bucket, bool, bool], Client] = {}
        self._is_forked = False

    def get(self, bucket: Bucket, *, writes: bool, uploads: bool = False) -> Client:
        if self._is_forked:
            raise StorageError(
                "this process was forked from one that had used object stores, whose connections do not survive a "
                "fork. Start processes with multiprocessing.get_context('spawn') or 'forkserver'",
                ErrorKind.STORAGE_CONFIG,
            )
        writes = writes and bucket.read_headers != bucket.write_headers
        kind = bucket, writes, uploads
        client = self._clients.get(kind)
        if client is None:  # two threads may each open one at the same time; both use the first that is in place
            client = self._clients.setdefault(kind, _open(*kind))
        return client

    def forget(self) -> None:
        """Called in a forked child."""
        self._is_forked = self._is_forked or bool(self._clients)


_CLIENTS = forget_in_child(_Clients())


def _open(bucket: Bucket, writes: bool, uploads: bool) -> Client:
    """Make a client. No request is made."""
    if find_spec("obstore") is None:
        raise StorageError(
            "object stores need the package obstore, which is not installed; install it with\n"
            "    pip install 'xarray-icechunk[cloud]'",
            ErrorKind.STORAGE_CONFIG,
        )
    try:
        return _store(bucket, _client_config(bucket, writes, uploads), _retry_config(bucket))
    except IcechunkError:
        raise
    except Exception as error:
        raise StorageError(
            f"cannot set up access to {bucket.url}: {short_text(error)}. Correct the options or credentials",
            ErrorKind.STORAGE_CONFIG,
        ) from None


def _store(bucket: Bucket, client: ClientConfig, retry: RetryConfig | None) -> Client:
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    options = dict(bucket.options)
    match bucket.kind:
        case StoreKind.S3:
            s3 = s3_access(bucket.credential)
            return S3Store(
                bucket.name,
                config=cast("S3Config", options | s3.options),
                client_options=client,
                retry_config=retry,
                credential_provider=s3.provider,
            )
        case StoreKind.GCS:
            gcs = gcs_access(bucket.credential, str(options.get("base_url", "https://storage.googleapis.com")))
            return GCSStore(
                bucket.name,
                config=cast("GCSConfig", options | gcs.options),
                client_options=client,
                retry_config=retry,
                credential_provider=gcs.provider,
            )
        case StoreKind.AZURE:
            azure = azure_access(bucket.credential)
            return AzureStore(
                bucket.name,
                config=cast("AzureConfig", options | azure.options),
                client_options=client,
                retry_config=retry,
                credential_provider=azure.provider,
            )
        case StoreKind.HTTP:
            return HTTPStore.from_url(bucket.name, client_options=client, retry_config=retry)


def _client_config(bucket: Bucket, writes: bool, uploads: bool) -> ClientConfig:
    options: dict[str, object] = {"user_agent": "xarray-icechunk", **dict(bucket.client)}
    silence = options.get("read_timeout")
    if uploads and isinstance(silence, timedelta):
        options["read_timeout"] = min(_UPLOAD_PATIENCE * silence, max(silence, _DAY))
    headers = dict(bucket.write_headers if writes else bucket.read_headers)
    if headers:
        options["default_headers"] = headers
    return cast("ClientConfig", options)


def _retry_config(bucket: Bucket) -> RetryConfig | None:
    options: dict[str, object] = {
        name: dict(value) if isinstance(value, tuple) else value for name, value in bucket.retry
    }
    return cast("RetryConfig", options) if options else None
