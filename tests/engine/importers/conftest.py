"""Repositories that can read files below the directory of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from icechunk_engine import Repository, in_memory_storage
from icechunk_engine.config import RepositoryConfig, VirtualChunkContainer, local_filesystem_store
from icechunk_engine.credentials import Credentials

MakeRepository = Callable[[Path], Repository]


@pytest.fixture
def make_repository() -> MakeRepository:
    """Return a function that makes empty repositories whose only container is a directory."""

    def make(directory: Path) -> Repository:
        prefix = f"file://{directory}/"
        config = RepositoryConfig.default()
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix, local_filesystem_store(directory)))
        return Repository.create(
            in_memory_storage(),
            config=config,
            authorize_virtual_chunk_access={prefix: Credentials.LocalFileSystemAccess()},
        )

    return make


@pytest.fixture
def repository(make_repository: MakeRepository, tmp_path: Path) -> Repository:
    """An empty repository that can read files below ``tmp_path``."""
    return make_repository(tmp_path)
