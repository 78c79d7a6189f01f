"""The clock of a store, learned from the dates in its answers."""

from __future__ import annotations

import time


class StoreClock:
    """A lower bound of a store's present time: no object was modified later than now."""

    __slots__ = ("_latest",)

    def __init__(self) -> None:
        self._latest: tuple[int, float] | None = None

    def observe(self, modified_us: int) -> None:
        """Note that an object was modified at a time, in Unix microseconds by the store's clock."""
        known = self.lower_bound_us()
        if known is None or modified_us > known:
            self._latest = modified_us, time.monotonic()

    def lower_bound_us(self) -> int | None:
        """Return a time that the store's clock has reached; None if nothing is known."""
        if self._latest is None:
            return None
        modified_us, at_s = self._latest
        return modified_us + int((time.monotonic() - at_s) * 1e6)
