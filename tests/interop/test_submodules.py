"""The names of official's submodules work here as in official."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import dask.array
import icechunk as official
import icechunk.dask
import icechunk.distributed
import icechunk.testing
import icechunk.xarray
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk_engine as ours
import icechunk_engine.config
import icechunk_engine.conflicts
import icechunk_engine.dask
import icechunk_engine.distributed
import icechunk_engine.ops
import icechunk_engine.snapshots
import icechunk_engine.testing
import icechunk_engine.virtual
import icechunk_engine.xarray
from icechunk_engine.storage import LocalStorage, MemoryStorage, ReadOnlyStorage

PACKAGES = (official, ours)
both = pytest.mark.parametrize("ic", PACKAGES, ids=["official", "ours"])


def array(session: Any, name: str = "a", n: int = 6) -> Any:
    return zarr.create_array(session.store, name=name, shape=(n,), chunks=(2,), dtype="i4", compressors=None)


def repository(ic: ModuleType) -> Any:
    repo = ic.Repository.create(ic.in_memory_storage())
    session = repo.writable_session("main")
    array(session)
    session.commit("made")
    return repo


def values(repo: Any, name: str = "a") -> list[int]:
    return zarr.open_array(repo.readonly_session("main").store, path=name, mode="r")[:].tolist()


# --- distributed, dask, xarray -------------------------------------------------------------------------------------


@both
def test_forks_become_one(ic: ModuleType) -> None:
    repo = repository(ic)
    session = repo.writable_session("main")
    forks = [session.fork() for _ in range(3)]
    for i, fork in enumerate(forks):
        written = zarr.open_array(fork.store, path="a", mode="r+")
        written[2 * i : 2 * i + 2] = i + 1
        assert ic.distributed.extract_session(written, axis=0, keepdims=True).snapshot_id == session.snapshot_id
    merged = ic.distributed.merge_sessions(forks[0], [[forks[1]], [forks[2]]])
    assert merged is forks[0]
    session.merge(merged)
    session.commit("forks")
    assert values(repo) == [1, 1, 2, 2, 3, 3]


@both
def test_what_does_not_become_one(ic: ModuleType) -> None:
    session = repository(ic).writable_session("main")
    with pytest.raises(TypeError, match="merge_sessions only accepts ForkSession objects"):
        ic.distributed.merge_sessions(session)
    with pytest.raises(ValueError):
        ic.distributed.merge_sessions()
    with pytest.raises((TypeError, AttributeError)):
        ic.distributed.extract_session(zarr.create_array({}, shape=(2,), dtype="i4"))


@both
def test_dask_arrays_into_forks(ic: ModuleType) -> None:
    repo = repository(ic)
    session = repo.writable_session("main")
    fork = session.fork()
    target = zarr.open_array(fork.store, path="a", mode="r+")
    merged = ic.dask.store_dask(sources=[dask.array.arange(6, chunks=2, dtype="i4")], targets=[target], split_every=2)
    session.merge(merged)
    session.commit("dask")
    assert values(repo) == list(range(6))


@both
def test_reduction_of_what_dask_stored(ic: ModuleType) -> None:
    repo = repository(ic)
    session = repo.writable_session("main")
    array(session, "b")
    fork = session.fork()
    stored = [
        dask.array.store(
            dask.array.full(6, value, chunks=2, dtype="i4"),
            cast("Any", zarr.open_array(fork.store, path=name, mode="r+")),
            lock=False,
            compute=False,
            return_stored=True,
            load_stored=False,
        )
        for name, value in (("a", 3), ("b", 4))
    ]
    session.merge(ic.dask.session_merge_reduction(stored, split_every=None))
    session.commit("reduced")
    assert values(repo) == [3] * 6
    assert values(repo, "b") == [4] * 6
    assert isinstance(ic.dask.merge_sessions_array_kwargs(fork, axis=0, keepdims=False), ic.ForkSession)


@both
def test_placeholder_while_dask_infers(ic: ModuleType) -> None:
    @ic.dask.computing_meta  # type: ignore[untyped-decorator]
    def count(parts: list[int], **_: Any) -> int:
        """Counts."""
        return len(parts)

    assert count([1, 2]) == count([1, 2], computing_meta=False) == 2
    placeholder = count([1, 2], computing_meta=True)
    assert isinstance(placeholder, np.ndarray)
    assert placeholder.dtype == object
    assert count.__doc__ == "Counts."


@both
def test_to_icechunk(ic: ModuleType) -> None:
    repo = ic.Repository.create(ic.in_memory_storage())
    session = repo.writable_session("main")
    dataset = xr.Dataset({"t": ("x", np.arange(4.0))}).chunk({"x": 2})
    ic.xarray.to_icechunk(dataset, session, mode="w")
    session.commit("dataset")
    found = xr.open_zarr(repo.readonly_session("main").store, consolidated=False, chunks=None)
    xr.testing.assert_identical(found.load(), dataset.compute())


def test_the_engine_loads_none_of_them() -> None:
    code = (
        "import sys, icechunk_engine.xarray, icechunk_engine.dask, icechunk_engine.distributed;"
        "sys.exit(any(name in sys.modules for name in ('xarray', 'dask', 'xarray_icechunk')))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, timeout=100)
    assert done.returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'open_icechunk'"):
        ours.xarray.open_icechunk  # noqa: B018


# --- storages ------------------------------------------------------------------------------------------------------


def test_constructors_of_storages(tmp_path: Path) -> None:
    S = ours.Storage
    keys = ours.s3_static_credentials(access_key_id="k", secret_access_key="s")
    assert isinstance(S.new_in_memory(), MemoryStorage)
    assert S.new_local_filesystem(str(tmp_path)) == LocalStorage(tmp_path)
    options = ours.S3Options(region="eu-west-1", endpoint_url="http://localhost:9000", allow_http=True)
    plain: dict[str, Any] = {"region": "eu-west-1", "endpoint_url": "http://localhost:9000", "allow_http": True}
    credential: dict[str, Any] = {"access_key_id": "k", "secret_access_key": "s"}
    for made, wanted in (
        (S.new_s3(options, "b", "p", keys), ours.s3_storage(bucket="b", prefix="p", **plain, **credential)),
        (
            S.new_s3_object_store(options, "b", "p", keys, headers={"a": "b"}),
            ours.s3_object_store_storage(bucket="b", prefix="p", headers={"a": "b"}, **plain, **credential),
        ),
        (
            S.new_r2(ours.S3Options(), None, "b/p", "account", keys),
            ours.r2_storage(prefix="b/p", account_id="account", **credential),
        ),
        (
            S.new_tigris(ours.S3Options(region="iad"), "b", "p", False, keys),
            ours.tigris_storage(bucket="b", prefix="p", region="iad", **credential),
        ),
        (
            S.new_tigris(ours.S3Options(), "b", "p", True, keys),
            ours.tigris_storage(bucket="b", prefix="p", use_weak_consistency=True, **credential),
        ),
        (
            S.new_gcs("b", "p", ours.gcs_credentials(anonymous=True)),
            ours.gcs_storage(bucket="b", prefix="p", anonymous=True),
        ),
        (
            S.new_azure_blob("a", "c", "p", ours.azure_credentials(access_key="aGVsbG8=")),
            ours.azure_storage(account="a", container="c", prefix="p", access_key="aGVsbG8="),
        ),
        (S.new_http("https://host/path", None, {"a": "b"}), ours.http_storage("https://host/path", None, {"a": "b"})),
    ):
        assert type(made) is type(wanted)
        assert made == wanted
        assert pickle.loads(pickle.dumps(made)) == made
    assert isinstance(S.new_http("https://host/path"), ReadOnlyStorage)
    anonymous = S.new_s3(ours.S3Options(region="x", anonymous=True), "b", "p")
    assert anonymous == ours.s3_storage(bucket="b", prefix="p", region="x", anonymous=True)
    assert S.new_s3(ours.S3Options(region="x"), "b", "p") == ours.s3_storage(bucket="b", prefix="p", region="x")
    with pytest.raises(ours.StorageError, match="account_id must be provided"):
        S.new_r2(ours.S3Options(), "b", "p")
    with pytest.raises(ours.StorageError):
        S.new_redirect("nope")
    with pytest.raises(ours.InvalidInputError, match="not supported"):
        S.new_hf(ours.S3Options(), "b", "p", "owner")


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_listing_of_storages(kind: str, tmp_path: Path) -> None:
    found = []
    for ic in PACKAGES:
        place = str(tmp_path / ic.__name__)
        storage = ic.in_memory_storage() if kind == "memory" else ic.local_filesystem_storage(place)
        before = datetime.now(UTC).replace(microsecond=0)
        ic.Repository.create(storage)
        shown = storage.list_objects_metadata()
        assert [(one.key, one.size_bytes) for one in shown] == storage.list_objects()
        assert all(before <= one.created_at <= datetime.now(UTC) for one in shown)
        listings = [
            storage.list_objects(prefix=prefix) for prefix in (None, "", "snapshots", "snapshots/", "snap", "no")
        ]
        listings.append(storage.list_objects(ic.StorageSettings(), "transactions"))
        found.append([sorted(key for key, _ in listing) for listing in listings])
        settings = storage.default_settings()
        assert isinstance(settings, ic.StorageSettings)
        found[-1].append([settings.concurrency.max_concurrent_requests_for_object, settings.retries.max_tries])
    assert found[0] == found[1]


@both
def test_a_slow_storage(ic: ModuleType) -> None:
    inner = ic.in_memory_storage()
    storage = ic.testing.LatencyStorage(inner, write_latency_ms=0)
    ic.Repository.create(storage)
    assert (storage.write_latency_ms, storage.read_latency_ms) == (0, 0)
    storage.read_latency_ms = 30
    began = time.perf_counter()
    assert ic.Repository.exists(storage)
    assert time.perf_counter() - began >= 0.03
    with pytest.raises(OverflowError):
        storage.write_latency_ms = -1
    with pytest.raises(TypeError):
        storage.write_latency_ms = 1.5
    with pytest.raises(TypeError):
        ic.testing.LatencyStorage(inner, 5)


def test_latency_that_comes_later_is_waited_for() -> None:
    """Requests of a storage that waits go through the pool. A storage can start to wait at any time."""
    storage: Any = ours.testing.LatencyStorage(ours.in_memory_storage())
    assert not storage.is_remote
    storage.write_latency_ms = 1
    assert storage.is_remote
    storage.write_latency_ms = 0
    assert not storage.is_remote


# --- configuration, conflicts, snapshots ---------------------------------------------------------------------------


@both
def test_classes_of_conditions(ic: ModuleType) -> None:
    split, preload = ic.ManifestSplitCondition, ic.ManifestPreloadCondition
    for condition, kind in (
        (split.path_matches("a"), "PathMatches"),
        (split.name_matches("a"), "NameMatches"),
        (split.AnyArray(), "AnyArray"),
        (split.or_conditions([split.AnyArray()]), "Or"),
        (split.and_conditions([split.AnyArray()]), "And"),
        (preload.true(), "True"),
        (preload.false(), "False"),
        (preload.num_refs(1, 2), "NumRefs"),
        (preload.or_conditions([preload.true()]), "Or"),
        (preload.and_conditions([preload.true()]), "And"),
        (preload.path_matches("a"), "PathMatches"),
        (preload.name_matches("a"), "NameMatches"),
    ):
        base = split if isinstance(condition, split) else preload
        others = {"PathMatches", "NameMatches", "Or", "And"} - {kind}
        assert isinstance(condition, getattr(base, kind))
        assert not any(isinstance(condition, getattr(base, other)) for other in others)
    assert split.PathMatches("a") == split.PathMatches(regex="a") == split.path_matches("a")
    assert split.Or([split.AnyArray()]) == split.or_conditions([split.AnyArray()])
    assert preload.NumRefs(1, 2) == preload.num_refs(1, 2)
    assert getattr(preload, "True")() == preload.true()
    assert split.path_matches("a").regex == preload.NameMatches("a").regex == "a"
    assert (getattr(preload.num_refs(1, 2), "from"), preload.num_refs(1, None).to) == (1, None)
    assert split.Or([split.AnyArray()])._0 == [split.AnyArray()]
    match split.path_matches("^/a"):
        case split.NameMatches(regex):
            raise AssertionError(regex)
        case split.PathMatches(regex):
            assert regex == "^/a"
    with pytest.raises(AttributeError):
        split.AnyArray().regex  # noqa: B018


def test_conditions_stay_what_they_were() -> None:
    condition = ours.ManifestSplitCondition.Or([ours.ManifestSplitCondition.NameMatches("a$")])
    assert pickle.loads(pickle.dumps(condition)) == condition
    assert eval(repr(condition), vars(ours)) == condition
    assert condition.matches("/g/a")
    assert not condition.matches("/g/b")
    sizes: ours.config.SplitSizesDict = {condition: {ours.ManifestSplitDimCondition.Axis(0): 3}}
    assert ours.ManifestSplittingConfig.from_dict(sizes).to_dict() == sizes


@both
def test_kinds_of_updates_can_be_made(ic: ModuleType) -> None:
    made = ic.UpdateType.NewCommit(branch="main", new_snap_id="x")
    assert (made.branch, made.new_snap_id) == ("main", "x")
    assert isinstance(made, ic.UpdateType)
    assert ic.UpdateType.BranchReset("b", "y").previous_snap_id == "y"
    assert isinstance(ic.UpdateType.RepoInitialized(), ic.UpdateType)
    with pytest.raises(TypeError):
        ic.UpdateType.TagCreated()


@both
def test_refreshable_credentials_by_position(ic: ModuleType) -> None:
    when = datetime(2030, 1, 1, tzinfo=UTC)
    assert ic.AzureRefreshableCredential.AccessKey("k", when).expires_after == when
    assert ic.AzureRefreshableCredential.SasToken("t", when).expires_after == when
    assert ic.AzureRefreshableCredential.BearerToken("b", when).expires_after == when


def test_the_same_things_under_every_name() -> None:
    assert ours.conflicts.ConflictDetector is ours.ConflictDetector
    assert ours.snapshots.Diff is ours.Diff
    assert ours.virtual.VirtualChunkSpec is ours.VirtualChunkSpec
    assert ours.config.Attribution is ours.Attribution
    assert ours.config.FeatureFlag is ours.FeatureFlag
    assert ours.config.set_logs_filter is ours.set_logs_filter
    assert ours.storage.S3Options is ours.S3Options
    assert ours.storage.ChunkType is ours.ChunkType
    assert ours.storage.s3_store is ours.s3_store
    assert ours.ops.UpdateType is ours.UpdateType
