"""What is distributed: one pure wheel with both packages, and an sdist that it can be built from."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(source: Path, target: str, output: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(output)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, as installers do it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build(source, "wheel", tmp_path_factory.mktemp("wheel"))


def test_wheel_is_pure_and_holds_both_packages(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = ConfigParser()
        (entry_file,) = [name for name in names if name.endswith(".dist-info/entry_points.txt")]
        entry_points.read_string(archive.read(entry_file).decode())
    code = {name for name in names if ".dist-info/" not in name}
    sources = {
        str(file.relative_to(base).as_posix())
        for base, package in ((ROOT / "engine", "icechunk_engine"), (ROOT, "xarray_icechunk"))
        for file in (base / package).rglob("*")
        if file.suffix == ".py" or file.name == "py.typed"
    }
    assert code == sources
    assert {"icechunk_engine/py.typed", "xarray_icechunk/py.typed"} <= code
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert dict(entry_points["xarray.backends"]) == {"icechunk": "xarray_icechunk.backend:IcechunkBackendEntrypoint"}


def test_sdist_holds_what_its_allowlist_names(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    expected = {
        "xarray_icechunk",
        "engine",
        "tests",
        "docs",
        "examples",
        "benchmarks",
        "scripts",
        "demo",
        "test",
        "bench",
    }
    expected |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert tops == expected
