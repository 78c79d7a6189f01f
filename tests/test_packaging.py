"""The distribution: one pure wheel with both packages, and an sdist that builds it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import pytest

import icechunk_engine

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
    """Build the wheel from the unpacked sdist, as installers do."""
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


def test_version_has_one_home(wheel: Path) -> None:
    """The metadata, both packages and the files they write agree, also when nothing is installed."""
    expected = icechunk_engine.__version__
    with zipfile.ZipFile(wheel) as archive:
        (metadata_file,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(metadata_file))
    assert metadata["Version"] == expected
    show = (
        f"import sys; sys.path.insert(0, {str(wheel)!r}); import icechunk_engine, xarray_icechunk;"
        "from icechunk_engine.format.header import WRITER_NAME;"
        "print(icechunk_engine.__file__, icechunk_engine.__version__, xarray_icechunk.__version__, WRITER_NAME)"
    )
    printed = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True).stdout
    assert printed.startswith(str(wheel))
    assert printed.split()[-3:] == [expected, expected, f"xi-{expected}"]


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
    expected |= {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
        "pyproject.toml",
        "PKG-INFO",
        ".gitignore",
    }
    assert tops == expected
