"""Writers killed with SIGKILL at random points leave whole objects, keep their word, and lock nobody out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.profiles import by_profile

SCRIPT = Path(__file__).with_name("killed_writers.py")
N_ROUNDS = by_profile(quick=40, thorough=300)  # of three writers each
MAX_SECONDS = by_profile(quick=40, thorough=120)  # a slow machine makes fewer rounds


def test_killed_writers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "root"), str(N_ROUNDS), str(MAX_SECONDS)],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["n_distinct"] == found["n_acknowledged"]  # no value was given to two writers
    # Every increment was acknowledged, but for one at most of each writer that was killed.
    assert found["n_acknowledged"] <= found["final"] <= found["n_acknowledged"] + found["n_kills"]
    assert found["by_writers"] > 0
    assert found["n_reads"] > 0
    assert all(key == "repo" or key.startswith("chunks/") for key in found["listed"])
    assert all("#" not in key for key in found["listed"])
