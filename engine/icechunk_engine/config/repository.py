"""The configuration of a repository."""

# ruff: noqa: RUF009 (setting() makes a dataclass field)

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import EnumType
from typing import Any, Self

from icechunk_engine.config.base import U8, U16, U64, Choice, Kind, Part, Settings, Text, setting
from icechunk_engine.config.containers import VirtualChunkContainer, validate_container
from icechunk_engine.config.manifest import ManifestConfig
from icechunk_engine.config.storage import StorageRetriesSettings, StorageSettings
from icechunk_engine.errors.foreign import describe
from icechunk_engine.types import IntegerEnum, Json, JsonObject


class _WithDefault(EnumType):
    """Makes ``CompressionAlgorithm()`` return the default, as in official's package."""

    def __call__(cls, value: object = 0, *args: Any, **kwargs: Any) -> Any:  # as EnumType declares it
        return super().__call__(value, *args, **kwargs)


class CompressionAlgorithm(IntegerEnum, metaclass=_WithDefault):
    """How files other than chunks are compressed."""

    Zstd = 0

    @staticmethod
    def default() -> CompressionAlgorithm:
        """Return the only algorithm."""
        return CompressionAlgorithm.Zstd


@dataclass(slots=True, repr=False)
class CompressionConfig(Settings):
    """Compression of snapshots, manifests, transaction logs and repo info."""

    algorithm: CompressionAlgorithm | None = setting(
        Choice(CompressionAlgorithm, {CompressionAlgorithm.Zstd: "zstd"}), effective=CompressionAlgorithm.Zstd
    )
    level: int | None = setting(U8, effective=3)

    @staticmethod
    def default() -> CompressionConfig:
        """Return a configuration with nothing set."""
        return CompressionConfig()


@dataclass(slots=True, repr=False)
class CachingConfig(Settings):
    """How much a process keeps in memory.

    Attributes
    ----------
    num_snapshot_nodes, num_chunk_refs, num_transaction_changes
        Number of nodes, chunk references and changes in the decoded files to keep.
    num_bytes_chunks
        Bytes of chunks to keep.
    num_bytes_attributes
        Has no effect: attributes are part of snapshots. It is kept because official has it.
    """

    num_snapshot_nodes: int | None = setting(U64, effective=500_000)
    num_chunk_refs: int | None = setting(U64, effective=15_000_000)
    num_transaction_changes: int | None = setting(U64, effective=0)
    num_bytes_attributes: int | None = setting(U64, effective=0)
    num_bytes_chunks: int | None = setting(U64, effective=0)

    @staticmethod
    def default() -> CachingConfig:
        """Return a configuration with nothing set."""
        return CachingConfig()


@dataclass(slots=True, repr=False)
class RepoUpdateRetryConfig(Settings):
    """Retries of an update of the repository after a conflict with another writer."""

    default: StorageRetriesSettings | None = setting(
        Part(StorageRetriesSettings), effective=StorageRetriesSettings(100, 50, 30_000)
    )


class _ContainersKind(Kind[dict[str, VirtualChunkContainer]]):
    __slots__ = ()

    def check(self, value: object) -> dict[str, VirtualChunkContainer]:
        if not isinstance(value, Mapping) or not all(
            isinstance(prefix, str) and isinstance(container, VirtualChunkContainer)
            for prefix, container in value.items()
        ):
            raise TypeError("must map URL prefixes to VirtualChunkContainers")
        return dict(value)

    def to_plain(self, value: dict[str, VirtualChunkContainer]) -> JsonObject:
        return {prefix: value[prefix].to_plain() for prefix in sorted(value)}

    def from_plain(self, plain: Json) -> dict[str, VirtualChunkContainer]:
        if not isinstance(plain, Mapping):
            raise ValueError("must map URL prefixes to containers")
        return {prefix: VirtualChunkContainer.from_plain(container) for prefix, container in plain.items()}


@dataclass(slots=True, repr=False)
class RepositoryConfig(Settings):
    """Configuration of a repository.

    A field that is None takes the value stored in the repository, else the default.
    :func:`icechunk_engine.config.resolve` returns the effective values.

    Attributes
    ----------
    max_concurrent_decodes
        Has no effect: the thread that fetches a file also decodes it, so ``max_concurrent_requests`` is the limit. It
        is kept because official has it.
    """

    inline_chunk_threshold_bytes: int | None = setting(U16, effective=512)
    get_partial_values_concurrency: int | None = setting(U16, effective=10)
    compression: CompressionConfig | None = setting(Part(CompressionConfig))
    max_concurrent_requests: int | None = setting(U16, effective=256)
    caching: CachingConfig | None = setting(Part(CachingConfig))
    storage: StorageSettings | None = setting(Part(StorageSettings))
    virtual_chunk_containers: dict[str, VirtualChunkContainer] | None = setting(_ContainersKind())
    manifest: ManifestConfig | None = setting(Part(ManifestConfig))
    repo_update_retries: RepoUpdateRetryConfig | None = setting(Part(RepoUpdateRetryConfig))
    num_updates_per_repo_info_file: int | None = setting(U16, effective=1000)
    max_concurrent_decodes: int | None = setting(U16, effective=os.cpu_count() or 1)
    previous_file: str | None = setting(Text(), kw_only=True)

    @staticmethod
    def default() -> RepositoryConfig:
        """Return a configuration with nothing set."""
        return RepositoryConfig()

    def get_virtual_chunk_container(self, name: str) -> VirtualChunkContainer | None:
        """Return the container with this URL prefix, or None."""
        return (self.virtual_chunk_containers or {}).get(name)

    def set_virtual_chunk_container(self, cont: VirtualChunkContainer) -> None:
        """Add a container. It replaces containers with the same URL prefix or the same name.

        Raises
        ------
        InvalidInputError
            ``invalid-config``: the container is invalid, so no chunk could be read through it.
        """
        if not isinstance(cont, VirtualChunkContainer):
            raise TypeError(f"cont must be a VirtualChunkContainer, not {describe(cont)}")
        validate_container(cont)
        others = {
            prefix: other
            for prefix, other in (self.virtual_chunk_containers or {}).items()
            if cont.name is None or other.name != cont.name
        }
        self.virtual_chunk_containers = others | {cont.url_prefix: cont}

    def clear_virtual_chunk_containers(self) -> None:
        """Remove all containers. Merging with a stored configuration then removes its containers too."""
        self.virtual_chunk_containers = {}

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form: every key, with None for fields that are not set (spec, *Configuration*)."""
        return self.to_plain()

    @classmethod
    def from_dict(cls, data: Mapping[str, object] | None) -> Self:
        """Invert :meth:`to_dict`. Keys may be missing, and unknown keys are ignored. None is the empty configuration.

        Raises
        ------
        FormatError
            ``config-deserialization``.
        """
        return cls.from_plain(data if data is not None else {})

    @classmethod
    def from_stored(cls, data: Mapping[str, object] | None) -> Self:
        """Read the configuration of a repository. Like :meth:`from_dict`, but marks containers with ``is_stored``."""
        config = cls.from_dict(data)
        for container in (config.virtual_chunk_containers or {}).values():
            container.is_stored = True
        return config
