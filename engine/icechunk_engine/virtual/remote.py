"""Read virtual chunks in object stores and on web servers, and check that the objects are unchanged.

The configured container says how to reach the bucket. The reader of the repository says with which credentials. All
locations in a bucket and all repositories of a process share one client.
"""

from __future__ import annotations

from collections.abc import Sequence

from icechunk_engine.columns.chunk_refs import ChunkRef
from icechunk_engine.config import ObjectStoreConfig, S3Options, StorageSettings, VirtualChunkContainer, virtual_urls
from icechunk_engine.credentials import AnyCredential
from icechunk_engine.credentials.types import AzureAccess, GcsAccess, GcsAnonymous, S3Access
from icechunk_engine.errors import ErrorKind, InvalidInputError, ObjectNotFoundError, StorageError
from icechunk_engine.storage.object_store.buckets import (
    Bucket,
    StoreKind,
    azure_bucket,
    gcs_bucket,
    s3_bucket,
    web_server,
    with_settings,
)
from icechunk_engine.storage.object_store.metadata import bare_etag
from icechunk_engine.storage.object_store.reading import PartReader, RangeRead, read_range
from icechunk_engine.virtual import http_servers, s3_literal_keys

_TIGRIS = "https://t3.storage.dev"


def bucket_of(url: str, container: VirtualChunkContainer, credential: AnyCredential | None) -> Bucket:
    """Return the bucket of a canonical URL in a container.

    Parameters
    ----------
    credential
        None means the credentials that the process finds on S3 and Azure, and no credentials on Google Cloud Storage.

    Raises
    ------
    InvalidInputError
        ``storage-config``, ``invalid-config``: the options of the container are invalid.
    """
    return with_settings(_bucket(virtual_urls.authority_of(url), url, container, credential), StorageSettings())


def _bucket(name: str, url: str, container: VirtualChunkContainer, credential: AnyCredential | None) -> Bucket:
    match container.store:
        case ObjectStoreConfig.S3(options) | ObjectStoreConfig.S3Compatible(options):
            return _s3(name, options, credential)
        case ObjectStoreConfig.Tigris(options):
            return _s3(name, options.merge(S3Options(endpoint_url=options.endpoint_url or _TIGRIS)), credential)
        case ObjectStoreConfig.Gcs(opts):
            return gcs_bucket(
                name, credential.credentials if isinstance(credential, GcsAccess) else GcsAnonymous(), opts
            )
        case ObjectStoreConfig.Azure(opts):
            config = dict(opts or {})
            account = config.pop("account", None)
            if account is None:
                raise InvalidInputError(
                    f"the virtual chunk container at {container.url_prefix!r} has no account; set it with "
                    f"azure_store(account='…')",
                    ErrorKind.INVALID_CONFIG,
                )
            blob_container, at, host = name.partition("@")
            if at and host.partition(".")[0] != account:
                raise InvalidInputError(
                    f"the virtual chunk container at {container.url_prefix!r} names another account than its options, "
                    f"{account!r}; correct one of them",
                    ErrorKind.INVALID_CONFIG,
                )
            given = credential.credentials if isinstance(credential, AzureAccess) else None
            return azure_bucket(account, blob_container, given, config)
        case ObjectStoreConfig.Http(opts, headers):
            return web_server(f"{virtual_urls.scheme_of(url)}://{name}", opts, headers)
    raise InvalidInputError(
        f"virtual chunks at {url} cannot be read through {container.store!r}; use a store for this scheme",
        ErrorKind.INVALID_CONFIG,
    )


def _s3(name: str, options: S3Options, credential: AnyCredential | None) -> Bucket:
    return s3_bucket(options, name, credential.credentials if isinstance(credential, S3Access) else None)


def part_reader_of(bucket: Bucket, key: str, url: str, places: Sequence[str], prefix: str) -> PartReader | None:
    """Return a reader for an object that obstore cannot read, or None.

    See :func:`.http_servers.read_part` for the parameters.
    """
    if bucket.kind is StoreKind.HTTP:
        return lambda start, stop: http_servers.read_part(bucket, key, start, stop, url, places=places, prefix=prefix)
    if s3_literal_keys.is_literal(bucket, key):
        return lambda start, stop: s3_literal_keys.read_part(bucket, key, start, stop, url)
    return None


def read_remote(
    bucket: Bucket, key: str, url: str, ref: ChunkRef, start: int, stop: int, part_reader: PartReader | None = None
) -> bytes:
    """Read bytes ``start:stop`` of the object at ``url``.

    Raises
    ------
    StorageError
        ``virtual-chunk-fetch``, ``invalid-object-size``, ``virtual-chunk-modified``.
    """
    try:
        read = read_range(bucket, key, start, stop, url, read_part=part_reader)
    except ObjectNotFoundError:
        raise StorageError(
            f"error fetching virtual reference: object {url} of a virtual chunk does not exist. Put it back, or "
            f"correct the chunk reference",
            ErrorKind.VIRTUAL_CHUNK_FETCH,
        ) from None
    except StorageError as error:
        if error.kind in (ErrorKind.INVALID_OBJECT_SIZE, ErrorKind.STORAGE_CONFIG, ErrorKind.THROTTLED):
            raise
        raise StorageError(
            f"error fetching virtual reference: {error.message}", ErrorKind.VIRTUAL_CHUNK_FETCH
        ) from None
    _require_unchanged(url, read, ref)
    return read.data


def _require_unchanged(url: str, read: RangeRead, ref: ChunkRef) -> None:
    """Refuse a changed object. Conditional requests cannot do this, because stores format and round differently."""
    if ref.etag is not None:
        wanted = bare_etag(ref.etag)
        same = wanted == "*" or (read.etag is not None and wanted == bare_etag(read.etag))
    elif ref.last_modified:
        same = int(read.last_modified.timestamp()) <= ref.last_modified
    else:
        return
    if not same:
        raise StorageError(
            f"the checksum of the object owning the virtual chunk has changed: {url} was changed after the "
            f"chunk reference was set. Put the old object back, or set its chunk references again",
            ErrorKind.VIRTUAL_CHUNK_MODIFIED,
        )
