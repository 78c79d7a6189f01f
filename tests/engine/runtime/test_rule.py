"""The rule of waiting (``icechunk_engine._runtime.locks``), at every request of every operation."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.buffer import cpu, default_buffer_prototype

import icechunk_engine as ic
from icechunk_engine import ops
from icechunk_engine.session import workspace_of
from icechunk_engine.storage import Storage
from icechunk_engine.testing.latency import LatencyStorage
from tests.engine.runtime.locking import LockCheckingStorage, checked_locks

PROTOTYPE = default_buffer_prototype()
GROUP = b'{"zarr_format": 3, "node_type": "group"}'


def value(data: bytes) -> cpu.Buffer:
    return cpu.Buffer.from_bytes(data)


@pytest.fixture(params=[True, False], ids=["is_remote", "in place"])
def checking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LockCheckingStorage]:
    with checked_locks(monkeypatch):
        yield LockCheckingStorage(ic.in_memory_storage(), is_remote=request.param)


def cold(storage: LockCheckingStorage) -> ic.Repository:
    """The repository, with nothing of it in memory."""
    return ic.Repository.open(LockCheckingStorage(_Elsewhere(storage.inner), is_remote=storage.is_remote))


class _Elsewhere(LatencyStorage):
    """The same objects under another identity, so that no cache knows them."""

    count = 0

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        type(self).count += 1
        self._identity = f"elsewhere-{self.count}"

    @property
    def identity(self) -> str:
        return self._identity


def fill(session: ic.Session, n: int = 40) -> None:
    root = zarr.create_group(session.store, overwrite=True)
    root.create_array("a", shape=(n, 200), chunks=(1, 200), dtype="u2", compressors=None, fill_value=0)[:] = 7
    root.create_array("small", data=np.arange(20), chunks=(2,))
    root.create_array("g/sparse", shape=(50, 50), chunks=(5, 5), dtype="f4")[:10] = 1


async def use_the_store(store: Any) -> None:
    """Every method of the store, in an order in which each finds something to do."""
    await store.get("a/c/3/0", PROTOTYPE)
    assert await store.get("zarr.json", PROTOTYPE) is not None
    await store.get_partial_values(PROTOTYPE, [("a/c/1/0", None), ("small/c/0", None)])
    async for _ in store.get_ranges("a/c/2/0", [None], prototype=PROTOTYPE):
        pass
    assert await store.exists("a/c/0/0")
    assert await store.getsize("a/c/0/0") == 400
    assert await store.getsize_prefix("") > 400
    assert not await store.is_empty("a")
    assert "a" in await names(store.list_dir(""))
    assert await names(store.list_dir("a/c"))
    assert await names(store.list())
    assert await names(store.list_prefix("g"))
    async for _ in store.array_chunk_iterator("/a"):
        pass
    assert len(await names(store.session.chunk_coordinates("/a"))) == 40


async def names(found: AsyncIterator[Any]) -> list[Any]:
    return [name async for name in found]


async def write_the_store(store: Any) -> None:
    await store.set("a/c/5/0", value(b"x" * 400))
    await store.set("small/c/1", value(b"y" * 16))
    await store.set_if_not_exists("b/zarr.json", value(GROUP))
    await store.set("b/zarr.json", value(GROUP[:-1] + b', "attributes": {}}'))
    await store.delete("a/c/6/0")
    await store.delete("b/zarr.json")
    await store.delete_dir("a/c/7")
    await store.delete_dir("g")


def test_reading_and_writing(checking: LockCheckingStorage) -> None:
    with ic.Repository.create(checking).transaction("main", message="start") as store:
        fill(store.session)
    for use in (use_the_store, write_the_store):
        session = cold(checking).writable_session("main")
        asyncio.run(use(session.store))
    asyncio.run(session.store.clear())
    assert {"get", "put"} <= checking.methods


def sessions(repo: ic.Repository) -> dict[str, Callable[[ic.Session], Any]]:
    """What sessions do, by name; each gets a fresh writable one whose base is not in memory."""

    def lose(session: ic.Session) -> None:
        with repo.transaction("main", message="came first") as store:
            zarr.open_array(store, path="a")[1] = 1
        zarr.open_array(session.store, path="a")[2] = 2

    def commit_and_rebase(session: ic.Session) -> None:
        lose(session)
        session.commit("second", rebase_with=ic.BasicConflictSolver())

    def lose_and_be_told(session: ic.Session) -> None:
        lose(session)
        with pytest.raises(ic.ConflictError):
            session.commit("second")
        session.rebase(ic.ConflictDetector())

    def forks(session: ic.Session) -> None:
        zarr.open_array(session.store, path="a")[0] = 9
        fork = session.fork()
        zarr.open_array(fork.store, path="a")[3] = 3
        session.merge(fork)
        session.commit("merged")

    def amend(session: ic.Session) -> None:
        zarr.open_array(session.store, path="small")[0] = 9
        session.amend("amended")

    def flush(session: ic.Session) -> None:
        zarr.open_array(session.store, path="a")[0] = 9
        session.flush("detached")

    def discard(session: ic.Session) -> None:
        zarr.open_array(session.store, path="a")[0] = 9
        session.status()
        session.discard_changes()

    def undo(session: ic.Session) -> None:
        with pytest.raises(KeyError), session.all_or_nothing():
            zarr.open_array(session.store, path="a")[0] = 9
            raise KeyError

    return {
        "commit and rebase": commit_and_rebase,
        "lose": lose_and_be_told,
        "forks": forks,
        "amend": amend,
        "flush": flush,
        "discard": discard,
        "undo": undo,
        "shift": lambda session: session.shift_array("/a", (1, 0)),
        "reindex": lambda session: session.reindex_array("/a", lambda index: list(index)),
        "refs": lambda session: (workspace_of(session).chunk_refs("/a"), session.all_virtual_chunk_locations()),
        "types": lambda session: session.chunk_type("/a", (0, 0)),
        "children": lambda session: (
            workspace_of(session).children("/"),
            workspace_of(session).child_names("/"),
            list(workspace_of(session).list_nodes()),
        ),
    }


def test_sessions(checking: LockCheckingStorage) -> None:
    repo = ic.Repository.create(checking)
    with repo.transaction("main", message="start") as store:
        fill(store.session)
    for work in sessions(repo).values():
        work(cold(checking).writable_session("main"))
    session = repo.rearrange_session("main")
    session.move("/g", "/h")
    session.commit("moved")


def test_refs_and_history(checking: LockCheckingStorage) -> None:
    repo = ic.Repository.create(checking, spec_version=1)
    with repo.transaction("main", message="start") as store:
        fill(store.session, 3)
    repo = ops.migrate.upgrade_icechunk_repository(repo, dry_run=False) or ic.Repository.open(checking)
    tip = repo.lookup_branch("main")
    repo.create_branch("dev", tip)
    repo.create_tag("v1", tip)
    repo.reset_branch("dev", list(repo.ancestry(branch="main"))[-1].id)
    repo.diff(from_tag="v1", to_branch="main")
    repo.delete_branch("dev")
    repo.delete_tag("v1")
    repo.set_metadata({"a": 1})
    repo.save_config()
    list(repo.ops_log())
    repo.inspect_snapshot(tip)
    with pytest.raises(ic.IcechunkError):
        repo.readonly_session(tag="v1")


def test_reading_many_at_once(checking: LockCheckingStorage) -> None:
    """Threads and coroutines that need the same files at the same time."""
    with ic.Repository.create(checking).transaction("main", message="start") as store:
        fill(store.session)
    session = cold(checking).readonly_session("main")

    async def read() -> None:
        found = await asyncio.gather(*(session.store.get(f"a/c/{n}/0", PROTOTYPE) for n in range(40)))
        assert all(buffer is not None for buffer in found)

    threads = [threading.Thread(target=asyncio.run, args=(read(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_nothing_else_makes_locks_or_hooks_of_forks() -> None:
    root = Path(ic.__file__).parent
    for path in root.rglob("*.py"):
        if path.parent.name in ("_runtime", "testing") or path.name == "durability.py":
            continue
        found = re.findall(
            r"threading\.R?Lock\(|register_at_fork|asyncio\.Lock\(|threading\.Condition\(", path.read_text()
        )
        assert not found, f"{path.name} makes its own: use icechunk_engine._runtime.locks"
