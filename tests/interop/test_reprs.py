"""A repr that looks like Python code recreates the object with the names of the package."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

import icechunk_engine as ic

PRELOAD, SPLIT, AXIS = ic.ManifestPreloadCondition, ic.ManifestSplitCondition, ic.ManifestSplitDimCondition

THINGS: list[Any] = [
    ic.RepositoryConfig(
        inline_chunk_threshold_bytes=3,
        compression=ic.CompressionConfig(level=3, algorithm=ic.CompressionAlgorithm.Zstd),
        caching=ic.CachingConfig(1, 2, 3, 4, 5),
        storage=ic.StorageSettings(
            concurrency=ic.StorageConcurrencySettings(1, 2),
            retries=ic.StorageRetriesSettings(1, 2, 3),
            timeouts=ic.StorageTimeoutSettings(1, 2, 3, 4),
            storage_class="COLD'",
        ),
        manifest=ic.ManifestConfig(
            preload=ic.ManifestPreloadConfig(
                max_total_refs=3,
                preload_if=PRELOAD.or_conditions([PRELOAD.true(), PRELOAD.num_refs(None, 3)])
                & PRELOAD.path_matches("a'"),
            ),
            splitting=ic.ManifestSplittingConfig.from_dict(
                {SPLIT.AnyArray(): {AXIS.Axis(0): 2, AXIS.DimensionName("x"): 3, AXIS.Any(): 4}}
            ),
            virtual_chunk_location_compression=ic.ManifestVirtualChunkLocationCompressionConfig(),
        ),
        repo_update_retries=ic.RepoUpdateRetryConfig(default=ic.StorageRetriesSettings(1, 2, 3)),
        previous_file="x",
    ),
    ic.S3Options(region="x", checksum_algorithm=ic.ChecksumAlgorithm.Sha256),
    ic.RepoStatus(ic.RepoAvailability.read_only, limited_availability_reason="moving"),
    ic.Attribution(client="a/1"),
    ic.FeatureFlag(3, "move_node", True, None),
    ic.BasicConflictSolver(on_chunk_conflict=ic.VersionSelection.Fail),
    ic.ConflictDetector(),
    ic.Conflict(ic.ConflictType.ChunkDoubleUpdate, "/a", [[1]]),
    ic.VirtualChunkSpec([0], "s3://a/b", 0, 1),
    ic.UpdateType.NewCommit("main", "x"),  # type: ignore[call-arg]
    ic.ManifestFileInfo("a", 1, 2),
    *ic.SpecVersion,
    *ic.SessionMode,
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: type(thing).__name__)
def test_reprs_evaluate(thing: Any) -> None:
    assert eval(repr(thing), {**vars(ic), "datetime": dt}) == thing
