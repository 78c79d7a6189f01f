"""Repositories by path and URL; and objects of the official package, which are named as such."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import icechunk
import pytest
import xarray as xr

import icechunk_engine as ic
import xarray_icechunk as xi
from icechunk_engine.errors import ErrorKind, InvalidInputError, RepositoryNotFoundError
from icechunk_engine.errors.foreign import official_class
from icechunk_engine.storage import FsspecStorage, LocalStorage

SPELLINGS: dict[str, Callable[[Path], Any]] = {
    "string": str,
    "path": lambda path: path,
    "url": lambda path: path.as_uri(),
    "storage": lambda path: ic.local_filesystem_storage(str(path)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_place(spelling: str, tmp_path: Path) -> None:
    place = SPELLINGS[spelling](tmp_path / "repo")
    R = ic.Repository
    assert not R.exists(place)
    assert R.fetch_spec_version(place) is None
    with pytest.raises(RepositoryNotFoundError):
        R.fetch_config(place)
    with pytest.raises(RepositoryNotFoundError):
        R.open(place)
    repo = R.create(place, config=ic.RepositoryConfig(inline_chunk_threshold_bytes=7))
    assert repo.storage == LocalStorage(tmp_path / "repo")
    assert R.exists(place)
    assert R.fetch_spec_version(place) == 2
    assert R.fetch_config(place) == ic.RepositoryConfig(inline_chunk_threshold_bytes=7)
    for opened in (R.open(place), R.open_or_create(place)):
        assert opened.lookup_branch("main") == repo.lookup_branch("main")
    assert R.open_or_create(SPELLINGS[spelling](tmp_path / "another")).list_branches() == {"main"}
    with pytest.raises(InvalidInputError, match="already"):
        R.create(place)


async def test_async_twins_take_places(tmp_path: Path) -> None:
    R = ic.Repository
    assert not await R.exists_async(tmp_path)
    await R.create_async(str(tmp_path))
    assert await R.exists_async(tmp_path, storage_options={})
    assert await R.fetch_spec_version_async(tmp_path.as_uri()) == 2
    assert await R.fetch_config_async(tmp_path) is None
    for opening in (R.open_async, R.open_or_create_async):
        assert (await opening(tmp_path)).list_branches() == {"main"}


def test_storage_options_go_with_urls(tmp_path: Path) -> None:
    ic.Repository.create("memory://with-options")
    assert ic.Repository.exists("memory://with-options")
    ic.Repository.create(tmp_path)
    storage = FsspecStorage(f"local://{tmp_path}", {"auto_mkdir": False})
    assert ic.Repository.open(f"local://{tmp_path}", storage_options={"auto_mkdir": False}).storage == storage
    for call in (ic.Repository.open, ic.Repository.create, ic.Repository.open_or_create, ic.Repository.exists):
        with pytest.raises(InvalidInputError, match="takes none") as caught:
            call(tmp_path, storage_options={"key": "x"})
        assert caught.value.kind == ErrorKind.STORAGE_CONFIG
        with pytest.raises(InvalidInputError, match="go with a path or URL"):
            call(ic.in_memory_storage(), storage_options={"key": "x"})


@pytest.mark.parametrize("place", [3, None, b"bytes", ic.RepositoryConfig()])
def test_what_is_no_place(place: Any) -> None:
    for call in (ic.Repository.open, ic.Repository.create, ic.Repository.exists, ic.Repository.fetch_config):
        with pytest.raises(TypeError, match="storage must be a Storage, a path or a URL, not"):
            call(place)
    with pytest.raises(TypeError):
        asyncio.run(ic.Repository.open_async(place))


# --- objects of the official package -------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path) -> Any:
    return official.Repository.create(official.in_memory_storage())


official: Any = icechunk  # its objects are passed where ours belong


def ours() -> ic.Repository:
    return ic.Repository.create(ic.in_memory_storage())


def data() -> xr.Dataset:
    return xr.Dataset({"a": ("x", [1, 2])})


MISTAKES: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "open a storage": (lambda repo: ic.Repository.open(repo.storage), "Storage", "a path or URL, or icechunk_engine."),
    "create in a storage": (lambda repo: ic.Repository.create(repo.storage), "Storage", "a path or URL"),
    "create with a config": (
        lambda repo: ic.Repository.create(ic.in_memory_storage(), official.RepositoryConfig()),
        "RepositoryConfig",
        "Write icechunk_engine.RepositoryConfig;",
    ),
    "reopen with a config": (
        lambda repo: ours().reopen(repo.config),
        "RepositoryConfig",
        "Write icechunk_engine.RepositoryConfig;",
    ),
    "a part of a config": (
        lambda repo: ic.RepositoryConfig(caching=official.CachingConfig()),
        "CachingConfig",
        "Write icechunk_engine.CachingConfig;",
    ),
    "a store of a container": (
        lambda repo: ic.VirtualChunkContainer("s3://b/", official.s3_store(region="x")),
        "ObjectStoreConfig",
        "Write icechunk_engine.ObjectStoreConfig;",
    ),
    "options of a store": (
        lambda repo: ic.ObjectStoreConfig.S3(official.S3Options()),
        "S3Options",
        "Write icechunk_engine.S3Options;",
    ),
    "import references into a session": (
        lambda repo: xi.import_kerchunk({"version": 1, "refs": {}}, repo.writable_session("main")),
        "Session",
        ".writable_session('main')",
    ),
    "a credential": (
        lambda repo: ic.containers_credentials({"s3://b/": official.s3_anonymous_credentials()}),
        "S3Credentials",
        "Write icechunk_engine.S3Credentials;",
    ),
    "an attribution": (
        lambda repo: ic.Repository.create(ic.in_memory_storage(), attribution=official.Attribution(client="x")),
        "Attribution",
        "Write icechunk_engine.Attribution;",
    ),
    "settings of a storage": (
        lambda repo: ic.Repository.exists(ic.in_memory_storage(), official.StorageSettings()),
        "StorageSettings",
        "Write icechunk_engine.StorageSettings;",
    ),
    "a container": (
        lambda repo: ic.RepositoryConfig().set_virtual_chunk_container(
            official.VirtualChunkContainer("s3://b/", official.s3_store(region="x"))
        ),
        "VirtualChunkContainer",
        "Write icechunk_engine.VirtualChunkContainer;",
    ),
    "a status": (
        lambda repo: ours().set_status(official.RepoStatus(official.RepoAvailability.online)),
        "RepoStatus",
        "Write icechunk_engine.RepoStatus;",
    ),
    "an availability": (
        lambda repo: ic.RepoStatus(official.RepoAvailability.online),
        "RepoAvailability",
        "Write icechunk_engine.RepoAvailability;",
    ),
    "merge": (
        lambda repo: ours().writable_session("main").merge(repo.writable_session("main").fork()),
        "ForkSession",
        "session.fork(), of a session of icechunk_engine",
    ),
    "a solver": (
        lambda repo: ours().writable_session("main").rebase(official.ConflictDetector()),
        "ConflictDetector",
        "Write icechunk_engine.ConflictDetector;",
    ),
    "commit with a solver": (
        lambda repo: ours().writable_session("main").commit("x", rebase_with=official.BasicConflictSolver()),
        "BasicConflictSolver",
        "Write icechunk_engine.BasicConflictSolver;",
    ),
    "a selection of a solver": (
        lambda repo: ic.BasicConflictSolver(on_chunk_conflict=official.VersionSelection.UseTheirs),
        "VersionSelection",
        "Write icechunk_engine.VersionSelection;",
    ),
    "a store of a session": (
        lambda repo: ic.IcechunkStore(repo.writable_session("main")),
        "Session",
        "Write icechunk_engine.Repository.open(path_or_url).writable_session('main')",
    ),
    "upgrade": (
        lambda repo: ic.upgrade_icechunk_repository(repo, dry_run=True),
        "Repository",
        "Write icechunk_engine.Repository.open(path_or_url);",
    ),
    "to_icechunk a session": (
        lambda repo: xi.to_icechunk(data(), repo.writable_session("main")),
        "Session",
        ".writable_session('main')",
    ),
    "to_icechunk a store": (
        lambda repo: xi.to_icechunk(data(), repo.writable_session("main").store),
        "IcechunkStore",
        ".writable_session('main').store",
    ),
    "open_dataset of a session": (
        lambda repo: xi.open_dataset(repo.readonly_session("main")),
        "Session",
        ".readonly_session('main')",
    ),
    "open_dataset of a repository": (
        lambda repo: xi.open_dataset(repo),
        "Repository",
        "icechunk_engine.Repository.open(path_or_url)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_official_objects_are_named_as_such(mistake: str, theirs: Any) -> None:
    call, name, line = MISTAKES[mistake]
    with pytest.raises((TypeError, InvalidInputError)) as caught:
        call(theirs)
    message = str(caught.value)
    assert f"a {name} of the official icechunk package" in message
    assert line in message
    assert "import icechunk_engine as icechunk" in message


def test_other_objects_are_not_called_official() -> None:
    with pytest.raises(TypeError, match=r"not 3$"):
        ic.Repository.open(3)  # type: ignore[arg-type]
    assert official_class(ours()) is None
    assert official_class("text") is None
    assert official_class(official.in_memory_storage()) == "Storage"
