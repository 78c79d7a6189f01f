"""Setting virtual references one by one, as lists and as columns, and reading them back."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.buffer import default_buffer_prototype

from icechunk_engine.columns.chunk_refs import INLINE, NATIVE, VIRTUAL
from icechunk_engine.config import RepositoryConfig, VirtualChunkContainer, VirtualChunkSpec, local_filesystem_store
from icechunk_engine.errors import ErrorKind, IcechunkError, InvalidInputError, NodeNotFoundError, SessionStateError
from icechunk_engine.repository import Repository
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.storage import MemoryStorage
from icechunk_engine.store import IcechunkStore
from icechunk_engine.virtual.virtual_refs import refs_of_grid, whole_seconds
from tests.engine.zarr_store.support import GROUP, array_document, put

PREFIX = "file:///data/"
LOCATION = PREFIX + "x.nc"
OTHER = "s3://elsewhere/x.nc"


def u8(*values: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


@pytest.fixture
def session() -> Session:
    config = RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(PREFIX, local_filesystem_store("/data")))
    config.set_virtual_chunk_container(
        VirtualChunkContainer("file:///named/", local_filesystem_store("/named"), name="data")
    )
    session = Repository.create(MemoryStorage(), config).writable_session("main")
    workspace_of(session).set_metadata("/", GROUP)
    workspace_of(session).set_metadata("/a", array_document((4, 6)))
    workspace_of(session).set_metadata("/s", array_document(()))
    return session


@pytest.fixture
def store(session: Session) -> IcechunkStore:
    return session.store


def row(session: Session, path: str, *index: int) -> tuple[Any, ...] | None:
    ref = workspace_of(session).locate_chunk(path, index)
    return None if ref is None else (ref.location, ref.offset, ref.length, ref.etag, ref.last_modified)


async def batches(store: IcechunkStore, path: str, **kwargs: int) -> list[Any]:
    return [batch async for batch in store.array_chunk_iterator(path, **kwargs)]


# --- one reference -------------------------------------------------------------------------------------------------


def test_one_reference(session: Session, store: IcechunkStore) -> None:
    store.set_virtual_ref("a/c/1/2", LOCATION, offset=5, length=7, checksum="tag")
    store.set_virtual_ref(
        "s/c", LOCATION, offset=0, length=1, checksum=datetime(2020, 1, 1, microsecond=1, tzinfo=UTC)
    )
    assert row(session, "/a", 1, 2) == (LOCATION, 5, 7, "tag", 0)
    assert row(session, "/s") == (LOCATION, 0, 1, None, 1577836801)


async def test_one_reference_asynchronously(session: Session, store: IcechunkStore) -> None:
    await store.set_virtual_ref_async("a/c/1/2", LOCATION, offset=5, length=7)
    assert row(session, "/a", 1, 2) == (LOCATION, 5, 7, None, 0)


@pytest.mark.parametrize(
    ("key", "changes", "error", "kind"),
    [
        ("a/c/4/0", {}, InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a/c/0", {}, InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("b/c/0/0", {}, NodeNotFoundError, ErrorKind.NODE_NOT_FOUND),
        ("foo", {}, InvalidInputError, ErrorKind.INVALID_KEY),
        ("a/zarr.json", {}, SessionStateError, ErrorKind.NOT_ALLOWED),
        ("a/.zarray", {}, SessionStateError, ErrorKind.NOT_ALLOWED),
        ("a/c/0/0", {"length": 0}, InvalidInputError, ErrorKind.ZERO_LENGTH_CHUNK),
        ("a/c/0/0", {"offset": -1}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("a/c/0/0", {"length": -1}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("a/c/0/0", {"offset": 2**64 - 1}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("a/c/0/0", {"location": OTHER}, InvalidInputError, ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK),
        ("a/c/0/0", {"location": "nope"}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("a/c/0/0", {"location": ""}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("a/c/0/0", {"checksum": datetime(2020, 1, 1)}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("a/c/0/0", {"checksum": datetime(1970, 1, 1, tzinfo=UTC)}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("a/c/0/0", {"checksum": datetime(2107, 1, 1, tzinfo=UTC)}, InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
    ],
)
def test_references_that_are_refused(
    session: Session,
    store: IcechunkStore,
    key: str,
    changes: dict[str, Any],
    error: type[IcechunkError],
    kind: ErrorKind,
) -> None:
    arguments: dict[str, Any] = {"location": LOCATION, "offset": 0, "length": 1, **changes}
    with pytest.raises(error) as caught:
        store.set_virtual_ref(key, **arguments)
    assert caught.value.kind is kind
    assert len(workspace_of(session).chunk_refs("/a")) == 0


@pytest.mark.parametrize("changes", [{"location": None}, {"location": b"file:///x"}, {"checksum": 5}])
def test_arguments_of_the_wrong_type(store: IcechunkStore, changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        store.set_virtual_ref("a/c/0/0", **{"location": LOCATION, "offset": 0, "length": 1, **changes})


def test_validation_can_be_left_out_but_locations_must_be_urls(session: Session, store: IcechunkStore) -> None:
    store.set_virtual_ref("a/c/0/0", OTHER, offset=0, length=1, validate_container=False)
    assert row(session, "/a", 0, 0) == (OTHER, 0, 1, None, 0)
    with pytest.raises(InvalidInputError):
        store.set_virtual_ref("a/c/0/0", "nope", offset=0, length=1, validate_container=False)


# --- lists of specs ------------------------------------------------------------------------------------------------


async def test_a_list_of_references(session: Session, store: IcechunkStore) -> None:
    time = datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    specs = [
        VirtualChunkSpec([0, 0], LOCATION, 1, 2),
        VirtualChunkSpec([1, 1], OTHER, 3, 4),
        VirtualChunkSpec([3, 5], LOCATION, 5, 6, None, time),
        VirtualChunkSpec([0, 0], LOCATION, 7, 8, "tag", time),
    ]
    assert store.set_virtual_refs("a", specs) == [(1, 1)]
    assert row(session, "/a", 0, 0) == (LOCATION, 7, 8, "tag", 0)  # the later one wins, the etag counts
    assert row(session, "/a", 3, 5) == (LOCATION, 5, 6, None, int(time.timestamp()))
    assert row(session, "/a", 1, 1) is None
    assert store.set_virtual_refs("/a/", specs, validate_containers=False) is None
    assert row(session, "/a", 1, 1) == (OTHER, 3, 4, None, 0)
    assert await store.set_virtual_refs_async("a", specs[1:2]) == [(1, 1)]
    assert store.set_virtual_refs("a", []) is None


@pytest.mark.parametrize(
    ("path", "spec", "error", "kind"),
    [
        ("a", ([4, 0], LOCATION, 0, 1), InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a", ([0], LOCATION, 0, 1), InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a", ([-1, 0], LOCATION, 0, 1), InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a", ([2**32, 0], LOCATION, 0, 1), InvalidInputError, ErrorKind.INVALID_CHUNK_INDEX),
        ("a", ([0, 0], LOCATION, 0, 0), InvalidInputError, ErrorKind.ZERO_LENGTH_CHUNK),
        ("a", ([0, 0], "nope", 0, 1), InvalidInputError, ErrorKind.INVALID_VIRTUAL_REF),
        ("b", ([0, 0], LOCATION, 0, 1), NodeNotFoundError, ErrorKind.NODE_NOT_FOUND),
        ("", ([0, 0], LOCATION, 0, 1), InvalidInputError, ErrorKind.NOT_AN_ARRAY),
    ],
)
def test_a_bad_reference_refuses_the_whole_list(
    session: Session,
    store: IcechunkStore,
    path: str,
    spec: tuple[Any, ...],
    error: type[IcechunkError],
    kind: ErrorKind,
) -> None:
    with pytest.raises(error) as caught:
        store.set_virtual_refs(path, [VirtualChunkSpec([0, 1], LOCATION, 0, 1), VirtualChunkSpec(*spec)])
    assert caught.value.kind is kind
    assert len(workspace_of(session).chunk_refs("/a")) == 0


# --- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_array", [list, np.array, lambda items: np.array(items, object), tuple])
def test_a_box_of_references(session: Session, store: IcechunkStore, as_array: Any) -> None:
    locations = as_array([LOCATION, "", PREFIX + "y", LOCATION, LOCATION, OTHER])
    refused = store.set_virtual_refs_arr(
        "a", (2, 3), locations, u8(0, 1, 2, 3, 4, 5), u8(9, 0, 9, 9, 9, 9), arr_offset=(1, 2), checksum="tag"
    )
    assert refused == [(2, 4)]
    assert workspace_of(session).chunk_refs("/a").indices.tolist() == [[1, 2], [1, 4], [2, 2], [2, 3]]
    assert row(session, "/a", 1, 4) == (PREFIX + "y", 2, 9, "tag", 0)
    assert row(session, "/a", 2, 3) == (LOCATION, 4, 9, "tag", 0)


async def test_a_box_of_references_asynchronously(session: Session, store: IcechunkStore) -> None:
    time = datetime(2021, 5, 6, tzinfo=UTC)
    await store.set_virtual_refs_arr_async("s", (), [LOCATION], u8(3), u8(4), checksum=time)
    assert row(session, "/s") == (LOCATION, 3, 4, None, int(time.timestamp()))


def test_empty_cells_leave_chunks_as_they_are(session: Session, store: IcechunkStore) -> None:
    put(session, "a/c/0/0", b"kept")
    store.set_virtual_refs_arr("a", (1, 2), ["", LOCATION], u8(0, 0), u8(0, 1))
    ref = workspace_of(session).locate_chunk("/a", (0, 0))
    assert ref is not None
    assert ref.inline == b"kept"
    assert store.set_virtual_refs_arr("a", (1, 2), ["", ""], u8(0, 0), u8(0, 0)) is None
    assert store.set_virtual_refs_arr("a", (0, 3), [], u8(), u8()) is None


def test_cells_outside_the_grid_may_be_empty(session: Session, store: IcechunkStore) -> None:
    store.set_virtual_refs_arr("a", (5, 1), [LOCATION] * 4 + [""], u8(*range(5)), u8(*[1] * 5))
    assert len(workspace_of(session).chunk_refs("/a")) == 4


@pytest.mark.parametrize(
    ("shape", "n", "more", "kind"),
    [
        ((2, 2), 3, {}, ErrorKind.INVALID_CHUNK_INDEX),
        ((3,), 3, {}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3, 1), 3, {}, ErrorKind.INVALID_CHUNK_INDEX),
        ((5, 1), 5, {}, ErrorKind.INVALID_CHUNK_INDEX),
        ((-1, -3), 3, {}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"arr_offset": (4, 0)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"arr_offset": (0, 4)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"arr_offset": (0,)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"arr_offset": (-1, 0)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"arr_offset": (2**32, 0)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"offsets": u8(1, 1)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"offsets": u8(1, 1, 1).reshape(1, 3)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"lengths": u8(1, 0, 1)}, ErrorKind.ZERO_LENGTH_CHUNK),
        ((1, 3), 3, {"lengths": np.array([1, -1, 1])}, ErrorKind.INVALID_VIRTUAL_REF),
        ((1, 3), 3, {"lengths": u8(1, 1, 2**64 - 1)}, ErrorKind.INVALID_VIRTUAL_REF),
        ((1, 3), 3, {"locations": [LOCATION, "nope", LOCATION]}, ErrorKind.INVALID_VIRTUAL_REF),
        ((1, 3), 3, {"locations": np.full((1, 3), LOCATION)}, ErrorKind.INVALID_CHUNK_INDEX),
        ((1, 3), 3, {"checksum": datetime(2020, 1, 1)}, ErrorKind.INVALID_VIRTUAL_REF),
    ],
)
def test_columns_that_do_not_fit_are_refused_whole(
    session: Session, store: IcechunkStore, shape: tuple[int, ...], n: int, more: dict[str, Any], kind: ErrorKind
) -> None:
    columns = {"locations": [LOCATION] * n, "offsets": u8(*[1] * n), "lengths": u8(*[1] * n), **more}
    with pytest.raises(InvalidInputError) as caught:
        store.set_virtual_refs_arr("a", shape, **columns)
    assert caught.value.kind is kind
    assert len(workspace_of(session).chunk_refs("/a")) == 0


@pytest.mark.parametrize(
    "more", [{"offsets": [0.5, 1.0, 2.0]}, {"lengths": ["1"] * 3}, {"locations": [None] * 3}, {"checksum": 3}]
)
def test_columns_of_the_wrong_type(store: IcechunkStore, more: dict[str, Any]) -> None:
    columns: dict[str, Any] = {"locations": [LOCATION] * 3, "offsets": u8(1, 1, 1), "lengths": u8(1, 1, 1), **more}
    with pytest.raises(TypeError):
        store.set_virtual_refs_arr("a", (1, 3), **columns)


@given(
    grid=st.lists(st.integers(0, 5), max_size=4),
    data=st.data(),
)
def test_columns_mean_what_single_references_mean(grid: list[int], data: st.DataObject) -> None:
    """The box is the array's grid minus a margin; each cell has its own numbers."""
    start = [data.draw(st.integers(0, length)) for length in grid]
    shape = [length - first for first, length in zip(start, grid, strict=True)]
    n = int(np.prod(shape))
    locations = data.draw(st.lists(st.sampled_from(["", "file:///x", "file:///y"]), min_size=n, max_size=n))
    offsets = np.arange(n, dtype=np.uint64) * np.uint64(3)
    lengths = np.arange(n, dtype=np.uint64) + np.uint64(1)
    refs = refs_of_grid("/a", grid, shape, locations, offsets, lengths, arr_offset=start)
    cells = [(tuple(np.add(cell, start).tolist()), i) for i, cell in enumerate(np.ndindex(*shape))]
    expected = [(index, locations[i], 3 * i, i + 1) for index, i in cells if locations[i]]
    found = [
        (tuple(index), refs.locations.text(int(refs.location_codes[i])), int(refs.offsets[i]), int(refs.lengths[i]))
        for i, index in enumerate(refs.indices.tolist())
    ]
    assert found == expected
    assert "" not in refs.locations.texts()


@given(st.datetimes(datetime(1970, 1, 2), datetime(2106, 1, 1), timezones=st.timezones()))
def test_times_are_rounded_up(time: datetime) -> None:
    seconds = whole_seconds(time)
    exact = (time - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1) / 1e6
    assert 0 <= seconds - exact < 1


# --- reading them back ---------------------------------------------------------------------------------------------


async def test_iterating_over_references(session: Session, store: IcechunkStore) -> None:
    put(session, "a/c/0/0", b"inline")
    put(session, "a/c/0/1", b"n" * 1000)
    store.set_virtual_ref("a/c/0/2", LOCATION, offset=3, length=4)
    store.set_virtual_ref("a/c/3/5", "vcc://data/dir/y.nc", offset=5, length=6)
    native = workspace_of(session).locate_chunk("/a", (0, 1))
    assert native is not None
    first, second = await batches(store, "a", batch_size=3)
    indices, kinds, paths, offsets, lengths, inlined = first
    assert indices.dtype == np.uint32
    assert indices.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert (kinds.dtype, kinds.tolist()) == (np.uint8, [INLINE, NATIVE, VIRTUAL])
    assert paths == ["", str(native.chunk_id), LOCATION]
    assert (offsets.dtype, offsets.tolist()) == (np.uint64, [0, 0, 3])
    assert (lengths.dtype, lengths.tolist()) == (np.uint64, [6, 1000, 4])
    assert inlined == {0: b"inline"}
    indices, kinds, paths, offsets, lengths, inlined = second
    assert indices.tolist() == [[3, 5]]
    assert paths == ["file:///named/dir/y.nc"]
    assert inlined == {}
    assert await batches(store, "s") == []


async def test_iterating_over_what_is_no_array(store: IcechunkStore) -> None:
    with pytest.raises(NodeNotFoundError):
        await batches(store, "nope")
    with pytest.raises(InvalidInputError):
        await batches(store, "/")
    with pytest.raises(ValueError, match="batch_size"):
        await batches(store, "a", batch_size=0)


async def test_reading_through_references(tmp_path: Path) -> None:
    """Set, commit, open with authorisation, read ranges; without authorisation the error says what to do."""
    (tmp_path / "x.bin").write_bytes(bytes(range(100)))
    prefix = f"{tmp_path.as_uri()}/"
    config = RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(prefix, local_filesystem_store(tmp_path)))
    storage = MemoryStorage()
    session = Repository.create(storage, config).writable_session("main")
    workspace_of(session).set_metadata("/a", array_document((4,)))
    modified = datetime.fromtimestamp(os.stat(tmp_path / "x.bin").st_mtime, UTC)
    refused = session.store.set_virtual_refs_arr(
        "a", (4,), [prefix + "x.bin"] * 4, u8(0, 10, 20, 30), u8(*[10] * 4), checksum=modified
    )
    assert refused is None
    session.commit("references")
    with pytest.warns(DeprecationWarning, match="None as the credential") as warned:
        repo = Repository.open(storage, authorize_virtual_chunk_access={prefix: None})
    assert [(warning.filename, "LocalFileSystemAccess" in str(warning.message)) for warning in warned] == [
        (__file__, True)
    ]
    store = repo.readonly_session("main").store
    found = store.get_sync("a/c/2")
    assert found is not None
    assert found.to_bytes() == bytes(range(20, 30))
    assert await store.getsize("a/c/2") == 10
    with pytest.raises(InvalidInputError) as caught:
        await Repository.open(storage).readonly_session("main").store.get("a/c/2", default_buffer_prototype())
    assert caught.value.kind is ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    assert "authorize_virtual_chunk_access" in str(caught.value)
