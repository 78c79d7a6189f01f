"""Edits of a block that fails are undone."""

from __future__ import annotations

import pytest

import icechunk_engine as ic
from icechunk_engine.session import workspace_of

GROUP = b'{"zarr_format": 3, "node_type": "group"}'


def test_a_block_that_fails_takes_its_edits_back() -> None:
    session = ic.Repository.create(ic.in_memory_storage()).writable_session("main")
    workspace_of(session).set_metadata("/a", GROUP)
    with pytest.raises(KeyError), session.all_or_nothing():
        workspace_of(session).set_metadata("/b", GROUP)
        raise KeyError
    assert workspace_of(session).get_node("/a") is not None
    assert workspace_of(session).get_node("/b") is None


def test_a_session_that_was_committed_meanwhile_stays_as_it_was_committed() -> None:
    session = ic.Repository.create(ic.in_memory_storage()).writable_session("main")
    with pytest.raises(KeyError), session.all_or_nothing():
        workspace_of(session).set_metadata("/a", GROUP)
        tip = session.commit("by another thread")
        raise KeyError
    assert session.read_only
    assert session.snapshot_id == tip
    assert not session.has_uncommitted_changes
    assert workspace_of(session).get_node("/a") is not None
