"""The envelope of files: writing, reading, and every kind of damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine
from icechunk_engine.errors import ErrorKind, FormatError
from icechunk_engine.format import header, layout
from icechunk_engine.format.decompression import set_decompression_limit
from icechunk_engine.format.header import HEADER_SIZE, FileType, pack, pack_blocks, unpack, writer_name
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, ManifestId
from tests.engine.format.official_repo import OfficialRepo

BODY = b"a flatbuffer, " * 100


def refused(data: bytes, kind: ErrorKind, expected: FileType = FileType.MANIFEST) -> str:
    with pytest.raises(FormatError) as caught:
        unpack(data, expected, "manifests/X")
    assert caught.value.kind == kind
    assert "manifests/X" in str(caught.value)
    return str(caught.value)


@given(st.sampled_from(FileType), st.sampled_from([1, 2]), st.binary(min_size=1), st.sampled_from([-1, 1, 3, 19]))
def test_round_trip(file_type: FileType, spec_version: int, body: bytes, level: int) -> None:
    unpacked = unpack(pack(file_type, spec_version, body, level), file_type)
    assert unpacked.body.tobytes() == body
    assert unpacked.spec_version == spec_version
    assert unpacked.written_by == header.WRITER_NAME


def test_layout_of_the_header() -> None:
    data = pack(FileType.TRANSACTION_LOG, 2, BODY)
    assert data[:12] == b"ICE\xf0\x9f\xa7\x8aCHUNK"
    assert data[12:36] == f"xi-{icechunk_engine.__version__}".encode().ljust(24)
    assert data[36:39] == bytes([2, 4, 1])
    frame = zstandard.get_frame_parameters(data[39:])
    assert (frame.content_size, frame.has_checksum, frame.dict_id) == (len(BODY), False, 0)


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.1.0", "xi-0.1.0"),
        ("1.2.0rc1", "xi-1.2.0rc1"),
        ("0.1.1.dev12+g0123abcd.d20261121", "xi-0.1.1.dev12"),
        ("2026.11.21.1234567890.dev1", "xi-2026.11.21.1234567890"),
    ],
)
def test_writer_name_fits_its_field(version: str, name: str) -> None:
    assert writer_name(version) == name
    assert len(name.encode()) <= 24


def test_pieces_make_the_same_body() -> None:
    body = np.random.default_rng(0).integers(0, 4, 20_000_000).astype(np.uint8)
    pieces = np.array_split(body, 17)
    data = pack_blocks(FileType.MANIFEST, 2, pieces, len(body))
    np.testing.assert_array_equal(unpack(data, FileType.MANIFEST).body, body)


def test_other_writers_bodies() -> None:
    """Bodies without a content size, with a checksum, in two frames, or uncompressed can be read."""
    start = pack(FileType.MANIFEST, 2, BODY)[:HEADER_SIZE]
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    checked = zstandard.ZstdCompressor(write_checksum=True)
    for frames in (
        unsized.compress(BODY),
        checked.compress(BODY),
        unsized.compress(BODY[:500]) + unsized.compress(BODY[500:]),
    ):
        assert unpack(start + frames, FileType.MANIFEST).body.tobytes() == BODY
    assert unpack(start[:38] + b"\0" + BODY, FileType.MANIFEST).body.tobytes() == BODY
    padded_with_nul = start[:12] + b"other".ljust(24, b"\0") + start[36:] + unsized.compress(BODY)
    assert unpack(padded_with_nul, FileType.MANIFEST).written_by == "other"


@pytest.mark.parametrize("sized", [True, False])
def test_cut_off_anywhere(sized: bool) -> None:
    frame = zstandard.ZstdCompressor(write_content_size=sized).compress(BODY)
    data = pack(FileType.MANIFEST, 2, BODY)[:HEADER_SIZE] + frame
    for length in range(len(data)):
        refused(data[:length], ErrorKind.INVALID_FILE_FORMAT if length < HEADER_SIZE else ErrorKind.DESERIALIZATION)
    refused(data + b"more", ErrorKind.DESERIALIZATION)


def test_damaged_header_bytes() -> None:
    data = pack(FileType.MANIFEST, 2, BODY)

    def changed(place: int, value: int) -> bytes:
        return data[:place] + bytes([value]) + data[place + 1 :]

    assert "magic" in refused(changed(3, 0), ErrorKind.INVALID_FILE_FORMAT)
    assert "Upgrade" in refused(changed(36, 3), ErrorKind.UNSUPPORTED_SPEC_VERSION)
    refused(changed(36, 0), ErrorKind.UNSUPPORTED_SPEC_VERSION)
    assert "file type 1" in refused(changed(37, 1), ErrorKind.INVALID_FILE_FORMAT)
    assert "compression 2" in refused(changed(38, 2), ErrorKind.INVALID_FILE_FORMAT)
    refused(changed(39, 0), ErrorKind.DESERIALIZATION)


def test_sizes_that_no_file_can_have_are_refused() -> None:
    """A size beyond the limit of the format is reported as damage before anything is allocated."""
    start = pack(FileType.MANIFEST, 2, BODY)[:HEADER_SIZE]
    magic = (0xFD2FB528).to_bytes(4, "little")
    for size in (2**31, 2**35, 2**64 - 3):
        claims = magic + bytes([0b1110_0000]) + struct.pack("<Q", size) + bytes(9_000_000)
        assert str(2**31 - 1) in refused(start + claims, ErrorKind.DESERIALIZATION)


@pytest.mark.parametrize("sized", [True, False])
def test_small_files_that_stand_for_much_are_refused(sized: bool) -> None:
    start = pack(FileType.MANIFEST, 2, BODY)[:HEADER_SIZE]
    bomb = zstandard.ZstdCompressor(write_content_size=sized).compress(bytes(70_000_000))
    assert "set_decompression_limit" in refused(start + bomb, ErrorKind.DESERIALIZATION)
    set_decompression_limit(70_000_000)
    try:
        assert len(unpack(start + bomb, FileType.MANIFEST).body) == 70_000_000
    finally:
        set_decompression_limit(2**24)


def test_the_official_librarys_files(tmp_path: Path) -> None:
    repo = OfficialRepo(tmp_path)
    for key, file_type in {
        layout.REPO: FileType.REPO_INFO,
        layout.snapshot_key(INITIAL_SNAPSHOT_ID): FileType.SNAPSHOT,
        layout.transaction_log_key(INITIAL_SNAPSHOT_ID): FileType.TRANSACTION_LOG,
    }.items():
        unpacked = unpack(repo.read(key), file_type, key)
        assert unpacked.body[4:8].tobytes() == b"Ichk"
        assert unpacked.spec_version == 2
        assert unpacked.written_by.startswith("ic-")


def test_object_names() -> None:
    manifest_id = ManifestId(bytes(range(12)))
    assert layout.manifest_key(manifest_id) == "manifests/000G40R40M30E209185G"
    assert layout.snapshot_key(INITIAL_SNAPSHOT_ID) == "snapshots/1CECHNKREP0F1RSTCMT0"
    assert layout.backup_name(1_700_000_000_000, "R" * 20) == "repo.30803680000000." + "R" * 20
    assert layout.backup_name(32_503_679_999_999, "R" * 20, layout.CONFIG_YAML).startswith(
        "config.yaml.00000000000001."
    )
    assert layout.overwritten_key("repo.1.R") == "overwritten/repo.1.R"
    assert layout.branch_ref_key("main") == "refs/branch.main/ref.json"
    assert layout.deleted_tag_key("v1") == "refs/tag.v1/ref.json.deleted"
