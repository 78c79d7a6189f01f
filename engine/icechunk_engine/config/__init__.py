"""Configuration: the values that users set, their stored form, and the effective values.

========================  ======================================================================
:mod:`.base`              base class of all configuration classes
:mod:`.repository`        :class:`RepositoryConfig` and its small parts
:mod:`.storage`           requests, retries, storage classes
:mod:`.manifest`          splitting, preloading, location compression
:mod:`.array_conditions`  conditions on arrays and axes
:mod:`.rust_regex`        regular expressions of conditions; :mod:`.automaton` runs them
:mod:`.containers`        virtual chunk containers and their stores
:mod:`.virtual_urls`      rules for URLs of virtual chunks
:mod:`.http_headers`      which HTTP headers can be sent
:mod:`.yaml_form`         the stored form of spec 1
:mod:`.resolved`          :func:`resolve`: effective values, nothing unset
========================  ======================================================================
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
