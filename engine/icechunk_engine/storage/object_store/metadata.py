"""Facts that stores report about objects: versions, etags, sizes and times. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icechunk_engine.storage.base import ObjectInfo, Version
from icechunk_engine.storage.object_store.buckets import StoreKind

if TYPE_CHECKING:
    from icechunk_engine.storage.object_store.obstore_types import ObjectMeta, PutResult


def version_of(kind: StoreKind, meta: ObjectMeta | PutResult) -> Version:
    """Return the generation on Google Cloud Storage, elsewhere the etag."""
    if kind is StoreKind.GCS:
        return Version(meta["version"] or "")
    return Version(bare_etag(meta["e_tag"] or ""))


def bare_etag(etag: str) -> str:
    """Return an etag without quotes and the mark of weakness, because not all stores write them."""
    return etag.removeprefix("W/").strip('"')


def identifies_version(etag: str | None) -> bool:
    """Return False for no etag and for a weak one, which two contents may share (RFC 9110 §8.8.1)."""
    return etag is not None and not etag.startswith("W/")


def info_of(key: str, meta: ObjectMeta) -> ObjectInfo:
    """Return a row of a listing."""
    return ObjectInfo(key, meta["size"], modified_us(meta))


def modified_us(meta: ObjectMeta) -> int:
    """Return the time of an object in Unix microseconds, in whole seconds: some requests tell no more."""
    return int(meta["last_modified"].timestamp()) * 1_000_000
