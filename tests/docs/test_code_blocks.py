"""Every Python block of the README and the docs runs, file by file, in order.

A block marked ```` ```python script: <name> ```` is a whole program. It runs alone, as a file in an empty folder.
"""

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


SCRIPT = re.compile(r"script: (?P<name>\S+)")


def blocks(file: Path) -> list[str]:
    """Return the code blocks of a file, except scripts and those marked ```` ```python not-run: <reason> ````."""
    found = BLOCK.finditer(file.read_text())
    return [block["code"] for block in found if "not-run:" not in block["info"] and not SCRIPT.search(block["info"])]


def scripts() -> list[object]:
    """Return the name and code of each script in the docs."""
    return [
        pytest.param(name["name"], block["code"], id=f"{file.stem}-{name['name']}")
        for file in FILES
        for block in BLOCK.finditer(file.read_text())
        if (name := SCRIPT.search(block["info"]))
    ]


def run(script: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", script.name],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{script.read_text()}\n{result.stdout}\n{result.stderr}"


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
    run(script)


@pytest.mark.long
@pytest.mark.parametrize(("name", "code"), scripts())
def test_scripts_run(name: str, code: str, tmp_path: Path) -> None:
    script = tmp_path / name
    script.write_text(code)
    run(script)


def test_there_are_blocks() -> None:
    assert sum(len(blocks(file)) for file in FILES) > 15
    assert len(scripts()) > 7


def test_links_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?://|#)(?P<target>[^)#]+)")
    for file in [*FILES, ROOT / "CONTRIBUTING.md"]:
        for found in link.finditer(file.read_text()):
            assert (file.parent / found["target"]).exists(), f"{file.name}: {found['target']}"
