"""The engine as xarray sees it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import xarray_icechunk as xi
from icechunk_engine import Repository, local_filesystem_storage
from icechunk_engine.errors import RepositoryNotFoundError
from xarray_icechunk._xarray_compat import HAS_FUSED_PIPELINE
from xarray_icechunk.backend import IcechunkBackendEntrypoint

from .conftest import ROOT, write


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_plugin_loads_neither_engine_nor_zarr() -> None:
    code = """
import sys
import xarray
before = set(sys.modules)
import xarray_icechunk, xarray_icechunk.backend
heavy = {"icechunk_engine", "zarr", "dask", "distributed", "numcodecs"}
print(sorted(name for name in set(sys.modules) - before if name.partition(".")[0] in heavy))
entrypoint = xarray_icechunk.backend.IcechunkBackendEntrypoint()
print(entrypoint.guess_can_open("/nowhere"), entrypoint.guess_can_open(3))
print("icechunk_engine" in sys.modules or "zarr" in sys.modules)
"""
    assert run_python(code).split("\n")[:3] == ["[]", "False False", "False"]


def test_listing_engines_does_not_load_the_engine() -> None:
    code = """
import warnings
warnings.simplefilter("ignore")  # from other engines
import sys
import xarray
print("icechunk" in xarray.backends.list_engines(), "icechunk_engine" in sys.modules)
"""
    assert run_python(code).strip() == "True False"


def test_exports() -> None:
    assert set(xi.__all__) <= set(dir(xi))
    for name in xi.__all__:
        if name != "import_kerchunk":
            assert getattr(xi, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        xi.no_such_name  # noqa: B018


def test_round_trip_by_engine_name(repo: Any, location: str, dataset: xr.Dataset) -> None:
    write(repo, dataset)
    opened = xr.open_dataset(location, engine="icechunk")
    xr.testing.assert_identical(opened, dataset)
    assert opened.temperature.dtype == dataset.temperature.dtype


def test_the_engine_is_guessed_for_local_repositories(repo: Any, location: str, dataset: xr.Dataset) -> None:
    write(repo, dataset)
    session = repo.readonly_session("main")
    for source in (location, location + "/", Path(location), session, session.store, repo):
        xr.testing.assert_identical(xr.open_dataset(source).load(), dataset)


def test_the_engine_is_guessed_for_a_store_if_only_the_engine_was_imported() -> None:
    code = """
import warnings
warnings.simplefilter("ignore")  # from other engines
import icechunk_engine as icechunk
from xarray.backends.plugins import guess_engine
session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
print(guess_engine(session.store), type(session.store) is icechunk.store.IcechunkStore)
"""
    assert run_python(code).strip() == "icechunk True"


def test_guessing_never_raises(repo: Any, tmp_path: Path, location: str) -> None:
    guess = IcechunkBackendEntrypoint().guess_can_open
    other = tmp_path / "other"
    other.mkdir()
    (other / "repo").write_bytes(b"not one of ours")
    (tmp_path / "directory" / "repo").mkdir(parents=True)
    things = [
        other,
        tmp_path / "directory",
        "s3://bucket/repo",
        "http://[",
        "a\0b",
        "",
        b"bytes",
        None,
        3,
        object(),
        {},
    ]
    assert [guess(thing) for thing in things] == [False] * len(things)
    assert guess(location)
    assert guess(f"file://{location}")
    old = tmp_path / "spec-1"
    for name in ("refs", "snapshots"):
        (old / name).mkdir(parents=True)
    assert guess(old)


def test_empty_repository(repo: Any, location: str) -> None:
    """A new repository opens as an empty dataset, or the error says that it is empty."""
    try:
        opened = xr.open_dataset(location, engine="icechunk")
    except KeyError as error:
        assert "write to it first" in str(error)  # noqa: PT017
    else:
        assert not opened.variables


def test_spec_1(tmp_path: Path) -> None:
    location = tmp_path / "repo"
    repo = Repository.create(local_filesystem_storage(location), spec_version=1)
    for value in (1.0, 2.0):
        session = repo.writable_session("main")
        xi.to_icechunk(xr.Dataset({"a": ("x", np.full(4, value))}), session, mode="w")
        repo.create_tag(f"v{value:.0f}", session.commit("write"))
    assert IcechunkBackendEntrypoint().guess_can_open(location)
    assert float(xr.open_dataset(location, engine="icechunk").a.sum()) == 8
    assert float(xr.open_dataset(location, engine="icechunk", tag="v1", chunks={}).a.sum()) == 4


def test_no_repository(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError, match="open_or_create_repository"):
        xr.open_dataset(tmp_path, engine="icechunk")


def cf_dataset() -> xr.Dataset:
    ds = xr.Dataset(
        {
            "scaled": ("time", [0.5, np.nan, 1.5]),
            "flag": ("time", [True, False, True]),
            "duration": ("time", np.array([1, 2, 3], "m8[D]").astype("m8[s]")),
            "text": ("time", np.array(["a", "bc", "def"])),
        },
        coords={"time": np.array(["2020-01-01", "2020-01-02", "2020-01-04"], "M8[s]")},
    )
    ds.scaled.encoding = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}
    ds.duration.encoding = {"units": "days", "dtype": "i4"}
    return ds


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decode_cf": False},
        {"mask_and_scale": False},
        {"decode_times": False},
        {"decode_times": xr.coders.CFDatetimeCoder(time_unit="ms")},
        {"decode_timedelta": False},
        {"decode_timedelta": True, "decode_coords": "all"},
        {"decode_coords": False},
        {"concat_characters": False},
        {"drop_variables": ["flag", "time"]},
        {"chunks": {"time": 3}},
        {"chunks": "auto", "inline_array": True},
        {"create_default_indexes": False},
        {"cache": False},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
@pytest.mark.parametrize("engine", ["icechunk", IcechunkBackendEntrypoint], ids=["name", "class"])
@pytest.mark.filterwarnings("ignore:In a future version, xarray will not decode")
def test_options_mean_what_they_mean_to_xarray(repo: Any, location: str, engine: Any, options: dict[str, Any]) -> None:
    write(repo, cf_dataset())
    expected = xr.open_dataset(
        repo.readonly_session("main").store, engine="zarr", consolidated=False, zarr_format=3, **options
    )
    opened = xr.open_dataset(location, engine=engine, **options)
    assert opened.chunks == expected.chunks
    assert opened.variables.keys() == expected.variables.keys()
    assert list(opened.xindexes) == list(expected.xindexes)
    for name, variable in expected.variables.items():
        assert opened.variables[name].dtype == variable.dtype
        assert opened.variables[name].encoding.items() >= variable.encoding.items()
    xr.testing.assert_identical(opened.load(), expected.load())


def test_zarr_fill_value_as_mask(repo: Any, location: str) -> None:
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, mode="a")
    root.create_array("b", shape=(4,), chunks=(2,), dtype="i4", fill_value=7, dimension_names=["x"])[:2] = [1, 2]
    session.commit("zarr")
    masked = xr.open_dataset(location, engine="icechunk", use_zarr_fill_value_as_mask=True)
    assert np.isnan(masked.b.values[2:]).all()
    plain = xr.open_dataset(location, engine="icechunk")
    assert plain.b.values.tolist() == [1, 2, 7, 7]
    # xarray before 2026 does not keep it.
    theirs = xr.open_dataset(repo.readonly_session("main").store, engine="zarr", consolidated=False)
    assert plain.b.encoding.get("fill_value") == theirs.b.encoding.get("fill_value")
    assert plain.b.encoding.get("fill_value", 7) == 7


def test_reading_by_zarr_and_open_zarr(repo: Any, dataset: xr.Dataset) -> None:
    write(repo, dataset)
    store = repo.readonly_session("main").store
    xr.testing.assert_identical(xr.open_zarr(store).load(), dataset)
    xr.testing.assert_identical(xr.open_dataset(store, engine="zarr", consolidated=False).load(), dataset)


def test_uncommitted_changes_are_read_through_their_session(repo: Any, location: str, dataset: xr.Dataset) -> None:
    session = repo.writable_session("main")
    xi.to_icechunk(dataset, session)
    xr.testing.assert_identical(xr.open_dataset(session, engine="icechunk").load(), dataset)
    assert "snapshot_id" not in xr.open_dataset(session, engine="icechunk").encoding


def test_where_a_dataset_comes_from(repo: Any, location: str, dataset: xr.Dataset) -> None:
    snapshot_id = write(repo, dataset)
    opened = xr.open_dataset(location, engine="icechunk")
    assert opened.encoding == {"source": location, "snapshot_id": snapshot_id}
    again = xr.open_dataset(opened.encoding["source"], engine="icechunk", snapshot_id=opened.encoding["snapshot_id"])
    xr.testing.assert_identical(again.load(), dataset)
    by_repository = xr.open_dataset(repo, engine="icechunk")
    xr.testing.assert_identical(xi.open_dataset(by_repository.encoding["source"]).load(), dataset)
    assert snapshot_id in opened.temperature.encoding["source"]


def test_written_back_elsewhere(repo: Any, location: str, tmp_path: Path, dataset: xr.Dataset) -> None:
    """You can write a dataset with the encodings that the engine adds."""
    write(repo, dataset)
    opened = xi.open_dataset(location)
    opened.to_netcdf(tmp_path / "copy.nc")
    write(repo, opened, mode="w", encoding={"total": dict(opened.total.encoding)}, group="copy")
    xr.testing.assert_identical(xi.open_dataset(location, group="copy").load(), dataset)


def test_closing_a_dataset_leaves_the_session_open(repo: Any, dataset: xr.Dataset) -> None:
    write(repo, dataset)
    session = repo.readonly_session("main")
    with xr.open_dataset(session, engine="icechunk") as first:
        first.load()
    second = xr.open_dataset(session.store, engine="icechunk")
    second.close()
    xr.testing.assert_identical(second.load(), dataset)
    xr.testing.assert_identical(xr.open_dataset(session, engine="icechunk").load(), dataset)


@pytest.mark.parametrize("chunks", [None, {}])
def test_pickled_datasets_stay_lazy_and_pinned(repo: Any, location: str, dataset: xr.Dataset, chunks: Any) -> None:
    write(repo, dataset)
    opened = xr.open_dataset(location, engine="icechunk", chunks=chunks)
    data = pickle.dumps(opened)
    write(repo, dataset.assign(count=dataset["count"] + 1), mode="w")
    copy = pickle.loads(data)
    assert not copy.temperature.variable._in_memory
    xr.testing.assert_identical(copy.load(), dataset)


def test_multi_file_datasets(tmp_path: Path, dataset: xr.Dataset) -> None:
    parts = [dataset.isel(time=slice(0, 3)), dataset.isel(time=slice(3, 6))]
    paths, sessions = [], []
    for number, part in enumerate(parts):
        path = str(tmp_path / f"part-{number}")
        repo = xi.open_or_create_repository(path)
        write(repo, part)
        paths.append(path)
        sessions.append(repo.readonly_session("main"))
    combine: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "outer"}
    sources: Any  # xarray passes on what the engine understands
    for sources, parallel in ((paths, False), (sessions, False), (paths, True), (sessions, True)):
        combined = xr.open_mfdataset(sources, engine="icechunk", parallel=parallel, **combine)
        assert combined.temperature.data.chunks is not None
        xr.testing.assert_identical(combined.load(), dataset)
        combined.close()
    globbed = xr.open_mfdataset(str(tmp_path / "part-*"), engine="icechunk", **combine)
    xr.testing.assert_identical(globbed.load(), dataset)


def pipeline_of(ds: xr.Dataset, name: str) -> str:
    data: Any = ds[name].variable._data
    while not isinstance(data, zarr.Array):
        data = data.get_array() if hasattr(data, "get_array") else data.array
    return type(data.async_array.codec_pipeline).__name__


def test_arrays_use_the_fused_pipeline(repo: Any, location: str, dataset: xr.Dataset) -> None:
    write(repo, dataset.chunk(time=2))
    opened = xr.open_dataset(location, engine="icechunk")
    expected = "FusedCodecPipeline" if HAS_FUSED_PIPELINE else "BatchedCodecPipeline"
    assert pipeline_of(opened, "temperature") == expected
    assert pipeline_of(pickle.loads(pickle.dumps(opened)), "temperature") == expected
    plain = xr.open_dataset(repo.readonly_session("main").store, engine="zarr", consolidated=False)
    assert pipeline_of(plain, "temperature") == "BatchedCodecPipeline"


@pytest.mark.skipif(not HAS_FUSED_PIPELINE, reason="zarr before 3.3 has one pipeline only")
def test_a_chosen_pipeline_stays(repo: Any, location: str, dataset: xr.Dataset) -> None:
    write(repo, dataset)
    chosen = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": chosen}):
        assert pipeline_of(xr.open_dataset(location, engine="icechunk"), "temperature") == "FusedCodecPipeline"


def test_opening_from_many_threads_leaves_the_configuration(repo: Any, location: str, dataset: xr.Dataset) -> None:
    write(repo, dataset)
    before = zarr.config.get("codec_pipeline.path")
    together = threading.Barrier(4)

    def open_and_load(_: int) -> xr.Dataset:
        together.wait()
        return xr.open_dataset(location, engine="icechunk").load()

    with ThreadPoolExecutor(4) as pool:
        for opened in pool.map(open_and_load, range(8)):
            xr.testing.assert_identical(opened, dataset)
    assert zarr.config.get("codec_pipeline.path") == before


def test_variables_behave_like_any_other(repo: Any, location: str, dataset: xr.Dataset) -> None:
    """xarray's operations work with the engine's variable class."""
    write(repo, dataset)
    opened = xr.open_dataset(location, engine="icechunk")
    for change in (
        lambda ds: ds.isel(x=slice(1, 5)).sel(time=[10, 30]),
        lambda ds: ds.drop_vars("label").mean("time"),
        lambda ds: ds["count"] + ds.temperature,
        lambda ds: xr.concat([ds, ds], "time", data_vars="minimal"),
        lambda ds: ds.transpose("x", "time"),
        lambda ds: ds.stack(z=["x", "time"]).unstack(),
        lambda ds: ds.copy(deep=True),
        lambda ds: ds.reset_coords("area"),
        lambda ds: ds.set_index(x="label"),
    ):
        xr.testing.assert_identical(change(opened), change(dataset))
