"""A network on which any request may be dropped, refused, cut short, delayed or left without an answer.

Whatever is read is right, whatever fails does so with one of our errors, nothing is committed twice, and the
repository stays good.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import xarray as xr
import zarr

import xarray_icechunk as xi
from icechunk_engine import ConflictDetector, Repository, RepositoryConfig, Session
from icechunk_engine.config import StorageRetriesSettings, StorageSettings, StorageTimeoutSettings
from icechunk_engine.errors import IcechunkError, StorageError
from tests.profiles import by_profile

from .conftest import MAKERS, Running
from .proxy import Damage, FaultProxy, proxied

TOXINS: tuple[Damage, ...] = (
    "drop before",
    "503 before",
    "429 before",
    "409 before",
    "drop after",
    "503 after",
    "500 after",
    "truncate",
    "hang",
)
FEW_RETRIES = StorageRetriesSettings(max_tries=2, initial_backoff_ms=1, max_backoff_ms=5)
HASTY = StorageSettings(retries=FEW_RETRIES, timeouts=StorageTimeoutSettings(read_timeout_ms=500))
PATIENT = StorageSettings(retries=FEW_RETRIES, timeouts=StorageTimeoutSettings(read_timeout_ms=30_000))
"""Where every request gets an answer: a slow machine must not look like a bad network."""
CONFIG = RepositoryConfig(storage=HASTY, inline_chunk_threshold_bytes=0)
COMMITS = by_profile(quick=5, thorough=8)
SIZE = 300


@pytest.fixture(params=list(MAKERS))
def server(request: pytest.FixtureRequest) -> tuple[str, Running]:
    return request.param, request.getfixturevalue(f"{request.param}_server")


@pytest.fixture
def proxy(server: tuple[str, Running]) -> Iterator[FaultProxy]:
    with proxied(server[1].port) as proxy:
        proxy.toxins = TOXINS
        yield proxy


def insisted[R](action: Callable[[], R]) -> R:
    """The result, after however many of our errors; any other error is one too many."""
    for _ in range(100):
        try:
            return action()
        except IcechunkError as error:
            last = error
    raise last


def commit(repo: Repository, n: int) -> Session:
    """Write one number everywhere, and commit it until that is known to have worked."""

    def write() -> Session:
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+")[:] = n
        return session

    session = insisted(write)
    insisted(lambda: session.commit(f"commit {n}", rebase_with=ConflictDetector()))
    return session


def read(repo: Repository) -> int:
    with xi.open_dataset(repo) as dataset:
        values = dataset["a"].values
    assert len(set(values.tolist())) == 1, "a mixture of two commits"
    return int(values[0])


@pytest.mark.long
@pytest.mark.parametrize("seed", by_profile(quick=[1], thorough=[1, 2, 3, 4]))
def test_nothing_is_lost_or_doubled(server: tuple[str, Running], proxy: FaultProxy, place: str, seed: int) -> None:
    maker = MAKERS[server[0]]
    storage, direct = maker(Running(proxy.port), place), maker(server[1], place)
    proxy.random, proxy.toxicity = random.Random(seed), 0.25
    repo = insisted(lambda: Repository.open_or_create(storage, config=CONFIG))

    def start() -> None:
        dataset = xr.Dataset({"a": ("x", np.zeros(SIZE, "i4"), {}, {"chunks": (SIZE // 6,)})})
        session = repo.writable_session("main")
        if "a" not in zarr.open_group(session.store, mode="a"):
            xi.to_icechunk(dataset, session, mode="a")
            session.commit("start")

    insisted(start)
    for n in range(1, COMMITS + 1):
        commit(repo, n)
        assert insisted(lambda: read(Repository.open(storage, config=CONFIG))) == n
    assert proxy.applied.total() > COMMITS
    proxy.toxicity = 0

    final = Repository.open(direct)
    history = list(final.ancestry(branch="main"))
    expected = ["Repository initialized", "start", *(f"commit {n}" for n in range(1, COMMITS + 1))]
    assert [info.message for info in reversed(history)] == expected
    for n, info in enumerate(reversed(history[:-1])):
        values = zarr.open_array(final.readonly_session(snapshot_id=info.id).store, path="a", mode="r")[:]
        assert set(np.asarray(values).tolist()) == {n}
    assert len(list(final.ops_log())) == len(expected)


def test_a_network_that_stays_bad_is_an_error(server: tuple[str, Running], proxy: FaultProxy, place: str) -> None:
    """Each request of opening, reading, writing and committing fails for good: an error of ours, and no change."""
    maker = MAKERS[server[0]]
    config = RepositoryConfig(storage=PATIENT, inline_chunk_threshold_bytes=0)
    storage, direct = maker(Running(proxy.port), place), maker(server[1], place)
    repo = Repository.create(storage, config=config)
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(SIZE,), chunks=(SIZE // 6,), dtype="i4", dimension_names=["x"])[
            :
        ] = 1
    pending = repo.writable_session("main")
    zarr.open_array(pending.store, path="a", mode="r+")[:10] = 2
    before = {(info.key, direct.get_versioned(info.key)[1]) for info in direct.list()}
    unread = Repository.open(storage, config=config).readonly_session("main")

    def write() -> None:
        zarr.open_array(pending.store, path="a", mode="r+")[:] = 3

    attempts: list[Callable[[], object]] = [
        lambda: Repository.create(storage, config=config),
        lambda: Repository.open(maker(Running(proxy.port), place), config=config).readonly_session("main"),
        lambda: zarr.open_array(unread.store, path="a", mode="r")[:],
        write,
        lambda: pending.commit("never"),
        lambda: repo.create_tag("never", pending.snapshot_id),
        lambda: list(storage.with_settings(PATIENT).list()),
    ]
    for toxin in ("drop before", "503 before", "429 before"):
        proxy.toxins, proxy.toxicity = (toxin,), 1
        for attempt in attempts:
            with pytest.raises(StorageError, match=r"[Tt]ry again|unreachable"):
                attempt()
        proxy.toxicity = 0
        after = {(info.key, direct.get_versioned(info.key)[1]) for info in direct.list()}
        # zarr writes several chunks at a time and raises the first error. Requests for the other chunks may still be
        # retried, and succeed now. Nothing refers to these chunks.
        late = {(key, version) for key, version in after - before if key.startswith("chunks/")}
        assert after - late == before
    write()
    pending.commit("at last")
    assert read(Repository.open(direct)) == 3
