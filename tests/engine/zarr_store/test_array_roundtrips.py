"""Arrays as zarr's strategies draw them (any type, grid, sharding, names) come back from a commit as they went in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.testing import strategies as zst

from icechunk_engine.repository import Repository
from icechunk_engine.storage import MemoryStorage
from icechunk_engine.store import IcechunkStore

if not hasattr(zst, "sharded_arrays"):
    pytest.skip("zarr before 3.3 has no strategy for sharded arrays", allow_module_level=True)

# zarr says so of the data types that only zarr-python has.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


@pytest.fixture(autouse=True)
def rectilinear_grids() -> Iterator[None]:
    with zarr.config.set({"array.rectilinear_chunks": True}):
        yield


@pytest.fixture(autouse=True, params=["batched", "fused"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[None]:
    """zarr's asynchronous pipeline and its synchronous one, which uses the synchronous face of the store."""
    name = {"batched": "BatchedCodecPipeline", "fused": "FusedCodecPipeline"}[request.param]
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{name}"}):
        yield


def new_store() -> IcechunkStore:
    return Repository.create(MemoryStorage()).writable_session("main").store


def committed(store: IcechunkStore) -> IcechunkStore:
    """The same content, read from what a commit stored."""
    session = store.session
    session.commit("arrays")
    return session.store


def check_same(array: zarr.Array[Any], expected: Any) -> None:
    np.testing.assert_array_equal(array[...], expected)
    np.testing.assert_array_equal(array[..., :1] if expected.ndim else array[...], expected[..., :1])


@given(data=st.data())
def test_arrays(data: st.DataObject) -> None:
    store = new_store()
    array = data.draw(zst.arrays(stores=st.just(store), zarr_formats=st.just(3), paths=zst.paths(max_num_nodes=2)))
    expected = array[...]
    reopened = zarr.open_array(committed(store), path=array.path, mode="r")
    assert reopened.metadata == array.metadata
    check_same(reopened, expected)


@given(source=zst.sharded_arrays() | zst.rectilinear_arrays(), more=st.data())
def test_arrays_with_inner_chunks_and_uneven_grids(source: zarr.Array[Any], more: st.DataObject) -> None:
    store = new_store()
    array = zarr.from_array(store, data=source, name="a")
    assert array.metadata.chunk_grid == source.metadata.chunk_grid
    expected = source[...]
    reopened = zarr.open_array(committed(store), path="a", mode="r")
    check_same(reopened, expected)
    selection = more.draw(zst.basic_indices(shape=source.shape))
    np.testing.assert_array_equal(reopened[selection], expected[selection])


def test_partial_shard_reads_read_parts(pipeline: None) -> None:
    """A few inner chunks of a shard of many: the store is asked for ranges, not for the shard."""
    requested: list[int] = []

    class Recording(MemoryStorage):
        def get_range(self, key: str, start: int, stop: int) -> bytes:
            requested.append(stop - start)
            return super().get_range(key, start, stop)

    store = Repository.create(Recording()).writable_session("main").store
    data = np.random.default_rng(0).random((512, 512))
    array = zarr.create_array(store, name="a", data=data, chunks=(16, 16), shards=(512, 512), compressors=None)
    requested.clear()
    np.testing.assert_array_equal(array[100:120, 30:50], data[100:120, 30:50])
    assert sum(requested) < data.nbytes / 10
