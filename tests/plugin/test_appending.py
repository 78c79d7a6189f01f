"""Appends to one dataset from several programs at once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import icechunk_engine as ic
import xarray_icechunk as xi
from icechunk_engine import Repository
from tests.profiles import by_profile

WRITERS, APPENDS = by_profile(quick=(4, 2), thorough=(8, 20))


def step(writer: int, number: int) -> xr.Dataset:
    """Two times whose values and coordinates tell who appended them."""
    times = 1000.0 * writer + 10 * number + np.arange(2)
    return xr.Dataset(
        {"v": (("time", "x"), times[:, None] + np.array([0, 0.25, 0.5])), "n": ("time", times.astype("int64"))},
        {"time": times, "x": np.arange(3)},
    )


def together(steps: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(steps, "time", data_vars="minimal", coords="minimal", compat="override", join="override")


def append_often(path: str, writer: int) -> None:
    for number in range(APPENDS):
        xi.append_with_retry(step(writer, number), path, append_dim="time", message=f"{writer}:{number}", group="g/h")


@pytest.mark.long
def test_every_append_is_there_once(tmp_path: Path) -> None:
    """Also the first ones, which create repository, groups and arrays."""
    path = str(tmp_path / "repo")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "xarray_icechunk.appending"])
    writers = [context.Process(target=append_often, args=(path, writer)) for writer in range(WRITERS)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(300)
    assert [process.exitcode for process in writers] == [0] * WRITERS
    with xi.open_dataset(path, group="g/h") as found:
        times = found.time.values
        appended = [step(writer, number) for writer in range(WRITERS) for number in range(APPENDS)]
        xr.testing.assert_identical(found.sortby("time").load().drop_encoding(), together(appended))
    assert all(times[1::2] - times[::2] == 1), "the two times of each append stand together"
    repo = Repository.open(path)
    messages = [info.message for info in repo.ancestry(branch="main")][:-1]
    assert sorted(messages) == sorted(f"{writer}:{number}" for writer in range(WRITERS) for number in range(APPENDS))
    assert [f"{time // 1000:.0f}:{time % 1000 // 10:.0f}" for time in times[::2]] == messages[::-1]


def overtake(repo: Repository, monkeypatch: pytest.MonkeyPatch, rival: xr.Dataset) -> None:
    """Let another program append after the first call of to_icechunk."""
    write, rivals = xi.to_icechunk, iter([rival])

    def overtaken(*args: object, **kwargs: object) -> None:
        write(*args, **kwargs)  # type: ignore[arg-type]
        for other in rivals:
            xi.append_with_retry(other, repo, append_dim="time", message="rival")

    monkeypatch.setattr("xarray_icechunk.appending.to_icechunk", overtaken)


def test_an_append_that_comes_too_late_goes_behind(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    xi.append_with_retry(step(0, 0), repo, append_dim="time", message="first")
    overtake(repo, monkeypatch, step(2, 0))
    made = xi.append_with_retry(step(1, 0).chunk(time=2), repo, append_dim="time", message="mine", metadata={"k": 1})
    with xi.open_dataset(repo) as found:
        expected = together([step(0, 0), step(2, 0), step(1, 0)])
        xr.testing.assert_identical(found.load().drop_encoding(), expected)
    newest = next(repo.ancestry(branch="main"))
    assert (newest.id, newest.message, newest.metadata["k"]) == (made, "mine", 1)


def test_encodings_are_for_the_append_that_creates(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.create_branch("dev", repo.lookup_branch("main"))
    encoding = {"v": {"chunks": (4, 3)}, "n": {"dtype": "int32"}}
    for number in range(2):
        xi.append_with_retry(
            step(0, number), repo, append_dim="time", message="step", branch="dev", group="g", encoding=encoding
        )
    with xi.open_dataset(repo, branch="dev", group="g") as found:
        assert found.sizes["time"] == 4
        assert found.v.encoding["chunks"] == (4, 3)
        assert found.n.encoding["dtype"] == "int32"


def test_it_gives_up(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    xi.append_with_retry(step(0, 0), repo, append_dim="time", message="first")
    overtake(repo, monkeypatch, step(2, 0))
    with pytest.raises(ic.RebaseFailedError, match="gave up after 1 attempts"):
        xi.append_with_retry(step(1, 0), repo, append_dim="time", message="mine", max_attempts=1)


def test_wrong_arguments(repo: Repository) -> None:
    with pytest.raises(ic.IcechunkError, match="already open"):
        xi.append_with_retry(step(0, 0), repo, append_dim="time", message="m", storage_options={"anon": True})
    with pytest.raises(ic.IcechunkError, match="a path or a URL, not"):
        xi.append_with_retry(step(0, 0), repo.writable_session("main"), append_dim="time", message="m")  # type: ignore[arg-type]
