"""Names of branches and tags: invalid names cannot be set, but names that other writers set are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import icechunk as official
import pytest
import zarr

import icechunk_engine as ours

BAD = ["", "\n", "a\nb", "a\tb", "\x1b[31mred", "a\0", "\x7f", "\x85", "\ud800", "a\udfffb"]
GOOD = ["a", "é", "e\u0301", "日本", "😀", "👩‍🔬", "a b", "-a", "a#b", "a%2Fb", ".", "..", "ref.json", "v1.0+x~[1]"]
WITH_SLASH = ["a/b", "release/2024/1", "/a", "a/"]


def open_ours(path: Path) -> ours.Repository:
    return ours.Repository.open(ours.local_filesystem_storage(str(path)))


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("name", BAD)
def test_refused_names(spec_version: int, name: str) -> None:
    repo = ours.Repository.create(ours.in_memory_storage(), spec_version=spec_version)
    tip = repo.lookup_branch("main")
    for attempt in (repo.create_branch, repo.create_tag):
        with pytest.raises(ours.InvalidInputError, match="Choose another name") as caught:
            attempt(name, tip)
        assert caught.value.kind == ours.ErrorKind.INVALID_REF_NAME
        assert str(caught.value).isprintable()
    assert (repo.list_branches(), repo.list_tags()) == ({"main"}, set())


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("name", [5, None, b"a", ["a"]])
def test_names_are_text(spec_version: int, name: Any) -> None:
    repo = ours.Repository.create(ours.in_memory_storage(), spec_version=spec_version)
    for attempt in (repo.create_branch, repo.create_tag):
        with pytest.raises(TypeError, match="names of branches and tags are str"):
            attempt(name, repo.lookup_branch("main"))


@pytest.mark.parametrize("spec_version", [1, 2])
def test_good_names(spec_version: int, tmp_path: Path) -> None:
    storage = ours.local_filesystem_storage(str(tmp_path))
    repo = ours.Repository.create(storage, spec_version=spec_version)
    tip = repo.lookup_branch("main")
    names = {*GOOD, *(WITH_SLASH if spec_version == 2 else ())}
    for name in names:
        repo.create_branch(name, tip)
        repo.create_tag(name, tip)
    again = open_ours(tmp_path)
    assert again.list_branches() == {"main", *names}
    assert again.list_tags() == names
    theirs = official.Repository.open(official.local_filesystem_storage(str(tmp_path)))
    for name in names:
        assert theirs.lookup_branch(name) == theirs.lookup_tag(name) == tip


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("name", WITH_SLASH)
def test_slashes_are_refused_where_official_refuses_them(spec_version: int, name: str, tmp_path: Path) -> None:
    for lib in (official, ours):
        storage = lib.local_filesystem_storage(str(tmp_path / lib.__name__))
        repo = lib.Repository.create(storage, spec_version=spec_version)
        tip = repo.lookup_branch("main")
        for attempt in (repo.create_branch, repo.create_tag):
            if spec_version == 2:
                attempt(name, tip)
            else:
                with pytest.raises(lib.InvalidInputError) as caught:
                    attempt(name, tip)
                assert caught.value.kind == "invalid-ref-name"


@pytest.mark.parametrize("spec_version", [1, 2])
@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred"])
def test_names_that_official_set_are_used_and_deleted(spec_version: int, name: str, tmp_path: Path) -> None:
    theirs = official.Repository.create(official.local_filesystem_storage(str(tmp_path)), spec_version=spec_version)
    tip = theirs.lookup_branch("main")
    theirs.create_branch(name, tip)
    theirs.create_tag(name, tip)
    repo = open_ours(tmp_path)
    assert repo.list_branches() == {"main", name}
    assert repo.list_tags() == {name}
    session = repo.writable_session(name)
    zarr.create_group(session.store)
    newer = session.commit("on a branch of an odd name")
    assert repo.lookup_branch(name) == newer
    assert repo.readonly_session(tag=name).snapshot_id == tip
    repo.reset_branch(name, tip)
    repo.delete_branch(name)
    repo.delete_tag(name)
    assert (open_ours(tmp_path).list_branches(), open_ours(tmp_path).list_tags()) == ({"main"}, set())
