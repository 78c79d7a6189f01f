"""AssetManager: typed access to the files of a repository, with caches limited in bytes.

Snapshots, manifests and transaction logs never change once written. So all sessions, forks and unpickled copies that
look at one place share one decoded copy in each process. ``repo`` is the only file that changes. It is read each
time, and decoded only if its version changed.

The shared copies live as long as any repository, session or array of the place. If a file is damaged or replaced in
the meantime, you do not notice while a copy is held. :meth:`AssetManager.clear_caches` drops the copies.

Requests: one GET for a snapshot, manifest or transaction log that is not cached, one GET for ``repo``, one PUT for
each file written.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import batched
from typing import Any

from icechunk_engine._runtime.locks import memory_lock
from icechunk_engine._runtime.pools import map_requests
from icechunk_engine._runtime.shared_loads import SharedLoads
from icechunk_engine.columns.chunk_finder import ChunkFinder
from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.config import ResolvedConfig
from icechunk_engine.errors import (
    ErrorKind,
    FormatError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
    SnapshotNotFoundError,
    StorageError,
)
from icechunk_engine.format import layout
from icechunk_engine.format.manifest import Manifest, decode_manifest, decode_manifests
from icechunk_engine.format.repo_info import RepoInfo, decode_repo_info
from icechunk_engine.format.snapshot import Snapshot, decode_snapshot
from icechunk_engine.format.transaction_log import TransactionLog, decode_transaction_log
from icechunk_engine.ids import ChunkId, ManifestId, NodeId, SnapshotId
from icechunk_engine.storage.base import Storage, Version
from icechunk_engine.storage.requests import for_requests

BYTES_PER_CHUNK_REF = 48
"""Memory of one decoded chunk reference, to turn ``CachingConfig.num_chunk_refs`` into bytes."""
BYTES_PER_SNAPSHOT_NODE = 512
BYTES_PER_TRANSACTION_CHANGE = 24


class LoadedManifest:
    """A decoded manifest and its chunk finders, each made when first needed."""

    __slots__ = ("_finders", "manifest")

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._finders: dict[NodeId, tuple[ChunkRefs, ChunkFinder]] = {}

    def refs(self, node_id: NodeId, ndim: int) -> ChunkRefs:
        """Return the chunk references of an array. Raises FormatError if it has none here, or ones of another rank."""
        refs = self.manifest.get(node_id)
        if refs is None:
            raise FormatError(
                f"manifest {self.manifest.manifest_id} holds no chunks of node {node_id} although its snapshot "
                f"says so; the repository is damaged, restore the file from a copy",
                ErrorKind.INCONSISTENT_MANIFESTS,
            )
        if refs.ndim != ndim and len(refs):
            raise FormatError(
                f"manifest {self.manifest.manifest_id} holds chunks of rank {refs.ndim} of node {node_id}, whose rank "
                f"is {ndim}; the repository is damaged, restore the file from a copy",
                ErrorKind.INCONSISTENT_MANIFESTS,
            )
        return refs if refs.ndim == ndim else ChunkRefs.empty(ndim)

    def finder(self, node_id: NodeId, ndim: int) -> tuple[ChunkRefs, ChunkFinder]:
        """Return :meth:`refs` and a finder for them."""
        found = self._finders.get(node_id)
        if found is None or found[0].ndim != ndim:
            refs = self.refs(node_id, ndim)
            found = self._finders[node_id] = refs, ChunkFinder(refs)
        return found


_READ_TOGETHER = 256
"""Number of small manifest files that are read before they are decoded together."""

_BYTES_PER_CACHED_CHUNK = 256
"""Memory of a cached chunk besides its bytes."""

_REMEMBERED_PRELOADS = 10_000


class _Caches:
    """The decoded files of one place that this process shares."""

    def __init__(self, config: ResolvedConfig) -> None:
        limits = _limits_bytes(config)
        self.snapshots: SharedLoads[SnapshotId, Snapshot] = SharedLoads(limits["snapshots"])
        self.manifests: SharedLoads[ManifestId, LoadedManifest] = SharedLoads(limits["manifests"])
        self.logs: SharedLoads[SnapshotId, TransactionLog | None] = SharedLoads(limits["logs"])
        self.chunks: SharedLoads[tuple[ChunkId, int, int], bytes] = SharedLoads(limits["chunks"])
        self.preloaded: set[SnapshotId] = set()
        self.repo_info: tuple[Version, RepoInfo] | None = None

    def clear(self) -> None:
        """Drop all copies."""
        for cache in (self.snapshots, self.manifests, self.logs, self.chunks):
            cache.clear()
        self.preloaded.clear()
        self.repo_info = None

    def make_room(self, config: ResolvedConfig) -> None:
        """Raise the limits to those that another opening of the same place asks for."""
        for name, limit_bytes in _limits_bytes(config).items():
            cache = getattr(self, name)
            cache.limit_bytes = max(cache.limit_bytes, limit_bytes)


def _limits_bytes(config: ResolvedConfig) -> dict[str, int]:
    caching = config.caching
    return {
        "snapshots": caching.num_snapshot_nodes * BYTES_PER_SNAPSHOT_NODE,
        "manifests": caching.num_chunk_refs * BYTES_PER_CHUNK_REF,
        "logs": caching.num_transaction_changes * BYTES_PER_TRANSACTION_CHANGE,
        "chunks": caching.num_bytes_chunks,
    }


_CACHES: weakref.WeakValueDictionary[str, _Caches] = weakref.WeakValueDictionary()
_CACHES_LOCK = memory_lock()


def _caches_of(storage: Storage, config: ResolvedConfig) -> _Caches:
    identity = storage.identity
    with _CACHES_LOCK:
        caches = _CACHES.get(identity)
    if caches is None:
        made = _Caches(config)
        with _CACHES_LOCK:
            caches = _CACHES.setdefault(identity, made)
    caches.make_room(config)
    return caches


@dataclass(frozen=True, slots=True)
class WrittenManifest:
    """The facts about a manifest file that a snapshot stores."""

    manifest_id: ManifestId
    size_bytes: int
    num_refs: int


class AssetManager:
    """Typed reading and writing of one repository's files.

    Parameters
    ----------
    storage
        The repository's place.
    config
        Effective configuration.
    spec_version
        Spec version of the repository, in which files are written. Files of both versions can be read.

    Attributes
    ----------
    storage
        The place, to be used for all requests: it reports and limits them (:mod:`icechunk_engine.storage.requests`).
    given_storage
        The place as it was passed, to be pickled.
    """

    def __init__(self, storage: Storage, config: ResolvedConfig, spec_version: int = 2) -> None:
        self.given_storage = storage
        self.storage = for_requests(storage, config.max_concurrent_requests)
        self.config = config
        self.spec_version = spec_version
        self._caches = _caches_of(storage, config)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.given_storage, self.config, self.spec_version)

    def clear_caches(self) -> None:
        """Drop all copies of this place's files in this process. Files that are being read now may stay."""
        self._caches.clear()

    def repo_info(self) -> tuple[RepoInfo, Version]:
        """Read the present repo info and its version.

        Raises
        ------
        RepositoryNotFoundError
            The object ``repo`` does not exist.
        FormatError
            It is damaged or of another format.
        """
        try:
            data, version = self.storage.get_versioned(layout.REPO)
        except ObjectNotFoundError:
            raise RepositoryNotFoundError(
                f"the repository doesn't exist: {self.storage.identity} holds no object 'repo'. "
                f"Check the location, or create one with Repository.create(storage)"
            ) from None
        known = self._caches.repo_info
        if known is not None and known[0] == version:
            return known[1], version
        info = decode_repo_info(data)
        self._caches.repo_info = version, info
        return info, version

    def remember_repo_info(self, info: RepoInfo, version: Version) -> None:
        """Keep a repo info that was just written, to save the next reader from decoding it."""
        self._caches.repo_info = version, info

    def snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        """Return a snapshot. Raises SnapshotNotFoundError, FormatError."""
        return self._caches.snapshots.load(snapshot_id, self._load_snapshot)

    async def snapshot_async(self, snapshot_id: SnapshotId) -> Snapshot:
        """Return a snapshot without blocking an event loop. Errors as in :meth:`snapshot`."""
        return await self._caches.snapshots.load_async(snapshot_id, self._load_snapshot)

    def _load_snapshot(self, snapshot_id: SnapshotId) -> tuple[Snapshot, int]:
        key = layout.snapshot_key(snapshot_id)
        try:
            snapshot = decode_snapshot(self._get(key), key)
        except ObjectNotFoundError:
            raise SnapshotNotFoundError(
                f"the file of snapshot {snapshot_id} ({key}) does not exist: it was never written, or garbage "
                f"collection removed it. Open a snapshot that repo.ancestry lists"
            ) from None
        _require_same(key, snapshot.snapshot_id, snapshot_id)
        return snapshot, snapshot.nbytes

    def remember_snapshot(self, snapshot: Snapshot) -> None:
        """Cache a snapshot that was just written."""
        self._caches.snapshots.put(snapshot.snapshot_id, snapshot, snapshot.nbytes)

    def manifest(self, manifest_id: ManifestId) -> LoadedManifest:
        """Return a manifest. Raises StorageError if it is missing, FormatError if it is damaged."""
        return self._caches.manifests.load(manifest_id, self._load_manifest)

    async def manifest_async(self, manifest_id: ManifestId) -> LoadedManifest:
        """Return a manifest without blocking an event loop. Errors as in :meth:`manifest`."""
        return await self._caches.manifests.load_async(manifest_id, self._load_manifest)

    def cached_manifest(self, manifest_id: ManifestId) -> LoadedManifest | None:
        """Return a manifest if that needs no request."""
        return self._caches.manifests.get(manifest_id)

    def _load_manifest(self, manifest_id: ManifestId) -> tuple[LoadedManifest, int]:
        manifest = decode_manifest(*self._manifest_file(manifest_id))
        _require_same(layout.manifest_key(manifest_id), manifest.manifest_id, manifest_id)
        return LoadedManifest(manifest), manifest.nbytes

    def _manifest_file(self, manifest_id: ManifestId) -> tuple[bytes, str]:
        """Return the content and key of a manifest file."""
        key = layout.manifest_key(manifest_id)
        try:
            return self._get(key), key
        except ObjectNotFoundError:
            raise StorageError(
                f"manifest {key} is missing although a snapshot refers to it; the repository is damaged or was "
                f"copied incompletely. Restore the file from a copy",
                ErrorKind.OBJECT_NOT_FOUND,
            ) from None

    def remember_manifest(self, manifest: Manifest) -> None:
        """Cache a manifest that was just encoded."""
        self._caches.manifests.put(manifest.manifest_id, LoadedManifest(manifest), manifest.nbytes)

    def manifests(self, manifest_ids: list[ManifestId]) -> list[LoadedManifest]:
        """Return several manifests.

        Behind a network they are fetched concurrently. Elsewhere small ones are decoded together.
        """
        if self.storage.is_remote or len(manifest_ids) < 2:
            run_all = partial(map_requests, self.storage)
            return self._caches.manifests.load_many(manifest_ids, self._load_manifest, run_all)
        cache = self._caches.manifests
        found: dict[ManifestId, LoadedManifest] = {}
        missing: list[ManifestId] = []
        for manifest_id in dict.fromkeys(manifest_ids):
            cached = cache.get(manifest_id)
            if cached is None:
                missing.append(manifest_id)
            else:
                found[manifest_id] = cached
        for some in batched(missing, _READ_TOGETHER):
            manifests = decode_manifests(map(self._manifest_file, some))
            for manifest_id, manifest in zip(some, manifests, strict=True):
                _require_same(layout.manifest_key(manifest_id), manifest.manifest_id, manifest_id)
                loaded = found[manifest_id] = LoadedManifest(manifest)
                cache.put(manifest_id, loaded, manifest.nbytes)
        return [found[manifest_id] for manifest_id in manifest_ids]

    def transaction_log(self, snapshot_id: SnapshotId) -> TransactionLog | None:
        """Return the log of a commit, None if it has none (as the first snapshots of spec 1)."""
        return self.transaction_logs([snapshot_id])[0]

    def transaction_logs(self, snapshot_ids: list[SnapshotId]) -> list[TransactionLog | None]:
        """Return several transaction logs, fetched concurrently behind a network."""
        run_all = partial(map_requests, self.storage)
        return self._caches.logs.load_many(snapshot_ids, self._load_log, run_all)

    def _load_log(self, snapshot_id: SnapshotId) -> tuple[TransactionLog | None, int | None]:
        key = layout.transaction_log_key(snapshot_id)
        try:
            log = decode_transaction_log(self._get(key), key)
        except ObjectNotFoundError:
            return None, None
        return log, 1024 + sum(indices.nbytes for indices in log.updated_chunks.values())

    def chunk(self, chunk_id: ChunkId, start: int, stop: int) -> bytes:
        """Return bytes ``start:stop`` of a chunk object. Raises StorageError, ObjectNotFoundError."""
        key, cache = layout.chunk_key(chunk_id), self._caches.chunks
        if stop - start > cache.limit_bytes:
            return self.storage.get_range(key, start, stop)

        # Not a shared load: pool threads call this, and they may not wait for each other.
        data = cache.get((chunk_id, start, stop))
        if data is None:
            data = self.storage.get_range(key, start, stop)
            cache.put((chunk_id, start, stop), data, len(data) + _BYTES_PER_CACHED_CHUNK)
        return data

    def begin_preload(self, snapshot_id: SnapshotId) -> bool:
        """Return whether a snapshot is to be preloaded for the first time in this process."""
        preloaded = self._caches.preloaded
        if snapshot_id in preloaded:
            return False
        if len(preloaded) >= _REMEMBERED_PRELOADS:
            preloaded.clear()
        preloaded.add(snapshot_id)
        return True

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write new immutable files, concurrently behind a network."""
        map_requests(self.storage, lambda item: self._put(*item), files.items())

    def _get(self, key: str) -> bytes:
        return self.storage.get(key)

    def _put(self, key: str, data: bytes) -> None:
        self.storage.put(key, data)


def _require_same(key: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise FormatError(
            f"{key} holds the file of {found}: files were renamed or mixed up. Restore it from a copy",
            ErrorKind.INVALID_FILE_FORMAT,
        )
