"""Import hundreds of mutated reference sets. Run ``mutants.py`` by hand for any number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import kerchunk.netCDF3
import numpy as np
import xarray as xr

from tests.engine.importers import mutants
from tests.engine.importers.test_kerchunk import references_of, weather, write_netcdf

NUM_MUTANTS = 200


def real_sets(folder: Path) -> list[Path]:
    """Reference sets that kerchunk makes from files."""
    netcdf4 = write_netcdf(folder / "a.nc", weather())
    netcdf3 = folder / "old.nc"
    record = xr.Dataset({"record": (("time", "x"), np.arange(12.0).reshape(3, 4))})
    record.to_netcdf(netcdf3, engine="scipy", format="NETCDF3_64BIT", unlimited_dims=["time"])
    sets = {
        "in files": references_of(netcdf4, 0),
        "inline": references_of(netcdf4, 500),
        "netCDF 3": kerchunk.netCDF3.NetCDF3ToZarr(str(netcdf3), inline_threshold=500).translate(),
    }
    paths = [folder / f"{name}.json" for name in sets]
    for path, references in zip(paths, sets.values(), strict=True):
        path.write_text(json.dumps(references))
    return paths


def test_mutants_are_refused_or_imported_right(tmp_path: Path) -> None:
    """Runs in one process with limits on time and memory."""
    arguments = ["0", str(NUM_MUTANTS), *map(str, real_sets(tmp_path))]
    run = subprocess.run(
        [sys.executable, mutants.__file__, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    *faults, summary = map(json.loads, run.stdout.splitlines())
    assert not faults
    assert summary["peak_mb"] < 300
    # Some sets are refused and some are imported, so the mutations have an effect.
    assert summary["outcomes"]["imported"] > NUM_MUTANTS / 20
    assert sum(name.startswith("refused") for name in summary["outcomes"]) >= 4
