"""Intact files with absurd values: every operation ends soon, in little memory, with a result or a typed error."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import Repository
from icechunk_engine.columns.tables import BytesTable
from icechunk_engine.format import snapshot as snapshot_files
from icechunk_engine.format.manifest import decode_manifest, encode_manifest
from icechunk_engine.format.nodes import NodeTable
from icechunk_engine.format.repo_info import decode_repo_info, encode_repo_info
from icechunk_engine.format.snapshot import decode_snapshot, encode_snapshot
from icechunk_engine.format.transaction_log import Move, decode_transaction_log, encode_transaction_log
from icechunk_engine.ids import NodeId
from tests.bounded import run_bounded

N_CASES = 12
NUMBERS = [0, 1, 3, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]
PATHS = ["", "a", "/", "//", "/a/", "/..", "/a/../b", "/a\0", "/zarr.json", "/a/c/0", "/" + "x" * 10_000, "/a/x", "/é"]
PATHS += ["/" + "/".join("d" * 500), "/\n", "/."]
LOCATIONS = ["", "x", "s3://", "s3://b/../x", "file:///etc/passwd", "http://[::1", "s3://b/\0", "://", "\n"]

Files = dict[str, bytes]


def build() -> Files:
    """Make a repository with several commits, branches and kinds of chunks; return all its files."""
    storage = ic.in_memory_storage()
    config = ic.RepositoryConfig(inline_chunk_threshold_bytes=16)
    config.set_virtual_chunk_container(ic.VirtualChunkContainer("s3://b/", ic.s3_store(region="us-east-1")))
    repo = Repository.create(storage, config)
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    root.create_array("a", shape=(8, 6), chunks=(2, 3), dtype="i4", dimension_names=["x", "y"])[:] = 1
    root.create_array("g/b", shape=(64,), chunks=(16,), dtype="i8", compressors=None)[:] = 2
    root.create_array("c", shape=(), chunks=(), dtype="i4")[...] = 3
    root.create_array("v", shape=(20,), chunks=(5,), dtype="i4", compressors=None)
    session.store.set_virtual_refs_arr(
        "v", (4,), ["s3://b/x"] * 4, np.arange(4) * 20, np.full(4, 20), validate_containers=False
    )
    tip = session.commit("one", metadata={"k": 1.5})
    repo.create_branch("other", tip)
    repo.create_tag("t", tip)
    for branch in ("main", "other"):
        session = repo.writable_session(branch)
        zarr.open_group(session.store)["a"][0] = 7
        session.commit(branch)
    return {found.key: storage.get(found.key) for found in storage.list()}


# --- values that make no sense -----------------------------------------------------------------------------------


def with_item(column: np.ndarray[Any, Any], chance: random.Random) -> np.ndarray[Any, Any]:
    """Replace a number by a hostile one, or a row of bytes by another row."""
    changed = np.array(column)
    if len(changed):
        row = chance.randrange(len(changed))
        if changed.dtype == np.uint8 or changed.dtype == np.bool_:
            changed[row] = changed[chance.randrange(len(changed))]
        else:
            fitting = [number for number in NUMBERS if number <= np.iinfo(changed.dtype).max]
            changed[row] = chance.choice(fitting)
    return changed


def hostile_snapshot(data: bytes, chance: random.Random) -> bytes:
    snapshot = decode_snapshot(data)
    columns = snapshot.nodes._columns()
    name = chance.choice(
        ["lengths", "num_chunks", "extents", "manifest_ids", "node_ids", "paths", "user_data", "time"]
    )
    if name == "time":
        snapshot = dataclasses.replace(snapshot, flushed_at_us=chance.choice(NUMBERS))
    elif name in ("paths", "user_data"):
        texts = columns[name].raws() or [b""]
        others = [path.encode() for path in PATHS] if name == "paths" else [*texts, b"", b"{}", b"[" * 2000]
        texts[chance.randrange(len(texts))] = chance.choice(others)
        if len(columns[name]):
            columns[name] = BytesTable.of(texts)
    else:
        columns[name] = with_item(columns[name], chance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_files, "_require_consistent", lambda snapshot: None)
        return encode_snapshot(dataclasses.replace(snapshot, nodes=NodeTable(**columns)))


def hostile_manifest(data: bytes, chance: random.Random) -> bytes:
    manifest = decode_manifest(data)
    arrays = list(manifest.arrays)
    at = chance.randrange(len(arrays))
    node_id, refs = arrays[at]
    name = chance.choice(["lengths", "offsets", "indices", "chunk_ids", "last_modified", "locations", "order", "node"])
    if name == "node":
        node_id = NodeId(bytes(8))
    elif name == "order":
        refs = refs.take(np.array([chance.randrange(len(refs)) for _ in range(len(refs))]))
    elif name == "locations":
        refs = dataclasses.replace(
            refs, locations=BytesTable.of([chance.choice(LOCATIONS) for _ in refs.locations.raws()])
        )
    elif not len(refs.inline_data):
        changed: dict[str, Any] = {name: with_item(getattr(refs, name), chance)}
        refs = dataclasses.replace(refs, **changed)
    arrays[at] = node_id, refs
    return encode_manifest(dataclasses.replace(manifest, arrays=tuple(arrays)))


def hostile_log(data: bytes, chance: random.Random) -> bytes:
    log = decode_transaction_log(data)
    rank = chance.randrange(4)
    chunks = {
        node_id: np.array([[chance.choice(NUMBERS[:7]) for _ in range(rank)]] * 2, np.uint32).reshape(2, rank)
        for node_id in (*log.updated_chunks, NodeId(b"\xff" * 8))
    }
    moves = (Move(chance.choice(PATHS), chance.choice(PATHS), next(iter(chunks)), True),)
    if chance.random() < 0.5:
        return encode_transaction_log(dataclasses.replace(log, updated_chunks=chunks))
    return encode_transaction_log(
        dataclasses.replace(log, moved_nodes=moves, deleted_arrays=log.new_arrays, new_groups=log.new_arrays)
    )


def hostile_repo(data: bytes, chance: random.Random) -> bytes:
    info = decode_repo_info(data)
    table = info.snapshots
    match chance.randrange(5):
        case 0:
            parents = np.array([chance.randrange(-1, len(table)) for _ in range(len(table))], np.int32)
            info = dataclasses.replace(info, snapshots=dataclasses.replace(table, parents=parents))
        case 1:
            times = with_item(table.flushed_at, chance)
            info = dataclasses.replace(info, snapshots=dataclasses.replace(table, flushed_at=times))
        case 2:
            names = dict.fromkeys([*PATHS, "main"], table.id(chance.randrange(len(table))))
            info = dataclasses.replace(info, branches=names, tags=names, deleted_tags=frozenset(names))
        case 3:
            info.updates.rows["updated_at"] = [chance.choice(NUMBERS) for _ in info.updates.rows]
        case _:
            info = dataclasses.replace(info, branches={"other": table.id(0)}, repo_before_updates=chance.choice(PATHS))
    return encode_repo_info(info)


HOSTILE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "snapshots": hostile_snapshot,
    "manifests": hostile_manifest,
    "transactions": hostile_log,
    "repo": hostile_repo,
}


# --- what is done with them --------------------------------------------------------------------------------------


async def list_all(session: ic.Session) -> None:
    n = 0
    async for _ in session.store.list():
        n += 1
        if n > 1000:
            break
    async for _ in session.store.list_dir(""):
        pass


def operations(storage: ic.Storage) -> dict[str, Callable[[], object]]:
    def opened() -> Repository:
        return Repository.open(storage)

    def read(name: str) -> object:
        array = zarr.open_array(opened().readonly_session("main").store, path=name, mode="r")
        return array[...] if array.size < 10**6 else None

    def commit(name: str) -> None:
        session = opened().writable_session("main")
        array = zarr.open_array(session.store, path=name)
        if array.size < 10**6:
            array[...] = 5
            session.commit("written")

    def rebase() -> None:
        repo = opened()
        session, other = repo.writable_session("main"), repo.writable_session("main")
        zarr.create_group(session.store, path="one")
        zarr.create_group(other.store, path="two")
        other.commit("first")
        session.commit("second", rebase_with=ic.BasicConflictSolver())

    def delete() -> None:
        session = opened().writable_session("main")
        asyncio.run(session.store.delete_dir("g"))
        session.commit("deleted")

    def move() -> None:
        session = opened().rearrange_session("main")
        session.move("/a", "/moved")
        session.commit("moved")

    def diff() -> None:
        *_, first = opened().ancestry(branch="main")
        repr(opened().diff(from_snapshot_id=first.id, to_branch="main"))

    return {
        "ancestry": lambda: list(opened().ancestry(branch="main")),
        "graph": lambda: str(opened().ancestry_graph()),
        "ops log": lambda: list(itertools.islice(opened().ops_log(), 1000)),
        "inspect": lambda: opened().inspect_repo_info(),
        "snapshot": lambda: opened().inspect_snapshot(opened().lookup_branch("main")),
        "log": lambda: opened().inspect_transaction_log(opened().lookup_branch("main")),
        "as of": lambda: opened().readonly_session("main", as_of=datetime(2030, 1, 1, tzinfo=UTC)),
        "list": lambda: asyncio.run(list_all(opened().readonly_session("main"))),
        "locations": lambda: opened().readonly_session("main").all_virtual_chunk_locations(),
        "diff": diff,
        **{f"read {name}": partial(read, name) for name in ("a", "g/b", "c", "v")},
        **{f"commit {name}": partial(commit, name) for name in ("a", "g/b")},
        "rebase": rebase,
        "delete": delete,
        "move": move,
        "refs": lambda: opened().create_tag("new", opened().lookup_branch("main")),
    }


def is_zarrs(error: BaseException) -> bool:
    """Return True if zarr itself, not the engine, complains about a document or the bytes of a chunk."""
    files = []
    trace = error.__traceback__
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    engine = max((i for i, file in enumerate(files) if "icechunk_engine" in file), default=-1)
    others = max((i for i, file in enumerate(files) if "/zarr/" in file or "/numcodecs/" in file), default=-1)
    return others > engine


def work_with_hostile_files(seed: int) -> dict[str, str]:
    """Return the errors that are not typed, by case and operation."""
    chance = random.Random(seed)
    built = build()
    untyped = {}
    for case in range(N_CASES):
        files = dict(built)
        key = chance.choice([key for key in files if key.split("/")[0] in HOSTILE])
        files[key] = HOSTILE[key.split("/")[0]](files[key], chance)
        storage = ic.in_memory_storage()
        for name, data in files.items():
            storage.put(name, data)
        for name, operation in operations(storage).items():
            try:
                operation()
            except ic.IcechunkError as error:
                assert str(error)  # noqa: PT017
            except Exception as error:
                if not is_zarrs(error):
                    untyped[f"{seed}/{case}: {name} with {key}"] = repr(error)
    return untyped


def test_values_that_make_no_sense() -> None:
    assert run_bounded(work_with_hostile_files, 7, seconds=120) == {}


def test_two_nodes_with_one_id_can_be_read_but_not_written() -> None:
    """Edits are kept by id, so those of one array would also change the other."""
    files = build()
    tip = str(decode_repo_info(files["repo"]).branches["main"])
    snapshot = decode_snapshot(files[f"snapshots/{tip}"])
    ids = np.array(snapshot.nodes.node_ids)
    ids[snapshot.nodes.find("/c")] = ids[snapshot.nodes.find("/a")]
    nodes = dataclasses.replace(snapshot.nodes, node_ids=ids)
    hostile = ic.in_memory_storage()
    for name, data in files.items():
        hostile.put(name, data)
    hostile.delete([f"snapshots/{tip}"])
    hostile.put(f"snapshots/{tip}", encode_snapshot(dataclasses.replace(snapshot, nodes=nodes)))
    repo = Repository.open(hostile)
    session = repo.writable_session("main")
    array = zarr.open_array(session.store, path="a")
    assert array[4, 0] == 1
    array[:] = 9
    with pytest.raises(ic.FormatError, match="same id"):
        session.commit("to which of them?")
    assert repo.lookup_branch("main") == tip
