"""Repository: what users open, by subject: settings, refs, history, and creating, opening and sessions."""

from icechunk_engine.repository.base import Authorizations
from icechunk_engine.repository.repository import DEFAULT_BRANCH, Place, Repository, open_readonly

__all__ = ["DEFAULT_BRANCH", "Authorizations", "Place", "Repository", "open_readonly"]
