"""A context is pickled once, to the same bytes wherever it is opened, and unpickled once in each process."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import zarr

from icechunk_engine import Repository, RepositoryConfig, Session
from icechunk_engine.config import CachingConfig, ManifestConfig, ManifestPreloadConfig
from icechunk_engine.storage import LocalStorage, MemoryStorage, ReadOnlyStorage, Storage, StorageSettings, s3_storage
from icechunk_engine.testing.counting import CountingStorage
from icechunk_engine.workspace import context as context_module
from icechunk_engine.workspace.context import RepositoryContext


@pytest.fixture(autouse=True)
def no_contexts_of_other_tests() -> None:
    context_module._recent.clear()


def context_of(session: Session) -> RepositoryContext:
    return session._workspace.context


def opened(storage: Storage, config: RepositoryConfig | None = None, **kwargs: Any) -> RepositoryContext:
    """The context of a repository at a place that need not exist."""
    return Repository(storage, config or RepositoryConfig(), **kwargs)._context()


def test_two_openings_pickle_to_equal_bytes(tmp_path: Path) -> None:
    config = RepositoryConfig(manifest=ManifestConfig(preload=ManifestPreloadConfig(max_total_refs=7)))
    Repository.create(LocalStorage(tmp_path))
    first, second = (Repository.open(LocalStorage(tmp_path), config) for _ in range(2))
    assert pickle.dumps(first._context()) == pickle.dumps(second._context())
    assert cloudpickle.dumps(first._context()) == cloudpickle.dumps(second._context())
    again = pickle.loads(pickle.dumps(first._context()))
    assert pickle.dumps(again) == pickle.dumps(first._context())


@pytest.mark.parametrize(
    "storage",
    [
        LocalStorage("/data/repo"),
        ReadOnlyStorage(LocalStorage("/data/repo")),
        s3_storage(bucket="b", prefix="p", region="eu-west-1", access_key_id="key", secret_access_key="secret"),
    ],
)
def test_only_what_differs_from_the_defaults_travels(storage: Storage) -> None:
    assert len(pickle.dumps(opened(storage))) < len(pickle.dumps(storage)) + 350
    settings = StorageSettings(storage_class="STANDARD_IA")
    context = opened(storage, RepositoryConfig(inline_chunk_threshold_bytes=7, storage=settings))
    assert len(pickle.dumps(context)) < len(pickle.dumps(storage.with_settings(settings))) + 600
    again = context_module._opened(*pickle.loads(context._pickled or b""))
    assert again.config == context.config
    assert again.assets.config == context.assets.config
    assert again.assets.config.inline_chunk_threshold_bytes == 7


def test_a_process_makes_one_context_of_equal_bytes(tmp_path: Path) -> None:
    context = opened(LocalStorage(tmp_path))
    sent = pickle.dumps(context)
    assert pickle.loads(sent) is context
    del context
    gc.collect()
    first = pickle.loads(sent)
    assert pickle.loads(sent) is first
    kept = id(first)
    del first
    gc.collect()
    assert id(pickle.loads(sent)) == kept  # the next task of a worker finds it


def test_few_contexts_are_kept(tmp_path: Path) -> None:
    pickles = [pickle.dumps(opened(LocalStorage(tmp_path / str(number)))) for number in range(10)]
    gc.collect()
    unpickled = [weakref.ref(pickle.loads(sent)) for sent in pickles]
    gc.collect()
    assert [number for number, context in enumerate(unpickled) if context() is not None] == [6, 7, 8, 9]


def test_credentials_keep_contexts_of_one_place_apart() -> None:
    mine, theirs = (
        opened(s3_storage(bucket="b", prefix="p", region="eu-west-1", access_key_id=key, secret_access_key="secret"))
        for key in ("mine", "theirs")
    )
    sent = pickle.dumps(mine), pickle.dumps(theirs)
    assert sent[0] != sent[1]
    assert pickle.loads(sent[1]) is theirs


def test_metadata_and_settings_keep_contexts_apart(tmp_path: Path) -> None:
    repo = Repository.create(LocalStorage(tmp_path))
    before = repo._context()
    assert repo._context() is before
    repo.set_default_commit_metadata({"author": "me"})
    after = repo._context()
    assert pickle.loads(pickle.dumps(after)).default_commit_metadata == {"author": "me"}
    assert pickle.dumps(after) != pickle.dumps(before)
    other = repo.reopen(RepositoryConfig(caching=CachingConfig(num_chunk_refs=5)))._context()
    assert pickle.loads(pickle.dumps(other)).assets.config.caching.num_chunk_refs == 5


def test_a_configuration_that_was_changed_later_takes_no_effect_elsewhere_either(tmp_path: Path) -> None:
    config = RepositoryConfig(inline_chunk_threshold_bytes=7)
    context = opened(LocalStorage(tmp_path), config)
    context.config.inline_chunk_threshold_bytes = 9
    sent = pickle.dumps(context)
    del context
    gc.collect()
    assert pickle.loads(sent).assets.config.inline_chunk_threshold_bytes == 7


def test_objects_of_users_are_left_to_the_pickler_that_asked(tmp_path: Path) -> None:
    class Mine(LocalStorage):
        """cloudpickle pickles this class by value; pickle cannot."""

        colour = "red"

        def __reduce__(self) -> tuple[object, ...]:
            return type(self), (self.root,), {"colour": self.colour}

    storage = Mine(tmp_path)
    context = opened(storage)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(context)
    storage.colour = "blue"  # after the first attempt to pickle it
    again = pickle.loads(cloudpickle.dumps(context)).assets.given_storage
    assert isinstance(again, Mine)
    assert again.colour == "blue"


def test_storages_for_tests_are_not_shared(tmp_path: Path) -> None:
    repo = Repository.create(CountingStorage(LocalStorage(tmp_path)))
    again = pickle.loads(pickle.dumps(repo._context()))
    assert again is not repo._context()
    assert again.assets.given_storage.n_requests == 0


def test_a_memory_storage_travels_within_its_process_only_while_it_lives() -> None:
    repo = Repository.create(MemoryStorage())
    session = repo.readonly_session("main")
    sent = pickle.dumps(session)
    assert pickle.loads(sent) == session
    del repo, session
    gc.collect()
    with pytest.raises(Exception, match="does not exist in this process"):
        pickle.loads(sent)


def test_copies_read_through_the_same_files(tmp_path: Path) -> None:
    repo = Repository.create(LocalStorage(tmp_path))
    with repo.transaction("main", message="array") as store:
        zarr.create_array(store, name="a", shape=(4,), dtype="i4")[:] = 3
    session = repo.readonly_session("main")
    again = pickle.loads(pickle.dumps(session))
    assert context_of(again) is context_of(session)
    assert context_of(copy.deepcopy(session)) is context_of(session)
    assert zarr.open_array(again.store, path="a", mode="r")[:].tolist() == [3] * 4
