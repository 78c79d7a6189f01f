"""An interrupt leaves no lock taken, no load or report under way and no session that is ending for good."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.bounded import run_bounded
from tests.engine.runtime import interrupts


@pytest.mark.long
@pytest.mark.parametrize(
    "work", [interrupts.of_shared_loads, interrupts.of_announcements, interrupts.of_forks, interrupts.of_sessions]
)
def test_an_interrupt_anywhere(work: Callable[[], int]) -> None:
    n_places = run_bounded(work, seconds=120)
    assert n_places > 20
