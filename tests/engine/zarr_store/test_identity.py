"""Equality, pickling, copying, tokens and zarr's opening modes."""

from __future__ import annotations

import asyncio
import copy
import pickle

import numpy as np
import pytest
import zarr
from dask.base import tokenize

from icechunk_engine.errors import ErrorKind, IcechunkError, ReadOnlyError
from icechunk_engine.repository import Repository
from icechunk_engine.session import ForkSession, Session, workspace_of
from icechunk_engine.storage import Storage
from icechunk_engine.store import IcechunkStore
from tests.engine.zarr_store.support import GROUP, array_document, put


def test_stores_of_one_session_are_equal(repo: Repository, session: Session, store: IcechunkStore) -> None:
    assert store == session.store
    assert hash(store) == hash(session.store)
    assert store != store.with_read_only(True)
    assert store != repo.writable_session("main").store
    assert store != "store"
    assert store.session is session


def test_stores_of_one_snapshot_are_equal(repo: Repository, session: Session) -> None:
    session.commit("x")
    one, two = repo.readonly_session("main").store, repo.readonly_session("main").store
    assert one == two
    assert hash(one) == hash(two)
    again = repo.writable_session("main")
    put(again, "g/zarr.json", GROUP)
    again.commit("y")
    assert one != repo.readonly_session("main").store


def test_a_store_has_no_path(store: IcechunkStore) -> None:
    """xarray takes an attribute ``path`` for the source of a dataset."""
    assert not hasattr(store, "path")


def test_writable_sessions_do_not_pickle_but_their_stores_do(store: IcechunkStore) -> None:
    with pytest.raises(ValueError, match="fork") as caught:
        pickle.dumps(store.session)
    assert isinstance(caught.value, IcechunkError)
    assert caught.value.kind is ErrorKind.PICKLE
    for each in (store, store.with_read_only(True)):
        dumped = pickle.dumps(each)
        assert pickle.dumps(each) == dumped
        copy = pickle.loads(dumped)
        assert copy.read_only == each.read_only
        assert isinstance(copy.session, ForkSession)
        assert pickle.dumps(copy) == dumped


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_read_only_stores_pickle_after_use(
    storage: Storage, repo: Repository, session: Session, protocol: int
) -> None:
    put(session, "a/c/0/0", b"x" * 1000)
    session.commit("x")
    store = repo.readonly_session("main").store
    assert store.get_sync("a/c/0/0") is not None
    dumped = pickle.dumps(store, protocol)
    restored = pickle.loads(dumped)
    assert restored == store
    assert restored.read_only
    assert tokenize(restored) == tokenize(store)
    assert restored.get_sync("a/c/0/0") == store.get_sync("a/c/0/0")
    # The same state every time: what is pickled twice has one token in dask.
    assert pickle.dumps(pickle.loads(dumped), protocol) == dumped


def test_forks_pickle_with_their_edits(session: Session) -> None:
    fork = session.fork()
    put(fork, "a/c/0/0", b"edit")
    restored = pickle.loads(pickle.dumps(fork.store))
    assert restored.get_sync("a/c/0/0").to_bytes() == b"edit"
    put(restored.session, "a/c/0/1", b"more")
    session.merge(restored.session)
    assert session.store.get_sync("a/c/0/1").to_bytes() == b"more"
    read_only = pickle.loads(pickle.dumps(fork.store.with_read_only(True)))
    assert read_only.read_only
    with pytest.raises(ReadOnlyError):
        read_only.sync_clear()


def test_copies_share_the_session(store: IcechunkStore) -> None:
    for each in (copy.copy(store), copy.deepcopy(store), copy.deepcopy([store])[0]):
        put(each.session, "a/c/0/0", b"1")
        assert each.session is store.session


def test_tokens_follow_the_content(repo: Repository, session: Session) -> None:
    session.commit("x")
    reader = repo.readonly_session("main").store
    writer = repo.writable_session("main")
    tokens = [tokenize(reader), tokenize(repo.readonly_session("main").store.with_read_only(True))]
    assert tokens[0] == tokens[1]
    seen = {tokens[0], tokenize(writer.store)}
    edits = [
        lambda: put(writer, "a/c/0/0", b"1"),
        lambda: put(writer, "a/c/0/0", b"1"),
        lambda: put(writer, "g/zarr.json", GROUP),
        lambda: workspace_of(writer).delete_chunk("/a", (0, 0)),
        writer.discard_changes,
    ]
    for n, edit in enumerate(edits):
        edit()
        seen.add(tokenize(writer.store))
        assert len(seen) == 3 + n
    assert tokenize(repo.writable_session("main").store) not in seen


def test_a_store_needs_a_session() -> None:
    with pytest.raises(TypeError, match="Session"):
        IcechunkStore("somewhere")  # type: ignore[arg-type]


def test_mode_r_of_zarr_really_reads_only(session: Session) -> None:
    created = zarr.create_array(session.store, name="x", shape=(4,), chunks=(2,), dtype="i4")
    created[:] = 1
    opened = zarr.open_array(session.store, path="x", mode="r")
    with pytest.raises(ReadOnlyError, match="read-only"):
        opened[:] = 9
    assert (zarr.open_array(session.store, path="x", mode="a")[:] == 1).all()


def test_mode_w_of_zarr_replaces(session: Session) -> None:
    put(session, "a/c/0/0", b"1")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(2,), dtype="i4", overwrite=True)[:] = 5
    assert zarr.open_array(session.store, path="a")[:].tolist() == [5] * 4
    zarr.open_group(session.store, mode="w")
    assert workspace_of(session.store.session).list_nodes("/") is not None
    assert [node.path for node in workspace_of(session).list_nodes()] == ["/"]


def test_members_come_in_one_order(session: Session) -> None:
    names = ["b", "a-1", "Z", "a", "a/x"]
    for name in names:
        workspace_of(session).set_metadata(f"/{name}", GROUP) if name != "a" else workspace_of(session).delete_node(
            "/a"
        )
        if name == "a":
            workspace_of(session).set_metadata("/a", GROUP)
    group = zarr.open_group(session.store, mode="r")
    assert [name for name, _ in group.members(max_depth=None)] == [
        name for name, _ in zarr.open_group(session.store, mode="r").members(max_depth=None)
    ]
    assert list(group) == ["Z", "a", "a-1", "b", "s"]


def test_sizes_come_from_the_manifest(session: Session) -> None:
    array = zarr.create_array(session.store, name="x", shape=(100,), chunks=(10,), dtype="i4", compressors=None)
    array[:50] = 1
    workspace_of(session).set_metadata("/xy", array_document((3,)))
    document = len(workspace_of(session).read_metadata("/x") or b"")
    assert array.nbytes_stored() == 5 * 40 + document
    assert array.nchunks_initialized == 5
    assert zarr.open_array(session.store, path="x").info_complete()._count_bytes_stored == 5 * 40 + document


def test_arrays_of_every_kind_of_codec_and_grid_survive_a_commit(repo: Repository) -> None:
    session = repo.writable_session("main")
    data = np.arange(60 * 40, dtype="f8").reshape(60, 40)
    zarr.create_array(session.store, name="sharded", data=data, chunks=(5, 5), shards=(20, 20))
    zarr.create_array(session.store, name="text", shape=(3,), dtype=str)[:] = np.array(["a", "", "ä" * 300])
    zarr.create_array(session.store, name="scalar", shape=(), dtype="i2")[...] = 7
    session.commit("arrays")
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    np.testing.assert_array_equal(group["sharded"][:], data)
    np.testing.assert_array_equal(group["sharded"][13:27, 3:8], data[13:27, 3:8])
    assert group["text"][:].tolist() == ["a", "", "ä" * 300]
    assert group["scalar"][...] == 7


def test_the_store_of_a_session_is_open(repo: Repository) -> None:
    """Programs ask zarr's stores so, and official's stores of sessions are."""
    session = repo.writable_session("main")
    fork = session.fork()
    for store in (
        session.store,
        fork.store,
        repo.readonly_session("main").store,
        pickle.loads(pickle.dumps(fork.store)),
    ):
        assert store._is_open
        with pytest.raises(ValueError, match="already open"):
            asyncio.run(store._open())
    store = session.store
    store.close()
    assert not store._is_open
    assert session.store._is_open
    closed = fork.store
    closed.close()
    assert not pickle.loads(pickle.dumps(closed))._is_open
    assert not session.store.with_read_only(True)._is_open
    with session.store as store:
        assert store._is_open
    assert not store._is_open
