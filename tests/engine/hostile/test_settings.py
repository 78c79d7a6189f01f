"""A stored configuration with absurd numbers: everything still works, in bounded time and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import icechunk_engine as ic
from icechunk_engine import ManifestSplitCondition, ManifestSplitDimCondition, Repository, RepositoryConfig
from icechunk_engine.config import resolve
from icechunk_engine.format.repo_info import decode_repo_info, encode_repo_info
from icechunk_engine.storage.ranges import PartSizes
from tests.bounded import run_bounded

PLAIN: dict[str, Any] = {
    "inline_chunk_threshold_bytes": 0,
    "get_partial_values_concurrency": 0,
    "compression": {"algorithm": "zstd", "level": 3},
    "max_concurrent_requests": 0,
    "max_concurrent_decodes": 0,
    "num_updates_per_repo_info_file": 0,
    "caching": dict.fromkeys(
        [
            "num_snapshot_nodes",
            "num_chunk_refs",
            "num_transaction_changes",
            "num_bytes_attributes",
            "num_bytes_chunks",
        ],
        0,
    ),
    "storage": {
        "concurrency": {"max_concurrent_requests_for_object": 0, "ideal_concurrent_request_size": 0},
        "minimum_size_for_multipart_upload": 0,
    },
    "manifest": {
        "max_concurrent_manifest_fetches_during_commit": 0,
        "preload": {"max_total_refs": 0, "max_arrays_to_scan": 0, "preload_if": "true"},
        "splitting": {"split_sizes": [["any_array", [{"condition": "Any", "num_chunks": 0}]]]},
        "virtual_chunk_location_compression": {
            "min_num_chunks": 0,
            "dictionary_max_training_samples": 0,
            "dictionary_max_size_bytes": 0,
            "compression_level": 0,
        },
    },
    "repo_update_retries": {"default": {"max_tries": 0, "initial_backoff_ms": 0, "max_backoff_ms": 0}},
}


def numbers(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each map or list that contains a number, with the number's key."""
    for key, value in list(plain.items() if isinstance(plain, dict) else enumerate(plain)):
        if isinstance(value, dict | list):
            yield from numbers(value)
        elif isinstance(value, int):
            yield plain, key


def configurations() -> Iterator[dict[str, Any]]:
    """Yield configurations with all numbers zero, one, or the maximum of their field."""
    for value in (0, 1, None):
        plain = RepositoryConfig.from_dict(PLAIN).to_dict()
        assert isinstance(plain, dict)
        for owner, key in numbers(plain):
            for candidate in (value,) if value is not None else (2**64 - 1, 2**32 - 1, 2**31 - 1, 2**16 - 1, 255):
                owner[key] = candidate
                try:
                    RepositoryConfig.from_dict(plain)
                    break
                except ic.FormatError:
                    continue
        yield plain


def work_with(plain: dict[str, Any], storage: ic.Storage) -> None:
    Repository.create(storage)
    info = dataclasses.replace(decode_repo_info(storage.get("repo")), config=plain)
    storage.delete(["repo"])
    storage.put("repo", encode_repo_info(info))
    repo = Repository.open(storage)
    for value in range(1, 4):
        session = repo.writable_session("main")
        array = zarr.open_group(session.store, mode="a").require_array(
            "a", shape=(20, 20), chunks=(4, 4), dtype="i8", compressors=None
        )
        array[:] = value
        session.store.set_virtual_refs_arr(
            "a", (2, 5), ["s3://bucket/file"] * 10, np.arange(10), np.full(10, 128), validate_containers=False
        )
        array[:8] = value
        session.commit(str(value))
    repo = Repository.open(storage)
    values = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    np.testing.assert_array_equal(values, 3)
    assert len(list(repo.ops_log())) == 4
    repo.save_config()


def work_with_all(place: Path) -> int:
    n = 0
    for plain in configurations():
        work_with(plain, ic.in_memory_storage())
        work_with(plain, ic.local_filesystem_storage(place / str(n)))
        n += 1
    return n


def test_numbers_that_make_no_sense(tmp_path: Path) -> None:
    assert run_bounded(work_with_all, tmp_path, seconds=60) == 3


def test_what_would_cost_without_bound_is_limited() -> None:
    *_, largest = configurations()
    resolved = resolve(RepositoryConfig.from_dict(largest))
    assert resolved.compression_level == 22
    assert resolved.repo_update_max_backoff_ms == resolved.repo_update_initial_backoff_ms == 60_000
    assert resolved.location_compression is not None
    assert resolved.location_compression.dictionary_max_size_bytes == 2**20
    sizes = PartSizes.of(resolved.storage)._replace(ideal_bytes=1)
    assert len(sizes.cut(0, 10**6)) == 256


def test_boxes_beyond_64_bits_do_not_overlap() -> None:
    """64 bits cannot number a grid of 2**93 boxes. Chunks of different boxes must still not share a manifest."""
    config = RepositoryConfig(
        manifest=ic.ManifestConfig(
            splitting=ic.ManifestSplittingConfig.from_dict(
                {ManifestSplitCondition.AnyArray(): {ManifestSplitDimCondition.Any(): 1}}
            )
        )
    )
    repo = Repository.create(ic.in_memory_storage(), config)
    session = repo.writable_session("main")
    n = 2**31
    array = zarr.create_array(
        session.store, name="a", shape=(n, n, n), chunks=(1, 1, 1), dtype="i1", compressors=None, fill_value=0
    )
    corners = [(x, y, z) for x in (0, 1, 4, n - 1) for y in (0, 1, n - 1) for z in (0, 1, n - 1)]
    for value, corner in enumerate(corners, start=1):
        array[corner] = value
    session.commit("corners")
    again = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")
    assert [np.asarray(again[corner]).item() for corner in corners] == list(range(1, len(corners) + 1))
    assert np.asarray(again[5, 5, 5]).item() == 0
    *_, node = repo.inspect_snapshot(repo.lookup_branch("main"))["nodes"]
    assert len(node["manifest_refs"]) == len(corners)


def test_a_giant_grid_costs_nothing_until_it_is_read() -> None:
    run_bounded(_giant_grid, 2**32 - 1, megabytes=150)


def _giant_grid(n_chunks: int) -> None:
    repo = Repository.create(ic.in_memory_storage())
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(n_chunks, n_chunks), chunks=(1, 1), dtype="i1")
    array[0, 0] = array[n_chunks - 1, n_chunks - 1] = 1
    tip = session.commit("two corners")
    session = repo.writable_session("main")
    array = zarr.open_array(session.store, path="a")
    array[7, 7] = 1
    session.shift_array("/a", (1, 1))
    session.commit("another")
    assert len(list(repo.diff(from_snapshot_id=tip, to_branch="main").updated_chunks["/a"])) > 0
    array = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")
    assert np.asarray(array[8, 8]).item() == 1
