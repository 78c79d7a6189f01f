"""Turn runs into the lines that are printed. A ratio is official / ours: above 1, ours is faster or smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""The results of :func:`benchmarks.child.run_stage` for each engine."""

_MB = 1e6
_MEMORY = (("peak memory, MB", "peak_bytes"), ("memory added, MB", "added_bytes"), ("on disk, MB", "disk_bytes"))


def medians(runs: Runs) -> dict[str, dict[str, float]]:
    """Return the median of each engine for each line of the table."""
    table: dict[str, dict[str, float]] = {}
    for engine, results in runs.items():
        for phase in results[0]["seconds"]:
            table.setdefault(f"{phase}, s", {})[engine] = median(run["seconds"][phase] for run in results)
            for unit, key in (("requests", "requests"), ("bytes", "sizes")):
                if phase in results[0].get(key, {}):
                    table.setdefault(f"{phase}, {unit}", {})[engine] = median(run[key][phase] for run in results)
        for name in results[0].get("figures", {}):
            table.setdefault(name, {})[engine] = median(run["figures"][name] for run in results)
        table.setdefault("total, s", {})[engine] = median(sum(run["seconds"].values()) for run in results)
        for label, key in _MEMORY:
            table.setdefault(label, {})[engine] = median(run[key] for run in results) / _MB
    # The total and the memory come last, whatever phases an engine added.
    last = ["total, s", *(label for label, _ in _MEMORY)]
    return {label: table[label] for label in [*(label for label in table if label not in last), *last]}


def workload_lines(title: str, runs: Runs) -> list[str]:
    """Return the table of one workload."""
    engines = list(runs)
    lines = [title, f"  {'':26}" + "".join(f"{engine:>12}" for engine in engines)]
    if len(engines) == 2:
        lines[-1] += f"{'ratio':>10}"
    for label, values in medians(runs).items():
        cells = [_number(values[engine]) if engine in values else "-" for engine in engines]
        line = f"  {label:26}" + "".join(f"{cell:>12}" for cell in cells)
        if len(engines) == 2:
            line += f"{_ratio(values):>10}"
        lines.append(line)
    return lines


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """Return one line for each workload: how many times faster and smaller ours is."""
    lines = [
        "How many times less ours takes (official / ours; above 1 is better)",
        f"  {'':22}{'time':>9}{'peak mem':>10}{'added mem':>11}{'disk':>9}",
    ]
    for name, result in results.items():
        table = medians(result["runs"])
        cells = [_ratio(table[label]) for label in ("total, s", *(label for label, _ in _MEMORY))]
        lines.append(f"  {name:22}{cells[0]:>9}{cells[1]:>10}{cells[2]:>11}{cells[3]:>9}")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 100 else f"{value:.3f}"


def _ratio(values: Mapping[str, float]) -> str:
    official, ours = values.get("official", 0.0), values.get("ours", 0.0)
    return f"{official / ours:.2f} x" if ours > 0 and official > 0 else "-"
