"""How a user says that nobody else writes to a repository, so that conditional writes are not needed."""

from __future__ import annotations

from icechunk_engine.config import StorageSettings

SINGLE_WRITER_HINT = (
    "Only if you are sure that nobody else writes to this repository at the same time, say so: RepositoryConfig("
    "storage=StorageSettings(unsafe_use_conditional_create=False, unsafe_use_conditional_update=False))"
)


def is_single_writer(settings: StorageSettings) -> bool:
    """Return True if the settings say that nobody else writes."""
    return settings.unsafe_use_conditional_create is False and settings.unsafe_use_conditional_update is False
