"""Repositories of spec version 1: what is on disk, what they answer, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import icechunk_engine as ic
from icechunk_engine import ErrorKind, Repository
from icechunk_engine.format import header, layout
from icechunk_engine.format.header import FileType
from icechunk_engine.format.snapshot import decode_snapshot, encode_snapshot
from icechunk_engine.session import workspace_of
from icechunk_engine.storage import Version
from icechunk_engine.storage.wrappers import WrapperStorage
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.testing.faults import FailOnce, FaultStorage

ROOT_ID = "1CECHNKREP0F1RSTCMT0"
UNKNOWN_ID = "0" * 20


@pytest.fixture
def repo(storage: ic.Storage) -> Repository:
    return Repository.create(storage, spec_version=1)


def write(repo: Repository, value: int, *, branch: str = "main", message: str = "change", **options: Any) -> str:
    session = repo.writable_session(branch)
    root = zarr.open_group(session.store, mode="a")
    root.require_array("a", shape=(10,), chunks=(5,), dtype="int64")[:] = value
    return session.commit(message, **options)


def read(session: ic.Session) -> list[int]:
    return np.asarray(zarr.open_array(session.store, path="a", mode="r")[:]).tolist()


def ref_of(storage: ic.Storage, key: str) -> str:
    return str(json.loads(storage.get(key))["snapshot"])


# --- on disk -------------------------------------------------------------------------------------------------------


def test_files(storage: ic.Storage) -> None:
    config = ic.RepositoryConfig(inline_chunk_threshold_bytes=8)
    repo = Repository.create(storage, config, spec_version=1)
    assert {found.key for found in storage.list()} == {
        f"snapshots/{ROOT_ID}",
        "refs/branch.main/ref.json",
        "config.yaml",
    }
    tip = write(repo, 1)
    repo.create_branch("dev", ROOT_ID)
    repo.create_tag("t", tip)
    repo.delete_tag("t")
    assert storage.get("refs/branch.main/ref.json") == b'{"snapshot":"%s"}' % tip.encode()
    assert ref_of(storage, "refs/branch.dev/ref.json") == ROOT_ID
    assert ref_of(storage, "refs/tag.t/ref.json") == tip
    assert storage.get("refs/tag.t/ref.json.deleted") == b""
    kinds = {"snapshots": FileType.SNAPSHOT, "manifests": FileType.MANIFEST, "transactions": FileType.TRANSACTION_LOG}
    versions = {}
    for found in storage.list():
        folder = found.key.partition("/")[0]
        if folder in kinds:
            versions[found.key] = header.unpack(storage.get(found.key), kinds[folder], found.key).spec_version
    assert len(versions) == 2 + 1 + 1
    assert set(versions.values()) == {1}
    assert not any(found.key == "repo" for found in storage.list())


def test_create_open_exists(storage: ic.Storage) -> None:
    assert Repository.fetch_spec_version(storage) is None
    with pytest.raises(ic.RepositoryNotFoundError):
        Repository.fetch_config(storage)
    repo = Repository.open_or_create(storage, create_version=1)
    assert Repository.exists(storage)
    assert Repository.fetch_spec_version(storage) == 1
    assert Repository.fetch_config(storage) is None
    for version in (1, 2):
        with pytest.raises(ic.InvalidInputError, match=r"Repository\.open"):
            Repository.create(storage, spec_version=version, check_clean_root=False)
    again = Repository.open_or_create(storage)  # never makes a second one beside it
    assert again.spec_version == repo.spec_version == ic.SpecVersion.v1
    assert again.lookup_branch("main") == ROOT_ID
    assert repo.reopen(ic.RepositoryConfig(inline_chunk_threshold_bytes=1)).spec_version == 1
    write(pickle.loads(pickle.dumps(repo)), 3)
    assert read(repo.readonly_session("main")) == [3] * 10
    assert "version 1" in repo._repr_html_()


def test_unknown_versions_are_not_created(storage: ic.Storage) -> None:
    for version in (0, 3):
        with pytest.raises(ic.InvalidInputError, match="spec version 2"):
            Repository.create(storage, spec_version=version)
    assert list(storage.list()) == []


def test_config(storage: ic.Storage) -> None:
    config = ic.RepositoryConfig(inline_chunk_threshold_bytes=8)
    config.set_virtual_chunk_container(ic.VirtualChunkContainer("s3://b/", ic.s3_store(region="eu")))
    Repository.create(storage, config, spec_version=1)
    assert Repository.fetch_config(storage) == Repository.open(storage).config == config
    opened = Repository.open(storage, ic.RepositoryConfig(max_concurrent_requests=7))
    assert Repository.fetch_config(storage) == config
    before = storage.get("config.yaml")
    opened.save_config()
    assert Repository.fetch_config(storage) == opened.config
    (backup,) = storage.list(layout.OVERWRITTEN)
    assert backup.key.startswith("overwritten/config.yaml.")
    assert storage.get(backup.key) == before


def test_config_of_another_maker_is_not_replaced(storage: ic.Storage) -> None:
    """Two make a repository at once: the slower one must not leave its settings to the faster one's repository."""
    mine, theirs = (ic.RepositoryConfig(inline_chunk_threshold_bytes=n) for n in (1, 2))

    class Racing(WrapperStorage):
        raced = False

        def create(self, key: str, data: bytes) -> Version:
            if not self.raced:
                self.raced = True
                Repository.create(self.inner, theirs, spec_version=1)
            return super().create(key, data)

    with pytest.raises(ic.InvalidInputError):
        Repository.create(Racing(storage), mine, spec_version=1)
    assert Repository.open(storage).config == theirs


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"snapshot": 3}', b'{"snapshot": "short"}', b"\xff"])
def test_damaged_ref(storage: ic.Storage, data: bytes) -> None:
    storage.put(layout.branch_ref_key("main"), data)
    with pytest.raises(ic.FormatError, match=r"refs/branch\.main/ref\.json"):
        Repository.open(storage)


def test_parents_in_a_circle(storage: ic.Storage) -> None:
    repo = Repository.create(storage, spec_version=1)
    tip = write(repo, 1)
    root = decode_snapshot(storage.get(f"snapshots/{ROOT_ID}"))
    child = decode_snapshot(storage.get(f"snapshots/{tip}"))
    assert child.parent_id == root.snapshot_id
    elsewhere = ic.in_memory_storage()
    for found in storage.list():
        elsewhere.put(found.key, storage.get(found.key))
    elsewhere.put(f"snapshots/{ROOT_ID}", encode_snapshot(replace(root, parent_id=child.snapshot_id)))
    with pytest.raises(ic.FormatError, match="circle"):
        list(Repository.open(elsewhere).ancestry(branch="main"))


# --- refs ----------------------------------------------------------------------------------------------------------


@given(name=st.text(st.characters(exclude_characters="/", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8))
def test_any_name(name: str) -> None:
    repo = Repository.create(ic.in_memory_storage(), spec_version=1)
    if name != "main":
        repo.create_branch(name, ROOT_ID)
    repo.create_tag(name, ROOT_ID)
    assert repo.list_branches() == {"main", name}
    assert repo.list_tags() == {name}
    assert repo.lookup_branch(name) == repo.lookup_tag(name) == ROOT_ID
    repo.delete_tag(name)
    assert repo.list_tags() == set()
    assert all(found.key.isascii() for found in repo.storage.list())


@pytest.mark.parametrize("name", ["a/b", "/", "\ud800", "\0"])
def test_bad_names(repo: Repository, name: str) -> None:
    for attempt in (repo.create_branch, repo.create_tag):
        with pytest.raises(ic.InvalidInputError) as caught:
            attempt(name, ROOT_ID)
        assert caught.value.kind == ErrorKind.INVALID_REF_NAME


def test_foreign_files_among_the_refs(repo: Repository) -> None:
    for key in ("refs/readme", "refs/branch.x/other.json", "refs/tag.x/y/ref.json", "refs/branch.x/ref.json.deleted"):
        repo.storage.put(key, b"?")
    assert repo.list_branches() == {"main"}
    assert repo.list_tags() == set()


REF_NAMES = ["main", "dev", "é~"]
NAMES = st.sampled_from(REF_NAMES)
MARKS = st.integers(0, 8)


def _chosen(known: list[str], mark: int) -> str:
    """One of the known ids, or one that is unknown."""
    return [*known, UNKNOWN_ID][mark % (len(known) + 1)]


class TwinMachine(RuleBasedStateMachine):
    """The same steps on a repository of either version: same results, same errors, same history."""

    def __init__(self) -> None:
        super().__init__()
        self.repos = [Repository.create(ic.in_memory_storage(), spec_version=version) for version in (1, 2)]
        self.ids: list[list[str]] = [[ROOT_ID], [ROOT_ID]]
        self.sessions: list[list[ic.Session]] = []

    def both(self, step: Callable[[Repository, Callable[[int], str], int], Any]) -> None:
        """Run a step on both; ids are named by their number, as they differ."""
        answers: list[tuple[Any, Any]] = []
        for side, repo in enumerate(self.repos):
            known = self.ids[side]
            try:
                answer = step(repo, partial(_chosen, known), side)
                answers.append(("ok", self.named(answer, side)))
            except ic.IcechunkError as error:
                answers.append((type(error), error.kind))
        assert answers[0] == answers[1]

    def named(self, answer: Any, side: int) -> Any:
        if isinstance(answer, list):
            return [self.named(one, side) for one in answer]
        return self.ids[side].index(answer) if answer in self.ids[side] else answer

    @rule(name=NAMES, mark=MARKS)
    def create_branch(self, name: str, mark: int) -> None:
        self.both(lambda repo, at, side: repo.create_branch(name, at(mark)))

    @rule(name=NAMES, mark=MARKS, expected=st.none() | MARKS)
    def reset_branch(self, name: str, mark: int, expected: int | None) -> None:
        self.both(
            lambda repo, at, side: repo.reset_branch(
                name, at(mark), from_snapshot_id=None if expected is None else at(expected)
            )
        )

    @rule(name=NAMES)
    def delete_branch(self, name: str) -> None:
        self.both(lambda repo, at, side: repo.delete_branch(name))

    @rule(name=NAMES, mark=MARKS)
    def create_tag(self, name: str, mark: int) -> None:
        self.both(lambda repo, at, side: repo.create_tag(name, at(mark)))

    @rule(name=NAMES)
    def delete_tag(self, name: str) -> None:
        self.both(lambda repo, at, side: repo.delete_tag(name))

    @rule(name=NAMES, at_time=st.booleans())
    def read(self, name: str, at_time: bool) -> None:
        as_of = datetime(2020, 1, 1, tzinfo=UTC) if at_time else None

        def step(repo: Repository, at: Callable[[int], str], side: int) -> Any:
            session = repo.readonly_session(name, as_of=as_of)
            return read(session) if workspace_of(session).get_node("/a") is not None else None

        self.both(step)

    @rule(start=MARKS, stop=MARKS)
    def diff(self, start: int, stop: int) -> None:
        def step(repo: Repository, at: Callable[[int], str], side: int) -> Any:
            return repr(repo.diff(from_snapshot_id=at(start), to_snapshot_id=at(stop)))

        self.both(step)

    @rule(name=NAMES)
    def begin(self, name: str) -> None:
        pair: list[ic.Session] = []
        self.both(lambda repo, at, side: pair.append(repo.writable_session(name)))
        if pair:
            self.sessions.append(pair)

    @rule(which=st.integers(0, 3), value=st.integers(0, 9), place=st.integers(0, 1), rebase=st.booleans())
    def commit(self, which: int, value: int, place: int, rebase: bool) -> None:
        if not self.sessions:
            return
        pair = self.sessions.pop(which % len(self.sessions))
        solver = ic.ConflictDetector() if rebase else None

        def step(repo: Repository, at: Callable[[int], str], side: int) -> None:
            session = pair[side]
            root = zarr.open_group(session.store, mode="a")
            root.require_array("a", shape=(10,), chunks=(5,), dtype="int64")[place * 5 : place * 5 + 5] = value
            self.ids[side].append(session.commit(f"{value}", rebase_with=solver))

        self.both(step)

    @invariant()
    def same_refs_and_history(self) -> None:
        one, two = self.repos
        for name in REF_NAMES:
            self.both(lambda repo, at, side, name=name: repo.lookup_branch(name))  # type: ignore[misc]
            self.both(lambda repo, at, side, name=name: repo.lookup_tag(name))  # type: ignore[misc]
        assert one.list_tags() == two.list_tags()
        assert one.list_branches() == two.list_branches()
        for branch in one.list_branches():
            lines = []
            for side, repo in enumerate(self.repos):
                line = list(repo.ancestry(branch=branch))
                assert [info.parent_id for info in line[:-1]] == [info.id for info in line[1:]]
                assert line[-1].parent_id is None
                lines.append([(self.ids[side].index(info.id), info.message, info.metadata) for info in line])
            assert lines[0] == lines[1]


def test_answers_as_spec_2_does() -> None:
    run_state_machine_as_test(TwinMachine)


# --- sessions ------------------------------------------------------------------------------------------------------


def test_time_travel_and_history(repo: Repository) -> None:
    first = write(repo, 1, message="one", metadata={"n": [1, 2.5, None]})
    between = datetime.now(UTC)
    second = write(repo, 2, message="two")
    assert [info.message for info in repo.ancestry(branch="main")] == ["two", "one", "Repository initialized"]
    assert read(repo.readonly_session(snapshot_id=first)) == [1] * 10
    assert read(repo.readonly_session("main", as_of=between)) == [1] * 10
    assert repo.lookup_snapshot(first).metadata == {"n": [1, 2.5, None]}
    assert repo.lookup_snapshot(second).parent_id == first

    async def collected() -> list[str]:
        return [info.id async for info in repo.async_ancestry(branch="main")]

    assert asyncio.run(collected()) == [second, first, ROOT_ID]
    assert len(repo.list_manifest_files(second)) == 1


def test_flush_writes_files_only(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    detached = session.flush("detached")
    assert repo.lookup_branch("main") == ROOT_ID
    assert [info.id for info in repo.ancestry(snapshot_id=detached)] == [detached, ROOT_ID]
    repo.reset_branch("main", detached)
    assert repo.lookup_branch("main") == detached


def test_forks(repo: Repository) -> None:
    write(repo, 0)
    session = repo.writable_session("main")
    zarr.open_group(session.store)["a"][0:5] = 1
    fork = pickle.loads(pickle.dumps(session.fork()))
    zarr.open_group(fork.store)["a"][5:10] = 2
    session.merge(fork)
    session.commit("merged")
    assert read(repo.readonly_session("main")) == [1] * 5 + [2] * 5
    assert len(list(repo.ancestry(branch="main"))) == 3


def test_uneven_chunks_are_refused_at_once(repo: Repository) -> None:
    session = repo.writable_session("main")
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [10],
        "data_type": "int32",
        "chunk_grid": {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[4, 6]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    with pytest.raises(ic.InvalidInputError, match="upgrade_icechunk_repository"):
        workspace_of(session).set_metadata("/q", json.dumps(document).encode())
    assert not session.has_uncommitted_changes


REFUSED: dict[str, Callable[[Repository], Any]] = {
    "status": lambda repo: repo.status,
    "set_status": lambda repo: repo.set_status(ic.RepoStatus(ic.RepoAvailability.read_only)),
    "metadata": lambda repo: repo.metadata,
    "set_metadata": lambda repo: repo.set_metadata({"a": 1}),
    "update_metadata": lambda repo: repo.update_metadata({"a": 1}),
    "feature_flags": lambda repo: repo.feature_flags(),
    "enabled_feature_flags": lambda repo: repo.enabled_feature_flags(),
    "set_feature_flag": lambda repo: repo.set_feature_flag("create_tag", False),
    "ops_log": lambda repo: list(repo.ops_log()),
    "rearrange_session": lambda repo: repo.rearrange_session("no such branch"),
}


@pytest.mark.parametrize("operation", REFUSED)
def test_what_spec_1_does_not_have(repo: Repository, operation: str) -> None:
    before = {found.key: repo.storage.get(found.key) for found in repo.storage.list()}
    with pytest.raises(ic.FormatError, match="upgrade_icechunk_repository") as caught:
        REFUSED[operation](repo)
    assert caught.value.kind == ErrorKind.UNSUPPORTED_SPEC_VERSION
    assert {found.key: repo.storage.get(found.key) for found in repo.storage.list()} == before


# --- requests, faults, races -----------------------------------------------------------------------------------------


def test_requests() -> None:
    plain = ic.in_memory_storage()
    write(Repository.create(plain, spec_version=1), 1)
    storage = CountingStorage(ic.in_memory_storage())
    for found in plain.list():
        storage.put(found.key, plain.get(found.key))
    storage.reset()
    repo = Repository.open(storage)
    assert storage.keys("get_versioned") + storage.keys("get") == ("repo", "refs/branch.main/ref.json", "config.yaml")
    storage.reset()
    session = repo.writable_session("main")
    assert storage.n_requests == 1
    zarr.open_array(session.store, path="a", mode="r+").attrs["units"] = "K"
    storage.reset()
    session.commit("attributes")
    # The branch has not moved; snapshot and log; then the ref is read, nobody has upgraded, and the ref is swapped.
    assert storage.requests == {"put": 2, "get_versioned": 2, "info": 1, "replace": 1}
    storage.reset()
    list(repo.ancestry(branch="main"))
    assert storage.n_requests == 1 + 1  # the ref and the first snapshot; those seen before are cached
    storage.reset()
    repo.list_tags()
    assert storage.requests == {"list": 1}


def test_a_fault_at_each_request_of_a_commit() -> None:
    def attempt(hook: Any) -> tuple[FaultStorage, Repository, ic.Session, Exception | None]:
        storage = FaultStorage(ic.in_memory_storage())
        repo = Repository.create(storage, spec_version=1)
        write(repo, 1)
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+")[0:5] = 7
        storage.n_calls, storage.hook = 0, hook
        error = None
        try:
            session.commit("seven")
        except ic.IcechunkError as raised:
            error = raised
        finally:
            storage.hook = None
        return storage, repo, session, error

    n_calls = attempt(None)[0].n_calls
    assert n_calls >= 6
    for n in range(n_calls):
        for moment in ("before", "after"):
            hook = FailOnce(n, moment)
            _, repo, session, error = attempt(hook)
            assert error is not None
            assert hook.failed is not None
            landed = moment == "after" and hook.failed.method == "replace"
            assert read(repo.readonly_session("main")) == [7 if landed else 1] * 5 + [1] * 5
            assert session.has_uncommitted_changes
            assert session.commit("again") == repo.lookup_branch("main")  # not twice
            assert read(repo.readonly_session("main")) == [7] * 5 + [1] * 5
            assert len(list(repo.ancestry(branch="main"))) == 3


def test_a_commit_whose_answer_was_lost_is_recognised() -> None:
    """A storage that repeats requests may report that the second try lost: against our own first one."""

    class Stuttering(WrapperStorage):
        def replace(self, key: str, data: bytes, version: Version) -> Version:
            super().replace(key, data, version)
            return super().replace(key, data, version)

    storage = ic.in_memory_storage()
    write(Repository.create(storage, spec_version=1), 1)
    repo = Repository.open(Stuttering(storage))
    tip = write(repo, 2)
    assert repo.lookup_branch("main") == tip
    assert len(list(repo.ancestry(branch="main"))) == 3


PROCESSES, COMMITS = 4, 20


def _commit_many(path: str, worker: int) -> None:
    repo = Repository.open(ic.local_filesystem_storage(path))
    for i in range(COMMITS):
        while True:
            session = repo.writable_session("main")
            zarr.open_array(session.store, path="count", mode="r+")[worker] = i + 1
            try:
                # Half of them rebase, the others begin anew.
                session.commit(f"{worker}:{i}", rebase_with=ic.ConflictDetector() if worker % 2 else None)
                break
            except ic.ConflictError:
                continue


def test_no_commit_is_lost(tmp_path: Path) -> None:
    path = str(tmp_path / "repo")
    repo = Repository.create(ic.local_filesystem_storage(path), spec_version=1)
    with repo.transaction("main", message="start") as store:
        zarr.create_array(store, name="count", shape=(PROCESSES,), chunks=(1,), dtype="int64", fill_value=0)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_commit_many, args=(path, worker)) for worker in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    line = list(repo.ancestry(branch="main"))
    assert len(line) == PROCESSES * COMMITS + 2
    assert [info.parent_id for info in line[:-1]] == [info.id for info in line[1:]]
    messages = [info.message for info in reversed(line)]
    for number in range(PROCESSES):
        mine = [message for message in messages if message.startswith(f"{number}:")]
        assert mine == [f"{number}:{i}" for i in range(COMMITS)]
    final = zarr.open_array(repo.readonly_session("main").store, path="count", mode="r")[:]
    assert np.asarray(final).tolist() == [COMMITS] * PROCESSES
