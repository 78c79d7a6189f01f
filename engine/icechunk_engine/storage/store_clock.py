"""What the answers of a store tell about its clock."""

from __future__ import annotations

import time


class StoreClock:
    """A lower bound of a store's present time: no object was modified later than now."""

    __slots__ = ("_heard",)

    def __init__(self) -> None:
        self._heard: tuple[int, float] | None = None

    def hear(self, modified_us: int) -> None:
        """An object was modified at this time, in Unix microseconds by the store's clock."""
        known = self.now_us()
        if known is None or modified_us > known:
            self._heard = modified_us, time.monotonic()

    def now_us(self) -> int | None:
        """The store's clock shows this time or a later one; None when nothing was heard yet."""
        if self._heard is None:
            return None
        modified_us, at_s = self._heard
        return modified_us + int((time.monotonic() - at_s) * 1e6)
