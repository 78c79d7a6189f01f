"""Whatever a crash leaves, every acknowledged operation is there, with all chunks, for us and for official."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr

import icechunk_engine as ours
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID
from icechunk_engine.storage import LocalStorage, Storage
from icechunk_engine.storage.local import disk_sync, durability
from icechunk_engine.storage.wrappers import ObservingStorage, StorageCall
from icechunk_engine.transaction import new_snapshot

from .power_loss import Crash, Recorder, crashes

N_STATES = int(os.environ.get("POWER_LOSS_STATES", "100"))
"""Of each history; the environment asks for more."""


@dataclass(frozen=True)
class View:
    """What a user sees of a repository: refs, their histories, and one setting."""

    branches: dict[str, list[str]]
    tags: dict[str, str]
    threshold: int | None


def look(repo: Any) -> View:
    branches = {name: [info.id for info in repo.ancestry(branch=name)] for name in sorted(repo.list_branches())}
    tags = {name: repo.lookup_tag(name) for name in sorted(repo.list_tags())}
    return View(branches, tags, repo.config.inline_chunk_threshold_bytes)


def values(repo: Any, snapshot_id: str) -> dict[str, list[int]]:
    if snapshot_id == str(INITIAL_SNAPSHOT_ID):
        return {}
    group = zarr.open_group(repo.readonly_session(snapshot_id=snapshot_id).store, mode="r")
    return {name: np.asarray(array[:]).tolist() for name, array in sorted(group.arrays())}


def open_ours(root: Path) -> Any:
    return ours.Repository.open(LocalStorage(root))


def open_official(root: Path) -> Any:
    return official.Repository.open(official.local_filesystem_storage(str(root)))


class Reads(ObservingStorage):
    """Knows which objects were read."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.keys: set[str] = set()

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        if call.method != "list":
            self.keys |= set(call.keys)
        return function()


def is_immutable(key: str) -> bool:
    return key.startswith(("snapshots/", "manifests/", "chunks/"))


class History:
    """Operations on a repository, their file operations, and what is to be seen after each."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.recorder = Recorder(root)
        self.views: list[View] = []
        self.values: dict[str, dict[str, list[int]]] = {}
        self.needs: dict[str, dict[str, bytes]] = {}

    def do[R](self, operation: Callable[[], R]) -> R:
        with self.recorder.recording():
            result = operation()
            self.recorder.acknowledge(len(self.views))
        self.views.append(look(open_ours(self.root)))
        for snapshot_id in snapshots(self.views[-1]) - self.values.keys():
            self._read(snapshot_id)
        return result

    def _read(self, snapshot_id: str) -> None:
        """Note values, and the files that they come from: of a copy, nothing of which is in memory."""
        copy = self.root.with_name(f"copy-{snapshot_id}")
        shutil.copytree(self.root, copy)
        storage = Reads(LocalStorage(copy))
        self.values[snapshot_id] = values(ours.Repository.open(storage), snapshot_id)
        self.needs[snapshot_id] = {key: storage.get(key) for key in sorted(storage.keys) if is_immutable(key)}
        shutil.rmtree(copy)

    def check(self, crash: Crash, root: Path, opened: Callable[[Path], Any], *, reads: bool) -> None:
        """Raises an AssertionError or an error of the library when something that was acknowledged is not there.

        Parameters
        ----------
        reads
            Read all values. Otherwise the files that they come from are compared.
        """
        try:
            repo = opened(root)
        except (ours.RepositoryNotFoundError, official.IcechunkError):
            if crash.acknowledged < 0:
                return  # nobody was told that there is a repository
            raise
        seen = look(repo)
        assert seen in self.views[max(crash.acknowledged, 0) : crash.acknowledged + 2]
        for snapshot_id in snapshots(seen):
            for key, data in self.needs[snapshot_id].items():
                assert crash.files.get(key) == data, f"snapshot {snapshot_id} needs {key}, which is missing or damaged"
            if reads:
                assert values(repo, snapshot_id) == self.values[snapshot_id]


def snapshots(view: View) -> set[str]:
    return {snapshot_id for line in view.branches.values() for snapshot_id in line} | set(view.tags.values())


def commit(repo: Any, value: int, *, branch: str = "main", n_chunks: int = 3, end: str = "commit") -> str:
    session = repo.writable_session(branch)
    group = zarr.open_group(session.store, mode="a")
    name = f"a{n_chunks}"
    if name not in group:
        group.create_array(name, shape=(n_chunks * 200,), chunks=(200,), dtype="i4", compressors=None)
    small = "small"
    if small not in group:
        group.create_array(small, shape=(4,), chunks=(2,), dtype="i4", compressors=None)
    group[name][:] = value
    group[small][:] = value
    snapshot_id: str = getattr(session, end)(f"value {value}")
    return snapshot_id


def of_spec_2(root: Path) -> History:
    history = History(root)
    config = ours.RepositoryConfig(num_updates_per_repo_info_file=3)
    repo = history.do(lambda: ours.Repository.create(LocalStorage(root), config))
    first = history.do(lambda: commit(repo, 1))
    history.do(lambda: commit(repo, 2))
    history.do(lambda: repo.create_tag("v1", first))
    history.do(lambda: commit(repo, 3, end="amend"))
    history.do(lambda: repo.create_branch("dev", first))
    history.do(lambda: commit(repo, 4, branch="dev"))
    detached = history.do(lambda: commit(repo, 5, end="flush"))
    history.do(lambda: repo.reset_branch("main", detached))
    history.do(lambda: repo.delete_branch("dev"))
    history.do(lambda: repo.delete_tag("v1"))
    changed = ours.RepositoryConfig(num_updates_per_repo_info_file=3, inline_chunk_threshold_bytes=100)
    history.do(lambda: ours.Repository.open(LocalStorage(root), changed).save_config())
    history.do(lambda: commit(repo, 6, n_chunks=40))
    return history


def of_spec_1(root: Path) -> History:
    history = History(root)
    repo = history.do(lambda: ours.Repository.create(LocalStorage(root), spec_version=1))
    first = history.do(lambda: commit(repo, 1))
    history.do(lambda: commit(repo, 2))
    history.do(lambda: repo.create_tag("v1", first))
    history.do(lambda: repo.create_tag("v2", first))
    history.do(lambda: repo.create_branch("dev", first))
    history.do(lambda: commit(repo, 3, branch="dev"))
    history.do(lambda: repo.create_branch("other", first))
    history.do(lambda: repo.delete_branch("dev"))
    history.do(lambda: repo.delete_tag("v2"))
    changed = ours.RepositoryConfig(inline_chunk_threshold_bytes=100)
    history.do(lambda: ours.Repository.open(LocalStorage(root), changed).save_config())
    upgraded = history.do(lambda: ours.upgrade_icechunk_repository(open_ours(root), dry_run=False))
    history.do(lambda: commit(upgraded, 4))
    return history


HISTORIES = {"spec 2": of_spec_2, "spec 1 and its upgrade": of_spec_1}


def failures(
    history: History, place: Path, n_states: int, *, official_each: int = 4, read_each: int = 16
) -> tuple[int, list[str]]:
    """How many states were opened, and what was wrong with them."""
    rng = random.Random(7)
    found = list(crashes(history.recorder, rng, 3 if n_states < 1000 else 12))
    found = found if len(found) <= n_states else rng.sample(found, n_states)
    wrong: list[str] = []
    for number, crash in enumerate(found):
        root = place / str(number)
        crash.build(root)
        for opened in (open_ours, open_official) if number % official_each == 0 else (open_ours,):
            try:
                history.check(crash, root, opened, reads=number % read_each == 0)
            except (AssertionError, ours.IcechunkError, official.IcechunkError, zarr.errors.BaseZarrError) as error:
                event = history.recorder.events[crash.n_events - 1]
                wrong.append(f"{opened.__name__} after event {crash.n_events} {event}: {str(error)[:500]}")
        shutil.rmtree(root)
    return len(found), wrong


@pytest.mark.parametrize("name", list(HISTORIES))
def test_what_was_acknowledged_is_there(tmp_path: Path, name: str) -> None:
    history = HISTORIES[name](tmp_path / "history")
    everything = {"official_each": 1, "read_each": 5} if N_STATES >= 500 else {}
    n_states, wrong = failures(history, tmp_path, N_STATES, **everything)
    print(f"{name}: {len(history.recorder.events)} file operations, {n_states} states")
    assert not wrong, "\n".join(wrong[:10])
    assert n_states >= min(N_STATES, 100)


def no_sync_of_directories(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(disk_sync, "sync_directory", lambda path: None)


def no_sync_of_chunks(patch: pytest.MonkeyPatch) -> None:
    add = durability.UnsyncedFiles.add
    patch.setattr(durability.UnsyncedFiles, "add", lambda self, path: "/chunks" in path or add(self, path))


def no_sync_of_what_is_swapped_in(patch: pytest.MonkeyPatch) -> None:
    add = durability.UnsyncedFiles.add
    patch.setattr(durability.UnsyncedFiles, "add", lambda self, path: "repo#" in path or add(self, path))


def swap_before_sync(patch: pytest.MonkeyPatch) -> None:
    """Everything is synced, but after the swap."""
    flush, replace = LocalStorage._sync_written, LocalStorage.replace
    patch.setattr(new_snapshot, "make_durable", lambda *args: None)
    patch.setattr(LocalStorage, "_sync_written", lambda self: None)

    def late(self: LocalStorage, *args: Any) -> Any:
        version = replace(self, *args)
        flush(self)
        return version

    patch.setattr(LocalStorage, "replace", late)


@pytest.mark.parametrize(
    "mistake", [no_sync_of_directories, no_sync_of_chunks, no_sync_of_what_is_swapped_in, swap_before_sync]
)
def test_mistakes_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The test of the test: each of these was a line of code less, or two in the other order."""

    def history(root: Path) -> History:
        history = History(root)
        repo = history.do(lambda: ours.Repository.create(LocalStorage(root)))
        mistake(monkeypatch)
        for value in range(2):
            history.do(partial(commit, repo, value))
        monkeypatch.undo()
        return history

    _, wrong = failures(history(tmp_path / "history"), tmp_path, 80, official_each=1000, read_each=1000)
    assert wrong
