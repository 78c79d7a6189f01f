"""Chunk grids and shapes from zarr.json, compared with official and with zarr."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import icechunk as official
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.buffer import cpu

from icechunk_engine.errors import ErrorKind, InvalidInputError
from icechunk_engine.format.zarr_metadata import ArrayShape, parse_node_metadata, regular_chunk_lengths


def document(**changes: Any) -> dict[str, Any]:
    base = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [10, 6],
        "data_type": "int8",
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "chunk_grid": regular(3, 2),
    }
    return base | changes


def regular(*edges: Any) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(edges)}}


def rectilinear(*edges: Any) -> dict[str, Any]:
    return {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": list(edges)}}


def encoded(**changes: Any) -> bytes:
    return json.dumps(document(**changes)).encode()


def shape_of(**changes: Any) -> ArrayShape:
    kind, shape = parse_node_metadata(encoded(**changes))
    assert kind == "array"
    assert shape is not None
    return shape


def official_shape(data: bytes) -> ArrayShape:
    """Return what official stores in the snapshot for this document."""
    repo = official.Repository.create(official.in_memory_storage())
    session = repo.writable_session("main")
    asyncio.run(session.store.set("a/zarr.json", cpu.Buffer.from_bytes(data)))
    (node,) = repo.inspect_snapshot(session.commit("x"))["nodes"]
    axes = node["shape"]
    names = tuple(axis.get("name") for axis in axes)
    return ArrayShape(
        lengths=tuple(axis["array_length"] for axis in axes),
        num_chunks=tuple(axis["num_chunks"] for axis in axes),
        dimension_names=names if any(names) else None,
    )


def test_group() -> None:
    assert parse_node_metadata(b'{"zarr_format":3,"node_type":"group","attributes":{"a":[1]}}') == ("group", None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dimension_names": ["x", "y"]},
        {"dimension_names": ["x", None]},
        {"dimension_names": ["", "y"]},
        {"chunk_grid": regular(0, 2)},
        {"chunk_grid": regular(30, 6)},
        {"shape": [], "chunk_grid": regular()},
        {"shape": [0, 5]},
        {"chunk_grid": rectilinear([3, 3, 4], [2, 2, 2])},
        {"chunk_grid": rectilinear([[3, 2], 4], [[2, 3]])},
        {"chunk_grid": rectilinear([[3, 0], 10], [6])},
        {"shape": [2**32 - 1, 1], "chunk_grid": regular(1, 1)},
    ],
)
def test_shape_equals_official(changes: dict[str, Any]) -> None:
    data = encoded(**changes)
    assert parse_node_metadata(data, for_write=True) == ("array", official_shape(data))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**33 - 2), st.integers(2, 2**33)), max_size=4))
def test_regular_grid_equals_official(axes: list[tuple[int, int]]) -> None:
    data = encoded(shape=[length for length, _ in axes], chunk_grid=regular(*[edge for _, edge in axes]))
    assert parse_node_metadata(data)[1] == official_shape(data)
    assert regular_chunk_lengths(data) == tuple(edge for _, edge in axes)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=6), st.booleans())
def test_rectilinear_runs_and_lists_are_one(runs: list[tuple[int, int]], shuffled_in_bare: bool) -> None:
    edges = [edge for edge, count in runs for _ in range(count)]
    length = sum(edges)
    listed = shape_of(shape=[length], chunk_grid=rectilinear(edges))
    mixed = [edge if count == 1 and shuffled_in_bare else [edge, count] for edge, count in runs]
    assert shape_of(shape=[length], chunk_grid=rectilinear(mixed)) == listed
    assert listed.num_chunks == (len(edges),)
    assert not listed.regular


def test_bare_rectilinear_edge_repeats_as_in_zarr() -> None:
    with zarr.config.set({"array.rectilinear_chunks": True}):
        chunks: Any = [[3, 3, 4], 4]
        array = zarr.create_array({}, shape=(10, 6), chunks=chunks, dtype="int8")
        data = json.dumps(array.metadata.to_dict()).encode()
    assert json.loads(data)["chunk_grid"]["configuration"]["chunk_shapes"][1] == 4
    kind, shape = parse_node_metadata(data, for_write=True)
    assert (kind, shape) == ("array", ArrayShape((10, 6), (3, 2)))
    assert array.cdata_shape == (3, 2)
    assert regular_chunk_lengths(data) is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "bad-metadata"),
        (b"{", "bad-metadata"),
        (b"[]", "bad-metadata"),
        (b"null", "bad-metadata"),
        (b"\xff", "bad-metadata"),
        (b"{}", "bad-metadata"),
        (b'{"node_type": "dataset"}', "bad-metadata"),
        (b'{"node_type": ["array"]}', "bad-metadata"),
        (b'{"node_type": "group"} x', "bad-metadata"),
        (b'{"node_type": "group", "attributes": {"x": NaN}}', "bad-metadata"),
        (b'{"node_type": "group", "attributes": {"x": [-Infinity]}}', "bad-metadata"),
        (b'{"node_type": "group", "attributes": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad-metadata"),
        (b"\xef\xbb\xbf" + encoded(), "bad-metadata"),
        (json.dumps(document()).encode("utf-16"), "bad-metadata"),
        (b'{"node_type": "array"}', "bad-metadata"),
        (encoded(shape=[-1, 2]), "bad-metadata"),
        (encoded(shape=[1.0, 2]), "bad-metadata"),
        (encoded(shape=[True, 2]), "bad-metadata"),
        (encoded(shape=[2**64, 2]), "bad-metadata"),
        (encoded(shape=None), "bad-metadata"),
        (encoded(chunk_grid=None), "bad-metadata"),
        (encoded(chunk_grid="regular"), "bad-metadata"),
        (encoded(chunk_grid={"name": "regular"}), "bad-metadata"),
        (encoded(chunk_grid={"name": "hexagonal", "configuration": {}}), "bad-metadata"),
        (encoded(chunk_grid=regular(3)), "bad-metadata"),
        (encoded(shape=[]), "bad-metadata"),
        (encoded(chunk_grid=rectilinear([10])), "bad-metadata"),
        (encoded(chunk_grid=rectilinear([10], [[2, 3, 4]])), "bad-metadata"),
        (encoded(chunk_grid=rectilinear([10], ["6"])), "bad-metadata"),
        (encoded(chunk_grid=rectilinear([10], None)), "bad-metadata"),
        (encoded(shape=[2**32, 1], chunk_grid=regular(1, 1)), "bad-metadata"),
        (encoded(dimension_names=["x"]), "bad-metadata"),
        (encoded(dimension_names=["x", "y", "z"]), "bad-metadata"),
        (encoded(dimension_names=["x", 3]), "bad-metadata"),
        (encoded(dimension_names="xy"), "bad-metadata"),
    ],
)
def test_refused(data: bytes, kind: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_node_metadata(data, path="/g/a")
    assert caught.value.kind == ErrorKind(kind)
    assert "/g/a" in caught.value.message


@pytest.mark.parametrize(
    "encoding",
    ["v2", {"name": "v2"}, {"name": "default", "configuration": {"separator": "."}}, {"name": "v2", "separator": "/"}],
)
def test_unreadable_key_encodings_are_refused_only_for_writing(encoding: Any) -> None:
    data = encoded(chunk_key_encoding=encoding)
    assert parse_node_metadata(data)[0] == "array"
    with pytest.raises(InvalidInputError, match='"separator": "/"'):
        parse_node_metadata(data, for_write=True)


@pytest.mark.parametrize(
    "encoding", ["default", {"name": "default"}, {"name": "default", "configuration": {"separator": "/"}}]
)
def test_default_key_encoding_is_accepted(encoding: Any) -> None:
    assert parse_node_metadata(encoded(chunk_key_encoding=encoding), for_write=True)[0] == "array"


def test_rectilinear_grid_must_cover_the_array_for_writing() -> None:
    data = encoded(chunk_grid=rectilinear([3, 3], [6]))
    assert parse_node_metadata(data)[0] == "array"
    with pytest.raises(InvalidInputError, match="cover 6 of 10"):
        parse_node_metadata(data, for_write=True)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5)
)
def test_never_another_error(value: Any) -> None:
    for changes in ({"shape": value}, {"chunk_grid": regular(value)}, {"chunk_grid": rectilinear(value, value)}):
        try:
            parse_node_metadata(encoded(**changes), for_write=True)
        except InvalidInputError:
            continue
