"""Edits that meet at a merge: what may replace what, and what is refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import icechunk_engine as ic
from icechunk_engine import ErrorKind, ForkSession, Repository
from icechunk_engine._runtime.task_names import task_name
from icechunk_engine.session import workspace_of

CHUNK = 2
LARGE = 2000
"""Number of values of a chunk that is stored as an object."""


def copy(fork: ForkSession) -> ForkSession:
    copied: ForkSession = pickle.loads(pickle.dumps(fork))
    return copied


@pytest.fixture
def session(repo: Repository) -> ic.Session:
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(16,), chunks=(CHUNK,), dtype="int64", fill_value=0)
        zarr.create_array(store, name="large", shape=(4 * LARGE,), chunks=(LARGE,), dtype="int64", compressors=None)
    return repo.writable_session("main")


def opened(session: ic.Session, path: str = "a") -> zarr.Array[Any]:
    return zarr.open_array(session.store, path=path, mode="r+")


def values(session: ic.Session, path: str = "a") -> list[int]:
    found: list[int] = np.asarray(zarr.open_array(session.store, path=path, mode="r")[:]).tolist()
    return found


def refused(merge: Callable[[], None], *parts: str) -> None:
    with pytest.raises(ic.SessionStateError) as caught:
        merge()
    assert caught.value.kind == ErrorKind.MERGE_FAILED
    for part in parts:
        assert part in str(caught.value)


def test_halves_of_one_chunk(session: ic.Session) -> None:
    left, right = copy(session.fork()), copy(session.fork())
    with task_name("left"):
        opened(left)[4:5] = 1
    with task_name("right"):
        opened(right)[5:6] = 2
    refused(lambda: session.merge(left, right), "'/a'", "(2,)", "task left and task right")
    session.merge(left)
    refused(lambda: session.merge(copy(right)), "'/a'", "(2,)", "task left and task right")
    assert values(session)[4:6] == [1, 0]
    session.merge(right, on_overlap="last")
    assert values(session)[4:6] == [0, 2]


@pytest.mark.parametrize("sizes", [(18, 18), (18, 20)])
@pytest.mark.parametrize("fresh", [True, False])
def test_two_appends(session: ic.Session, sizes: tuple[int, int], fresh: bool) -> None:
    """Equal appends are refused, too, even of fill values, which leave no chunk."""
    if fresh:
        zarr.create_array(session.store, name="b", shape=(16,), chunks=(CHUNK,), dtype="int64", fill_value=0)
    path = "b" if fresh else "a"
    one, two = session.fork(), session.fork()
    for fork, size in zip((one, two), sizes, strict=True):
        opened(fork, path).resize((size,))
    refused(lambda: session.merge(one, two), f"'/{path}'", "resized twice")
    session.merge(one)
    refused(lambda: session.merge(two), f"'/{path}'", "resized twice", "writer")


def test_a_task_that_ran_twice(session: ic.Session) -> None:
    """Both runs resized the array, created another one, and stored the chunk under two ids."""
    first, again = copy(session.fork()), copy(session.fork())
    for fork, noise in ((first, 0), (again, 1)):
        with task_name("append-3"):
            opened(fork).resize((18,))
            opened(fork)[16:] = 7
            opened(fork, "large")[:LARGE] = 5 + noise  # a task need not be deterministic
            new = zarr.create_array(fork.store, name="new", shape=(4,), chunks=(2,), dtype="int64")
            new[:] = 3
    session.merge(first, again)
    session.merge(copy(first))
    assert values(session)[16:] == [7, 7]
    assert values(session, "large")[:2] == [6, 6]
    assert values(session, "new") == [3] * 4


def test_equal_content_is_no_overlap(session: ic.Session) -> None:
    one, two, three = session.fork(), session.fork(), session.fork()
    for fork in (one, two):
        opened(fork)[:2] = 4
        opened(fork, "large")[:LARGE] = 4
        workspace_of(fork).delete_chunk("/a", (5,))
    opened(three, "large")[:LARGE] = 5
    session.merge(one, two)
    assert values(session)[:2] == [4, 4]
    refused(lambda: session.merge(three), "'/large'", "(0,)")
    assert values(session, "large")[:2] == [4, 4]


def test_the_parent_wrote_after_the_fork(session: ic.Session) -> None:
    opened(session)[:2] = 1
    fork = copy(session.fork())
    opened(session)[2:4] = 1
    opened(fork)[:4] = 2  # the fork saw the first chunk, but not the second
    refused(lambda: session.merge(fork), "'/a'", "(1,)", "this session")
    assert values(session)[:4] == [1] * 4
    other = copy(session.fork())
    opened(other)[:4] = 3
    session.merge(other)
    assert values(session)[:4] == [3] * 4


def test_the_parent_changed_attributes_after_the_fork(session: ic.Session) -> None:
    fork = session.fork()
    opened(session).attrs["units"] = "K"
    opened(fork).attrs["units"] = "C"
    refused(lambda: session.merge(fork), "'/a'", "this session")
    equal = session.fork()
    opened(session).attrs["units"] = "F"
    opened(equal).attrs["units"] = "F"
    session.merge(equal)


def test_a_fork_merged_twice_with_edits_between(session: ic.Session) -> None:
    fork = session.fork()
    opened(fork)[:2] = 1
    opened(fork).attrs["step"] = 1
    session.merge(fork)
    opened(session)[:2] = 9
    opened(session).attrs["step"] = 9
    before = repr(session.status()), session.__dask_tokenize__()
    session.merge(fork, copy(fork))
    assert (repr(session.status()), session.__dask_tokenize__()) == before
    assert values(session)[:2] == [9, 9]
    assert opened(session).attrs["step"] == 9
    opened(fork)[2:4] = 2
    session.merge(fork)
    assert values(session)[:4] == [9, 9, 2, 2]
    opened(fork)[:2] = 3
    refused(lambda: session.merge(fork), "'/a'", "(0,)", "this session")


def test_a_fork_that_travels_on(session: ic.Session) -> None:
    """Each stop adds edits. Whichever copies come home, each edit counts once."""
    stops = [copy(session.fork())]
    for step in range(3):
        opened(stops[-1])[2 * step : 2 * step + 2] = step + 1
        opened(stops[-1]).attrs["step"] = step
        stops.append(copy(stops[-1]))
    session.merge(stops[1])
    session.merge(stops[3], stops[0], stops[2])
    assert values(session)[:6] == [1, 1, 2, 2, 3, 3]
    assert opened(session).attrs["step"] == 2


def test_a_node_that_a_fork_takes_back(session: ic.Session) -> None:
    fork = session.fork()
    zarr.create_group(fork.store, path="g")
    session.merge(fork)
    workspace_of(fork).delete_node("/g")
    session.merge(copy(fork))
    assert workspace_of(session).get_node("/g") is None


def test_equal_nodes_that_two_forks_created_are_edited_further(session: ic.Session) -> None:
    forks = session.fork(), session.fork()
    arrays = [zarr.create_array(fork.store, name="n", shape=(4,), chunks=(2,), dtype="int64") for fork in forks]
    session.merge(*forks)
    for i, array in enumerate(arrays):
        array[2 * i : 2 * i + 2] = i + 1
    session.merge(*(copy(fork) for fork in forks))
    assert values(session, "n") == [1, 1, 2, 2]
    arrays[1].attrs["units"] = "K"
    refused(lambda: session.merge(forks[1]), "'/n'", "changed to different values")
    workspace_of(forks[1]).delete_node("/n")
    refused(lambda: session.merge(forks[1]), "'/n'", "deleted in one fork")


@pytest.mark.parametrize("shrunk_first", [True, False])
def test_a_chunk_beyond_a_shrunken_shape(session: ic.Session, shrunk_first: bool) -> None:
    shrinking, writing = copy(session.fork()), copy(session.fork())
    opened(shrinking).resize((8,))
    opened(writing)[14:16] = 1
    forks = [shrinking, writing] if shrunk_first else [writing, shrinking]
    refused(lambda: session.merge(*forks), "'/a'", "(7,)", "shrunk to [8]")
    session.merge(shrinking)
    later = session.fork()
    opened(later)[6:8] = 1
    session.merge(later)
    assert values(session) == [0] * 6 + [1, 1]


def test_a_deletion_stays(session: ic.Session) -> None:
    """What others wrote to a deleted array is dropped if the user accepts that, also if a new one is in its place."""
    writing, describing = session.fork(), session.fork()
    opened(writing)[:2] = 1
    opened(describing).attrs["units"] = "K"
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(2,), dtype="int64", overwrite=True)[:] = 7
    for fork in (writing, describing):
        refused(partial(session.merge, fork), "'/a'", "deleted elsewhere")
    session.merge(writing, describing, on_overlap="last")
    assert values(session) == [7] * 4
    assert "units" not in opened(session).attrs


def test_an_array_that_is_deleted_and_made_again_between_two_forks(session: ic.Session) -> None:
    one, remaking, two = session.fork(), session.fork(), session.fork()
    opened(one)[:2] = 1
    zarr.create_array(remaking.store, name="a", shape=(4,), chunks=(2,), dtype="int64", overwrite=True)[:] = 7
    opened(two)[2:4] = 2
    refused(lambda: session.merge(one, remaking, two), "'/a'")
    session.merge(one, remaking, two, on_overlap="last")
    assert values(session) == [7] * 4


def test_chunks_in_an_encoding_that_changed(session: ic.Session) -> None:
    """The chunk would be decoded as numbers of the other byte order."""
    writing, recoding = session.fork(), session.fork()
    opened(writing)[:2] = 1
    document = workspace_of(recoding).read_metadata("/a")
    assert document is not None
    workspace_of(recoding).set_metadata("/a", document.replace(b"int64", b"uint64"))
    for forks in ((writing, recoding), (recoding, writing)):
        refused(partial(session.merge, *forks), "'/a'", "encoding")


def test_a_fork_of_a_copy_of_the_repository(repo: Repository, session: ic.Session) -> None:
    copied = ic.in_memory_storage()
    storage = workspace_of(session).context.assets.storage
    for found in storage.list():
        copied.put(found.key, storage.get(found.key))
    elsewhere = Repository.open(copied).writable_session("main")
    fork = elsewhere.fork()
    opened(fork, "large")[:] = 1
    with pytest.raises(ic.SessionStateError, match="belongs to the repository at") as caught:
        session.merge(fork)
    assert caught.value.kind == ErrorKind.MERGE_NOT_ALLOWED
    assert not session.has_uncommitted_changes


@pytest.mark.parametrize("wrong", ["first", None, True])
def test_overlap_is_raised_or_the_last_wins(session: ic.Session, wrong: object) -> None:
    with pytest.raises(ic.InvalidInputError, match="on_overlap"):
        session.merge(session.fork(), on_overlap=wrong)  # type: ignore[arg-type]


_FORKED = """
import os, pickle, sys
import zarr
import icechunk_engine as ic
repo = ic.Repository.open(ic.local_filesystem_storage(sys.argv[1]))
session = repo.writable_session("main")
fork = session.fork()
zarr.open_array(fork.store, path="a", mode="r+")[:2] = 1
returned = []
for i in (1, 2):
    read, write = os.pipe()
    if os.fork() == 0:
        fork._workspace.set_chunk("/a", (i,), bytes([i]) * 16)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(fork, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        returned.append(pickle.load(pipe))
    os.wait()
session.merge(*returned)
print([workspace.locate_chunk("/a", (i,)) is not None for workspace in [session._workspace] for i in range(3)])
session.commit("all")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_children_of_os_fork_edit_one_fork(tmp_path: Path) -> None:
    """They inherit the same object, as with multiprocessing's "fork" and a global variable."""
    with Repository.create(ic.local_filesystem_storage(str(tmp_path))).transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(16,), chunks=(CHUNK,), dtype="int64", compressors=None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKED, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[0] == "[True, True, True]", done.stderr


_INHERITED = """
import os, sys, warnings
import icechunk_engine as ic
warnings.simplefilter("error")
session = ic.Repository.open(ic.local_filesystem_storage(sys.argv[1])).writable_session("main")
if os.fork() == 0:
    try:
        session._workspace.set_chunk("/a", (1,), bytes(16))
    except UserWarning as warning:
        os._exit(7 if "session.store" in str(warning) else 8)
    os._exit(9)
print(os.waitstatus_to_exitcode(os.wait()[1]), session.has_uncommitted_changes)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_that_edits_the_session_of_its_parent_is_warned(tmp_path: Path) -> None:
    with Repository.create(ic.local_filesystem_storage(str(tmp_path))).transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(8,), chunks=(2,), dtype="int64", compressors=None)
    command = [sys.executable, "-c", _INHERITED, str(tmp_path)]
    found = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert found.stdout.split() == ["7", "False"], found.stderr
