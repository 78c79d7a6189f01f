"""`import_kerchunk` with reference sets that kerchunk makes from real files, and with all forms of sets."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kerchunk.combine
import kerchunk.hdf
import kerchunk.netCDF3
import numpy as np
import pytest
import xarray as xr
import zarr
import zstandard
from zarr.abc.store import RangeByteRequest

from icechunk_engine import Repository
from icechunk_engine.errors import AlreadyExistsError, IcechunkError, InvalidInputError, StorageError
from icechunk_engine.importers.kerchunk import import_kerchunk
from icechunk_engine.session import Session, workspace_of


@pytest.fixture
def session(repository: Repository) -> Session:
    return repository.writable_session("main")


def weather(start: int = 0, days: int = 4) -> xr.Dataset:
    rng = np.random.default_rng(start)
    values = rng.normal(280, 10, (days, 6, 8)).round(2)
    values[0, :2] = np.nan
    time = np.datetime64("2020-01-01T00", "ns") + np.arange(start, start + days) * np.timedelta64(24, "h")
    return xr.Dataset(
        {
            "t2m": (("time", "y", "x"), values, {"units": "K"}),
            "station": ("x", np.array([f"station {i}" for i in range(8)])),
            "height": ((), np.float32(2.0)),
        },
        coords={"time": time, "y": np.arange(6.0), "x": np.arange(8, dtype="i4")},
        attrs={"title": "weather", "levels": [1, 2, 3]},
    )


def write_netcdf(path: Path, dataset: xr.Dataset) -> Path:
    encoding: dict[str, Any] = {
        "t2m": {
            "dtype": "i2",
            "scale_factor": 0.01,
            "add_offset": 280.0,
            "_FillValue": np.int16(-32768),
            "zlib": True,
            "shuffle": True,
            "chunksizes": (1, 3, 8),
        },
        "time": {"units": "hours since 1950-01-01", "dtype": "i4"},
    }
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding, unlimited_dims=["time"])
    return path


def references_of(path: Path, inline_threshold: int = 50) -> dict[str, Any]:
    refs: dict[str, Any] = kerchunk.hdf.SingleHdf5ToZarr(str(path), inline_threshold=inline_threshold).translate()
    return refs


def opened(session: Session, group: str | None = None, **options: Any) -> xr.Dataset:
    return xr.open_dataset(session, engine="icechunk", group=group, **options)  # type: ignore[arg-type]


# --- what kerchunk makes of real files ---------------------------------------------------------------------------


@pytest.mark.parametrize("inline_threshold", [0, 500], ids=["all in the file", "small ones inline"])
def test_a_netcdf4_file(tmp_path: Path, session: Session, inline_threshold: int) -> None:
    path = write_netcdf(tmp_path / "a.nc", weather())
    report = import_kerchunk(references_of(path, inline_threshold=inline_threshold), session)
    with xr.open_dataset(path, engine="h5netcdf") as expected:
        xr.testing.assert_identical(opened(session).load(), expected.load())
    session.commit("references")
    assert set(report.arrays) == {"/t2m", "/station", "/height", "/time", "/y", "/x"}
    assert (report.num_stray, report.num_virtual + report.num_inline) == (0, 13)
    # kerchunk always inlines text of variable length.
    assert report.num_inline == (13 if inline_threshold else 1)


def test_files_of_a_series_side_by_side(tmp_path: Path, repository: Repository) -> None:
    """`MultiZarrToZarr` makes one set for many files. Coordinates become inline chunks."""
    paths = [write_netcdf(tmp_path / f"{n}.nc", weather(4 * n)) for n in range(3)]
    combined = kerchunk.combine.MultiZarrToZarr(
        [references_of(path) for path in paths],
        concat_dims=["time"],
        identical_dims=["x", "y", "station", "height"],
        inline_threshold=50,
    ).translate()
    session = repository.writable_session("main")
    report = import_kerchunk(combined, session, group="series/all")
    session.commit("three files")
    assert report.num_files == 3
    found = opened(repository.readonly_session("main"), "series/all").load()
    for n, path in enumerate(paths):
        with xr.open_dataset(path, engine="h5netcdf") as expected:
            xr.testing.assert_equal(found.isel(time=slice(4 * n, 4 * n + 4)), expected.load())


def test_a_netcdf3_file(tmp_path: Path, session: Session) -> None:
    dataset = xr.Dataset(
        {
            "record": (("time", "x"), np.arange(12.0).reshape(3, 4)),
            "other": (("time",), np.array([3, 1, 2], "i2")),
            "fixed": (("x",), np.arange(4, dtype="f4")),
        }
    )
    path = tmp_path / "old.nc"
    dataset.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT", unlimited_dims=["time"])
    import_kerchunk(kerchunk.netCDF3.NetCDF3ToZarr(str(path)).translate(), session)
    with xr.open_dataset(path, engine="scipy") as expected:
        xr.testing.assert_equal(opened(session).load(), expected.load())


def test_a_file_that_changed_is_not_read(tmp_path: Path, session: Session) -> None:
    path = write_netcdf(tmp_path / "a.nc", weather())
    import_kerchunk(references_of(path), session)
    later = path.stat().st_mtime + 100
    os.utime(path, (later, later))
    with pytest.raises(StorageError, match=r"changed|modified"):
        opened(session).t2m.load()
    import_kerchunk(references_of(path), session, checksum=None, overwrite=True)
    os.utime(path, (later + 100, later + 100))
    opened(session).t2m.load()


# --- the forms of a set ------------------------------------------------------------------------------------------

DATA = np.arange(12, dtype="<i4").reshape(3, 4)
ZARRAY = {
    "zarr_format": 2,
    "shape": [3, 4],
    "chunks": [1, 4],
    "dtype": "<i4",
    "compressor": None,
    "filters": None,
    "fill_value": -1,
    "order": "C",
}


@pytest.fixture
def raw_file(tmp_path: Path) -> Path:
    """A file with 16 unrelated bytes before the array."""
    path = tmp_path / "raw file.bin"
    path.write_bytes(b"x" * 16 + DATA.tobytes())
    return path


def small_set(url: Any, **more: Any) -> dict[str, Any]:
    refs: dict[str, Any] = {".zgroup": '{"zarr_format": 2}', "a/.zarray": json.dumps(ZARRAY), "a/.zattrs": "{}"}
    return refs | {f"a/{row}.0": [url, 16 + 16 * row, 16] for row in range(3)} | more


def read(session: Session, path: str = "a") -> Any:
    return zarr.open_array(session.store, path=path, mode="r")[...]


FORMS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "version 0": lambda refs, folder: refs,
    "version 1": lambda refs, folder: {"version": 1, "refs": refs},
    "text": lambda refs, folder: json.dumps({"version": 1, "refs": refs}),
    "bytes": lambda refs, folder: json.dumps(refs).encode(),
    "gzip": lambda refs, folder: gzip.compress(json.dumps(refs).encode()),
    "zstd": lambda refs, folder: zstandard.compress(json.dumps({"version": 1, "refs": refs}).encode()),
    "open file": lambda refs, folder: io.BytesIO(json.dumps(refs).encode()),
    "path": lambda refs, folder: _written(folder / "refs.json", json.dumps(refs).encode()),
    "path of a compressed file": lambda refs, folder: str(
        _written(folder / "refs.json", zstandard.compress(json.dumps(refs).encode()))
    ),
    "URL": lambda refs, folder: _written(folder / "refs.json", json.dumps(refs).encode()).as_uri(),
    "documents as objects": lambda refs, folder: {
        key: json.loads(value) if isinstance(value, str) else value for key, value in refs.items()
    },
    "shuffled": lambda refs, folder: dict(reversed(list(refs.items()))),
}


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, raw_file: Path, tmp_path: Path, session: Session) -> None:
    report = import_kerchunk(FORMS[form](small_set(str(raw_file)), tmp_path), session)
    np.testing.assert_array_equal(read(session), DATA)
    assert (report.num_virtual, report.num_inline, report.num_files) == (3, 0, 1)


def test_parts_of_chunks_are_read(raw_file: Path, session: Session) -> None:
    import_kerchunk(small_set(str(raw_file)), session)
    part = session.store.get_sync("a/c/1/0", byte_range=RangeByteRequest(4, 12))
    assert part is not None
    assert part.to_bytes() == DATA[1].tobytes()[4:12]


def test_urls_of_one_file_in_all_spellings(raw_file: Path, session: Session) -> None:
    refs = small_set(str(raw_file))
    refs["a/1.0"][0] = f"file://{raw_file}"
    refs["a/2.0"][0] = f"file://localhost{raw_file.parent}/./sub/../{raw_file.name}"
    report = import_kerchunk(refs, session)
    np.testing.assert_array_equal(read(session), DATA)
    assert report.num_files == 1


def test_urls_that_the_caller_completes(raw_file: Path, session: Session) -> None:
    import_kerchunk(small_set(raw_file.name), session, fs_root=str(raw_file.parent), group="relative")
    import_kerchunk(small_set(None), session, target=f"file://{raw_file}", group="target")
    for group in ("relative", "target"):
        np.testing.assert_array_equal(read(session, f"{group}/a"), DATA)


def test_templates_and_generated_references(raw_file: Path, session: Session) -> None:
    """The examples of the kerchunk specification."""
    refs = small_set("{{u}}")
    for row in (1, 2):
        del refs[f"a/{row}.0"]
    document = {
        "version": 1,
        "templates": {"u": "elsewhere", "f": str(raw_file).replace("raw", "{{c}}")},
        "gen": [
            {
                "key": "a/{{i + 1}}.0",
                "url": "{{f(c='raw')}}",
                "offset": "{{16 + (i + 1) * 16}}",
                "length": "16",
                "dimensions": {"i": {"stop": 2}},
            }
        ],
        "refs": refs,
    }
    import_kerchunk(document, session, template_overrides={"u": str(raw_file)})
    np.testing.assert_array_equal(read(session), DATA)


def test_inline_chunks(raw_file: Path, session: Session) -> None:
    """Base64, plain text, and data that is too long for a manifest."""
    refs = small_set(str(raw_file))
    refs["a/0.0"] = "base64:" + base64.b64encode(b"\xff" * 16).decode()
    refs["a/1.0"] = "abcdefghijklmnop"
    refs["big/.zarray"] = json.dumps(ZARRAY | {"shape": [4000], "chunks": [4000], "dtype": "|u1", "fill_value": 0})
    refs["big/0"] = "base64:" + base64.b64encode(bytes(range(250)) * 16).decode()
    report = import_kerchunk(refs, session)
    session.commit("inline")
    assert (report.num_virtual, report.num_inline) == (1, 3)
    np.testing.assert_array_equal(read(session)[0], [-1] * 4)
    assert read(session)[1].tobytes() == b"abcdefghijklmnop"
    np.testing.assert_array_equal(read(session, "big"), np.tile(np.arange(250), 16))


def test_whole_files(raw_file: Path, session: Session) -> None:
    raw_file.write_bytes(DATA.tobytes())
    refs = small_set(str(raw_file), **{"a/.zarray": json.dumps(ZARRAY | {"chunks": [3, 4]})})
    refs = {key: value for key, value in refs.items() if not key.startswith("a/0.") and key[2:] not in ("1.0", "2.0")}
    import_kerchunk(refs | {"a/0.0": [str(raw_file)]}, session)
    np.testing.assert_array_equal(read(session), DATA)


def test_nested_keys_and_names_that_look_like_chunks(raw_file: Path, session: Session) -> None:
    refs: dict[str, Any] = {".zgroup": "{}", "0/.zgroup": "{}"}
    refs["0/1/.zarray"] = json.dumps(ZARRAY | {"dimension_separator": "/"})
    refs |= {f"0/1/{row}/0": [str(raw_file), 16 + 16 * row, 16] for row in range(3)}
    import_kerchunk(refs, session)
    np.testing.assert_array_equal(read(session, "0/1"), DATA)


def test_stray_keys_are_reported(raw_file: Path, session: Session) -> None:
    report = import_kerchunk(small_set(str(raw_file), **{"b/0.0": [str(raw_file), 0, 1], "README": "hello"}), session)
    assert report.num_stray == 2
    assert set(report.stray) == {"b/0.0", "README"}


def test_skip(raw_file: Path, session: Session) -> None:
    refs = small_set(str(raw_file))
    refs["sub/b/.zarray"] = json.dumps(ZARRAY | {"dtype": "no such type"})
    refs["sub/b/0.0"] = ["nowhere.bin", 0, 16]
    report = import_kerchunk(refs, session, skip=["b"])
    assert report.skipped == ("/sub/b",)
    assert report.num_stray == 0
    assert workspace_of(session).get_node("/sub") is not None
    assert workspace_of(session).get_node("/sub/b") is None


def test_importing_again(raw_file: Path, session: Session) -> None:
    import_kerchunk(small_set(str(raw_file)), session)
    with pytest.raises(AlreadyExistsError, match="overwrite=True"):
        import_kerchunk(small_set(str(raw_file)), session)
    fewer = small_set(str(raw_file), **{".zattrs": '{"more": NaN}'})
    del fewer["a/1.0"]
    import_kerchunk(fewer, session, overwrite=True)
    np.testing.assert_array_equal(read(session)[1], [-1] * 4)
    assert zarr.open_group(session.store, mode="r").attrs["more"] == "NaN"
    with pytest.raises(AlreadyExistsError, match="group"):
        import_kerchunk(small_set(str(raw_file)), session, group="/a")


def test_progress_and_checksums(raw_file: Path, session: Session) -> None:
    calls: list[tuple[str, int, int]] = []
    time = datetime(2020, 1, 1, tzinfo=UTC)
    refs = small_set(str(raw_file))
    import_kerchunk(refs, session, progress=lambda *call: calls.append(call), checksum=time)
    assert calls == [("/a", 1, 1)]
    with pytest.raises(StorageError):
        read(session)  # the file is newer


# --- refusals ------------------------------------------------------------------------------------------------------


def edited(key: str, value: Any) -> Callable[[str], Any]:
    return lambda url: small_set(url) | {key: value(url) if callable(value) else value}


REFUSED: dict[str, tuple[Callable[[str], Any], str]] = {
    "no JSON": (lambda url: "{nonsense", "reference set"),
    "nothing in it": (lambda url: {}, "no Zarr metadata"),
    "unknown version": (lambda url: {"version": 7, "refs": {}}, "version 7"),
    "no such file": (edited("a/0.0", ["/nowhere/at/all.bin", 16, 16]), r"nowhere/at/all\.bin"),
    "relative path": (edited("a/0.0", ["data/x.bin", 16, 16]), "fs_root"),
    "no URL": (edited("a/0.0", [None, 16, 16]), "target="),
    "outside the containers": (edited("a/0.0", ["s3://bucket/x.nc", 16, 16]), "VirtualChunkContainer"),
    "past the end": (edited("a/0.0", lambda url: [url, 60, 16]), "past the end"),
    "wrong length": (edited("a/0.0", lambda url: [url, 0, 15]), "every chunk of this array has 16 bytes"),
    "no bytes": (edited("a/0.0", lambda url: [url, 0, 0]), "no bytes"),
    "negative offset": (edited("a/0.0", lambda url: [url, -1, 16]), "negative"),
    "half an offset": (edited("a/0.0", lambda url: [url, 0.5, 16]), "integers"),
    "outside the grid": (edited("a/3.0", lambda url: [url, 16, 16]), "chunk grid is 3 × 1"),
    "wrong rank": (edited("a/0.0.0", lambda url: [url, 16, 16]), "chunk grid"),
    "damaged base64": (edited("a/0.0", "base64:x"), "base64"),
    "odd value": (edited("a/0.0", 7), "a/0.0"),
    "unknown codec": (edited("a/.zarray", json.dumps(ZARRAY | {"compressor": {"id": "magic"}})), "magic.*skip="),
    "GRIB": (edited("a/.zarray", json.dumps(ZARRAY | {"filters": [{"id": "grib", "var": "t"}]})), "grib"),
    "objects": (edited("a/.zarray", json.dumps(ZARRAY | {"dtype": "|O"})), "skip="),
    "damaged metadata": (edited("a/.zarray", "{"), "not valid JSON"),
    "no shape": (edited("a/.zarray", json.dumps({**ZARRAY, "shape": None})), "shape"),
    "unknown template": (edited("a/0.0", ["{{who}}", 16, 16]), "who"),
    "code in a template": (
        lambda url: {
            "version": 1,
            "templates": {"u": "{{().__class__}}"},
            "refs": small_set("{{u}}"),
        },
        "cannot be rendered",
    ),
    "endless generation": (
        lambda url: {
            "version": 1,
            "templates": {"u": url},
            "gen": [{"key": "a/{{i}}.0", "url": "{{u}}", "dimensions": {"i": {"stop": 10**12}}}],
            "refs": small_set(url),
        },
        "gen",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_session_as_it_was(case: str, raw_file: Path, session: Session) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InvalidInputError, match=message):
        import_kerchunk(make(str(raw_file)), session)
    assert not session.has_uncommitted_changes


def test_a_set_that_is_not_there(tmp_path: Path, session: Session) -> None:
    with pytest.raises(IcechunkError, match=r"none\.json"):
        import_kerchunk(tmp_path / "none.json", session)


def test_locations_are_written_unchecked_on_demand(session: Session) -> None:
    refs = small_set("s3://bucket/x.nc")
    import_kerchunk(refs, session, validate_containers=False)
    assert session.all_virtual_chunk_locations() == ["s3://bucket/x.nc"]
    session.discard_changes()
    import_kerchunk(small_set("/of/another/machine.nc"), session, validate_containers=False, check_files=False)
    assert session.all_virtual_chunk_locations() == ["file:///of/another/machine.nc"]
