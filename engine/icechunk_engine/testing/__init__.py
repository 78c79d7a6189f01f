"""For tests: storages that are slow, that fail or that count, and a test suite for storages of your own."""

from icechunk_engine.testing.latency import LatencyStorage

__all__ = ["LatencyStorage"]
