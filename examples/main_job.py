"""The whole workflow on one file. `./demo` runs it.

1.  Generates a NetCDF file with synthetic data. Like the files of a regional reanalysis, it has packed integers,
    compression and fill values over the sea.
2.  Scans the file with kerchunk and imports the references. The repository then holds the dataset without a copy.
3.  Computes anomalies on a dask cluster. Two worker processes write in parallel, and one commit publishes the result.
4.  Corrects a part of the anomalies in another commit.
5.  Opens both versions, prints the history and what changed, and draws the difference.

The job compares everything that it reads with what it wrote, and fails if anything differs.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from dask.distributed import Client, LocalCluster
from kerchunk.hdf import SingleHdf5ToZarr
from numpy.typing import NDArray

import icechunk_engine as icechunk
import xarray_icechunk

mpl.use("Agg")  # draws into a file and needs no display
import matplotlib.pyplot as plt

DAYS, LATITUDES, LONGITUDES = 720, 81, 128
CHUNKS = {"time": 30, "latitude": 81, "longitude": 64}
DRIFT_DAYS = slice(540, 570)  # one chunk long
DRIFT_KELVIN = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the results")
    output: Path = parser.parse_args().output.resolve()
    started = time.perf_counter()

    output.mkdir(parents=True, exist_ok=True)
    netcdf = output / "reanalysis.nc"
    location = output / "repository"
    picture = output / "difference.png"
    if (location / "repo").exists():
        shutil.rmtree(location)  # from an earlier run

    truth = make_netcdf(netcdf)
    say("1 NetCDF file", f"{netcdf.name} (synthetic): t2m {dict(truth.t2m.sizes)}, {megabytes(netcdf)}")

    # A repository may refer to local files only if its configuration names their folder. You must also agree when you
    # open it: that is authorize_virtual_chunk_access below.
    prefix = f"{output.as_uri()}/"
    repository = create_repository(location, prefix)
    imported = import_virtually(netcdf, repository)
    chunks = virtual_chunks(repository, imported)
    check_equal(open_version(location, prefix, imported, "observations"), truth)
    say("2 virtual import", f"{chunks} references into the file; the repository takes {megabytes(location)}")

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        first = write_anomalies(location, prefix, repository)
        workers = len(client.scheduler_info()["workers"])
    say("3 dask write", f"{workers} worker processes wrote {number_of_chunks(repository, first)} chunks: one commit")

    second = correct_drift(repository, truth)
    changed = repository.diff(from_snapshot_id=first, to_snapshot_id=second)
    corrected = len(changed.updated_chunks["/anomalies/t2m_anomaly"])
    say("4 correction", f"{corrected} chunks changed; all others are shared by both versions")

    before = open_version(location, prefix, first, "anomalies").t2m_anomaly
    after = open_version(location, prefix, second, "anomalies").t2m_anomaly
    difference = (after - before).compute()
    draw(before, after, difference, picture)
    say("5 both versions", f"they differ by up to {float(abs(difference).max()):.2f} K")

    print("\nHistory of branch main, newest first:")
    for snapshot in repository.ancestry(branch="main"):
        print(f"  {snapshot.id}  {snapshot.written_at:%H:%M:%S}  {snapshot.message}")
    print("\nWhat the last commit changed:")
    print("  " + str(repr(changed)).replace("\n", "\n  "))
    print(f"\nPicture of the difference: {picture}")
    print(f"Done in {time.perf_counter() - started:.0f} s. Open the result yourself:")
    print(f'  xr.open_dataset("{location}", engine="icechunk", group="anomalies")')


# ---- the job ------------------------------------------------------------------------------------------------------


def create_repository(location: Path, prefix: str) -> icechunk.Repository:
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.ObjectStoreConfig.LocalFileSystem(str(location.parent)))
    )
    return xarray_icechunk.open_or_create_repository(
        location, config=config, authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess}
    )


def import_virtually(netcdf: Path, repository: icechunk.Repository) -> str:
    """Find the chunks of the file with kerchunk, and commit references to them."""
    with netcdf.open("rb") as file:
        references = SingleHdf5ToZarr(file, url=str(netcdf), inline_threshold=0).translate()
    session = repository.writable_session("main")
    xarray_icechunk.import_kerchunk(references, session, group="observations")
    return session.commit("Import reanalysis.nc virtually", metadata={"source": netcdf.name})


def write_anomalies(location: Path, prefix: str, repository: icechunk.Repository) -> str:
    """Compute on the cluster how each day differs from the mean of its month in 2023, and commit the result."""
    observations = xr.open_dataset(
        location,
        engine="icechunk",
        group="observations",
        chunks={},
        authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
    )
    monthly_mean = observations.t2m.sel(time="2023").groupby("time.month").mean("time").persist()
    anomaly = observations.t2m - monthly_mean.sel(month=observations.time.dt.month)
    anomaly.attrs = {"units": "K", "long_name": "2 m temperature anomaly"}
    result = anomaly.drop_vars("month").astype("float32").to_dataset(name="t2m_anomaly")

    session = repository.writable_session("main")
    xarray_icechunk.to_icechunk(result.drop_encoding().chunk(CHUNKS), session, group="anomalies")
    return session.commit("Anomalies from the monthly means of 2023")


def correct_drift(repository: icechunk.Repository, truth: xr.Dataset) -> str:
    """Remove a sensor's drift from thirty days. This writes only the chunks of those days."""
    session = repository.writable_session("main")
    anomalies = xarray_icechunk.open_dataset(session, group="anomalies", chunks=None)
    part = anomalies.isel(time=DRIFT_DAYS).load()
    part["t2m_anomaly"] = (part.t2m_anomaly - drift(truth)).astype("float32").assign_attrs(part.t2m_anomaly.attrs)
    xarray_icechunk.to_icechunk(
        part.drop_vars(["latitude", "longitude", "time"]).drop_encoding(),
        session,
        group="anomalies",
        region={"time": DRIFT_DAYS, "latitude": slice(None), "longitude": slice(None)},
    )
    return session.commit(
        "Remove the drift of the northern sensor in June and July 2024", metadata={"kelvin": DRIFT_KELVIN}
    )


def open_version(location: Path, prefix: str, snapshot_id: str, group: str) -> xr.Dataset:
    return xr.open_dataset(
        location,
        engine="icechunk",
        group=group,
        snapshot_id=snapshot_id,
        authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
    )


# ---- the input ----------------------------------------------------------------------------------------------------


def make_netcdf(path: Path) -> xr.Dataset:
    """Write two years of synthetic temperatures: seasons, moving weather, and a sea without data."""
    rng = np.random.default_rng(20240229)
    latitude = np.linspace(35.0, 75.0, LATITUDES)
    longitude = np.linspace(-12.0, 52.0, LONGITUDES)
    time_axis = pd.date_range("2023-01-01", periods=DAYS, freq="D")
    day = np.arange(DAYS)[:, None, None]
    north = (latitude[:, None] - 35.0) / 40.0

    land = smooth_noise(rng, 1.6)[0] + 0.35 > 0
    height = np.clip(smooth_noise(rng, 1.3)[0], 0, None)
    seasons = -(8.0 + 9.0 * north) * np.cos(2 * np.pi * (day - 20) / 365.25)
    temperature = 291.0 - 24.0 * north - 6.0 * height + seasons + 3.5 * weather(rng)
    temperature = np.where(land, temperature, np.nan)

    dataset = xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), temperature, {"units": "K", "long_name": "2 m temperature"})},
        coords={
            "time": ("time", time_axis, {"long_name": "time", "standard_name": "time"}),
            "latitude": ("latitude", latitude, {"units": "degrees_north"}),
            "longitude": ("longitude", longitude, {"units": "degrees_east"}),
        },
        attrs={"title": "Synthetic regional reanalysis", "Conventions": "CF-1.8"},
    )
    dataset["t2m"][DRIFT_DAYS] += drift(dataset)
    encoding: dict[str, Any] = {
        "t2m": {
            "dtype": "int16",
            "scale_factor": 0.01,
            "add_offset": 270.0,
            "_FillValue": np.int16(-32768),
            "zlib": True,
            "shuffle": True,
            "complevel": 4,
            "chunksizes": tuple(CHUNKS.values()),
        },
        "time": {"units": "hours since 1900-01-01", "dtype": "int32"},
    }
    dataset.to_netcdf(path, engine="netcdf4", format="NETCDF4", encoding=encoding)
    # The values in the file, which packing has rounded.
    return xr.load_dataset(path, engine="netcdf4")


def drift(dataset: xr.Dataset) -> xr.DataArray:
    """Return the error of one sensor in the north, in kelvin. It fades with the distance from the sensor."""
    distance = ((dataset.latitude - 63.0) / 6.0) ** 2 + ((dataset.longitude - 27.0) / 9.0) ** 2
    kelvin: xr.DataArray = DRIFT_KELVIN * np.exp(-distance)
    return kelvin


def smooth_noise(rng: np.random.Generator, smoothness: float, count: int = 1) -> NDArray[np.floating]:
    """Return random fields that vary over long distances, with mean 0 and standard deviation 1."""
    rows, columns = np.fft.fftfreq(LATITUDES), np.fft.rfftfreq(LONGITUDES)
    wave_number = np.hypot(rows[:, None], columns[None, :])
    wave_number[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((count, LATITUDES, LONGITUDES), np.float32))
    weights = (wave_number ** (-smoothness - 0.5)).astype(np.float32)
    fields = np.fft.irfft2(spectrum * weights, s=(LATITUDES, LONGITUDES))
    return (fields - fields.mean(axis=(1, 2), keepdims=True)) / fields.std(axis=(1, 2), keepdims=True)


def weather(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return one smooth field for each day, similar to that of the day before."""
    fields = smooth_noise(rng, 1.7, DAYS)
    for day in range(1, DAYS):
        fields[day] = 0.85 * fields[day - 1] + 0.53 * fields[day]
    return fields


# ---- the output ------------------------------------------------------------------------------------------------


def draw(before: xr.DataArray, after: xr.DataArray, difference: xr.DataArray, path: Path) -> None:
    """Draw maps of both versions and of their difference, as means over the corrected days."""
    panels = [
        ("Before the correction", before, "RdBu_r", 6.0),
        ("After the correction", after, "RdBu_r", 6.0),
        ("Difference: after − before", difference, "PuOr_r", 3.0),
    ]
    days = before.time.isel(time=DRIFT_DAYS).dt.strftime("%-d %B %Y").values
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), sharex=True, sharey=True, layout="constrained")
    for axis, (title, values, colours, limit) in zip(axes, panels, strict=True):
        mesh = axis.pcolormesh(
            values.longitude,
            values.latitude,
            values.isel(time=DRIFT_DAYS).mean("time"),
            cmap=colours,
            vmin=-limit,
            vmax=limit,
            shading="nearest",
        )
        axis.set_facecolor("0.87")
        axis.set_title(title)
        axis.set_xlabel("Longitude (°E)")
        axis.set_aspect(1 / np.cos(np.deg2rad(55)))
        label = "Difference (K)" if values is difference else "Temperature anomaly (K)"
        figure.colorbar(mesh, ax=axis, orientation="horizontal", extend="both", shrink=0.9, label=label)
    axes[0].set_ylabel("Latitude (°N)")
    figure.suptitle(f"2 m temperature anomaly in two versions, mean of {days[0]} to {days[-1]} (grey: no data)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def virtual_chunks(repository: icechunk.Repository, snapshot_id: str) -> int:
    return sum(info.num_chunk_refs for info in repository.list_manifest_files(snapshot_id))


def number_of_chunks(repository: icechunk.Repository, snapshot_id: str) -> int:
    """Return the number of chunks of the anomalies that the commit wrote."""
    parent = repository.lookup_snapshot(snapshot_id).parent_id
    changed = repository.diff(from_snapshot_id=parent, to_snapshot_id=snapshot_id).updated_chunks
    return len(changed["/anomalies/t2m_anomaly"])


def check_equal(found: xr.Dataset, expected: xr.Dataset) -> None:
    xr.testing.assert_equal(found.load(), expected)


def megabytes(path: Path) -> str:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.2f} MB"


def say(step: str, text: str) -> None:
    print(f"{step:18}{text}", flush=True)


if __name__ == "__main__":
    main()
