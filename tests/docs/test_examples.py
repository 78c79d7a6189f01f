"""Every example runs as a script, as a reader would start it, and prints the expected text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# Parts of the output in their order. The examples compare data themselves and fail if anything differs.
EXPECTED = {
    "distributed_write.py": ["dask cluster: {'day': 40, 'point': 50000}, mean 280.0 K", "day 0 is 0, day 39 is 39"],
    "main_job.py": [
        "1 NetCDF file",
        "2 virtual import",
        "3 dask write",
        "one commit",
        "differ by up to 2.4",
        "Picture",
    ],
    "time_travel.py": [
        "main  ",
        "[2.5, 3.0, 1.5]",
        "monday  ",
        "[1.5, 2.0, 0.5]",
        "recalibrated  ",
        "[2.4, 2.9, 1.4]",
    ],
    "virtual_kerchunk.py": [
        "repository 0.",
        "without permission: InvalidInputError",
        "first day 0.000, of the second 0.49",
    ],
}


@pytest.mark.long
@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "with space"  # tests spaces in paths and URLs
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    position = 0
    for text in EXPECTED[name]:
        position = done.stdout.find(text, position)
        assert position >= 0, f"no {text!r} (after what comes before it) in:\n{done.stdout}"
    if name == "main_job.py":
        picture = folder / "demo-output" / "difference.png"
        assert str(picture) in done.stdout
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_example_is_run() -> None:
    assert set(EXPECTED) == {path.name for path in EXAMPLES.glob("*.py")}
