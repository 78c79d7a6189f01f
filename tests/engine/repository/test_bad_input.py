"""Bad input gets a typed error that says what to do, and leaves everything as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarr.buffer

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository, credentials
from icechunk_engine.format import header
from icechunk_engine.session import workspace_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A local repository with one commit: groups, inline, native and virtual chunks."""
    place = tmp_path / "repo"
    source = tmp_path / "source.bin"
    source.write_bytes(np.arange(100, dtype="<i8").tobytes())
    prefix = f"file://{tmp_path}/"
    config = ic.RepositoryConfig()
    config.set_virtual_chunk_container(
        ic.VirtualChunkContainer(prefix, ic.ObjectStoreConfig.LocalFileSystem(str(tmp_path)))
    )
    repo = Repository.create(ic.local_filesystem_storage(place), config)
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    root.create_array("inline", shape=(4,), chunks=(2,), dtype="int64")[:] = 1
    root.create_array("native", shape=(1000,), chunks=(500,), dtype="int64", compressors=None)[:] = 2
    root.create_array("virtual", shape=(100,), chunks=(50,), dtype="int64", compressors=None)
    for i in range(2):
        session.store.set_virtual_ref(f"virtual/c/{i}", f"file://{source}", offset=400 * i, length=400)
    session.commit("everything")
    return place


def opened(path: Path) -> Repository:
    prefix = f"file://{path.parent}/"
    return Repository.open(
        ic.local_filesystem_storage(path),
        authorize_virtual_chunk_access={prefix: credentials.LocalFileSystemAccess},
    )


def read(path: Path, name: str) -> object:
    return zarr.open_array(opened(path).readonly_session("main").store, path=name, mode="r")[:]


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_no_repository_there(tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ic.RepositoryNotFoundError, match=r"Repository\.create") as caught:
            Repository.open(ic.local_filesystem_storage(place))
        assert str(place) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(ic.IcechunkError):
        Repository.open(ic.local_filesystem_storage(tmp_path / "file"))
    with pytest.raises(ic.IcechunkError):
        Repository.create(ic.local_filesystem_storage(tmp_path / "file"))


def one(path: Path, folder: str) -> Path:
    """A file of the newest commit in a folder, or ``repo``."""
    if folder == "repo":
        return path / "repo"
    newest = {
        "snapshots": lambda: opened(path).lookup_branch("main"),
        "transactions": lambda: opened(path).lookup_branch("main"),
        "manifests": lambda: (
            workspace_of(opened(path).readonly_session("main")).get_node("/native").manifests[0].manifest_id
        ),
    }[folder]()
    return path / folder / str(newest)


def touch_all(path: Path) -> None:
    """Everything that reads files."""
    repo = opened(path)
    tip = repo.lookup_branch("main")
    list(repo.ops_log())
    session = repo.readonly_session("main")
    for name in ("inline", "native", "virtual"):
        zarr.open_array(session.store, path=name, mode="r")[:]
    repo.diff(from_snapshot_id="1CECHNKREP0F1RSTCMT0", to_snapshot_id=tip)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header only": lambda data: data[:39],
    "truncated": lambda data: data[:-7],
    "not ours": lambda data: b"PK\3\4" + data[4:],
    "text": lambda data: b"<html>404</html>" * 10,
    "garbled body": lambda data: data[:60] + bytes(byte ^ 0x55 for byte in data[60:]),
    "wrong type": lambda data: data[:37] + b"\x05" + data[38:],
    "unknown spec version": lambda data: data[:36] + b"\x09" + data[37:],
    "unknown compression": lambda data: data[:38] + b"\x07" + data[39:],
    "garbage in a good frame": lambda data: header.pack(header.FileType(data[37]), 2, b"\xff" * 500),
    "nothing in a good frame": lambda data: header.pack(header.FileType(data[37]), 2, b""),
}


@pytest.mark.parametrize("folder", ["repo", "snapshots", "transactions", "manifests"])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damaged_files(path: Path, folder: str, damage: str) -> None:
    touch_all(path)
    victim = one(path, folder)
    data = victim.read_bytes()
    os.remove(victim)
    victim.write_bytes(DAMAGE[damage](data))
    before = files(path)
    with pytest.raises(ic.FormatError) as caught:
        _in_fresh_process_cache(path)
    assert str(caught.value)
    expected = {"unknown spec version": ErrorKind.UNSUPPORTED_SPEC_VERSION}
    if damage in expected:
        assert caught.value.kind == expected[damage]
    assert files(path) == before


def _in_fresh_process_cache(path: Path) -> None:
    """Decoded files are shared in a process; another spelling of the place gets a cache of its own."""
    link = path.parent / "link"
    os.rename(path, link)
    try:
        touch_all(link)
    finally:
        os.rename(link, path)


@pytest.mark.parametrize("folder", ["snapshots", "manifests"])
def test_missing_files(path: Path, folder: str) -> None:
    os.remove(one(path, folder))
    with pytest.raises(ic.IcechunkError, match=folder):
        _in_fresh_process_cache(path)


def test_missing_chunk_object(path: Path) -> None:
    for chunk in (path / "chunks").iterdir():
        os.remove(chunk)
    with pytest.raises(ic.StorageError, match="chunks/") as caught:
        read(path, "native")
    assert caught.value.kind == ErrorKind.OBJECT_NOT_FOUND


def test_short_chunk_object(path: Path) -> None:
    for chunk in (path / "chunks").iterdir():
        data = chunk.read_bytes()
        os.remove(chunk)
        chunk.write_bytes(data[:100])
    with pytest.raises(ic.StorageError) as caught:
        read(path, "native")
    assert caught.value.kind == ErrorKind.INVALID_OBJECT_SIZE


def test_unknown_refs(path: Path) -> None:
    repo = opened(path)
    with pytest.raises(ic.RefNotFoundError, match="'main'"):
        repo.readonly_session("nope")
    with pytest.raises(ic.RefNotFoundError):
        repo.writable_session("nope")
    with pytest.raises(ic.RefNotFoundError):
        repo.readonly_session(tag="nope")
    with pytest.raises(ic.SnapshotNotFoundError):
        repo.readonly_session(snapshot_id="0" * 20)
    with pytest.raises(ic.InvalidInputError) as caught:
        repo.readonly_session(snapshot_id="short")
    assert caught.value.kind == ErrorKind.INVALID_SNAPSHOT_ID


@pytest.mark.parametrize("key", ["inline/c/0/0", "inline/c", "native/c/5", "native/c/0/1"])
async def test_wrong_rank_and_out_of_grid(path: Path, key: str) -> None:
    session = opened(path).writable_session("main")
    value = zarr.buffer.default_buffer_prototype().buffer.from_bytes(b"x")
    with pytest.raises(ic.InvalidInputError) as caught:
        await session.store.set(key, value)
    assert caught.value.kind == ErrorKind.INVALID_CHUNK_INDEX
    assert not session.has_uncommitted_changes


def test_location_outside_every_container(path: Path) -> None:
    session = opened(path).writable_session("main")
    with pytest.raises(ic.InvalidInputError, match="set_virtual_chunk_container") as caught:
        session.store.set_virtual_ref("virtual/c/0", "file:///etc/passwd", offset=0, length=4)
    assert caught.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
    assert session.store.set_virtual_refs_arr(
        "virtual", (2,), ["file:///etc/passwd"] * 2, np.zeros(2, "u8"), np.ones(2, "u8")
    ) == [(0,), (1,)]
    assert not session.has_uncommitted_changes


def test_unauthorised_container(path: Path) -> None:
    repo = Repository.open(ic.local_filesystem_storage(path))
    with pytest.raises(ic.IcechunkError, match="authorize_virtual_chunk_access") as caught:
        zarr.open_array(repo.readonly_session("main").store, path="virtual", mode="r")[:]
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER


def test_a_referenced_file_that_changed(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    os.utime(source, (1_000_000, 1_000_000))
    session = opened(path).writable_session("main")
    from datetime import UTC, datetime

    session.store.set_virtual_ref(
        "virtual/c/0",
        f"file://{source}",
        offset=0,
        length=400,
        checksum=datetime.fromtimestamp(1_000_000, UTC),
    )
    session.commit("with a checksum")
    read(path, "virtual")
    os.utime(source, (1_000_001, 1_000_001))
    with pytest.raises(ic.StorageError, match=r"source\.bin") as caught:
        read(path, "virtual")
    assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
    source.write_bytes(source.read_bytes()[:500])
    os.utime(source, (1_000_000, 1_000_000))
    with pytest.raises(ic.StorageError) as caught:
        read(path, "virtual")
    assert caught.value.kind == ErrorKind.INVALID_OBJECT_SIZE
    source.unlink()
    with pytest.raises(ic.StorageError, match=r"source\.bin") as caught:
        read(path, "virtual")
    assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_FETCH


def test_writing_to_a_read_only_session(path: Path) -> None:
    session = opened(path).readonly_session("main")
    for attempt in (
        lambda: workspace_of(session).set_chunk("/inline", (0,), b"x"),
        lambda: workspace_of(session).set_metadata("/", b"{}"),
        lambda: workspace_of(session).delete_node("/inline"),
        lambda: workspace_of(session).delete_chunk("/inline", (0,)),
        lambda: session.commit("no"),
        lambda: session.discard_changes(),
        lambda: session.shift_array("/inline", (1,)),
    ):
        with pytest.raises(ic.IcechunkError) as caught:
            attempt()
        assert isinstance(caught.value, ic.ReadOnlyError | ic.InvalidInputError | ic.SessionStateError)
    with pytest.raises(ic.ReadOnlyError):
        workspace_of(session).delete_node("/inline")
