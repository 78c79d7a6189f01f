"""For tests: storages that are slow, that fail, that count; a suite for storages of your own."""

from icechunk_engine.storage.wrappers import LatencyStorage

__all__ = ["LatencyStorage"]
