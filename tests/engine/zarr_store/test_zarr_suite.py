"""zarr's own test suite for stores, on ours.

What zarr tests with arbitrary keys and documents (``foo``, ``b"bar"``, empty values) is restated here with keys and
documents that this store can hold; nothing is left out.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from zarr.abc.buffer import Buffer
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer import cpu, default_buffer_prototype
from zarr.testing.store import StoreTests
from zarr.testing.utils import assert_bytes_equal

from icechunk_engine.errors import InvalidInputError, ReadOnlyError
from icechunk_engine.repository import Repository
from icechunk_engine.storage import MemoryStorage
from icechunk_engine.store import IcechunkStore
from tests.engine.zarr_store.support import GROUP, array_document, ensure_array, put, read
from tests.zarr_internals import collect_aiterator, sync

READ_ONLY = "cannot write to read-only store"
CHUNK_KEYS = ["c/0", "foo/c/0/0", "a/b/c/0/1/2", "a/c"]
DATA = b"\x01\x02\x03\x04"


def buffer(data: bytes) -> Buffer:
    return cpu.Buffer.from_bytes(data)


class TestIcechunkStore(StoreTests[IcechunkStore, cpu.Buffer]):
    store_cls = IcechunkStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self) -> dict[str, Any]:
        session = Repository.create(MemoryStorage()).writable_session("main")
        return {"session": session, "read_only": False}

    if hasattr(StoreTests, "test_get_bytes"):  # zarr before 3.3 writes text to zarr.json, which this store refuses
        test_get_bytes = test_get_bytes_sync = test_get_json = test_get_json_sync = None

    async def set(self, store: IcechunkStore, key: str, value: Buffer) -> None:
        put(store.session, key, value.to_bytes())

    async def get(self, store: IcechunkStore, key: str) -> Buffer:
        data = read(store.session, key)
        assert data is not None
        return buffer(data)

    def test_store_repr(self, store: IcechunkStore) -> None:
        assert repr(store).startswith("<IcechunkStore read_only=False session=<Session ")
        assert "branch='main'" in repr(store)
        assert "IcechunkStore" in store._repr_html_()

    def test_store_supports_writes(self, store: IcechunkStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: IcechunkStore) -> None:
        assert store.supports_listing

    async def test_serializable_store(self, store: IcechunkStore) -> None:
        fork = store.session.fork().store
        restored = pickle.loads(pickle.dumps(fork))
        assert restored == fork
        assert restored.read_only == fork.read_only
        await restored.set("foo/zarr.json", buffer(GROUP))
        observed = await restored.get("foo/zarr.json", prototype=default_buffer_prototype())
        assert_bytes_equal(observed, buffer(GROUP))

    async def test_read_only_store_raises(self, open_kwargs: dict[str, Any]) -> None:
        store = await self.store_cls.open(**{**open_kwargs, "read_only": True})
        assert store.read_only
        with pytest.raises(ReadOnlyError, match=READ_ONLY):
            await store.set("foo/zarr.json", buffer(GROUP))
        with pytest.raises(ReadOnlyError, match=READ_ONLY):
            await store.delete("foo/zarr.json")

    async def test_with_read_only_store(self, open_kwargs: dict[str, Any]) -> None:
        store = await self.store_cls.open(**{**open_kwargs, "read_only": True})
        writer = store.with_read_only(read_only=False)
        assert not writer._is_open
        assert not writer.read_only
        await writer.set("foo/zarr.json", buffer(GROUP))
        await writer.delete("foo/zarr.json")
        for reader in (store, store.with_read_only(read_only=True)):
            assert reader.read_only
            with pytest.raises(ReadOnlyError, match=READ_ONLY):
                await reader.set("foo/zarr.json", buffer(GROUP))
            with pytest.raises(ReadOnlyError, match=READ_ONLY):
                await reader.delete("foo/zarr.json")

    @pytest.mark.parametrize("key", CHUNK_KEYS)
    @pytest.mark.parametrize(
        ("data", "byte_range"),
        [
            (DATA, None),
            (DATA, RangeByteRequest(1, 4)),
            (DATA, OffsetByteRequest(1)),
            (DATA, SuffixByteRequest(1)),
            (DATA * 1000, RangeByteRequest(7, 2001)),
        ],
    )
    async def test_get(self, store: IcechunkStore, key: str, data: bytes, byte_range: ByteRequest) -> None:
        await super().test_get(store, key, data, byte_range)

    async def test_get_many(self, store: IcechunkStore) -> None:
        values = {f"a/c/{i}": f"{i}".encode() for i in range(10)}
        for key, value in values.items():
            put(store.session, key, value)
        prototype = default_buffer_prototype()
        observed = await collect_aiterator(store._get_many((key, prototype, None) for key in values))
        assert {key: found.to_bytes() for key, found in observed if found is not None} == values

    @pytest.mark.parametrize("key", CHUNK_KEYS)
    @pytest.mark.parametrize("data", [DATA, DATA * 1000])
    async def test_getsize(self, store: IcechunkStore, key: str, data: bytes) -> None:
        await super().test_getsize(store, key, data)

    async def test_getsize_prefix(self, store: IcechunkStore) -> None:
        put(store.session, "zarr.json", array_document((2, 2)))
        for key in ["c/0/0", "c/0/1", "c/1/0", "c/1/1"]:
            put(store.session, key, DATA)
        assert await store.getsize_prefix("c") == 4 * len(DATA)
        assert await store.getsize_prefix("c/1") == 2 * len(DATA)
        await store.clear()
        for key in ["a/c/0/0", "a/c/0/1", "a/c/1/0", "a/c/1/1", "ab/c/0"]:
            put(store.session, key, DATA)
        document = len(read(store.session, "a/zarr.json") or b"")
        assert await store.getsize_prefix("a") == document + 4 * len(DATA)
        assert await store.getsize_prefix("a/c/") == 4 * len(DATA)

    async def test_getsize_raises(self, store: IcechunkStore) -> None:
        await super().test_getsize_raises(store)
        put(store.session, "a/c/0", DATA)
        for key in ["a/c/1", "b/c/0", "b/zarr.json", ".zgroup"]:
            with pytest.raises(FileNotFoundError):
                await store.getsize(key)
            with pytest.raises(KeyError):
                await store.getsize(key)

    @pytest.mark.parametrize(
        ("key", "data"),
        [
            ("zarr.json", GROUP),
            ("a/zarr.json", array_document()),
            *((key, DATA * n) for key in CHUNK_KEYS for n in (1, 999)),
        ],
    )
    async def test_set(self, store: IcechunkStore, key: str, data: bytes) -> None:
        ensure_array(store.session, key)
        await super().test_set(store, key, data)

    async def test_set_not_open(self, store_not_open: IcechunkStore) -> None:
        ensure_array(store_not_open.session, "c/0")
        await super().test_set_not_open(store_not_open)

    async def test_set_many(self, store: IcechunkStore) -> None:
        ensure_array(store.session, "foo/c/0/0")
        values = {
            "zarr.json": GROUP,
            "foo/c/0/0": DATA,
            "foo/c/0/1": DATA * 2,
            "foo/zarr.json": array_document((9, 9)),
        }
        await store._set_many((key, buffer(value)) for key, value in values.items())
        assert {key: read(store.session, key) for key in values} == values

    @pytest.mark.parametrize(
        "key_ranges",
        [
            [],
            [("zarr.json", RangeByteRequest(0, 2))],
            [("a/c/0", RangeByteRequest(0, 2)), ("zarr.json", None)],
            [
                ("a/c/0/0", RangeByteRequest(0, 2)),
                ("a/c/0/1", SuffixByteRequest(2)),
                ("a/c/0/2", OffsetByteRequest(2)),
                ("a/c/0/0", RangeByteRequest(1, 2)),
            ],
        ],
    )
    async def test_get_partial_values(  # type: ignore[override]
        self, store: IcechunkStore, key_ranges: list[tuple[str, ByteRequest | None]]
    ) -> None:
        values = {key: GROUP if key.endswith("json") else key.encode() for key, _ in key_ranges}
        for key, value in values.items():
            put(store.session, key, value)
        observed = await store.get_partial_values(default_buffer_prototype(), (item for item in key_ranges))
        expected = [await store.get(key, default_buffer_prototype(), byte_range) for key, byte_range in key_ranges]
        assert [found and found.to_bytes() for found in observed] == [found and found.to_bytes() for found in expected]
        assert None not in observed

    async def test_exists(self, store: IcechunkStore) -> None:
        assert not await store.exists("foo/zarr.json")
        assert not await store.exists("foo/c/0")
        assert not await store.exists(".zgroup")
        await store.set("foo/zarr.json", buffer(array_document((2,))))
        assert await store.exists("foo/zarr.json")
        assert not await store.exists("foo/c/0")
        await store.set("foo/c/0", buffer(DATA))
        assert await store.exists("foo/c/0")
        with pytest.raises(InvalidInputError):
            await store.exists("foo")

    async def test_delete(self, store: IcechunkStore) -> None:
        await store.set("foo/zarr.json", buffer(GROUP))
        assert await store.exists("foo/zarr.json")
        await store.delete("foo/zarr.json")
        assert not await store.exists("foo/zarr.json")
        put(store.session, "a/c/0", DATA)
        await store.delete("a/c/0")
        assert not await store.exists("a/c/0")

    async def test_delete_dir(self, store: IcechunkStore) -> None:
        await store.set("zarr.json", buffer(GROUP))
        await store.set("foo-bar/zarr.json", buffer(GROUP))
        await store.set("foo/zarr.json", buffer(array_document((4,))))
        await store.set("foo/c/0", buffer(b"chunk"))
        await store.delete_dir("foo")
        assert await store.exists("zarr.json")
        assert await store.exists("foo-bar/zarr.json")
        assert not await store.exists("foo/zarr.json")
        assert not await store.exists("foo/c/0")

    @pytest.mark.parametrize("key", ["no/zarr.json", "no/c/0", "here/c/1", ".zgroup"])
    async def test_delete_nonexistent_key_does_not_raise(  # type: ignore[override]
        self, store: IcechunkStore, key: str
    ) -> None:
        put(store.session, "here/c/0", DATA)
        await store.delete(key)
        assert await store.exists("here/c/0")

    async def test_is_empty(self, store: IcechunkStore) -> None:
        assert await store.is_empty("")
        put(store.session, "foo/bar/c/0", DATA)
        assert not await store.is_empty("")
        assert await store.is_empty("fo")
        assert not await store.is_empty("foo/")
        assert not await store.is_empty("foo")
        assert not await store.is_empty("foo/bar/c")
        assert await store.is_empty("foo/bar/c/0")
        assert await store.is_empty("spam/")
        await store.delete("foo/bar/c/0")
        assert await store.is_empty("foo/bar/c/")

    async def test_clear(self, store: IcechunkStore) -> None:
        put(store.session, "a/c/0", DATA)
        await store.clear()
        assert await store.is_empty("")
        put(store.session, "a/c/0", DATA)
        store.sync_clear()
        assert await store.is_empty("")

    async def test_list(self, store: IcechunkStore) -> None:
        assert await collect_aiterator(store.list()) == ()
        put(store.session, "foo/zarr.json", array_document((10,)))
        for i in range(10):
            put(store.session, f"foo/c/{i}", DATA)
        assert await collect_aiterator(store.list()) == ("foo/zarr.json", *(f"foo/c/{i}" for i in range(10)))

    async def test_list_prefix(self, store: IcechunkStore) -> None:
        prefixes = ("", "a/", "a/b/", "a/b/c/", "ab/")
        for prefix in prefixes:
            put(store.session, prefix + "zarr.json", GROUP)
        for prefix in prefixes:
            observed = await collect_aiterator(store.list_prefix(prefix))
            assert sorted(observed) == sorted(p + "zarr.json" for p in prefixes if p.startswith(prefix))

    async def test_list_empty_path(self, store: IcechunkStore) -> None:
        for key in ("foo/bar/c/1", "foo/baz/c/0"):
            put(store.session, key, DATA)
        keys = ["foo/bar/c/1", "foo/bar/zarr.json", "foo/baz/c/0", "foo/baz/zarr.json"]
        assert sorted(await collect_aiterator(store.list())) == keys
        assert sorted(await collect_aiterator(store.list_prefix(""))) == keys
        assert sorted(await collect_aiterator(store.list_prefix("foo/bar/"))) == keys[:2]

    async def test_list_dir(self, store: IcechunkStore) -> None:
        assert await collect_aiterator(store.list_dir("")) == ()
        assert await collect_aiterator(store.list_dir("foo")) == ()
        put(store.session, "foo/zarr.json", array_document((2,)))
        put(store.session, "foo/c/1", DATA)
        put(store.session, "bar/zarr.json", GROUP)
        put(store.session, "bar/first/zarr.json", GROUP)
        put(store.session, "bar/second/third/zarr.json", GROUP)  # a member of a group that has no document
        for prefix, names in {
            "": ("bar", "foo"),
            "foo": ("c", "zarr.json"),
            "foo/c": ("1",),
            "bar": ("first", "second", "zarr.json"),
            "bar/second": ("third",),
            "ba": (),
        }.items():
            assert await collect_aiterator(store.list_dir(prefix)) == names
            assert await collect_aiterator(store.list_dir(prefix + "/")) == names

    async def test_set_if_not_exists(self, store: IcechunkStore) -> None:
        put(store.session, "a/c/0", b"0000")
        await store.set_if_not_exists("a/c/0", buffer(b"1111"))
        assert read(store.session, "a/c/0") == b"0000"
        await store.set_if_not_exists("a/c/1", buffer(b"1111"))
        assert read(store.session, "a/c/1") == b"1111"
        await store.set_if_not_exists("g/zarr.json", buffer(GROUP))
        await store.set_if_not_exists("g/zarr.json", buffer(GROUP + b" "))
        assert read(store.session, "g/zarr.json") == GROUP

    # The synchronous surface: zarr's tests with the key ``a/c/0`` instead of names of their own.

    def test_get_sync(self, store: IcechunkStore) -> None:
        put(store.session, "a/c/0", DATA)
        assert_bytes_equal(self._require_get_sync(store).get_sync("a/c/0"), buffer(DATA))

    def test_get_sync_missing(self, store: IcechunkStore) -> None:
        for key in ("a/c/0", "zarr.json", ".zarray"):
            assert self._require_get_sync(store).get_sync(key) is None

    def test_set_sync(self, store: IcechunkStore) -> None:
        ensure_array(store.session, "a/c/0")
        self._require_set_sync(store).set_sync("a/c/0", buffer(DATA))
        assert_bytes_equal(sync(self.get(store, "a/c/0")), buffer(DATA))

    def test_delete_sync(self, store: IcechunkStore) -> None:
        ensure_array(store.session, "a/c/0")
        store.set_sync("a/c/0", buffer(DATA))
        self._require_delete_sync(store).delete_sync("a/c/0")
        assert store.get_sync("a/c/0") is None

    def test_delete_sync_missing(self, store: IcechunkStore) -> None:
        for key in ("a/c/0", "zarr.json", ".zarray"):
            self._require_delete_sync(store).delete_sync(key)

    @pytest.mark.parametrize("direction", ["set_async_get_sync", "set_sync_get_async"])
    async def test_sync_async_set_get_parity(self, store: IcechunkStore, direction: str) -> None:
        ensure_array(store.session, "a/c/0")
        if direction == "set_async_get_sync":
            await store.set("a/c/0", buffer(DATA))
            result = store.get_sync("a/c/0")
        else:
            store.set_sync("a/c/0", buffer(DATA))
            result = await store.get("a/c/0", prototype=default_buffer_prototype())
        assert_bytes_equal(result, buffer(DATA))

    async def test_delete_sync_visible_to_async_get(self, store: IcechunkStore) -> None:
        ensure_array(store.session, "a/c/0")
        await store.set("a/c/0", buffer(DATA))
        store.delete_sync("a/c/0")
        assert await store.get("a/c/0", prototype=default_buffer_prototype()) is None

    @pytest.mark.parametrize(
        "byte_range",
        [None, RangeByteRequest(1, 4), OffsetByteRequest(1), SuffixByteRequest(1), RangeByteRequest(10, 20)],
        ids=["none", "range", "offset", "suffix", "range-past-eof"],
    )
    async def test_get_sync_byte_range_parity(self, store: IcechunkStore, byte_range: ByteRequest | None) -> None:
        put(store.session, "a/c/0", DATA)
        found = store.get_sync("a/c/0", byte_range=byte_range)
        expected = await store.get("a/c/0", prototype=default_buffer_prototype(), byte_range=byte_range)
        assert found is not None
        assert expected is not None
        assert_bytes_equal(found, expected)
