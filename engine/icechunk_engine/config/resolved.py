"""The effective configuration: plain values, nothing unset.

It holds only the settings that the engine acts on. A test checks that each of them is read somewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from icechunk_engine.config.array_conditions import ManifestPreloadCondition
from icechunk_engine.config.base import effective
from icechunk_engine.config.containers import VirtualChunkContainer, is_valid_container
from icechunk_engine.config.manifest import (
    ManifestConfig,
    ManifestPreloadConfig,
    ManifestSplittingConfig,
    ManifestVirtualChunkLocationCompressionConfig,
)
from icechunk_engine.config.repository import (
    CachingConfig,
    CompressionConfig,
    RepositoryConfig,
    RepoUpdateRetryConfig,
)
from icechunk_engine.config.storage import StorageRetriesSettings, StorageSettings

# Someone else may have stored the configuration. These limits prevent failures and unbounded time or memory.
_MIN_LEVEL, _MAX_LEVEL = -(2**17), 22
"""Compression levels of zstd."""
_MAX_DICTIONARY = 2**20
_MAX_BACKOFF_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedCaching:
    """See :class:`~icechunk_engine.config.CachingConfig`."""

    num_snapshot_nodes: int
    num_chunk_refs: int
    num_transaction_changes: int
    num_bytes_chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPreload:
    """See :class:`~icechunk_engine.config.ManifestPreloadConfig`."""

    max_total_refs: int
    preload_if: ManifestPreloadCondition
    max_arrays_to_scan: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedLocationCompression:
    """See :class:`~icechunk_engine.config.ManifestVirtualChunkLocationCompressionConfig`."""

    min_num_chunks: int
    max_training_samples: int
    dictionary_max_size_bytes: int
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """Effective configuration of an open repository. See :func:`resolve`."""

    inline_chunk_threshold_bytes: int
    compression_level: int
    max_concurrent_requests: int
    caching: ResolvedCaching
    num_updates_per_repo_info_file: int
    repo_update_max_tries: int
    repo_update_initial_backoff_ms: int
    repo_update_max_backoff_ms: int
    splitting: ManifestSplittingConfig | None
    """None: nothing is configured."""
    preload: ResolvedPreload
    location_compression: ResolvedLocationCompression | None
    """None: nothing is configured."""
    max_concurrent_manifest_fetches: int
    virtual_chunk_containers: dict[str, VirtualChunkContainer]
    """Containers by URL prefix, without the invalid ones that a stored configuration can have."""
    storage: StorageSettings
    """The settings that were set. The storage has its own defaults."""


def resolve(config: RepositoryConfig | None = None) -> ResolvedConfig:
    """Return the effective values of a configuration that is already merged with the stored one."""
    config = config if config is not None else RepositoryConfig()
    manifest = config.manifest if config.manifest is not None else ManifestConfig()
    retries = effective(None, RepoUpdateRetryConfig, "default", StorageRetriesSettings)
    if config.repo_update_retries is not None and config.repo_update_retries.default is not None:
        retries = retries.merge(config.repo_update_retries.default)
    compression = manifest.virtual_chunk_location_compression
    splitting = manifest.splitting

    def retry(name: str) -> int:
        return effective(retries, StorageRetriesSettings, name, int)

    def general(name: str) -> int:
        return effective(config, RepositoryConfig, name, int)

    return ResolvedConfig(
        inline_chunk_threshold_bytes=general("inline_chunk_threshold_bytes"),
        compression_level=min(effective(config.compression, CompressionConfig, "level", int), _MAX_LEVEL),
        max_concurrent_requests=general("max_concurrent_requests"),
        caching=ResolvedCaching(
            **{
                name: effective(config.caching, CachingConfig, name, int)
                for name in ResolvedCaching.__dataclass_fields__
            }
        ),
        num_updates_per_repo_info_file=max(1, general("num_updates_per_repo_info_file")),
        repo_update_max_tries=max(1, retry("max_tries")),
        repo_update_initial_backoff_ms=min(retry("initial_backoff_ms"), _MAX_BACKOFF_MS),
        repo_update_max_backoff_ms=min(retry("max_backoff_ms"), _MAX_BACKOFF_MS),
        splitting=splitting if splitting is not None and splitting.split_sizes is not None else None,
        preload=ResolvedPreload(
            max_total_refs=effective(manifest.preload, ManifestPreloadConfig, "max_total_refs", int),
            preload_if=effective(manifest.preload, ManifestPreloadConfig, "preload_if", ManifestPreloadCondition),
            max_arrays_to_scan=effective(manifest.preload, ManifestPreloadConfig, "max_arrays_to_scan", int),
        ),
        location_compression=None if compression is None else _location_compression(compression),
        max_concurrent_manifest_fetches=max(
            1, effective(manifest, ManifestConfig, "max_concurrent_manifest_fetches_during_commit", int)
        ),
        virtual_chunk_containers={
            container.url_prefix: container
            for container in (config.virtual_chunk_containers or {}).values()
            if is_valid_container(container)
        },
        storage=config.storage if config.storage is not None else StorageSettings(),
    )


def _location_compression(compression: ManifestVirtualChunkLocationCompressionConfig) -> ResolvedLocationCompression:
    def value(name: str) -> int:
        return effective(compression, ManifestVirtualChunkLocationCompressionConfig, name, int)

    return ResolvedLocationCompression(
        min_num_chunks=value("min_num_chunks"),
        max_training_samples=value("dictionary_max_training_samples"),
        dictionary_max_size_bytes=min(value("dictionary_max_size_bytes"), _MAX_DICTIONARY),
        level=min(max(value("compression_level"), _MIN_LEVEL), _MAX_LEVEL),
    )
