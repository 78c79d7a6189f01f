"""The local storage: files, keys, locks, and errors of the system."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import icechunk as official
import pytest

from icechunk_engine.errors import (
    ErrorKind,
    InvalidInputError,
    ObjectNotFoundError,
    StorageError,
    VersionMismatchError,
)
from icechunk_engine.storage import LocalStorage, local_filesystem_storage
from icechunk_engine.storage.local import file_lock, files
from icechunk_engine.storage.local.file_lock import LOCK_NAME, locked
from icechunk_engine.testing.racing import compete_in_threads, race_creates
from tests.profiles import by_profile

from .support import failing, half_copied, names, run

# --- files ---------------------------------------------------------------------------------------------------------


def test_only_objects_stay(storage: LocalStorage) -> None:
    storage.put("chunks/A", b"1")
    version = storage.create("repo", b"1")
    storage.copy("repo", "overwritten/repo.1")
    storage.copy("repo", "overwritten/repo.1")
    storage.replace("repo", b"2", version)
    with pytest.raises(VersionMismatchError):
        storage.create("repo", b"3")
    with pytest.raises(VersionMismatchError):
        storage.replace("repo", b"3", version)
    assert names(storage) == {"chunks/A", "repo", "overwritten/repo.1"}
    assert os.path.exists(os.path.join(storage.root, LOCK_NAME))


def test_no_lock_file_before_the_first_replace(storage: LocalStorage) -> None:
    storage.put("snapshots/A", b"1")
    storage.create("repo", b"1")
    assert not os.path.exists(os.path.join(storage.root, LOCK_NAME))


def test_every_version_is_a_new_file(storage: LocalStorage) -> None:
    """Official keeps hard links of old versions; so do we."""
    version = storage.create("repo", b"1")
    path = os.path.join(storage.root, "repo")
    storage.copy("repo", "overwritten/repo.1")
    backup = os.path.join(storage.root, "overwritten/repo.1")
    assert os.path.samefile(path, backup)
    storage.replace("repo", b"2", version)
    assert not os.path.samefile(path, backup)
    storage.copy("repo", "overwritten/repo.2")
    storage.put("repo", b"3")
    assert storage.get("overwritten/repo.1") == b"1"
    assert storage.get("overwritten/repo.2") == b"2"


def test_the_umask_is_honoured(storage: LocalStorage) -> None:
    previous = os.umask(0o027)
    try:
        storage.put("chunks/A", b"1")
        storage.create("repo", b"1")
    finally:
        os.umask(previous)
    for name, mode in (("chunks/A", 0o640), ("repo", 0o640), ("chunks", 0o750), ("", 0o750)):
        assert os.stat(os.path.join(storage.root, name)).st_mode & 0o777 == mode


def test_junk_is_not_listed(storage: LocalStorage) -> None:
    storage.put("chunks/A", b"1")
    storage.put("chunks/a#b", b"1")
    for junk in (".DS_Store", ".nfs0001", "chunks/A#1", "chunks/B#12345678901234567", LOCK_NAME, ".git/config"):
        path = Path(storage.root, junk)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"junk")
    os.symlink("/nowhere/at/all", os.path.join(storage.root, "dangling"))
    os.mkfifo(os.path.join(storage.root, "pipe"))
    assert {info.key for info in storage.list()} == {"chunks/A", "chunks/a#b"}


def test_official_does_not_see_temporaries_and_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch()
    Path(files.temporary_for(str(tmp_path / "repo"))).write_bytes(b"junk")
    repository = official.Repository.create(official.local_filesystem_storage(str(tmp_path)))
    assert list(repository.list_branches()) == ["main"]


def test_linked_directories_are_followed_once(storage: LocalStorage, tmp_path: Path) -> None:
    storage.put("chunks/A", b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "S").write_bytes(b"22")
    os.symlink(tmp_path / "elsewhere", os.path.join(storage.root, "snapshots"))
    os.symlink(storage.root, os.path.join(storage.root, "chunks", "loop"))
    listed = [info.key for info in storage.list()]
    assert {"chunks/A", "snapshots/S"} <= set(listed)
    assert len(listed) <= 4
    assert storage.get("snapshots/S") == b"22"


def test_directories_may_vanish(storage: LocalStorage) -> None:
    storage.put("chunks/a/A", b"1")
    shutil.rmtree(storage.root)
    with pytest.raises(ObjectNotFoundError):
        storage.get("chunks/a/A")
    assert list(storage.list()) == []
    storage.put("chunks/a/B", b"2")
    storage.create("repo", b"3")
    assert names(storage) == {"chunks/a/B", "repo"}
    storage.flush()  # of files that are gone, too


def test_large_data_comes_and_goes_in_pieces(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system moves at most 2 GiB a call; here 1000 bytes."""
    read, pread, write = os.read, os.pread, os.write
    monkeypatch.setattr(os, "read", lambda fd, n: read(fd, min(n, 1000)))
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: pread(fd, min(n, 1000), offset))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, memoryview(data).cast("B")[:1000]))
    data = os.urandom(12_345)
    storage.put("a", data)
    assert Path(storage.root, "a").read_bytes() == data
    assert storage.get("a") == data
    assert storage.get_range("a", 10, 12_340) == data[10:12_340]
    storage.put("b", memoryview(data[:12_344]).cast("I"))
    assert storage.get("b") == data[:12_344]
    with pytest.raises(StorageError) as caught:
        storage.get_range("a", 10, 12_346)
    assert caught.value.kind == ErrorKind.INVALID_OBJECT_SIZE


# --- keys and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "a//b",
        "a/",
        "../a",
        "a/../../b",
        "a/..",
        ".",
        "./a",
        ".hidden",
        "a/.git/b",
        "é",
        "a\0b",
        "a#1",
    ],
)
def test_bad_keys_are_not_written(storage: LocalStorage, key: str) -> None:
    version = storage.create("repo", b"1")
    writes: list[Callable[[], Any]] = [
        lambda: storage.put(key, b"1"),
        lambda: storage.create(key, b"1"),
        lambda: storage.replace(key, b"1", version),
        lambda: storage.copy("repo", key),
    ]
    for write in writes:
        with pytest.raises(InvalidInputError) as caught:
            write()
        assert caught.value.kind == ErrorKind.INVALID_KEY
    assert names(storage) == {"repo"}
    assert os.listdir(os.path.dirname(storage.root)) == ["root"]


def test_keys_do_not_lead_out(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"1")
    storage.put("a/b", b"1")
    uses: list[Callable[[str], Any]] = [
        storage.get,
        storage.get_versioned,
        storage.info,
        lambda key: storage.get_range(key, 0, 1),
        lambda key: list(storage.list(f"{key}/")),
        lambda key: storage.delete([key]),
        lambda key: storage.copy(key, "c"),
    ]
    for use in uses:
        for key in ("../secret", "a/../../secret"):
            with pytest.raises(InvalidInputError):
                use(key)
    assert (tmp_path / "secret").exists()
    storage.put("a..b", b"2")  # two dots alone are no harm
    assert storage.get("a..b") == b"2"
    with pytest.raises(ObjectNotFoundError):
        storage.get("/etc/passwd")
    with pytest.raises(InvalidInputError):
        storage.get("a\0b")


def test_relative_paths_stay_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage("root")
    pickled = pickle.dumps(storage)
    storage.put("a", b"1")
    monkeypatch.chdir("/")
    assert storage.get("a") == b"1"
    assert pickle.loads(pickled).get("a") == b"1"
    assert storage == LocalStorage(tmp_path / "root")
    assert storage.root == str(tmp_path / "root")


def test_identity_is_the_real_place(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert LocalStorage(tmp_path / "link") == LocalStorage(f"{tmp_path}/real/")
    assert LocalStorage(tmp_path / "link") != LocalStorage(tmp_path)
    assert LocalStorage(tmp_path / "real").identity == f"file://{os.path.realpath(tmp_path)}/real"


def test_flags_are_pickled(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(LocalStorage(tmp_path, durable=False)))._durable is False
    assert pickle.loads(pickle.dumps(LocalStorage(tmp_path)))._durable is True


def test_urls_are_no_paths() -> None:
    with pytest.raises(InvalidInputError, match="URL") as caught:
        local_filesystem_storage("file:///tmp/x")
    assert caught.value.kind == ErrorKind.CANNOT_PARSE_URL


# --- errors of the system ------------------------------------------------------------------------------------------


def test_a_full_disk_changes_nothing(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    version = storage.create("repo", b"1")
    storage.put("chunks/A", b"1")
    monkeypatch.setattr(os, "write", failing(errno.ENOSPC))
    writes: list[Callable[[], Any]] = [
        lambda: storage.put("chunks/A", b"2"),
        lambda: storage.put("chunks/A", b"2", atomic=False),
        lambda: storage.put("chunks/B", b"2", atomic=False),
        lambda: storage.create("other", b"2"),
        lambda: storage.replace("repo", b"2", version),
        lambda: storage.copy("repo", "chunks/A"),
    ]
    monkeypatch.setattr(shutil, "copyfile", half_copied)
    for write in writes:
        with pytest.raises(StorageError, match="free some space") as caught:
            write()
        assert caught.value.kind == ErrorKind.IO
    monkeypatch.undo()
    assert names(storage) == {"repo", "chunks/A"}
    assert storage.get("chunks/A") == b"1"
    storage.replace("repo", b"2", version)  # and nothing is locked


def test_a_failing_disk_is_not_hidden(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    version = storage.create("repo", b"1")
    storage.put("chunks/A", b"1")
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    for _ in range(2):
        with pytest.raises(StorageError, match="check the disk"):
            storage.replace("repo", b"2", version)
    monkeypatch.undo()
    assert storage.get("repo") == b"1"
    assert names(storage) == {"repo", "chunks/A"}


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.EACCES, "permissions"), (errno.EROFS, "read-only"), (errno.EMFILE, "ulimit"), (errno.ELOOP, "mount")],
)
def test_errors_name_path_and_remedy(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    storage.put("chunks/A", b"1")
    monkeypatch.setattr(os, "open", failing(code))
    monkeypatch.setattr(os, "stat", failing(code))
    monkeypatch.setattr(os, "scandir", failing(code))
    monkeypatch.setattr(os, "unlink", failing(code))
    for use in (
        lambda: storage.get("chunks/A"),
        lambda: storage.get_range("chunks/A", 0, 1),
        lambda: storage.put("chunks/A", b"1"),
        lambda: storage.info("chunks/A"),
        lambda: list(storage.list("chunks/A")),
        lambda: storage.copy("chunks/A", "b"),
        lambda: storage.delete(["chunks/A"]),
        lambda: storage.get_versioned("chunks/A"),
    ):
        with pytest.raises(StorageError, match=remedy) as caught:
            use()
        assert caught.value.kind == ErrorKind.IO
        assert os.path.join(storage.root, "chunks/A") in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()


def test_directories_are_no_objects(storage: LocalStorage) -> None:
    storage.put("chunks/A", b"1")
    with pytest.raises(StorageError, match="is a directory") as caught:
        storage.get("chunks")
    assert caught.value.kind == ErrorKind.IO
    with pytest.raises(StorageError, match="is a directory"):
        storage.put("chunks", b"1")
    assert names(storage) == {"chunks/A"}


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    storage = LocalStorage(tmp_path / "file")
    for use in (
        lambda: storage.get("repo"),
        lambda: storage.put("repo", b"1"),
        lambda: storage.create("repo", b"1"),
    ):
        with pytest.raises(StorageError, match="Pass the directory"):
            use()
    assert list(storage.list()) == []


# --- conditional writes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_file_systems_without_hard_links(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(os, "link", failing(code))
    version = storage.create("repo", b"1")
    with pytest.raises(VersionMismatchError):
        storage.create("repo", b"2")
    won = compete_in_threads(race_creates, storage, 4, 25)
    assert sorted(n for rounds in won for n in rounds) == list(range(25))
    storage.copy("repo", "backup")
    storage.replace("repo", b"2", version)
    assert storage.get("backup") == b"1"
    assert names(storage) == {"repo", "backup", *(f"race/{n}" for n in range(25))}


def test_a_lost_reply_of_link_is_no_loss(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_and_lose_the_reply(source: str, target: str) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "exists")

    monkeypatch.setattr(os, "link", link_and_lose_the_reply)
    storage.create("repo", b"1")
    assert storage.get("repo") == b"1"
    assert names(storage) == {"repo"}


def test_file_systems_without_locks(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    version = storage.create("repo", b"1")
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(StorageError, match="cannot lock files") as caught:
        storage.replace("repo", b"2", version)
    assert caught.value.kind == ErrorKind.STORAGE_CONFIG
    assert storage.get("repo") == b"1"


def test_a_foreign_writer_is_noticed(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes no lock, and comes while we write our temporary file."""
    version = storage.create("repo", b"1")
    write_temporary = LocalStorage._write_temporary

    def write(self: LocalStorage, path: str, data: bytes, *, sync: bool) -> str:
        temporary = write_temporary(self, path, data, sync=sync)
        with open(path + ".new", "wb") as file:
            file.write(b"foreign")
        os.replace(path + ".new", path)
        return temporary

    monkeypatch.setattr(LocalStorage, "_write_temporary", write)
    with pytest.raises(VersionMismatchError):
        storage.replace("repo", b"2", version)
    assert storage.get("repo") == b"foreign"
    assert names(storage) == {"repo"}


def test_a_vanished_directory_is_another_version(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    version = storage.create("repo", b"1")
    flush = LocalStorage._sync_written

    def flush_and_remove(self: LocalStorage) -> None:
        flush(self)
        shutil.rmtree(self.root)

    monkeypatch.setattr(LocalStorage, "_sync_written", flush_and_remove)
    with pytest.raises(VersionMismatchError):
        storage.replace("repo", b"2", version)


def test_waiting_ends_when_it_is_lost_already(storage: LocalStorage) -> None:
    version = storage.create("repo", b"1")
    outcome: list[BaseException] = []

    def replace() -> None:
        try:
            storage.replace("repo", b"2", version)
        except BaseException as error:
            outcome.append(error)

    with locked(storage.root, give_up=lambda: None):
        storage.put("repo", b"3")
        thread = threading.Thread(target=replace)
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert isinstance(outcome[0], VersionMismatchError)


def test_the_lock_excludes_threads(tmp_path: Path) -> None:
    n_inside = 0
    most = 0

    def work() -> None:
        nonlocal n_inside, most
        for _ in range(50):
            with locked(str(tmp_path), give_up=lambda: None):
                n_inside += 1
                most = max(most, n_inside)
                os.listdir(tmp_path)
                n_inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_removed_lock_file_is_made_anew(tmp_path: Path) -> None:
    """Who waited on the removed file must not think that he excludes those who lock the new one."""
    path = str(tmp_path / LOCK_NAME)
    entered = threading.Event()
    same: list[bool] = []

    def work() -> None:
        fd = file_lock._acquire(path, entered.set)
        same.append(os.path.samestat(os.fstat(fd), os.stat(path)))
        file_lock.release(fd)

    with locked(str(tmp_path), give_up=lambda: None):
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(60)
        os.unlink(path)
        Path(path).touch()
    thread.join()
    assert same == [True]


def test_a_forked_child_does_not_keep_the_lock() -> None:
    """Neither when its parent goes on, nor when its parent dies while it holds the lock."""
    code = """
import os, signal, sys, tempfile
from icechunk_engine.storage.local import file_lock

directory = tempfile.mkdtemp()
path = os.path.join(directory, file_lock.LOCK_NAME)

def is_free():
    fd = os.open(path, os.O_RDWR)
    free = file_lock.lock(fd, wait=False)
    os.close(fd)
    return free

def idle_child(with_handlers):
    if not with_handlers:  # as if the fork were made by a library in C, which runs no handlers
        file_lock._open_fds.clear()
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid

with file_lock.locked(directory, lambda: None):
    child = idle_child(with_handlers=False)
    assert not is_free()
assert is_free()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)

read_end, write_end = os.pipe()
parent = os.fork()
if parent == 0:
    fd = file_lock._acquire(path, lambda: None)
    os.write(write_end, b"%d" % idle_child(with_handlers=True))
    os._exit(0)
orphan = int(os.read(read_end, 20))
os.waitpid(parent, 0)
fd = file_lock._acquire(path, lambda: None)  # waits for the orphan to run its handlers
os.kill(orphan, signal.SIGKILL)
print("fine")
"""
    assert run(code) == "fine\n"


def test_serials_are_unique_after_a_fork() -> None:
    code = """
import os
from icechunk_engine.storage.local import files
read_end, write_end = os.pipe()
if os.fork() == 0:
    os.write(write_end, files.temporary_for("x").encode())
    os._exit(0)
print(os.read(read_end, 100).decode() != files.temporary_for("x"))
"""
    assert run(code) == "True\n"


# --- leftovers -----------------------------------------------------------------------------------------------------


def test_old_temporaries_are_swept(storage: LocalStorage) -> None:
    version = storage.create("repo", b"1")
    storage.put("chunks/A", b"1")
    version = storage.replace("repo", b"2", version)
    old = time.time() - 2 * 3600
    for name in ("repo#123", "chunks/B#456", "chunks/C#789", LOCK_NAME, "repo", "chunks/A"):
        path = Path(storage.root, name)
        if not path.exists():
            path.write_bytes(b"half")
        if name != "chunks/C#789":
            os.utime(path, (old, old))
    LocalStorage(storage.root).replace("repo", b"3", version)
    assert names(storage) == {"repo", "chunks/A", "chunks/B#456", "chunks/C#789"}
    assert storage.sweep_temporaries() == 1
    assert names(storage) == {"repo", "chunks/A", "chunks/C#789"}
    assert os.path.exists(os.path.join(storage.root, LOCK_NAME))


def test_directories_that_become_empty_are_removed(storage: LocalStorage) -> None:
    root = Path(storage.root)
    for key in ("journals/t/done/a/x", "journals/t/done/b/y", "journals/u/z", "chunks/a"):
        storage.put(key, b"1")
    storage.delete(["journals/t/done/a/x"])
    assert not (root / "journals/t/done/a").exists()
    assert (root / "journals/t/done/b").is_dir()
    storage.delete(["journals/t/done/b/y", "chunks/a"])
    assert not (root / "journals/t").exists()
    assert (root / "chunks").is_dir()  # those at the top stay
    storage.flush()
    storage.put("journals/t/done/a/x", b"2")
    assert storage.get("journals/t/done/a/x") == b"2"
    storage.flush()


def test_writing_into_a_directory_that_others_keep_removing(storage: LocalStorage) -> None:
    stop = threading.Event()

    def remove() -> None:
        other = LocalStorage(storage.root)
        while not stop.is_set():
            other.put("journals/t/b", b"")
            other.delete(["journals/t/b"])

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for n in range(by_profile(quick=300, thorough=5000)):
            storage.put(f"journals/t/{n}", b"x")
            assert storage.get(f"journals/t/{n}") == b"x"
            storage.delete([f"journals/t/{n}"])
            storage.create("journals/t/c", b"x")
            storage.delete(["journals/t/c"])
    finally:
        stop.set()
        thread.join()
    assert list(storage.list("journals/")) == []
