"""The only compare-and-swap loop of the engine, and how writers keep out of each other's way.

An attempt reads an object, decides, and replaces exactly the version that it read. So it either takes effect on the
state that it checked, or not at all. All preconditions (the branch's tip, a free name) must be checked inside the
attempt. A check before the loop would hold for a state that another writer may have replaced since.

The loop repeats an attempt only after :class:`~icechunk_engine.errors.VersionMismatchError`, which says that nothing
was written. After any other error the write may have taken place, and only the attempt knows how to find out. An
attempt must not let a mismatch through that may hide its own success: stores report one when they retry a write whose
answer was lost (:mod:`.spec_2_repo_file` tells how it settles that).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from icechunk_engine.config import ResolvedConfig
from icechunk_engine.errors import ConflictError, ErrorKind, VersionMismatchError

IMMEDIATE_RETRIES = 5


def swap[R](config: ResolvedConfig, attempt: Callable[[], R]) -> R:
    """Repeat an attempt until it wins, and return its result.

    Parameters
    ----------
    attempt
        Raises VersionMismatchError if another writer was faster.

    Raises
    ------
    ConflictError
        ``update-attempts-exhausted``: other writers won each time.
    """
    for number in range(config.repo_update_max_tries):
        try:
            return attempt()
        except VersionMismatchError:
            time.sleep(_backoff_s(number, config.repo_update_initial_backoff_ms, config.repo_update_max_backoff_ms))
    raise ConflictError(
        message=f"the repository was changed by others during each of {config.repo_update_max_tries} tries. Try "
        f"again, or raise RepositoryConfig.repo_update_retries",
        kind=ErrorKind.UPDATE_ATTEMPTS_EXHAUSTED,
    )


def wait_after_lost_commit(attempts: int, took_s: float) -> None:
    """Wait for a random time after a commit was prepared and lost, longer after more losses.

    If many writers prepare commits at the same time, one wins and the others have worked in vain. If they spread out,
    fewer lose.

    Parameters
    ----------
    attempts
        Number of lost commits.
    took_s
        Seconds that preparing the commit took. The other writers need about as long.
    """
    time.sleep(random.uniform(0, min(attempts, _MOST_WRITERS)) * min(took_s, _LONGEST_S))


_LONGEST_S = 1.0
"""If preparing took longer, it wrote manifests. They are kept, so the next attempt is faster."""

_MOST_WRITERS = 8
"""Number of writers that the waiting time allows for. More of them cost a few attempts each. Longer waits would slow
down everybody."""


def _backoff_s(attempt: int, initial_ms: int, maximum_ms: int) -> float:
    """Return zero for the first retries, then an exponentially growing time with jitter."""
    if attempt < IMMEDIATE_RETRIES:
        return 0.0
    ceiling_ms = min(maximum_ms, initial_ms * 2 ** min(attempt - IMMEDIATE_RETRIES, 20))
    return random.uniform(ceiling_ms / 2, ceiling_ms) / 1000
