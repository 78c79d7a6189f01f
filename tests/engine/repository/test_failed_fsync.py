"""A disk that refuses data says so once. No commit is acknowledged over a file that it refused."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr

from icechunk_engine import (
    ConflictDetector,
    ErrorKind,
    Repository,
    Session,
    StorageError,
    upgrade_icechunk_repository,
)
from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.local import disk_sync
from icechunk_engine.types import SpecVersion


@pytest.fixture(params=[1, 2])
def repo(tmp_path: Path, request: pytest.FixtureRequest) -> Repository:
    repo = Repository.create(LocalStorage(tmp_path / "repo"), spec_version=SpecVersion(request.param))
    with repo.transaction("main", message="array") as store:
        for name in ("a", "b"):
            zarr.create_array(store, name=name, shape=(400,), chunks=(100,), dtype="i8", compressors=None)
    return repo


def write(session: Session, value: int, name: str = "a") -> None:
    zarr.open_array(session.store, path=name, mode="r+")[:] = value


def tip(repo: Repository) -> str:
    return repo.lookup_branch("main")


def values(repo: Repository, name: str = "a") -> set[int]:
    assert isinstance(repo.storage, LocalStorage)
    again = Repository.open(LocalStorage(str(repo.storage.root)))
    return set(np.asarray(zarr.open_array(again.readonly_session("main").store, path=name, mode="r")[:]).tolist())


@contextmanager
def bad_disk(folder: str, code: int = errno.EIO) -> Iterator[None]:
    """The first sync of each file of a folder fails; as with a real disk, the next one tells nothing."""
    fsync, told = os.fsync, set[str]()

    def fail_once(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if f"/{folder}/" in path and path not in told:
            told.add(path)
            raise OSError(code, os.strerror(code))
        fsync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail_once)
        yield
    assert told, "the disk was not asked"


ENDINGS: dict[str, Callable[[Session], object]] = {
    "commit": lambda session: session.commit("edits"),
    "amend": lambda session: session.amend("edits"),
    "flush": lambda session: session.flush("edits"),
}


@pytest.mark.parametrize("ending", list(ENDINGS))
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_session_refuses_until_its_chunks_are_written_again(repo: Repository, ending: str, code: int) -> None:
    if ending == "amend" and repo.spec_version == SpecVersion.v1:
        ending = "commit"
    before, session = tip(repo), repo.writable_session("main")
    write(session, 1)
    with bad_disk("chunks", code), pytest.raises(StorageError) as caught:
        ENDINGS[ending](session)
    for _ in range(2):
        assert caught.value.kind == ErrorKind.NOT_DURABLE
        assert "/a (0,) (chunks/" in str(caught.value)
        assert os.strerror(code) in str(caught.value)
        assert tip(repo) == before
        with pytest.raises(StorageError, match="write these chunks again") as caught:
            ENDINGS[ending](session)
    zarr.open_array(session.store, path="a", mode="r+")[:300] = 2
    with pytest.raises(StorageError, match=r"/a \(3,\)") as caught:
        ENDINGS[ending](session)
    assert "/a (0,)" not in str(caught.value)
    write(session, 3)
    ENDINGS[ending](session)
    assert values(repo) == ({3} if ending != "flush" else {0})


def test_a_session_that_needs_no_lost_file_commits(repo: Repository) -> None:
    mine, other = repo.writable_session("main"), repo.writable_session("main")
    write(mine, 1, "a")
    write(other, 2, "b")
    with bad_disk("chunks"), pytest.raises(StorageError, match="/a"):
        mine.commit("a")
    with pytest.raises(StorageError, match="/b"):
        other.commit("b")  # flushed together, and refused as well
    write(other, 3, "b")
    other.commit("b")
    third = repo.writable_session("main")
    write(third, 4, "b")
    third.commit("b")
    assert values(repo, "b") == {4}
    with pytest.raises(StorageError, match="/a"):
        mine.commit("a", rebase_with=ConflictDetector())


def test_a_session_commits_while_it_learns_that_others_lost_a_file(repo: Repository) -> None:
    mine, other = repo.writable_session("main"), repo.writable_session("main")
    write(mine, 1, "a")
    metadata = zarr.open_array(other.store, path="b", mode="r+")
    metadata.attrs["units"] = "K"
    with bad_disk("chunks"):
        other.commit("b")
    with pytest.raises(StorageError, match="/a"):
        mine.commit("a", rebase_with=ConflictDetector())


@pytest.mark.parametrize("folder", ["manifests", "snapshots", "transactions"])
def test_files_of_the_commit_itself_are_written_anew(repo: Repository, folder: str) -> None:
    before, session = tip(repo), repo.writable_session("main")
    write(session, 1)
    with bad_disk(folder), pytest.raises(StorageError, match=f"{folder}/.*try again") as caught:
        session.commit("edits")
    assert caught.value.kind == ErrorKind.NOT_DURABLE
    assert tip(repo) == before
    session.commit("edits")
    assert values(repo) == {1}


def test_a_fork_refuses_to_travel(repo: Repository) -> None:
    fork = repo.writable_session("main").fork()
    write(fork, 1)
    with bad_disk("chunks"), pytest.raises(StorageError, match="/a"):
        pickle.dumps(fork)
    with pytest.raises(StorageError, match="/a"):
        pickle.dumps(fork)
    write(fork, 2)
    assert pickle.loads(pickle.dumps(fork)).has_uncommitted_changes


def test_a_fork_that_was_merged_takes_its_losses_along(repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    write(fork, 1)
    with bad_disk("chunks"), pytest.raises(StorageError):
        pickle.dumps(fork)
    session.merge(fork)
    with pytest.raises(StorageError, match="/a"):
        session.commit("edits")


def test_errors_of_a_whole_file_system(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells an error once, and may not know of which file: then any of them may be lost."""
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="many", shape=(6400,), chunks=(100,), dtype="i8", compressors=None)
    write(session, 1, "many")
    with monkeypatch.context() as patch:

        def fail(fd: int) -> bool:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(disk_sync, "syncfs", fail)
        with pytest.raises(StorageError, match="and 59 more"):
            session.commit("edits")
    with pytest.raises(StorageError, match="and 59 more"):
        session.commit("edits")
    write(session, 2, "many")
    session.commit("edits")
    assert values(repo, "many") == {2}


def test_a_commit_whose_name_may_be_lost_is_not_acknowledged(repo: Repository) -> None:
    """The last sync is that of the folder after the swap: the commit is there, but a crash could take it back."""
    session = repo.writable_session("main")
    write(session, 1)
    before, fsync = tip(repo), os.fsync

    def after_the_swap(fd: int) -> None:
        if tip(repo) != before:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", after_the_swap)
        with pytest.raises(StorageError) as caught:
            session.commit("edits")
        assert caught.value.kind == ErrorKind.NOT_DURABLE
    with pytest.raises(StorageError) as caught:
        session.commit("edits")
    assert caught.value.kind == ErrorKind.NOT_DURABLE
    later = repo.writable_session("main")
    write(later, 2, "b")
    later.commit("another update")
    assert session.commit("edits")  # the folder was synced since
    assert len(list(repo.ancestry(branch="main"))) == 4


def test_a_commit_that_was_interrupted_before_its_last_sync_is_synced_later(repo: Repository) -> None:
    session = repo.writable_session("main")
    write(session, 1)
    before, fsync, synced = tip(repo), os.fsync, list[str]()

    def interrupted(fd: int) -> None:
        if tip(repo) != before:
            raise KeyboardInterrupt
        fsync(fd)

    def recorded(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.commit("edits")
        patch.setattr(os, "fsync", recorded)
        session.commit("edits")
    assert isinstance(repo.storage, LocalStorage)
    folder = repo.storage.root if repo.spec_version == SpecVersion.v2 else f"{repo.storage.root}/refs/branch.main"
    assert folder in synced


def test_an_upgrade_whose_deletions_may_be_lost_is_not_acknowledged(tmp_path: Path) -> None:
    """A crash could bring the ref files of spec 1 back, and old programs would write to them."""
    repo = Repository.create(LocalStorage(tmp_path / "repo"), spec_version=SpecVersion.v1)
    branch_folder, fsync = tmp_path / "repo" / "refs" / "branch.main", os.fsync

    def after_the_deletion(fd: int) -> None:
        if not (branch_folder / "ref.json").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", after_the_deletion)
        with pytest.raises(StorageError) as caught:
            upgrade_icechunk_repository(repo, dry_run=False)
    assert caught.value.kind == ErrorKind.NOT_DURABLE
    assert not (branch_folder / "ref.json").exists()
    assert Repository.open(LocalStorage(tmp_path / "repo")).spec_version == SpecVersion.v2


def test_a_forked_child_does_not_commit_what_its_parent_has_not_flushed() -> None:
    """Only the parent learns whether it reached the disk."""
    code = """
import os, tempfile, zarr
from icechunk_engine import Repository, StorageError
from icechunk_engine.storage import LocalStorage
repo = Repository.create(LocalStorage(tempfile.mkdtemp()))
session = repo.writable_session("main")
array = zarr.create_array(session.store, name="a", shape=(400,), chunks=(100,), dtype="i8", compressors=None)
array[:200] = 1
pid = os.fork()
if pid == 0:
    try:
        session.commit("parent's")
    except StorageError as error:
        os._exit(0 if "forked" in str(error) and "/a (0,)" in str(error) else 2)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == 0
session.commit("mine")
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "fine\n", done.stderr
