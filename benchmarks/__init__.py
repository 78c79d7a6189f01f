"""Run the same workloads on the official library and on this one: ``python -m benchmarks``."""
