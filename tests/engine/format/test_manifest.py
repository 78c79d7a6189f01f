"""Manifest files: round trips, exchange with the official library, foreign layouts, damage."""

from __future__ import annotations

import dataclasses
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
import zarr
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.columns.chunk_refs import INLINE, NATIVE, VIRTUAL, ChunkRef, ChunkRefs
from icechunk_engine.columns.tables import BytesTable
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.flatbuf.blocks import BlockTables
from icechunk_engine.flatbuf.reader import Buffer
from icechunk_engine.flatbuf.writer import OFFSET, Arena, TableLayout
from icechunk_engine.format import chunk_ref_tables, header, locations, manifest, schema
from icechunk_engine.format.chunk_ref_tables import apparent_sizes
from icechunk_engine.format.header import FileType
from icechunk_engine.format.locations import LocationCompression
from icechunk_engine.format.manifest import (
    Manifest,
    apparent_size,
    decode_manifest,
    decode_manifests,
    encode_manifest,
)
from icechunk_engine.ids import ManifestId, NodeId
from tests.engine.format.damage import assert_survives, body_of, damaged_bodies
from tests.engine.format.official_repo import OfficialRepo, chunks, create_array
from tests.engine.format.strategies import as_dict, chunk_refs, many_refs

MANIFEST_ID = ManifestId(b"manifest-id.")
NODE_ID = NodeId(b"node-id.")
ALWAYS = LocationCompression(min_num_chunks=1)


def file_of(refs: ChunkRefs, **options: Any) -> bytes:
    return encode_manifest(Manifest(MANIFEST_ID, ((NODE_ID, refs),)), **options)


def refs_of(data: bytes) -> ChunkRefs:
    refs = decode_manifest(data, "manifests/X").get(NODE_ID)
    assert refs is not None
    return refs


def virtual_refs(texts: list[str]) -> ChunkRefs:
    items = [((row,), ChunkRef(kind=VIRTUAL, location=text, length=1)) for row, text in enumerate(texts)]
    return ChunkRefs.of(1, items)


# --- round trips -------------------------------------------------------------------------------------------------


@given(chunk_refs(), st.sampled_from([None, ALWAYS]), st.sampled_from([1, 2]))
def test_round_trip(refs: ChunkRefs, compression: LocationCompression | None, spec_version: int) -> None:
    decoded = refs_of(file_of(refs, location_compression=compression, spec_version=spec_version))
    assert as_dict(decoded) == as_dict(refs)
    assert decoded.indices.shape == refs.indices.shape


@pytest.mark.parametrize("compression", [None, LocationCompression()], ids=["plain", "compressed"])
def test_many_references_of_all_kinds(compression: LocationCompression | None) -> None:
    refs = many_refs(40_000)
    decoded = refs_of(file_of(refs, location_compression=compression))
    assert as_dict(decoded) == as_dict(refs)
    assert len(decoded.locations) <= len(refs.locations)
    assert decoded.nbytes < 100 * len(refs)


@given(st.lists(chunk_refs(max_size=4), min_size=0, max_size=4))
def test_several_arrays(parts: list[ChunkRefs]) -> None:
    arrays = {NodeId(bytes([7 * number % 5]) * 8): refs for number, refs in enumerate(parts)}
    written = Manifest(MANIFEST_ID, tuple(arrays.items()))
    decoded = decode_manifest(encode_manifest(written))
    assert decoded.manifest_id == MANIFEST_ID
    assert [node_id for node_id, _ in decoded.arrays] == sorted(arrays)
    assert decoded.num_chunk_refs == sum(map(len, parts))
    for node_id, refs in arrays.items():
        found = decoded.get(node_id)
        assert found is not None
        assert as_dict(found) == as_dict(refs)
    assert decoded.get(NodeId(b"nowhere.")) is None


# --- several files at once -----------------------------------------------------------------------------------------


def outcome(files: list[tuple[bytes, str]]) -> Any:
    """Return the contents of the files, or the error message."""
    try:
        return [plain(one) for one in decode_manifests(files)]
    except FormatError as error:
        return str(error)


FORMS = st.sampled_from([None, None, None, ALWAYS])


def plain(manifest_: Manifest) -> tuple[ManifestId, dict[NodeId, Any]]:
    return manifest_.manifest_id, {node_id: as_dict(refs) for node_id, refs in manifest_.arrays}


@given(st.lists(st.tuples(st.lists(chunk_refs(max_size=4), max_size=3), FORMS), max_size=6))
def test_files_read_together_are_as_read_alone(
    contents: list[tuple[list[ChunkRefs], LocationCompression | None]],
) -> None:
    files = []
    for number, (parts, compression) in enumerate(contents):
        arrays = tuple((NodeId(bytes([number, 9 - row]) * 4), refs) for row, refs in enumerate(parts))
        written = Manifest(ManifestId(bytes([number]) * 12), arrays)
        files.append((encode_manifest(written, location_compression=compression), f"manifests/{number}"))
    together = decode_manifests(files)
    alone = [decode_manifest(*file) for file in files]
    assert [plain(one) for one in together] == [plain(one) for one in alone]
    for one in together:
        for _, refs in one.arrays:  # nothing holds on to the other files
            assert len(refs.inline_data) == refs.lengths[refs.kinds == INLINE].sum()
            assert refs.nbytes < 1000 * len(refs) + len(refs.inline_data)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_file_among_others(place: int) -> None:
    """Among others, a file gives the same result or error as alone, and errors name the right file."""
    refs = many_refs(4, ndim=2)
    good = [(file_of(many_refs(n, seed=n, ndim=1 + n % 2)), f"manifests/good-{n}") for n in (3, 5)]
    outcomes = {True: 0, False: 0}
    for damaged in damaged_bodies(body_of(file_of(refs), FileType.MANIFEST), seed=place):
        bad = header.pack(FileType.MANIFEST, 2, damaged, level=1), "manifests/bad"
        files = [*good[:place], bad, *good[place:]]
        alone, together = outcome([bad]), outcome(files)
        outcomes[isinstance(alone, list)] += 1
        if isinstance(alone, list):
            assert isinstance(together, list)
            assert together.pop(place) == alone[0]
            assert together == [plain(decode_manifest(*file)) for file in good]
        else:
            assert together == alone
    assert all(outcomes.values())


def test_an_empty_file_is_not_read_as_the_one_after_it() -> None:
    good = encode_manifest(Manifest(MANIFEST_ID, ()), spec_version=2), "manifests/good"
    empty = good[0][: header.HEADER_SIZE - 1] + bytes([header.COMPRESSION_NONE]), "manifests/empty"
    assert outcome([empty, good, good]) == outcome([empty])


def test_a_damaged_dictionary_that_nothing_needs() -> None:
    good = file_of(many_refs(3)), "manifests/good"
    body = bytearray(body_of(good[0], FileType.MANIFEST))
    root = int.from_bytes(body[:4], "little")
    vtable = root - int.from_bytes(body[root : root + 4], "little", signed=True)
    id_entry, dictionary_entry, algorithm_entry = (
        slice(vtable + 4 + 2 * slot, vtable + 6 + 2 * slot)
        for slot in (schema.Manifest.ID, schema.Manifest.LOCATION_DICTIONARY, schema.Manifest.COMPRESSION_ALGORITHM)
    )
    body[dictionary_entry] = body[id_entry]
    body[root + int.from_bytes(body[algorithm_entry], "little")] = schema.LocationCompression.ZSTD_DICTIONARY
    bad = header.pack(FileType.MANIFEST, 2, bytes(body), level=1), "manifests/bad"
    assert isinstance(outcome([bad]), str)
    assert outcome([good, bad, good]) == outcome([bad])


def test_small_files_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [(file_of(many_refs(n)), f"manifests/{n}") for n in (3, 5)]
    monkeypatch.setattr(manifest, "_read_alone", None)
    assert [one.num_chunk_refs for one in decode_manifests(files)] == [3, 5]


def test_large_files_are_let_go_of_before_the_next_one_is_asked_for() -> None:
    """Many large files would not fit into memory at once."""
    held: list[weakref.ref[Any]] = []
    unpacked: list[str] = []

    class Data(bytearray):
        """Bytes that allow weak references."""

    def files() -> Iterator[tuple[Any, str]]:
        for number, n in enumerate([3, 2000, 5, 2000, 2000]):
            data = Data(file_of(many_refs(n)))
            held.append(weakref.ref(data))
            assert [ref() is not None for ref in held[:-2]].count(True) == 0
            yield data, f"manifests/{number}"
            del data

    unpack = header.unpack

    def unpack_and_note(data: Any, kind: FileType, name: str) -> header.Unpacked:
        unpacked.append(name)
        return unpack(data, kind, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(header, "unpack", unpack_and_note)
        assert [one.num_chunk_refs for one in decode_manifests(files())] == [3, 2000, 5, 2000, 2000]
    assert unpacked == [f"manifests/{number}" for number in range(5)]


def test_equal_locations_are_stored_once() -> None:
    """Even if the table of locations has equal rows, as after a merge."""
    table = BytesTable.of(["s3://b/" + "x" * 1000] * 50)
    refs = ChunkRefs.build(np.arange(50)[:, None], VIRTUAL, lengths=1, location_codes=np.arange(50), locations=table)
    data = file_of(refs)
    assert len(header.unpack(data, FileType.MANIFEST).body) < 6000
    assert len(refs_of(data).locations) == 1


def test_inline_payloads_stay_in_the_body_where_they_are_most_of_it() -> None:
    large = ChunkRefs.of(1, [((row,), ChunkRef(kind=INLINE, inline=bytes([row]) * 500)) for row in range(20)])
    small = ChunkRefs.of(1, [((0,), ChunkRef(kind=INLINE, inline=b"payload"))])
    assert as_dict(refs_of(file_of(large))) == as_dict(large)
    assert len(refs_of(file_of(large)).inline_data) > 500 * 20
    assert refs_of(file_of(small)).inline_data.tobytes() == b"payload"


# --- limits and options ------------------------------------------------------------------------------------------


def test_apparent_size_bounds_the_file() -> None:
    refs = many_refs(5000)
    body = header.unpack(file_of(refs), FileType.MANIFEST).body
    assert len(body) < apparent_size(refs) + 1000
    sizes = apparent_sizes(refs)
    assert sizes.shape == (5000,)
    assert int(sizes.sum()) == apparent_size(refs)
    assert apparent_sizes(virtual_refs(["s3://b/" + "x" * 10_000])).tolist() > [10_000]


def test_what_official_could_not_verify_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refs = many_refs(100)
    monkeypatch.setattr(manifest, "_READABLE_APPARENT_SIZE", apparent_size(refs) - 1)
    with pytest.raises(FormatError) as caught:
        file_of(refs)
    assert caught.value.kind == ErrorKind.SERIALIZATION
    assert "splitting" in str(caught.value)


def uses_frames(data: bytes) -> bool:
    root = Buffer(header.unpack(data, FileType.MANIFEST).body).root()
    algorithm = root.scalar(schema.Manifest.COMPRESSION_ALGORITHM, np.uint8, 1)[0]
    return bool(algorithm) and bool(root.present(schema.Manifest.LOCATION_DICTIONARY)[0])


def test_when_locations_are_compressed() -> None:
    texts = [f"s3://bucket/file-{row}.nc" for row in range(30)]
    at_30 = LocationCompression(min_num_chunks=30)
    assert uses_frames(file_of(virtual_refs(texts), location_compression=at_30))
    assert not uses_frames(file_of(virtual_refs(texts[:29]), location_compression=at_30))
    assert not uses_frames(file_of(virtual_refs(texts)))
    assert not uses_frames(file_of(virtual_refs(texts), location_compression=at_30, spec_version=1))
    # Official readers could not read a compressed location of more than 1024 bytes.
    longest = ["s3://bucket/".ljust(1024, "x"), *texts]
    assert uses_frames(file_of(virtual_refs(longest), location_compression=at_30))
    assert not uses_frames(file_of(virtual_refs([longest[0] + "x", *texts]), location_compression=at_30))
    # Where half of the samples are tiny, a dictionary gains nothing.
    assert not uses_frames(file_of(virtual_refs([f"a:/{row}" for row in range(30)]), location_compression=at_30))


# --- compressed locations of other writers -----------------------------------------------------------------------

TEXTS = [f"s3://bucket/some/prefix/file-{row:04d}.nc" for row in range(200)]


def frames_of(texts: list[str], dictionary: bytes, **options: Any) -> BytesTable:
    compressor = zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(dictionary), **options)
    return BytesTable.of([compressor.compress(text.encode()) for text in texts])


@pytest.mark.parametrize("options", [{}, {"write_content_size": False}, {"write_dict_id": False}, {"level": 19}])
def test_frames_of_any_kind_are_decompressed(options: dict[str, Any]) -> None:
    trained = locations.train_dictionary([text.encode() for text in TEXTS], 2048)
    assert trained is not None
    for dictionary in (trained, b"s3://bucket/some/prefix/ raw content", b""):
        assert locations.decompress(frames_of(TEXTS, dictionary, **options), dictionary).texts() == TEXTS
    plain = BytesTable.of([zstandard.ZstdCompressor(**options).compress(text.encode()) for text in TEXTS])
    assert locations.decompress(plain, trained).texts() == TEXTS


@pytest.mark.parametrize("sized", [True, False])
def test_locations_that_expand_too_much_are_refused(sized: bool) -> None:
    """100 frames of 50 bytes hold a megabyte each. They are refused after 16 MiB, or at once if they declare it."""
    frame = zstandard.ZstdCompressor(write_content_size=sized).compress(bytes(2**20))
    frames = BytesTable.of([frame] * 100)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 16777216"):
            locations.decompress(frames, b"")
        assert tracemalloc.get_traced_memory()[1] < (2**20 if sized else 2**26)
    finally:
        tracemalloc.stop()


def test_declared_sizes_of_all_widths() -> None:
    texts = ["x" * length for length in (1, 255, 256, 257, 65_791, 65_792, 100_000)]
    frames = frames_of(texts, b"")
    sizes = locations.content_sizes(frames.data, frames.starts[:-1], frames.lengths)
    assert sizes.tolist() == list(map(len, texts))
    assert locations.decompress(frames, b"").texts() == texts


def test_damaged_frames_are_refused() -> None:
    good = frames_of(TEXTS[:3], b"").raws()
    for bad in (b"", b"junk", good[0][:-1], good[0] + good[1], good[0][:5] + b"\x01" + good[0][6:]):
        with pytest.raises(ValueError):
            locations.decompress(BytesTable.of([good[0], bad, good[2]]), b"")
    for text in ("", "x" * (2**20 + 1)):
        for sized in (True, False):
            frames = frames_of([text], b"", write_content_size=sized)
            if text or sized:
                with pytest.raises(ValueError):
                    locations.decompress(frames, b"")
    with pytest.raises(ValueError):  # says to be a trained dictionary and is none
        locations.decompress(frames_of(TEXTS, b""), b"\x37\xa4\x30\xec" + bytes(30))


# --- other writers' tables ---------------------------------------------------------------------------------------


def hand_written(
    n: int,
    fill: Callable[[BlockTables], None],
    *,
    order: list[int] | None = None,
    algorithm: int | None = 0,
    dictionary: bytes | None = None,
    n_arrays: int = 1,
    same_id: bool = False,
) -> bytes:
    """Make a manifest whose reference tables ``fill`` makes."""
    slot, array_slot = schema.Manifest, schema.ArrayManifest
    arena = Arena(b"Ichk")
    root = arena.tables(
        TableLayout.of({slot.ID: "V12", slot.ARRAYS: OFFSET, slot.LOCATION_DICTIONARY: OFFSET, 3: "u1"}), 1
    )
    arena.set_root(root)
    root.set(slot.ID, MANIFEST_ID.raw)
    if algorithm is not None:
        root.set(slot.COMPRESSION_ALGORITHM, algorithm)
    items = arena.offset_vectors([n_arrays])
    root.point(slot.ARRAYS, items.positions)
    if dictionary is not None:
        root.point(slot.LOCATION_DICTIONARY, arena.byte_vectors(BytesTable.of([dictionary])))
    arrays = arena.tables(TableLayout.of({array_slot.NODE_ID: "V8", array_slot.REFS: OFFSET}), n_arrays)
    items.point(arrays.positions)
    ids = np.tile(NODE_ID.to_row(), (n_arrays, 1))
    ids[:, 7] += 0 if same_id else np.arange(n_arrays, dtype=np.uint8)
    arrays.set(array_slot.NODE_ID, ids)
    vector = arena.offset_vectors([n])
    arrays.point(array_slot.REFS, vector.positions)
    tables = BlockTables(n)
    fill(tables)
    vector.point(tables.place(arena)[order if order is not None else slice(None)])
    return header.pack(FileType.MANIFEST, 2, arena.tobytes())


def test_which_place_counts() -> None:
    """The order is chunk id, compressed location, location, inline."""
    slot = schema.ChunkRef
    bits = np.arange(1, 16)
    text, frame = BytesTable.of(["plain"]), frames_of(["packed"], b"")

    def codes(bit: int) -> np.ndarray[Any, Any]:
        return np.where(bits >> bit & 1, 0, -1).astype(np.int32)

    def fill(tables: BlockTables) -> None:
        tables.row_vectors(slot.INDEX, bits[:, None].astype(np.uint32))
        tables.structs(slot.CHUNK_ID, np.full((15, 12), 7, np.uint8), codes(3) == 0)
        tables.shared(slot.COMPRESSED_LOCATION, frame, codes(2), terminated=False)
        tables.shared(slot.LOCATION, text, codes(1), terminated=True)
        tables.shared(slot.INLINE, BytesTable.of([b"data"]), codes(0), terminated=False)

    found = as_dict(refs_of(hand_written(15, fill, algorithm=None, dictionary=b"")))
    for bit_set in range(1, 16):
        ref = found[(bit_set,)]
        if bit_set & 8:
            assert ref.kind == NATIVE
        elif bit_set & 6:
            assert (ref.kind, ref.location) == (VIRTUAL, "packed" if bit_set & 4 else "plain")
        else:
            assert (ref.kind, ref.inline) == (INLINE, b"data")


def simple(tables: BlockTables) -> None:
    tables.row_vectors(schema.ChunkRef.INDEX, np.arange(3, dtype=np.uint32)[:, None])
    tables.numbers(schema.ChunkRef.LENGTH, np.arange(10, 13, dtype=np.uint64))
    tables.structs(schema.ChunkRef.CHUNK_ID, np.full((3, 12), 7, np.uint8))


def test_unsorted_references_are_sorted() -> None:
    refs = refs_of(hand_written(3, simple, order=[2, 0, 1]))
    assert refs.indices.tolist() == [[0], [1], [2]]
    assert refs.lengths.tolist() == [10, 11, 12]


def refused(data: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        decode_manifest(data, "manifests/X")
    assert caught.value.kind == ErrorKind.DESERIALIZATION
    assert "manifests/X" in str(caught.value)
    return str(caught.value)


def test_what_makes_no_sense_is_refused() -> None:
    index = np.arange(3, dtype=np.uint32)[:, None]

    def nowhere(tables: BlockTables) -> None:
        tables.row_vectors(schema.ChunkRef.INDEX, index)

    def no_index(tables: BlockTables) -> None:
        tables.structs(schema.ChunkRef.CHUNK_ID, np.full((3, 12), 7, np.uint8))

    def flat(tables: BlockTables) -> None:
        simple(tables)
        tables._vectors.clear()
        tables.row_vectors(schema.ChunkRef.INDEX, np.zeros((3, 300), np.uint32))

    def aliased(tables: BlockTables) -> None:
        tables.row_vectors(schema.ChunkRef.INDEX, np.arange(300, dtype=np.uint32)[:, None])
        tables.structs(schema.ChunkRef.CHUNK_ID, np.full((300, 12), 7, np.uint8))

    def packed(tables: BlockTables) -> None:
        nowhere(tables)
        tables.shared(
            schema.ChunkRef.COMPRESSED_LOCATION, frames_of(["x"], b""), np.zeros(3, np.int32), terminated=False
        )

    def not_text(tables: BlockTables) -> None:
        nowhere(tables)
        tables.shared(schema.ChunkRef.LOCATION, BytesTable.of([b"\xff"]), np.zeros(3, np.int32), terminated=True)

    assert "does not say where its chunk is" in refused(hand_written(3, nowhere))
    assert "index" in refused(hand_written(3, no_index))
    assert "300 dimensions" in refused(hand_written(3, flat))
    assert "compressed locations" in refused(hand_written(3, packed))
    assert "UTF-8" in refused(hand_written(3, not_text))
    assert "does not know" in refused(hand_written(3, simple, algorithm=2))
    assert "do not fit" in refused(hand_written(300, aliased, n_arrays=200))
    assert "twice" in refused(hand_written(3, simple, n_arrays=2, same_id=True))


def test_references_of_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if they are read in different slabs."""
    parts = [
        ChunkRefs.of(ndim, [((row,) * ndim, ChunkRef(kind=INLINE, inline=b"x")) for row in range(4)])
        for ndim in (1, 2)
    ]
    data = encode_manifest(Manifest(MANIFEST_ID, ((NODE_ID, parts[0]), (NodeId(b"node-two"), parts[1]))))
    body = bytearray(body_of(data, FileType.MANIFEST))
    buffer = Buffer(np.frombuffer(bytes(body), np.uint8))
    vectors = buffer.root().vectors(1, 4).tables().vectors(schema.ArrayManifest.REFS, 4)
    items = vectors.item_positions()
    target = buffer.follow(items)[4]
    body[items[3] : items[3] + 4] = int(target - items[3]).to_bytes(4, "little")
    for slab_rows in (2**14, 3):
        monkeypatch.setattr(chunk_ref_tables, "_SLAB_ROWS", slab_rows)
        refused(header.pack(FileType.MANIFEST, 2, body))


@pytest.mark.parametrize("compression", [None, ALWAYS], ids=["plain", "compressed"])
def test_damaged_bodies(compression: LocationCompression | None) -> None:
    refs = many_refs(60, ndim=2)
    texts = {f"s3://bucket/data/file-{number:05d}.nc".encode() for number in range(2)}

    def use(decoded: Manifest) -> None:
        for _, found in decoded.arrays:
            for row in range(len(found)):
                found.row(row)
            if len(found):
                found.extents()

    assert texts & set(refs.locations.raws())
    body = body_of(file_of(refs, location_compression=compression), FileType.MANIFEST)
    assert_survives(decode_manifest, use, body, FileType.MANIFEST, seed=1)


# --- the official library ----------------------------------------------------------------------------------------


def decoded_chunks(refs: ChunkRefs) -> dict[tuple[int, ...], tuple[int, str, int, int, bytes | None]]:
    """Return references in the form of :func:`chunks`."""
    found = {}
    for index, ref in as_dict(refs).items():
        place = ref.location or (str(ref.chunk_id) if ref.chunk_id else "")
        offset = 0 if ref.kind == INLINE else ref.offset
        found[index] = (ref.kind, place, offset, ref.length, ref.inline)
    return found


def only_array(data: bytes) -> ChunkRefs:
    ((_, refs),) = decode_manifest(data).arrays
    return refs


def test_official_native_and_inline_chunks(tmp_path: Path) -> None:
    repo = OfficialRepo(tmp_path, inline_threshold=10)
    session = repo.writable_session()
    create_array(session, "native", (2, 3), chunk_size=20)[:] = 1
    create_array(session, "inline", (4,), chunk_size=5)[5:] = 7
    create_array(session, "scalar", ())[()] = 3
    session.commit("chunks")
    read = repo.repo.readonly_session("main")
    expected = [chunks(read, path) for path in ("/native", "/inline", "/scalar")]
    found = [decoded_chunks(only_array(data)) for _, data in repo.manifest_files()]
    assert {len(one) for one in found} == {6, 3, 1}
    for one in expected:
        assert one in found
    assert {ref[0] for one in expected for ref in one.values()} == {NATIVE, INLINE}
    assert () in found[0] or () in found[1] or () in found[2]


@pytest.mark.parametrize("n", [7, 2500])
def test_official_virtual_chunks(tmp_path: Path, n: int) -> None:
    """2500 chunks are enough for compressed locations."""
    repo = OfficialRepo(tmp_path)
    session = repo.writable_session()
    create_array(session, "a", (n,))
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    specs, expected = [], {}
    for row in range(n):
        checksum = [None, f"etag-{row % 5}", moment][row % 3]
        location = f"s3://bucket/path/file-{row // 40}.nc"
        specs.append(
            official.VirtualChunkSpec(
                [row],
                location,
                row * 2**33,
                row + 1,
                etag_checksum=checksum if isinstance(checksum, str) else None,
                last_updated_at_checksum=checksum if isinstance(checksum, datetime) else None,
            )
        )
        expected[(row,)] = ChunkRef(
            kind=VIRTUAL,
            location=location,
            offset=row * 2**33,
            length=row + 1,
            etag=checksum if isinstance(checksum, str) else None,
            last_modified=int(moment.timestamp()) if row % 3 == 2 else 0,
        )
    assert session.store.set_virtual_refs("/a", specs, validate_containers=False) is None
    session.commit("references")
    ((_, data),) = repo.manifest_files()
    assert uses_frames(data) == (n > 1000)
    refs = only_array(data)
    assert as_dict(refs) == expected
    assert len(refs.locations) == (n + 39) // 40
    assert len(refs.etags) == min(5, n // 3)


def test_official_reads_our_manifests(tmp_path: Path) -> None:
    """A hundred thousand references of all kinds, with shared strings; then compressed locations."""
    n = 100_000
    edge = int(np.ceil(n ** (1 / 3))) + 1
    repo = OfficialRepo(tmp_path)
    session = repo.writable_session()
    create_array(session, "a", (edge,) * 3)[0, 0, 0] = 1
    session.commit("one chunk, whose manifest is replaced")
    ((manifest_id, data),) = repo.manifest_files()
    ((node_id, _),) = decode_manifest(data).arrays
    refs = many_refs(n)
    expected = decoded_chunks(refs)
    for compression in (None, LocationCompression()):
        ours = encode_manifest(Manifest(manifest_id, ((node_id, refs),)), location_compression=compression)
        assert uses_frames(ours) == (compression is not None)
        assert chunks(repo.replace_manifest(manifest_id, ours), "/a") == expected


def test_official_reads_other_ranks(tmp_path: Path) -> None:
    for ndim in (0, 1, 2, 5):
        repo = OfficialRepo(tmp_path / str(ndim))
        session = repo.writable_session()
        array = create_array(session, "a", (3,) * ndim)
        array[...] = 1
        session.commit("chunks")
        ((manifest_id, data),) = repo.manifest_files()
        written = decode_manifest(data)
        session = repo.replace_manifest(manifest_id, encode_manifest(written))
        assert chunks(session, "/a") == decoded_chunks(written.arrays[0][1])
        assert len(chunks(session, "/a")) == 3**ndim


def test_official_reads_packed_native_chunks(tmp_path: Path) -> None:
    """Several references point into one chunk object."""
    repo = OfficialRepo(tmp_path, inline_threshold=0)
    session = repo.writable_session()
    array = create_array(session, "a", (1,), chunk_size=60)
    array[:] = np.arange(60)
    create_array(session, "b", (4,), chunk_size=10)[:] = 1
    session.commit("chunks")
    by_length = {int(only_array(data).lengths[0]): (mid, data) for mid, data in repo.manifest_files()}
    pack = only_array(by_length[60][1])
    manifest_id, data = by_length[10]
    ((node_id, _),) = decode_manifest(data).arrays
    packed = ChunkRefs.build(
        np.arange(4)[:, None],
        NATIVE,
        chunk_ids=np.tile(pack.chunk_ids, (4, 1)),
        offsets=np.arange(4) * 10 + 5,
        lengths=10,
    )
    session = repo.replace_manifest(manifest_id, encode_manifest(Manifest(manifest_id, ((node_id, packed),))))
    found = zarr.open_group(session.store, mode="r")["b"]
    np.testing.assert_array_equal(found[:], np.arange(5, 45))


def test_our_files_are_smaller_than_official_ones(tmp_path: Path) -> None:
    n_files, per_file = 40, 1000
    repo = OfficialRepo(tmp_path)
    session = repo.writable_session()
    create_array(session, "a", (n_files, per_file))
    lengths = np.random.default_rng(0).integers(20_000, 60_000, (n_files, per_file)).astype(np.uint64)
    offsets = np.cumsum(lengths, axis=1) - lengths
    texts = [f"s3://bucket/model/2024/output-{file:05d}.nc" for file in range(n_files) for _ in range(per_file)]
    session.store.set_virtual_refs_arr(
        "/a", (n_files, per_file), texts, offsets.ravel(), lengths.ravel(), validate_containers=False
    )
    session.commit("references")
    ((_, data),) = repo.manifest_files()
    ours = encode_manifest(decode_manifest(data))
    assert as_dict(only_array(ours)) == as_dict(only_array(data))
    assert len(ours) < 0.75 * len(data)


def test_decoding_keeps_nothing_of_a_file_of_virtual_references() -> None:
    refs = refs_of(file_of(dataclasses.replace(many_refs(3000), kinds=np.full(3000, NATIVE, np.uint8))))
    assert len(refs.inline_data) == 0
    assert len(refs.locations) == 0
    assert refs.location_codes.strides == (0,)
