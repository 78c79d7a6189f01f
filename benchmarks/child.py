"""Run one stage of one workload on one engine: ``python -m benchmarks.child '<json>'``.

The last line of standard output is the result, as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from . import engines, workloads
from .measure import PeakMemory, Phases


def run_stage(engine_name: str, workload_name: str, stage: str, path: str, size: int) -> dict[str, Any]:
    """Run ``prepare`` or ``run`` of a workload and return the measurements."""
    workload = workloads.by_name(workload_name)
    engine = engines.load(engine_name)
    folder = Path(path)
    if stage == "prepare":
        if workload.prepare is not None:
            workload.prepare(engine, folder, size)
        return {}
    before = engines.bytes_on_disk(folder) if folder.exists() else 0
    phases = Phases()
    gc.collect()
    memory = PeakMemory()
    workload.run(engine, folder, size, phases)
    peak_bytes = memory.peak_bytes()
    return {
        "seconds": phases.seconds,
        "requests": phases.requests,
        "sizes": phases.sizes,
        "figures": phases.figures,
        "peak_bytes": peak_bytes,
        "added_bytes": max(peak_bytes - memory.start_bytes, 0),
        "disk_bytes": engines.bytes_on_disk(folder) - before,
    }


if __name__ == "__main__":
    print(json.dumps(run_stage(**json.loads(sys.argv[1]))), flush=True)
    # The official library's threads can abort an interpreter that exits while they still run. So skip its shutdown.
    os._exit(0)
