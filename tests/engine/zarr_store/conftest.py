"""A writable session with one array, on each kind of storage."""

from __future__ import annotations

import pytest

from icechunk_engine.repository import Repository
from icechunk_engine.session import Session, workspace_of
from icechunk_engine.store import IcechunkStore
from tests.engine.zarr_store.support import GROUP, array_document


@pytest.fixture
def session(repo: Repository) -> Session:
    """A root group, an array ``a`` of 4 x 6 chunks and a scalar array ``s``."""
    session = repo.writable_session("main")
    workspace_of(session).set_metadata("/", GROUP)
    workspace_of(session).set_metadata("/a", array_document((4, 6)))
    workspace_of(session).set_metadata("/s", array_document(()))
    return session


@pytest.fixture
def store(session: Session) -> IcechunkStore:
    return session.store
