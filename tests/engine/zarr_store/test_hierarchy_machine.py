"""zarr's model of a hierarchy, on our store, with what only a versioned store can do mixed in.

The model is zarr's MemoryStore. Between zarr's rules the session commits, is reopened, is discarded back to the last
commit, or hands its work to a fork that goes through a pickle and comes home; none of which the hierarchy may notice.
"""

from __future__ import annotations

import pickle
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, note, settings
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from zarr.storage import MemoryStore
from zarr.testing import strategies
from zarr.testing.stateful import ZarrHierarchyStateMachine

from icechunk_engine.errors import SessionStateError
from icechunk_engine.repository import Repository
from icechunk_engine.session import Session
from icechunk_engine.storage import MemoryStorage


class HierarchyMachine(ZarrHierarchyStateMachine):
    def __init__(self) -> None:
        self.repo = Repository.create(MemoryStorage())
        super().__init__(self.repo.writable_session("main").store)

    @property
    def session(self) -> Session:
        return self.store.session  # type: ignore[attr-defined]

    @initialize()
    def init_store(self) -> None:
        super().init_store()
        self.session.commit("the root group")
        self.store = self.repo.writable_session("main").store
        self._keep()

    def _keep(self) -> None:
        """Remember the state that a discard goes back to."""
        self.kept: tuple[dict[str, Any], set[str], set[str]] = (
            dict(self.model._store_dict),
            set(self.all_groups),
            set(self.all_arrays),
        )

    @rule(empty_commit=st.booleans())
    def commit_and_reopen(self, empty_commit: bool) -> None:
        note("commit")
        try:
            self.session.commit("state", allow_empty=empty_commit)
        except SessionStateError as error:
            note(str(error))
        assert not self.session.has_uncommitted_changes
        read_only = self.repo.readonly_session("main").store
        assert sorted(self._sync_iter(read_only.list())) == sorted(self._sync_iter(self.model.list()))
        self.store = self.repo.writable_session("main").store
        self._keep()

    @precondition(lambda self: not self.session.has_uncommitted_changes)
    @rule()
    def read_a_pickle_of_the_snapshot(self) -> None:
        store = pickle.loads(pickle.dumps(self.repo.readonly_session("main").store))
        for path in self.all_arrays:
            expected = zarr.open_array(self.model, path=path, mode="r")[:]
            np.testing.assert_equal(zarr.open_array(store, path=path, mode="r")[:], expected)

    @rule()
    def discard_changes(self) -> None:
        note("discard")
        self.session.discard_changes()
        values, groups, arrays = self.kept
        self.model = MemoryStore(dict(values))
        self.all_groups, self.all_arrays = set(groups), set(arrays)

    @precondition(lambda self: bool(self.all_arrays))
    @rule(data=st.data(), via_pickle=st.booleans())
    def write_through_a_fork(self, data: st.DataObject, via_pickle: bool) -> None:
        path = data.draw(st.sampled_from(sorted(self.all_arrays)))
        note(f"write {path} through a fork")
        fork = self.session.fork()
        if via_pickle:
            fork = pickle.loads(pickle.dumps(fork))
        expected = zarr.open_array(self.model, path=path)
        values = np.roll(expected[:], 1)
        expected[:] = values
        zarr.open_array(fork.store, path=path)[:] = values
        if via_pickle:
            fork = pickle.loads(pickle.dumps(fork))
        self.session.merge(fork)

    @invariant()
    def sizes_agree(self) -> None:
        assert self._sync(self.store.getsize_prefix("")) == sum(map(len, self.model._store_dict.values()))


@pytest.mark.skipif(
    not hasattr(strategies, "sharded_arrays"), reason="zarr before 3.3 draws different arrays for store and model"
)
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_the_hierarchy_behaves_as_in_memory() -> None:
    run_state_machine_as_test(
        HierarchyMachine,
        settings=settings(
            max_examples=max(8, settings().max_examples // 3),
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
