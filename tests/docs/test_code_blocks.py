"""Every Python block of the README and the docs runs, file by file, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python(?P<info>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(file: Path) -> list[str]:
    """Return the code blocks of a file, except those marked ```` ```python not-run: <reason> ````."""
    return [found["code"] for found in BLOCK.finditer(file.read_text()) if "not-run:" not in found["info"]]


@pytest.mark.long
@pytest.mark.parametrize(
    "file", [file for file in FILES if blocks(file)], ids=lambda file: str(file.relative_to(ROOT))
)
def test_blocks_run(file: Path, tmp_path: Path) -> None:
    # The workers of a cluster import the main module, so it needs a main guard.
    body = "\n".join(blocks(file))
    script = tmp_path / "blocks.py"
    indented = "".join(f"    {line}" if line.strip() else line for line in body.splitlines(keepends=True))
    script.write_text(f"if __name__ == '__main__':\n{indented}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{body}\n{result.stdout}\n{result.stderr}"


def test_there_are_blocks() -> None:
    assert sum(len(blocks(file)) for file in FILES) > 15


def test_links_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?://|#)(?P<target>[^)#]+)")
    for file in [*FILES, ROOT / "CONTRIBUTING.md"]:
        for found in link.finditer(file.read_text()):
            assert (file.parent / found["target"]).exists(), f"{file.name}: {found['target']}"
