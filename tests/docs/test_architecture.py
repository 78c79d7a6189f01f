"""The picture of the house, and the files that the contributors' guide names, agree with the tree."""

from __future__ import annotations

import itertools
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "architecture.md"
PACKAGES = {"xarray_icechunk": ROOT / "xarray_icechunk", "icechunk_engine": ROOT / "engine" / "icechunk_engine"}
CONTRACTS = {
    "xarray_icechunk": "The plugin's layers",
    "icechunk_engine": "The engine's layers: imports point downward (a new module needs its place here)",
}

ENTRY = re.compile(r"^  (?P<name>\w+(?:/|\.py)) +(?P<purpose>\S.*)$", re.MULTILINE)


def drawn(package: str) -> dict[str, str]:
    """The lines of a package in the picture: names of folders (``store/``) and modules (``ids.py``), and purposes."""
    section = re.search(rf"^{package}/.*\n(?P<lines>(?:  .*\n)+)", PICTURE.read_text(), re.MULTILINE)
    assert section, f"{PICTURE.name} has no picture of {package}"
    entries = [(found["name"], found["purpose"]) for found in ENTRY.finditer(section["lines"])]
    names = [name for name, _ in entries]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"{PICTURE.name} lists these more than once: {', '.join(sorted(twice))}"
    lines = section["lines"].splitlines()
    assert len(entries) == len(lines), f"{PICTURE.name}: write 'name/' or 'name.py' and a purpose on each of {lines}"
    return dict(entries)


def on_disk(package: str) -> set[str]:
    folder = PACKAGES[package]
    modules = {file.name for file in folder.glob("*.py") if file.name != "__init__.py"}
    return modules | {f"{file.parent.name}/" for file in folder.glob("*/*.py")}


def layers(package: str) -> list[set[str]]:
    """The layers of the import contract from top to bottom, as names of modules."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["name"] == CONTRACTS[package]]
    return [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_picture_shows_each_folder_and_module_once(package: str) -> None:
    names, there = set(drawn(package)), on_disk(package)
    assert names == there, (
        f"Change the picture in docs/{PICTURE.name}. Add a line with a purpose for: {sorted(there - names)}. "
        f"Remove: {sorted(names - there)}"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_picture_has_the_order_of_the_layers(package: str) -> None:
    depth = {name: number for number, layer in enumerate(layers(package)) for name in layer}
    names = [name.removesuffix("/").removesuffix(".py") for name in drawn(package)]
    misplaced = [(above, below) for above, below in itertools.pairwise(names) if depth[above] > depth[below]]
    assert not misplaced, (
        f"docs/{PICTURE.name}: order the lines as the layers in pyproject.toml. These are the wrong way round: "
        + ", ".join(f"{above} above {below}" for above, below in misplaced)
    )


def test_there_is_one_picture() -> None:
    """Other pages link to it: two pictures would drift apart."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    with_picture = [
        page.name for page in pages if re.search(r"^(xarray_icechunk|icechunk_engine)/? ", page.read_text(), re.M)
    ]
    assert with_picture == [PICTURE.name]


def test_paths_in_pages_exist() -> None:
    """Paths are relative to the repository, or to the folder of the engine."""
    path = re.compile(r"`(?P<path>[\w./-]*/[\w./-]*(?:\.py|/))`")
    bases = [ROOT, ROOT / "engine", PACKAGES["icechunk_engine"]]
    for page in [ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / "decisions").glob("*.md"), PICTURE]:
        for found in path.finditer(page.read_text()):
            assert any((base / found["path"]).exists() for base in bases), (
                f"{page.name} names {found['path']}, which does not exist: say where it has moved"
            )


def test_dotted_names_in_pages_exist() -> None:
    """Names such as ``icechunk_engine._runtime.locks`` can be imported."""
    dotted = re.compile(r"\b(?:icechunk_engine|xarray_icechunk)(?:\.\w+)+")
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for name in set(dotted.findall(page.read_text())):
            assert pkgutil.resolve_name(name) is not None, f"{page.name} names {name}"
