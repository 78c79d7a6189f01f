"""An event loop goes on while another thread's operation waits for its requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.buffer import cpu, default_buffer_prototype

import icechunk_engine as ic
from icechunk_engine.errors import ErrorKind
from icechunk_engine.session import workspace_of
from icechunk_engine.storage.wrappers import ObservingStorage, StorageCall
from tests.bounded import run_bounded

PROTOTYPE = default_buffer_prototype()


class Gate(ObservingStorage):
    """Requests of one method wait until the gate is opened."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.is_remote = True
        self.closed_for = ""
        self.reached, self.opened = threading.Event(), threading.Event()

    def around[R](self, call: StorageCall, function: Callable[[], R]) -> R:
        if call.method == self.closed_for:
            self.reached.set()
            assert self.opened.wait(60)
        return function()


def _repository() -> tuple[Gate, ic.Repository]:
    gate = Gate(ic.in_memory_storage())
    repo = ic.Repository.create(gate, ic.RepositoryConfig(inline_chunk_threshold_bytes=0))
    with repo.transaction("main", message="start") as store:
        zarr.create_group(store).create_array("a", data=np.arange(20), chunks=(1,), compressors=None)
    return gate, repo


async def _use(store: Any) -> None:
    """What an application does with a session on a loop, while another thread is committing it."""
    assert [name async for name in store.list_dir("")] == ["a", "zarr.json"]
    assert len([key async for key in store.list_prefix("a")]) == 21  # with the document
    assert await store.exists("a/c/3")
    assert await store.get("a/c/3", PROTOTYPE) is not None
    assert await store.get("zarr.json", PROTOTYPE) is not None
    assert await store.getsize_prefix("a") > 0
    assert not await store.is_empty("")
    document = cpu.Buffer.from_bytes(b'{"zarr_format": 3, "node_type": "group"}')
    edits = (
        lambda: store.set("b/zarr.json", document),
        lambda: store.set("a/c/1", document),
        lambda: store.delete("a/c/1"),
        lambda: store.delete_dir("a"),
        store.clear,
    )
    for edit in edits:
        with pytest.raises(ic.SessionStateError, match="another thread is committing") as caught:
            await edit()
        assert caught.value.kind is ErrorKind.CONCURRENCY


def _commit_beside_a_loop() -> None:
    gate, repo = _repository()
    session = repo.writable_session("main")
    workspace_of(session).set_chunk("/a", (0,), (5).to_bytes(8, "little"))
    gate.closed_for = "put"  # of manifest and snapshot
    committing = threading.Thread(target=session.commit, args=("is_remote",), daemon=True)
    committing.start()
    assert gate.reached.wait(60)
    asyncio.run(_use(session.store))
    for end in (lambda: session.commit("twice"), lambda: session.rebase(ic.ConflictDetector()), session.fork):
        with pytest.raises(ic.SessionStateError, match="another thread is committing"):
            end()
    gate.opened.set()
    committing.join()
    assert session.read_only
    assert zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[0] == 5


def test_a_loop_goes_on_while_a_thread_commits() -> None:
    run_bounded(_commit_beside_a_loop, seconds=60, megabytes=8000)


def _edit_after_a_failed_commit() -> None:
    _, repo = _repository()
    session = repo.writable_session("main")
    workspace_of(session).set_chunk("/a", (1,), (5).to_bytes(8, "little"))
    with repo.transaction("main", message="first") as store:
        zarr.open_array(store, path="a")[1] = 6
    with pytest.raises(ic.ConflictError):
        session.commit("too late")
    workspace_of(session).set_chunk("/a", (2,), (7).to_bytes(8, "little"))
    session.rebase(ic.BasicConflictSolver())
    session.commit("rebased")
    found = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:3]
    assert found.tolist() == [0, 5, 7]


def test_a_session_takes_edits_again_after_a_failed_commit() -> None:
    run_bounded(_edit_after_a_failed_commit, seconds=60, megabytes=8000)


def _first_reads_on_one_loop() -> None:
    """All reads wait for one manifest, and hold no thread while they do: a request of another kind gets through."""
    gate, repo = _repository()
    session = repo.readonly_session("main")
    gate.closed_for = "get"
    from icechunk_engine import assets

    for caches in list(assets._CACHES.values()):
        caches.manifests.clear()

    async def read() -> None:
        reads = [asyncio.ensure_future(session.store.get(f"a/c/{1 + n % 19}", PROTOTYPE)) for n in range(600)]
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        from icechunk_engine._runtime.pools import request

        assert await asyncio.wait_for(request(lambda: 7), 30) == 7
        gate.opened.set()
        assert all(buffer is not None for buffer in await asyncio.gather(*reads))

    asyncio.run(read())


def test_reads_that_wait_for_one_manifest_leave_the_pool_to_others() -> None:
    run_bounded(_first_reads_on_one_loop, seconds=60, megabytes=8000)
