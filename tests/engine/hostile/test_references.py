"""Hostile chunk references: impossible lengths, places and ranks."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository, credentials
from icechunk_engine.columns.chunk_refs import ChunkRefs
from icechunk_engine.format.manifest import decode_manifest, encode_manifest
from tests.bounded import run_bounded

N_BYTES = 800
HUGE = [2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def filled(field: str, value: int, refs: ChunkRefs) -> ChunkRefs:
    column: Any = np.full(len(refs), value, np.uint64)
    return dataclasses.replace(refs, **{field: column})


EDITS: dict[str, Callable[[ChunkRefs], ChunkRefs]] = {
    **{f"length {n}": partial(filled, "lengths", n) for n in HUGE},
    **{f"offset {n}": partial(filled, "offsets", n) for n in HUGE},
    "both": lambda refs: dataclasses.replace(
        refs, lengths=np.full(len(refs), 2**63, np.uint64), offsets=np.full(len(refs), 2**63, np.uint64)
    ),
    "rank 2": lambda refs: dataclasses.replace(refs, indices=np.repeat(refs.indices, 2, axis=1)),
    "rank 0": lambda refs: dataclasses.replace(refs, indices=refs.indices[:, :0]).take(np.array([0])),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository with an array of native chunks and one of virtual chunks."""
    place = tmp_path_factory.mktemp("place")
    (place / "source").write_bytes(bytes(N_BYTES))
    config = ic.RepositoryConfig(inline_chunk_threshold_bytes=0)
    config.set_virtual_chunk_container(
        ic.VirtualChunkContainer(f"file://{place}/", ic.ObjectStoreConfig.LocalFileSystem(str(place)))
    )
    repo = Repository.create(ic.local_filesystem_storage(place / "repo"), config)
    session = repo.writable_session("main")
    for name in ("native", "virtual"):
        zarr.create_array(session.store, name=name, shape=(100,), chunks=(50,), dtype="i8", compressors=None)
    zarr.open_array(session.store, path="native")[:] = 1
    for i in range(2):
        session.store.set_virtual_ref(f"virtual/c/{i}", f"file://{place}/source", offset=400 * i, length=400)
    session.commit("one")
    return place


def read_edited(place: Path, scratch: Path) -> dict[str, str]:
    """Return the outcome of reading and committing after each edit of the references."""
    ends = {}
    for number, (name, edit) in enumerate(EDITS.items()):
        copy = scratch / str(number)
        shutil.copytree(place / "repo", copy)
        for file in (copy / "manifests").iterdir():
            manifest = decode_manifest(file.read_bytes())
            arrays = tuple((node_id, edit(refs)) for node_id, refs in manifest.arrays)
            file.write_bytes(encode_manifest(dataclasses.replace(manifest, arrays=arrays)))
        in_memory = ic.in_memory_storage()
        for found in ic.local_filesystem_storage(copy).list():
            in_memory.put(found.key, ic.local_filesystem_storage(copy).get(found.key))
        for storage in (ic.local_filesystem_storage(copy), in_memory):
            repo = Repository.open(
                storage, authorize_virtual_chunk_access={f"file://{place}/": credentials.LocalFileSystemAccess}
            )
            for array in ("native", "virtual"):
                with pytest.raises(ic.IcechunkError) as caught:
                    zarr.open_array(repo.readonly_session("main").store, path=array, mode="r")[:]
                ends[f"{name} of {array} chunks in {storage}"] = str(caught.value)
            session = repo.writable_session("main")
            zarr.open_array(session.store, path="native")[:] = 2
            if name.startswith("rank"):
                with pytest.raises(ic.FormatError, match="rank"):
                    session.commit("two")
            else:
                session.commit("two")
                assert zarr.open_array(repo.readonly_session("main").store, path="native")[:].sum() == 200
    return ends


def test_references_that_nothing_can_satisfy(place: Path, tmp_path: Path) -> None:
    ends = run_bounded(read_edited, place, tmp_path)
    assert len(ends) == 4 * len(EDITS)
