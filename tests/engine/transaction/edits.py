"""Small edits of small hierarchies, from which the tests of conflicts, merges and diffs draw."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from hypothesis import strategies as st

from icechunk_engine import ForkSession, IcechunkError, Repository, Session, in_memory_storage
from icechunk_engine.format.nodes import Node
from icechunk_engine.paths import is_within
from icechunk_engine.session import workspace_of

type Edit = tuple[Any, ...]
type State = dict[str, tuple[bytes, dict[tuple[int, ...], bytes]]]

GROUPS = ("/g", "/g/h", "/k", "/k/h")
ARRAYS = ("/a", "/g/a", "/g/h/a", "/k/a")
PATHS = (*GROUPS, *ARRAYS)


def group(version: int = 0) -> bytes:
    """Return the metadata of a group."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"v": version}}).encode()


def array(version: int = 0, n_chunks: int = 4) -> bytes:
    """Return the metadata of an array with chunks of one byte."""
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [n_chunks],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {"v": version},
        }
    ).encode()


START: list[Edit] = [
    ("group", "/"),
    ("group", "/g"),
    ("group", "/g/h"),
    ("array", "/a"),
    ("array", "/g/a"),
    ("array", "/g/h/a"),
    ("write", "/a", 0, 1),
    ("write", "/g/a", 1, 1),
    ("write", "/g/h/a", 2, 1),
]
STARTED = frozenset(edit[1] for edit in START)


def make(session: Session, edit: Edit) -> None:
    """Make one edit. Raises IcechunkError if the hierarchy does not allow it."""
    kind, path, *rest = edit
    if kind == "group":
        workspace_of(session).set_metadata(path, group(*rest))
    elif kind == "array":
        workspace_of(session).set_metadata(path, array(*rest))
    elif kind == "write":
        workspace_of(session).set_chunk(path, (rest[0],), bytes([rest[1]]))
    elif kind == "clear":
        workspace_of(session).delete_chunk(path, (rest[0],))
    elif kind == "delete":
        workspace_of(session).delete_node(path)
    elif kind == "move":
        session.move(path, *rest)


def made(session: Session, edits: list[Edit]) -> list[Edit]:
    """Make edits, but skip those that the hierarchy does not allow; return those that changed something."""
    done = []
    for edit in edits:
        kind, path, *rest = edit
        node = workspace_of(session).get_node(path)
        if (kind == "delete" and node is None) or (kind == "clear" and not has_place(node, rest[0])):
            continue
        try:
            make(session, edit)
        except IcechunkError:
            continue
        done.append(edit)
    return done


def has_place(node: Node | None, number: int) -> bool:
    """Return True if the array can have a chunk of that number."""
    return node is not None and node.shape is not None and number < node.shape.num_chunks[0]


def effective(edits: list[Edit], present: Collection[str] = STARTED) -> list[Edit]:
    """Drop edits of nodes that a later edit deletes, and deletions of nothing but such nodes.

    Parameters
    ----------
    present
        Paths of the nodes that existed before.
    """
    return [
        edit
        for i, edit in enumerate(edits)
        if (
            any(is_within(old, edit[1]) for old in present)
            if edit[0] == "delete"
            else not any(later[0] == "delete" and is_within(edit[1], later[1]) for later in edits[i:])
        )
    ]


def state(session: Session | ForkSession) -> State:
    """Return the metadata and chunks of every node."""
    found: State = {}
    for node in workspace_of(session).list_nodes():
        chunks: dict[tuple[int, ...], bytes] = {}
        if node.is_array:
            for index in workspace_of(session).chunk_refs(node.path).indices.tolist():
                ref = workspace_of(session).locate_chunk(node.path, tuple(index))
                assert ref is not None
                chunks[tuple(index)] = workspace_of(session).fetch_chunk(ref, 0, ref.length)
        assert node.path not in found, f"two nodes at {node.path}"
        found[node.path] = node.user_data, chunks
    return found


def started() -> Repository:
    """Make a repository with a few groups and arrays."""
    repo = Repository.create(in_memory_storage())
    session = repo.writable_session("main")
    for edit in START:
        make(session, edit)
    session.commit("start")
    return repo


versions = st.integers(1, 3)
data_edits = st.one_of(
    st.tuples(st.just("group"), st.sampled_from(GROUPS), versions),
    st.tuples(st.just("array"), st.sampled_from(ARRAYS), versions, st.sampled_from([3, 4, 6])),
    st.tuples(st.just("write"), st.sampled_from(ARRAYS), st.integers(0, 5), st.integers(2, 9)),
    st.tuples(st.just("clear"), st.sampled_from(ARRAYS), st.integers(0, 5)),
    st.tuples(st.just("delete"), st.sampled_from(PATHS)),
    st.tuples(st.just("array"), st.sampled_from(GROUPS), versions),
)
moves = st.tuples(
    st.just("move"), st.sampled_from(PATHS), st.sampled_from((*PATHS, "/g/n", "/n", "/n/m", "/k/n", "/g/h/n/"))
)
