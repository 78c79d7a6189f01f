"""How much the slow tests do: every number that depends on the profile is chosen here.

The environment variable ``ICECHUNK_TEST_PROFILE`` names the profile. ``quick``, the default, runs every kind of test
for real, but few rounds of each. ``thorough`` runs many: use it before a release, and after changes to locks, forks,
durability or retries. A profile changes how often something is tried, never what is asserted.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("ICECHUNK_TEST_PROFILE", "quick")

if PROFILE not in ("quick", "thorough"):
    raise ValueError(f"ICECHUNK_TEST_PROFILE is {PROFILE!r}; use 'quick' or 'thorough'")


def by_profile[T](*, quick: T, thorough: T) -> T:
    """Return the value for the profile in use."""
    return quick if PROFILE == "quick" else thorough


def choose_examples() -> None:
    """Make hypothesis try as many examples as the profile says, and always the same ones in continuous integration."""
    is_ci = bool(os.environ.get("CI"))
    settings.register_profile(
        "icechunk",
        max_examples=by_profile(quick=25, thorough=1000),
        derandomize=is_ci,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("icechunk")
