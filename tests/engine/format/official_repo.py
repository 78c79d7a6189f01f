"""Repositories that the official library wrote, to check that it can read files of ours in their place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import zarr

from icechunk_engine.flatbuf.reader import Buffer
from icechunk_engine.format import header, layout, schema
from icechunk_engine.format.header import FileType
from icechunk_engine.ids import ManifestId, SnapshotId


class OfficialRepo:
    """A repository in a local directory, opened with the official library."""

    def __init__(self, path: Path, inline_threshold: int = 512, compress_locations_from: int | None = None) -> None:
        self.path = path
        config = official.RepositoryConfig(inline_chunk_threshold_bytes=inline_threshold)
        if compress_locations_from is not None:
            config.manifest = official.ManifestConfig(
                virtual_chunk_location_compression=official.ManifestVirtualChunkLocationCompressionConfig(
                    min_num_chunks=compress_locations_from
                )
            )
        self.repo = official.Repository.create(official.local_filesystem_storage(str(path)), config)

    def writable_session(self) -> official.Session:
        return self.repo.writable_session("main")

    @property
    def tip(self) -> SnapshotId:
        return SnapshotId.from_str(self.repo.lookup_branch("main"))

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def manifest_files(self) -> list[tuple[ManifestId, bytes]]:
        """Return all manifests, newest last."""
        paths = sorted((self.path / "manifests").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [(ManifestId.from_str(path.name), path.read_bytes()) for path in paths]

    def replace_manifest(self, manifest_id: ManifestId, data: bytes) -> official.Session:
        """Replace a manifest of the branch's tip; return a session that has to read it again."""
        (self.path / layout.manifest_key(manifest_id)).write_bytes(data)
        snapshot_path = self.path / layout.snapshot_key(self.tip)
        unpacked = header.unpack(snapshot_path.read_bytes(), FileType.SNAPSHOT)
        body = bytearray(unpacked.body.tobytes())
        # The snapshot holds the file's exact size, 8 bytes behind some place that only the id tells.
        infos = Buffer(unpacked.body).root().vectors(schema.Snapshot.MANIFEST_FILES_V2, 4).tables()
        ids, _ = infos.struct(schema.ManifestFileInfoV2.ID, schema.OBJECT_ID_SIZE)
        sizes = infos.scalar(schema.ManifestFileInfoV2.SIZE_BYTES, np.uint64)
        row = [ManifestId.from_row(id_row) for id_row in ids].index(manifest_id)
        old = int(sizes[row]).to_bytes(8, "little")
        table = int(infos.positions[row])
        place = body.index(old, table, table + 40)
        body[place : place + 8] = len(data).to_bytes(8, "little")
        snapshot_path.write_bytes(header.pack(FileType.SNAPSHOT, 2, body))
        repo = official.Repository.open(official.local_filesystem_storage(str(self.path)))
        return repo.readonly_session("main")


def chunks(session: official.Session, path: str) -> dict[tuple[int, ...], tuple[int, str, int, int, bytes | None]]:
    """Return each chunk of an array as the official library sees it: kind, location or id, offset, length, payload."""

    async def collect() -> dict[tuple[int, ...], tuple[int, str, int, int, bytes | None]]:
        found = {}
        async for coords, kinds, paths, offsets, lengths, inlined in session.store.array_chunk_iterator(path):
            columns = (coords.tolist(), kinds.tolist(), paths, offsets.tolist(), lengths.tolist())
            for row, (index, kind, place, offset, length) in enumerate(zip(*columns, strict=True)):
                found[tuple(index)] = (kind, place, offset, length, inlined.get(row))
        return found

    return asyncio.run(collect())


def create_array(session: official.Session, name: str, grid: tuple[int, ...], chunk_size: int = 1) -> zarr.Array[Any]:
    """Create an array of uncompressed bytes, whose chunks have ``chunk_size`` elements (on the last axis)."""
    group = zarr.open_group(session.store, mode="a")
    chunk = (1,) * (len(grid) - 1) + (chunk_size,) if grid else ()
    shape = tuple(n * size for n, size in zip(grid, chunk, strict=True))
    return group.create_array(name, shape=shape, chunks=chunk, dtype="u1", compressors=None, fill_value=0)
