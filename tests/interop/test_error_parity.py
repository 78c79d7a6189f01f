"""Errors match official's: the class tree, and for errors that both can raise, the class, kind and key phrases.

A handler for official's errors must catch ours, and nothing else. A test that matches official's words must match
ours. If official raises a plain ValueError or TypeError, ours can be more specific, but must be a subclass.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import icechunk as official
import pytest
import zarr
from zarr.buffer import cpu, default_buffer_prototype

import icechunk_engine as ours

PACKAGES = (official, ours)
GROUP = cpu.Buffer.from_bytes(b'{"zarr_format":3,"node_type":"group"}')
NOT_THERE = "ZZZZZZZZZZZZZZZZZZZ0"
AGES_AGO = datetime(2000, 1, 1, tzinfo=UTC)

# --- the tree ------------------------------------------------------------------------------------------------------


def public_errors(package: Any) -> dict[str, type]:
    found = {name: thing for name, thing in vars(package).items() if isinstance(thing, type)}
    return {name: cls for name, cls in found.items() if issubclass(cls, BaseException)}


def test_the_tree_is_official_s() -> None:
    theirs, own = public_errors(official), public_errors(ours)
    assert set(own) == set(theirs)
    for name, cls in theirs.items():
        names = [base.__name__ for base in cls.__mro__ if base is not object]
        assert [base.__name__ for base in own[name].__mro__ if base is not object] == names


def test_kinds_are_official_s() -> None:
    theirs, own = ({kind.name: kind.value for kind in package.ErrorKind} for package in PACKAGES)
    assert theirs.items() <= own.items()


def test_errors_below_the_public_ones_catch_the_same() -> None:
    """Our additional classes are subclasses of official's, and have only its builtin bases."""
    seen = set()
    pending = [ours.IcechunkError]
    while pending:
        cls = pending.pop()
        seen.add(cls)
        pending += cls.__subclasses__()
    assert {cls.__name__ for cls in seen} > set(public_errors(ours))
    for cls in seen - set(public_errors(ours).values()):
        assert any(base in public_errors(ours).values() for base in cls.__mro__ if base is not ours.IcechunkError), cls


# --- provoking -----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    provoke: Callable[[Any, Path], object]
    phrase: str


CASES: dict[str, Case] = {}


def case(phrase: str) -> Callable[[Callable[[Any, Path], object]], Callable[[Any, Path], object]]:
    """A call that raises an error. ``phrase`` is in both messages."""

    def register(function: Callable[[Any, Path], object]) -> Callable[[Any, Path], object]:
        CASES[function.__name__] = Case(function, phrase)
        return function

    return register


def empty(ic: Any, **settings: Any) -> Any:
    return ic.Repository.create(ic.in_memory_storage(), **settings)


def filled(ic: Any, **settings: Any) -> Any:
    """An array ``/a`` with 2 of its 4 chunks, and a group ``/g``."""
    repo = empty(ic, **settings)
    session = repo.writable_session("main")
    root = zarr.group(session.store)
    root.create_array("a", shape=(4,), chunks=(1,), dtype="i4", compressors=None)[:2] = 1
    root.create_group("g")
    session.commit("one")
    return repo


def edited(ic: Any) -> Any:
    session = filled(ic).writable_session("main")
    zarr.open_group(session.store)["a"][0] = 9
    return session


def two_edits(ic: Any) -> Any:
    """A session with a chunk that another session has committed meanwhile."""
    repo = filled(ic)
    first, second = repo.writable_session("main"), repo.writable_session("main")
    for session, value in ((first, 7), (second, 8)):
        zarr.open_group(session.store)["a"][0] = value
    first.commit("first")
    return second


def tip(repo: Any) -> str:
    return str(repo.lookup_branch("main"))


def put(store: Any, key: str, data: bytes | cpu.Buffer) -> None:
    asyncio.run(store.set(key, data if isinstance(data, cpu.Buffer) else cpu.Buffer.from_bytes(data)))


def get(store: Any, key: str) -> Any:
    return asyncio.run(store.get(key, default_buffer_prototype()))


def closed(ic: Any, **settings: Any) -> Any:
    repo = filled(ic, **settings)
    repo.create_branch("other", tip(repo))
    repo.set_status(ic.RepoStatus(ic.RepoAvailability.read_only, limited_availability_reason="moving"))
    return repo


def switched_off(ic: Any, flag: str) -> Any:
    repo = filled(ic)
    repo.create_tag("t", tip(repo))
    repo.set_feature_flag(flag, setting=False)
    return repo


# repositories


@case("the repository doesn't exist")
def open_nothing(ic: Any, path: Path) -> object:
    return ic.Repository.open(ic.local_filesystem_storage(str(path)))


@case("the repository doesn't exist")
def fetch_config_of_nothing(ic: Any, path: Path) -> object:
    return ic.Repository.fetch_config(ic.local_filesystem_storage(str(path)))


@case("repositories can only be created in clean prefixes")
def create_twice(ic: Any, path: Path) -> object:
    ic.Repository.create(ic.local_filesystem_storage(str(path)))
    return ic.Repository.create(ic.local_filesystem_storage(str(path)))


@case("repositories can only be created in clean prefixes")
def create_among_files(ic: Any, path: Path) -> object:
    path.mkdir()
    (path / "file").touch()
    return ic.Repository.create(ic.local_filesystem_storage(str(path)))


@case("Unsupported version 3")
def create_of_the_future(ic: Any, path: Path) -> object:
    return empty(ic, spec_version=3)


@case("")
def create_in_a_number(ic: Any, path: Path) -> object:
    return ic.Repository.create(3)


@case("the storage used by this Icechunk repository is read-only")
def create_on_a_web_server(ic: Any, path: Path) -> object:
    return ic.Repository.create(ic.http_storage("http://127.0.0.1:9/x"))


@case("error parsing URL")
def no_url_of_a_web_server(ic: Any, path: Path) -> object:
    return ic.http_storage("nope")


@case("Either endpoint_url or account_id must be provided")
def r2_without_account(ic: Any, path: Path) -> object:
    return ic.r2_storage(bucket="b", prefix="p")


@case("Conflicting arguments to s3_credentials function")
def credentials_twice(ic: Any, path: Path) -> object:
    return ic.s3_credentials(access_key_id="a", secret_access_key="b", from_env=True)


@case("Conflicting arguments to s3_credentials function")
def half_a_key(ic: Any, path: Path) -> object:
    return ic.s3_storage(bucket="b", prefix="p", access_key_id="a")


@case("Conflicting arguments to azure_static_credentials function")
def azure_credentials_twice(ic: Any, path: Path) -> object:
    return ic.azure_storage(account="a", container="b", prefix="p", access_key="x", sas_token="y")


@case("invalid magic numbers in file")
def garbage_for_a_repository(ic: Any, path: Path) -> object:
    ic.Repository.create(ic.local_filesystem_storage(str(path)))
    (path / "repo").write_bytes(b"garbage" * 10)
    return ic.Repository.open(ic.local_filesystem_storage(str(path)))


@case("invalid icechunk header size")
def an_empty_file_for_a_repository(ic: Any, path: Path) -> object:
    ic.Repository.create(ic.local_filesystem_storage(str(path)))
    (path / "repo").write_bytes(b"")
    return ic.Repository.open(ic.local_filesystem_storage(str(path)))


@case("this operation requires a repository that is at least version 2.0")
def metadata_in_version_1(ic: Any, path: Path) -> object:
    return empty(ic, spec_version=1).set_metadata({"a": 1})


@case("this operation requires a repository that is at least version 2.0")
def moves_in_version_1(ic: Any, path: Path) -> object:
    return empty(ic, spec_version=1).rearrange_session("main")


@case("this operation requires a repository that is at least version 2.0")
def amend_in_version_1(ic: Any, path: Path) -> object:
    repo = filled(ic, spec_version=1)
    session = repo.writable_session("main")
    zarr.open_group(session.store)["a"][0] = 9
    return session.amend("x")


@case("invalid repository version")
def upgrade_twice(ic: Any, path: Path) -> object:
    return ic.upgrade_icechunk_repository(empty(ic), dry_run=False)


# branches, tags, snapshots


@case("ref not found")
def unknown_branch(ic: Any, path: Path) -> object:
    return empty(ic).lookup_branch("nope")


@case("ref not found")
def unknown_tag(ic: Any, path: Path) -> object:
    return empty(ic).lookup_tag("nope")


@case("ref not found")
def delete_unknown_branch(ic: Any, path: Path) -> object:
    return empty(ic).delete_branch("nope")


@case("ref not found")
def delete_unknown_tag(ic: Any, path: Path) -> object:
    return empty(ic).delete_tag("nope")


@case("ref not found")
def reset_unknown_branch(ic: Any, path: Path) -> object:
    repo = empty(ic)
    return repo.reset_branch("nope", tip(repo))


@case("ref not found")
def write_to_unknown_branch(ic: Any, path: Path) -> object:
    return empty(ic).writable_session("nope")


@case("ref not found")
def read_unknown_tag(ic: Any, path: Path) -> object:
    return empty(ic).readonly_session(tag="nope")


@case("ref not found")
def transaction_on_unknown_branch(ic: Any, path: Path) -> object:
    with empty(ic).transaction("nope", message="m") as store:
        return store


@case("ref not found")
def history_of_unknown_branch(ic: Any, path: Path) -> object:
    return list(empty(ic).ancestry(branch="nope"))


@case("branch already exists")
def branch_twice(ic: Any, path: Path) -> object:
    repo = empty(ic)
    return repo.create_branch("main", tip(repo))


@case("main branch cannot be deleted")
def delete_main(ic: Any, path: Path) -> object:
    return empty(ic).delete_branch("main")


@case("branch update conflict")
def reset_from_elsewhere(ic: Any, path: Path) -> object:
    repo = filled(ic)
    return repo.reset_branch("main", tip(repo), from_snapshot_id="1CECHNKREP0F1RSTCMT0")


@case("tag already exists, tags are immutable")
def tag_twice(ic: Any, path: Path) -> object:
    repo = empty(ic)
    repo.create_tag("t", tip(repo))
    return repo.create_tag("t", tip(repo))


@case("tag was already deleted")
def tag_again(ic: Any, path: Path) -> object:
    repo = empty(ic)
    repo.create_tag("t", tip(repo))
    repo.delete_tag("t")
    return repo.create_tag("t", tip(repo))


@case("icechunk does not allow tag reuse")
def tag_again_and_again(ic: Any, path: Path) -> object:
    return tag_again(ic, path)


@case("invalid snapshot id")
def no_id(ic: Any, path: Path) -> object:
    return empty(ic).lookup_snapshot("nope")


@case("invalid snapshot id")
def read_no_id(ic: Any, path: Path) -> object:
    return empty(ic).readonly_session(snapshot_id="nope")


@case("Must provide one of branch, tag, or snapshot_id")
def read_what(ic: Any, path: Path) -> object:
    return empty(ic).readonly_session()


@case("Must provide one of branch, tag, or snapshot_id")
def read_which(ic: Any, path: Path) -> object:
    return empty(ic).readonly_session("main", tag="t")


@case("as_of argument must be provided together with a branch name")
def tag_at_a_time(ic: Any, path: Path) -> object:
    repo = empty(ic)
    repo.create_tag("t", tip(repo))
    return repo.readonly_session(tag="t", as_of=AGES_AGO)


@case("does not have a snapshot")
def too_early(ic: Any, path: Path) -> object:
    return empty(ic).readonly_session("main", as_of=AGES_AGO)


@case("`to` snapshot ancestry doesn't include `from`")
def diff_backwards(ic: Any, path: Path) -> object:
    repo = filled(ic)
    return repo.diff(from_branch="main", to_snapshot_id="1CECHNKREP0F1RSTCMT0")


# status and flags


@case("the repository status is read-only")
def write_to_a_closed_repository(ic: Any, path: Path) -> object:
    return closed(ic).writable_session("main")


@case("the repository status is read-only")
def rearrange_a_closed_repository(ic: Any, path: Path) -> object:
    return closed(ic).rearrange_session("main")


@case("the repository status is read-only")
def tag_in_a_closed_repository(ic: Any, path: Path) -> object:
    repo = closed(ic)
    return repo.create_tag("t", tip(repo))


@case("the repository status is read-only")
def drop_a_branch_of_a_closed_repository(ic: Any, path: Path) -> object:
    return closed(ic).delete_branch("other")


@case("the repository status is read-only")
def configure_a_closed_repository(ic: Any, path: Path) -> object:
    return closed(ic).save_config()


@case("the repository status is read-only")
def commit_to_a_repository_closed_meanwhile(ic: Any, path: Path) -> object:
    repo = filled(ic)
    session = repo.writable_session("main")
    zarr.open_group(session.store)["a"][0] = 9
    repo.set_status(ic.RepoStatus(ic.RepoAvailability.read_only))
    return session.commit("x")


@case("invalid feature flag name")
def unknown_flag(ic: Any, path: Path) -> object:
    return empty(ic).set_feature_flag("nope", setting=True)


@case("is disabled by a feature flag (create_tag)")
def tags_switched_off(ic: Any, path: Path) -> object:
    repo = switched_off(ic, "create_tag")
    return repo.create_tag("u", tip(repo))


@case("is disabled by a feature flag (delete_tag)")
def deletions_switched_off(ic: Any, path: Path) -> object:
    return switched_off(ic, "delete_tag").delete_tag("t")


@case("is disabled by a feature flag (move_node)")
def moves_switched_off(ic: Any, path: Path) -> object:
    return switched_off(ic, "move_node").rearrange_session("main")


# sessions


@case("no changes made to the session")
def commit_nothing(ic: Any, path: Path) -> object:
    return filled(ic).writable_session("main").commit("x")


@case("no changes made to the session")
def empty_transaction(ic: Any, path: Path) -> object:
    with filled(ic).transaction("main", message="m") as store:
        return store


@case("commits are not allowed on read-only or forked sessions")
def commit_what_is_read(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").commit("x")


@case("commits are not allowed on read-only or forked sessions")
def commit_again(ic: Any, path: Path) -> object:
    session = edited(ic)
    session.commit("x")
    return session.commit("y")


@case("commits are not allowed on read-only or forked sessions")
def commit_a_fork(ic: Any, path: Path) -> object:
    return filled(ic).writable_session("main").fork().commit("x")


@case("commits are not allowed on read-only or forked sessions")
def amend_what_is_read(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").amend("x")


@case("commits are not allowed on read-only or forked sessions")
def rebase_what_is_read(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").rebase(ic.ConflictDetector())


@case("the first commit in the repository cannot be an amend")
def amend_the_first(ic: Any, path: Path) -> object:
    session = empty(ic).writable_session("main")
    zarr.group(session.store)
    return session.amend("x")


@case("Failed to commit, expected parent: ")
def commit_too_late(ic: Any, path: Path) -> object:
    return two_edits(ic).commit("x")


@case("actual parent: ")
def amend_too_late(ic: Any, path: Path) -> object:
    return two_edits(ic).amend("x")


@case("Rebase failed on snapshot ")
def rebase_over_a_conflict(ic: Any, path: Path) -> object:
    return two_edits(ic).rebase(ic.ConflictDetector())


@case("Rebase failed on snapshot ")
def commit_over_a_conflict(ic: Any, path: Path) -> object:
    return two_edits(ic).commit("x", rebase_with=ic.ConflictDetector())


@case("Read only sessions cannot modify the repository")
def discard_what_is_read(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").discard_changes()


@case("Read only sessions cannot modify the repository")
def shift_what_is_read(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").shift_array("/a", [1])


@case("cannot fork a read-only session")
def fork_what_is_read(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").fork()


@case("You must opt-in to pickle writable sessions in a distributed context using Session.fork()")
def pickle_a_session(ic: Any, path: Path) -> object:
    return pickle.dumps(filled(ic).writable_session("main"))


@case("node not found at ")
def shift_nothing(ic: Any, path: Path) -> object:
    return filled(ic).writable_session("main").shift_array("/nope", [1])


@case("there is not an array at ")
def shift_a_group(ic: Any, path: Path) -> object:
    return filled(ic).writable_session("main").shift_array("/g", [1])


@case("invalid chunk index")
def reindex_outwards(ic: Any, path: Path) -> object:
    return filled(ic).writable_session("main").reindex_array("/a", lambda index: [99])


@case("node not found at ")
def type_of_no_chunk(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").chunk_type("/nope", [0])


@case("there is not an array at ")
def type_of_a_group_s_chunk(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").chunk_type("/g", [0])


# moves


@case("To move nodes in the hierarchy you need to create a rearrange session")
def move_while_writing(ic: Any, path: Path) -> object:
    return filled(ic).writable_session("main").move("/a", "/b")


@case("This session was created to rearrange the hierarchy, other write operations cannot be executed")
def write_while_moving(ic: Any, path: Path) -> object:
    return put(filled(ic).rearrange_session("main").store, "g/zarr.json", GROUP)


@case("node not found at ")
def move_nothing(ic: Any, path: Path) -> object:
    return filled(ic).rearrange_session("main").move("/nope", "/b")


@case("overwrite existing node")
def move_onto_a_node(ic: Any, path: Path) -> object:
    return filled(ic).rearrange_session("main").move("/a", "/g")


@case("into itself or its own descendant")
def move_into_itself(ic: Any, path: Path) -> object:
    return filled(ic).rearrange_session("main").move("/g", "/g/x")


@case("the destination's parent group")
def move_below_nothing(ic: Any, path: Path) -> object:
    return filled(ic).rearrange_session("main").move("/g", "/nope/x")


@case("is an array, not a group")
def move_into_an_array(ic: Any, path: Path) -> object:
    return filled(ic).rearrange_session("main").move("/g", "/a/x")


# the store


@case("cannot write to read-only store")
def set_what_is_read(ic: Any, path: Path) -> object:
    return put(filled(ic).readonly_session("main").store, "g/zarr.json", GROUP)


@case("cannot write to read-only store")
def set_after_a_commit(ic: Any, path: Path) -> object:
    session = edited(ic)
    session.commit("x")
    return put(session.store, "g/zarr.json", GROUP)


@case("cannot write to read-only store")
def reference_in_what_is_read(ic: Any, path: Path) -> object:
    return filled(ic).readonly_session("main").store.set_virtual_ref("a/c/0", "s3://a/b", offset=0, length=1)


@case("Store is read-only but mode is 'a'")
def open_to_write_what_is_read(ic: Any, path: Path) -> object:
    return zarr.open_group(filled(ic).readonly_session("main").store, mode="a")


@case("invalid zarr key format")
def set_a_strange_key(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "g/nope", b"1")


@case("invalid zarr key format")
def get_a_strange_key(ic: Any, path: Path) -> object:
    return get(filled(ic).readonly_session("main").store, "g/nope")


@case("bad metadata")
def set_no_json(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "g/zarr.json", b"{nope")


@case("bad metadata")
def set_another_format(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "g/zarr.json", b'{"zarr_format":2}')


@case("bad metadata")
def set_an_array_without_shape(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "g/zarr.json", b'{"zarr_format":3,"node_type":"array"}')


@case("node not found at ")
def set_a_chunk_of_nothing(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "nope/c/0", b"1")


@case("there is not an array at ")
def set_a_chunk_of_a_group(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "g/c/0", b"1")


@case("invalid chunk index")
def set_a_chunk_outside(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "a/c/77", b"1")


@case("zero-length chunk")
def set_an_empty_chunk(ic: Any, path: Path) -> object:
    return put(filled(ic).writable_session("main").store, "a/c/0", b"")


@case("`value` must be a Buffer instance")
def set_bytes(ic: Any, path: Path) -> object:
    return asyncio.run(filled(ic).writable_session("main").store.set("a/c/0", b"1"))


@case("object not found")
def read_a_lost_chunk(ic: Any, path: Path) -> object:
    config = ic.RepositoryConfig(inline_chunk_threshold_bytes=0)
    repo = ic.Repository.create(ic.local_filesystem_storage(str(path)), config=config)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(4,), dtype="i4")[:] = 1
    session.commit("x")
    for name in os.listdir(path / "chunks"):
        (path / "chunks" / name).unlink()
    return get(repo.readonly_session("main").store, "a/c/0")


# virtual references


def with_container(ic: Any, path: Path, **settings: Any) -> Any:
    path.mkdir()
    prefix = path.as_uri() + "/"
    config = ic.RepositoryConfig.default()
    config.set_virtual_chunk_container(ic.VirtualChunkContainer(prefix, ic.local_filesystem_store(str(path))))
    session = filled(ic, config=config, **settings).writable_session("main")
    return session.store, f"{prefix}file"


def refer(ic: Any, path: Path, data: bytes | None, **checksum: Any) -> object:
    access = {path.as_uri() + "/": ic.credentials.LocalFileSystemAccess}
    store, location = with_container(ic, path, authorize_virtual_chunk_access=access)
    if data is not None:
        (path / "file").write_bytes(data)
    store.set_virtual_ref("a/c/0", location, offset=0, length=4, **checksum)
    return get(store, "a/c/0")


@case("error parsing virtual ref URL")
def refer_to_no_url(ic: Any, path: Path) -> object:
    return filled(ic).writable_session("main").store.set_virtual_ref("a/c/0", "nope", offset=0, length=1)


@case("no matching virtual chunk container")
def refer_outside_containers(ic: Any, path: Path) -> object:
    store = filled(ic).writable_session("main").store
    return store.set_virtual_ref("a/c/0", "s3://bucket/x", offset=0, length=1, validate_container=True)


@case("no virtual chunk container can handle the chunk location")
def read_outside_containers(ic: Any, path: Path) -> object:
    store = filled(ic).writable_session("main").store
    store.set_virtual_ref("a/c/0", "s3://bucket/x", offset=0, length=1, validate_container=False)
    return get(store, "a/c/0")


@case("you need to authorize the virtual chunk container")
def read_unauthorised(ic: Any, path: Path) -> object:
    store, location = with_container(ic, path)
    store.set_virtual_ref("a/c/0", location, offset=0, length=4)
    return get(store, "a/c/0")


@case("error fetching virtual reference")
def read_a_lost_file(ic: Any, path: Path) -> object:
    return refer(ic, path, None)


@case("the checksum of the object owning the virtual chunk has changed")
def read_a_changed_file(ic: Any, path: Path) -> object:
    return refer(ic, path, b"12345678", checksum=AGES_AGO)


@case("invalid chunk index")
def refer_from_outside(ic: Any, path: Path) -> object:
    spec = ic.VirtualChunkSpec([99], "s3://bucket/x", 0, 1)
    return filled(ic).writable_session("main").store.set_virtual_refs("/a", [spec], validate_containers=False)


@case("node not found at ")
def refer_from_nothing(ic: Any, path: Path) -> object:
    spec = ic.VirtualChunkSpec([0], "s3://bucket/x", 0, 1)
    return filled(ic).writable_session("main").store.set_virtual_refs("/nope", [spec], validate_containers=False)


# arguments


@case("")
def setting_of_another_type(ic: Any, path: Path) -> object:
    ic.RepositoryConfig().inline_chunk_threshold_bytes = "x"
    return None


@case("")
def setting_too_small(ic: Any, path: Path) -> object:
    return ic.RepositoryConfig(inline_chunk_threshold_bytes=-1)


@case("")
def setting_too_large(ic: Any, path: Path) -> object:
    return ic.CompressionConfig(level=300)


@case("")
def setting_of_another_class(ic: Any, path: Path) -> object:
    return ic.RepositoryConfig(compression=3)


@case("")
def algorithm_by_name(ic: Any, path: Path) -> object:
    return ic.CompressionConfig(algorithm="zstd")


@case("")
def containers_in_a_list(ic: Any, path: Path) -> object:
    return ic.RepositoryConfig(virtual_chunk_containers=[])


@case("")
def container_of_a_number(ic: Any, path: Path) -> object:
    return ic.VirtualChunkContainer("s3://bucket/", 3)


@case("")
def flag_of_a_number(ic: Any, path: Path) -> object:
    return ic.S3Options(allow_http=1)


@case("")
def store_options_of_numbers(ic: Any, path: Path) -> object:
    return ic.gcs_store({"a": 1})


@case("")
def s3_store_of_a_string(ic: Any, path: Path) -> object:
    return ic.ObjectStoreConfig.S3("us-east-1")


@case("")
def status_of_a_number(ic: Any, path: Path) -> object:
    return ic.RepoStatus(0)


@case("")
def status_without_time_zone(ic: Any, path: Path) -> object:
    return ic.RepoStatus(ic.RepoAvailability.online, datetime(2000, 1, 1))


@case("")
def status_by_name(ic: Any, path: Path) -> object:
    return empty(ic).set_status("online")


@case("attribution `client` must be `name` or `name/version` in token characters")
def attribution_in_words(ic: Any, path: Path) -> object:
    return ic.Attribution(client="a b")


@case("")
def message_of_a_number(ic: Any, path: Path) -> object:
    return edited(ic).commit(3)


@case("")
def metadata_of_an_object(ic: Any, path: Path) -> object:
    return empty(ic).set_metadata({"a": object()})


@case("")
def solver_by_name(ic: Any, path: Path) -> object:
    return edited(ic).rebase("ours")


@case("")
def logs_by_number(ic: Any, path: Path) -> object:
    return ic.set_logs_filter(3)


def outcome(ic: Any, name: str, path: Path) -> Exception:
    with pytest.raises(Exception) as caught:
        CASES[name].provoke(ic, path)
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_same_error(name: str, tmp_path: Path) -> None:
    theirs, own = outcome(official, name, tmp_path / "theirs"), outcome(ours, name, tmp_path / "own")
    assert CASES[name].phrase in str(theirs)
    assert CASES[name].phrase in str(own)
    if isinstance(theirs, official.IcechunkError):
        assert type(own).__name__ == type(theirs).__name__, own
        assert isinstance(own, ours.IcechunkError)
        assert own.kind == theirs.kind, own
    else:
        assert isinstance(own, getattr(builtins, type(theirs).__name__)), own
