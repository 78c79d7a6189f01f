"""Sessions and their stores: what users read, edit and commit with."""

from icechunk_engine.session.ledger import ForkPoint
from icechunk_engine.session.session import (
    ForkSession,
    IcechunkStore,
    Session,
    fork_for_graph,
    join_shared_session,
    resume_shared_session,
    workspace_of,
)
from icechunk_engine.workspace.permissions import SessionMode

__all__ = [
    "ForkPoint",
    "ForkSession",
    "IcechunkStore",
    "Session",
    "SessionMode",
    "fork_for_graph",
    "join_shared_session",
    "resume_shared_session",
    "workspace_of",
]
