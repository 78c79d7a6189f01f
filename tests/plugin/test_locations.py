"""The ways to name a repository and a snapshot, and the errors for wrong ones."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import xarray_icechunk as xi
from icechunk_engine.errors import (
    ErrorKind,
    InvalidInputError,
    RefNotFoundError,
    RepositoryNotFoundError,
    SnapshotNotFoundError,
)
from xarray_icechunk.locations import locate

from .conftest import write


@pytest.fixture
def history(repo: Any, dataset: xr.Dataset) -> list[str]:
    """Two snapshots. The first has a tag and a branch."""
    first = write(repo, dataset, "first")
    repo.create_tag("v1", first)
    repo.create_branch("old", first)
    second = write(repo, dataset.assign(total=4.0), "second", mode="w")
    return [first, second]


def test_every_way_to_name_a_repository(repo: Any, location: str, history: list[str]) -> None:
    session = repo.readonly_session("main")
    for source in (location, Path(location), f"file://{location}", f"file://localhost{location}", repo):
        assert locate(source).session == session
    assert locate(session).session is session
    assert locate(session.store).session == session


def test_home_directory_and_relative_paths(
    repo: Any, location: str, history: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(location)
    monkeypatch.setenv("HOME", str(directory.parent))
    assert locate(f"~/{directory.name}").location == location
    monkeypatch.chdir(directory.parent)
    assert locate(directory.name).location == location


def test_memory_repositories_have_names(dataset: xr.Dataset, request: pytest.FixtureRequest) -> None:
    name = request.node.nodeid.replace("/", "-")
    repo = xi.open_or_create_repository(f"memory://{name}")
    write(repo, dataset)
    xr.testing.assert_identical(xi.open_dataset(f"memory://{name}").load(), dataset)
    with pytest.raises(RepositoryNotFoundError):
        xi.open_dataset(f"memory://{name}-2")


def test_refs(location: str, history: list[str]) -> None:
    first, second = history

    def found(**refs: Any) -> str:
        return locate(location, **refs).session.snapshot_id

    assert found() == found(branch="main") == second
    assert found(tag="v1") == found(branch="old") == found(snapshot_id=first) == first


def test_as_of(repo: Any, location: str, history: list[str]) -> None:
    times = {info.id: info.written_at for info in repo.ancestry(branch="main")}
    first, second = history
    assert locate(location, as_of=times[first]).session.snapshot_id == first
    assert locate(location, as_of=times[first].isoformat()).session.snapshot_id == first
    assert locate(location, as_of=times[second], branch="main").session.snapshot_id == second
    with pytest.raises(SnapshotNotFoundError):
        locate(location, as_of="1999-01-01T00:00:00+00:00")


@pytest.mark.parametrize("value", ["yesterday", "2026-01-01", dt.datetime(2026, 1, 1), 7])
def test_as_of_needs_a_time_zone(location: str, history: list[str], value: Any) -> None:
    with pytest.raises(InvalidInputError, match="2026-01-31T12:00:00"):
        locate(location, as_of=value)


@pytest.mark.parametrize(
    ("refs", "names"),
    [
        ({"branch": "main", "tag": "v1"}, ["branch", "tag"]),
        ({"branch": "main", "snapshot_id": "X"}, ["branch", "snapshot_id"]),
        ({"branch": "main", "tag": "v1", "snapshot_id": "X"}, ["branch", "tag", "snapshot_id"]),
        ({"tag": "v1", "as_of": "2026-01-01T00:00:00Z"}, ["tag", "as_of"]),
        ({"snapshot_id": "X", "as_of": "2026-01-01T00:00:00Z"}, ["snapshot_id", "as_of"]),
    ],
)
def test_conflicting_refs_are_named(location: str, history: list[str], refs: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        locate(location, **refs)
    assert caught.value.kind is ErrorKind.INVALID_REF_TYPE
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    "refs", [{"branch": "main"}, {"as_of": "2026-01-01T00:00:00Z"}, {"storage_options": {"a": 1}}]
)
def test_a_session_takes_no_refs_or_storage(repo: Any, history: list[str], refs: dict[str, Any]) -> None:
    session = repo.readonly_session("main")
    for source in (session, session.store):
        with pytest.raises(InvalidInputError, match=next(iter(refs))):
            locate(source, **refs)


def test_a_repository_takes_refs_but_no_storage(repo: Any, history: list[str]) -> None:
    assert locate(repo, tag="v1").session.snapshot_id == history[0]
    with pytest.raises(InvalidInputError, match="storage_options"):
        locate(repo, storage_options={"a": 1})


def test_unknown_refs(location: str, history: list[str]) -> None:
    with pytest.raises(RefNotFoundError, match="nowhere"):
        locate(location, branch="nowhere")
    with pytest.raises(RefNotFoundError, match="nothing"):
        locate(location, tag="nothing")
    with pytest.raises(SnapshotNotFoundError):
        locate(location, snapshot_id="0" * 20)


@pytest.mark.parametrize(
    "url", ["oss+s3://bucket/repo", "icechunk::s3://bucket/repo", "nothing://host/repo", "r2://bucket/x"]
)
def test_unsupported_storage_is_named(url: str) -> None:
    with pytest.raises(InvalidInputError, match="Supported are") as caught:
        locate(url)
    assert caught.value.kind is ErrorKind.CANNOT_PARSE_URL
    assert repr(url.partition(":")[0]) in str(caught.value)


def test_a_url_may_name_the_ref_and_the_group(
    repo: Any, location: str, history: list[str], dataset: xr.Dataset
) -> None:
    first, second = history
    repo.create_branch("a/b", first)
    write(repo, dataset, "below", group="deep/er", mode="a")
    for ref, snapshot_id in {
        "@tag.v1": first,
        "@branch.old/": first,
        "@branch.a%2Fb": first,
        f"@{second}": second,
        "//@tag.v1": first,
    }.items():
        assert locate(f"{location}|icechunk:{ref}").session.snapshot_id == snapshot_id
    assert locate(f"{location}|icechunk:").location == location
    for url, group in {
        "|icechunk:@branch.main/deep/er": None,
        "|icechunk:/deep/er": None,
        "|icechunk:@branch.main/deep": "er",
        "|icechunk:@branch.main/": "/deep/er",
    }.items():
        opened = xr.open_dataset(location + url, engine="icechunk", group=group)
        xr.testing.assert_identical(opened.load(), dataset)


@pytest.mark.parametrize("rest", ["main", "@", "@branch.", "@.x", "@snapshot.x", "@tag.v1|zip:", "@tag.v1/a|zarr:"])
def test_pipelines_that_mean_nothing(location: str, history: list[str], rest: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        locate(f"{location}|icechunk:{rest}")
    assert caught.value.kind is ErrorKind.CANNOT_PARSE_URL


def test_pipelines_and_arguments_do_not_mix(location: str, history: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="leave one out"):
        locate(f"{location}|icechunk:@tag.v1", branch="main")
    with pytest.raises(InvalidInputError, match="not a repository"):
        xi.open_repository(f"{location}|icechunk:@tag.v1")
    with pytest.raises(InvalidInputError, match="not a repository"):
        xi.open_or_create_repository(f"{location}|icechunk:/group")


@pytest.mark.parametrize("url", ["file://host/path", "file://relative", "file:"])
def test_file_urls_must_be_absolute(url: str) -> None:
    with pytest.raises((InvalidInputError, RepositoryNotFoundError)):
        locate(url)


def test_local_storage_takes_no_options(location: str, history: list[str]) -> None:
    with pytest.raises(InvalidInputError, match="anon"):
        locate(location, storage_options={"anon": True})
    assert locate(location, storage_options={}).location == location


@pytest.mark.parametrize("thing", [None, 3, b"bytes", ..., ["a", "b"]])
def test_other_objects_are_refused(thing: Any) -> None:
    with pytest.raises(InvalidInputError, match=type(thing).__name__):
        locate(thing)


def test_no_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RepositoryNotFoundError) as caught:
            locate(path)
        message = str(caught.value)
        assert str(path) in message
        assert "'repo'" in message
        assert f"open_or_create_repository({str(path)!r})" in message
    with pytest.raises(Exception, match=r"file"):
        locate(tmp_path / "file")


def test_opening_settings_reach_the_repository(location: str, history: list[str]) -> None:
    from icechunk_engine.config import RepositoryConfig

    config = RepositoryConfig(inline_chunk_threshold_bytes=77)
    assert locate(location, config=config).session.config.inline_chunk_threshold_bytes == 77
    assert xi.open_repository(location, config=config).config.inline_chunk_threshold_bytes == 77
