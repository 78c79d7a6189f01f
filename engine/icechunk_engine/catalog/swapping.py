"""The only compare-and-swap loop of the engine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from icechunk_engine.config import ResolvedConfig
from icechunk_engine.errors import ConflictError, ErrorKind, VersionMismatchError

IMMEDIATE_RETRIES = 5


def swap[R](config: ResolvedConfig, attempt: Callable[[], R]) -> R:
    """What the first attempt returns that wins; attempts that lose raise VersionMismatchError.

    An attempt reads the object, decides, and replaces the version that it read. So preconditions (the branch's tip, a
    free name) are checked anew each time.

    Raises
    ------
    ConflictError
        ``update-attempts-exhausted``.
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
    """Wait a while after a commit was prepared and lost, the longer the more often, by chance.

    Among many writers who all prepare at once one wins, and the work of the others is lost; when they spread out,
    fewer lose.

    Parameters
    ----------
    attempts
        How many were lost.
    took_s
        How long one takes, in seconds: what makes sense to wait for is others who are at the same stage.
    """
    time.sleep(random.uniform(0, min(attempts, _CROWD)) * min(took_s, _LONGEST_S))


_LONGEST_S = 1.0
"""What took longer was writing manifests, which are kept: the next attempt does not take so long."""

_CROWD = 8
"""So many writers are reckoned with; more cost a few attempts each, while waiting longer would cost everybody."""


def _backoff_s(attempt: int, initial_ms: int, maximum_ms: int) -> float:
    """Nothing for the first retries, then exponential with jitter."""
    if attempt < IMMEDIATE_RETRIES:
        return 0.0
    ceiling_ms = min(maximum_ms, initial_ms * 2 ** min(attempt - IMMEDIATE_RETRIES, 20))
    return random.uniform(ceiling_ms / 2, ceiling_ms) / 1000
