"""Configuration: what users set, how it is stored in the repository, and the effective values.

======================  ========================================================================
:mod:`.base`            what all configuration classes share
:mod:`.repository`      :class:`RepositoryConfig` and its small parts
:mod:`.storage`         requests, retries, storage classes
:mod:`.manifest`        splitting, preloading, location compression
:mod:`.conditions`      conditions on arrays and axes; :mod:`.rust_regex` evaluates expressions
:mod:`.containers`      virtual chunk containers and their stores; :mod:`.urls` has the URL rules
:mod:`.resolved`        :func:`resolve`: plain values, nothing unset
======================  ========================================================================
"""

from icechunk_engine._runtime.observing import initialize_logs, set_logs_filter, shutdown_telemetry
from icechunk_engine.config.array_conditions import (
    NEVER_SPLIT,
    ManifestPreloadCondition,
    ManifestSplitCondition,
    ManifestSplitDimCondition,
)
from icechunk_engine.config.containers import (
    AnyObjectStoreConfig,
    ChecksumAlgorithm,
    ObjectStoreConfig,
    S3Options,
    VirtualChunkContainer,
    VirtualChunkSpec,
    azure_store,
    gcs_store,
    http_store,
    is_valid_container,
    local_filesystem_store,
    s3_store,
    validate_container,
)
from icechunk_engine.config.manifest import (
    ManifestConfig,
    ManifestPreloadConfig,
    ManifestSplittingConfig,
    ManifestSplitValues,
    ManifestVirtualChunkLocationCompressionConfig,
    SplitSizesDict,
    default_preload_condition,
)
from icechunk_engine.config.repository import (
    CachingConfig,
    CompressionAlgorithm,
    CompressionConfig,
    RepositoryConfig,
    RepoUpdateRetryConfig,
)
from icechunk_engine.config.resolved import (
    ResolvedCaching,
    ResolvedConfig,
    ResolvedLocationCompression,
    ResolvedPreload,
    resolve,
)
from icechunk_engine.config.storage import (
    StorageConcurrencySettings,
    StorageRetriesSettings,
    StorageSettings,
    StorageTimeoutSettings,
    default_storage_settings,
)
from icechunk_engine.types import Attribution, FeatureFlag

__all__ = [
    "NEVER_SPLIT",
    "AnyObjectStoreConfig",
    "Attribution",
    "CachingConfig",
    "ChecksumAlgorithm",
    "CompressionAlgorithm",
    "CompressionConfig",
    "FeatureFlag",
    "ManifestConfig",
    "ManifestPreloadCondition",
    "ManifestPreloadConfig",
    "ManifestSplitCondition",
    "ManifestSplitDimCondition",
    "ManifestSplitValues",
    "ManifestSplittingConfig",
    "ManifestVirtualChunkLocationCompressionConfig",
    "ObjectStoreConfig",
    "RepoUpdateRetryConfig",
    "RepositoryConfig",
    "ResolvedCaching",
    "ResolvedConfig",
    "ResolvedLocationCompression",
    "ResolvedPreload",
    "S3Options",
    "SplitSizesDict",
    "StorageConcurrencySettings",
    "StorageRetriesSettings",
    "StorageSettings",
    "StorageTimeoutSettings",
    "VirtualChunkContainer",
    "VirtualChunkSpec",
    "azure_store",
    "default_preload_condition",
    "default_storage_settings",
    "gcs_store",
    "http_store",
    "initialize_logs",
    "is_valid_container",
    "local_filesystem_store",
    "resolve",
    "s3_store",
    "set_logs_filter",
    "shutdown_telemetry",
    "validate_container",
]
