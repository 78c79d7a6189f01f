"""Listings and sizes, against a model that knows nothing but keys."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.errors import StorageError
from icechunk_engine.repository import Repository
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.storage import LocalStorage, MemoryStorage
from icechunk_engine.store import IcechunkStore
from icechunk_engine.workspace import view
from icechunk_engine.zarr_store import key_listing
from tests.engine.zarr_store.support import GROUP, array_document, put, read
from tests.zarr_internals import sync


async def collect(found: AsyncIterator[str]) -> list[str]:
    return [name async for name in found]


class KeyModel:
    """The listings of a store that is a dictionary of keys."""

    def __init__(self, values: dict[str, bytes]) -> None:
        self.values = values

    @staticmethod
    def _directory(prefix: str) -> str:
        stripped = prefix.strip("/")
        return stripped + "/" if stripped else ""

    def list_prefix(self, prefix: str) -> list[str]:
        inside = [key for key in self.values if key.startswith(self._directory(prefix))]
        return sorted(inside + [key for key in self.values if key == prefix])

    def list_dir(self, prefix: str) -> list[str]:
        directory = self._directory(prefix)
        return sorted({key.removeprefix(directory).split("/")[0] for key in self.values if key.startswith(directory)})

    def is_empty(self, prefix: str) -> bool:
        return not any(key.startswith(self._directory(prefix)) for key in self.values)

    def getsize_prefix(self, prefix: str) -> int:
        return sum(len(value) for key, value in self.values.items() if key.startswith(self._directory(prefix)))


def tree(session: Session) -> dict[str, bytes]:
    """A hierarchy with the awkward cases: names like prefixes of others, orphans, odd characters, every rank."""
    values: dict[str, bytes] = {"zarr.json": GROUP}
    for group in ("g", "g/h", "ab", "lost/and/found", "x%y"):
        values[f"{group}/zarr.json"] = GROUP
    values["a/zarr.json"] = array_document((3, 12, 2))
    values["a b/zarr.json"] = array_document((3,))
    values["g/a-b/zarr.json"] = array_document((11,))
    values["g/%d/zarr.json"] = array_document((2, 2))
    values["g/empty/zarr.json"] = array_document((4,))
    values["c/zarr.json"] = array_document((5,))
    values["g/scalar/zarr.json"] = array_document(())
    values["ärger/zarr.json"] = array_document((2,))
    chunks = ["a/c/0/0/0", "a/c/0/1/1", "a/c/0/10/0", "a/c/0/11/1", "a/c/2/2/1", "a b/c/2", "g/a-b/c/10", "g/a-b/c/9"]
    chunks += ["g/%d/c/1/0", "g/%d/c/1/1", "c/c/4", "g/scalar/c", "ärger/c/1"]
    values |= {key: bytes([i + 1]) * (i * 150 + 1) for i, key in enumerate(chunks)}
    for key, value in values.items():
        put(session, key, value)
    return values


PREFIXES = [
    "",
    "/",
    "a",
    "a/",
    "/a",
    "a/c",
    "a/c/",
    "a/c/0",
    "a/c/0/1",
    "a/c/0/1/",
    "a/c/0/10",
    "a/c/0/0/0",
    "a/c/1",
    "a/c/x",
]
PREFIXES += [
    "a/c/0/0/0/0",
    "ab",
    "a b",
    "g",
    "g/h",
    "g/a-b",
    "g/a-b/c",
    "g/%d",
    "g/%d/c/1",
    "g/empty",
    "g/empty/c",
    "c",
]
PREFIXES += [
    "c/c",
    "c/c/4",
    "g/scalar",
    "g/scalar/c",
    "g/scalar/c/",
    "lost",
    "lost/and",
    "lost/and/found",
    "los",
    "x%y",
    "ärger",
]
PREFIXES += ["nope", "nope/c", "g/nope", "zarr.json", "a/zarr.json", "a/zarr.json/", "..", "a//b", ".zgroup", "c/0"]


@pytest.mark.parametrize("state", ["uncommitted", "committed", "committed and edited"])
async def test_listings_agree_with_the_model(repo: Repository, state: str) -> None:
    session = repo.writable_session("main")
    values = tree(session)
    if state != "uncommitted":
        session.commit("tree")
        session = repo.writable_session("main")
    if state == "committed and edited":
        for key, value in {"new/child/zarr.json": GROUP, "a/c/2/2/0": b"1", "a/c/0/0/0": b"changed"}.items():
            put(session, key, value)
            values[key] = value
        for key in ("a/c/0/1/1", "g/a-b/c/9", "g/scalar/c", "ab/zarr.json"):
            await session.store.delete(key)
            del values[key]
    model, store = KeyModel(values), session.store
    for prefix in PREFIXES:
        assert sorted(await collect(store.list_prefix(prefix))) == model.list_prefix(prefix), prefix
        names = await collect(store.list_dir(prefix))
        assert sorted(names) == model.list_dir(prefix), prefix
        assert len(set(names)) == len(names)
        assert await store.is_empty(prefix) == model.is_empty(prefix), prefix
        assert await store.getsize_prefix(prefix) == model.getsize_prefix(prefix), prefix
    for key, value in values.items():
        assert await store.getsize(key) == len(value)
        assert read(session, key) == value
    assert sorted(await collect(store.list())) == sorted(values)


async def test_order_of_listings(session: Session, store: IcechunkStore) -> None:
    for name in ("b", "b-c", "b/x", "a0"):
        put(session, f"{name}/zarr.json", GROUP)
    for index in ("3/0", "0/5", "0/0", "2/1"):
        put(session, f"a/c/{index}", b"1")
    assert await collect(store.list_dir("")) == ["a", "a0", "b", "b-c", "s", "zarr.json"]
    assert await collect(store.list_prefix("a")) == [
        "a/zarr.json",
        *(f"a/c/{index}" for index in ("0/0", "0/5", "2/1", "3/0")),
    ]
    assert await collect(store.list_prefix("b")) == ["b/zarr.json", "b/x/zarr.json"]
    assert await collect(store.list_dir("a/c")) == ["0", "2", "3"]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=30, unique=True),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_columns_of_indices_as_keys(indices: list[tuple[int, int]], prefix: list[int]) -> None:
    column = np.array(indices, np.uint32).reshape(-1, 2)
    keys = [f"g/a%s/c/{i}/{j}" for i, j in indices]
    assert [key for batch in key_listing.chunk_keys("/g/a%s", column) for key in batch] == keys
    under = [index for index in indices if index[: len(prefix)] == tuple(prefix) and len(prefix) <= 2]
    mask = key_listing.rows_under(column, tuple(prefix))
    assert [tuple(row) for row in column[mask].tolist()] == under
    expected = sorted({index[len(prefix)] for index in under}) if len(prefix) < 2 else []
    assert key_listing.next_components(column, tuple(prefix)) == [str(position) for position in expected]


def test_listing_what_is_on_disk_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests of some arrays are read together, and their references are those of the right array."""
    monkeypatch.setattr(view, "_BATCH_NODES", 3)
    session = Repository.create(LocalStorage(tmp_path)).writable_session("main")
    values = tree(session)
    session.commit("tree")
    shutil.copytree(tmp_path, tmp_path / "copy")  # of which nothing is in memory
    store = Repository.open(LocalStorage(tmp_path / "copy")).readonly_session("main").store
    assert sorted(sync(collect(store.list()))) == sorted(values)
    assert sync(store.getsize_prefix("")) == sum(map(len, values.values()))


def test_a_lost_manifest_among_others_is_named(tmp_path: Path) -> None:
    session = Repository.create(LocalStorage(tmp_path)).writable_session("main")
    tree(session)
    session.commit("tree")
    shutil.copytree(tmp_path, tmp_path / "copy")
    lost = sorted((tmp_path / "copy" / "manifests").iterdir())[3]
    lost.unlink()
    store = Repository.open(LocalStorage(tmp_path / "copy")).readonly_session("main").store
    with pytest.raises(StorageError, match=lost.name):
        sync(collect(store.list()))


def test_listings_come_in_batches() -> None:
    n = 2 * key_listing.BATCH_SIZE + 5
    batches = list(key_listing.chunk_keys("/a", np.arange(n, dtype=np.uint32).reshape(n, 1)))
    assert [len(batch) for batch in batches] == [key_listing.BATCH_SIZE, key_listing.BATCH_SIZE, 5]
    assert batches[2][-1] == f"a/c/{n - 1}"


def test_listing_a_directory_of_many_chunks_is_not_a_walk() -> None:
    """A quarter of a million chunks: names come out of the column, so few Python objects are made."""
    session = Repository.create(MemoryStorage()).writable_session("main")
    workspace_of(session).set_metadata("/a", array_document((500, 500)))
    locations = np.full(250_000, "file:///x")
    ones = np.ones(250_000, np.uint64)
    session.store.set_virtual_refs_arr("a", (500, 500), locations, ones, ones, validate_containers=False)
    assert sync(collect(session.store.list_dir("a/c"))) == [str(i) for i in range(500)]
    assert sync(collect(session.store.list_dir("a/c/7"))) == [str(i) for i in range(500)]
    assert sync(session.store.getsize_prefix("a/c")) == 250_000
