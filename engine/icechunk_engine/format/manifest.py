"""Manifest files: the chunk references of one or more arrays (spec, *Manifest*).

Invariants of a written manifest:

- The references of an array are sorted by index. The official reader uses a binary search. If a reference is out of
  order, it does not find it, and the chunk reads as fill value without an error.
- The official reader accepts the file: the flatbuffer has less than 2 GiB, and its verifier counts less than 4 GiB
  (:func:`apparent_size`). The verifier counts a shared string for each reference that uses it, so a manifest of a few
  MB can be refused. :mod:`icechunk_engine.transaction.splitting` keeps manifests far below both limits.
"""

from __future__ import annotations

from collections.abc import Buffer as BytesLike
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from icechunk_engine.columns.chunk_refs import VIRTUAL, ChunkRefs
from icechunk_engine.columns.tables import U8, BytesTable, starts_of
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.flatbuf.reader import Buffer, JoinedBuffer, Tables
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout
from icechunk_engine.format import header, locations, schema
from icechunk_engine.format.chunk_ref_tables import (
    MIN_REF_BYTES,
    apparent_sizes,
    merge_equal_strings,
    place_refs,
    read_few_refs,
    read_refs,
)
from icechunk_engine.format.header import FileType
from icechunk_engine.format.locations import LocationCompression
from icechunk_engine.format.schema import NODE_ID_SIZE, OBJECT_ID_SIZE
from icechunk_engine.format.schema import ArrayManifest as ArraySlot
from icechunk_engine.format.schema import Manifest as Slot
from icechunk_engine.ids import ManifestId, NodeId

MAX_APPARENT_SIZE = 2**30
"""Largest apparent size (see :func:`apparent_size`) that a splitter should give a manifest: a quarter of the limit."""

_READABLE_APPARENT_SIZE = 2**32 - 2**20
"""Largest apparent size that can be written: the official verifier refuses more than 4 GiB."""

_ROOT = TableLayout.of(
    {Slot.ID: "V12", Slot.ARRAYS: OFFSET, Slot.LOCATION_DICTIONARY: OFFSET, Slot.COMPRESSION_ALGORITHM: "u1"}
)
_ARRAY = TableLayout.of({ArraySlot.NODE_ID: "V8", ArraySlot.REFS: OFFSET})


_MIN_ARRAY_BYTES = 24
"""The fewest bytes that an array takes in a file: an offset, a table and a vector of references."""
_SMALL_BODY = 2**14
"""Largest flatbuffer that is read together with others. Larger ones gain nothing from that."""

_OBJECTS_NBYTES = 8192
"""Bytes of the Python objects around one array's references and their finder (measured). For few references, the
columns take less than that."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The chunk references of some arrays.

    Attributes
    ----------
    manifest_id
        Id of the manifest, which is also the name of its file.
    arrays
        Node id and references of each array, sorted by node id. References are sorted by index.
    """

    manifest_id: ManifestId
    arrays: tuple[tuple[NodeId, ChunkRefs], ...]

    @property
    def num_chunk_refs(self) -> int:
        """Number of references of all arrays."""
        return sum(len(refs) for _, refs in self.arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, including the Python objects around the columns."""
        return sum(_OBJECTS_NBYTES + refs.nbytes for _, refs in self.arrays)

    def get(self, node_id: NodeId) -> ChunkRefs | None:
        """Return the references of one array; None if the manifest does not list it."""
        return next((refs for other, refs in self.arrays if other == node_id), None)


def apparent_size(refs: ChunkRefs) -> int:
    """Return the size of a manifest as the official verifier counts it: shared strings count for each reference.

    :func:`~icechunk_engine.format.chunk_ref_tables.apparent_sizes` returns the size of each reference.
    """
    return int(apparent_sizes(refs).sum())


def encode_manifest(
    manifest: Manifest,
    *,
    level: int = 3,
    location_compression: LocationCompression | None = None,
    spec_version: int = 2,
) -> bytes:
    """Encode a manifest whose references are sorted by index.

    Parameters
    ----------
    level
        zstd level of the whole file.
    location_compression
        Also compress each location, as the official library does by default. This makes files larger, not smaller. It
        is not possible in spec 1, nor if a location is longer than the official reader accepts.

    Raises
    ------
    FormatError
        ``serialization``: the file would be too large for official readers. Split the manifest.
    """
    total = sum(apparent_size(refs) for _, refs in manifest.arrays)
    if total > _READABLE_APPARENT_SIZE:
        raise FormatError(
            f"a manifest of {manifest.num_chunk_refs} chunk references would be too large to read. Configure "
            f"manifest splitting, or write fewer references at once",
            ErrorKind.SERIALIZATION,
        )
    arrays = tuple(
        sorted(
            ((node_id, merge_equal_strings(refs.compact())) for node_id, refs in manifest.arrays),
            key=lambda item: item[0],
        )
    )
    dictionary = _dictionary(arrays, location_compression) if spec_version > 1 else None
    level_of_frames = location_compression.level if location_compression is not None else 0

    arena = Arena(schema.IDENTIFIER)
    root = arena.tables(_ROOT, 1)
    arena.set_root(root)
    root.set(Slot.ID, manifest.manifest_id.raw)
    items = arena.offset_vectors([len(arrays)])
    root.point(Slot.ARRAYS, items.positions)
    if dictionary is None:
        root.set(Slot.COMPRESSION_ALGORITHM, schema.LocationCompression.NONE)
    else:
        root.point(Slot.LOCATION_DICTIONARY, arena.byte_vectors(BytesTable.of([dictionary])))
    tables = arena.tables(_ARRAY, len(arrays))
    items.point(tables.positions)
    tables.set(ArraySlot.NODE_ID, np.array([node_id.to_row() for node_id, _ in arrays]).reshape(-1, NODE_ID_SIZE))
    vectors = []
    for _, refs in arrays:
        frames = None if dictionary is None else locations.compress(refs.locations, dictionary, level_of_frames)
        vector = arena.offset_vectors([len(refs)])
        vector.point(place_refs(arena, refs, frames))
        vectors.append(int(vector.positions[0]))
    tables.point(ArraySlot.REFS, np.array(vectors, np.int64))
    size = arena.seal()
    return header.pack_blocks(FileType.MANIFEST, spec_version, arena.blocks(), size, level)


def _dictionary(arrays: tuple[tuple[NodeId, ChunkRefs], ...], compression: LocationCompression | None) -> bytes | None:
    """Make the dictionary for the locations; None if they are not to be compressed."""
    if compression is None:
        return None
    virtual = [(refs, np.flatnonzero(refs.kinds == VIRTUAL)) for _, refs in arrays]
    total = sum(len(rows) for _, rows in virtual)
    longest = max((int(refs.locations.lengths.max(initial=0)) for refs, _ in virtual), default=0)
    if total < max(compression.min_num_chunks, 1) or longest > locations.MAX_COMPRESSIBLE_LOCATION:
        return None
    samples: list[bytes] = []
    for refs, rows in virtual:
        share = -(-compression.max_training_samples * len(rows) // total)
        chosen = rows[np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(np.int64)]
        samples += refs.locations.take(refs.location_codes[chosen]).raws()
    return locations.train_dictionary(samples, compression.dictionary_max_size_bytes)


def decode_manifest(data: BytesLike, name: str = "") -> Manifest:
    """Decode a manifest file.

    Parameters
    ----------
    data
        The whole object, as bytes.
    name
        Object name for messages.

    Raises
    ------
    FormatError
        The bytes are not an intact manifest.
    """
    return _read_alone(header.unpack(data, FileType.MANIFEST, name).body, name)


def _read_alone(body: U8, name: str) -> Manifest:
    buffer = Buffer(body, name or "this manifest file")
    root = buffer.root()
    manifest_id = ManifestId.from_row(root.required_struct(Slot.ID, OBJECT_ID_SIZE, "the manifest's id")[0])
    dictionary = _read_dictionary(root)
    tables = root.vectors(Slot.ARRAYS, 4, "the list of arrays").tables(_MIN_ARRAY_BYTES)
    node_ids = _node_ids(tables)
    refs = tables.vectors(ArraySlot.REFS, 4, "the list of chunk references")
    buffer.require_room(int(refs.lengths.sum()), MIN_REF_BYTES)
    starts, lengths = refs.starts.tolist(), refs.lengths.tolist()
    return _manifest(
        buffer,
        manifest_id,
        [
            (node_id, read_refs(buffer, start, length, dictionary))
            for node_id, start, length in zip(node_ids, starts, lengths, strict=True)
        ],
    )


def decode_manifests(files: Iterable[tuple[BytesLike, str]]) -> list[Manifest]:
    """Decode several manifest files, given with their names.

    Small files are decoded together, which is faster. Large ones are taken from ``files`` one at a time, so that their
    bytes can be freed before the next one comes.

    Raises
    ------
    FormatError
        One of the files is not an intact manifest.
    """
    found: dict[int, Manifest] = {}
    small: dict[int, tuple[U8, str]] = {}
    for number, (data, name) in enumerate(files):
        body = header.unpack(data, FileType.MANIFEST, name).body
        if 0 < len(body) <= _SMALL_BODY:
            small[number] = body, name
        else:
            found[number] = _read_alone(body, name)
    try:
        together = _read_together([body for body, _ in small.values()]) if len(small) > 1 else []
    except FormatError:  # one file is damaged or unusual; decoding each alone tells which one, and what is wrong
        together = []
    found |= zip(small, together or [_read_alone(*file) for file in small.values()], strict=True)
    return [found[number] for number in range(len(found))]


def _read_together(bodies: Sequence[U8]) -> list[Manifest]:
    buffer = JoinedBuffer(bodies)
    roots = buffer.roots()
    ids = roots.required_struct(Slot.ID, OBJECT_ID_SIZE, "the manifest's id")
    if bool((roots.scalar(Slot.COMPRESSION_ALGORITHM, np.uint8) > schema.LocationCompression.ZSTD_DICTIONARY).any()):
        raise buffer.error("its locations are compressed with an unknown algorithm")
    roots.vectors(Slot.LOCATION_DICTIONARY, 1)  # unused here; checked because decoding a file alone checks it, too
    arrays = roots.vectors(Slot.ARRAYS, 4, "the list of arrays")
    tables = arrays.tables(_MIN_ARRAY_BYTES)
    node_ids = _node_ids(tables)
    refs = tables.vectors(ArraySlot.REFS, 4, "the list of chunk references")
    bounds = starts_of(arrays.lengths)
    if bool((np.diff(starts_of(refs.lengths)[bounds]) * MIN_REF_BYTES > np.diff(buffer.starts)).any()):
        raise buffer.error("its arrays share their chunk references")
    found = list(zip(node_ids, read_few_refs(refs), strict=True))
    return [
        _manifest(buffer, ManifestId(manifest_id.tobytes()), found[start:stop])
        for manifest_id, (start, stop) in zip(ids, pairwise(bounds.tolist()), strict=True)
    ]


def _node_ids(tables: Tables) -> list[NodeId]:
    return [NodeId(row.tobytes()) for row in tables.required_struct(ArraySlot.NODE_ID, NODE_ID_SIZE, "a node id")]


def _manifest(buffer: Buffer, manifest_id: ManifestId, arrays: list[tuple[NodeId, ChunkRefs]]) -> Manifest:
    if len({node_id for node_id, _ in arrays}) != len(arrays):
        raise buffer.error("it lists an array twice")
    return Manifest(manifest_id, tuple(sorted(arrays, key=lambda item: item[0])))


def _read_dictionary(root: Tables) -> bytes | None:
    """Read the dictionary of compressed locations (empty if absent); None if the file declares no compression."""
    algorithm = int(root.scalar(Slot.COMPRESSION_ALGORITHM, np.uint8, schema.LocationCompression.ZSTD_DICTIONARY)[0])
    if algorithm == schema.LocationCompression.NONE:
        return None
    if algorithm != schema.LocationCompression.ZSTD_DICTIONARY:
        raise FormatError(
            f"{root.buffer.name} compresses its locations with algorithm {algorithm}, which this library does not "
            f"know. Upgrade it to read this repository",
            ErrorKind.DESERIALIZATION,
        )
    return root.vectors(Slot.LOCATION_DICTIONARY, 1).scalars(np.uint8).tobytes()
