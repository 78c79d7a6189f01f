"""What is special about the local storage: files, locks, durability, and errors of the system."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from icechunk_engine.storage.local import disk_sync, durability, file_lock, files
from icechunk_engine.storage.local.file_lock import LOCK_NAME, locked
from icechunk_engine.testing.racing import compete_in_threads, race_creates


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "root")


@pytest.fixture(autouse=True)
def no_leaked_files() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd")) - len(durability._watched)
    yield
    after = len(os.listdir("/proc/self/fd")) - len(durability._watched)  # one a place with unflushed files
    assert after <= before  # idle connections of other tests may be closed


def names(storage: LocalStorage) -> set[str]:
    """Every file that is there, hidden ones included, but for the lock."""
    return {
        os.path.relpath(os.path.join(directory, name), storage.root)
        for directory, _, files in os.walk(storage.root)
        for name in files
        if name != LOCK_NAME
    }


def failing(code: int) -> Callable[..., Any]:
    def fail(*args: object, **kwargs: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def failing_for(ending: str, code: int) -> Callable[[int], None]:
    """An fsync that fails for files whose path ends so."""
    fsync = os.fsync

    def fail(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(ending):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    return fail


def half_copied(source: str, target: str) -> None:
    Path(target).touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def run(code: str, *arguments: str) -> str:
    """Output of a Python process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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


# --- durability ----------------------------------------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced or renamed, in order: base names, ``*`` for a whole file system."""
    events: list[str] = []
    fsync, syncfs, replace, link = os.fsync, disk_sync.syncfs, os.replace, os.link

    def name_of(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}")).split("#")[0]

    def recorded_fsync(fd: int) -> None:
        events.append(name_of(fd))
        fsync(fd)

    def recorded_syncfs(fd: int) -> bool:
        events.append("*")
        return syncfs(fd)

    def recorded_replace(source: str, target: str) -> None:
        events.append(f"> {os.path.basename(target)}")
        replace(source, target)

    def recorded_link(source: str, target: str) -> None:
        events.append(f"> {os.path.basename(target)}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(disk_sync, "syncfs", recorded_syncfs)
    monkeypatch.setattr(os, "replace", recorded_replace)
    monkeypatch.setattr(os, "link", recorded_link)
    return events


def test_puts_do_not_wait_for_the_disk(storage: LocalStorage, synced: list[str]) -> None:
    storage.put("chunks/A", b"1")
    storage.put("chunks/B", b"1")
    assert synced == ["> A", "> B"]
    synced.clear()
    storage.flush()
    assert {"A", "B", "chunks", "root"} <= set(synced)
    synced.clear()
    storage.flush()
    assert synced == []


def test_what_a_commit_refers_to_is_on_the_disk_before_it(storage: LocalStorage, synced: list[str]) -> None:
    version = storage.create("repo", b"1")
    synced.clear()
    LocalStorage(storage.root).put("chunks/A", b"1")  # another object for the same place
    storage.replace("repo", b"2", version)
    assert synced.index("A") < synced.index("repo") < synced.index("> repo")
    assert synced.index("chunks") < synced.index("> repo")
    assert synced[-1] == "root"


def test_create_is_durable(storage: LocalStorage, synced: list[str]) -> None:
    storage.put("snapshots/A", b"1")
    storage.create("repo", b"1")
    assert synced.index("A") < synced.index("repo") < synced.index("> repo")
    assert "root" in synced[synced.index("> repo") :]


@pytest.mark.parametrize("has_syncfs", [True, False])
def test_many_files_are_flushed_at_once(
    storage: LocalStorage, synced: list[str], monkeypatch: pytest.MonkeyPatch, has_syncfs: bool
) -> None:
    monkeypatch.setattr(disk_sync, "HAS_SYNCFS", has_syncfs)
    for n in range(100):
        storage.put(f"chunks/{n}", b"1")
    synced.clear()
    storage.flush()
    if has_syncfs:
        assert synced == ["*"]
    else:
        assert {str(n) for n in range(100)} | {"chunks", "root"} <= set(synced)


@pytest.mark.parametrize("has_syncfs", [True, False])
def test_the_record_is_bounded(
    storage: LocalStorage, synced: list[str], monkeypatch: pytest.MonkeyPatch, has_syncfs: bool
) -> None:
    """A long list is flushed in the background; a writer whom that does not help waits for the disk."""
    started: list[Callable[[], None]] = []
    monkeypatch.setattr(disk_sync, "HAS_SYNCFS", has_syncfs)
    monkeypatch.setattr(durability, "_FEW", 2)
    monkeypatch.setattr(durability, "_MANY", 10)
    monkeypatch.setattr(durability, "_TOO_MANY", 20)
    monkeypatch.setattr(durability._background, "submit", started.append)
    for n in range(15):
        storage.put(f"chunks/{n}", b"1")
    assert len(started) == 1
    assert "0" not in synced
    assert "*" not in synced
    started[0]()
    assert ("*" if has_syncfs else "0") in synced
    assert not storage._unsynced._paths
    for n in range(100):
        storage.put(f"chunks/{n}", b"1")
        assert len(storage._unsynced._paths) < 20


def test_a_flush_in_the_background_hides_no_error(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durability, "_MANY", 5)
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    for n in range(5):
        storage.put(f"chunks/{n}", b"1")
    with pytest.raises(StorageError, match="chunks/"):
        storage.flush()
    assert {f"chunks/{n}" for n in range(5)} <= set(storage.not_durable())


def test_without_syncfs_in_the_kernel(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for all file systems tells no errors, so each file is asked for its own."""
    synced: list[bool] = []
    asked: list[int] = []
    monkeypatch.setattr(disk_sync, "_syncfs_of_libc", lambda fd: -1)
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.ENOSYS)
    monkeypatch.setattr(disk_sync, "_wait_for_writing", asked.append)
    monkeypatch.setattr(os, "sync", lambda: synced.append(True))
    for n in range(100):
        storage.put(f"chunks/{n}", b"1")
    storage.flush()
    assert synced == [True]
    assert len(asked) >= 100


def test_nothing_waits_for_the_disk_when_told_so(tmp_path: Path, synced: list[str]) -> None:
    storage = LocalStorage(tmp_path / "root", durable=False)
    version = storage.create("repo", b"1")
    storage.put("chunks/A", b"1")
    storage.replace("repo", b"2", version)
    storage.flush()
    assert [event for event in synced if not event.startswith(">")] == []


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_the_disk_refused_is_lost_until_it_is_written_again(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The system tells an error once: that syncing again succeeds says nothing."""
    storage.put("chunks/A", b"1")
    storage.put("chunks/B", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for("/A", code))
        with pytest.raises(StorageError, match="chunks/A in") as caught:
            storage.flush()
    assert caught.value.kind == ErrorKind.NOT_DURABLE
    for _ in range(2):
        with pytest.raises(StorageError, match="write it again" if code == errno.EIO else "free some space"):
            storage.flush()
    assert storage.not_durable() == {"chunks/A": os.strerror(code)}
    assert LocalStorage(storage.root).not_durable() == {"chunks/A": os.strerror(code)}
    storage.put("chunks/A", b"1")
    storage.flush()
    assert storage.not_durable() == {}


def test_what_is_deleted_is_no_longer_lost(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("chunks/A", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for("/A", errno.EIO))
        with pytest.raises(StorageError):
            storage.flush()
    storage.delete(["chunks/A"])
    storage.flush()


def test_a_file_is_lost_with_its_name(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be found after a crash is as lost as what is damaged."""
    storage.put("chunks/A", b"1")
    storage.flush()
    storage.put("chunks/B", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for("/chunks", errno.EIO))
        with pytest.raises(StorageError, match="chunks/B"):
            storage.flush()
    assert set(storage.not_durable()) == {"chunks/B"}


def test_a_directory_is_lost_with_all_that_comes_into_it(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("repo", b"1")
    storage.flush()
    storage.put("chunks/A", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for("/root", errno.EIO))
        with pytest.raises(StorageError, match="chunks/"):
            storage.flush()
    assert "chunks/" in storage.not_durable()


def test_a_name_that_may_be_lost_is_told(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swap took place, but the folder could not be synced. The next swap mends that."""
    version = storage.create("repo", b"1")
    with monkeypatch.context() as patch:
        fsync = os.fsync

        def after_the_swap(fd: int) -> None:
            if storage.get("repo") == b"2":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            fsync(fd)

        patch.setattr(os, "fsync", after_the_swap)
        with pytest.raises(StorageError) as caught:
            storage.replace("repo", b"2", version)
        assert caught.value.kind == ErrorKind.NOT_DURABLE
    assert set(storage.not_durable()) == {"repo"}
    _, version = storage.get_versioned("repo")
    storage.replace("repo", b"3", version)
    assert storage.not_durable() == {}


def test_the_file_system_may_have_forgotten_whose_error_it_was(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(50):
        storage.put(f"chunks/{n}", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(disk_sync, "syncfs", failing(errno.EIO))
        with pytest.raises(StorageError, match=r"and \d+ more") as caught:
            storage.flush()
    assert caught.value.kind == ErrorKind.NOT_DURABLE
    assert {f"chunks/{n}" for n in range(50)} <= set(storage.not_durable())


def test_the_file_system_may_know_whose_error_it_was(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(50):
        storage.put(f"chunks/{n}", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(disk_sync, "syncfs", failing(errno.EIO))
        patch.setattr(os, "fsync", failing_for("/17", errno.EIO))
        with pytest.raises(StorageError, match="chunks/17 in"):
            storage.flush()
    assert set(storage.not_durable()) == {"chunks/17"}


def test_the_descriptor_that_hears_of_errors_is_older_than_the_files(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells an error once, maybe to another process, but always to a descriptor that was open before."""
    heard: list[int] = []
    storage.create("repo", b"1")
    storage.put("chunks/A", b"1")
    watch = storage._unsynced._watch_fd
    assert os.path.samestat(os.fstat(watch), os.stat(storage.root))
    monkeypatch.setattr(disk_sync, "syncfs", lambda fd: heard.append(fd) or True)
    for n in range(50):
        storage.put(f"chunks/{n}", b"1")
    storage.flush()
    assert heard == [watch]
    assert storage._unsynced._watch_fd == -1


def test_an_error_of_the_file_system_does_not_count_twice(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error it is asked until it has nothing to tell, and the next files are asked one by one."""
    storage.put("repo", b"1")
    storage.flush()
    told: list[int] = []
    asked: list[int] = []

    def syncfs(fd: int) -> bool:
        told.append(fd)
        if len(told) in (1, 2):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return True

    monkeypatch.setattr(disk_sync, "syncfs", syncfs)
    monkeypatch.setattr(disk_sync, "_wait_for_writing", asked.append)
    for n_asked in (0, 50, 0):
        for n in range(50):
            storage.put(f"chunks/{n}", b"1")
        if len(told) == 0:
            with pytest.raises(StorageError, match="disk refused"):
                storage.flush()
            assert len(told) == 2
        else:
            storage.flush()
        assert len(asked) == n_asked
        asked.clear()
    assert len(told) == 4


def test_few_places_are_watched_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no descriptor was kept, each file is asked for its error."""
    monkeypatch.setattr(durability, "_watched", {})
    monkeypatch.setattr(durability, "_WATCHED_FOLDERS", 2)
    asked: list[int] = []
    monkeypatch.setattr(disk_sync, "_wait_for_writing", asked.append)
    storages = [LocalStorage(tmp_path / str(n)) for n in range(5)]
    for storage in storages:
        storage.create("repo", b"1")
        for n in range(40):
            storage.put(f"chunks/{n}", b"1")
    assert len(durability._watched) == 2
    storages[4].flush()
    assert not asked
    storages[0].flush()
    assert len(asked) >= 40
    for storage in storages:
        storage.flush()
    assert not durability._watched


def test_a_file_that_cannot_be_opened_is_not_lost(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("chunks/A", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing(errno.EMFILE))
        with pytest.raises(StorageError, match="ulimit"):
            storage.flush()
    storage.flush()
    assert storage.not_durable() == {}


@pytest.mark.parametrize("patience_s", [0.0, 1000.0])
def test_every_file_is_waited_for(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, synced: list[str], patience_s: float
) -> None:
    """By one thread or by several, also after one of them failed."""
    monkeypatch.setattr(disk_sync, "_PATIENCE_S", patience_s)
    names = [f"{n:02d}" for n in range(20)]
    for name in names:
        storage.put(f"chunks/{name}", b"1")
    with monkeypatch.context() as patch:
        fsync = os.fsync

        def sometimes(fd: int) -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith("/13"):
                raise OSError(errno.EIO, "bad disk")
            fsync(fd)

        patch.setattr(os, "fsync", sometimes)
        synced.clear()
        with pytest.raises(StorageError, match="bad disk"):
            storage.flush()
    names.remove("13")
    assert synced[-1] == "*"  # the file system is heard out
    folders = ["chunks", "root", os.path.basename(os.path.dirname(storage.root))]
    assert sorted(synced[:-1]) == sorted([*names, *folders])
    assert set(storage.not_durable()) == {"chunks/13"}
    synced.clear()
    with pytest.raises(StorageError, match="bad disk"):
        storage.flush()
    assert synced == []


def test_at_the_end_of_the_interpreter_each_file_is_waited_for_once(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread can be given work any more, after some were; the system tells an error to the first who waits only."""
    monkeypatch.setattr(disk_sync, "_PATIENCE_S", 0.0)
    names = [f"{n:02d}" for n in range(20)]
    for name in names:
        storage.put(f"chunks/{name}", b"1")
    waited: list[str] = []

    def tell_once(fd: int) -> None:
        waited.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        if waited[-1] == "03" and waited.count("03") == 1:
            raise OSError(errno.EIO, "bad disk")

    with ThreadPoolExecutor(2) as threads:
        submit, left = threads.submit, iter(range(10))

        def ending(*args: Any) -> Any:
            if next(left, None) is None:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            return submit(*args)

        monkeypatch.setattr(threads, "submit", ending)
        monkeypatch.setattr(disk_sync._threads, "_executor", threads)
        monkeypatch.setattr(os, "fsync", tell_once)
        with pytest.raises(StorageError, match="bad disk"):
            storage.flush()
    assert sorted(waited) == sorted([*names, "chunks", "root", os.path.basename(os.path.dirname(storage.root))])


def test_a_forked_child_flushes_only_its_own() -> None:
    code = """
import os, tempfile
from icechunk_engine.storage import LocalStorage
storage = LocalStorage(tempfile.mkdtemp())
storage.put("parent", b"1")
with storage._unsynced._flush_lock:  # as if another thread flushed
    pid = os.fork()
    if pid == 0:
        assert not storage._unsynced._paths
        storage.put("child", b"1")
        storage.flush()
        assert storage.not_durable() == {"parent": "written by the process that this one was forked from"}
        os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert len(storage._unsynced._paths) == 1
print("fine")
"""
    assert run(code) == "fine\n"


def test_a_task_runs_once_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor keeps the task that it could not start a thread for; running it again closed files of others."""
    threads, ran = disk_sync.Threads(2, "test"), []
    gate = threading.Event()
    first = threads.submit(gate.wait)  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        patched.setattr(ThreadPoolExecutor, "_adjust_thread_count", _no_thread)
        second = threads.submit(lambda: ran.append(threading.current_thread()))
    gate.set()
    first.result()
    second.result()
    threads.submit(lambda: None).result()
    assert ran == [threading.current_thread()]


def _no_thread(executor: ThreadPoolExecutor) -> None:
    raise RuntimeError("can't start new thread")
