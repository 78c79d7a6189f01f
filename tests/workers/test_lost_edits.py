"""Mistakes that would lose data, made in separate processes: the values are right, or an error names the mistake."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client

import xarray_icechunk as xi
from icechunk_engine import ErrorKind, ForkSession, Repository, Session, SessionStateError
from icechunk_engine.storage import local_filesystem_storage
from tests.profiles import by_profile

from . import executors, writes
from .conftest import Place

pytestmark = pytest.mark.long

LENGTH, CHUNK = 12, 4


@pytest.fixture
def client(cluster_of_processes: Client) -> Iterator[Client]:
    with cluster_of_processes.as_current():
        yield cluster_of_processes


@pytest.fixture
def repo(local_place: Place) -> Repository:
    """A repository with one array of three chunks of zeros."""
    repo = local_place.create()
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(LENGTH,), chunks=(CHUNK,), dtype="i8", fill_value=0)
    return repo


def array(session: Any) -> zarr.Array[Any]:
    return zarr.open_array(session.store, path="a", mode="r+")


def fill(fork: ForkSession, start: int, stop: int, value: int) -> ForkSession:
    array(fork)[start:stop] = value
    return fork


def append(fork: ForkSession, value: int) -> ForkSession:
    array(fork).append(np.full(CHUNK, value))
    return fork


def run(client: Client, function: Any, *calls: tuple[Any, ...]) -> list[Any]:
    """Run a function with each of the arguments, in tasks named ``task-0``, ``task-1``, ... that start together."""
    names = [f"task-{number}" for number in range(len(calls))]
    futures = client.map(function, *zip(*calls, strict=True), key=names)
    results: list[Any] = client.gather(futures)
    return results


def require(repo: Repository, expected: list[int]) -> None:
    found = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    np.testing.assert_array_equal(found, expected)


def refused(session: Session, forks: list[ForkSession], *names: str) -> None:
    """Check that the forks are not merged, that the error names array, chunk and tasks, and that nothing changed."""
    before = repr(session.status())
    with pytest.raises(SessionStateError) as caught:
        session.merge(*forks)
    assert caught.value.kind == ErrorKind.MERGE_FAILED
    assert [name for name in ("'/a'", *names) if name not in str(caught.value)] == []
    assert repr(session.status()) == before


def test_two_tasks_write_halves_of_a_chunk(client: Client, repo: Repository) -> None:
    session = repo.writable_session("main")
    forks = run(client, fill, (session.fork(), 4, 6, 1), (session.fork(), 6, 8, 2))
    refused(session, forks, "(1,)", "task-0", "task-1")
    session.merge(*forks, on_overlap="last")
    session.commit("the second task")
    require(repo, [0] * 6 + [2] * 2 + [0] * 4)


def test_two_tasks_append(client: Client, repo: Repository) -> None:
    session = repo.writable_session("main")
    forks = run(client, append, (session.fork(), 1), (session.fork(), 2))
    refused(session, forks, "task-0", "task-1")
    session.merge(forks[1])
    session.commit("the second task", allow_unmerged=True)
    require(repo, [0] * LENGTH + [2] * CHUNK)


def test_the_session_writes_after_the_fork(client: Client, repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    array(session)[:4] = 7
    array(session)[4:8] = 8
    (returned,) = run(client, fill, (fork, 2, 6, 1))
    refused(session, [returned], "(0,)", "this session", "task-0")
    (returned,) = run(client, fill, (session.fork(), 2, 6, 2))
    session.merge(returned)
    session.commit("what the task saw, and its own")
    require(repo, [7] * 2 + [2] * 4 + [8] * 2 + [0] * 4)


def test_a_fork_is_merged_twice_with_edits_between(client: Client, repo: Repository) -> None:
    session = repo.writable_session("main")
    (returned,) = run(client, fill, (session.fork(), 0, 4, 1))
    session.merge(returned)
    array(session)[:4] = 7
    session.merge(returned)
    (again,) = run(client, fill, (returned, 4, 8, 2))
    session.merge(again)
    session.commit("both, and the edit between")
    require(repo, [7] * 4 + [2] * 4 + [0] * 4)


def test_a_fork_of_a_copy_of_the_repository(client: Client, repo: Repository, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "repository", tmp_path / "copy")
    elsewhere = Repository.open(local_filesystem_storage(str(tmp_path / "copy"))).writable_session("main")
    forks = run(client, fill, (elsewhere.fork(), 0, 4, 1))
    session = repo.writable_session("main")
    with pytest.raises(SessionStateError, match="copy") as caught:
        session.merge(*forks)
    assert caught.value.kind == ErrorKind.MERGE_NOT_ALLOWED
    assert not session.has_uncommitted_changes


# --- forks that do not come back -------------------------------------------------------------------------------------


@pytest.fixture(
    params=by_profile(quick=["forkserver", "distributed"], thorough=["spawn", "forkserver", "distributed"])
)
def executor(request: pytest.FixtureRequest) -> executors.Executor:
    """Each kind of separate processes."""
    chosen: executors.Executor = request.getfixturevalue(request.param)
    return chosen


@pytest.mark.parametrize("way", ["to_zarr", "dask.array.store"])
def test_dask_writes_into_the_store_of_a_fork(executor: executors.Executor, local_place: Place, way: str) -> None:
    """The copies report to the fork. Nobody returns them."""
    session = local_place.create().writable_session("main")
    fork = session.fork()
    assert executor.scheduler is not None
    with executor.scheduler():
        expected = writes.WHOLE[way](fork.store)
    session.merge(fork)
    session.commit("by workers")
    writes.require_values(zarr.open_group(local_place.open().readonly_session("main").store, mode="r"), expected)


def fill_and_forget(fork: ForkSession) -> None:
    fill(fork, 0, 4, 1)


def read(fork: ForkSession) -> int:
    return int(array(fork)[:].sum())


def test_forks_that_wrote_are_missing(executor: executors.Executor, repo: Repository) -> None:
    session = repo.writable_session("main")
    fork, other = session.fork(), session.fork()
    executor.map(fill_and_forget, [fork])
    (returned,) = executor.map(fill, [other], [4], [8], [2])
    with pytest.raises(SessionStateError, match=r"copies of it .* were not returned") as caught:
        session.merge(fork)
    assert caught.value.kind == ErrorKind.MERGE_FAILED
    session.merge(returned)
    array(session)[8:] = 3
    with pytest.raises(SessionStateError, match="allow_unmerged=True") as caught:
        session.commit("one is missing")
    assert caught.value.kind == ErrorKind.COMMIT_NOT_ALLOWED
    session.commit("on purpose", allow_unmerged=True)
    require(repo, [0] * 4 + [2] * 4 + [3] * 4)


def test_a_fork_that_only_read_is_not_missed(executor: executors.Executor, repo: Repository) -> None:
    session = repo.writable_session("main")
    assert executor.map(read, [session.fork()] * 2) == [0, 0]
    array(session)[:4] = 1
    session.commit("the session's own edit")
    require(repo, [1] * 4 + [0] * 8)


def test_a_fork_that_writes_after_the_commit(client: Client, repo: Repository) -> None:
    session = repo.writable_session("main")
    kept = client.submit(fill, session.fork(), 0, 4, 1)
    session.merge(kept.result())
    session.commit("in time")
    late = client.submit(fill, kept, 4, 8, 2).result()
    with pytest.raises(SessionStateError) as caught:
        repo.writable_session("main").merge(late)
    assert caught.value.kind == ErrorKind.MERGE_NOT_ALLOWED
    require(repo, [1] * 4 + [0] * 8)


# --- writes through the session's store ------------------------------------------------------------------------------


def fill_through(store: Any, start: int, stop: int, value: int) -> Any:
    """Return the store, which the tests use to keep a copy in its worker."""
    zarr.open_array(store, path="a", mode="r+")[start:stop] = value
    return store


def append_through(store: Any, value: int) -> None:
    zarr.open_array(store, path="a", mode="r+").append(np.full(CHUNK, value))


def test_a_chunk_overwritten_through_the_store(client: Client, repo: Repository) -> None:
    """The session refuses to read and to commit until the user says whose values stay."""
    session = repo.writable_session("main")
    run(client, fill_through, (session.store, 4, 8, 1), (session.store, 4, 8, 2))
    for look in (session.status, lambda: session.commit("both"), lambda: array(session)[:]):
        with pytest.raises(SessionStateError) as caught:
            look()
        assert caught.value.kind == ErrorKind.MERGE_FAILED
        assert [name for name in ("'/a'", "(1,)", "task-0", "task-1") if name not in str(caught.value)] == []
    session.merge(on_overlap="last")
    chosen = np.asarray(array(session)[4]).item()
    session.commit("one of them")
    require(repo, [0] * 4 + [chosen] * 4 + [0] * 4)
    assert chosen in (1, 2)


def test_two_appends_through_the_store(client: Client, repo: Repository) -> None:
    session = repo.writable_session("main")
    run(client, append_through, (session.store, 1), (session.store, 2))
    with pytest.raises(SessionStateError) as caught:
        session.commit("both")
    assert [name for name in ("'/a'", "task-0", "task-1") if name not in str(caught.value)] == []


def test_a_task_sees_what_earlier_tasks_wrote(client: Client, repo: Repository) -> None:
    """Two tasks that write halves of one chunk one after the other lose nothing."""
    session = repo.writable_session("main")
    one, other = client.scheduler_info()["workers"]
    first = client.submit(fill_through, session.store, 4, 6, 1, workers=[one])
    first.result()
    client.submit(fill_through, session.store, 6, 8, 2, workers=[other]).result()
    session.commit("both halves")
    require(repo, [0] * 4 + [1, 1, 2, 2] + [0] * 4)


def fill_and_fail_once(store: Any, flag: Path) -> None:
    """Write other values the second time."""
    fill_through(store, 0, 4, 2 if flag.exists() else 1)
    if not flag.exists():
        flag.touch()
        raise RuntimeError("after the write")


def test_a_task_that_is_repeated(client: Client, repo: Repository, tmp_path: Path) -> None:
    """Its second run replaces what the first one reported."""
    session = repo.writable_session("main")
    client.submit(fill_and_fail_once, session.store, tmp_path / "flag", retries=1).result()
    session.commit("the second run")
    require(repo, [2] * 4 + [0] * 8)


def test_a_write_after_the_commit(client: Client, repo: Repository) -> None:
    session = repo.writable_session("main")
    kept = client.submit(fill_through, session.store, 0, 4, 1)
    kept.result()
    session.commit("in time")
    with pytest.raises(SessionStateError, match="came too late"):
        client.submit(fill_through, kept, 4, 8, 2).result()
    require(repo, [1] * 4 + [0] * 8)


def fail(block: Any, block_id: Any = None) -> Any:
    if block_id == (3, 1):
        raise RuntimeError("a block that cannot be computed")
    return block


def fails_while_writing(session: Session) -> None:
    """Write other values than the second try will, with a graph that fails while other tasks still write."""
    ds = writes.lazy() + 1
    broken = ds.assign(large=ds.large.copy(data=ds.large.data.map_blocks(fail, dtype="f8")))
    with pytest.raises(RuntimeError, match="cannot be computed"):
        broken.to_zarr(session.store, **writes.OPTIONS)


def require_second_try(place: Place) -> None:
    group = zarr.open_group(place.open().readonly_session("main").store, mode="r")
    writes.require_values(group, writes.values(writes.dataset()))


def test_a_graph_that_failed_is_discarded(executor: executors.Executor, local_place: Place) -> None:
    """What its tasks have reported, and still will report, is discarded, too."""
    session = local_place.create().writable_session("main")
    assert executor.scheduler is not None
    with executor.scheduler():
        fails_while_writing(session)
        session.discard_changes()
        writes.to_zarr(session.store)
    session.commit("second try")
    require_second_try(local_place)


def test_a_graph_that_failed_is_overwritten(executor: executors.Executor, local_place: Place) -> None:
    """If late tasks of the first graph conflict with the second, the error says so."""
    session = local_place.create().writable_session("main")
    assert executor.scheduler is not None
    with executor.scheduler():
        fails_while_writing(session)
        try:
            writes.lazy().to_zarr(session.store, mode="w", **writes.OPTIONS)
            session.commit("second try")
        except SessionStateError:
            session.discard_changes()
            writes.to_zarr(session.store)
            session.commit("third try")
    require_second_try(local_place)


def test_data_of_the_session_replace_themselves(executor: executors.Executor, local_place: Place) -> None:
    """They are read before they are deleted, though both happen in one call."""
    repo = local_place.create()
    xi.to_icechunk(writes.dataset(), repo, encoding={"large": {"chunks": tuple(writes.CHUNKS.values())}})
    session = repo.writable_session("main")
    source = xi.open_dataset(session, chunks={})
    assert executor.scheduler is not None
    with executor.scheduler():
        xi.to_icechunk(source + 1, session, mode="w")
    session.commit("one more")
    expected = writes.values(writes.dataset() + 1)
    writes.require_values(zarr.open_group(local_place.open().readonly_session("main").store, mode="r"), expected)
