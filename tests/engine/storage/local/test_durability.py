"""The local storage and the disk: what is synced and when, and what counts as lost."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from icechunk_engine.errors import (
    ErrorKind,
    StorageError,
)
from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.local import disk_sync, durability

from .support import failing, failing_for, run


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
