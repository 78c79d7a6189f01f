"""A process flushes what other processes of its host wrote, and hears of errors from the moment it promised that."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage import LocalStorage, MemoryStorage, PrefixStorage, ReadOnlyStorage
from icechunk_engine.storage.base import FlushPromise
from icechunk_engine.storage.local import disk_sync, durability, flush_domain

from .support import failing, failing_for, run

pytestmark = pytest.mark.skipif(
    not disk_sync.SYNCFS_REPORTS_ERRORS, reason="before Linux 5.8, syncfs reports no errors"
)

WRITE = """
import sys
from icechunk_engine.storage import LocalStorage
root, promise, *keys = sys.argv[1:]
storage = LocalStorage(root)
for key in keys:
    storage.put(key, b"theirs")
print(storage.leaves_flush_to(promise))
"""


@pytest.fixture(autouse=True)
def known_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests also run on an overlay."""
    kinds = {*flush_domain._REPORT_ERRORS, disk_sync.kind_of_file_system(str(tmp_path))}
    monkeypatch.setattr(flush_domain, "_REPORT_ERRORS", frozenset(kinds))


def promised(storage: LocalStorage) -> FlushPromise:
    storage.create("repo", b"1")
    promise = storage.promise_flush()
    assert promise is not None
    return promise


def keep(storage: LocalStorage, promise: FlushPromise, *keys: str) -> None:
    storage.keep_promises({promise: lambda: keys})


def written_by_another_process(storage: LocalStorage, *keys: str) -> None:
    for key in keys:  # past the storage, so that this process does not know of them
        path = Path(storage.root, key)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"theirs")


@pytest.mark.parametrize("n_own", [0, 1, 100])
def test_one_flush_for_all_processes(storage: LocalStorage, synced: list[str], n_own: int) -> None:
    promise = promised(storage)
    for n in range(n_own):
        storage.put(f"chunks/{n}", b"mine")
    written_by_another_process(storage, "chunks/A", "chunks/B")
    synced.clear()
    keep(storage, promise, "chunks/A", "chunks/B")
    assert synced == ["*"]
    assert not storage.not_durable()
    keep(storage, promise, "chunks/A", "chunks/B")
    assert synced == ["*", "*"]  # nobody knows what was written since


def test_another_process_leaves_the_flush(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "root")
    promise = promised(storage)
    if flush_domain.flush_domain(storage.root) is None or disk_sync.kind_of_file_system(str(tmp_path)) != 0xEF53:
        pytest.skip("only ext4 is known to report errors to another process")
    assert run(WRITE, storage.root, promise, "chunks/A") == "True\n"
    assert not storage.leaves_flush_to(promise)  # nobody else does it for this process
    keep(storage, promise, "chunks/A")
    assert not storage.not_durable()


@pytest.mark.parametrize("n_own", [0, 100])
def test_an_error_loses_all_that_others_wrote(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, n_own: int
) -> None:
    promise = promised(storage)
    for n in range(n_own):
        storage.put(f"chunks/{n}", b"mine")
    written_by_another_process(storage, "chunks/A", "chunks/B")
    with monkeypatch.context() as patch:
        patch.setattr(disk_sync, "syncfs", failing(errno.EIO))
        keep(storage, promise, "chunks/A", "chunks/B")
    assert {"chunks/A", "chunks/B"} <= set(storage.not_durable())
    keep(storage, promise, "chunks/A", "chunks/B", "chunks/C")
    assert {"chunks/A", "chunks/B", "chunks/C"} <= set(storage.not_durable())


def test_an_error_breaks_no_later_promise(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each descriptor that was open hears of the error, also one that was opened to watch from then on."""
    promise, n_errors, heard = promised(storage), [0], dict[int, int]()
    watching = durability.UnsyncedFiles._open_root

    def opened(record: durability.UnsyncedFiles) -> int:
        fd = watching(record)
        heard[fd] = n_errors[0] - 1 if n_errors[0] == 1 else n_errors[0]  # not seen by anybody yet
        return fd

    def syncfs(fd: int) -> bool:
        if heard.get(fd, 0) != n_errors[0]:
            heard[fd] = n_errors[0]
            n_errors[0] += n_errors[0] == 1  # seen
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return True

    monkeypatch.setattr(durability.UnsyncedFiles, "_open_root", opened)
    monkeypatch.setattr(disk_sync, "syncfs", syncfs)
    heard[storage._unsynced._watch_fd] = 0
    n_errors[0] = 1
    keep(storage, promise, "chunks/A")
    assert set(storage.not_durable()) == {"chunks/A"}
    later = storage.promise_flush()
    assert later is not None
    keep(storage, later, "chunks/B")
    assert set(storage.not_durable()) == {"chunks/A"}


def test_an_error_that_another_flush_heard_counts(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    promise = promised(storage)
    written_by_another_process(storage, "chunks/A")
    storage.put("chunks/mine", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for("/mine", errno.EIO))
        with pytest.raises(StorageError):
            storage.flush()
    keep(storage, promise, "chunks/A")
    assert set(storage.not_durable()) == {"chunks/A", "chunks/mine"}


def test_the_descriptor_stays_open_over_other_flushes(storage: LocalStorage, synced: list[str]) -> None:
    promise = promised(storage)
    watch = storage._unsynced._watch_fd
    storage.put("chunks/mine", b"1")
    storage.flush()
    assert storage._unsynced._watch_fd == watch >= 0
    for n in range(100):
        storage.put(f"chunks/{n}", b"1")
    storage.flush()  # asks it, after another one was opened
    assert storage._unsynced._watch_fd >= 0
    synced.clear()
    keep(storage, promise, "chunks/A")
    assert synced == ["*"]


def interrupted(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(fd: int) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk_sync, "syncfs", interrupt)
        for n in range(100):
            storage.put(f"chunks/{n}", b"1")
        with pytest.raises(KeyboardInterrupt):
            storage.flush()


def unwatched(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [LocalStorage(f"{storage.root}-{n}") for n in range(len(durability._watched))]
    with monkeypatch.context() as patch:
        patch.setattr(durability, "_WATCHED_FOLDERS", 1)
        for other in others:
            other.create("repo", b"1")
            other.put("chunks/A", b"1")
    assert storage._unsynced._watch_fd == -1
    for other in others:
        other.flush()
    storage.put("chunks/mine", b"1")  # opens a descriptor, too late


def without_the_call(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_sync, "syncfs", lambda fd: False)


@pytest.mark.parametrize("gap", [interrupted, unwatched, without_the_call])
def test_where_nobody_listened_each_file_is_asked(
    storage: LocalStorage,
    synced: list[str],
    monkeypatch: pytest.MonkeyPatch,
    gap: Callable[[LocalStorage, pytest.MonkeyPatch], None],
) -> None:
    promise = promised(storage)
    written_by_another_process(storage, "chunks/A", "chunks/B")
    gap(storage, monkeypatch)
    synced.clear()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for("/B", errno.EIO))
        keep(storage, promise, "chunks/A", "chunks/B")
    assert set(storage.not_durable()) == {"chunks/B"}
    keep(storage, promise, "chunks/A", "chunks/B")
    assert {"A", "chunks", "root"} <= set(synced)
    assert "B" not in synced  # the system tells an error once


def test_the_promise_of_another_process_is_kept_file_by_file(
    storage: LocalStorage, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that promised may be gone."""
    domain = promised(storage).split("/")[0]
    promise = FlushPromise(f"{domain}/{os.getppid()}/00000000.0.0")
    assert storage.leaves_flush_to(promise)
    written_by_another_process(storage, "chunks/A", "chunks/B")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for("/B", errno.EIO))
        keep(storage, promise, "chunks/A", "chunks/B")
    assert set(storage.not_durable()) == {"chunks/B"}
    assert {"A", "chunks", "root"} <= set(synced)


def test_nothing_is_left_to_a_process_that_is_gone(storage: LocalStorage) -> None:
    domain = promised(storage).split("/")[0]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    assert gone.wait() == 0
    assert not storage.leaves_flush_to(FlushPromise(f"{domain}/{gone.pid}/00000000.0.0"))


def test_what_another_machine_wrote_is_lost(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    promise = promised(storage)
    monkeypatch.setattr(flush_domain, "_boot_id", lambda: "the machine was started again")
    assert not storage.leaves_flush_to(promise)
    keep(storage, promise, "chunks/A")
    assert "before a restart" in storage.not_durable()["chunks/A"]


@pytest.mark.parametrize("text", ["", "a/b", "x" * 16 + "/1/00000000.0.0", "0" * 16 + "/1/00000000.0.0.0", "/" * 9])
def test_a_damaged_promise_is_none(storage: LocalStorage, text: str) -> None:
    """It may come from a file that somebody else stored."""
    storage.create("repo", b"1")
    assert not storage.leaves_flush_to(FlushPromise(text))
    keep(storage, FlushPromise(text), "chunks/A")
    assert set(storage.not_durable()) == {"chunks/A"}


def test_files_on_another_file_system_are_flushed_by_their_writer(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = promised(storage).split("/")[0]
    promise, other_device = FlushPromise(f"{domain}/{os.getppid()}/00000000.0.0"), os.stat("/proc").st_dev
    stat = os.stat

    def elsewhere(path: str, **kwargs: bool) -> os.stat_result:
        found = stat(path, **kwargs)
        is_chunks = str(path).endswith("/chunks")
        return os.stat_result((*found[:2], other_device, *found[3:])) if is_chunks else found

    storage.put("chunks/A", b"1")
    assert storage.leaves_flush_to(promise)
    storage.put("chunks/B", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", elsewhere)
        assert not storage.leaves_flush_to(promise)
    assert not storage.leaves_flush_to(promise)


@pytest.mark.parametrize("reason", ["kind", "kernel", "boot id", "folder", "not durable"])
def test_no_promise_where_errors_are_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    storage = LocalStorage(tmp_path, durable=reason != "not durable")
    match reason:
        case "kind":
            monkeypatch.setattr(disk_sync, "kind_of_file_system", lambda path: 0x794C7630)
        case "kernel":
            monkeypatch.setattr(disk_sync, "SYNCFS_REPORTS_ERRORS", False)
        case "boot id":
            monkeypatch.setattr(flush_domain, "_boot_id", lambda: None)
        case "folder":
            storage = LocalStorage(tmp_path / "not made yet")
    assert storage.promise_flush() is None


def test_wrappers_pass_promises_on(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    promised(storage)
    wrapped = ReadOnlyStorage(PrefixStorage(storage, "part"))
    promise = wrapped.promise_flush()
    assert promise is not None
    assert not wrapped.leaves_flush_to(promise)
    with monkeypatch.context() as patch:
        patch.setattr(disk_sync, "syncfs", failing(errno.EIO))
        wrapped.keep_promises({promise: lambda: ["chunks/A"]})
    assert set(storage.not_durable()) == {"part/chunks/A"}
    assert set(wrapped.not_durable()) == {"chunks/A"}


def test_a_storage_that_never_promises_keeps_nothing() -> None:
    storage = MemoryStorage()
    assert storage.promise_flush() is None
    storage.keep_promises({})
    with pytest.raises(StorageError) as caught:
        storage.keep_promises({FlushPromise("a/b"): list})
    assert caught.value.kind is ErrorKind.NOT_DURABLE


def test_a_forked_child_leaves_the_flush_to_its_parent() -> None:
    code = """
import os, tempfile
from icechunk_engine.storage import LocalStorage
from icechunk_engine.storage.local import disk_sync, flush_domain
folder = tempfile.mkdtemp()
flush_domain._REPORT_ERRORS |= {disk_sync.kind_of_file_system(folder)}
storage = LocalStorage(folder)
promise = storage.promise_flush()
assert promise is not None
pid = os.fork()
if pid == 0:
    storage.put("chunks/A", b"1")
    assert storage.leaves_flush_to(promise)
    mine = storage.promise_flush()
    assert not storage.leaves_flush_to(mine)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert not storage.leaves_flush_to(promise)
storage.keep_promises({promise: lambda: ["chunks/A"]})
assert not storage.not_durable()
print("fine")
"""
    assert run(code) == "fine\n"
