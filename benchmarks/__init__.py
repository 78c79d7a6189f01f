"""The same workloads on the official library and on this one, each in its own process: ``python -m benchmarks``."""
