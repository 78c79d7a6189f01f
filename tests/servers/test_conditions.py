"""Stores that do not keep conditions are refused before anything is written, unless there is one writer only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zarr

from icechunk_engine import Repository, RepositoryConfig, doctor
from icechunk_engine.config import StorageRetriesSettings, StorageSettings
from icechunk_engine.errors import ErrorKind, StorageError, VersionMismatchError
from icechunk_engine.storage import Storage
from icechunk_engine.storage.base import Version

from .conftest import Running, s3_at
from .proxy import Fault, FaultProxy, proxied

ALONE = StorageSettings(unsafe_use_conditional_create=False, unsafe_use_conditional_update=False)
ONCE = StorageSettings(retries=StorageRetriesSettings(max_tries=1))
HASTY = StorageSettings(retries=StorageRetriesSettings(initial_backoff_ms=1, max_backoff_ms=5))
"""The answer 501 is retried; the usual pauses between the attempts would take seconds."""
CONFIG = RepositoryConfig(storage=HASTY)


def ignores_create(proxy: FaultProxy) -> None:
    proxy.ignores = {"If-None-Match"}


def ignores_update(proxy: FaultProxy) -> None:
    proxy.ignores = {"If-Match"}


def lacks_both(proxy: FaultProxy) -> None:
    proxy.lacks_conditions = True


LIARS = [ignores_create, ignores_update, lacks_both]


@pytest.fixture
def proxy(s3_server: Running) -> Iterator[FaultProxy]:
    """In a place that this process does not know yet."""
    with proxied(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def liar(proxy: FaultProxy, place: str, request: pytest.FixtureRequest) -> Storage:
    request.param(proxy)
    return s3_at(Running(proxy.port), place).with_settings(HASTY)


@pytest.fixture
def direct(s3_server: Running, place: str) -> Storage:
    return s3_at(s3_server, place)


def written(storage: Storage) -> dict[str, Version]:
    return {info.key: storage.get_versioned(info.key)[1] for info in storage.list()}


@pytest.mark.parametrize("liar", LIARS, indirect=True)
def test_no_repository_is_made(liar: Storage, direct: Storage) -> None:
    for _ in range(2):
        with pytest.raises(StorageError, match="unsafe_use_conditional_update=False") as caught:
            Repository.create(liar, CONFIG)
        assert caught.value.kind is ErrorKind.NO_CONDITIONAL_WRITES
        assert liar.identity.startswith(str(caught.value).partition(" ")[0])
        assert written(direct) == {}


def set_chunk(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[:] = np.arange(1000)
    session.commit("more")


def set_attribute(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+").attrs["new"] = 1
    session.commit("more")


def make_tag(repo: Repository) -> None:
    repo.create_tag("v1", repo.lookup_branch("main"))


def change_config(repo: Repository) -> None:
    repo.save_config()


@pytest.mark.parametrize("change", [set_chunk, set_attribute, make_tag, change_config])
@pytest.mark.parametrize("liar", LIARS, indirect=True)
def test_nothing_is_written_to_a_repository(
    liar: Storage, direct: Storage, change: Callable[[Repository], None]
) -> None:
    repo = Repository.create(direct)
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(1000,), chunks=(500,), dtype="i8")
    before = written(direct)
    with pytest.raises(StorageError) as caught:
        change(Repository.open(liar, CONFIG))
    assert caught.value.kind is ErrorKind.NO_CONDITIONAL_WRITES
    assert written(direct) == before


@pytest.mark.parametrize("liar", LIARS, indirect=True)
def test_a_single_writer_may_say_so(liar: Storage, direct: Storage) -> None:
    repo = Repository.create(liar, RepositoryConfig(storage=ALONE))
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="a", shape=(1000,), chunks=(500,), dtype="i8")
    set_chunk(Repository.open(liar))  # the repository's own configuration says so from now on
    set_attribute(Repository.open(liar))
    read = zarr.open_array(Repository.open(direct).readonly_session("main").store, path="a", mode="r")
    np.testing.assert_array_equal(read[:], np.arange(1000))
    assert [info.message for info in repo.ancestry(branch="main")][:3] == ["more", "more", "start"]


@pytest.mark.parametrize("liar", LIARS, indirect=True)
def test_a_single_writer_still_sees_what_changed(liar: Storage, direct: Storage) -> None:
    alone = liar.with_settings(ALONE)
    version = alone.create("repo", b"1")
    assert direct.get_versioned("repo") == (b"1", version)
    newer = direct.replace("repo", b"2", version)
    with pytest.raises(VersionMismatchError):
        alone.create("repo", b"3")
    with pytest.raises(VersionMismatchError):
        alone.replace("repo", b"3", version)
    with pytest.raises(VersionMismatchError):
        alone.replace("other", b"3", version)
    assert alone.get_versioned("repo") == (b"2", newer)
    assert alone.replace("repo", b"3", newer) == direct.get_versioned("repo")[1]


@pytest.mark.parametrize("liar", LIARS, indirect=True)
def test_the_doctor_says_so(liar: Storage, direct: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = doctor(liar, write=True)
    assert [finding.name for finding in diagnosis.findings if finding.ok is False] == ["conditional writes"]
    assert "unsafe_use_conditional_create=False" in capsys.readouterr().out
    assert written(direct) == {}


def test_a_good_store_is_asked_once(proxy: FaultProxy, place: str, direct: Storage) -> None:
    storage = s3_at(Running(proxy.port), place)
    storage.put("chunks/A", b"1")
    asked = proxy.n_requests
    assert asked == 5  # an object, two writes that must fail, its removal; then the chunk
    s3_at(Running(proxy.port), f"{place}/elsewhere").put("chunks/A", b"1")
    storage.create("repo", b"1")
    assert proxy.n_requests == asked + 2
    assert set(written(direct)) == {"chunks/A", "elsewhere/chunks/A", "repo"}


def test_a_probe_that_stayed_is_in_nobodys_way(proxy: FaultProxy, place: str, direct: Storage) -> None:
    """Where deleting is not allowed, or failed."""
    storage = s3_at(Running(proxy.port), place).with_settings(ONCE)
    proxy.faults = [Fault("503 before", "POST", "delete")]
    repo = Repository.create(storage, RepositoryConfig(storage=ONCE))
    assert proxy.applied.total() == 1
    assert [info.key for info in direct.list("doctor/")] != []
    assert repo.lookup_branch("main") == Repository.open(direct).lookup_branch("main")
    direct.delete([info.key for info in direct.list() if not info.key.startswith("doctor/")])
    Repository.create(direct)


def test_metadata_may_be_left_out(proxy: FaultProxy, place: str) -> None:
    storage = s3_at(Running(proxy.port), place)
    storage.create("with", b"1")
    assert any("icechunkwriteid" in name for name in proxy.headers_seen)
    proxy.headers_seen.clear()
    plain = storage.with_settings(StorageSettings(unsafe_use_metadata=False))
    version = plain.create("repo", b"1")
    assert plain.replace("repo", b"2", version) != version
    assert not any("meta" in name for name in proxy.headers_seen)
