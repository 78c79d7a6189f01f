"""Upgrading a repository from spec version 1 to 2: one new file, ``repo``, that says what the ref files said.

No snapshot, manifest, log or chunk is touched. The upgrade takes effect when ``repo`` is created. Until then, and
after an error before it, the repository is as it was. Later steps only remove files that nobody reads any more. If
they are cut short, call the upgrade again.

Nobody may write to the repository during the upgrade, and nothing can enforce that. Three checks limit the harm:

- The refs are read again just before ``repo`` is created, and once more after. If they differ, the upgrade is undone.
- Our own writers look for ``repo`` before each write (:mod:`icechunk_engine.catalog.spec_1_ref_files`). A change slips
  through only if its look comes before the creation and its write after the last comparison.
- A later call removes old files only if each ref in them leads to a snapshot of the upgraded repository.

Requests: a listing and a GET for each ref, three times; a listing and a GET for each snapshot; one create.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import batched

from icechunk_engine._runtime.pools import map_requests
from icechunk_engine.assets import AssetManager
from icechunk_engine.catalog.clock_check import now_us
from icechunk_engine.catalog.dates import require_date
from icechunk_engine.catalog.durable_files import settle
from icechunk_engine.catalog.ref_names import MAIN, unknown_branch
from icechunk_engine.catalog.spec_1_ref_files import RefFileCatalog, list_refs, parents_form_circle
from icechunk_engine.config import RepositoryConfig, resolve
from icechunk_engine.errors import (
    ConflictError,
    ErrorKind,
    IcechunkError,
    InvalidInputError,
    ObjectNotFoundError,
    SessionStateError,
    VersionMismatchError,
)
from icechunk_engine.errors.foreign import describe
from icechunk_engine.format import layout, ref_files
from icechunk_engine.format.ops_log import Availability, Status, UpdateKind, UpdateRecord, UpdateTable
from icechunk_engine.format.repo_info import RepoInfo, encode_repo_info
from icechunk_engine.format.snapshot_table import SnapshotRecord, SnapshotTable
from icechunk_engine.ids import SnapshotId
from icechunk_engine.repository import Repository
from icechunk_engine.storage.base import Storage
from icechunk_engine.types import SpecVersion

_MS = 1000  # in microseconds
_PREFETCH_CONCURRENCY = 64


def upgrade_icechunk_repository(
    repo: Repository,
    *,
    dry_run: bool,
    delete_unused_v1_files: bool = True,
    prefetch_concurrency: int | None = None,
) -> Repository:
    """Upgrade a repository from spec version 1 to 2.

    Nobody else may write to the repository in the meantime. Programs that only know spec version 1 cannot open it
    afterwards. Snapshots that no branch or tag leads to are left out. After an error you can call this again, also
    from another process, to do the rest.

    Parameters
    ----------
    repo
        Do not use it afterwards. Its sessions can no longer commit.
    dry_run
        Check whether the upgrade would succeed, and write nothing.
    delete_unused_v1_files
        Remove the refs and configuration of spec version 1, which nobody reads any more. Keep them only if you may
        want to go back (by removing the file ``repo``), and let nobody write to them.
    prefetch_concurrency
        Number of snapshots to read at a time, 64 by default.

    Returns
    -------
    The repository, opened anew.

    Raises
    ------
    SessionStateError
        ``invalid-repository-migration``: the repository already has spec version 2, a ref leads to a snapshot that
        does not exist, or a program wrote to the old refs after the upgrade.
    ConflictError
        Another program wrote to the repository in the meantime. It still has spec version 1.
    """
    if not isinstance(repo, Repository):
        raise TypeError(f"repo must be a Repository, not {describe(repo)}")
    if prefetch_concurrency is not None and prefetch_concurrency < 1:
        raise InvalidInputError("prefetch_concurrency must be at least 1", ErrorKind.INVALID_CONFIG)
    assets = AssetManager(repo.storage, resolve(repo.config), spec_version=1)
    storage = assets.storage
    if storage.info(layout.REPO) is None:
        _upgrade(assets, prefetch_concurrency or _PREFETCH_CONCURRENCY, dry_run=dry_run)
    else:
        _require_rest_known(assets, must_be_there=repo.spec_version > SpecVersion.v1)
    if delete_unused_v1_files and not dry_run:
        _delete_v1_files(storage)
    return _open_again(repo)


def _open_again(repo: Repository) -> Repository:
    again = Repository.open(repo.storage, repo.config, repo._authorized, repo.attribution)
    again.set_default_commit_metadata(repo.default_commit_metadata())
    return again


# --- reading spec 1 ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refs:
    """All refs of spec 1.

    Attributes
    ----------
    deleted_tags
        With the snapshot that they named, if known.
    """

    branches: dict[str, SnapshotId]
    tags: dict[str, SnapshotId]
    deleted_tags: dict[str, SnapshotId | None]

    def targets(self) -> Iterator[tuple[str, SnapshotId]]:
        """Yield each ref that must lead to a snapshot, with a name for messages."""
        for what, refs in (("branch", self.branches), ("tag", self.tags)):
            for name, snapshot_id in refs.items():
                yield f"{what} {name!r}", snapshot_id


def _read_refs(storage: Storage) -> Refs:
    names = list_refs(storage)

    def read(keys: Iterable[str]) -> list[SnapshotId | None]:
        return map_requests(storage, lambda key: _read_ref(storage, key), list(keys))

    def present(names: Iterable[str], targets: list[SnapshotId | None]) -> dict[str, SnapshotId]:
        return {name: target for name, target in zip(names, targets, strict=True) if target is not None}

    branches, tags, deleted = sorted(names.branches), sorted(names.tags), sorted(names.deleted_tags)
    return Refs(
        present(branches, read(map(layout.branch_ref_key, branches))),
        present(tags, read(map(layout.tag_ref_key, tags))),
        dict(zip(deleted, read(map(layout.tag_ref_key, deleted)), strict=True)),
    )


def _read_ref(storage: Storage, key: str) -> SnapshotId | None:
    try:
        return ref_files.decode_ref(storage.get(key), key)
    except ObjectNotFoundError:
        return None  # deleted since it was listed


def _read_history(assets: AssetManager, refs: Refs, concurrency: int) -> dict[SnapshotId, SnapshotRecord]:
    """Return all snapshots that the refs lead to.

    Reading all files at once is faster than following the parents one by one.
    """
    history = RefFileCatalog(assets)

    def read(snapshot_id: SnapshotId) -> SnapshotRecord | None:
        try:
            return history.snapshot(snapshot_id)
        except IcechunkError:
            return None  # this matters only if a ref leads there

    listed: dict[SnapshotId, SnapshotRecord] = {}
    for ids in batched(_listed_snapshots(assets.storage), concurrency):
        listed |= {info.id: info for info in map_requests(assets.storage, read, ids) if info is not None}
    reached: dict[SnapshotId, SnapshotRecord] = {}
    for ref, target in refs.targets():
        line: set[SnapshotId] = set()
        following: SnapshotId | None = target
        while following is not None and following not in reached:
            try:
                info = listed.get(following) or history.snapshot(following)
            except IcechunkError as error:
                raise SessionStateError(
                    f"the repository cannot be upgraded: {ref} leads to snapshot {following}, which cannot be read "
                    f"({error}). Restore that file, or delete or reset the {ref}; then upgrade again",
                    ErrorKind.INVALID_REPOSITORY_MIGRATION,
                ) from error
            require_date(info.flushed_at_us, f"snapshot {following}")
            reached[following] = info
            line.add(following)
            following = info.parent_id
        if following in line:
            raise parents_form_circle(following)
    return reached


def _listed_snapshots(storage: Storage) -> Iterator[SnapshotId]:
    for found in storage.list(layout.SNAPSHOTS):
        try:
            yield SnapshotId.from_str(found.key.removeprefix(layout.SNAPSHOTS))
        except InvalidInputError:
            continue


# --- converting --------------------------------------------------------------------------------------------------


def upgraded_repo_info(
    refs: Refs, snapshots: Mapping[SnapshotId, SnapshotRecord], config: RepositoryConfig | None, at_us: int
) -> RepoInfo:
    """Return a repo info with the refs and snapshots of spec 1. Pure.

    Spec 1 has no ops log. The new one holds the events that can be concluded from the times of the snapshots.

    Parameters
    ----------
    snapshots
        All snapshots that the refs lead to.
    at_us
        Time of the upgrade, in Unix microseconds.
    """
    *_, root = _line(snapshots, refs.branches[MAIN])
    events = sorted(_events(refs, snapshots, root), key=lambda record: record.updated_at_us)
    events.append(UpdateRecord(kind=UpdateKind.REPO_MIGRATED, updated_at_us=at_us, from_version=1, to_version=2))
    updates = UpdateTable.of(events[::-1])
    updates.rows["updated_at"] = _strictly_rising([event.updated_at_us for event in events])[::-1]
    return RepoInfo(
        spec_version=2,
        tags=refs.tags,
        branches=refs.branches,
        deleted_tags=frozenset(refs.deleted_tags),
        snapshots=SnapshotTable.of(list(snapshots.values())),
        status=Status(availability=Availability.ONLINE, set_at_us=root.flushed_at_us),
        metadata={},
        updates=updates,
        config=None if config is None else config.to_dict(),
    )


def _line(snapshots: Mapping[SnapshotId, SnapshotRecord], tip: SnapshotId | None) -> Iterator[SnapshotRecord]:
    while tip is not None:
        yield snapshots[tip]
        tip = snapshots[tip].parent_id


def _events(
    refs: Refs, snapshots: Mapping[SnapshotId, SnapshotRecord], root: SnapshotRecord
) -> Iterator[UpdateRecord]:
    """Yield the events that must have happened: each commit once, those of ``main`` first."""
    yield UpdateRecord(kind=UpdateKind.REPO_INITIALIZED, updated_at_us=root.flushed_at_us)
    seen = {root.id}
    for branch in sorted(refs.branches, key=lambda name: (name != MAIN, name)):
        for info in _line(snapshots, refs.branches[branch]):
            if info.id in seen:
                break
            seen.add(info.id)
            yield UpdateRecord(
                kind=UpdateKind.NEW_COMMIT, updated_at_us=info.flushed_at_us, name=branch, new_id=info.id
            )
        if branch != MAIN:
            at_us = snapshots[refs.branches[branch]].flushed_at_us + _MS
            yield UpdateRecord(kind=UpdateKind.BRANCH_CREATED, updated_at_us=at_us, name=branch)
    for tag, target in refs.tags.items():
        at_us = snapshots[target].flushed_at_us + _MS
        yield UpdateRecord(kind=UpdateKind.TAG_CREATED, updated_at_us=at_us, name=tag)
    for tag, known in refs.deleted_tags.items():
        if known is not None:
            at_us = snapshots.get(known, root).flushed_at_us
            yield UpdateRecord(kind=UpdateKind.TAG_CREATED, updated_at_us=at_us + _MS, name=tag)
            yield UpdateRecord(kind=UpdateKind.TAG_DELETED, updated_at_us=at_us + 2 * _MS, name=tag, previous_id=known)


def _strictly_rising(times_us: list[int]) -> list[int]:
    risen: list[int] = []
    for time_us in times_us:
        risen.append(max(time_us, risen[-1] + 1) if risen else time_us)
    return risen


# --- writing -----------------------------------------------------------------------------------------------------


def _upgrade(assets: AssetManager, concurrency: int, *, dry_run: bool) -> None:
    storage = assets.storage
    refs = _read_refs(storage)
    if MAIN not in refs.branches:
        raise unknown_branch(MAIN, refs.branches)
    config = RefFileCatalog(assets).stored_config()
    info = upgraded_repo_info(refs, _read_history(assets, refs, concurrency), config, now_us())
    data = encode_repo_info(info, level=assets.config.compression_level)
    _require_unchanged(storage, refs)
    if dry_run:
        return
    try:
        storage.create(layout.REPO, data)
    except VersionMismatchError:
        raise SessionStateError(
            f"another program has just upgraded the repository at {storage.identity}. Open it with "
            f"Repository.open(storage)",
            ErrorKind.INVALID_REPOSITORY_MIGRATION,
        ) from None
    try:
        _require_unchanged(storage, refs)
    except ConflictError:
        if storage.get(layout.REPO) == data:
            storage.delete([layout.REPO])
        raise


def _require_unchanged(storage: Storage, refs: Refs) -> None:
    if _read_refs(storage) != refs:
        raise ConflictError(
            message=f"branches or tags of the repository at {storage.identity} were changed during the upgrade, which "
            f"was called off. Stop all writers, then upgrade again",
            kind=ErrorKind.REPO_INFO_UPDATED,
        )


def _require_rest_known(assets: AssetManager, *, must_be_there: bool) -> None:
    """Raise SessionStateError if an old ref leads to a snapshot that the upgraded repository lacks.

    Then the old files must not be removed: they hold a commit that exists nowhere else.
    """
    storage = assets.storage
    refs = _read_refs(storage)
    known = assets.repo_info()[0].snapshots
    for ref, target in refs.targets():
        if known.find(target) < 0:
            raise SessionStateError(
                f"the repository at {storage.identity} was upgraded before, but in its old files {ref} leads to "
                f"snapshot {target}, which is not in the upgraded repository: a program of spec version 1 wrote to it "
                f"afterwards. Do that change again in the upgraded repository, remove the file of that ref below "
                f"{layout.REFS}, then call this again",
                ErrorKind.INVALID_REPOSITORY_MIGRATION,
            )
    if must_be_there and refs == Refs({}, {}, {}) and storage.info(layout.CONFIG_YAML) is None:
        raise SessionStateError(
            f"invalid repository version: the repository at {storage.identity} already has spec version 2; nothing "
            f"to upgrade",
            ErrorKind.INVALID_REPOSITORY_MIGRATION,
        )


def _delete_v1_files(storage: Storage) -> None:
    """Delete ``main`` first: without it, programs of spec 1 find no repository and write to none of the other refs."""
    storage.delete([layout.branch_ref_key(MAIN)])
    storage.delete([found.key for found in storage.list(layout.REFS)])
    storage.delete([layout.CONFIG_YAML])
    settle(storage, [layout.branch_ref_key(MAIN), layout.CONFIG_YAML])
