"""A virtual dataset: import references to NetCDF files with kerchunk, read them, and correct one day."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import xarray as xr
from kerchunk.hdf import SingleHdf5ToZarr

import icechunk_engine as icechunk
import xarray_icechunk


def main(folder: Path) -> None:
    archive = folder / "archive"
    archive.mkdir()
    for year in (2023, 2024):
        make_file(archive / f"ice_{year}.nc", year)

    # The configuration names the places that may hold virtual chunks.
    prefix = f"{archive.as_uri()}/"
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.ObjectStoreConfig.LocalFileSystem(str(archive)))
    )
    location = folder / "repository"
    repository = xarray_icechunk.open_or_create_repository(location, config=config)

    # Each file becomes a group of references. Its data are not copied.
    session = repository.writable_session("main")
    for path in sorted(archive.glob("*.nc")):
        with path.open("rb") as file:
            references = SingleHdf5ToZarr(file, url=str(path)).translate()
        xarray_icechunk.import_kerchunk(references, session, group=path.stem)
    session.commit("Sea ice of 2023 and 2024")
    stored = sum(file.stat().st_size for file in location.rglob("*") if file.is_file())
    archived = sum(file.stat().st_size for file in archive.iterdir())
    print(f"archive {archived / 1e6:.1f} MB, repository {stored / 1e6:.2f} MB")

    # When you open the repository, you must allow it to read those files.
    tree = xr.open_datatree(
        location,
        engine="icechunk",
        authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
    )
    for year in (2023, 2024):
        print(f"{year}: mean ice cover {float(tree[f'ice_{year}'].cover.mean()):.3f}")
    try:
        xr.open_dataset(location, engine="icechunk", group="ice_2024").cover.load()
    except icechunk.IcechunkError as error:
        print(f"without permission: {type(error).__name__}")

    # You can overwrite virtual chunks with ordinary ones. Here we correct one day; the file stays as it is.
    session = repository.writable_session("main")
    corrected = xr.Dataset({"cover": (("day", "y", "x"), np.zeros((1, 60, 80)))})
    xarray_icechunk.to_icechunk(corrected, session, group="ice_2024", region={"day": slice(0, 1)})
    session.commit("No ice on the first day of 2024")
    tree = xr.open_datatree(
        location,
        engine="icechunk",
        authorize_virtual_chunk_access={prefix: icechunk.credentials.LocalFileSystemAccess},
    )
    first, second = tree["ice_2024"].cover[:2].mean(("y", "x")).values
    print(f"corrected: mean of the first day {first:.3f}, of the second {second:.3f}")


def make_file(path: Path, year: int) -> None:
    cover = np.random.default_rng(year).random((30, 60, 80))
    dataset = xr.Dataset({"cover": (("day", "y", "x"), cover, {"units": "1", "long_name": "sea ice cover"})})
    encoding = {"cover": {"zlib": True, "chunksizes": (1, 60, 80), "_FillValue": np.nan}}
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name).resolve())
