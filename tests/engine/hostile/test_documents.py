"""Hostile documents: configurations and metadata that expand to huge values, or are nested too deeply."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.buffer
from hypothesis import given
from hypothesis import strategies as st

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository, RepositoryConfig
from icechunk_engine.columns.tables import BytesTable
from icechunk_engine.config.yaml_form import MAX_DEPTH, from_yaml, to_yaml
from icechunk_engine.flatbuf import flexbuffers
from icechunk_engine.format import header, layout, message_pack
from icechunk_engine.format.metadata import MetadataColumns
from icechunk_engine.format.snapshot import decode_snapshot
from tests.bounded import run_bounded
from tests.engine.config.test_config import CONFIGS
from tests.engine.format.damage import body_of

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))

HOSTILE_YAML = {
    "aliases": LAUGHS + "manifest: *a12\n",
    "aliases as keys": LAUGHS + "previous_file: {? *a12 : 1}\n",
    "merged maps": "".join(
        f"m{i + 1}: &m{i + 1} {{!!merge <<: [{', '.join([f'*m{i}'] * 9)}], k{i}: 1}}\n" for i in range(12)
    ).replace("*m0", "{x: 1}"),
    "an alias of itself": "manifest: &a\n  preload: *a\n",
    "an alias of an outer list": "previous_file: &a [[*a]]\n",
    "a redefined anchor": "x: &a 1\ny: &a [*a, *a]\n",
    "nested lists": "[" * 100_000,
    "nested maps": "manifest: " + "{a: " * 50_000,
    "nested blocks": "\n".join(" " * i + "a:" for i in range(1000)),
    "nested dashes": "- " * 5000 + "a",
    "nested tags": "manifest: {preload: {preload_if: " + "!or [" * 5000,
    "many values": "previous_file: [" + "1," * 400_000 + "]",
    "long": "previous_file: " + "x" * 2_000_000,
    "a long number": "inline_chunk_threshold_bytes: " + "9" * 500_000,
    "no UTF-8": "previous_file: \ud800",
    "a number as key": "1: 2",
    "two documents": "--- {}\n--- {}\n",
    "a directive": "%YAML 9.9\n--- {}\n",
    "a python object": "previous_file: !!python/object/apply:os.system ['true']",
    "unhashable": "{? {a: b} : c}",
}


def read_config(text: str) -> str:
    try:
        RepositoryConfig.from_dict(from_yaml(text.encode("utf-8", "surrogatepass")))
    except ic.FormatError as error:
        assert error.kind == ErrorKind.CONFIG_DESERIALIZATION  # noqa: PT017
        return str(error)[:10_000]
    return "read"


def read_configs() -> dict[str, str]:
    return {name: read_config(text) for name, text in HOSTILE_YAML.items()}


def test_hostile_yaml() -> None:
    ends = run_bounded(read_configs)
    harmless = {"a number as key"}  # unknown entries are ignored
    assert {name for name, end in ends.items() if end == "read"} == harmless
    for name in ("aliases", "merged maps"):
        assert "expands to more than" in ends[name]
    for name in ("nested lists", "nested maps", "nested blocks", "nested dashes", "nested tags"):
        assert f"more than {MAX_DEPTH} levels" in ends[name]


def open_repository(storage: ic.Storage) -> None:
    Repository.open(storage)


def test_a_repository_with_a_hostile_config_yaml(tmp_path: Path) -> None:
    storage = ic.local_filesystem_storage(tmp_path)
    Repository.create(storage, spec_version=1)
    storage.put(layout.CONFIG_YAML, HOSTILE_YAML["aliases"].encode())
    with pytest.raises(ic.FormatError, match=r"config\.yaml"):
        run_bounded(open_repository, storage)


def test_modest_aliases_are_read() -> None:
    text = (
        "previous_file: &name 'a'\n"
        "virtual_chunk_containers:\n"
        "  s3://a/: &c {url_prefix: s3://a/, store: &s !gcs {}, name: *name}\n"
        "  s3://b/: {url_prefix: s3://b/, store: *s}\n"
    )
    plain: Any = from_yaml(text.encode())
    assert plain["virtual_chunk_containers"]["s3://a/"]["name"] == "a"
    assert plain["virtual_chunk_containers"]["s3://b/"]["store"] == {"gcs": {}}


def places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each map or list of a document with each of its keys."""
    for key, value in list(plain.items() if isinstance(plain, dict) else enumerate(plain)):
        yield plain, key
        if isinstance(value, dict | list):
            yield from places(value)


HOSTILE_VALUES = st.sampled_from(
    [None, True, -1, 0, 2**16, 2**32, 2**64, -(2**63), 1.5, float("nan"), float("inf"), "", "x", "\0", [], {}]
    + [[[]], {"a": {}}, {"or": [{"or": []}]}, {"num_refs": {"from": {"Included": -1}}}, b"bytes", {"s3": None}]
)


@given(CONFIGS, st.data())
def test_a_configuration_with_any_value_anywhere(config: RepositoryConfig, data: st.DataObject) -> None:
    plain = config.to_dict()
    assert isinstance(plain, dict)
    owner, key = data.draw(st.sampled_from(list(places(plain))))
    owner[key] = data.draw(HOSTILE_VALUES)
    try:
        read = RepositoryConfig.from_dict(plain)
    except ic.FormatError as error:
        assert error.kind == ErrorKind.CONFIG_DESERIALIZATION  # noqa: PT017
    else:
        read.to_dict()
        repr(read)


@given(CONFIGS, st.data())
def test_a_config_yaml_with_changed_bytes(config: RepositoryConfig, data: st.DataObject) -> None:
    text = bytearray(to_yaml(config.to_dict()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"&a ", b"*a", b"!x ", b"? ", b"- ", b"[", b"<<: ", b"!!set "])
        )
    try:
        RepositoryConfig.from_dict(from_yaml(bytes(text)))
    except ic.FormatError as error:
        assert error.kind == ErrorKind.CONFIG_DESERIALIZATION  # noqa: PT017


# --- metadata ----------------------------------------------------------------------------------------------------

DEEP_MESSAGE_PACK = {"lists": b"\x91" * 10**5 + b"\x90", "maps": b"\x81\xa1a" * 10**5 + b"\xc0"}
WIDE_MESSAGE_PACK = {
    "list": b"\xdd\xff\xff\xff\xff",
    "map": b"\xdf\xff\xff\xff\xff",
    "text": b"\xdb\xff\xff\xff\xff",
    "keys that are maps": b"\x81\x80\x80",
}


def load_message_packs() -> list[str]:
    ends = []
    for raw in [*DEEP_MESSAGE_PACK.values(), *WIDE_MESSAGE_PACK.values()]:
        with pytest.raises(ic.FormatError) as caught:
            message_pack.loads(raw)
        ends.append(str(caught.value))
    return ends


def test_hostile_message_pack() -> None:
    assert all("damaged" in end for end in run_bounded(load_message_packs, megabytes=100))


def many_empty_maps() -> list[str]:
    """Store them in both spec versions, in one value and in several values of a list."""
    n = 300_000
    packed = b"\xdd" + n.to_bytes(4) + b"\x80" * n
    ends = []
    for spec_version, value in ((1, packed), (2, flexbuffers.dumps([0] * n))):
        values = BytesTable.of([value] * 10)
        names = BytesTable.of([str(i) for i in range(10)])
        lists = MetadataColumns(np.array([0, 3, 10]), names, values)
        assert len(lists.decode(0, spec_version)) == 3
        with pytest.raises(ic.FormatError) as caught:
            lists.decode(1, spec_version)
        ends.append(str(caught.value))
    with pytest.raises(ic.FormatError):
        message_pack.loads(b"\xdd" + (2**24).to_bytes(4) + b"\x80" * 2**24)
    return ends


def test_values_take_more_memory_than_bytes() -> None:
    assert all("1048576 values" in end for end in run_bounded(many_empty_maps, megabytes=200))


def test_what_could_not_be_read_is_not_written() -> None:
    repo = Repository.create(ic.in_memory_storage())
    itself: list[Any] = []
    itself.append(itself)
    for value in ([0] * 2**20, {"a": [[0] * 1000] * 1100}, bytes(2**20), itself):
        with pytest.raises(ic.InvalidInputError) as caught:
            repo.set_metadata({"b": 1, "a": value})
        assert caught.value.kind == ErrorKind.BAD_METADATA
    repo.set_metadata({"a": [0] * (2**20 - 2)})
    assert len(Repository.open(repo.storage).metadata["a"]) == 2**20 - 2


# --- zarr.json ---------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    attributes = b'{"a":' * depth + b"1" + b"}" * depth
    return b'{"zarr_format": 3, "node_type": "group", "attributes": ' + attributes + b"}"


def test_deep_documents_are_refused_when_written() -> None:
    store = Repository.create(ic.in_memory_storage()).writable_session("main").store
    for depth in (500, 100_000):
        with pytest.raises(ic.InvalidInputError, match="500 levels"):
            store.set_sync("zarr.json", zarr.buffer.default_buffer_prototype().buffer.from_bytes(nested(depth)))
    zarr.create_group(store, attributes={"a": json.loads("[" * 400 + "]" * 400), "b": "[{" * 1000})


def test_deep_documents_of_others_are_named(tmp_path: Path) -> None:
    """The error names the document, and everything else stays readable."""
    repo = Repository.create(ic.local_filesystem_storage(tmp_path))
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    root.create_array("a", shape=(2,), chunks=(2,), dtype="i4")[:] = 1
    root.create_group("deep", attributes={"a": "x" * 30_000})
    tip = session.commit("one")
    file = tmp_path / "snapshots" / tip
    body = body_of(file.read_bytes(), header.FileType.SNAPSHOT)
    (document,) = (raw for raw in decode_snapshot(file.read_bytes()).nodes.user_data.raws() if b"xxxx" in raw)
    deep = nested(5000).ljust(len(document))
    assert len(deep) == len(document)
    file.write_bytes(header.pack(header.FileType.SNAPSHOT, 2, body.replace(document, deep)))

    def read(place: str) -> object:
        elsewhere = ic.in_memory_storage()
        for found in ic.local_filesystem_storage(tmp_path).list():
            elsewhere.put(found.key, ic.local_filesystem_storage(tmp_path).get(found.key))
        return zarr.open(Repository.open(elsewhere).readonly_session("main").store, path=place, mode="r")

    with pytest.raises(ic.FormatError, match=r"zarr\.json of /deep"):
        read("deep")
    array = read("a")
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(array[:], 1)
