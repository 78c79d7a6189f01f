"""Arrays that zarr wrote as v2 have the same values as v3, with unchanged chunks. zarr's v2 reader is the oracle."""

from __future__ import annotations

import base64
import json
import warnings
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from icechunk_engine.errors import InvalidInputError
from icechunk_engine.importers.kerchunk.plan import plan_import
from icechunk_engine.importers.kerchunk.reference_set import read_reference_set

Stored = dict[str, Buffer]

NUMBERS = [
    "|b1", "|i1", "|u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8",
    "<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c8", "<c16", ">c16",
]  # fmt: skip
OTHERS = ["<M8[ns]", ">M8[s]", "<M8[D]", "<m8[us]", ">m8[10ms]", "|S5", "|S1", "<U4", ">U2", "|V6"]
RECORDS: list[Any] = [
    [("a", "<i4"), ("b", "<f8")],
    [("a", ">i2"), ("b", ">f4"), ("c", "|S3")],
    [("flag", "|b1"), ("name", "|S4")],
    [("outer", [("x", "<f4"), ("y", "<u2")]), ("t", "<i8")],
]

BYTE_FILTERS = [
    numcodecs.Zlib(level=1),
    numcodecs.GZip(level=9),
    numcodecs.Zstd(level=3),
    numcodecs.Zstd(level=0, checksum=True),
    numcodecs.Zstd(level=-2),
    numcodecs.LZ4(),
    numcodecs.BZ2(level=1),
    numcodecs.LZMA(preset=0),
    numcodecs.CRC32(),
    numcodecs.CRC32C(),
    numcodecs.CRC32C(location="start"),
    numcodecs.Adler32(),
    numcodecs.Fletcher32(),
    numcodecs.JenkinsLookup3(),
    *(numcodecs.Blosc(cname=name, shuffle=shuffle) for name in ("lz4", "lz4hc", "blosclz", "zlib", "zstd")
      for shuffle in (0, 1, 2, -1)),
]  # fmt: skip


def reference_set_of(stored: Stored) -> dict[str, Any]:
    """Return a v2 store as a reference set with inline chunks."""

    def value(key: str, content: bytes) -> str:
        if key.rpartition("/")[2].startswith(".z"):
            return content.decode()
        return "base64:" + base64.b64encode(content).decode()

    return {"version": 1, "refs": {key: value(key, content.to_bytes()) for key, content in stored.items()}}


def imported(refs: dict[str, Any], path: str) -> zarr.Array[Any]:
    """Return the only array of a set. zarr reads it from the planned document and chunks."""
    (planned,) = plan_import(read_reference_set(refs)).arrays
    stored: dict[str, Buffer] = {f"{path}/zarr.json": cpu.Buffer.from_bytes(planned.content)}
    for row, index in enumerate(planned.refs.indices.tolist()):
        chunk = planned.refs.row(row).inline
        assert chunk is not None
        stored["/".join([path, "c", *map(str, index)])] = cpu.Buffer.from_bytes(chunk)
    return zarr.open_array(MemoryStore(stored), path=path, mode="r", zarr_format=3)


def assert_same(actual: zarr.Array[Any], expected: zarr.Array[Any]) -> None:
    a, b = np.asarray(actual[...]), np.asarray(expected[...])
    assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
    assert a.shape == b.shape
    assert_equal_values(a, b)


def assert_equal_values(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    if a.dtype.names is not None:
        for name in a.dtype.names:
            assert_equal_values(a[name], b[name])
    elif a.dtype.kind == "V":
        assert a.tobytes() == b.tobytes()
    else:
        np.testing.assert_array_equal(a, b)


def write_v2(
    data: np.ndarray[Any, Any], chunks: tuple[int, ...], holes: list[bool], **options: Any
) -> tuple[Stored, zarr.Array[Any]]:
    """An array with some chunks missing."""
    stored: Stored = {}
    store = MemoryStore(stored)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = zarr.create_array(
            store, name="x", shape=data.shape, chunks=chunks, dtype=data.dtype, zarr_format=2, **options
        )
        array[...] = data
    make_holes(stored, holes)
    return stored, zarr.open_array(store, path="x", mode="r", zarr_format=2)


def make_holes(stored: Stored, holes: list[bool]) -> None:
    keys = [key for key in sorted(stored) if not key.rpartition("/")[2].startswith(".")]
    for hole, key in zip(holes, keys, strict=False):
        if hole:
            del stored[key]


@st.composite
def layouts(draw: st.DrawFn, min_dims: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and chunk shape. Chunks can be longer than the array."""
    shape = draw(st.lists(st.integers(1, 7), min_size=min_dims, max_size=3))
    return tuple(shape), tuple(draw(st.integers(1, side + 1)) for side in shape)


def values(dtype: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random bytes as values. All numbers can occur, even NaN and NaT."""
    dtype = np.dtype(dtype)
    if dtype.names is not None:
        records = np.zeros(shape, dtype)
        for name in dtype.names:
            records[name] = values(dtype[name], shape, rng)
        return records
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "U":
        texts = rng.choice(["", "a", "é漢", "\U0001f9ca", "abcd"], shape)
        return np.asarray(texts).astype(dtype)
    raw = rng.integers(0 if dtype.kind == "V" else 1, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
holes_of = st.lists(st.booleans(), max_size=8)


@settings(max_examples=settings.default.max_examples // 3)
@given(
    rng=seeds,
    layout=layouts(),
    order=st.sampled_from("CF"),
    holes=holes_of,
    has_fill=st.booleans(),
    compressor=st.sampled_from([None, numcodecs.Zlib(), numcodecs.Blosc()]),
)
@pytest.mark.parametrize("dtype", [*NUMBERS, *OTHERS, *RECORDS], ids=str)
def test_data_types_orders_and_fill_values(
    dtype: Any, rng: Any, layout: Any, order: str, holes: list[bool], has_fill: bool, compressor: Any
) -> None:
    shape, chunks = layout
    fill = values(dtype, (), rng)[()] if has_fill else None
    stored, v2 = write_v2(
        values(dtype, shape, rng), chunks, holes, order=order, fill_value=fill, filters=None, compressors=compressor
    )
    v3 = imported(reference_set_of(stored), "x")
    assert v3.metadata.data_type.to_native_dtype().newbyteorder("=") == np.dtype(dtype).newbyteorder("=")
    assert_same(v3, v2)


@given(
    rng=seeds,
    layout=layouts(),
    order=st.sampled_from("CF"),
    holes=holes_of,
    dtype=st.sampled_from(NUMBERS + OTHERS),
    shuffle=st.booleans(),
    filters=st.lists(st.sampled_from(BYTE_FILTERS), max_size=2),
    compressor=st.sampled_from([None, *BYTE_FILTERS]),
)
def test_chains_of_byte_codecs(
    rng: Any,
    layout: Any,
    order: str,
    holes: list[bool],
    dtype: str,
    shuffle: bool,
    filters: list[Any],
    compressor: Any,
) -> None:
    shape, chunks = layout
    if shuffle:
        filters = [numcodecs.Shuffle(np.dtype(dtype).itemsize), *filters]
    stored, v2 = write_v2(
        values(dtype, shape, rng), chunks, holes, order=order, filters=filters, compressors=compressor
    )
    assert_same(imported(reference_set_of(stored), "x"), v2)


def array_filters(dtype: str, kind: str) -> st.SearchStrategy[Any]:
    if kind in "iu":
        width = np.dtype(dtype).itemsize
        types = [
            f"{order}{letter}{size}" for order in "<>" for letter in "iu" for size in (1, 2, 4, 8) if size >= width
        ]
        return st.one_of(
            st.sampled_from(types).map(lambda astype: numcodecs.Delta(dtype, astype=astype)),
            st.sampled_from(["<i8", ">i8"]).map(lambda astype: numcodecs.AsType(astype, decode_dtype=dtype)),
        )
    return st.one_of(
        st.just(numcodecs.Delta(dtype)),
        st.sampled_from(["<f8", ">f8", "<f4"]).map(lambda astype: numcodecs.AsType(astype, decode_dtype=dtype)),
        st.sampled_from(["<i4", ">i4", ">i2", "<i2", "|i1", dtype]).map(
            lambda astype: numcodecs.FixedScaleOffset(offset=1, scale=4, dtype=dtype, astype=astype)
        ),
        st.just(numcodecs.Quantize(digits=1, dtype=dtype)),
    )


FILTERED = ["<i2", ">i2", "<u4", ">i8", "<f4", ">f4", "<f8", ">f8"]


@given(
    rng=seeds,
    layout=layouts(min_dims=1),
    order=st.sampled_from("CF"),
    holes=holes_of,
    first=st.sampled_from(FILTERED).flatmap(
        lambda dtype: st.tuples(st.just(dtype), array_filters(dtype, np.dtype(dtype).kind))
    ),
    shuffle=st.booleans(),
    compressor=st.sampled_from([None, numcodecs.Zlib(), numcodecs.Zstd(), numcodecs.Blosc()]),
    bare=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numcodecs' Delta, both ways
def test_array_filters(
    rng: Any, layout: Any, order: str, holes: list[bool], first: Any, shuffle: bool, compressor: Any, bare: bool
) -> None:
    """``bare`` omits the stored type if it equals the type of the array, like hand-written metadata."""
    shape, chunks = layout
    dtype, codec = first
    filters = [codec, *([numcodecs.Shuffle(1)] if shuffle else [])]
    data = rng.integers(0, 21, shape).astype(dtype)
    stored, v2 = write_v2(data, chunks, holes, order=order, filters=filters, compressors=compressor, fill_value=0)
    refs = reference_set_of(stored)
    if bare:
        document = json.loads(refs["refs"]["x/.zarray"])
        if document["filters"][0].get("astype") == document["filters"][0].get("dtype"):
            document["filters"][0].pop("astype", None)
        refs["refs"]["x/.zarray"] = json.dumps(document)
    assert_same(imported(refs, "x"), v2)


@given(
    rng=seeds,
    layout=layouts(min_dims=1),
    first=st.sampled_from(["<i4", ">i4", ">i2"]),
    second=st.sampled_from([None, "<i8", ">i8"]),
)
def test_two_array_filters(rng: Any, layout: Any, first: str, second: str | None) -> None:
    shape, chunks = layout
    filters = [
        numcodecs.FixedScaleOffset(offset=0, scale=2, dtype="<f8", astype=first),
        numcodecs.Delta(first, astype=second or first),
    ]
    data = rng.integers(0, 101, shape).astype("<f8")
    stored, v2 = write_v2(data, chunks, [], filters=filters, compressors=numcodecs.Zlib(), fill_value=0)
    assert_same(imported(reference_set_of(stored), "x"), v2)


@given(
    rng=seeds,
    layout=layouts(min_dims=1),
    order=st.sampled_from("CF"),
    compressor=st.sampled_from([None, numcodecs.Zlib()]),
)
@pytest.mark.parametrize(
    ("dtype", "codec"),
    [("|b1", numcodecs.PackBits()), ("<f4", numcodecs.BitRound(5)), ("<f8", numcodecs.BitRound(9))],
    ids=["packbits", "bitround-f4", "bitround-f8"],
)
def test_packbits_and_bitround(dtype: str, codec: Any, rng: Any, layout: Any, order: str, compressor: Any) -> None:
    shape, chunks = layout
    data = rng.integers(0, 2, shape).astype(dtype)
    stored, v2 = write_v2(data, chunks, [], order=order, filters=[codec], compressors=compressor, fill_value=0)
    assert_same(imported(reference_set_of(stored), "x"), v2)


@given(
    layout=layouts(min_dims=1),
    order=st.sampled_from("CF"),
    rng=seeds,
    compressor=st.sampled_from([None, numcodecs.Zlib(), numcodecs.Zstd(), numcodecs.Blosc()]),
    fill=st.sampled_from(["", "nothing", None]),
    holes=holes_of,
)
def test_variable_length_text(
    layout: Any, order: Any, rng: Any, compressor: Any, fill: Any, holes: list[bool]
) -> None:
    shape, chunks = layout
    texts = rng.choice(np.array(["", "a", "é漢", "three words here"], object), shape)
    stored: Stored = {}
    store = MemoryStore(stored)
    array = zarr.create_array(
        store, name="x", shape=shape, chunks=chunks, dtype=str, zarr_format=2, order=order, fill_value=fill,
        filters=[numcodecs.VLenUTF8()], compressors=compressor,
    )  # fmt: skip
    array[...] = texts
    make_holes(stored, holes)
    v2 = zarr.open_array(store, path="x", mode="r", zarr_format=2)
    np.testing.assert_array_equal(imported(reference_set_of(stored), "x")[...], v2[...])


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("astype", ["<f4", ">f4", "<f8", ">f8"])
def test_quantised_values_of_either_byte_order(dtype: str, astype: str) -> None:
    """v3 readers always use native byte order for this filter."""
    if dtype[1:] != astype[1:]:
        with pytest.raises(InvalidInputError, match="quantize"):
            imported(quantised(dtype, astype), "x")
        return
    np.testing.assert_array_equal(imported(quantised(dtype, astype), "x")[...], [0.5, 17.0, -3.25])


def quantised(dtype: str, astype: str) -> dict[str, Any]:
    data = np.array([0.5, 17.0, -3.25], astype)
    document = {
        "zarr_format": 2,
        "shape": [3],
        "chunks": [3],
        "dtype": dtype,
        "order": "C",
        "fill_value": 0,
        "compressor": None,
        "filters": [{"id": "quantize", "digits": 3, "dtype": dtype, "astype": astype}],
    }
    chunk = "base64:" + base64.b64encode(data.tobytes()).decode()
    return {"version": 1, "refs": {".zgroup": "{}", "x/.zarray": json.dumps(document), "x/0": chunk}}
