"""A session: what a snapshot holds, the edits on top of it, and how they are committed."""

from icechunk_engine.session.session import (
    ForkPoint,
    ForkSession,
    Session,
    SessionMode,
    workspace_of,
)

__all__ = [
    "ForkPoint",
    "ForkSession",
    "Session",
    "SessionMode",
    "workspace_of",
]
