"""What `set`, `delete` and their relatives do, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu

from icechunk_engine.errors import (
    AlreadyExistsError,
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    NodeNotFoundError,
    ReadOnlyError,
)
from icechunk_engine.repository import Repository
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.store import IcechunkStore
from tests.engine.zarr_store.support import GROUP, array_document, put, read


def buffer(data: bytes) -> Buffer:
    return cpu.Buffer.from_bytes(data)


@pytest.mark.parametrize(
    ("key", "value", "error", "kind"),
    [
        ("b/c/0", b"1", NodeNotFoundError, ErrorKind.NODE_NOT_FOUND),
        ("c/0", b"1", InvalidInputError, ErrorKind.NOT_AN_ARRAY),
        ("a/c/4/0", b"1", InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a/c/0", b"1", InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a/c/0/0/0", b"1", InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a/c/0/0", b"", InvalidInputError, ErrorKind.ZERO_LENGTH_CHUNK),
        ("a/zarr.json", GROUP, AlreadyExistsError, ErrorKind.NODE_ALREADY_EXISTS),
        ("zarr.json", array_document(()), AlreadyExistsError, ErrorKind.NODE_ALREADY_EXISTS),
        ("g/zarr.json", b"", InvalidInputError, ErrorKind.BAD_METADATA),
        ("g/zarr.json", b"{}", InvalidInputError, ErrorKind.BAD_METADATA),
    ],
)
async def test_refused_writes_change_nothing(
    store: IcechunkStore, key: str, value: bytes, error: type[IcechunkError], kind: ErrorKind
) -> None:
    before = [key async for key in store.list()]
    with pytest.raises(error) as caught:
        await store.set(key, buffer(value))
    assert caught.value.kind is kind
    with pytest.raises(error):
        store.set_sync(key, buffer(value))
    assert [key async for key in store.list()] == before


@pytest.mark.parametrize("value", [b"1", "1", None, np.ones(1)])
async def test_values_must_be_buffers(store: IcechunkStore, value: object) -> None:
    for call in (store.set, store.set_if_not_exists):
        with pytest.raises(TypeError, match="must be a Buffer instance"):
            await call("a/c/0/0", value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a Buffer instance"):
        store.set_sync("a/c/0/0", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [4, 1000])
async def test_the_writer_may_reuse_its_memory(store: IcechunkStore, size: int) -> None:
    memory = np.full(size, 7, np.uint8)
    await store.set("a/c/0/0", cpu.Buffer.from_array_like(memory))
    store.set_sync("a/c/0/1", cpu.Buffer.from_array_like(memory))
    memory[:] = 9
    assert read(store.session, "a/c/0/0") == b"\x07" * size
    assert read(store.session, "a/c/0/1") == b"\x07" * size


@pytest.mark.parametrize("size", [4, 1000])
async def test_values_that_are_strided_views(store: IcechunkStore, size: int) -> None:
    memory = np.arange(2 * size).astype(np.uint8)
    await store.set("a/c/0/0", cpu.Buffer(memory[::2]))
    assert read(store.session, "a/c/0/0") == memory[::2].tobytes()


async def check_refuses_writes(store: IcechunkStore, kind: ErrorKind) -> None:
    before = [key async for key in store.list()]
    value = buffer(GROUP)
    for call in (
        lambda: store.set("g/zarr.json", value),
        lambda: store.set("a/c/0/0", value),
        lambda: store.set_if_not_exists("zarr.json", value),
        lambda: store.delete("a/c/0/0"),
        lambda: store.delete("not/there/zarr.json"),
        lambda: store.delete_dir("a"),
        lambda: store.delete_dir("not/there"),
        store.clear,
        lambda: store.set_virtual_ref_async("a/c/0/0", "file:///x", offset=0, length=1),
    ):
        with pytest.raises(ReadOnlyError) as caught:
            await call()
        assert caught.value.kind is kind
    for sync_call in (
        store.sync_clear,
        lambda: store.set_sync("g/zarr.json", value),
        lambda: store.delete_sync("a/c/0/0"),
        lambda: store.set_virtual_ref("a/c/0/0", "file:///x", offset=0, length=1),
        lambda: store.set_virtual_refs("a", []),
        lambda: store.set_virtual_refs_arr("a", (0, 0), [], np.empty(0, "u8"), np.empty(0, "u8")),
    ):
        with pytest.raises(ReadOnlyError):
            sync_call()
    assert [key async for key in store.list()] == before


async def test_a_read_only_copy_refuses_writes(store: IcechunkStore) -> None:
    put(store.session, "a/c/0/0", b"1")
    copy = store.with_read_only(True)
    assert copy.read_only
    assert not store.read_only
    await check_refuses_writes(copy, ErrorKind.READ_ONLY_STORE)
    await copy.with_read_only(False).set("a/c/0/0", buffer(b"2"))
    assert copy.get_sync("a/c/0/0") == buffer(b"2")  # both look at one session


async def test_a_committed_session_refuses_writes(session: Session, store: IcechunkStore) -> None:
    put(session, "a/c/0/0", b"1")
    session.commit("done")
    assert store.read_only
    await check_refuses_writes(store, ErrorKind.READ_ONLY_STORE)


async def test_a_read_only_session_refuses_writes(repo: Repository, session: Session) -> None:
    put(session, "a/c/0/0", b"1")
    session.commit("done")
    store = repo.readonly_session("main").store
    await check_refuses_writes(store, ErrorKind.READ_ONLY_STORE)
    with pytest.raises(ReadOnlyError, match="writable_session"):
        store.with_read_only(False)


async def test_closing_a_store_leaves_its_session(store: IcechunkStore) -> None:
    copy = store.with_read_only(True)
    with copy:
        pass
    copy.close()
    store.close()
    await store.set("a/c/0/0", buffer(b"1"))
    assert store.get_sync("a/c/0/0") == buffer(b"1")


async def test_deleting_a_group_document_takes_its_members(store: IcechunkStore) -> None:
    put(store.session, "g/zarr.json", GROUP)
    put(store.session, "g/x/c/0", b"1")
    put(store.session, "gg/zarr.json", GROUP)
    await store.delete("g/zarr.json")
    keys = [key async for key in store.list()]
    assert "gg/zarr.json" in keys
    assert not [key for key in keys if key.startswith("g/")]


@pytest.mark.parametrize(
    ("prefix", "left"),
    [
        ("a/c", []),
        ("a/c/", []),
        ("a/c/1", ["0/0", "0/1", "3/5"]),
        ("/a/c/1/", ["0/0", "0/1", "3/5"]),
        ("a/c/1/0", ["0/0", "0/1", "1/0", "1/5", "3/5"]),  # a chunk is not a directory
        ("a/c/2", ["0/0", "0/1", "1/0", "1/5", "3/5"]),
        ("a/c/x", ["0/0", "0/1", "1/0", "1/5", "3/5"]),
        ("b", ["0/0", "0/1", "1/0", "1/5", "3/5"]),
    ],
)
@pytest.mark.parametrize("committed", [False, True])
async def test_delete_dir_of_chunks(
    repo: Repository, session: Session, committed: bool, prefix: str, left: list[str]
) -> None:
    for index in ("0/0", "0/1", "1/0", "1/5", "3/5"):
        put(session, f"a/c/{index}", b"1")
    if committed:
        session.commit("chunks")
        session = repo.writable_session("main")
    await session.store.delete_dir(prefix)
    assert [key async for key in session.store.list_prefix("a")] == ["a/zarr.json", *(f"a/c/{i}" for i in left)]


@pytest.mark.parametrize("prefix", ["", "/"])
async def test_delete_dir_of_everything(store: IcechunkStore, prefix: str) -> None:
    put(store.session, "a/c/0/0", b"1")
    await store.delete_dir(prefix)
    assert await store.is_empty("")
    assert [key async for key in store.list()] == []


async def test_a_group_without_document_is_deleted_with_its_members(repo: Repository) -> None:
    session = repo.writable_session("main")
    put(session, "g/h/zarr.json", GROUP)
    session.commit("a member of nothing")
    session = repo.writable_session("main")
    put(session, "g/new/zarr.json", GROUP)
    await session.store.delete_dir("g")
    assert await session.store.is_empty("")


async def test_chunks_outlive_a_shrinking_and_growing_array_as_in_other_stores(session: Session) -> None:
    """zarr deletes chunks outside the new shape itself before it writes the document."""
    put(session, "a/c/3/5", b"1")
    workspace_of(session).set_metadata("/a", array_document((2, 6)))
    assert session.store.get_sync("a/c/3/5") is None
    assert [key async for key in session.store.list_prefix("a/c")] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("g\ud800/zarr.json", GROUP),
        ("\udfff/a/zarr.json", GROUP),
        ("b/zarr.json", array_document((1,), dimension_names=["\ud800"])),
        ("b/zarr.json", array_document((1, 1), dimension_names=["x", "a\udc00b"])),
    ],
)
async def test_names_that_are_no_text_are_refused_at_once(repo: Repository, key: str, value: bytes) -> None:
    """The commit would fail for them, and with it for all other edits of the session."""
    session = repo.writable_session("main")
    await session.store.set("zarr.json", buffer(GROUP))
    for call in (
        lambda: session.store.set(key, buffer(value)),
        lambda: session.store.set_if_not_exists(key, buffer(value)),
    ):
        with pytest.raises(InvalidInputError):
            await call()
    session.commit("what can be stored")
