"""What all sessions of one opened repository share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from icechunk_engine.assets import AssetManager
from icechunk_engine.config import RepositoryConfig
from icechunk_engine.types import Json
from icechunk_engine.virtual.resolver import VirtualResolver


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryContext:
    """The files, settings and virtual chunk credentials of one opened repository."""

    assets: AssetManager
    config: RepositoryConfig
    resolver: VirtualResolver
    default_commit_metadata: Mapping[str, Json]
