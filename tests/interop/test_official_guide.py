"""The code of the official Python guide does the same here if only the import changes.

Each program makes the calls of one topic of the guide with a given library, and returns the results that a user sees.
Both libraries must return the same results, and raise errors of the same class and kind. Intended differences are in
``docs/reference/differences.md`` and are left out here.
"""

from __future__ import annotations

import asyncio
import importlib
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dask.array as da
import icechunk as official
import numpy as np
import pytest
import xarray as xr
import zarr

import icechunk_engine as ours
import xarray_icechunk

Program = Callable[[Any, Path], object]


def xarray_module(lib: ModuleType) -> Any:
    """Return the module of ``to_icechunk``."""
    return importlib.import_module("icechunk.xarray") if lib is official else xarray_icechunk


def dask_module(lib: ModuleType) -> Any:
    """Return the module of ``store_dask``."""
    return importlib.import_module("icechunk.dask") if lib is official else xarray_icechunk


@dataclass(frozen=True)
class Refusal:
    """An error. Ours equals official's if code that catches official's catches ours, and the kinds are equal."""

    classes: tuple[str, ...]
    kind: str | None

    def __eq__(self, theirs: object) -> bool:
        if not isinstance(theirs, Refusal):
            return NotImplemented
        return theirs.classes[0] in self.classes and theirs.kind in (None, self.kind)


def refusal(call: Callable[[], object]) -> Refusal:
    """Return the error that a call must raise."""
    with pytest.raises(Exception, match="") as caught:
        call()
    kind = getattr(caught.value, "kind", None)
    return Refusal(tuple(cls.__name__ for cls in type(caught.value).__mro__), None if kind is None else str(kind))


def numbers(store: Any, path: str, index: Any = ...) -> list[Any]:
    return np.asarray(zarr.open_array(store, path=path, mode="r")[index]).tolist()


def attributes(repo: Any, **where: str) -> dict[str, Any]:
    return dict(zarr.open_group(repo.readonly_session(**where).store, mode="r").attrs)


def messages(repo: Any, **where: str) -> list[str]:
    return [snapshot.message for snapshot in repo.ancestry(**where)]


def quickstart(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    array = zarr.group(session.store).create("numbers", shape=10, dtype="int32", chunks=(5,))
    array[:] = 1
    first = session.commit("first")
    with repo.transaction("main", message="second") as store:
        zarr.open_group(store)["numbers"][:5] = 2
    history = [(info.message, info.written_at.tzinfo is not None) for info in repo.ancestry(branch="main")]
    then, now = repo.readonly_session(snapshot_id=first), repo.readonly_session("main")
    return numbers(then.store, "numbers"), numbers(now.store, "numbers"), history, session.read_only, len(first)


def opening(ic: Any, path: Path) -> object:
    storage = ic.local_filesystem_storage(str(path))
    found = [ic.Repository.exists(storage), refusal(lambda: ic.Repository.open(storage))]
    ic.Repository.create(storage)
    again = ic.Repository.open_or_create(storage)
    found += [ic.Repository.exists(storage), refusal(lambda: ic.Repository.create(storage)), again.list_branches()]
    found += [
        ic.Repository.fetch_spec_version(storage) == 2,
        again.spec_version == 2,
        pickle.loads(pickle.dumps(again)).list_tags(),
    ]
    memory = ic.in_memory_storage()
    return found, ic.Repository.create(memory).list_tags(), ic.Repository.open(memory).lookup_branch("main")


def branches_and_tags(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    ids = []
    for value in ("bar", "baz"):
        session = repo.writable_session("main")
        zarr.open_group(session.store, mode="a").attrs["foo"] = value
        ids.append(session.commit(message=f"foo is {value}"))
    found: list[object] = [messages(repo, branch="main"), attributes(repo, snapshot_id=ids[0])]
    repo.create_branch("dev", snapshot_id=ids[1])
    with repo.transaction("dev", message="on dev") as store:
        zarr.open_group(store).attrs["foo"] = "dev"
    repo.create_tag("v1", snapshot_id=ids[0])
    found += [repo.list_branches(), repo.list_tags(), repo.lookup_tag("v1") == ids[0], attributes(repo, tag="v1")]
    found += [messages(repo, branch="dev"), messages(repo, tag="v1"), attributes(repo, branch="dev")]
    repo.reset_branch("dev", snapshot_id=ids[0])
    found += [messages(repo, branch="dev"), repo.lookup_branch("dev") == ids[0]]
    repo.delete_branch("dev")
    repo.delete_tag("v1")
    found += [repo.list_branches(), repo.list_tags()]
    for call in (
        lambda: repo.create_tag("v1", ids[0]),
        lambda: repo.create_branch("main", ids[0]),
        lambda: repo.create_branch("x", "no id"),
        lambda: repo.delete_branch("main"),
        lambda: repo.delete_branch("none"),
        lambda: repo.delete_tag("none"),
        lambda: repo.lookup_branch("none"),
        lambda: repo.lookup_tag("none"),
        lambda: repo.writable_session("none"),
        lambda: repo.readonly_session(tag="none"),
        lambda: repo.ancestry(branch="none"),
        lambda: repo.reset_branch("main", ids[0], from_snapshot_id=ids[0]),
    ):
        found.append(refusal(call))
    return found


def time_travel(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    with repo.transaction("main", message="first") as store:
        zarr.create_group(store, attributes={"n": 1})
    between = datetime.now(UTC)
    with repo.transaction("main", message="second") as store:
        zarr.open_group(store).attrs["n"] = 2
    then = repo.readonly_session("main", as_of=between)
    return (
        dict(zarr.open_group(then.store, mode="r").attrs),
        refusal(lambda: repo.readonly_session("main", as_of=datetime(2000, 1, 1, tzinfo=UTC))),
        refusal(lambda: repo.readonly_session("main", as_of=datetime(2030, 1, 1))),
        refusal(repo.readonly_session),
    )


def history(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    start = repo.lookup_branch("main")
    with repo.transaction("main", message="make", metadata={"by": "me"}) as store:
        zarr.create_array(store, name="a", shape=(4,), chunks=(1,), dtype="i4", fill_value=0)[:2] = 1
    with repo.transaction("main", message="change") as store:
        zarr.open_array(store, path="a", mode="r+")[3:] = 2
        zarr.create_group(store, path="g", attributes={"x": 1})
    tip = repo.lookup_branch("main")
    diff = repo.diff(from_snapshot_id=start, to_branch="main")
    info = repo.lookup_snapshot(tip)
    return (
        (diff.new_arrays, diff.new_groups, {p: [list(i) for i in c] for p, c in diff.updated_chunks.items()}),
        (info.id == tip, info.message, info.parent_id == list(repo.ancestry(branch="main"))[1].id, info.metadata),
        list(repo.ancestry(branch="main"))[1].metadata,
        [type(update.kind).__name__ for update in repo.ops_log()],
        len(repo.list_manifest_files(tip)),
        [(sorted(node), node["path"]) for node in repo.inspect_snapshot(tip)["nodes"]],
        refusal(lambda: repo.diff(from_branch="main", to_snapshot_id=start)),
    )


def endings(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    repo.set_default_commit_metadata({"author": "me"})
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    found: list[object] = [session.has_uncommitted_changes, session.status().new_groups, session.branch]
    first = session.commit("first", {"k": [1, None]})
    found.append(repo.lookup_snapshot(first).metadata)
    found += [refusal(lambda: session.commit("again")), refusal(lambda: session.amend("again"))]
    found += [refusal(lambda: session.rebase(ic.ConflictDetector()))]
    found += [refusal(lambda: zarr.create_group(session.store, path="late"))]
    session = repo.writable_session("main")
    found.append(refusal(lambda: session.commit("nothing")))
    session.commit("nothing", allow_empty=True)
    session = repo.writable_session("main")
    zarr.open_group(session.store).attrs["a"] = 1
    session.amend("not quite nothing")
    found += [messages(repo, branch="main"), attributes(repo, branch="main")]
    session = repo.writable_session("main")
    zarr.open_group(session.store).attrs["a"] = 2
    session.discard_changes()
    found.append(session.has_uncommitted_changes)
    zarr.open_group(session.store).attrs["a"] = 3
    detached = session.flush("beside")
    found += [repo.lookup_branch("main") != detached, attributes(repo, snapshot_id=detached)]

    def fail() -> None:
        with repo.transaction("main", message="never") as store:
            zarr.open_group(store).attrs["a"] = 9
            raise KeyError("stop")

    return found, refusal(fail), attributes(repo, branch="main")


def conflicts(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    with repo.transaction("main", message="start") as store:
        zarr.create_group(store).create_array("data", shape=(4, 4), chunks=(1, 1), dtype="i4", fill_value=0)

    def both(write_one: Callable[[Any], object], write_two: Callable[[Any], object]) -> tuple[Any, Any]:
        one, two = repo.writable_session("main"), repo.writable_session("main")
        write_one(zarr.open_group(one.store))
        write_two(zarr.open_group(two.store))
        one.commit("one")
        return one, two

    def put(index: Any, value: int) -> Callable[[Any], object]:
        return lambda root: root["data"].__setitem__(index, value)

    _, two = both(put((0, 0), 1), put((0, slice(None)), 2))
    found: list[object] = [refusal(lambda: two.commit("two")), refusal(lambda: two.rebase(ic.ConflictDetector()))]
    try:
        two.rebase(ic.ConflictDetector())
    except ic.RebaseFailedError as error:
        found.append(
            [
                (c.path, c.conflict_type == ic.ConflictType.ChunkDoubleUpdate, c.conflicted_chunks)
                for c in error.conflicts
            ]
        )
        found.append(error.snapshot == repo.lookup_branch("main"))
    two.rebase(ic.BasicConflictSolver(on_chunk_conflict=ic.VersionSelection.UseTheirs))
    two.commit("two")
    found.append(numbers(repo.readonly_session("main").store, "data", 0))
    _, two = both(put((3, slice(None)), 3), put((2, slice(None)), 4))
    two.commit("two", rebase_with=ic.ConflictDetector())
    found.append(repo.lookup_snapshot(repo.lookup_branch("main")).metadata)
    found.append(numbers(repo.readonly_session("main").store, "data"))
    _, two = both(lambda root: root.attrs.update(a=1), lambda root: root.attrs.update(a=2))
    found += [
        refusal(lambda: two.rebase(ic.ConflictDetector())),
        refusal(lambda: two.rebase(ic.BasicConflictSolver())),
    ]
    with pytest.raises(ic.ConflictError) as caught:
        two.commit("two")
    found.append(
        (caught.value.expected_parent == two.snapshot_id, caught.value.actual_parent == repo.lookup_branch("main"))
    )
    _, two = both(lambda root: root.create_group("g"), lambda root: root.create_group("h"))
    with repo.transaction("main", message="i", rebase_with=ic.ConflictDetector(), rebase_tries=3) as store:
        zarr.create_group(store, path="i")
    two.commit("two", rebase_with=ic.BasicConflictSolver())
    return found, sorted(name for name, _ in zarr.open_group(repo.readonly_session("main").store, mode="r").members())


def configuration(ic: Any, path: Path) -> object:
    config = ic.RepositoryConfig.default()
    config.inline_chunk_threshold_bytes = 100
    config.compression = ic.CompressionConfig(level=5, algorithm=ic.CompressionAlgorithm.Zstd)
    config.caching = ic.CachingConfig(num_snapshot_nodes=100, num_chunk_refs=200, num_bytes_chunks=1_000)
    config.storage = ic.StorageSettings(
        concurrency=ic.StorageConcurrencySettings(
            max_concurrent_requests_for_object=10, ideal_concurrent_request_size=1_000_000
        ),
        retries=ic.StorageRetriesSettings(max_tries=3, initial_backoff_ms=10, max_backoff_ms=100),
        chunks_storage_class="STANDARD_IA",
    )
    for name, region in (("one", "us-east-1"), ("two", "us-west-2")):
        config.set_virtual_chunk_container(ic.VirtualChunkContainer(f"s3://{name}/", ic.s3_store(region=region)))
    config.manifest = ic.ManifestConfig(
        preload=ic.ManifestPreloadConfig(
            max_total_refs=1000, preload_if=ic.ManifestPreloadCondition.name_matches(".*time|.*latitude")
        )
    )
    storage = ic.local_filesystem_storage(str(path))
    ic.Repository.create(storage, config=config)

    def seen(found: Any) -> object:
        return (
            found.inline_chunk_threshold_bytes,
            found.compression.level,
            (found.caching.num_snapshot_nodes, found.caching.num_chunk_refs, found.caching.num_bytes_chunks),
            found.storage.concurrency.max_concurrent_requests_for_object,
            found.storage.chunks_storage_class,
            sorted(found.virtual_chunk_containers),
            found.get_virtual_chunk_container("s3://one/").url_prefix,
            found.manifest.preload.max_total_refs,
        )

    stored = ic.Repository.fetch_config(storage)
    credentials = ic.containers_credentials(
        {"s3://one/": ic.s3_credentials(anonymous=True), "s3://two/": ic.s3_credentials(from_env=True)}
    )
    repo = ic.Repository.open(
        storage,
        config=ic.RepositoryConfig(inline_chunk_threshold_bytes=7),
        authorize_virtual_chunk_access=credentials,
    )
    before = seen(repo.config)
    repo.save_config()
    return (
        seen(stored),
        before,
        seen(ic.Repository.open(storage).config),
        repo.authorized_virtual_container_prefixes,
        repo.reopen(ic.RepositoryConfig(max_concurrent_requests=10)).config.max_concurrent_requests,
        refusal(
            lambda: config.set_virtual_chunk_container(ic.VirtualChunkContainer("s3://a", ic.s3_store(region="x")))
        ),
        refusal(lambda: ic.s3_credentials(bucket="x")),  # a mistake in the guide: this argument does not exist
    )


def storages(ic: Any, path: Path) -> object:
    place = {"bucket": "b", "prefix": "p"}
    keys = {"access_key_id": "a", "secret_access_key": "s"}
    made = [
        ic.s3_storage(**place, from_env=True),
        ic.s3_storage(**place, region="us-east-1", **keys, session_token="t", endpoint_url=None, allow_http=False),
        ic.s3_storage(**place, region="us-east-1", anonymous=True, network_stream_timeout_seconds=50),
        ic.s3_storage(
            **place, region="x", **keys, endpoint_url="http://localhost:1", allow_http=True, force_path_style=True
        ),
        ic.tigris_storage(**place, **keys, region="iad"),
        ic.r2_storage(**place, **keys, account_id="account"),
        ic.r2_storage(prefix="bucket/p", endpoint_url="https://public"),
        ic.gcs_storage(**place, from_env=True),
        ic.gcs_storage(**place, bearer_token="t"),
        ic.gcs_storage(**place, service_account_key='{"type": "service_account"}'),
        ic.azure_storage(account="a", container="c", prefix="p", from_env=True),
        ic.azure_storage(account="a", container="c", prefix="p", access_key="aGk="),
        ic.local_filesystem_storage(str(path)),
        ic.in_memory_storage(),
        ic.http_storage("https://example.com/repository"),
    ]
    return [isinstance(storage, ic.Storage) for storage in made]


def splitting(ic: Any, path: Path) -> object:
    storage = ic.local_filesystem_storage(str(path))

    def config(size: int) -> Any:
        rule = {ic.ManifestSplitCondition.AnyArray(): {ic.ManifestSplitDimCondition.Any(): size}}
        splitting = ic.ManifestSplittingConfig.from_dict(rule)
        return ic.RepositoryConfig(manifest=ic.ManifestConfig(splitting=splitting))

    either = ic.ManifestSplitCondition.name_matches("t") | ic.ManifestSplitCondition.path_matches("s")
    ic.ManifestSplittingConfig.from_dict({either: {ic.ManifestSplitDimCondition.DimensionName("x"): 3}})
    both = ic.ManifestPreloadCondition.name_matches("x") & ic.ManifestPreloadCondition.num_refs(1000, 10000)
    ic.ManifestPreloadConfig(preload_if=both, max_total_refs=10)

    repo = ic.Repository.create(storage, config=config(1))
    session = repo.writable_session("main")
    array = zarr.group(session.store).create_array(name="a", shape=(10,), dtype=int, chunks=(1,))
    array[:5] = np.arange(10, 15)
    counts = []

    def commit(session: Any) -> None:
        files = repo.list_manifest_files(session.commit("more"))
        counts.append(sorted(file.num_chunk_refs for file in files))

    commit(session)
    repo = ic.Repository.open(storage, config=config(5))
    for chunks, values in ((slice(6, 9), [1, 2, 3]), (slice(3, 7), [1, 2, 3, 4])):
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="a", mode="a")[chunks] = values
        commit(session)
    return counts, numbers(repo.readonly_session("main").store, "a")


def moving_chunks(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    session = repo.writable_session("main")
    array = zarr.create(store=session.store, path="a", shape=(10,), chunks=(2,), dtype="i4", fill_value=-1)
    found = []

    def after(call: Callable[[], object]) -> None:
        array[:] = np.arange(array.shape[0])
        found.append((call(), np.asarray(array[:]).tolist()))

    after(lambda: session.shift_array("/a", (-2,)))
    after(lambda: session.shift_array("/a", [2]))
    after(lambda: session.reindex_array("/a", lambda index: None if index[0] < 2 else [index[0] - 2]))
    after(lambda: session.reindex_array("/a", lambda index: [4 - index[0]]))
    array.resize((14,))
    after(lambda: session.shift_array("/a", (2,)))
    uneven = zarr.create_array(session.store, name="c", data=np.arange(11), chunks=(5,), fill_value=-1)
    session.shift_array("/c", (-1,))
    found.append((None, np.asarray(uneven[:]).tolist()))
    square = zarr.create(store=session.store, path="b", shape=(4, 4), chunks=(2, 2), dtype="i4", fill_value=-1)
    square[:] = np.arange(16).reshape(4, 4)
    session.reindex_array("/b", lambda index: [(index[0] + 1) % 2, (index[1] + 1) % 2])
    session.commit("moved")
    store = repo.readonly_session("main").store
    session = repo.writable_session("main")
    return (
        found,
        numbers(store, "a"),
        numbers(store, "b"),
        refusal(lambda: session.shift_array("/none", (1,))),
        refusal(lambda: repo.readonly_session("main").shift_array("/a", (1,))),
    )


def moving_nodes(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    with repo.transaction("main", message="make") as store:
        root = zarr.group(store=store, overwrite=True)
        root.create_group("my/old/path").create_array("a", shape=(4,), chunks=(2,), dtype="i4", fill_value=4)
    before = {name: repo.readonly_session("main").get_node_id(f"/my/old/path{name}") for name in ("", "/a")}
    session = repo.rearrange_session("main")
    session.move("/my/old", "/my/new")
    session.commit("renamed")
    newest, older, *_ = repo.ancestry(branch="main")
    reader = repo.readonly_session("main")
    session = repo.rearrange_session("main")
    refused = [
        refusal(lambda: session.move("/my/new/path", "/my/new/path")),
        refusal(lambda: session.move("/none", "/my/x")),
        refusal(lambda: session.move("/my/new", "/none/x")),
        refusal(lambda: session.move("/my", "/my/new/x")),
        refusal(lambda: zarr.group(store=session.store, overwrite=True)),
        refusal(lambda: repo.writable_session("main").move("/my/new", "/my/x")),
    ]
    late = repo.writable_session("main")
    zarr.open_group(late.store).create_group("other")
    session.move("/my/new", "/top")
    session.commit("moved again")
    refused += [refusal(lambda: late.commit("late")), refusal(lambda: late.rebase(ic.ConflictDetector()))]
    repo.set_feature_flag("move_node", False)
    refused.append(refusal(lambda: repo.rearrange_session("main")))
    return (
        repo.diff(from_snapshot_id=older.id, to_snapshot_id=newest.id).moved_nodes,
        numbers(reader.store, "my/new/path/a"),
        {name: reader.get_node_id(f"/my/new/path{name}") == node_id for name, node_id in before.items()},
        refused,
        {flag.name: (flag.enabled, flag.setting) for flag in repo.feature_flags()},
    )


def virtual(ic: Any, path: Path) -> object:
    np.arange(50, dtype="u4").tofile(path / "data.bin")
    prefix = f"file://{path}/"
    config = ic.RepositoryConfig.default()
    config.set_virtual_chunk_container(ic.VirtualChunkContainer(prefix, ic.local_filesystem_store(str(path))))
    storage = ic.in_memory_storage()
    access = ic.containers_credentials(
        {prefix: ic.LocalFileSystemAccess() if hasattr(ic, "LocalFileSystemAccess") else None}
    )
    repo = ic.Repository.create(storage, config, access)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(20,), chunks=(10,), dtype="u4", compressors=None, filters=None)
    url = f"{prefix}data.bin"
    session.store.set_virtual_ref("a/c/0", url, offset=0, length=40)
    refused_indices = session.store.set_virtual_refs(
        "a", [ic.VirtualChunkSpec([1], url, 40, 40), ic.VirtualChunkSpec([0], "file:///elsewhere", 0, 40)]
    )
    session.commit("virtual")
    reader = repo.readonly_session("main")

    async def coordinates() -> list[tuple[int, ...]]:
        return [tuple(index) async for index in reader.chunk_coordinates("/a")]

    writer = repo.writable_session("main")
    old = datetime(2000, 1, 1, tzinfo=UTC)
    writer.store.set_virtual_ref("a/c/0", url, offset=0, length=40, checksum=old)
    return (
        numbers(reader.store, "a"),
        refused_indices,
        reader.chunk_type("/a", [0]) == ic.ChunkType.virtual,
        asyncio.run(coordinates()),
        refusal(lambda: numbers(ic.Repository.open(storage).readonly_session("main").store, "a")),
        numbers(
            ic.Repository.open(storage, authorize_virtual_chunk_access=access).readonly_session("main").store, "a"
        ),
        refusal(lambda: numbers(writer.store, "a")),
        refusal(lambda: writer.store.set_virtual_ref("a/c/0", "file:///elsewhere", offset=0, length=1)),
        refusal(lambda: writer.store.set_virtual_ref("b/c/0", url, offset=0, length=1)),
        refusal(lambda: writer.store.set_virtual_ref("a/zarr.json", url, offset=0, length=1)),
        refusal(lambda: writer.store.set_virtual_ref("a/c/0", "/no/url", offset=0, length=1)),
    )


def parallel(ic: Any, path: Path) -> object:
    data = xr.Dataset({"t": (("time", "x"), np.arange(12.0).reshape(4, 3))}, coords={"time": np.arange(4)})
    repo = ic.Repository.create(ic.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    data.chunk(time=1).to_zarr(
        session.store, compute=False, encoding={"t": {"chunks": (1, 3)}}, mode="w", consolidated=False
    )
    session.commit("layout")

    def write(session: Any, time: int, offset: float) -> Any:
        (data.isel(time=[time]) + offset).to_zarr(session.store, region="auto", consolidated=False)
        return session

    def values() -> list[Any]:
        return np.asarray(xr.open_zarr(repo.readonly_session("main").store, consolidated=False).t).tolist()

    session = repo.writable_session("main")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda time: write(session, time, 0), range(4)))
    session.commit("threads, one session")
    found = [values()]
    session = repo.writable_session("main")
    forks = [pickle.loads(pickle.dumps(session.fork())) for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        forks = [pickle.loads(pickle.dumps(fork)) for fork in pool.map(write, forks, range(4), [100.0] * 4)]
    session.merge(*forks)
    session.commit("forks")
    found.append(values())
    session = repo.writable_session("main")
    fork = session.fork()
    reader = pickle.loads(pickle.dumps(repo.readonly_session("main")))
    return (
        found,
        refusal(lambda: pickle.dumps(session)),
        refusal(lambda: fork.commit("x")),
        refusal(lambda: fork.amend("x")),
        refusal(lambda: fork.rebase(ic.ConflictDetector())),
        refusal(lambda: fork.merge(session)),
        refusal(lambda: repo.readonly_session("main").fork()),
        refusal(lambda: repo.readonly_session("main").merge(fork)),
        numbers(reader.store, "time"),
    )


def optimistic_writers(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    with repo.transaction("main", message="start") as store:
        zarr.create(shape=(10, 10), chunks=(5, 5), store=store, overwrite=True)

    def work(number: int) -> None:
        while True:
            session = repo.writable_session("main")
            root = zarr.open(session.store, mode="r+")
            attributes: Any = root.attrs
            attributes["done"] = [*attributes.get("done", []), number]
            try:
                session.commit(f"worker {number}")
            except ic.ConflictError:
                continue
            return

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    done: Any = zarr.open(repo.readonly_session(branch="main").store, mode="r").attrs["done"]
    return sorted(done), sorted(messages(repo, branch="main"))


def with_xarray(ic: Any, path: Path) -> object:
    to_icechunk = xarray_module(ic).to_icechunk
    data = xr.Dataset({"t": (("time", "x"), np.arange(12.0).reshape(4, 3))}, coords={"time": np.arange(4)})
    repo = ic.Repository.create(ic.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    to_icechunk(data.isel(time=slice(2)), session)
    first = session.commit("first half")
    session = repo.writable_session("main")
    to_icechunk(data.isel(time=slice(2, None)), session, append_dim="time")
    session.commit("second half")
    session = repo.writable_session("main")
    to_icechunk(data.isel(time=slice(1, 2))[["t"]].drop_vars("time") * 10, session, region={"time": slice(1, 2)})
    to_icechunk(data, session, group="copy", mode="w", encoding={"t": {"chunks": (1, 3)}})
    data.to_zarr(session.store, group="other", zarr_format=3, consolidated=False)
    data.to_zarr(session.store, group="other", append_dim="time", consolidated=False)
    session.commit("more")
    session = repo.writable_session("main")
    del zarr.open_group(session.store)["copy"]
    session.commit("less")
    store = repo.readonly_session("main").store
    return (
        xr.open_zarr(repo.readonly_session(snapshot_id=first).store, consolidated=False).sizes["time"],
        np.asarray(xr.open_zarr(store, zarr_format=3, consolidated=False).t).tolist(),
        np.asarray(xr.open_dataset(store, engine="zarr", group="other", consolidated=False).t).shape,
        sorted(name for name, _ in zarr.open_group(store, mode="r").members()),
        refusal(lambda: to_icechunk(data, repo.writable_session("main"))),
    )


def with_dask(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    zarr.group(store=session.store, overwrite=True).create_array(
        "a", shape=(20, 20), chunks=(5, 5), dtype="f8", fill_value=float("nan")
    )
    session.commit("layout")
    session = repo.writable_session("main")
    target = zarr.open_array(session.fork().store, path="a")
    source = da.arange(400, chunks=100).reshape(20, 20).rechunk((10, 10)).astype("f8")
    session.merge(dask_module(ic).store_dask(sources=[source], targets=[target]))
    data = xr.Dataset({"t": (("time", "x"), np.arange(20.0).reshape(10, 2))}).chunk(time=1)
    xarray_module(ic).to_icechunk(data, session, group="ds", mode="w")
    session.commit("dask")
    store = repo.readonly_session("main").store
    return float(np.sum(numbers(store, "a"))), data.identical(xr.open_zarr(store, group="ds", consolidated=False))


def coroutines(ic: Any, path: Path) -> object:
    async def run() -> object:
        storage = ic.in_memory_storage()
        repo = await ic.Repository.create_async(storage)
        session = await repo.writable_session_async("main")
        await asyncio.to_thread(zarr.create_group, session.store)
        tip = await session.commit_async("made")
        await repo.create_tag_async("v1", tip)
        again = await ic.Repository.open_async(storage)
        return (
            await again.list_branches_async(),
            await again.list_tags_async(),
            [info.message async for info in again.async_ancestry(branch="main")],
            await again.lookup_tag_async("v1") == tip,
            (await again.readonly_session_async(tag="v1")).snapshot_id == tip,
            await ic.Repository.exists_async(ic.in_memory_storage()),
        )

    return asyncio.run(run())


def upgrading(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.local_filesystem_storage(str(path)), spec_version=1)
    with repo.transaction("main", message="old") as store:
        zarr.create_group(store, attributes={"a": 1})
    refused = [refusal(repo.ops_log), refusal(lambda: repo.create_tag("a/b", repo.lookup_branch("main")))]
    ic.upgrade_icechunk_repository(repo, dry_run=True)
    repo = ic.upgrade_icechunk_repository(repo, dry_run=False)
    kinds = [type(update.kind).__name__ for update in repo.ops_log()]
    return refused, int(repo.spec_version), kinds, attributes(repo, branch="main")


def administration(ic: Any, path: Path) -> object:
    repo = ic.Repository.create(ic.in_memory_storage())
    repo.set_metadata({"a": 1, "b": {"c": [1, 2]}})
    repo.update_metadata({"b": 2})
    frozen = ic.RepoStatus(ic.RepoAvailability.read_only, limited_availability_reason="moving")
    repo.set_status(frozen)
    found: list[object] = [repo.get_metadata(), repo.get_status().limited_availability_reason]
    found += [
        refusal(lambda: repo.writable_session("main")),
        refusal(lambda: repo.create_branch("x", repo.lookup_branch("main"))),
    ]
    repo.set_status(ic.RepoStatus(ic.RepoAvailability.online))
    found += [repo.get_status().availability == ic.RepoAvailability.online, repo.writable_session("main").branch]
    found.append(refusal(lambda: repo.set_feature_flag("none", True)))
    recent = repo.get_status().set_at
    return found, abs(recent - datetime.now(UTC)) < timedelta(minutes=1), sorted(repo.inspect_repo_info())


PROGRAMS: list[Program] = [
    quickstart,
    opening,
    branches_and_tags,
    time_travel,
    history,
    endings,
    conflicts,
    configuration,
    storages,
    splitting,
    moving_chunks,
    moving_nodes,
    virtual,
    parallel,
    optimistic_writers,
    with_xarray,
    with_dask,
    coroutines,
    upgrading,
    administration,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_both_libraries_do_the_same(program: Program, tmp_path: Path) -> None:
    found = []
    for lib in (official, ours):
        path = tmp_path / lib.__name__
        path.mkdir()
        found.append(program(lib, path))
    assert found[1] == found[0]
