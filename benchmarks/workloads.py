"""The workloads. Each takes an engine, a folder and a size, and checks its own result.

``prepare`` runs in a separate process and is not measured. ``run`` measures the phases that it names. Both are written
as users would write them, with the API that the two libraries share.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
import zarr.buffer

from . import fork_maker, many_workers, many_writers, network
from .building import create, create_array, grid, open_, references
from .engines import ENGINES, Engine
from .measure import Phases

PROTOTYPE = zarr.buffer.default_buffer_prototype()
FORKS = 16
_PER_FORK = f"{fork_maker.REFS_PER_FORK:,}"
FAR = f"with {network.LATENCY_MS} ms before each answer"


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload. ``size`` is the number of things in its title, ``tiny`` is the size for tests."""

    name: str
    title: str
    size: int
    tiny: int
    run: Callable[[Engine, Path, int, Phases], None]
    prepare: Callable[[Engine, Path, int], None] | None = None
    engines: tuple[str, ...] = ENGINES
    """The libraries that can do it."""


# ---- virtual references -------------------------------------------------------------------------------------------


def commit_references(engine: Engine, path: Path, count: int) -> None:
    """Create a repository with one array of ``count`` virtual references."""
    virtual_refs_set(engine, path, count, Phases())


def virtual_refs_set(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    shape = grid(count)
    locations, offsets, lengths = references(shape)
    repository = create(engine, path, virtual=True)
    session = repository.writable_session("main")
    store = session.store
    create_array(store, "t2m", (shape[0], shape[1] * 10), (1, 10))
    with phases.phase("set"):
        failed = store.set_virtual_refs_arr("t2m", shape, locations, offsets, lengths)
    with phases.phase("commit"):
        session.commit("virtual references")
    assert failed is None
    assert (
        repository.readonly_session("main").chunk_type("/t2m", (shape[0] - 1, shape[1] - 1))
        == engine.ic.ChunkType.virtual
    )


def virtual_refs_change(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    shape = grid(count)
    locations, offsets, lengths = references((1, 1), first_file=shape[0])
    with phases.phase("open"):
        repository = open_(engine, path)
        session = repository.writable_session("main")
    with phases.phase("set"):
        session.store.set_virtual_ref(
            f"t2m/c/{shape[0] // 2}/{shape[1] // 2}", locations[0], offset=int(offsets[0]), length=int(lengths[0])
        )
    with phases.phase("commit"):
        session.commit("one change")
    reopened = open_(engine, path).readonly_session("main")
    assert locations[0] in reopened.all_virtual_chunk_locations()


def coordinates_listed(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    session = open_(engine, path).readonly_session("main")

    async def count_coordinates() -> int:
        seen = 0
        async for _ in session.chunk_coordinates("/t2m"):
            seen += 1
        return seen

    async def count_columns() -> int:
        seen = 0
        async for coordinates, *_ in session.store.array_chunk_iterator("/t2m"):
            seen += len(coordinates)
        return seen

    with phases.phase("chunk_coordinates"):
        seen = asyncio.run(count_coordinates())
    assert seen == count
    session = open_(engine, path).readonly_session("main")
    with phases.phase("array_chunk_iterator"):
        seen = asyncio.run(count_columns())
    assert seen == count


# ---- chunks that zarr writes --------------------------------------------------------------------------------------


def _small_chunks(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    elements = 1024  # 4 KiB a chunk: above the inline threshold, so that each chunk is an object
    values = np.random.default_rng(0).standard_normal(count * elements).astype("f4")
    repository = create(engine, path)
    session = repository.writable_session("main")
    array = create_array(session.store, "a", values.shape, (elements,))
    with phases.phase("write"):
        array[:] = values
    with phases.phase("commit"):
        session.commit("small chunks")
    with phases.phase("read"):
        read = zarr.open_array(open_(engine, path).readonly_session("main").store, path="a", mode="r")[:]
    np.testing.assert_array_equal(read, values)


def small_chunks(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    _small_chunks(engine, path, count, phases)


def small_chunks_fused(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    fused = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": fused}):
        _small_chunks(engine, path, count, phases)


def large_chunks(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    elements = 1024 * 1024  # 4 MiB a chunk
    values = np.random.default_rng(0).integers(0, 2**32, count * elements, dtype="u4")
    repository = create(engine, path)
    session = repository.writable_session("main")
    array = create_array(session.store, "a", values.shape, (elements,), "u4")
    with phases.phase("write"):
        array[:] = values
    with phases.phase("commit"):
        session.commit("large chunks")
    with phases.phase("read"):
        read = zarr.open_array(open_(engine, path).readonly_session("main").store, path="a", mode="r")[:]
    assert np.array_equal(read, values)


# ---- xarray -------------------------------------------------------------------------------------------------------


def many_variables(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    rng = np.random.default_rng(0)
    dataset = xr.Dataset(
        {
            f"variable_{number:03d}": (
                ("y", "x"),
                rng.standard_normal((20, 30)),
                {"units": "K", "long_name": f"quantity {number}"},
            )
            for number in range(count)
        },
        coords={"y": np.arange(20.0), "x": np.arange(30.0)},
    )
    with phases.phase("create"):
        repository = create(engine, path)
        session = repository.writable_session("main")
        engine.to_icechunk(dataset, session)
        session.commit("many variables")
    with phases.phase("open"), engine.open_dataset(str(path), open_(engine, path)) as opened:
        pass
    with phases.phase("load"):
        opened.load()
    xr.testing.assert_identical(opened.drop_encoding(), dataset)


# ---- forks and commits --------------------------------------------------------------------------------------------


def forks_merged(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    files, per_file = grid(count)
    parts = [references((files, per_file), first_file=number * files) for number in range(FORKS)]
    repository = create(engine, path, virtual=True)
    session = repository.writable_session("main")
    create_array(session.store, "t2m", (FORKS * files, per_file * 10), (1, 10))
    session.commit("empty array")
    session = repository.writable_session("main")

    results = []
    for number, (locations, offsets, lengths) in enumerate(parts):
        with phases.phase("fork, send"):
            fork = pickle.loads(pickle.dumps(session.fork()))
        with phases.phase("set"):
            failed = fork.store.set_virtual_refs_arr(
                "t2m", (files, per_file), locations, offsets, lengths, arr_offset=(number * files, 0)
            )
        assert failed is None
        with phases.phase("send back"):
            results.append(pickle.loads(pickle.dumps(fork)))
    with phases.phase("merge"):
        session.merge(*results)
    with phases.phase("commit"):
        session.commit("merged forks")
    last = repository.readonly_session("main").chunk_type("/t2m", (FORKS * files - 1, per_file - 1))
    assert last == engine.ic.ChunkType.virtual


def small_commits(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    repository = create(engine, path)
    session = repository.writable_session("main")
    create_array(session.store, "a", (count * 10,), (10,))
    session.commit("empty array")
    with phases.phase("commit"):
        for number in range(count):
            session = repository.writable_session("main")
            array = zarr.open_array(session.store, path="a", mode="r+")
            array[number * 10 : (number + 1) * 10] = number + 1
            session.commit(f"step {number}")
    with phases.phase("ancestry"):
        history = list(repository.ancestry(branch="main"))
    assert len(history) == count + 2
    read = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[:]
    np.testing.assert_array_equal(read, np.repeat(np.arange(count) + 1, 10))


# ---- repositories that have grown ---------------------------------------------------------------------------------


def grow_history(engine: Engine, path: Path, count: int) -> None:
    """Create a repository with ``count`` snapshots, of which only the first and the last have files.

    So many real commits would take minutes with either library, and the measured phases do not read the snapshots.
    """
    from icechunk_engine.catalog.changes import AddCommit, advance
    from icechunk_engine.format.repo_info import decode_repo_info, encode_repo_info
    from icechunk_engine.format.snapshot_table import SnapshotRecord
    from icechunk_engine.ids import SnapshotId

    repository = create(engine, path)
    session = repository.writable_session("main")
    create_array(session.store, "a", (10,), (10,))[:] = 1
    last = session.commit("array")
    info = decode_repo_info((path / "repo").read_bytes())
    tip = info.snapshots.record(info.snapshots.find(SnapshotId.from_str(last)))
    middle = tip.id
    for number in range(count - 2):
        at_us = tip.flushed_at_us + number + 1
        made = SnapshotRecord(
            id=SnapshotId.random(), parent_id=middle, flushed_at_us=at_us, message=f"step {number}", metadata={}
        )
        info = advance(info, AddCommit("main", made), now_us=at_us, backup_name="none", max_updates=1000)
        middle = made.id
    (path / "repo").write_bytes(encode_repo_info(info))


def long_history(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    with phases.phase("open"):
        repository = open_(engine, path)
    with phases.phase("branch"):
        for _ in range(10):
            tip = repository.lookup_branch("main")
    with phases.phase("ancestry"):
        history = list(repository.ancestry(branch="main"))
    with phases.phase("tags"):
        for number in range(10):
            repository.create_tag(f"v{number}", tip)
    assert len(history) == count


def grow_hierarchy(engine: Engine, path: Path, count: int) -> None:
    """Create ``count`` arrays with one chunk each, in groups of a hundred. Then write one more chunk."""
    repository = create(engine, path)
    session = repository.writable_session("main")
    template = create_array(session.store, "group_000/array_00", (10,), (10,))
    document = asyncio.run(session.store.get("group_000/array_00/zarr.json", PROTOTYPE))
    template[:] = 1
    chunk = PROTOTYPE.buffer.from_bytes(np.ones(10, "f4").tobytes())

    async def write() -> None:
        for number in range(1, count):
            name = f"group_{number // 100:03d}/array_{number % 100:02d}"
            await session.store.set(f"{name}/zarr.json", document)
            await session.store.set(f"{name}/c/0", chunk)

    asyncio.run(write())
    session.commit("many arrays")
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="group_000/array_00")[:] = 2
    session.commit("one change")


def many_arrays(engine: Engine, path: Path, count: int, phases: Phases) -> None:
    with phases.phase("open"):
        repository = open_(engine, path)
        session = repository.readonly_session("main")
        array = zarr.open_array(session.store, path="group_000/array_00", mode="r")
    with phases.phase("read"):
        assert array[0] == 2

    async def list_all() -> int:
        return sum([1 async for key in session.store.list() if "/array_" in key and key.endswith("/zarr.json")])

    with phases.phase("list"):
        listed = asyncio.run(list_all())
    with phases.phase("diff"):
        newest, previous, *_ = repository.ancestry(branch="main")
        changed = repository.diff(from_snapshot_id=previous.id, to_snapshot_id=newest.id)
    with phases.phase("commit"):
        session = repository.writable_session("main")
        zarr.open_array(session.store, path="group_000/array_00")[:] = 3
        session.commit("another change")
    assert listed == count
    assert list(changed.updated_chunks) == ["/group_000/array_00"]


WORKLOADS = (
    Workload("virtual_refs_set", "virtual references set and committed", 1_000_000, 40, virtual_refs_set),
    Workload(
        "virtual_refs_change",
        "virtual references committed before, one changed",
        1_000_000,
        40,
        virtual_refs_change,
        commit_references,
    ),
    Workload(
        "coordinates_listed",
        "chunk coordinates listed",
        1_000_000,
        40,
        coordinates_listed,
        commit_references,
    ),
    Workload("small_chunks", "chunks of 4 KiB, zarr's default pipeline", 10_000, 12, small_chunks),
    Workload("small_chunks_fused", "chunks of 4 KiB, zarr's fused pipeline", 10_000, 12, small_chunks_fused),
    Workload("large_chunks", "chunks of 4 MiB", 128, 2, large_chunks),
    Workload("many_variables", "variables in one xarray dataset", 300, 3, many_variables),
    Workload("forks_merged", f"references in each of {FORKS} forks, pickled and merged", 50_000, 20, forks_merged),
    Workload("dask_tasks", "tasks of dask that write a chunk each", 1000, 4, many_workers.dask_tasks),
    Workload("fork_pickle", "pickles of a fork without edits", 1000, 3, many_workers.fork_pickle),
    Workload(
        "merge_virtual", f"forks with {_PER_FORK} virtual references merged", 1000, 2, many_workers.merge_virtual
    ),
    Workload(
        "merge_native",
        f"forks with {_PER_FORK} native references merged",
        1000,
        2,
        many_workers.merge_native,
        engines=("ours",),
    ),
    Workload("merge_inline", f"forks with {_PER_FORK} inline chunks merged", 1000, 2, many_workers.merge_inline),
    Workload(
        "writers", f"processes, {many_writers.COMMITS} commits each to one local branch", 50, 2, many_writers.writers
    ),
    Workload("small_commits", "small commits", 300, 3, small_commits),
    Workload("long_history", "snapshots in one history", 10_000, 3, long_history, grow_history),
    Workload("many_arrays", "arrays in one repository", 20_000, 3, many_arrays, grow_hierarchy),
    Workload("network_open", f"variables opened {FAR}", 20, 3, network.opening, network.opening_prepared),
    Workload(
        "network_append", f"arrays, a step appended {FAR}", 175, 3, network.appending, network.appending_prepared
    ),
    Workload("network_read", f"chunks of 4 KiB read {FAR}", 1000, 12, network.reading, network.reading_prepared),
    Workload(
        "network_xarray",
        f"chunks of 4 KiB through xarray {FAR}",
        1000,
        12,
        network.reading_xarray,
        network.reading_xarray_prepared,
    ),
    Workload(
        "network_large",
        f"chunks of 16 MiB read {FAR}",
        24,
        2,
        network.reading_large,
        network.reading_large_prepared,
    ),
    Workload(
        "network_writers",
        f"processes, {many_writers.FAR_COMMITS} commits each to one branch {FAR}",
        16,
        2,
        many_writers.far_writers,
    ),
    Workload("network_write", f"chunks of 4 KiB written and committed {FAR}", 1000, 12, network.writing),
)


NETWORK = "network"
"""The name for all workloads ``network_…``."""


def named(name: str) -> list[Workload]:
    """Return the workload with this name, or those of a group."""
    if name == NETWORK:
        return [workload for workload in WORKLOADS if workload.name.startswith(f"{NETWORK}_")]
    return [by_name(name)]


def by_name(name: str) -> Workload:
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    raise ValueError(f"no workload named {name!r}: choose one of {', '.join(w.name for w in WORKLOADS)}")
