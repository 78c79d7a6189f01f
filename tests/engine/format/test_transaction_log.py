"""Transaction log files: round trips, exchange with the official library, damage."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import icechunk as official
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icechunk_engine.columns.tables import U8, U32
from icechunk_engine.errors import FormatError
from icechunk_engine.flatbuf.reader import Buffer
from icechunk_engine.format import header, layout, schema, transaction_log
from icechunk_engine.format.header import FileType
from icechunk_engine.format.transaction_log import (
    Move,
    TransactionLog,
    decode_transaction_log,
    encode_transaction_log,
)
from icechunk_engine.ids import INITIAL_SNAPSHOT_ID, NodeId, SnapshotId
from tests.engine.format.damage import assert_survives, body_of
from tests.engine.format.official_repo import OfficialRepo, create_array

SNAPSHOT_ID = SnapshotId(b"snapshot-id.")
LISTS = ("new_groups", "new_arrays", "deleted_groups", "deleted_arrays", "updated_arrays", "updated_groups")

node_ids = st.binary(min_size=8, max_size=8).map(NodeId)
paths = st.lists(st.text(st.sampled_from("abé"), min_size=1, max_size=2), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


def id_rows(ids: Any) -> U8:
    return np.frombuffer(b"".join(sorted(node_id.raw for node_id in ids)), np.uint8).reshape(-1, 8)


@st.composite
def index_tables(draw: st.DrawFn) -> U32:
    ndim = draw(st.integers(0, 4))
    coordinate = st.integers(0, 3) | st.integers(0, 2**32 - 1)
    indices = sorted(draw(st.sets(st.tuples(*[coordinate] * ndim), min_size=1, max_size=8)))
    return np.array(indices, np.uint32).reshape(len(indices), ndim)


@st.composite
def logs(draw: st.DrawFn) -> TransactionLog:
    lists = {name: id_rows(draw(st.sets(node_ids, max_size=4))) for name in LISTS}
    moves = draw(st.lists(st.builds(Move, paths, paths, node_ids, st.booleans()), max_size=4))
    return TransactionLog(
        snapshot_id=SNAPSHOT_ID,
        updated_chunks=draw(st.dictionaries(node_ids, index_tables(), max_size=4)),
        moved_nodes=tuple(sorted(moves, key=lambda move: move.target.split("/"))),
        **lists,
    )


def content(log: TransactionLog) -> dict[str, Any]:
    """Return a log as plain values, to compare it."""
    return {
        "id": log.snapshot_id,
        **{name: getattr(log, name).tolist() for name in LISTS},
        "chunks": {node_id: (rows.shape, rows.tolist()) for node_id, rows in log.updated_chunks.items()},
        # Moves to one target, which only this test makes, may change places.
        "moves": sorted(map(repr, log.moved_nodes)),
    }


@given(logs(), st.sampled_from([1, 2]))
def test_round_trip(log: TransactionLog, spec_version: int) -> None:
    decoded = decode_transaction_log(encode_transaction_log(log, spec_version=spec_version))
    assert content(decoded) == content(log)
    assert list(decoded.updated_chunks) == sorted(log.updated_chunks)


def test_every_list_is_written_even_if_empty() -> None:
    data = encode_transaction_log(TransactionLog.empty(SNAPSHOT_ID))
    root = Buffer(header.unpack(data, FileType.TRANSACTION_LOG).body).root()
    for slot in range(schema.TransactionLog.ID, schema.TransactionLog.MOVED_NODES + 1):
        assert root.present(slot).all()
    assert content(decode_transaction_log(data)) == content(TransactionLog.empty(SNAPSHOT_ID))


def many_chunks(n: int) -> TransactionLog:
    edge = int(np.ceil(n ** (1 / 3))) + 1
    indices = np.stack(np.unravel_index(np.arange(n), (edge,) * 3), 1).astype(np.uint32)
    changes = {NodeId(b"array-01"): indices, NodeId(b"array-02"): indices[::7], NodeId(b"array-03"): indices[:0]}
    empty = TransactionLog.empty(SNAPSHOT_ID)
    return TransactionLog(
        snapshot_id=SNAPSHOT_ID, updated_chunks=changes, **{name: getattr(empty, name) for name in LISTS}
    )


def test_many_chunks() -> None:
    """Several slabs and blocks; an array may have an empty list."""
    n = 50_000
    log = many_chunks(n)
    data = encode_transaction_log(log)
    assert len(data) < n  # the official library takes about 6 bytes a chunk
    decoded = decode_transaction_log(data)
    for node_id, indices in log.updated_chunks.items():
        assert decoded.updated_chunks[node_id].tolist() == indices.tolist()


def test_ranks_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if they are read in different slabs."""
    empty = TransactionLog.empty(SNAPSHOT_ID)
    changes = {NodeId(b"array-01"): np.zeros((4, 1), np.uint32), NodeId(b"array-02"): np.zeros((4, 2), np.uint32)}
    log = TransactionLog(
        snapshot_id=SNAPSHOT_ID, updated_chunks=changes, **{name: getattr(empty, name) for name in LISTS}
    )
    body = bytearray(body_of(encode_transaction_log(log), FileType.TRANSACTION_LOG))
    buffer = Buffer(np.frombuffer(bytes(body), np.uint8))
    arrays = buffer.root().vectors(schema.TransactionLog.UPDATED_CHUNKS, 4).tables()
    items = arrays.vectors(schema.ArrayUpdatedChunks.CHUNKS, 4).item_positions()
    target = int(buffer.follow(items)[4])
    body[items[3] : items[3] + 4] = int(target - items[3]).to_bytes(4, "little")
    for slab_rows in (2**14, 3):
        monkeypatch.setattr(transaction_log, "_SLAB_ROWS", slab_rows)
        with pytest.raises(FormatError):
            decode_transaction_log(header.pack(FileType.TRANSACTION_LOG, 2, body))


def test_damaged_bodies() -> None:
    ids = [NodeId(bytes([number]) * 8) for number in range(6)]
    log = TransactionLog(
        snapshot_id=SNAPSHOT_ID,
        updated_chunks={ids[0]: np.arange(40, dtype=np.uint32).reshape(20, 2), ids[1]: np.zeros((1, 0), np.uint32)},
        moved_nodes=(Move("/a", "/b", ids[2], True), Move("/é", "/x/é", ids[3], False)),
        **{name: id_rows(ids[: number + 1]) for number, name in enumerate(LISTS)},
    )
    body = body_of(encode_transaction_log(log), FileType.TRANSACTION_LOG)
    assert_survives(decode_transaction_log, lambda found: None, body, FileType.TRANSACTION_LOG, seed=2)


# --- the official library ----------------------------------------------------------------------------------------


def log_of(repo: OfficialRepo) -> TransactionLog:
    return decode_transaction_log(repo.read(layout.transaction_log_key(repo.tip)))


def test_official_logs(tmp_path: Path) -> None:
    repo = OfficialRepo(tmp_path)
    initial = decode_transaction_log(repo.read(layout.transaction_log_key(INITIAL_SNAPSHOT_ID)))
    assert content(initial) == content(TransactionLog.empty(INITIAL_SNAPSHOT_ID))

    session = repo.writable_session()
    create_array(session, "a", (3, 2))[1:, :] = 1
    create_array(session, "scalar", ())[()] = 1
    session.commit("create")
    log = log_of(repo)
    assert log.snapshot_id == repo.tip
    assert len(log.new_groups) == 1
    assert len(log.new_arrays) == 2
    indices = sorted(table.tolist() for table in log.updated_chunks.values())
    assert indices == [[[]], [[1, 0], [1, 1], [2, 0], [2, 1]]]
    assert {node_id.raw for node_id in log.updated_chunks} == {row.tobytes() for row in log.new_arrays}

    moving = repo.repo.rearrange_session("main")
    moving.move("/a", "/b")
    moving.commit("move")
    (move,) = log_of(repo).moved_nodes
    assert (move.source, move.target, move.is_array) == ("/a", "/b", True)
    assert move.node_id in log.updated_chunks

    session = repo.writable_session()
    asyncio.run(session.store.delete_dir("b"))
    session.commit("delete")
    assert log_of(repo).deleted_arrays.tolist() == [list(move.node_id.raw)]


def test_official_reads_our_logs(tmp_path: Path) -> None:
    """The official library computes the same diff from our log as from its own."""
    repo = OfficialRepo(tmp_path)
    session = repo.writable_session()
    create_array(session, "a", (30, 100))[:] = 1
    create_array(session, "scalar", ())[()] = 1
    session.commit("create")

    def diff() -> Any:
        opened = official.Repository.open(official.local_filesystem_storage(str(repo.path)))
        found = opened.diff(to_branch="main", from_snapshot_id=str(INITIAL_SNAPSHOT_ID))
        return (
            found.new_groups,
            found.new_arrays,
            {path: sorted(map(tuple, indices)) for path, indices in found.updated_chunks.items()},
        )

    before = diff()
    assert len(before[2]["/a"]) == 3000
    path = tmp_path / layout.transaction_log_key(repo.tip)
    theirs = path.read_bytes()
    ours = encode_transaction_log(decode_transaction_log(theirs))
    assert len(ours) < len(theirs) / 2
    path.write_bytes(ours)
    assert diff() == before
    # And it is our file that was read: without the array's chunks, the diff lacks them.
    emptied = decode_transaction_log(ours)
    emptied.updated_chunks.clear()
    path.write_bytes(encode_transaction_log(emptied))
    assert diff()[2] == {}
