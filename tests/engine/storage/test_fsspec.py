"""File systems of fsspec: the contract, but for what competing writers need, and the refusal to write."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from icechunk_engine import Repository, RepositoryConfig, StorageSettings
from icechunk_engine.errors import ErrorKind, ReadOnlyError, RepositoryNotFoundError, StorageError
from icechunk_engine.storage import FsspecStorage, LocalStorage, Storage
from icechunk_engine.testing.storage_suite import StorageSuite


class _OneWriter(StorageSuite):
    # No promises of this storage, which says so and wants to be asked for explicitly.
    test_one_thread_creates = None  # type: ignore[assignment]
    test_one_thread_replaces = None  # type: ignore[assignment]
    test_no_increment_of_threads_is_lost = None  # type: ignore[assignment]
    test_readers_never_see_a_part = None  # type: ignore[assignment]


class TestLocalFiles(_OneWriter):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return FsspecStorage(f"file://{tmp_path}/made", single_writer=True)


class TestMemoryFiles(_OneWriter):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        url = f"memory:/{tmp_path}"
        yield FsspecStorage(url, single_writer=True)
        if fsspec.filesystem("memory").exists(str(tmp_path)):
            fsspec.filesystem("memory").rm(str(tmp_path), recursive=True)


@pytest.fixture
def zipped(tmp_path: Path) -> str:
    repo = Repository.create(LocalStorage(tmp_path / "repo"))
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(2,), dtype="i4")[:] = [1, 2, 3, 4]
    session.commit("data")
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "repo")
    return f"zip::file://{archive}"


def test_a_repository_in_a_zip_file(zipped: str) -> None:
    storage = pickle.loads(pickle.dumps(FsspecStorage(zipped)))
    repo = Repository.open(storage)
    array = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")
    np.testing.assert_array_equal(array[:], [1, 2, 3, 4])
    with pytest.raises(ReadOnlyError, match="unsafe_use_conditional_update=False") as caught:
        repo.create_tag("v1", repo.lookup_branch("main"))
    assert caught.value.kind is ErrorKind.READ_ONLY_STORAGE
    assert repo.list_tags() == set()


@pytest.mark.parametrize("size", [np.int64(5), "5", 5.0])
def test_sizes_of_any_type(size: object, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "info", lambda self, path, **options: {"type": "file", "size": size})
    found = FsspecStorage("memory://sizes").info("a")
    assert found is not None
    assert found.size_bytes == 5


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(FsspecStorage(f"file://{tmp_path}/nothing"))
    with pytest.raises(StorageError, match="fsspec") as caught:
        Repository.open(FsspecStorage(f"zip::file://{tmp_path}/nothing.zip"))
    assert caught.value.kind is ErrorKind.STORAGE_CONFIG


def test_a_single_writer_says_so_in_the_configuration(tmp_path: Path) -> None:
    """Of the repository, so that whoever opens it may write; and of one opening."""
    url = f"file://{tmp_path}/made"
    alone = RepositoryConfig(
        storage=StorageSettings(unsafe_use_conditional_create=False, unsafe_use_conditional_update=False)
    )
    with pytest.raises(ReadOnlyError):
        Repository.create(FsspecStorage(url))
    Repository.create(FsspecStorage(url), alone)
    with Repository.open(FsspecStorage(url)).transaction("main", message="data") as store:
        zarr.create_array(store, name="a", shape=(4,), chunks=(2,), dtype="i4")[:] = [1, 2, 3, 4]
    read = Repository.open(LocalStorage(tmp_path / "made")).readonly_session("main")
    np.testing.assert_array_equal(zarr.open_array(read.store, path="a", mode="r")[:], [1, 2, 3, 4])

    Repository.create(LocalStorage(tmp_path / "other"))
    other = f"file://{tmp_path}/other"
    tip = Repository.open(FsspecStorage(other)).lookup_branch("main")
    with pytest.raises(ReadOnlyError):
        Repository.open(FsspecStorage(other)).create_tag("v1", tip)
    Repository.open(FsspecStorage(other), alone).create_tag("v1", tip)
    assert Repository.open(FsspecStorage(other)).list_tags() == {"v1"}
