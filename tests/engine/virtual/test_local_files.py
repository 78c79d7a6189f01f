"""Virtual chunks in local files: things that are not files, links, and special names on Windows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRef
from icechunk_engine.config import VirtualChunkContainer, local_filesystem_store
from icechunk_engine.credentials import LocalFileSystemAccess, access_at
from icechunk_engine.errors import ErrorKind, IcechunkError, InvalidInputError, StorageError
from icechunk_engine.virtual import local_files
from icechunk_engine.virtual.containers import location_to_path
from icechunk_engine.virtual.resolver import VirtualResolver


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The authorised folder, next to one that is not authorised."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "data" / "sub" / "file").write_bytes(b"inside")
    (tmp_path / "other" / "file").write_bytes(b"secret")
    return tmp_path / "data"


def resolver(folder: Path, *places: str) -> VirtualResolver:
    prefix = folder.as_uri() + "/"
    access = access_at(LocalFileSystemAccess, *places) if places else LocalFileSystemAccess
    return VirtualResolver({prefix: VirtualChunkContainer(prefix, local_filesystem_store(folder))}, {prefix: access})


def read(reader: VirtualResolver, location: str) -> bytes:
    return reader.fetch(ChunkRef(kind=VIRTUAL, location=location, length=6), 0, 6)


def refusal(reader: VirtualResolver, location: str) -> IcechunkError:
    with pytest.raises(IcechunkError) as caught:
        read(reader, location)
    return caught.value


READ = """
import sys
from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRef
from icechunk_engine.config import VirtualChunkContainer, local_filesystem_store
from icechunk_engine.credentials import LocalFileSystemAccess
from icechunk_engine.errors import IcechunkError
from icechunk_engine.virtual.resolver import VirtualResolver

prefix = sys.argv[1]
container = VirtualChunkContainer(prefix, local_filesystem_store("/"))
reader = VirtualResolver({prefix: container}, {prefix: LocalFileSystemAccess})
for name in sys.argv[2:]:
    try:
        reader.fetch(ChunkRef(kind=VIRTUAL, location=prefix + name, length=1), 0, 1)
    except IcechunkError as error:
        print(error.kind, "not a file" in str(error))
"""


def test_only_files_are_read(tmp_path: Path) -> None:
    """Runs in a child with a time limit, because nobody ever writes to the pipe."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(tmp_path)  # paths of sockets are short
        listening.bind("socket")
        os.chdir(before)
        names = ["pipe", "folder", "socket"]
        command = [sys.executable, "-c", READ, tmp_path.as_uri() + "/", *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n") == [f"{ErrorKind.VIRTUAL_CHUNK_FETCH} True"] * len(names) + [""]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 7), (0, 10**18), (2, 2**63 - 1), (10**18, 10**18 + 5), (6, 2**64 - 1)]
)
def test_ranges_beyond_the_end(folder: Path, start: int, stop: int) -> None:
    """No memory is allocated for bytes after the end of the file."""
    ref = ChunkRef(kind=VIRTUAL, location=(folder / "sub" / "file").as_uri(), offset=start, length=stop - start)
    with pytest.raises(StorageError, match="ends before byte") as caught:
        resolver(folder).fetch(ref, start, stop)
    assert caught.value.kind is (ErrorKind.INVALID_OBJECT_SIZE if start < 6 else ErrorKind.VIRTUAL_CHUNK_FETCH)


def test_devices_are_refused() -> None:
    prefix = "file:///dev/"
    reader = VirtualResolver(
        {prefix: VirtualChunkContainer(prefix, local_filesystem_store("/dev"))}, {prefix: LocalFileSystemAccess}
    )
    for name in ("zero", "tty", "null"):
        assert refusal(reader, prefix + name).kind is ErrorKind.VIRTUAL_CHUNK_FETCH


@pytest.mark.parametrize("system", ["linux", "other"])
def test_links_do_not_lead_out_of_the_folder(folder: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems cannot tell the path of an open file. Then it is resolved and compared."""
    monkeypatch.setattr(local_files, "_SYSTEM", system)
    uri = folder.as_uri()
    (folder / "link").symlink_to("../other/file")
    (folder / "dir").symlink_to(folder.parent / "other")
    (folder / "within").symlink_to("sub/file")
    assert read(resolver(folder), f"{uri}/sub/file") == b"inside"
    assert read(resolver(folder), f"{uri}/within") == b"inside"
    for name in ("link", "dir/file"):
        error = refusal(resolver(folder), f"{uri}/{name}")
        assert error.kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
        place = (folder.parent / "other").as_uri() + "/"
        assert f"credentials.access_at(credentials.LocalFileSystemAccess, {place!r})" in str(error)
        assert read(resolver(folder, place), f"{uri}/{name}") == b"secret"
        assert refusal(resolver(folder, uri + "/sub"), f"{uri}/{name}").kind is error.kind


def test_a_folder_may_itself_be_a_link(folder: Path) -> None:
    (folder.parent / "alias").symlink_to(folder)
    alias = folder.parent / "alias"
    assert read(resolver(alias), f"{alias.as_uri()}/sub/file") == b"inside"
    (folder / "link").symlink_to("../other/file")
    assert refusal(resolver(alias), f"{alias.as_uri()}/link").kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER


def test_a_folder_beside_with_a_longer_name_is_outside(folder: Path) -> None:
    beside = folder.parent / "data-private"
    beside.mkdir()
    (beside / "file").write_bytes(b"secret")
    (folder / "link").symlink_to("../data-private/file")
    error = refusal(resolver(folder), f"{folder.as_uri()}/link")
    assert error.kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER


def test_a_link_that_changes_while_a_file_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks use the open file, not the path, which may name another file meanwhile."""
    (folder / "file").symlink_to("../other/file")
    opened = os.open

    def swap(path: str, flags: int) -> int:
        fd = opened(path, flags)
        (folder / "file").unlink()
        (folder / "file").write_bytes(b"inside")
        return fd

    monkeypatch.setattr(os, "open", swap)
    error = refusal(resolver(folder), f"{folder.as_uri()}/file")
    assert error.kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER


def test_escaped_slashes_are_read_as_official_does(folder: Path) -> None:
    assert read(resolver(folder), f"{folder.as_uri()}/sub%2Ffile") == b"inside"
    for escape in ("..%2Fother%2Ffile", "sub%2F..%2F..%2Fother%2Ffile", "sub%2f.%2Ffile"):
        assert refusal(resolver(folder), f"{folder.as_uri()}/{escape}").kind is ErrorKind.INVALID_VIRTUAL_REF


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///C:/data/a%20b", "C:/data/a b"),
        ("file:///c:/x.tar.gz", "c:/x.tar.gz"),
        ("file:///C:/data/.hidden", "C:/data/.hidden"),
        ("file:///C:/console/lpt", "C:/console/lpt"),
    ],
)
def test_paths_of_windows(url: str, path: str) -> None:
    assert location_to_path(url, windows=True) == path


@pytest.mark.parametrize(
    "rest",
    ["data/x", "D:x", "//server/share/x", "C:", "C|/x"]
    + [
        f"C:/data/{name}"
        for name in (
            "..%5C..%5Cwindows", "%5C%5Cserver", "x:stream", "x::$DATA", "nul", "NUL.txt", "con%20", "COM1", "lpt9.x",
            "COM%C2%B9", "aux", "conin$", "..%20", ".%20.", "x.", "x%20", "x%20/y", "a%3Cb", "a*", "a%3F", "%01",
            "D:/y",
        )
    ],
)  # fmt: skip
def test_names_that_mean_something_to_windows(rest: str) -> None:
    with pytest.raises(InvalidInputError):
        location_to_path(f"file:///{rest}", windows=True)
