"""Files that list one item millions of times are refused before their columns take more memory than the file."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.format import schema
from icechunk_engine.format.header import FileType, pack
from icechunk_engine.format.manifest import decode_manifest
from icechunk_engine.format.repo_info import decode_repo_info
from icechunk_engine.format.snapshot import decode_snapshot
from icechunk_engine.format.transaction_log import decode_transaction_log
from tests.engine.format.damage import body_of
from tests.engine.hostile.flat import repeated

N = 500_000

LISTS: list[tuple[str, FileType, int, Callable[[Any], Any]]] = [
    ("snapshots", FileType.SNAPSHOT, schema.Snapshot.NODES, decode_snapshot),
    ("snapshots", FileType.SNAPSHOT, schema.Snapshot.MANIFEST_FILES_V2, decode_snapshot),
    ("snapshots", FileType.SNAPSHOT, schema.Snapshot.METADATA, decode_snapshot),
    ("manifests", FileType.MANIFEST, schema.Manifest.ARRAYS, decode_manifest),
    ("transactions", FileType.TRANSACTION_LOG, schema.TransactionLog.UPDATED_CHUNKS, decode_transaction_log),
    ("repo", FileType.REPO_INFO, schema.Repo.SNAPSHOTS, decode_repo_info),
    ("repo", FileType.REPO_INFO, schema.Repo.TAGS, decode_repo_info),
    ("repo", FileType.REPO_INFO, schema.Repo.DELETED_TAGS, decode_repo_info),
    ("repo", FileType.REPO_INFO, schema.Repo.METADATA, decode_repo_info),
    ("repo", FileType.REPO_INFO, schema.Repo.LATEST_UPDATES, decode_repo_info),
]
OFFSET_SLOTS = {
    "snapshots": (2, 4, 5, 6, 7),
    "manifests": (1, 2),
    "transactions": range(1, 9),
    "repo": range(1, 12),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the newest file of each kind."""
    place = tmp_path_factory.mktemp("repo")
    repo = Repository.create(ic.local_filesystem_storage(place))
    session = repo.writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(40,), chunks=(20,), dtype="i8", compressors=None, dimension_names=["x"]
    )
    array[:] = 1
    tip = session.commit("one", metadata={"a": 1})
    repo.create_tag("kept", tip)
    repo.create_tag("gone", tip)
    repo.delete_tag("gone")
    repo.set_metadata({"a": 1})
    (manifest,) = (place / "manifests").iterdir()
    return {
        "snapshots": (place / "snapshots" / tip).read_bytes(),
        "transactions": (place / "transactions" / tip).read_bytes(),
        "manifests": manifest.read_bytes(),
        "repo": (Path(place) / "repo").read_bytes(),
    }


@pytest.mark.parametrize(("kind", "file_type", "slot", "decode"), LISTS)
def test_a_list_of_one_item(
    kind: str, file_type: FileType, slot: int, decode: Callable[[Any], Any], files: dict[str, bytes]
) -> None:
    body = body_of(files[kind], file_type)
    once = pack(file_type, 2, repeated(body, slot, 1, OFFSET_SLOTS[kind]))
    if (kind, slot) != ("repo", schema.Repo.SNAPSHOTS):  # whose other rows are referred to
        decode(once)
    hostile = pack(file_type, 2, repeated(body, slot, N, OFFSET_SLOTS[kind]))
    tracemalloc.start()
    try:
        if slot == schema.Repo.LATEST_UPDATES and kind == "repo":
            assert "do not fit" in decode(hostile).updates.damage
        else:
            with pytest.raises(ic.FormatError, match=f"lists {N} items, which do not fit"):
                decode(hostile)
        assert tracemalloc.get_traced_memory()[1] < 8 * N
    finally:
        tracemalloc.stop()
