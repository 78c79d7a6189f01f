"""A local storage for each test, and no descriptors that stay open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.local import durability


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


@pytest.fixture(autouse=True)
def no_leaked_files() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd")) - len(durability._watched)
    yield
    after = len(os.listdir("/proc/self/fd")) - len(durability._watched)  # one a place with unflushed files
    assert after <= before  # idle connections of other tests may be closed
