"""FlexBuffers: we write the same bytes as the official library, and read every valid encoding."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.errors import ErrorKind, FormatError, InvalidInputError
from icechunk_engine.flatbuf import flexbuffers
from icechunk_engine.flatbuf.reader import Buffer
from icechunk_engine.format import header, schema
from icechunk_engine.format.header import FileType
from icechunk_engine.format.metadata import MetadataColumns

KNOWN = [
    (1, "01 08 01"),
    (-1, "ff 04 01"),
    (2.5, "00 00 20 40 0e 04"),
    ("me", "02 6d 65 00 03 14 01"),
    ({"is_root": True}, "69 73 5f 72 6f 6f 74 00 01 09 01 01 01 01 68 02 24 01"),
    ({"a": 2, "b": 1}, "61 00 62 00 02 05 04 02 01 02 02 01 08 08 04 24 01"),
    ([1, "a", None, True], "01 61 00 04 01 04 00 01 08 14 00 68 08 28 01"),
    ([1, 2, 3], "01 02 03 03 50 01"),
    ({}, "00 00 01 00 00 24 01"),
]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.integers(-300, 300), st.floats(allow_nan=False, allow_infinity=False)
)
leaves = st.one_of(st.none(), st.booleans(), numbers, text, st.sampled_from([255, 256, 70_000]).map("x".__mul__))
values = st.recursive(
    leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=6),
        st.dictionaries(keys, children, max_size=5),
        st.lists(st.integers(0, 2**20), max_size=6),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=6),
        st.lists(st.booleans(), max_size=6),
    ),
    max_leaves=30,
)


def same(one: Any, other: Any) -> bool:
    """Compare two values, and tell 1, 1.0 and True apart."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(("value", "encoded"), KNOWN)
def test_known_bytes(value: Any, encoded: str) -> None:
    assert flexbuffers.dumps(value).hex(" ") == encoded
    assert same(flexbuffers.loads(bytes.fromhex(encoded)), value)


@given(values)
def test_round_trip(value: Any) -> None:
    assert same(flexbuffers.loads(flexbuffers.dumps(value)), value)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> tuple[official.Repository, Path]:
    path = tmp_path_factory.mktemp("official")
    return official.Repository.create(official.local_filesystem_storage(str(path))), path


@given(batch=st.lists(values, min_size=20, max_size=40))
def test_same_bytes_as_official(judge: tuple[official.Repository, Path], batch: list[Any]) -> None:
    repo, path = judge
    metadata = {f"{i:04}": value for i, value in enumerate(batch)}
    snapshot_id = repo.writable_session("main").commit("values", metadata=metadata, allow_empty=True)
    body = header.unpack((path / "snapshots" / snapshot_id).read_bytes(), FileType.SNAPSHOT).body
    written = MetadataColumns.read(Buffer(body).root().vectors(schema.Snapshot.METADATA, 4))
    assert len(written.values) == len(batch)
    for value, raw in zip(batch, written.values.raws(), strict=True):
        assert flexbuffers.dumps(value) == raw
        assert same(flexbuffers.loads(raw), value)


# What other writers produce. Each child comes before its parent, offsets count backwards.
@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("01 00 00 00 00 00 00 00 0b 08", 1),  # wider than needed
        ("fe ff 05 02", -2),
        ("00 3e 0d 02", 1.5),  # half precision
        ("00 00 00 00 00 00 f8 3f 0f 08", 1.5),
        ("2a 01 18 01", 42),  # indirect int (type 6)
        ("2c 01 02 1d 01", 300),  # indirect uint of two bytes
        ("00 00 c0 3f 04 22 01", 1.5),  # indirect float of four bytes
        ("6b 00 02 10 01", "k"),  # a key as a value
        ("02 00 61 62 00 03 15 01", "ab"),  # string with a two byte length
        ("03 01 02 ff 03 64 01", b"\x01\x02\xff"),  # blob (type 25)
        ("02 00 ff ff 01 00 04 2d 01", [-1, 1]),  # typed vector of two byte ints
        ("03 01 00 02 03 90 01", [True, False, True]),
        ("ff 01 02 40 01", [-1, 1]),  # pair of ints (type 16)
        ("01 02 03 04 04 5c 01", [1, 2, 3, 4]),  # four uints (type 23)
        ("00 00 00 00 00 00 80 3f 00 00 00 40 0c 56 01", [0.0, 1.0, 2.0]),  # three floats (type 21)
        ("61 00 62 00 02 05 04 02 38 01", ["a", "b"]),  # vector of keys (type 14)
        ("01 61 00 01 62 00 02 06 04 02 3c 01", ["a", "b"]),  # deprecated vector of strings (type 15)
        # Map whose keys have two byte offsets and whose values have one byte.
        ("61 00 01 00 04 00 02 02 01 07 08 02 24 01", {"a": 7}),
    ],
)
def test_reads_other_encodings(encoded: str, value: Any) -> None:
    assert same(flexbuffers.loads(bytes.fromhex(encoded)), value)


def test_numpy_scalars_and_bytes() -> None:
    value = {"n": np.int16(-3), "f": np.float32(0.1), "b": np.bool_(True), "raw": b"\x01\x02", "t": (1, 2)}
    assert flexbuffers.loads(flexbuffers.dumps(value)) == {
        "n": -3,
        "f": float(np.float32(0.1)),
        "b": True,
        "raw": [1, 2],
        "t": [1, 2],
    }
    nan = flexbuffers.loads(flexbuffers.dumps(float("nan")))
    assert isinstance(nan, float)
    assert math.isnan(nan)


@pytest.mark.parametrize(
    "value",
    [{1: 2}, {"a\0b": 1}, 2**64, -(2**63) - 1, "\ud800", {"\ud800": 1}, {1, 2}, ..., [[...]]],
    ids=str,
)
def test_refuses(value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        flexbuffers.dumps(value)
    assert caught.value.kind == ErrorKind.BAD_METADATA


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_bounded_both_ways() -> None:
    deepest = nested(flexbuffers.MAX_DEPTH)
    encoded = flexbuffers.dumps(deepest)
    assert flexbuffers.loads(encoded) == deepest
    with pytest.raises(InvalidInputError, match="nested"):
        flexbuffers.dumps(nested(flexbuffers.MAX_DEPTH + 1))
    # One more level around the deepest value, written by hand: a vector of one vector.
    deeper = encoded[:-3] + bytes([1, encoded[-3] + 1, 0x28, 2, 0x28, 1])
    with pytest.raises(FormatError, match="nested"):
        flexbuffers.loads(deeper)


def test_vector_that_contains_itself() -> None:
    with pytest.raises(FormatError):
        flexbuffers.loads(bytes.fromhex("01 00 28 02 28 01"))


def test_shared_parts_cannot_make_a_huge_value() -> None:
    """Each level contains the level below 200 times: a few kilobytes stand for 200**6 values."""
    out = bytearray(b"\0")
    start = 1  # of the innermost vector, which is empty
    for _ in range(6):
        out += bytes(-len(out) % 2)
        place = len(out) + 2
        out += (200).to_bytes(2, "little")
        for i in range(200):
            out += (place + 2 * i - start).to_bytes(2, "little")
        out += bytes([10 << 2 | (0 if start == 1 else 1)] * 200)
        start = place
    out += bytes(len(out) % 2)
    data = bytes(out) + (len(out) - start).to_bytes(2, "little") + bytes([10 << 2 | 1, 2])
    with pytest.raises(FormatError, match="more data than it holds"):
        flexbuffers.loads(data)


@given(values, st.data())
def test_damage_is_noticed_or_harmless(value: Any, data: st.DataObject) -> None:
    encoded = flexbuffers.dumps(value)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    changed = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    for damaged in (encoded[:cut], encoded[cut:], bytes(changed)):
        with suppress(FormatError):
            flexbuffers.loads(damaged)


@given(st.binary(max_size=40))
def test_random_bytes(data: bytes) -> None:
    with suppress(FormatError):
        flexbuffers.loads(data)
