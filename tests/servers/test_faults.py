"""Requests that are lost, refused, cut short or late: no false conflict, no double commit, no wrong bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import zarr

from icechunk_engine import Repository, RepositoryConfig, doctor
from icechunk_engine.config import StorageRetriesSettings, StorageSettings, StorageTimeoutSettings
from icechunk_engine.errors import ErrorKind, InvalidInputError, StorageError, VersionMismatchError
from icechunk_engine.format import layout
from icechunk_engine.storage import Storage
from icechunk_engine.storage.base import Version
from icechunk_engine.storage.wrappers import StorageCall, WrapperStorage
from icechunk_engine.testing.faults import FaultStorage

from .conftest import Running, s3_at
from .proxy import Damage, Fault, FaultProxy, proxied

PATIENT = StorageSettings(retries=StorageRetriesSettings(max_tries=4, initial_backoff_ms=1, max_backoff_ms=5))
ONCE = StorageSettings(
    retries=StorageRetriesSettings(max_tries=1), timeouts=StorageTimeoutSettings(operation_attempt_timeout_ms=500)
)
BEFORE: list[Damage] = ["drop before", "503 before", "429 before"]
AFTER: list[Damage] = ["drop after", "503 after", "500 after"]


@pytest.fixture
def proxy(s3_server: Running) -> Iterator[FaultProxy]:
    with proxied(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def direct(s3_server: Running, place: str) -> Storage:
    """The place, past the proxy."""
    return s3_at(s3_server, place)


@pytest.fixture
def storage(proxy: FaultProxy, place: str) -> Storage:
    return s3_at(Running(proxy.port), place).with_settings(PATIENT)


def conditional_writes() -> dict[str, Callable[[Storage, Version | None], Version]]:
    def replace(storage: Storage, version: Version | None) -> Version:
        assert version is not None
        return storage.replace("repo", b"new", version)

    return {"create": lambda storage, version: storage.create("repo", b"new"), "replace": replace}


@pytest.mark.parametrize("method", ["create", "replace"])
@pytest.mark.parametrize("settings", [PATIENT, ONCE], ids=["retried", "once"])
@pytest.mark.parametrize("damage", AFTER)
def test_a_lost_answer_is_no_conflict(
    proxy: FaultProxy, storage: Storage, direct: Storage, damage: Damage, settings: StorageSettings, method: str
) -> None:
    storage = storage.with_settings(settings)
    version = direct.create("repo", b"old") if method == "replace" else None
    proxy.faults = [Fault(damage, "PUT", "/repo")]
    written = conditional_writes()[method](storage, version)
    assert proxy.applied[damage] == 1
    assert direct.get_versioned("repo") == (b"new", written)


@pytest.mark.parametrize("method", ["create", "replace"])
@pytest.mark.parametrize("damage", [*BEFORE, "409 before", "delay"])
def test_a_lost_request_is_repeated(
    proxy: FaultProxy, storage: Storage, direct: Storage, damage: Damage, method: str
) -> None:
    version = direct.create("repo", b"old") if method == "replace" else None
    proxy.faults = [Fault(damage, "PUT", "/repo")]
    written = conditional_writes()[method](storage, version)
    assert proxy.applied[damage] == 1
    assert direct.get_versioned("repo") == (b"new", written)


@pytest.mark.parametrize("damage", AFTER)
def test_the_same_content_of_another_is_a_conflict(
    proxy: FaultProxy, storage: Storage, direct: Storage, damage: Damage
) -> None:
    version = direct.create("repo", b"old")
    direct.replace("repo", b"new", version)
    proxy.faults = [Fault(damage, "PUT", "/repo")]
    with pytest.raises(VersionMismatchError):
        storage.replace("repo", b"new", version)
    with pytest.raises(VersionMismatchError):
        storage.create("repo", b"new")
    assert proxy.applied[damage] == 1


def test_what_cannot_be_known_is_an_error_that_may_be_repeated(
    proxy: FaultProxy, storage: Storage, direct: Storage
) -> None:
    version = direct.create("repo", b"old")
    storage = storage.with_settings(ONCE)
    proxy.faults = [Fault("drop before", "PUT", "/repo"), Fault("drop after", "PUT", "/repo")]
    with pytest.raises(StorageError) as caught:
        storage.replace("repo", b"new", version)
    assert caught.value.kind is ErrorKind.OBJECT_STORE
    assert not isinstance(caught.value, VersionMismatchError)
    assert "try again" in str(caught.value)
    assert storage.replace("repo", b"new", version) == direct.get_versioned("repo")[1]


@pytest.mark.parametrize("damage", [*BEFORE, *AFTER, "truncate", "delay"])
def test_reads_get_the_right_bytes(proxy: FaultProxy, storage: Storage, direct: Storage, damage: Damage) -> None:
    data = bytes(range(256)) * 1000
    direct.put("chunks/A", data)
    proxy.faults = [Fault(damage, "GET", "/chunks/A", times=2)]
    assert storage.get_range("chunks/A", 1000, 200_000) == data[1000:200_000]
    proxy.faults = [Fault(damage, "GET", "/chunks/A", times=2)]
    assert storage.get("chunks/A") == data
    assert proxy.applied[damage] >= 2


@pytest.mark.parametrize("damage", [*BEFORE, *AFTER, "truncate"])
def test_other_requests_answer_rightly_or_not_at_all(
    proxy: FaultProxy, storage: Storage, direct: Storage, damage: Damage
) -> None:
    def attempt[R](method: str, call: Callable[[], R], expected: R) -> None:
        proxy.faults = [Fault(damage, method, ".")]
        if damage == "truncate":  # not every answer that was cut short is asked for again
            with suppress(StorageError):
                assert call() == expected
        else:
            assert call() == expected

    keys = [f"chunks/{n}" for n in range(5)]
    for key in keys:
        storage.put(key, b"1234")
    attempt("GET", lambda: sorted(info.key for info in storage.list("chunks/")), keys)
    attempt("HEAD", lambda: storage.info("chunks/1"), direct.info("chunks/1"))
    attempt("PUT", lambda: storage.put("chunks/1", b"55"), None)
    assert direct.get("chunks/1") == b"55"
    attempt("POST", lambda: storage.delete(["chunks/1", "chunks/2"]), 2)
    assert {info.key for info in direct.list()} == {"chunks/0", "chunks/3", "chunks/4"}


def test_stores_that_want_etags_without_quotes(proxy: FaultProxy, storage: Storage) -> None:
    proxy.wants_bare_etags = True
    version = storage.create("repo", b"0")
    for n in range(1, 4):
        version = storage.replace("repo", b"%d" % n, version)
    with pytest.raises(VersionMismatchError):
        storage.replace("repo", b"x", Version("0" * 32))
    assert storage.get_versioned("repo") == (b"3", version)
    proxy.wants_bare_etags = False
    assert storage.replace("repo", b"4", version)


def test_a_store_that_begins_to_ignore_conditions_is_found_out(proxy: FaultProxy, storage: Storage) -> None:
    assert doctor(storage, write=True).ok
    proxy.ignores = {"If-Match", "If-None-Match"}
    diagnosis = doctor(storage, write=True)
    assert {finding.name for finding in diagnosis.findings if finding.ok is False} == {
        "conditional writes",
        "one winner",
    }


def test_a_server_that_stays_away_is_named(proxy: FaultProxy, storage: Storage) -> None:
    proxy.faults = [Fault("429 before", "GET", ".", times=100)]
    with pytest.raises(StorageError) as caught:
        storage.with_settings(ONCE).get("repo")
    assert caught.value.kind is ErrorKind.THROTTLED
    proxy.faults = [Fault("drop before", "GET", ".", times=100)]
    with pytest.raises(StorageError) as caught:
        storage.with_settings(ONCE).get("repo")
    assert caught.value.kind is ErrorKind.OBJECT_STORE
    assert storage.identity in str(caught.value)


@pytest.mark.parametrize("damage", [*BEFORE, *AFTER, "truncate"])
def test_commits_happen_once(proxy: FaultProxy, storage: Storage, direct: Storage, damage: Damage) -> None:
    """Each object of the commit meets the damage once, ``repo`` included."""
    repo = Repository.create(storage, RepositoryConfig(storage=PATIENT, inline_chunk_threshold_bytes=0))
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(4,), chunks=(2,), dtype="i4")
    kinds = ["/repo", "/snapshots/", "/manifests/", "/transactions/", "/chunks/", "/overwritten/"]
    proxy.faults = [Fault(damage, method, kind) for kind in kinds for method in ("PUT", "GET")]
    array[:] = [1, 2, 3, 4]
    session.commit("one")
    assert proxy.applied[damage] >= 5
    fresh = Repository.open(direct)
    assert [info.message for info in fresh.ancestry(branch="main")] == ["one", "Repository initialized"]
    read = zarr.open_array(fresh.readonly_session("main").store, path="a", mode="r")
    np.testing.assert_array_equal(read[:], [1, 2, 3, 4])
    assert len(list(fresh.ops_log())) == 2


@pytest.mark.parametrize("damage", AFTER)
def test_repositories_are_made_once(proxy: FaultProxy, storage: Storage, direct: Storage, damage: Damage) -> None:
    proxy.faults = [Fault(damage, "PUT", "/repo")]
    Repository.create(storage, RepositoryConfig(storage=PATIENT))
    assert proxy.applied[damage] == 1
    with pytest.raises(InvalidInputError, match="already"):
        Repository.create(direct)


def test_looking_for_a_repository_heeds_the_settings(proxy: FaultProxy, storage: Storage, direct: Storage) -> None:
    Repository.create(direct)
    for look in (Repository.exists, Repository.fetch_spec_version):
        proxy.faults = [Fault("503 before", "HEAD", "/repo")]
        with pytest.raises(StorageError):
            look(storage, ONCE)
        proxy.faults = [Fault("503 before", "HEAD", "/repo")]
        assert look(storage, PATIENT)


def test_making_a_repository_heeds_the_settings(proxy: FaultProxy, storage: Storage) -> None:
    """From the first request on, which looks whether the place is free."""
    proxy.faults = [Fault("503 before", "GET", "list-type")]
    with pytest.raises(StorageError):
        Repository.create(storage, RepositoryConfig(storage=ONCE))
    proxy.faults = [Fault("503 before", "GET", "list-type")]
    Repository.create(storage, RepositoryConfig(storage=PATIENT))
    assert proxy.applied["503 before"] == 2


def test_a_swap_that_may_still_come_keeps_its_backup(direct: Storage) -> None:
    """A request that timed out may be served later: what it refers to must be there then."""
    repo = Repository.create(direct)
    late: list[tuple[bytes, Version]] = []

    class Slow(WrapperStorage):
        def replace(self, key: str, data: bytes, version: Version) -> Version:
            late.append((data, version))
            raise StorageError("no answer: try again", ErrorKind.OBJECT_STORE)

    slow = Repository.open(Slow(direct))
    with pytest.raises(StorageError, match="no answer"):
        slow.create_tag("v1", repo.lookup_branch("main"))
    direct.replace("repo", *late[0])
    assert Repository.open(direct).list_tags() == {"v1"}
    assert len(list(Repository.open(direct).ops_log())) == 2
    backups = [info.key for info in direct.list(layout.overwritten_key(""))]
    assert len(backups) == 1


def test_a_commit_whose_answer_was_lost_and_that_others_built_upon(direct: Storage) -> None:
    """The swap succeeds, its answer is lost, and another commit comes before it is looked at: still one commit."""
    repo = Repository.create(direct)
    other = Repository.open(direct)

    def lose_the_answer(n: int, call: StorageCall, moment: str) -> None:
        if call.method == "replace" and moment == "after" and not done:
            done.append(n)
            other.create_tag("between", other.lookup_branch("main"))
            raise VersionMismatchError("refused by a store that forgets who wrote")

    done: list[int] = []
    faulty = Repository.open(FaultStorage(direct, lose_the_answer))
    session = faulty.writable_session("main")
    zarr.create_group(session.store)
    snapshot_id = session.commit("mine")
    assert done
    assert repo.lookup_branch("main") == repo.lookup_tag("between") == snapshot_id
    assert [info.message for info in repo.ancestry(branch="main")] == ["mine", "Repository initialized"]
    assert len(list(repo.ops_log())) == 3
    backups = {info.key for info in direct.list(layout.overwritten_key(""))}
    assert len(backups) == 2
